"""One client that speaks from several addresses: who asks the broker, and who gets its messages."""

from __future__ import annotations

from typing import Any

from exproto_app import App, Connection, Message
from exproto_app.commands import Register, Subscribe, Unsubscribe
from exproto_app.core import Channel

from .world import World


class Roamer:
    """A device that speaks from as many addresses as the test connects."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []
        app: App[Any, Any] = App(roaming=True)

        @app.on_received
        def login(conn: Connection[Any, Any], frame: bytes) -> None:
            conn.register(frame.decode())

        @app.on_deliver
        def hear(conn: Connection[Any, Any], message: Message) -> None:
            self.heard.append((conn.id, message.topic))

        self.world = World(app)

    def speak(self) -> Channel:
        """Speak from a new address."""
        channel, _ = self.world.connect(socktype="udp")
        channel.received(b"roamer")
        for outcome in self.world.hub.unanswered:
            outcome.settle(None)
        self.world.hub.unanswered.clear()
        self.world.settle()
        return channel

    def asked(self) -> list[str]:
        """What the broker was asked, and forget it."""
        asked = [
            f"{type(one).__name__} {one.topic}"
            for one in self.world.hub.asked
            if isinstance(one, Subscribe | Unsubscribe)
        ]
        self.world.hub.asked.clear()
        return asked

    def told(self, channel: Channel, topic: str) -> tuple[str, str]:
        """Say who hears what the broker has for the client, where *channel* stands for it."""
        channel.delivered((Message(topic, b""),))
        self.world.settle()
        return self.heard.pop()


def test_the_one_that_came_last_stands_for_all() -> None:
    roamer = Roamer()
    first, second = roamer.speak(), roamer.speak()
    assert roamer.world.hub.moved == [(first, second)]
    assert sum(isinstance(one, Register) for one in roamer.world.hub.asked) >= 1


def test_messages_go_to_who_subscribed_and_the_rest_to_the_last() -> None:
    roamer = Roamer()
    first, second = roamer.speak(), roamer.speak()
    first.conn.subscribe("jobs/#")
    roamer.world.settle()
    assert roamer.told(second, "jobs/1") == (first.conn.id, "jobs/1")
    assert roamer.told(second, "news/1") == (second.conn.id, "news/1")


def test_who_subscribed_last_gets_them_and_only_it_can_take_it_back() -> None:
    roamer = Roamer()
    first, second = roamer.speak(), roamer.speak()
    first.conn.subscribe("jobs/#")
    second.conn.subscribe("jobs/#")
    roamer.world.settle()
    assert roamer.asked() == ["Subscribe jobs/#", "Subscribe jobs/#"]
    first.conn.unsubscribe("jobs/#")
    roamer.world.settle()
    assert roamer.asked() == []
    assert roamer.told(second, "jobs/1") == (second.conn.id, "jobs/1")
    second.conn.unsubscribe("jobs/#")
    roamer.world.settle()
    assert roamer.asked() == ["Unsubscribe jobs/#"]


def test_what_one_has_subscribed_to_is_kept_when_it_goes() -> None:
    roamer = Roamer()
    first, second = roamer.speak(), roamer.speak()
    second.conn.subscribe("jobs/#")
    first.conn.subscribe("news/#")
    roamer.world.settle()
    second.terminated("lost")
    roamer.world.settle()
    assert roamer.world.hub.moved[-1] == (second, first)
    assert roamer.told(first, "jobs/1") == (first.conn.id, "jobs/1")
    assert roamer.told(first, "news/1") == (first.conn.id, "news/1")
    first.terminated("lost")
    roamer.world.settle()
    assert not roamer.world.app.connections
