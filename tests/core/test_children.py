"""Children of a line: their turns are the line's, their clients and ends their own."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from exproto_app import App, Connection, Message
from exproto_app.commands import Publish, Register, Subscribe, Unsubscribe
from exproto_app.core import Channel, State
from exproto_app.errors import ClosedError, DeniedError, SetupError, UnavailableError
from exproto_app.framing import Line
from exproto_app.models import Limits
from exproto_app.testing import TestClient

from .world import FakeWaiter, World


def bus(**limits: Any) -> App[Any, Any]:
    """Return an app whose line makes a child of each name that it gets."""
    app: App[Any, Any] = App(framing=Line(), limits=Limits(**limits))

    @app.on_received
    def frame(conn: Connection[Any, Any], frame: bytes) -> None:
        conn.child(frame.decode())

    return app


def child_of(line: Channel, name: str) -> Channel:
    """Return the engine's half of a child."""
    verbs: Any = line.conn.children[name]._verbs
    assert isinstance(verbs, Channel)
    return verbs


def answer(world: World) -> None:
    """Have the broker let everybody in that asks."""
    unanswered, world.hub.unanswered = world.hub.unanswered, []
    for outcome in unanswered:
        outcome.settle(None)
    world.settle()


def test_a_child_registers_while_the_line_goes_on() -> None:
    world = World(bus())
    line, _ = world.connect()
    line.received(b"a\nb\n")
    world.settle()
    assert [command.client.clientid for command in world.hub.asked if isinstance(command, Register)] == [
        "a",
        "b",
    ]
    assert not line.busy
    assert line.client is None
    answer(world)
    assert set(world.app.connections) == {"a", "b"}


def test_the_end_of_a_line_ends_its_children_first_each_once() -> None:
    app, seen = bus(), list[str]()

    @app.on_terminated
    def gone(conn: Connection[Any, Any], reason: str) -> None:
        seen.append(f"{conn.id} {reason}")

    world = World(app)
    line, _ = world.connect()
    line.received(b"a\nb\n")
    world.settle()
    answer(world)
    line.terminated("lost")
    world.settle()
    assert seen == ["1.1 lost", "1.2 lost", "1 lost"]
    assert not world.engine.channels
    assert not app.connections
    assert app.stats["connections_opened"] == app.stats["connections_closed"] == 3


def test_frames_that_came_before_the_end_still_see_the_children() -> None:
    app, seen = bus(), list[Any]()

    @app.on_received(b"tell")
    def tell(conn: Connection[Any, Any], frame: bytes) -> None:
        seen.append([child.closed for child in conn.children.values()])

    world = World(app)
    line, _ = world.connect()
    line.received(b"a\n")
    world.settle()
    answer(world)
    line.unwritable()
    line.received(b"tell\n")
    line.terminated()
    world.settle()
    assert seen == [[False]]


@pytest.mark.parametrize("end", ["line", "child"])
def test_turns_of_line_and_children_never_overlap(end: str) -> None:
    app, seen, waiter = bus(), list[str](), FakeWaiter()

    @app.on_received(b"x")
    def x(conn: Connection[Any, Any], frame: bytes) -> None:
        seen.append("x")

    @app.child.on_deliver
    async def deliver(conn: Connection[Any, Any], message: Message) -> None:
        seen.append("begins")
        await waiter
        seen.append("ends")

    world = World(app)
    line, _ = world.connect()
    line.received(b"a\nb\n")
    world.settle()
    answer(world)
    child_of(line, "a").delivered([Message("t", b"")])
    world.settle()
    child_of(line, "b").delivered([Message("t", b"")])
    line.received(b"x\n")
    world.settle()
    assert seen == ["begins"]
    assert line.busy
    if end == "child":
        child_of(line, "a").lose("it is gone")
        world.settle()
    waiter.set_result(None)
    world.settle()
    assert seen == ["begins", "ends", "begins", "ends", "x"]
    assert not line.busy


def test_a_handler_that_never_returns_keeps_a_line_no_longer_than_an_end_may_take() -> None:
    app, seen = bus(end_timeout=2), list[str]()

    @app.child.on_deliver
    async def deliver(conn: Connection[Any, Any], message: Message) -> None:
        await FakeWaiter()

    @app.on_terminated
    def gone(conn: Connection[Any, Any], reason: str) -> None:
        seen.append(conn.id)

    world = World(app)
    line, _ = world.connect()
    line.received(b"a\n")
    world.settle()
    answer(world)
    child_of(line, "a").delivered([Message("t", b"")])
    world.settle()
    line.terminated()
    world.runtime.advance(10)
    assert seen == ["1.1", "1"]
    assert not world.engine.channels


def test_a_line_that_fails_keeps_the_ends_of_its_children() -> None:
    app, seen = bus(), list[str]()

    @app.on_received(b"bad")
    def bad(conn: Connection[Any, Any], frame: bytes) -> None:
        for child in conn.children.values():
            child.terminate()
        raise ValueError("as it was told")

    @app.on_terminated
    def gone(conn: Connection[Any, Any], reason: str) -> None:
        seen.append(f"{conn.id} {reason}")

    world = World(app)
    line, link = world.connect()
    line.received(b"a\nb\n")
    world.settle()
    answer(world)
    line.received(b"bad\nc\n")
    world.settle()
    assert link.told == ["close"]
    line.terminated()
    world.settle()
    assert seen == ["1.1 terminated", "1.2 terminated", "1 error"]
    assert not world.engine.channels


def test_a_full_queue_of_a_child_holds_the_line() -> None:
    world = World(bus())
    line, _ = world.connect()
    line.received(b"a\n")
    world.settle()
    answer(world)
    child = child_of(line, "a")
    child.congested()
    line.received(b"b\n")
    world.settle()
    assert list(line.conn.children) == ["a"]
    child.relieved()
    world.settle()
    assert list(line.conn.children) == ["a", "b"]


def test_what_a_child_sends_leaves_by_the_line_in_order() -> None:
    app = bus()

    @app.child.on_deliver
    def deliver(conn: Connection[Any, Any], message: Message) -> bytes:
        conn.send(b"first")
        return message.payload

    world = World(app)
    line, link = world.connect()
    line.received(b"a\n")
    world.settle()
    answer(world)
    child_of(line, "a").delivered([Message("t", b"second")])
    world.settle()
    assert link.sent == b"first\nsecond\n"


def test_a_child_that_says_nothing_times_out_alone() -> None:
    app, seen = bus(), list[str]()

    @app.child.on_connect
    def begin(conn: Connection[Any, Any]) -> None:
        conn.start_timer(5)

    @app.on_terminated
    def gone(conn: Connection[Any, Any], reason: str) -> None:
        seen.append(f"{conn.id} {reason}")

    world = World(app)
    line, _ = world.connect()
    line.received(b"a\n")
    world.settle()
    answer(world)
    world.runtime.advance(3)
    line.conn.children["a"].publish("t", b"")
    world.runtime.advance(3)
    assert seen == []
    world.runtime.advance(3)
    assert seen == ["1.1 timeout"]
    assert not line.gone
    line.received(b"a\n")
    world.settle()
    assert child_of(line, "a").id == "1.2"


def test_children_are_bounded_and_the_lines_name_is_not_theirs() -> None:
    world = World(bus(children=2))
    line, _ = world.connect()
    line.received(b"a\nb\n")
    world.settle()
    answer(world)
    with pytest.raises(UnavailableError, match="2 children are behind this line already, limit is 2"):
        line.conn.child("c")
    line.conn.register("line")
    answer(world)
    with pytest.raises(DeniedError, match="the line's own clientid"):
        line.conn.child("line")
    with pytest.raises(DeniedError, match="can't be a child of a child"):
        line.conn.children["a"].child("d")
    conn = line.conn
    line.terminated()
    world.settle()
    with pytest.raises(ClosedError):
        conn.child("e")


def test_a_refused_child_ends_and_the_line_stays() -> None:
    world = World(bus())
    line, _ = world.connect()
    line.received(b"a\n")
    world.settle()
    world.hub.unanswered.pop().fail(DeniedError("not in the list"))
    world.settle()
    assert not line.conn.children
    assert line.state is State.OPEN
    assert world.engine.channels == {line}


def test_where_a_connection_has_one_client_children_use_the_lines() -> None:
    app, seen = bus(), list[Any]()

    @app.on_deliver
    def deliver(conn: Connection[Any, Any], message: Message) -> None:
        seen.append((conn.id, message.topic))

    world = World(app)
    world.hub.many_clients = False
    line, _ = world.connect()
    line.conn.register("line", mountpoint="m/")
    answer(world)
    line.received(b"a\nb\n")
    world.settle()
    a, b = line.conn.children["a"], line.conn.children["b"]
    a.publish("up/a", b"")
    a.subscribe("down/a")
    a.subscribe("down/all")
    b.subscribe("down/all")
    line.conn.subscribe("down/line")
    world.settle()
    line.delivered([Message(f"m/down/{name}", b"") for name in ("a", "line", "all")])
    world.settle()
    assert [type(command) for command in world.hub.asked].count(Register) == 1
    assert Publish("m/up/a", b"", 0, False) in world.hub.asked
    assert sorted(seen) == [("1", "down/line"), ("1.1", "down/a"), ("1.1", "down/all"), ("1.2", "down/all")]
    a.terminate()
    world.settle()
    gone = [command.topic for command in world.hub.asked if isinstance(command, Unsubscribe)]
    assert gone == ["m/down/a"]
    assert [command.topic for command in world.hub.asked if isinstance(command, Subscribe)].count(
        "m/down/all"
    ) == 2


def test_there_a_line_that_is_not_registered_has_no_children() -> None:
    world = World(bus())
    world.hub.many_clients = False
    line, _ = world.connect()
    line.received(b"a\n")
    world.settle()
    assert not line.conn.children
    assert line.state is State.OPEN


def test_frames_are_the_lines_alone() -> None:
    app = bus()
    with pytest.raises(SetupError, match="gets no frames; register on_received with App"):
        app.child.on_received(b"x")
    with pytest.raises(SetupError, match="no children of its own"):
        _ = app.child.child


def test_a_refused_record_of_a_child_costs_that_child_alone() -> None:
    app = App[Any, Any](framing=Line())
    seen: list[str] = []

    @app.on_received
    def frame(conn: Connection[Any, Any], frame: bytes) -> None:
        child = conn.child(frame[:1].decode())
        child.send(frame, after=child.publish("up", frame, 1))

    @app.child.on_error
    def wrong(conn: Connection[Any, Any], error: Exception) -> None:
        seen.append(f"{conn.id} {error}")

    world = World(app)
    line, link = world.connect()
    line.received(b"a\nb\n")
    world.settle()
    answer(world)  # the logins
    answer(world)

    world.hub.at_once = False
    line.received(b"a1\nb1\na2\nb2\n")
    world.settle()
    first, *others = world.hub.unanswered
    world.hub.unanswered = others
    first.fail(DeniedError("not authorized"))
    world.settle()
    answer(world)
    assert link.sent.endswith(b"b1\nb2\n")
    assert b"a1" not in link.sent
    assert b"a2" not in link.sent
    assert seen == ["1.1 not authorized"]
    assert list(line.conn.children) == ["b"]
    assert not line.gone


def test_what_a_child_that_ends_was_to_send_costs_the_line_nothing() -> None:
    app = App[Any, Any](framing=Line())

    @app.on_received
    def frame(conn: Connection[Any, Any], frame: bytes) -> None:
        child = conn.child("a")
        child.send(frame, after=child.publish("up", frame, 1))

    world = World(app)
    world.hub.at_once = False
    line, link = world.connect()
    line.received(b"1\n")
    world.settle()
    answer(world)
    child_of(line, "a").end("taken over")
    child_of(line, "a").terminated()
    world.settle()
    for outcome in world.hub.unanswered:
        outcome.fail(ClosedError("the connection is closed"))
    world.settle()
    assert link.sent == b""
    assert not line.gone


def test_a_handler_may_await_a_child_whose_older_self_still_ends() -> None:
    app = App[Any, Any](framing=Line())
    order: list[str] = []

    @app.on_received
    async def frame(conn: Connection[Any, Any], frame: bytes) -> bytes:
        first = await conn.child("a")
        first.terminate()
        await conn.child("a")
        return b"both"

    @app.child.on_connect
    def begin(conn: Connection[Any, Any]) -> None:
        order.append(f"begin {conn.id}")

    @app.child.on_terminated
    def end(conn: Connection[Any, Any], reason: str) -> None:
        order.append(f"end {conn.id}")

    world = World(app)
    line, link = world.connect()
    line.received(b"x\n")
    world.settle()
    answer(world)
    answer(world)
    assert link.sent == b"both\n"
    assert order == ["end 1.1", "begin 1.2"]  # nothing begins that has ended


def test_a_line_may_take_the_name_of_its_own_child() -> None:
    app = App[Any, Any](framing=Line())
    ends: list[str] = []

    @app.on_received
    async def frame(conn: Connection[Any, Any], frame: bytes) -> bytes:
        await conn.child("a")
        await conn.register("a")
        return b"mine"

    @app.child.on_terminated
    def end(conn: Connection[Any, Any], reason: str) -> None:
        ends.append(reason)

    world = World(app)
    line, link = world.connect()
    line.received(b"x\n")
    world.settle()
    answer(world)
    answer(world)
    assert link.sent == b"mine\n"
    assert ends == ["taken over"]
    assert world.app.connections["a"] is line.conn


def test_threads_that_ask_for_one_name_get_one_child() -> None:
    app, got = App[Any, Any](framing=Line()), list[set[object]]()
    # They are started before threads change at each step: Python 3.11 may fail to trace two that begin then.
    threads = ThreadPoolExecutor(8)
    start = threading.Barrier(8, timeout=30)
    list(threads.map(lambda _: start.wait(), range(8)))

    @app.on_received(blocking=True)
    def frame(conn: Connection[Any, Any], frame: bytes) -> None:
        def ask(_: int) -> object:
            start.wait()
            return conn.child(frame.decode())

        got.append(set(threads.map(ask, range(8))))

    interval = sys.getswitchinterval()
    with threads, TestClient(app) as line:
        line.send(b"first\n")
        sys.setswitchinterval(1e-6)
        try:
            line.send(b"".join(b"%d\n" % number for number in range(30)))
        finally:
            sys.setswitchinterval(interval)
        assert [len(children) for children in got] == [1] * 31
        line.close()
        assert not app.connections


def test_a_line_that_has_ended_has_no_children_any_more() -> None:
    world = World(bus())
    line, _ = world.connect()
    conn = line.conn
    line.terminated()
    world.settle()
    with pytest.raises(ClosedError, match="device closed"):
        conn.child("a")
    assert line.children is None


@pytest.mark.parametrize("count", [2, 3])
def test_lines_that_await_the_children_of_one_another_do_not_stand_still(count: int) -> None:
    """Each end takes a turn of its line, and every line's turn belongs to a handler that waits for an end."""
    app = App[Any, Any](framing=Line())
    ends: list[str] = []

    @app.on_received
    async def frame(conn: Connection[Any, Any], frame: bytes) -> bytes:
        await conn.child(frame.decode())
        return b"has " + frame

    @app.child.on_terminated
    def end(conn: Connection[Any, Any], reason: str) -> None:
        ends.append(reason)

    world = World(app)
    lines = [world.connect() for _ in range(count)]
    for number, (line, _) in enumerate(lines):
        line.received(b"meter-%d\n" % number)
    world.settle()
    answer(world)
    for number, (line, _) in enumerate(lines):
        line.received(b"meter-%d\n" % ((number + 1) % count))
    world.settle()
    answer(world)
    for number, (line, link) in enumerate(lines):
        assert link.sent == b"has meter-%d\nhas meter-%d\n" % (number, (number + 1) % count)
        assert set(line.conn.children) == {f"meter-{(number + 1) % count}"}
    assert ends == ["taken over"] * count


def test_a_message_that_waits_for_a_childs_word_is_handled_when_it_publishes() -> None:
    """A child has no frames: what the line publishes for it is how it speaks."""
    app, seen = bus(), list[str]()

    @app.child.on_deliver(when="uplink")
    def deliver(conn: Connection[Any, Any], message: Message) -> bytes:
        seen.append(f"{conn.id} {message.topic}")
        return message.payload

    world = World(app)
    line, link = world.connect()
    line.received(b"a\nb\n")
    world.settle()
    answer(world)
    for name in ("a", "b"):
        child_of(line, name).delivered([Message(name, name.encode())])
    world.settle()
    assert seen == []
    line.conn.children["a"].publish("up", b"")
    world.settle()
    assert (seen, link.sent) == (["1.1 a"], b"a\n")
    line.conn.children["b"].terminate()
    world.settle()
    assert (seen, app.stats["deliveries_dropped.closing"]) == (["1.1 a"], 1)


def test_a_child_that_a_thread_asked_for_when_its_line_ended_never_begins() -> None:
    app, seen = App[Any, Any](framing=Line()), list[str]()

    @app.on_terminated
    def gone(conn: Connection[Any, Any], reason: str) -> None:
        seen.append(conn.id)

    world = World(app)
    line, _ = world.connect()
    world.runtime.other_thread = True
    child = line.conn.child("a")
    world.runtime.other_thread = False
    line.terminated()
    world.settle()
    assert isinstance(child.registered.error, ClosedError)
    assert child.closed
    assert seen == ["1"]
    assert not world.engine.channels
    assert app.stats["connections_opened"] == app.stats["connections_closed"] == 1


def test_a_message_for_the_next_word_of_a_child_waits_until_it_publishes() -> None:
    """Which tells that a frame of its was in the line's."""
    app, heard = bus(), list[bytes]()

    @app.child.on_deliver(when="uplink")
    def hear(conn: Connection[Any, Any], message: Message) -> None:
        heard.append(message.payload)

    world = World(app)
    line, _ = world.connect()
    line.received(b"a\n")
    world.settle()
    answer(world)
    child = child_of(line, "a")
    child.delivered((Message("down", b"one"),))
    world.settle()
    assert heard == []
    child.conn.publish("up", b"")
    world.settle()
    assert heard == [b"one"]


def test_publishing_is_a_sign_of_life_of_a_child() -> None:
    app, silent = bus(), list[str]()

    @app.child.on_connect
    def begin(conn: Connection[Any, Any]) -> None:
        conn.start_timer(10)

    @app.child.on_timeout
    def quiet(conn: Connection[Any, Any]) -> None:
        silent.append(conn.id)

    world = World(app)
    line, _ = world.connect()
    line.received(b"a\n")
    world.settle()
    answer(world)
    for _ in range(3):
        world.runtime.advance(6)
        line.conn.children["a"].publish("up", b"")
        world.settle()
    assert silent == []
    world.runtime.advance(11)
    world.settle()
    assert silent == ["1.1"]


def test_a_child_has_calls_at_intervals_of_its_own() -> None:
    app, ticks = bus(), list[str]()

    @app.child.every(10)
    def tick(conn: Connection[Any, Any]) -> None:
        ticks.append(conn.id)

    world = World(app)
    line, _ = world.connect()
    line.received(b"a\nb\n")
    world.settle()
    answer(world)
    world.runtime.advance(11)
    world.settle()
    line.conn.children["a"].terminate()
    world.settle()
    world.runtime.advance(10)
    world.settle()
    assert sorted(ticks) == ["1.1", "1.2", "1.2"]


def test_where_there_is_one_client_a_watcher_is_shown_what_a_child_asks() -> None:
    world = World(bus())
    world.hub.many_clients = False
    line, _ = world.connect()
    line.conn.register("line")
    answer(world)
    line.received(b"a\n")
    world.settle()
    child = child_of(line, "a")
    shown: list[str] = []
    child.watch(lambda tap, when, event: shown.append(type(event).__name__), late=False)
    child.conn.publish("up", b"")
    world.settle()
    assert shown == ["Published"]
    conn = line.conn.children["a"]
    child.terminated()
    world.settle()
    outcome = conn.request(b"who?")
    assert isinstance(outcome.error, ClosedError)


def test_what_a_child_sends_leaves_by_the_line_until_it_has_ended() -> None:
    world = World(bus())
    line, link = world.connect()
    line.received(b"a\n")
    world.settle()
    answer(world)
    conn = line.conn.children["a"]
    conn.send(b"framed")
    conn.send(b"raw", raw=True)
    waiting = conn.publish("up", b"")
    conn.send(b"acknowledged", after=waiting)
    world.settle()
    assert link.sent == b"framed\nraw" + b"acknowledged\n"
    conn.terminate()
    world.settle()
    assert isinstance(conn.send(b"late").error, ClosedError)
    assert isinstance(conn.send(b"late", after=waiting).error, ClosedError)
