"""Messages for devices in the queue: what expires, moves to another connection, or can't be one."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from exproto_app import App, Connection, Message
from exproto_app.commands import Outcome
from exproto_app.core import Channel
from exproto_app.framing import Line
from exproto_app.models import Limits, Properties

from .world import FakeWaiter, World


class Held:
    """A device whose handler of messages is held until the test lets it go, and its broker."""

    def __init__(self, *, when: Any = "now", **limits: Any) -> None:
        self.heard: list[bytes] = []
        self.waits: list[FakeWaiter] = []
        self.told: list[str] = []
        app: App[Any, Any] = App(framing=Line(), limits=Limits(**limits))

        @app.on_received
        def login(conn: Connection[Any, Any], frame: bytes) -> None:
            conn.register(frame.decode())

        @app.on_deliver("slow")
        async def slow(conn: Connection[Any, Any], message: Message) -> None:
            self.heard.append(message.payload)
            self.waits.append(FakeWaiter())
            await self.waits[-1]

        @app.on_deliver("later/#", when="uplink")
        def later(conn: Connection[Any, Any], message: Message) -> None:
            self.heard.append(message.payload)

        @app.on_deliver
        def other(conn: Connection[Any, Any], message: Message) -> None:
            self.heard.append(message.payload)

        self.world = World(app)

    def login(self) -> Channel:
        channel, _ = self.world.connect()
        channel.received(b"meter\n")
        for outcome in self.world.hub.unanswered:
            outcome.settle(None)
        self.world.hub.unanswered.clear()
        self.world.settle()
        return channel

    def acknowledged(self, name: str) -> Any:
        return lambda: self.told.append(name)

    @property
    def stats(self) -> Any:
        return self.world.app.stats


def expiring(payload: bytes, seconds: int, topic: str = "x") -> Message:
    return Message(topic, payload, 1, properties=Properties(expiry=seconds))


def test_what_expires_while_it_waits_is_dropped_and_finished_for_the_broker() -> None:
    held = Held()
    channel = held.login()
    channel.delivered((Message("slow", b"first"),))
    held.world.settle()
    channel.delivered((expiring(b"old", 5),), held.acknowledged("old"))
    channel.delivered((expiring(b"young", 50),), held.acknowledged("young"))
    held.world.runtime.now += 10
    held.waits[0].set_result(None)
    held.world.settle()
    assert (held.heard, held.told) == ([b"first", b"young"], ["old", "young"])
    assert held.stats["deliveries_dropped.expired"] == 1


@pytest.mark.parametrize("acknowledging", [True, False])
def test_messages_for_impossible_topics_are_dropped_and_the_others_kept(
    caplog: pytest.LogCaptureFixture, acknowledging: bool
) -> None:
    held = Held()
    channel = held.login()
    acknowledge = held.acknowledged("it") if acknowledging else None
    with caplog.at_level(logging.WARNING):
        channel.delivered((Message("a/#", b"bad"), Message("a", b"good")), acknowledge)
        channel.delivered((Message("a/#", b"bad"),), acknowledge)
    held.world.settle()
    assert (held.heard, held.told) == ([b"good"], ["it", "it"] if acknowledging else [])
    assert held.stats["deliveries_dropped.invalid_topic"] == 2
    assert caplog.text.count("1 messages dropped: ") == 2


def test_what_waits_for_its_turn_goes_to_the_connection_that_takes_over() -> None:
    """But for what the broker keeps, or has expired."""
    held = Held()
    older = held.login()
    older.delivered((Message("slow", b"first"),))
    held.world.settle()
    older.delivered((Message("x", b"plain"),))
    older.delivered(
        (expiring(b"old", 5), expiring(b"young", 50), Message("x", b"kept")), held.acknowledged("k")
    )
    older.delivered((Message("later/1", b"later"),))
    held.world.runtime.now += 10
    newer = held.login()
    held.waits[0].set_result(None)
    older.terminated()
    held.world.settle()
    newer.received(b"meter\n")
    held.world.settle()
    assert held.heard == [b"first", b"plain", b"young", b"later"]


def test_what_waits_for_a_word_of_the_device_is_dropped_at_its_end() -> None:
    held = Held()
    channel = held.login()
    channel.delivered((Message("later/1", b"one", 1), Message("later/2", b"two", 1)))
    held.world.settle()
    channel.terminated("lost")
    held.world.settle()
    assert held.heard == []
    assert held.stats["deliveries_dropped"] == 2


def test_a_publisher_goes_on_when_what_it_waits_for_is_dropped() -> None:
    held = Held(deliveries=4)
    channel = held.login()
    channel.delivered((Message("slow", b"first"),))
    held.world.settle()
    outcomes = [channel.delivered((Message("x", b"%d" % number, 1),)) for number in range(3)]
    waiting = [one for one in outcomes if isinstance(one, Outcome) and not one.done]
    assert waiting
    channel.terminated("lost")
    held.waits[0].set_result(None)
    held.world.settle()
    assert all(one.done for one in waiting)
