"""Verbs in every state, from any thread, and from a destructor: done, or refused, and nothing else."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest

from exproto_app import App, Connection
from exproto_app.commands import DONE, Outcome, Publish, Register, Subscribe, Unsubscribe
from exproto_app.core import Channel, State
from exproto_app.errors import ClosedError, CommandError, UnavailableError, UnsupportedError
from exproto_app.framing import Line
from exproto_app.models import Limits

from .world import FakeLink, FakeWaiter, World


async def idle() -> None:
    """End at once."""


VERBS: dict[str, Callable[[Connection[Any, Any]], object]] = {
    "send": lambda conn: conn.send(b"sent"),
    "publish": lambda conn: conn.publish("a", b""),
    "subscribe": lambda conn: conn.subscribe("a"),
    "unsubscribe": lambda conn: conn.unsubscribe("a"),
    "register": lambda conn: conn.register("d1"),
    "request": lambda conn: conn.request(b"asked"),
    "spawn": lambda conn: conn.spawn(idle()),
    "start_timer": lambda conn: conn.start_timer(5),
    "terminate": lambda conn: conn.terminate(),
}


def app_of(limits: Limits | None = None) -> App[Any, Any]:
    app: App[Any, Any] = App(framing=Line(), limits=limits or Limits())

    @app.on_received
    def frame(conn: Connection[Any, Any], frame: bytes) -> None:
        """Take every frame."""

    @app.on_received(b"wait")
    async def wait(conn: Connection[Any, Any], frame: bytes) -> None:
        await FakeWaiter()

    @app.on_terminated
    def gone(conn: Connection[Any, Any], reason: str) -> None:
        conn.publish("last", b"")

    return app


def bring(world: World, state: State) -> tuple[Channel, FakeLink, Connection[Any, Any]]:
    """Connect a device, and bring its connection into *state*."""
    channel, link = world.connect()
    conn = channel.conn
    if state is State.OPENING:
        return channel, link, conn
    channel.received(b"hello\n")
    if state in (State.DRAINING, State.CLOSING):
        world.hub.at_once = False
        conn.publish("held", b"")  # its answer is waited for
        channel.end("kicked", drain=state is State.DRAINING)
    elif state is State.CLOSED:
        channel.end("kicked")
    elif state is State.GONE:
        channel.received(b"wait\n")  # whose turn `on_terminated` waits for
        channel.terminated()
    elif state is State.LEAVING:
        world.hub.at_once = False
        channel.terminated()
    elif state is State.ENDED:
        channel.terminated()
    world.settle()
    assert channel.state is state
    return channel, link, conn


@pytest.mark.parametrize("thread", [False, True], ids=["loop", "thread"])
@pytest.mark.parametrize("state", list(State), ids=str)
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_carried_out_or_refused_in_every_state(verb: str, state: State, *, thread: bool) -> None:
    world = World(app_of())
    channel, _, conn = bring(world, state)
    world.runtime.other_thread = thread
    outcome = VERBS[verb](conn)
    world.runtime.other_thread = False
    if isinstance(outcome, Outcome) and state >= State.GONE and verb != "publish":
        assert isinstance(outcome.error, ClosedError)
    world.hub.at_once = True
    world.settle()
    for answered in world.hub.unanswered:
        answered.settle(None)
    channel.terminated()
    world.runtime.advance(30)
    assert channel.state is State.ENDED
    if isinstance(outcome, Outcome):
        assert outcome.done, "nobody waits for what never comes"


@pytest.mark.parametrize("thread", [False, True], ids=["loop", "thread"])
@pytest.mark.parametrize("state", list(State), ids=str)
@pytest.mark.parametrize("verb", VERBS)
def test_a_destructor_may_use_every_verb(verb: str, state: State, *, thread: bool) -> None:
    seen: list[str] = []

    class Last:
        def __init__(self, conn: Connection[Any, Any]) -> None:
            self.conn = conn

        def __del__(self) -> None:
            VERBS[verb](self.conn)
            seen.append(verb)

    world = World(app_of())
    channel, _, conn = bring(world, state)
    lost = [Last(conn)]
    world.runtime.other_thread = thread
    lost.clear()
    world.runtime.other_thread = False
    assert seen == [verb]
    world.hub.at_once = True
    world.settle()
    for answered in world.hub.unanswered:
        answered.settle(None)
    channel.terminated()
    world.runtime.advance(30)
    assert (channel.state, world.engine.open) == (State.ENDED, 0)


@pytest.mark.parametrize("verb", VERBS)
def test_the_state_of_a_connection_may_use_every_verb_as_it_goes_with_it(verb: str) -> None:
    seen: list[str] = []

    class Session:
        conn: Connection[Any, Any] | None = None

        def __del__(self) -> None:
            if self.conn is not None:
                VERBS[verb](self.conn)
                seen.append(verb)

    gc.freeze()  # what others have left needn't be looked at again
    app: App[Any, Any] = App(framing=Line(), state=Session)

    @app.on_connect
    def connect(conn: Connection[Any, Any]) -> None:
        conn.state.conn = conn

    world = World(app)
    channel, link = world.connect()
    channel.terminated()
    link.channel = None
    assert channel.state is State.ENDED
    gc.collect()
    gc.unfreeze()
    world.settle()
    assert (seen, world.engine.open) == ([verb], 0)


def test_verbs_of_a_thread_are_carried_out_in_the_loop_in_their_order() -> None:
    world = World(app_of())
    channel, link = world.connect()
    channel.received(b"hello\n")
    conn = channel.conn
    world.runtime.other_thread = True
    outcomes: list[Outcome[Any]] = [
        conn.send(b"1"),
        conn.publish("a", b""),
        conn.subscribe("b", 1),
        conn.request(b"2"),
    ]
    conn.start_timer(5)
    conn.spawn(idle())
    assert (link.sent, world.hub.asked) == (b"", [])
    world.settle()
    assert link.sent == b"1\n2\n"
    assert world.hub.asked == [Publish("a", b""), Subscribe("b", 1)]
    assert [outcome.done for outcome in outcomes] == [True, True, True, False]
    channel.received(b"answer\n")
    world.settle()
    assert outcomes[3].value == b"answer"
    world.runtime.advance(6)
    assert channel.reason == "timeout"


def test_a_thread_may_terminate() -> None:
    world = World(app_of())
    channel, link = world.connect()
    world.runtime.other_thread = True
    channel.conn.terminate()
    assert channel.state is State.OPENING
    world.settle()
    assert (channel.reason, link.told) == ("terminated", ["close"])


def test_what_the_connections_end_overtakes_fails_in_the_thread_too() -> None:
    world = World(app_of())
    channel, _ = world.connect()
    conn = channel.conn
    world.runtime.other_thread = True
    outcomes: list[Outcome[Any]] = [conn.send(b"1"), conn.subscribe("b"), conn.request(b"2")]
    conn.spawn(idle())
    conn.start_timer(5)
    conn.terminate()
    world.runtime.other_thread = False
    channel.terminated()
    world.settle()
    assert all(isinstance(outcome.error, ClosedError) for outcome in outcomes)
    assert channel.state is State.ENDED


def test_a_thread_that_spawns_too_much_is_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    world = World(app_of(Limits(tasks=1)))
    channel, _ = world.connect()
    ran: list[int] = []

    async def note(number: int) -> None:
        ran.append(number)

    world.runtime.other_thread = True
    channel.conn.spawn(note(1))
    channel.conn.spawn(note(2))
    world.settle()
    assert ran == [1]
    assert "1 tasks are running for this connection already, which is the limit" in caplog.text
    assert world.app.stats["commands_failed"] == 1
    assert not channel.gone


def test_too_many_tasks_are_refused_where_they_are_spawned() -> None:
    world = World(app_of(Limits(tasks=1)))
    channel, _ = world.connect()
    channel.conn.spawn(idle())
    refused = idle()
    with pytest.raises(UnavailableError, match="1 tasks are running"):
        channel.conn.spawn(refused)
    assert refused.cr_frame is None, "it is closed"  # type: ignore[attr-defined] # of a coroutine
    world.settle()
    channel.conn.spawn(idle())  # there is room again
    world.settle()


@pytest.mark.parametrize("gone", [False, True])
def test_what_a_task_raises_is_a_handlers_error_unless_the_connection_has_gone(*, gone: bool) -> None:
    world = World(app_of())
    channel, _ = world.connect()

    async def wrong() -> None:
        waiter = world.runtime.waiter()
        try:
            await waiter
        finally:
            raise ValueError("wrong")

    channel.conn.spawn(wrong())
    world.settle()
    if gone:
        channel.terminated()
    else:
        next(iter(channel.tasks._running)).cancel()  # type: ignore[union-attr]
    world.settle()
    assert world.app.stats["handler_errors"] == (not gone)
    assert channel.reason == ("device closed" if gone else "error")


def test_an_exit_in_a_task_counts_behind_the_end_too() -> None:
    world = World(app_of())
    channel, _ = world.connect()
    error = SystemExit(3)

    async def leave() -> None:
        try:
            await world.runtime.waiter()
        finally:
            raise error

    channel.conn.spawn(leave())
    world.settle()
    channel.terminated()
    world.settle()
    assert world.runtime.exited == [error]


def test_a_host_without_a_clock_says_that_it_has_no_timers(caplog: pytest.LogCaptureFixture) -> None:
    world = World(app_of())
    world.runtime.ticks = False
    channel, _ = world.connect()
    with pytest.raises(UnsupportedError, match="no timers"):
        channel.conn.start_timer(1)
    channel.conn.register("d1", keepalive=30)
    world.hub.unanswered.pop().settle(None)
    world.settle()
    assert "keepalive is ignored: this host has no timers" in caplog.text


def test_keep_outside_of_on_error_is_a_mistake() -> None:
    world = World(app_of())
    channel, _ = world.connect()
    with pytest.raises(RuntimeError, match="on_error only"):
        channel.conn.keep()
    channel.failed(None, None, ValueError("judged already"))
    with pytest.raises(RuntimeError, match="on_error only"):
        channel.conn.keep()


def test_commands_behind_a_registration_wait_for_it_and_are_bounded() -> None:
    world = World(app_of(Limits(commands=2)))
    channel, _ = world.connect()
    conn = channel.conn
    conn.register("d1")
    first, second, third = conn.publish("a", b""), conn.unsubscribe("b"), conn.publish("c", b"")
    assert [type(command) for command in world.hub.asked] == [Register]
    world.settle()
    assert str(third.error) == "3 commands wait for the broker, limit is 2"
    world.hub.unanswered.pop().settle(None)
    assert world.hub.asked[1:] == [Publish("a", b""), Unsubscribe("b")]
    assert (first.done, second.done) == (True, True)
    world.settle()
    assert world.app.stats["commands_failed"] == 1


def test_a_mountpoint_stands_before_all_topics() -> None:
    world = World(app_of())
    channel, _ = world.connect()
    conn = channel.conn
    conn.register("d1", mountpoint="up/")
    world.hub.unanswered.pop().settle(None)
    conn.publish("a", b"")
    conn.subscribe("$share/g/b")
    conn.unsubscribe("c")
    assert world.hub.asked[1:] == [Publish("up/a", b""), Subscribe("$share/g/up/b"), Unsubscribe("up/c")]


def test_registering_anew_as_the_same_client_is_done_and_as_another_is_denied() -> None:
    world = World(app_of())
    channel, _ = world.connect()
    conn = channel.conn
    conn.register("d1")
    world.hub.unanswered.pop().settle(None)
    world.settle()
    assert conn.register("d1") is DONE
    assert str(conn.register("d2").error) == "the connection is registered already, as 'd1'"


def test_the_app_publishes_from_a_thread_and_a_refusal_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    world = World(app_of())
    refusals: list[Outcome[None]] = []

    def publish(command: Publish) -> Outcome[None]:
        refusals.append(Outcome(world.runtime.waiter))
        return refusals[-1]

    world.hub.publish = publish  # type: ignore[method-assign] # a broker that takes its time
    world.runtime.other_thread = True
    outcome = world.app.publish("a", b"")
    assert not refusals
    world.settle()
    refusals[0].fail(UnavailableError("away"))
    assert isinstance(outcome.error, CommandError)
    assert "app ! publish to 'a' failed: away" in caplog.text
    assert world.app.stats["commands_failed"] == 1


def silent() -> App[Any, Any]:
    """Return an app that does nothing by itself."""
    app: App[Any, Any] = App(framing=Line())

    @app.on_received
    def nothing(conn: Connection[Any, Any], frame: bytes) -> None:
        """Do nothing."""

    return app


def test_where_messages_have_no_properties_they_go_without_and_that_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = silent()
    world = World(app)
    world.hub.has_properties = False
    channel, _ = world.connect()
    for _ in range(2):
        channel.conn.publish("a", b"", expiry=5)
        app.publish("b", b"", expiry=5)
    world.settle()
    assert world.hub.topics() == ["a", "b", "a", "b"]
    assert caplog.text.count("expiry") == 1


def test_a_response_topic_is_below_the_clients_mountpoint_too() -> None:
    world = World(silent())
    channel, _ = world.connect()
    channel.conn.register("a", mountpoint="sites/1/")
    for outcome in world.hub.unanswered:
        outcome.settle(None)
    world.settle()
    channel.conn.publish("ask", b"", response_topic="answers")
    world.settle()
    (published,) = [one for one in world.hub.asked if isinstance(one, Publish)]
    assert (published.topic, published.properties.response_topic) == ("sites/1/ask", "sites/1/answers")


def test_a_watcher_is_shown_a_name_that_isnt_allowed() -> None:
    app: App[Any, Any] = App(framing=Line())

    @app.on_received
    def login(conn: Connection[Any, Any], frame: bytes) -> None:
        conn.register("a/+")

    world = World(app)
    channel, _ = world.connect()
    shown: list[str] = []
    channel.watch(lambda tap, when, event: shown.append(type(event).__name__), late=False)
    channel.received(b"x\n")
    world.settle()
    assert "Refused" in shown
    assert world.hub.asked == []


def test_a_host_without_a_broker_side_is_a_mistake_of_its_author() -> None:
    world = World(silent())

    class Nothing:
        broker_side = None

    world.engine.hub = Nothing()  # type: ignore[assignment] # what can't carry out anything
    with pytest.raises(TypeError, match="has a broker side"):
        world.connect()
