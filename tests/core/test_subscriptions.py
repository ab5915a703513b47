"""Subscriptions of a line and its children by one client, to whom the broker sends a copy a filter."""

from __future__ import annotations

from typing import Any

import pytest

from exproto_app import App, Connection, Message
from exproto_app.commands import Subscribe, Unsubscribe
from exproto_app.core import Channel
from exproto_app.core.subscriptions import REMEMBERED
from exproto_app.errors import DeniedError
from exproto_app.framing import Line

from .world import World


class Bus:
    """A line with the children a and b, and what each has heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bytes]] = []
        app: App[Any, Any] = App(framing=Line())

        @app.on_deliver
        def deliver(conn: Connection[Any, Any], message: Message) -> None:
            assert conn.client is not None
            self.heard.append((conn.client.clientid, message.payload))

        self.world = World(app)
        self.world.hub.many_clients = False
        self.line, _ = self.world.connect()
        self.conn = self.line.conn
        self.conn.register("line")
        for outcome in self.world.hub.unanswered:
            outcome.settle(None)
        self.world.hub.unanswered.clear()
        self.a, self.b = self.conn.child("a"), self.conn.child("b")
        self.world.settle()

    def copies(self, *payloads: bytes, topic: str = "t/x", batch: bool = False) -> None:
        """Have the broker send copies of messages, which their payloads name; as a *batch* in one call."""
        messages = [Message(topic, payload, id=payload.decode()) for payload in payloads]
        for some in [messages] if batch else [[message] for message in messages]:
            self.line.delivered(some)
        self.world.settle()

    def take(self) -> list[tuple[str, bytes]]:
        """Return what was heard since the last call."""
        heard, self.heard = self.heard, []
        return heard

    def asked(self, kind: type) -> list[str]:
        """Return the topics of what the broker was asked."""
        asked: list[Any] = [command for command in self.world.hub.asked if isinstance(command, kind)]
        return [command.topic for command in asked]


@pytest.fixture
def bus() -> Bus:
    return Bus()


@pytest.mark.parametrize("batch", [True, False])
def test_each_gets_the_first_copy_and_nobody_the_others(bus: Bus, batch: bool) -> None:
    bus.a.subscribe("t/#")
    bus.a.subscribe("t/x")
    bus.b.subscribe("t/+")
    bus.world.settle()
    bus.copies(*[b"1"] * 3, *[b"2"] * 3, batch=batch)
    assert sorted(bus.take()) == [("a", b"1"), ("a", b"2"), ("b", b"1"), ("b", b"2")]
    assert not bus.line.subscriptions._copies  # type: ignore[union-attr] # all have come


def test_copies_of_several_messages_may_come_mixed(bus: Bus) -> None:
    bus.conn.subscribe("t/#")
    bus.conn.subscribe("t/x")
    bus.copies(b"1", b"2", b"2", b"3", b"1", b"3")
    assert bus.take() == [("line", b"1"), ("line", b"2"), ("line", b"3")]


def test_the_line_and_its_children_hear_what_each_has_asked_for(bus: Bus) -> None:
    bus.conn.subscribe("t/#")
    bus.a.subscribe("t/x")
    bus.world.settle()
    bus.copies(b"1", b"1")
    bus.copies(b"2", topic="t/y")
    bus.copies(b"3", topic="elsewhere")  # nobody knows why, so it is the line's
    assert sorted(bus.take()) == [("a", b"1"), ("line", b"1"), ("line", b"2"), ("line", b"3")]


def test_the_same_filter_is_asked_for_by_each_and_given_up_by_the_last(bus: Bus) -> None:
    bus.conn.subscribe("t/x")
    bus.a.subscribe("t/x")
    bus.world.settle()
    bus.conn.unsubscribe("t/x")
    bus.world.settle()
    bus.copies(b"1")
    assert bus.take() == [("a", b"1")]
    assert bus.asked(Unsubscribe) == []
    bus.a.terminate()
    bus.world.settle()
    assert bus.asked(Subscribe) == ["t/x"] * 2
    assert bus.asked(Unsubscribe) == ["t/x"]


def test_a_copy_on_its_way_while_somebody_unsubscribes_is_dropped_too(bus: Bus) -> None:
    bus.a.subscribe("t/#")
    bus.a.subscribe("t/x")
    bus.world.settle()
    bus.copies(b"1")
    bus.a.unsubscribe("t/x")
    bus.world.settle()
    bus.copies(b"1", b"2")
    assert bus.take() == [("a", b"1"), ("a", b"2")]


def test_a_retained_message_comes_again_for_who_subscribes_later(bus: Bus) -> None:
    bus.a.subscribe("t/x")
    bus.a.subscribe("t/#")
    bus.world.settle()
    bus.copies(b"kept")
    bus.b.subscribe("t/+")
    bus.world.settle()
    bus.copies(b"kept")
    assert ("b", b"kept") in bus.take()


def test_members_of_a_shared_subscription_take_turns_beside_the_others(bus: Bus) -> None:
    bus.conn.subscribe("t/x")
    bus.a.subscribe("$share/g/t/x")
    bus.b.subscribe("$share/g/t/x")
    bus.world.settle()
    bus.copies(b"1", b"1", b"2", b"2")
    bus.conn.unsubscribe("t/x")
    bus.world.settle()
    bus.copies(b"3")
    heard = bus.take()
    assert [one for one in heard if one[0] == "line"] == [("line", b"1"), ("line", b"2")]
    assert [one for one in heard if one[0] != "line"] == [("a", b"1"), ("b", b"2"), ("a", b"3")]


def test_a_filter_that_the_broker_refuses_counts_for_nobody(bus: Bus) -> None:
    bus.world.hub.at_once = False
    outcomes = [bus.conn.subscribe("t/#"), bus.a.subscribe("t/x")]
    bus.world.settle()
    for outcome in bus.world.hub.unanswered:
        outcome.fail(DeniedError("not authorized"))
    bus.world.settle()
    assert all(isinstance(outcome.error, DeniedError) for outcome in outcomes)
    bus.copies(b"1", b"2")
    assert {who for who, _ in bus.take()} <= {"line"}


def test_messages_without_an_id_are_never_taken_for_copies(bus: Bus) -> None:
    bus.a.subscribe("t/#")
    bus.a.subscribe("t/x")
    bus.world.settle()
    for _ in range(2):
        bus.line.delivered([Message("t/x", b"1")])
    bus.world.settle()
    assert bus.take() == [("a", b"1")] * 2


def test_what_is_remembered_is_bounded(bus: Bus) -> None:
    bus.a.subscribe("t/#")
    bus.a.subscribe("t/x")
    bus.world.settle()
    bus.copies(*(b"%d" % number for number in range(2 * REMEMBERED)))
    assert len(bus.take()) == 2 * REMEMBERED
    subscriptions = bus.line.subscriptions
    assert subscriptions is not None
    assert len(subscriptions._copies) == REMEMBERED


def test_a_line_with_one_filter_looks_nothing_up(bus: Bus) -> None:
    bus.conn.subscribe("t/#")
    subscriptions = bus.line.subscriptions
    assert subscriptions is not None
    messages = [Message("t/x", b"1", id="1")]
    assert subscriptions.share(messages, "") is messages
    assert isinstance(bus.line, Channel)
