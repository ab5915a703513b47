"""What all connections hold together is bounded in bytes, and those go first that hold most."""

from __future__ import annotations

from typing import Any

import pytest

from exproto_app import App, Connection, Limits, Message
from exproto_app.commands import Outcome
from exproto_app.core.memory import LARGE
from exproto_app.framing import Line

from .world import World


def lines(**limits: int) -> App[Any, Any]:
    """An app of lines that publishes and answers them."""
    app: App[Any, Any] = App(framing=Line(), limits=Limits(**limits))

    @app.on_received
    def received(conn: Connection, frame: bytes) -> bytes:
        conn.publish("up", frame)
        return frame

    @app.on_deliver
    def deliver(conn: Connection, message: Message) -> bytes:
        return message.payload

    return app


def test_of_many_unfinished_frames_the_largest_and_oldest_go() -> None:
    app = lines(memory=101_000)
    world = World(app)
    first, *others = [world.connect() for _ in range(4)]
    for channel, _ in (first, *others):
        channel.received(b"x" * 30_000)
        world.settle()
    assert first[1].told == ["abort"]
    assert all(link.told == [] for _, link in others)
    assert app.stats["connections_evicted.memory"] == 1
    for channel, _ in others:
        channel.received(b"\n")
        world.settle()
    assert app.stats["frames_received"] == 3
    assert world.engine.memory.used <= 101_000


def test_who_holds_little_is_never_closed_for_it() -> None:
    world = World(lines(memory=20_000))
    few = [world.connect() for _ in range(20)]
    for channel, _ in few:
        channel.received(b"x" * (LARGE // 2))
        world.settle()
    assert all(link.told == [] for _, link in few)
    assert world.engine.memory.used == 0


def test_what_was_given_back_counts_no_more() -> None:
    world = World(lines(memory=101_000))
    channels = [world.connect() for _ in range(20)]
    for channel, link in channels:
        channel.received(b"x" * 20_000)
        world.settle()
        channel.received(b"\n")
        world.settle()
        assert link.told == []


def test_while_memory_is_scarce_whoever_has_to_wait_is_not_read_on() -> None:
    world = World(lines(memory=101_000))
    holder, _ = world.connect()
    holder.received(b"x" * 60_000)
    world.settle()
    channel, link = world.connect()
    channel.unwritable()
    channel.received(b"y\n" * LARGE)
    assert (link.paused, link.told) == (True, [])
    holder.terminated()
    world.settle()
    channel.drained()
    world.settle()
    assert not link.paused


def test_messages_for_a_device_that_reads_nothing_are_bounded_in_bytes() -> None:
    app = lines(deliveries_bytes=10_000)
    world = World(app)
    channel, link = world.connect()
    channel.received(b"hi\n")
    channel.unwritable()
    for _ in range(5):
        channel.delivered((Message("down", b"z" * 4_000),))
    world.settle()
    assert app.stats["deliveries_dropped.queue_full"] == 3
    channel.drained()
    world.settle()
    assert link.sent.count(b"z") == 8_000


def test_one_message_is_taken_whatever_its_size() -> None:
    app = lines(deliveries_bytes=10)
    world = World(app)
    channel, link = world.connect()
    channel.received(b"hi\n")
    channel.delivered((Message("down", b"z" * 4_000), Message("down", b"y")))
    world.settle()
    assert (link.sent.count(b"z"), link.sent.count(b"y")) == (4_000, 0)


def test_commands_for_a_broker_that_is_away_are_bounded_in_bytes() -> None:
    app = lines(commands_bytes=10_000)
    world = World(app)
    channel, link = world.connect()
    channel.congested()
    outcomes: list[Outcome[None]] = [channel.conn.publish("up", b"x" * 4_000) for _ in range(5)]
    world.settle()
    assert [outcome.done for outcome in outcomes] == [False, False, True, True, True]
    assert str(outcomes[2].error) == "commands of 20330 bytes wait for the broker, limit is 10000"
    assert link.paused


@pytest.mark.parametrize("size", [0, 50_000])
def test_what_a_link_has_not_sent_counts(size: int) -> None:
    world = World(lines(memory=40_000))
    channel, link = world.connect()
    link.buffered = size
    channel.unwritable()
    world.settle()
    assert link.told == (["abort"] if size else [])


def test_what_waits_for_an_outcome_counts() -> None:
    world = World(lines(memory=40_000))
    channel, link = world.connect()
    channel.conn.send(b"x" * 50_000, after=Outcome(world.runtime.waiter))
    world.settle()
    assert link.told == ["abort"]
