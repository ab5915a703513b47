"""A client's MQTT 5 session, sans-IO: commands and bytes in, bytes and outcomes out; time is an argument.

A session lives through any number of network connections. What it sends is `Outgoing`'s, the messages that
it gets are `Incoming`'s; here are the network connection and the packets that come by it, each handed to
whom it concerns. Section numbers are those of the MQTT 5 standard.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from mqtt5 import (
    ConnAckPacket,
    DisconnectPacket,
    DisconnectReasonCode,
    PublishPacket,
    SubAckPacket,
    UnsubAckPacket,
)

from ...commands import Outcome, Publish, Subscribe, Unsubscribe, Waiter
from ...models import Message
from .connecting import Bounds, Login, connect_packet, terms_of
from .flights import Blame, Flight
from .incoming import Incoming
from .keepalive import Keepalive
from .outgoing import Outgoing
from .packets import (
    CONNACK,
    DISCONNECT,
    PING,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBREC,
    PUBREL,
    ProtocolError,
    body_of,
    parsed,
    reason_of,
)
from .reasons import NO_MQTT5, UNSUPPORTED_VERSION

__all__ = ["Blame", "Bounds", "Flight", "Login", "Owner", "ProtocolError", "Session"]


class Owner(Protocol):
    """Who drives a session, and is told what the broker does."""

    def wants_write(self) -> None:
        """See to it that `take` is called soon: there is something to be sent."""
        ...

    def accepted(self) -> None:
        """Take note that the broker has let the client in."""
        ...

    def refused(self, code: int, words: str) -> None:
        """Take note that the broker has not let the client in."""
        ...

    def denied(self, command: Publish | Subscribe | Unsubscribe, words: str) -> None:
        """Take note that the broker, or what it said at the start, refuses *command*."""
        ...

    def disconnected(self, code: int, words: str, blame: Blame) -> None:
        """Take note that the broker ends the connection, because of a packet where *blame* says so."""
        ...

    def message(self, message: Message, ids: list[int], taken: Callable[[], object] | None) -> None:
        """Take a message; *taken*, of QoS 1 and 2, is to be called when it is handled.

        *ids* are the subscription identifiers that it came with.
        """
        ...

    def relieved(self) -> None:
        """Take note that half of the queue is free again."""
        ...

    def finished(self) -> None:
        """Take note that every message is safe, after `finish`."""
        ...


class Session:
    """One client of the broker."""

    __slots__ = (
        "_began",
        "_buffer",
        "_connecting",
        "_incoming",
        "_keepalive",
        "bounds",
        "keepalive",
        "login",
        "online",
        "out",
        "outgoing",
        "owner",
        "since",
    )

    def __init__(
        self, login: Login, owner: Owner, waiter: Callable[[], Waiter], bounds: Bounds, *, first_id: int = 0
    ) -> None:
        self.login = login
        self.owner = owner
        self.bounds = bounds
        self.online = False  # the broker has let us in
        self.since = 0.0
        self.keepalive = login.keepalive
        self.out: list[bytes] = []  # what is to be sent
        self.outgoing = Outgoing(self, waiter, bounds, first_id)
        self._incoming: Incoming | None = None
        self._keepalive = Keepalive()
        self._began = False  # the broker may have our session, from an earlier network connection
        self._connecting = False
        self._buffer = b""

    # --- the network connection

    def connect(self, now: float) -> None:
        """Begin on a new network connection."""
        self._end()
        self._connecting = True
        self.since = now
        self._keepalive.begin(now)
        self._buffer = b""
        self.out[:] = (connect_packet(self.login, self.bounds, again=self._began),)
        self.owner.wants_write()

    def lost(self) -> None:
        """Take note that the network connection is gone; what is unacknowledged waits for the next one."""
        self._end()
        self.out.clear()
        self._buffer = b""

    def disconnect(self, *, with_will: bool) -> None:
        """End the session: the broker publishes the will or forgets it (3.14.2.1)."""
        if self.online or self._connecting:
            code = DisconnectReasonCode.NORMAL_DISCONNECTION
            if with_will:
                code = DisconnectReasonCode.DISCONNECT_WITH_WILL_MESSAGE
            expiry = self.login.session_expiry
            self.write(DisconnectPacket(reason_code=code, session_expiry_interval=expiry).write())
        self._end()

    def broken(self, error: ProtocolError) -> None:
        """Tell the broker what it did wrong."""
        if self.online:
            self.write(DisconnectPacket(reason_code=error.code).write())
        self._end()

    def _end(self) -> None:
        self.online = self._connecting = False
        self.outgoing.lost()

    def write(self, packet: bytes) -> None:
        """Have *packet* sent."""
        if not self.out:
            self.owner.wants_write()
        self.out.append(packet)

    def take(self) -> bytes:
        """Return what is to be sent."""
        out = self.out
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        self._keepalive.sent = True
        return data

    def blocked(self) -> None:
        """Send nothing more: the broker reads too slowly."""
        self.outgoing.blocked()

    def unblocked(self) -> None:
        """Send again."""
        self.outgoing.unblocked()

    def tick(self, now: float) -> str:
        """See to the keepalive, at least once in a second; return why the connection is dead, if it is."""
        timeout = self.bounds.timeout
        if self._connecting:
            return f"no CONNACK within {timeout:g} s" if now - self.since >= timeout else ""
        if not self.online:
            return ""
        if self._keepalive.tick(now, self.keepalive, self.bounds, owed=self.outgoing.in_flight):
            self.write(PING)
        overdue = self._keepalive.overdue(now, timeout)
        return f"no answer to a ping within {timeout:g} s" if overdue else ""

    # --- commands

    @property
    def waiting(self) -> deque[Flight] | None:
        """What waits for its turn, the oldest first."""
        return self.outgoing.waiting

    @property
    def unsafe(self) -> int:
        """How many messages wait, for sending or for an acknowledgement."""
        return self.outgoing.unsafe

    def publish(self, command: Publish) -> Outcome[None]:
        """Publish, in order; see `Outgoing.publish`."""
        return self.outgoing.publish(command)

    def subscribe(self, command: Subscribe, identifier: int = 0, *, retained: bool = True) -> Outcome[int]:
        """Subscribe, for *retained* messages too; the outcome is the QoS granted. *identifier* 0: none."""
        return self.outgoing.issue(command, identifier, retained=retained)

    def unsubscribe(self, command: Unsubscribe) -> Outcome[None]:
        """Take a subscription back."""
        return self.outgoing.issue(command)

    # --- receiving

    def receive(self, data: bytes) -> None:
        """Take *data* as it came. Raises `ProtocolError`."""
        self._keepalive.heard = True
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        at, end = 0, len(data)
        view = memoryview(data)
        while at < end:
            body, length = body_of(data, at + 1)
            if not body:
                break
            if length > self.bounds.packet_max:
                words = f"it sent a packet of {length} bytes, limit is {self.bounds.packet_max}"
                raise ProtocolError(words, DisconnectReasonCode.PACKET_TOO_LARGE)
            if body + length > end:
                break
            first = data[at]
            if first == 0x40 and (length == 2 or (length == 3 and data[body + 2] < 0x80)):
                self.outgoing.acknowledged((data[body] << 8) + data[body + 1], 0, "")
            else:
                self._packet(first >> 4, view[at : body + length], body - at)
            at = body + length
            if not self.online:
                return  # refused or disconnected: nothing that follows counts
        self._buffer = data[at:]

    def _packet(self, kind: int, packet: memoryview, head: int) -> None:
        """Take one whole *packet*, with *head* bytes before its body."""
        body = packet[head:]
        if not self.online and kind != CONNACK and not (kind == DISCONNECT and self._connecting):
            raise ProtocolError(f"its first packet was of type {kind}, not CONNACK")
        if kind in {PUBACK, PUBREC, PUBREL, PUBCOMP}:
            if len(body) < 2:
                raise ProtocolError("it sent an acknowledgement without an identifier")
            if kind == PUBREL:
                self._messages().released((body[0] << 8) + body[1])
            else:
                self.outgoing.answered(kind, packet, body)
        elif kind == PINGRESP:
            pass
        elif kind == CONNACK:
            self._connack(packet, body)
        elif kind == DISCONNECT:
            self._disconnected(*reason_of(packet, body, 0))
        else:
            self._parsed(kind, parsed(packet))

    def _parsed(self, kind: int, packet: Any) -> None:
        if isinstance(packet, PublishPacket):
            if int(packet.qos):
                self._messages().take(packet)
            else:
                message = Message(packet.topic, packet.payload, 0, packet.retain)
                self.owner.message(message, packet.subscription_ids, None)
        elif isinstance(packet, (SubAckPacket, UnsubAckPacket)):
            self.outgoing.subscription_answered(packet)
        else:
            raise ProtocolError(f"it sent a packet of type {kind}, which is a client's")

    def _messages(self) -> Incoming:
        if self._incoming is None:
            self._incoming = Incoming(self, self.bounds)
        return self._incoming

    def _connack(self, packet: memoryview, body: memoryview) -> None:
        if self.online or not self._connecting:
            raise ProtocolError("it sent a second CONNACK")
        self._connecting = False
        if len(body) == 2:  # of MQTT 3: no properties
            self.owner.refused(UNSUPPORTED_VERSION, NO_MQTT5)
            return
        if len(body) > 2 and body[1] >= 0x80:
            code, words = reason_of(packet, body, 1)
            self.owner.refused(code, NO_MQTT5 if code == UNSUPPORTED_VERSION else words)
            return
        connack = parsed(packet)
        if not isinstance(connack, ConnAckPacket):
            raise ProtocolError("its first packet is no CONNACK")
        self.outgoing.terms = terms_of(connack)
        self.keepalive = self.login.keepalive
        if connack.server_keep_alive is not None:
            self.keepalive = connack.server_keep_alive
        self.online = self._began = True
        if not connack.session_present and self._incoming is not None:
            self._incoming.forget()
            self._incoming = None
        self.outgoing.resume(present=connack.session_present)
        self.owner.accepted()

    def _disconnected(self, code: int, words: str) -> None:
        was_online = self.online
        self.online = self._connecting = self.outgoing.ready = False
        # What is unacknowledged of an earlier network connection hasn't been sent by this one.
        blame = self.outgoing.blame(code, words) if was_online else Blame.NOBODY
        self.owner.disconnected(code, words, blame)
