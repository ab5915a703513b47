"""A session's driver and its broker in one, as tests of the session play them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import mqtt5

from exproto_app import Message
from exproto_app.commands import Outcome, Publish, Waiter
from exproto_app.hosts.mqtt.session import Blame, Bounds, Login, Session

__all__ = ["Peer", "waiter"]


def waiter() -> Waiter:
    """Nobody waits in these tests: they look at what outcomes have come to."""
    return asyncio.Future()  # pragma: no cover - see above


class Peer:
    """Owns a session, and says to it what a broker would."""

    def __init__(
        self, *, login: Login | None = None, bounds: Bounds | None = None, first_id: int = 0
    ) -> None:
        self.bounds = bounds or Bounds()
        self.session = Session(login or Login("c1"), self, waiter, self.bounds, first_id=first_id)
        self.events: list[Any] = []
        self.refusals: list[tuple[object, str]] = []
        self.blames: list[Blame] = []
        self.messages: list[Message] = []
        self.takers: list[Callable[[], object] | None] = []
        self.now = 0.0

    # --- the driver

    def wants_write(self) -> None:
        """Do nothing: the test asks for what is to be sent."""

    def accepted(self) -> None:
        self.events.append("accepted")

    def refused(self, code: int, words: str) -> None:
        self.events.append(("refused", code, words))

    def denied(self, command: object, words: str) -> bool:
        self.refusals.append((command, words))
        return True

    def disconnected(self, code: int, words: str, blame: Blame) -> None:
        self.blames.append(blame)
        self.events.append(("disconnected", code, words))

    def message(self, message: Message, ids: list[int], taken: Callable[[], object] | None) -> None:
        self.messages.append(message)
        self.takers.append(taken)
        self.events.append((message, ids))

    def relieved(self) -> None:
        self.events.append("relieved")

    def finished(self) -> None:
        self.events.append("finished")

    # --- the broker

    def sent(self) -> list[Any]:
        """Return the packets that the session has sent since the last call."""
        data = memoryview(self.session.take())
        packets = []
        while data:
            packet, size = mqtt5.read(data)
            packets.append(packet)
            data = data[size:]
        return packets

    def say(self, *packets: Any) -> None:
        """Have the session receive *packets*, whole ones or bytes."""
        for packet in packets:
            self.session.receive(packet if isinstance(packet, bytes) else packet.write())

    def up(self, **terms: Any) -> list[Any]:
        """Bring the network connection up, with *terms* in the CONNACK; return what is sent then."""
        self.session.connect(self.now)
        self.sent()
        self.say(mqtt5.ConnAckPacket(**terms))
        return self.sent()

    def down(self) -> None:
        """Lose the network connection."""
        self.session.lost()

    def publish(self, payload: bytes, qos: int = 1) -> Outcome[None]:
        """Publish for the client."""
        return self.session.publish(Publish("t", payload, qos))
