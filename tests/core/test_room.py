"""Room for commands: a host that has none is waited for, and only what nobody awaits is ever dropped."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from exproto_app import App, Connection
from exproto_app.commands import Outcome, Publish
from exproto_app.core import State
from exproto_app.core.broker_queue import UNANSWERED
from exproto_app.core.states import COMMANDS_FULL, CONGESTED
from exproto_app.framing import Line
from exproto_app.models import Limits, Message

from .world import World


class Site:
    """An app whose handler of `go` does what the test says, where two commands may wait."""

    def __init__(self, **limits: int) -> None:
        self.app: App[Any, Any] = App(framing=Line(), limits=Limits(**{"commands": 2, **limits}))
        self.go: Callable[[Connection[Any, Any]], Any] = lambda conn: None
        self.seen: list[Any] = []
        self.turns: list[bytes] = []

        @self.app.on_received(b"go")
        def go(conn: Connection[Any, Any], frame: bytes) -> Any:
            self.turns.append(frame)
            return self.go(conn)

        @self.app.on_received
        def other(conn: Connection[Any, Any], frame: bytes) -> None:
            self.turns.append(frame)

        @self.app.on_terminated
        def gone(conn: Connection[Any, Any], reason: str) -> None:
            conn.publish("gone", b"")

        self.world = World(self.app)
        self.channel, self.link = self.world.connect()
        self.conn = self.channel.conn

    def topics(self) -> list[str]:
        return self.world.hub.topics()

    async def taken(self, *outcomes: Awaitable[Any]) -> None:
        for outcome in outcomes:
            self.seen.append(await outcome)


def test_a_host_without_room_is_asked_for_nothing_until_it_has_some() -> None:
    site = Site()
    site.channel.congested()
    outcome = site.conn.publish("a", b"")
    site.conn.subscribe("b")
    site.channel.received(b"x\n")
    assert (site.topics(), outcome.done, site.turns) == ([], False, [])
    assert site.channel.waits & CONGESTED
    site.channel.relieved()
    site.world.settle()
    assert (site.topics(), outcome.done, site.turns) == (["a"], True, [b"x"])
    assert len(site.world.hub.asked) == 2


def test_it_may_be_full_again_at_once() -> None:
    site = Site()
    site.channel.congested()
    for number in range(3):
        site.conn.publish(str(number), b"")
    execute = site.world.hub.execute

    def full(channel: Any, command: Any) -> Outcome[Any]:
        channel.congested()
        return execute(channel, command)

    site.world.hub.execute = full  # type: ignore[method-assign] # a hub with room for one
    site.channel.relieved()
    assert site.topics() == ["0"]
    site.channel.relieved()
    site.channel.relieved()
    assert site.topics() == ["0", "1", "2"]


def test_a_turn_may_start_all_and_then_await_them() -> None:
    site = Site()

    async def start_all(conn: Connection[Any, Any]) -> None:
        site.channel.congested()
        await site.taken(*[conn.publish(str(number), b"") for number in range(100)])

    site.go = start_all
    site.channel.received(b"go\nx\n")
    site.world.settle()
    assert (site.seen, site.topics()) == ([], [])
    assert site.channel.waits & COMMANDS_FULL
    assert site.link.paused
    site.channel.relieved()
    site.world.settle()
    assert site.seen == [None] * 100
    assert site.topics() == [str(number) for number in range(100)]
    assert (site.turns, site.link.paused) == ([b"go", b"x"], False)
    assert site.app.stats["commands_failed"] == 0


def test_sends_that_wait_count_as_awaiting() -> None:
    site = Site()

    def ack_each(conn: Connection[Any, Any]) -> None:
        site.channel.congested()
        for number in range(10):
            conn.send(b"%d" % number, after=conn.publish(str(number), b""))
        conn.send(b"many", after=conn.publish_many([("many", b"")] * 10))

    site.go = ack_each
    site.channel.received(b"go\n")
    site.world.settle()
    site.channel.relieved()
    site.world.settle()
    assert site.link.sent == b"".join(b"%d\n" % number for number in range(10)) + b"many\n"
    assert site.app.stats["commands_failed"] == 0


def test_what_nobody_awaits_is_dropped_beyond_the_limit_when_the_turn_has_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    outcomes: list[Outcome[None]] = []

    def flood(conn: Connection[Any, Any]) -> None:
        site.channel.congested()
        outcomes.extend(conn.publish(str(number), b"") for number in range(5))

    site.go = flood
    site.channel.received(b"go\nx\n")
    assert [outcome.done for outcome in outcomes] == [False] * 5
    site.world.settle()
    assert [outcome.done for outcome in outcomes] == [False, False, True, True, True]
    assert str(outcomes[2].error) == "5 commands wait for the broker, limit is 2"
    assert "publish to '4' failed: 5 commands wait for the broker, limit is 2" in caplog.text
    assert (site.app.stats["commands_failed"], site.turns) == (3, [b"go"])
    site.channel.relieved()
    site.world.settle()
    assert (site.topics(), site.turns) == (["0", "1"], [b"go", b"x"])


def test_a_task_has_a_round_of_the_loop_to_await() -> None:
    site = Site()
    site.channel.congested()

    async def gather() -> None:
        outcomes = [site.conn.publish(str(number), b"") for number in range(5)]
        for outcome in outcomes:
            site.world.runtime.run_task(site.taken(outcome), lambda *_: None)

    site.world.runtime.run_task(gather(), lambda *_: None)
    site.world.settle()
    assert site.app.stats["commands_failed"] == 0
    late = site.conn.publish("late", b"")
    site.world.settle()
    assert late.error is not None
    site.channel.relieved()
    site.world.settle()
    assert site.seen == [None] * 5


def test_bytes_are_bounded_whoever_waits() -> None:
    site = Site()
    site.channel.congested()
    payload = bytes(16_777_216)
    outcomes = [site.conn.publish("a", payload) for _ in range(6)]
    for outcome in outcomes:
        outcome.awaited = True
    site.world.settle()
    assert [outcome.done for outcome in outcomes] == [False] * 4 + [True] * 2
    assert str(outcomes[5].error) == "commands of 67109124 bytes wait for the broker, limit is 67108864"


def test_a_connection_that_ends_hands_over_what_waits() -> None:
    site = Site()
    site.channel.congested()
    outcome = site.conn.publish("a", b"")
    site.conn.subscribe("b")
    site.channel.terminated()
    site.world.settle()
    assert outcome.error is not None
    assert site.topics() == ["a", "gone"]
    assert site.channel.state is State.ENDED
    site.channel.relieved()
    site.channel.congested()  # a hub that is late


def test_terminate_waits_for_room_bounded_in_time() -> None:
    site = Site()
    site.channel.congested()
    site.conn.publish("a", b"")
    site.conn.terminate()
    site.world.settle()
    assert site.link.told == []
    site.world.runtime.advance(5)
    assert site.link.told == ["close"]
    site.channel.terminated()
    site.world.settle()
    assert site.topics() == ["a", "gone"]


def test_the_app_itself_waits_for_room_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    site = Site()
    site.world.engine.congested()
    outcomes = [site.app.publish(str(number), b"") for number in range(40)]
    for outcome in outcomes[36:]:
        outcome.awaited = True
    site.world.settle()
    assert [outcome.done for outcome in outcomes] == [False] * 32 + [True] * 4 + [False] * 4
    assert "app ! publish to '32' failed: 40 commands wait for the broker, limit is 32" in caplog.text
    assert site.app.stats["commands_failed"] == 4
    site.world.engine.relieved()
    assert len(site.topics()) == 36
    assert site.world.hub.asked[0] == Publish("0", b"")


def test_a_host_that_takes_whatever_comes_is_given_so_many_at_a_time() -> None:
    site = Site()
    answers: list[Outcome[Any]] = []

    def execute(channel: Any, command: Any) -> Outcome[Any]:
        answers.append(Outcome(site.world.runtime.waiter))
        return answers[-1]

    site.world.hub.execute = execute  # type: ignore[method-assign] # a hub that answers later

    def publish(conn: Connection[Any, Any]) -> None:
        for number in range(10 * UNANSWERED):
            conn.publish(str(number), b"")

    site.go = publish
    site.channel.received(b"go\nx\n")
    site.world.settle()
    assert (len(answers), site.turns) == (UNANSWERED, [b"go"])
    assert site.link.paused
    given = 0
    while given < len(answers):
        answers[given].settle(None)
        given += 1
        assert len(answers) - given <= UNANSWERED
    site.world.settle()
    assert (given, site.turns, site.link.paused) == (10 * UNANSWERED, [b"go", b"x"], False)
    assert site.app.stats["commands_failed"] == 0


def test_a_device_that_leaves_has_all_of_them_handed_over() -> None:
    site = Site()
    asked: list[str] = []
    pending: Outcome[Any] = Outcome(site.world.runtime.waiter)

    def execute(channel: Any, command: Any) -> Outcome[Any]:
        asked.append(command.topic)
        return pending

    site.world.hub.execute = execute  # type: ignore[method-assign] # a hub that answers later

    def publish(conn: Connection[Any, Any]) -> None:
        for number in range(2 * UNANSWERED):
            conn.publish(str(number), b"")

    site.go = publish
    site.channel.received(b"go\n")
    site.channel.terminated()
    site.world.settle()
    assert asked == [*(str(number) for number in range(2 * UNANSWERED)), "gone"]


def test_who_waits_for_a_device_that_holds_much_until_it_speaks_learns_of_its_end() -> None:
    app = App[Any, Any](framing=Line(), limits=Limits(deliveries_bytes=100))

    @app.on_deliver(when="uplink")
    def deliver(conn: Connection[Any, Any], message: Message) -> bytes:
        return message.payload

    world = World(app)
    channel, _ = world.connect()
    room = channel.delivered((Message("t", bytes(60), 1),))
    assert room is not None
    assert not room.done
    channel.terminated()
    world.settle()
    assert room.done
