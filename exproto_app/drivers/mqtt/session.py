"""A client's MQTT 5 session, sans-IO: commands and bytes in, bytes and outcomes out; time is an argument.

A session lives through any number of network connections. Section numbers are those of the MQTT 5 standard.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Final, Protocol, TypeAlias

import attrs
from mqtt5 import (
    ConnAckPacket,
    ConnectPacket,
    DisconnectPacket,
    DisconnectReasonCode,
    PingReqPacket,
    PubAckPacket,
    PubCompPacket,
    PublishPacket,
    PubRecPacket,
    PubRelPacket,
    PubRelReasonCode,
    QoS,
    RetainHandling,
    SubAckPacket,
    SubscribePacket,
    TopicFilter,
    UnsubAckPacket,
    UnsubscribePacket,
    Will,
    read,
)

from ...commands import DONE, Outcome, Publish, Subscribe, Unsubscribe, Waiter, refused
from ...errors import DeniedError
from ...models import Message
from ...topics import split_share
from .reasons import NO_MQTT5, UNSUPPORTED_VERSION, WRONG_PACKET, in_words

__all__ = ["Bounds", "Login", "Owner", "ProtocolError", "Session"]

log = logging.getLogger("exproto_app")

QOS: Final = (QoS.AT_MOST_ONCE, QoS.AT_LEAST_ONCE, QoS.EXACTLY_ONCE)
CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK = 2, 3, 4, 5, 6, 7, 9
UNSUBACK, PINGRESP, DISCONNECT = 11, 13, 14
IDS: Final = 65_535
GRACE: Final = 120
"""Seconds for which the broker keeps the session of a client that lost its network connection, even if it
is to end with the device: messages for it wait until the gateway is back."""

OVERHEAD: Final = 64
"""Bytes that a message in the queue counts beside its topic and payload."""

PING: Final = bytes(PingReqPacket().write())

Sent: TypeAlias = Publish | Subscribe | Unsubscribe


class ProtocolError(Exception):
    """The broker sent what MQTT 5 doesn't allow; *code* is what it is told."""

    def __init__(self, words: str, code: DisconnectReasonCode = DisconnectReasonCode.PROTOCOL_ERROR) -> None:
        super().__init__(words)
        self.code = code


@attrs.frozen
class Login:
    """Who connects. *keepalive* and *session_expiry* are in seconds.

    With an expiry a session from before is gone on with; without, it begins anew and ends with `disconnect`.
    """

    clientid: str
    username: str = ""
    password: str | None = attrs.field(default=None, repr=False)
    keepalive: int = 60
    session_expiry: int = 0
    will: Message | None = None


@attrs.frozen(kw_only=True)
class Bounds:
    """What one session may use.

    Counts: *messages* waiting for the broker, and likewise unacknowledged by it, with as many other commands;
    *receive_max* messages of QoS 1 and 2 of the broker that aren't handled yet, and *excess* more of one that
    doesn't keep to it: Mosquitto 2.0.11 answers each acknowledgement with 20 messages of its queue.
    Bytes: *queue* of what waits, *packet_max* of a packet that the broker may send.
    Times, in seconds: *timeout* for an answer, *ping* of silence after which the broker is asked for one.
    """

    messages: int = 256
    queue: int = 65_536
    receive_max: int = 64
    excess: int = 1_000
    packet_max: int = 1_048_576
    timeout: float = 10.0
    ping: float = 60.0


@attrs.frozen
class Terms:
    """What the broker's CONNACK allows (3.2.2.3)."""

    receive_max: int = IDS
    max_qos: int = 2
    retain: bool = True
    packet_max: int = 268_435_460
    wildcards: bool = True
    shared: bool = True
    subscription_ids: bool = True


shared_terms = lru_cache(maxsize=64)(Terms)
"""Thousands of sessions with one broker share what it allows."""


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

    def disconnected(self, code: int, words: str) -> None:
        """Take note that the broker ends the connection."""
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


class Flight:
    """A packet of ours on its way: it waits for its turn, or for the broker's acknowledgement.

    *identifier* is the subscription's, which may want no *retained* messages. *released*: the broker has
    this message of QoS 2 (PUBREC).
    """

    __slots__ = ("command", "identifier", "outcome", "released", "retained")

    def __init__(
        self, command: Sent, outcome: Outcome[Any], identifier: int = 0, *, retained: bool = True
    ) -> None:
        self.command = command
        self.outcome = outcome
        self.identifier = identifier
        self.retained = retained
        self.released = False


class Session:
    """One client: its packet identifiers, what waits, what is unacknowledged, what it has subscribed to."""

    __slots__ = (
        "_began",
        "_buffer",
        "_connecting",
        "_epoch",
        "_finishing",
        "_flights",
        "_heard",
        "_heard_at",
        "_incoming",
        "_last_id",
        "_out",
        "_owner",
        "_pinged_at",
        "_quota",
        "_sent",
        "_sent_at",
        "_suspects",
        "_waiter",
        "_writable",
        "bounds",
        "keepalive",
        "login",
        "online",
        "ready",
        "since",
        "subscriptions",
        "terms",
        "waiting",
        "waiting_bytes",
    )

    def __init__(
        self, login: Login, owner: Owner, waiter: Callable[[], Waiter], bounds: Bounds, *, first_id: int = 0
    ) -> None:
        self.login = login
        self.online = False  # the broker has let us in
        self.ready = False  # what is published may go out at once
        self.terms = shared_terms()
        self.keepalive = login.keepalive
        self.waiting: deque[Flight] | None = None
        self.waiting_bytes = 0
        self.subscriptions: dict[str, tuple[int, int]] | None = None  # QoS and identifier by filter
        self._owner = owner
        self._waiter = waiter
        self.bounds = bounds
        self._began = False  # the broker may have our session, from an earlier network connection
        self._connecting = False
        self._finishing = False
        self._writable = True
        self._out: list[bytes] = []
        self._buffer = b""
        self._flights: dict[int, Flight] | None = None  # by packet identifier
        self._incoming: dict[int, bool] | None = None  # of messages not finished yet: whether it is handled
        self._last_id = first_id
        self._quota = 0
        self._suspects = 0
        self._epoch = 0
        self.since = self._heard_at = self._sent_at = self._pinged_at = 0.0
        self._heard = self._sent = False

    # --- the network connection

    def connect(self, now: float) -> None:
        """Begin on a new network connection."""
        login = self.login
        will = login.will
        packet = ConnectPacket(
            login.clientid,
            username=login.username or None,
            password=None if login.password is None else login.password.encode(),
            clean_start=not login.session_expiry and not self._began,
            will=None
            if will is None
            else Will(will.topic, payload=will.payload, qos=QOS[will.qos], retain=will.retain),
            keep_alive=login.keepalive,
            session_expiry_interval=login.session_expiry or GRACE,
            receive_max=self.bounds.receive_max,
            max_packet_size=self.bounds.packet_max,
        )
        self._connecting = self._writable = True
        self.since = self._heard_at = self._sent_at = now
        self._pinged_at = 0.0
        self._buffer = b""
        self._out[:] = (packet.write(),)
        self._owner.wants_write()

    def lost(self) -> None:
        """Take note that the network connection is gone; what is unacknowledged waits for the next one."""
        self.online = self.ready = self._connecting = False
        self._out.clear()
        self._buffer = b""

    def disconnect(self, *, with_will: bool) -> None:
        """End the session: the broker publishes the will or forgets it (3.14.2.1)."""
        if self.online or self._connecting:
            code = DisconnectReasonCode.NORMAL_DISCONNECTION
            if with_will:
                code = DisconnectReasonCode.DISCONNECT_WITH_WILL_MESSAGE
            expiry = self.login.session_expiry
            self._write(DisconnectPacket(reason_code=code, session_expiry_interval=expiry).write())
        self.online = self.ready = self._connecting = False

    def broken(self, error: ProtocolError) -> None:
        """Tell the broker what it did wrong."""
        if self.online:
            self._write(DisconnectPacket(reason_code=error.code).write())
        self.online = self.ready = self._connecting = False

    def take(self) -> bytes:
        """Return what is to be sent."""
        out = self._out
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        self._sent = True
        return data

    def blocked(self) -> None:
        """Send nothing more: the broker reads too slowly."""
        self._writable = self.ready = False

    def unblocked(self) -> None:
        """Send again."""
        self._writable = True
        if self.online:
            self._drain()

    def tick(self, now: float) -> str:
        """See to the keepalive, at least once in a second; return why the connection is dead, if it is."""
        timeout = self.bounds.timeout
        if self._connecting:
            return f"no CONNACK within {timeout:g} s" if now - self.since >= timeout else ""
        if self._heard:
            self._heard, self._heard_at, self._pinged_at = False, now, 0.0
        if self._sent:
            self._sent, self._sent_at = False, now
        if self._pinged_at:
            return f"no answer to a ping within {timeout:g} s" if now - self._pinged_at >= timeout else ""
        # The broker waits for one and a half keepalives (3.1.2.10); we wait less for what it owes us.
        limit = min(0.75 * self.keepalive or self.bounds.ping, self.bounds.ping)
        if self._flights:
            limit = min(limit, timeout)
        if now - min(self._heard_at, self._sent_at) >= limit and self.online:
            self._write(PING)
            self._pinged_at = now
        return ""

    # --- commands

    def publish(self, command: Publish) -> Outcome[None]:
        """Publish, in order. QoS 0 is done when it is handed to the network, 1 and 2 when acknowledged."""
        terms, qos = self.terms, command.qos
        if not self.ready or self.waiting or qos > terms.max_qos or (command.retain and not terms.retain):
            return self._issue(command)
        if not qos:
            packet = PublishPacket(command.topic, command.payload, retain=command.retain).write()
            if len(packet) > terms.packet_max:
                return refused(self._too_large(len(packet)))
            outcome = DONE
        else:
            if self._quota <= 0:
                return self._issue(command)
            packet_id = self._next_id()
            packet = _publish(command, packet_id, duplicate=False)
            if len(packet) > terms.packet_max:
                return refused(self._too_large(len(packet)))
            outcome = Outcome(self._waiter)
            self._fly(packet_id, Flight(command, outcome))
            self._quota -= 1
        if not self._out:
            self._owner.wants_write()
        self._out.append(packet)
        return outcome

    def subscribe(self, command: Subscribe, identifier: int = 0, *, retained: bool = True) -> Outcome[int]:
        """Subscribe, for *retained* messages too; the outcome is the QoS granted. *identifier* 0: none."""
        return self._issue(command, identifier, retained=retained)

    def unsubscribe(self, command: Unsubscribe) -> Outcome[None]:
        """Take a subscription back."""
        return self._issue(command)

    def drop_oldest(self) -> Flight | None:
        """Take the oldest message that waits out of the queue, for the caller to fail."""
        for flight in self.waiting or ():
            if isinstance(flight.command, Publish):
                self.waiting.remove(flight)  # type: ignore[union-attr] # we iterate over it
                self.waiting_bytes -= _size(flight.command)
                return flight
        return None

    def pending(self) -> list[Flight]:
        """Take out every message that isn't safe yet, the oldest first."""
        flights = [*(self._flights or {}).values(), *(self.waiting or ())]
        self._flights = self.waiting = None
        self.waiting_bytes = 0
        return [flight for flight in flights if isinstance(flight.command, Publish)]

    def inherit(self, flights: list[Flight]) -> None:
        """Send *flights* of an older session of this client before everything that waits."""
        self._put_first(flights)
        if self.online:
            self._drain()

    def append(self, flights: list[Flight]) -> None:
        """Send *flights* of another client behind everything that waits."""
        for flight in flights:
            flight.released = False
        if self.waiting is None:
            self.waiting = deque()
        self.waiting.extend(flights)
        self.waiting_bytes += sum(_size(flight.command) for flight in flights)
        if self.online:
            self._drain()

    def finish(self) -> None:
        """Tell the owner when every message is safe."""
        self._finishing = True

    @property
    def unsafe(self) -> int:
        """How many messages wait, for sending or for an acknowledgement."""
        flights = (*(self._flights or {}).values(), *(self.waiting or ()))
        return sum(type(flight.command) is Publish for flight in flights)

    # --- sending

    def _issue(self, command: Sent, identifier: int = 0, *, retained: bool = True) -> Outcome[Any]:
        error = self._misfit(command) if self.online else None
        if error is not None:
            return refused(error)
        flight = Flight(command, Outcome(self._waiter), identifier, retained=retained)
        if self.ready and not self.waiting and self._free(command):
            self._launch(flight)
        else:
            if self.waiting is None:
                self.waiting = deque()
            self.waiting.append(flight)
            self.waiting_bytes += _size(command)
        return flight.outcome

    def _free(self, command: Sent) -> bool:
        """Tell whether *command* may go out now."""
        if isinstance(command, Publish) and command.qos:
            return self._quota > 0
        return self._flights is None or len(self._flights) < min(IDS, 2 * self.bounds.messages)

    def _launch(self, flight: Flight) -> None:
        """Send *flight* for the first time on this network connection."""
        command = flight.command
        if type(command) is Publish and not command.qos:
            self._write(PublishPacket(command.topic, command.payload, retain=command.retain).write())
            flight.outcome.settle(None)
            return
        packet_id = self._next_id()
        self._fly(packet_id, flight)
        if type(command) is Publish:
            self._quota -= 1
            self._write(_publish(command, packet_id, duplicate=False))
        elif type(command) is Subscribe:
            identifier = flight.identifier if self.terms.subscription_ids else 0
            self._write(_subscribe(command, packet_id, identifier, retained=flight.retained))
        else:
            self._write(UnsubscribePacket(packet_id, [command.topic]).write())

    def _fly(self, packet_id: int, flight: Flight) -> None:
        if self._flights is None:
            self._flights = {}
        self._flights[packet_id] = flight

    def _drain(self) -> None:
        """Send what waits, as far as the broker and the network take it."""
        waiting = self.waiting
        while waiting and self._writable and self._free(waiting[0].command):
            flight = waiting.popleft()
            self.waiting_bytes -= _size(flight.command)
            error = self._misfit(flight.command)
            if error is None:
                self._launch(flight)
            else:
                flight.outcome.fail(error)
        self.ready = self._writable
        if waiting is not None:
            bounds = self.bounds
            if len(waiting) <= bounds.messages // 2 and self.waiting_bytes <= bounds.queue // 2:
                self._owner.relieved()
            if not waiting:
                self.waiting = None
        if self._finishing and not self.unsafe:
            self._owner.finished()

    def _go_on(self) -> None:
        """Take note that there is room for one more."""
        if self.waiting and self.online:
            self._drain()
        elif self._finishing and not self.unsafe:
            self._owner.finished()

    def _write(self, packet: bytes) -> None:
        if not self._out:
            self._owner.wants_write()
        self._out.append(packet)

    def _next_id(self) -> int:
        packet_id = self._last_id % IDS + 1
        flights = self._flights
        while flights and packet_id in flights:
            packet_id = packet_id % IDS + 1
        self._last_id = packet_id
        return packet_id

    def _misfit(self, command: Sent) -> DeniedError | None:
        """Return why the broker would refuse *command*, from what its CONNACK told."""
        terms = self.terms
        match command:
            case Publish(topic, payload, qos, retain):
                if qos > terms.max_qos:
                    return DeniedError(f"the broker takes QoS {terms.max_qos} at most, not {qos}")
                if retain and not terms.retain:
                    return DeniedError("the broker keeps no retained messages")
                # The lengths of the packet, the topic and the properties, and the identifier, at most.
                size = len(topic.encode()) + len(payload) + 10
                if size > terms.packet_max:
                    size = len(_publish(command, 1, duplicate=False))
                    return self._too_large(size) if size > terms.packet_max else None
            case Subscribe(topic):
                group, plain = split_share(topic)
                if group and not terms.shared:
                    return DeniedError("the broker has no shared subscriptions")
                if not terms.wildcards and ("+" in plain or "#" in plain):
                    return DeniedError("the broker has no wildcard subscriptions")
        return None

    def _too_large(self, size: int) -> DeniedError:
        return DeniedError(f"the packet has {size} bytes, the broker takes {self.terms.packet_max} at most")

    # --- receiving

    def receive(self, data: bytes) -> None:
        """Take *data* as it came. Raises `ProtocolError`."""
        self._heard = True
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        at, end = 0, len(data)
        view = memoryview(data)
        while at < end:
            body, length = _length(data, at + 1)
            if not body:
                break
            if length > self.bounds.packet_max:
                words = f"it sent a packet of {length} bytes, limit is {self.bounds.packet_max}"
                raise ProtocolError(words, DisconnectReasonCode.PACKET_TOO_LARGE)
            if body + length > end:
                break
            first = data[at]
            if first == 0x40 and (length == 2 or (length == 3 and data[body + 2] < 0x80)):
                self._acknowledged((data[body] << 8) + data[body + 1], 0, "")
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
            self._control(kind, packet, body)
        elif kind == PINGRESP:
            pass
        elif kind == CONNACK:
            self._connack(packet, body)
        elif kind == DISCONNECT:
            code, words = _reason(packet, body, 0)
            self._verdict(code, words)
            self.online = self.ready = self._connecting = False
            self._owner.disconnected(code, words)
        else:
            parsed = _parse(packet)
            if isinstance(parsed, PublishPacket):
                self._message(parsed)
            elif isinstance(parsed, (SubAckPacket, UnsubAckPacket)):
                self._subscription(parsed)
            else:
                raise ProtocolError(f"it sent a packet of type {kind}, which is a client's")

    def _connack(self, packet: memoryview, body: memoryview) -> None:
        if self.online or not self._connecting:
            raise ProtocolError("it sent a second CONNACK")
        if len(body) == 2:  # of MQTT 3: no properties
            self._connecting = False
            self._owner.refused(UNSUPPORTED_VERSION, NO_MQTT5)
            return
        if len(body) > 2 and body[1] >= 0x80:
            self._connecting = False
            code, words = _reason(packet, body, 1)
            self._owner.refused(code, NO_MQTT5 if code == UNSUPPORTED_VERSION else words)
            return
        parsed = _parse(packet)
        if not isinstance(parsed, ConnAckPacket):
            raise ProtocolError("its first packet is no CONNACK")
        self.terms = shared_terms(
            parsed.receive_max,
            int(parsed.max_qos),
            parsed.retain_available,
            parsed.max_packet_size or shared_terms().packet_max,
            parsed.wildcard_subscription_available,
            parsed.shared_subscription_available,
            parsed.subscription_id_available,
        )
        self.keepalive = self.login.keepalive
        if parsed.server_keep_alive is not None:
            self.keepalive = parsed.server_keep_alive
        self._connecting = False
        self.online = self._began = True
        self._resume(present=parsed.session_present)
        self._owner.accepted()

    def _resume(self, *, present: bool) -> None:
        """Go on with the session that the broker still has, or build it up anew (4.4)."""
        self._quota = 1 if self._suspects else min(self.terms.receive_max, self.bounds.messages)
        flights, self._flights = self._flights or {}, None
        if not present:
            self._incoming = None
            self._epoch += 1
            for topic, (qos, identifier) in (self.subscriptions or {}).items():
                flight = Flight(Subscribe(topic, qos), Outcome(self._waiter), identifier)
                flight.outcome.when_done(partial(self._restored, topic))
                self._launch(flight)
        back = []
        for packet_id, flight in flights.items():
            command = flight.command
            if present and type(command) is Publish and self._quota > 0:
                self._resend(packet_id, flight, command)
            else:
                back.append(flight)
        self._put_first(back)
        self._drain()

    def _put_first(self, flights: list[Flight]) -> None:
        for flight in flights:
            flight.released = False
        if self.waiting is None:
            self.waiting = deque()
        self.waiting.extendleft(reversed(flights))
        self.waiting_bytes += sum(_size(flight.command) for flight in flights)

    def _resend(self, packet_id: int, flight: Flight, command: Publish) -> None:
        self._fly(packet_id, flight)
        self._quota -= 1
        if flight.released:
            self._write(PubRelPacket(packet_id).write())
        else:
            self._write(_publish(command, packet_id, duplicate=True))

    def _restored(self, topic: str, outcome: Outcome[int]) -> None:
        if outcome.error is not None:
            log.warning(
                "mqtt ! %s lost its subscription to %r: %s", self.login.clientid, topic, outcome.error
            )

    def _control(self, kind: int, packet: memoryview, body: memoryview) -> None:
        """Take a PUBACK, PUBREC, PUBREL or PUBCOMP."""
        if len(body) < 2:
            raise ProtocolError("it sent an acknowledgement without an identifier")
        packet_id = (body[0] << 8) + body[1]
        code, words = _reason(packet, body, 2)
        flight = self._flights.get(packet_id) if self._flights else None
        if kind in {PUBACK, PUBCOMP} or (kind == PUBREC and flight is not None and code >= 0x80):
            if kind == PUBCOMP and code == 0x92:
                code = 0  # the broker knows nothing of it any more, so it is through (4.3.3)
            self._acknowledged(packet_id, code, words)
        elif kind == PUBREC:
            if flight is None and code < 0x80:
                lost = PubRelReasonCode.PACKET_ID_NOT_FOUND
                self._write(PubRelPacket(packet_id, reason_code=lost).write())
            elif flight is not None:
                flight.released = True
                self._write(PubRelPacket(packet_id).write())
        else:
            if self._incoming:
                self._incoming.pop(packet_id, None)
            self._write(PubCompPacket(packet_id).write())

    def _acknowledged(self, packet_id: int, code: int, words: str) -> None:
        """Take the broker's answer to a message of ours."""
        flight = self._flights.pop(packet_id, None) if self._flights else None
        if flight is None:
            return  # of a message that has been given up
        if type(flight.command) is not Publish:
            raise ProtocolError("it acknowledged a subscription as a message")
        self._quota += 1
        if self._suspects:
            self._clear_suspect()
        if code >= 0x80:
            flight.outcome.fail(DeniedError(f"the broker refused the message: {words}"))
        else:
            flight.outcome.settle(None)
        self._go_on()

    def _subscription(self, packet: SubAckPacket | UnsubAckPacket) -> None:
        flight = self._flights.pop(packet.packet_id, None) if self._flights else None
        if flight is None:
            return
        if len(packet.reason_codes) != 1:
            raise ProtocolError(f"it answered one subscription with {len(packet.reason_codes)} codes")
        code = int(packet.reason_codes[0])
        command = flight.command
        if code >= 0x80:
            words = in_words(code, packet.reason_str)
            flight.outcome.fail(DeniedError(f"the broker refused {command.topic!r}: {words}"))
        elif type(command) is Subscribe:
            if self.subscriptions is None:
                self.subscriptions = {}
            self.subscriptions[command.topic] = command.qos, flight.identifier
            flight.outcome.settle(code)
        else:
            if self.subscriptions is not None:
                self.subscriptions.pop(command.topic, None)
            flight.outcome.settle(None)
        self._go_on()

    def _message(self, packet: PublishPacket) -> None:
        qos = int(packet.qos)
        message = Message(packet.topic, packet.payload, qos, packet.retain)
        if not qos:
            self._owner.message(message, packet.subscription_ids, None)
            return
        packet_id = packet.packet_id or 0
        if self._incoming is None:
            self._incoming = {}
        handled = self._incoming.get(packet_id)
        if handled is None:
            if len(self._incoming) >= self.bounds.receive_max + self.bounds.excess:
                words = (
                    f"{len(self._incoming)} of its messages are unacknowledged, and it sends more; "
                    f"{self.bounds.receive_max} are allowed"
                )
                raise ProtocolError(words, DisconnectReasonCode.RECEIVE_MAX_EXCEEDED)
            self._incoming[packet_id] = False
            taken = partial(self._taken, self._epoch, packet_id, qos)
            self._owner.message(message, packet.subscription_ids, taken)
        elif handled:
            self._taken(self._epoch, packet_id, qos)

    def _taken(self, epoch: int, packet_id: int, qos: int) -> None:
        """Acknowledge a message that is handled; if that can't be now, when the broker sends it again."""
        incoming = self._incoming
        if epoch != self._epoch or incoming is None or packet_id not in incoming:
            return
        incoming[packet_id] = True
        if not self.online:
            return
        if qos == 1:
            del incoming[packet_id]
            self._write(PubAckPacket(packet_id).write())
        else:
            self._write(PubRecPacket(packet_id).write())

    # --- a packet that the broker calls wrong

    def _verdict(self, code: int, words: str) -> None:
        """Find out which message the broker means, lest it be sent for ever: one at a time from now on."""
        if code not in WRONG_PACKET:
            return
        flights = self._flights or {}
        if self._suspects and len(flights) == 1:
            packet_id, flight = flights.popitem()
            self._clear_suspect()
            log.warning("mqtt ! %s: packet %d given up: %s", self.login.clientid, packet_id, words)
            flight.outcome.fail(DeniedError(f"the broker ended the connection because of this: {words}"))
        elif not self._suspects:
            self._suspects = sum(type(flight.command) is Publish for flight in flights.values())

    def _clear_suspect(self) -> None:
        self._suspects -= 1
        if not self._suspects and self.online:
            self._quota += min(self.terms.receive_max, self.bounds.messages) - 1


def _length(data: bytes, at: int) -> tuple[int, int]:
    """Return where the body of a packet begins and how long it is (1.5.5); 0 while that can't be told."""
    length = shift = 0
    for position, byte in enumerate(data[at : at + 4], at + 1):
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return position, length
        shift += 7
    if shift == 28:
        raise ProtocolError("it sent a packet without an end", DisconnectReasonCode.MALFORMED_PACKET)
    return 0, 0


def _publish(command: Publish, packet_id: int, *, duplicate: bool) -> bytes:
    return PublishPacket(
        command.topic,
        command.payload,
        qos=QOS[command.qos],
        retain=command.retain,
        packet_id=packet_id if command.qos else None,
        duplicate=duplicate,
    ).write()


def _subscribe(command: Subscribe, packet_id: int, identifier: int, *, retained: bool) -> bytes:
    wanted = TopicFilter(
        command.topic,
        max_qos=QOS[command.qos],
        retain_as_published=False,
        retain_handling=RetainHandling.SEND_ALWAYS if retained else RetainHandling.SEND_NEVER,
    )
    return SubscribePacket(packet_id, [wanted], subscription_id=identifier or None).write()


def _size(command: Sent) -> int:
    """Return what *command* counts in the queue."""
    payload = len(command.payload) if isinstance(command, Publish) else 0
    return len(command.topic) + payload + OVERHEAD


def _parse(packet: memoryview) -> Any:
    """Return what the codec makes of a whole *packet*. Raises `ProtocolError`."""
    try:
        return read(packet)[0]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - the codec panics at text that is no UTF-8
        words = f"it sent {bytes(packet[:32])!r}, which is no packet: {error}"
        raise ProtocolError(words, DisconnectReasonCode.MALFORMED_PACKET) from None


def _reason(packet: memoryview, body: memoryview, at: int) -> tuple[int, str]:
    """Return the reason code at *at* in *body*, and it in words; brokers use codes that the codec refuses."""
    if len(body) <= at:
        return 0, ""
    code = body[at]
    text = None
    if len(body) > at + 1:
        try:
            text = read(packet)[0].reason_str  # type: ignore[union-attr] # each packet with a reason has it
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - its text is lost then, the code is what counts
            log.debug("mqtt ! unreadable reason in %r", bytes(packet))
    return code, in_words(code, text)
