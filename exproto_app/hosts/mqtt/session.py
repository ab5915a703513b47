"""A client's MQTT session, sans-IO: commands and bytes in, bytes and outcomes out; time is an argument.

A session lives through any number of network connections. What it sends is `Outgoing`'s, the messages that
it gets are `Incoming`'s; here are the network connection and the packets that come by it, each handed to
whom it concerns. What MQTT 3.1.1 does otherwise is its `Dialect`'s.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from mqtt5 import (
    DisconnectReasonCode,
    PubAckPacket,
    PublishPacket,
    PubRecPacket,
    SubAckPacket,
    UnsubAckPacket,
)

from ...commands import Outcome, Publish, Subscribe, Unsubscribe, Waiter
from ...models import Message
from .connecting import Bounds, Login
from .dialects import MQTT_5, Dialect
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
    PUBLISH,
    PUBREC,
    PUBREL,
    ProtocolError,
    body_of,
    message_of,
)
from .reasons import SILENCE

__all__ = ["Blame", "Bounds", "Flight", "Login", "ProtocolError", "Session", "SessionDriver"]

NOTHING: Final = bytearray()
"""The empty buffer of every session; it stays empty."""

SKIPPED: Final = bytearray(1)
"""Stands for the buffer while the rest of a packet is skipped."""

log = logging.getLogger("exproto_app")


class SessionDriver(Protocol):
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

    def denied(self, command: Publish | Subscribe | Unsubscribe, words: str) -> bool:
        """Log that the broker, or what it said at the start, refuses *command*.

        Tell whether that names the device, so that nobody else has to.
        """
        ...

    def disconnected(self, code: int, words: str, blame: Blame) -> None:
        """Take note that the broker ends the connection, because of a packet where *blame* says so."""
        ...

    def message(self, message: Message, ids: list[int], acknowledge: Callable[[], object] | None) -> None:
        """Take a message; *acknowledge*, of QoS 1 and 2, is to be called when it is handled.

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
        "_need",
        "bounds",
        "dialect",
        "keepalive",
        "login",
        "online",
        "out",
        "outgoing",
        "owner",
        "since",
    )

    def __init__(
        self,
        login: Login,
        owner: SessionDriver,
        waiter: Callable[[], Waiter],
        bounds: Bounds,
        *,
        first_id: int = 0,
    ) -> None:
        self.login = login
        self.owner = owner
        self.bounds = bounds
        self.dialect: Dialect = MQTT_5
        self.online = False  # the broker has let us in
        self.since = 0.0
        self.keepalive = login.keepalive
        self.out: list[bytes] = []  # what is to be sent
        self.outgoing = Outgoing(self, waiter, bounds, first_id)
        self._incoming: Incoming | None = None
        self._keepalive = Keepalive()
        self._began = False  # the broker may have our session, from an earlier network connection
        self._connecting = False
        self._buffer = (
            NOTHING  # the beginning of a packet, which isn't looked at before *_need* bytes are there
        )
        self._need = 0

    def take_over(self, older: Session) -> None:
        """Continue the session that *older* has at the broker, whose subscriptions stay."""
        self._began = True
        if older.outgoing.subscriptions:
            self.outgoing.subscriptions = dict(older.outgoing.subscriptions)

    # --- the network connection

    def connect(self, now: float, dialect: Dialect = MQTT_5) -> None:
        """Begin on a new network connection, where *dialect* is spoken."""
        self._end()
        self.dialect = dialect
        self._connecting = True
        self.since = now
        self._keepalive.begin(now)
        self._buffer = NOTHING
        self.out[:] = (dialect.connect(self.login, self.bounds, again=self._began),)
        self.owner.wants_write()

    def lost(self) -> None:
        """Take note that the network connection is gone; what is unacknowledged waits for the next one."""
        self._end()
        self.out.clear()
        self._buffer = NOTHING

    def disconnect(self, *, with_will: bool) -> None:
        """End the session, and have the broker publish the will (*with_will*) or forget it."""
        if self.online or self._connecting:
            packet = self.dialect.goodbye(with_will=with_will, expiry=self.login.session_expiry)
            if packet:
                self.write(packet)
        self._end()

    def broken(self, error: ProtocolError) -> None:
        """Tell the broker what it did wrong."""
        packet = self.dialect.complaint(error.code)
        if self.online and packet:
            self.write(packet)
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
        """See to the keepalive, once in a second or after `rest`; return why it is dead, if it is."""
        timeout = self.bounds.timeout
        if self._connecting:
            return f"no CONNACK within {timeout:g} s" if now - self.since >= timeout else ""
        if not self.online:
            return ""
        if self._keepalive.tick(now, self.keepalive, self.bounds, owed=self.outgoing.in_flight):
            self.write(PING)
        overdue = self._keepalive.overdue(now, timeout)
        return f"no answer to a ping within {timeout:g} s" if overdue else ""

    @property
    def rest(self) -> float:
        """The seconds in which nothing has to be seen to: little where something may be overdue soon.

        Ten thousand sessions of silent devices would take 25 ms of every second otherwise.
        """
        if not self.online or self._keepalive.asked or self.outgoing.in_flight:
            return 0.0
        return min(self.bounds.timeout / 2, self.keepalive / 10 or self.bounds.timeout)

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
            data = self._joined(data)
        elif len(data) == 4 and data[0] == 0x40 and data[1] == 2 and self.online:  # as most are
            self.outgoing.acknowledged((data[2] << 8) + data[3], 0, "")
            return
        at, end = 0, len(data)
        view = memoryview(data)
        while (at := self._acknowledged(data, at, end)) < end:
            body, length = body_of(data, at + 1)
            if not body:
                self._need = end - at + 1
                break
            if length > self.bounds.packet_max:
                at = self._skip(view, at, body, length)
                if at:
                    continue
                return
            if body + length > end:
                self._need = body + length - at
                break
            self._packet(data[at] >> 4, view[at : body + length], body - at)
            at = body + length
            if not self.online:
                return  # refused or disconnected: nothing that follows counts
        if at < end:
            self._buffer = bytearray(view[at:])

    def _joined(self, data: bytes) -> bytes:
        """Return *data* with what came of its packet before; empty while more of it is needed."""
        if self._buffer is SKIPPED:
            if len(data) < self._need:
                self._need -= len(data)
                return b""
            data = data[self._need :]
        else:
            self._buffer += data
            if len(self._buffer) < self._need:
                return b""
            data = bytes(self._buffer)
        self._buffer = NOTHING
        return data

    def _skip(self, view: memoryview, at: int, body: int, length: int) -> int:
        """Drop a message that is too large, acknowledged; return where what follows begins, 0 if not here.

        Only MQTT 5's brokers know what is too large. Raises `ProtocolError`.
        """
        most = self.bounds.packet_max
        if self.dialect.is_5 or not self.online or view[at] >> 4 != PUBLISH:
            words = f"it sent a packet of {length} bytes, limit is {most}"
            raise ProtocolError(words, DisconnectReasonCode.PACKET_TOO_LARGE)
        topic = body + 2
        begin = topic + (view[body] << 8) + view[body + 1] if topic <= len(view) else topic
        if begin + 2 > len(view):
            self._buffer, self._need = bytearray(view[at:]), begin + 2 - at
            return 0
        name = bytes(view[topic:begin]).decode(errors="replace")
        text = "mqtt ! %s: a message to %r is dropped: its packet has %d bytes, limit is %d"
        log.warning(text, self.login.clientid, name, length, most)
        qos = view[at] >> 1 & 3
        if qos:
            packet_id = (view[begin] << 8) + view[begin + 1]
            self.write((PubAckPacket if qos == 1 else PubRecPacket)(packet_id).write())
        if body + length <= len(view):
            return body + length
        self._buffer, self._need = SKIPPED, body + length - len(view)
        return 0

    def _acknowledged(self, data: bytes, at: int, end: int) -> int:
        """Take acknowledgements that come one behind another, as most do; return where they end."""
        while self.online and at + 4 <= end and data[at] == 0x40:
            size = 2 + data[at + 1]
            if size != 4 and (size != 5 or at + 5 > end or data[at + 4] >= 0x80):
                break
            self.outgoing.acknowledged((data[at + 2] << 8) + data[at + 3], 0, "")
            at += size
            if not self.online:
                return end
        return at

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
            if not self.dialect.is_5:
                raise ProtocolError("it sent a DISCONNECT, which MQTT 3.1.1 has for clients only")
            self._disconnected(*self.dialect.reason(packet, body, 0))
        else:
            self._parsed(kind, self.dialect.parsed(packet, head))

    def _parsed(self, kind: int, packet: Any) -> None:
        if isinstance(packet, PublishPacket):
            if int(packet.qos):
                self._messages().take(packet)
            else:
                self.owner.message(message_of(packet, 0), packet.subscription_ids, None)
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
        answer = self.dialect.answer(packet, body)
        if answer.code:
            self.owner.refused(answer.code, answer.words)
            return
        self.outgoing.begin(self.dialect, answer.terms)
        self.keepalive = self.login.keepalive if answer.keepalive is None else answer.keepalive
        self.online = self._began = True
        if not answer.present and self._incoming is not None:
            self._incoming.forget()
            self._incoming = None
        self.outgoing.resume(present=answer.present)
        self.owner.accepted()

    def silenced(self) -> bool:
        """Return whether a packet of ours may be why the broker closes again and again, without a word.

        Then the owner is told as of a DISCONNECT. MQTT 3.1.1 has no other way to say so; MQTT 5 says it.
        """
        if self.dialect.is_5 or not self.online or not self.outgoing.in_flight:
            return False
        self._disconnected(SILENCE, "it closed the connection without a word")
        return True

    def _disconnected(self, code: int, words: str) -> None:
        was_online = self.online
        self.online = self._connecting = self.outgoing.ready = False
        # What is unacknowledged of an earlier network connection hasn't been sent by this one.
        blame = self.outgoing.blame(code, words) if was_online else Blame.NOBODY
        self.owner.disconnected(code, words, blame)
