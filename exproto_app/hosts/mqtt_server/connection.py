"""One MQTT client's network connection, sans-IO: bytes in, bytes out.

::

    CONNECTING ── CONNECT ──> LOGIN ── let in ──> ONLINE ──┐
        └── anything else ──┬───┴─ refused ──┬──────┘      │ DISCONNECT, an error, taken over
                            └─────> CLOSING <┴─────────────┘ ──> CLOSED

The host feeds what it reads, calls `work` until it says that there is nothing more to do, and sends what
`take` returns. Whatever a client does ends in an `MqttError` of its own at worst.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from ...models import Address, ClientInfo
from .bounds import OVERHEAD
from .checks import check_message_topic, check_name
from .codec import decode, encode
from .exchange import Exchange
from .inbound import Inbound
from .packets import V4, V5, ConnAck, Connect, Disconnect, Packet
from .properties import (
    ASSIGNED_CLIENTID,
    AUTHENTICATION_METHOD,
    MAXIMUM_PACKET,
    NONE,
    RECEIVE_MAXIMUM,
    RESPONSE_TOPIC,
    SESSION_EXPIRY,
    SUBSCRIPTION_IDS_AVAILABLE,
    Properties,
)
from .reasons import MqttError, Reason, connack_code

if TYPE_CHECKING:
    from .broker import MqttBroker
    from .session import Session

__all__ = ["ClientConnection", "ConnectionDriver"]

log = logging.getLogger("exproto_app")

CONNECTING, LOGIN, ONLINE, CLOSING, CLOSED = range(5)

CONNECT: Final = 0x10
"""What every client begins with."""

SLICE: Final = 32
"""Packets that are handled before others get their turn."""

BEGINNING_OF_5: Final = b"\x00\x04MQTT\x05"
"""What the body of a CONNECT of MQTT 5 begins with."""


class ConnectionDriver(Protocol):
    """Who drives a connection."""

    def wants_work(self) -> None:
        """See to it that `work` and `take` are called soon."""
        ...

    def login(self, client: ClientInfo, password: str | None) -> None:
        """Have the login checked; `admitted` gets the answer, unless the connection ends before."""
        ...

    def denied(self) -> None:
        """Take note that the login is refused."""
        ...

    def close(self) -> None:
        """Send what `take` still has, bounded in time, and close."""
        ...


class ClientConnection:
    """The connection of a client at *peer*."""

    def __init__(self, broker: MqttBroker, peer: Address, host: ConnectionDriver, now: float) -> None:
        self.peer = peer
        self.version = V4
        self.maximum = 0  # bytes of a packet that the client takes, 0 for any
        self.window = broker.bounds.in_flight
        self.session: Session | None = None
        self.state = CONNECTING
        self.writable = True
        self.out_bytes = 0
        self.heard = self.moved = False
        self.heard_at = self.moved_at = self.since = now
        self.inbound = Inbound(broker.bounds.connect)
        self._broker = broker
        self._host = host
        self._out: deque[bytes | memoryview] = deque()
        self._connect: Connect | None = None
        self._client: ClientInfo | None = None
        self._exchange: Exchange | None = None
        self._gone = False
        self._counted = 0

    def __str__(self) -> str:
        return f"mqtt:{self.peer}" if self.session is None else str(self.session)

    # --- from the host

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        self.heard = True
        if self.state < CLOSING:
            self.inbound.feed(data)

    def hung_up(self) -> None:
        """Take note that nothing more comes; what has come is handled first."""
        self._gone = True
        if self.state == LOGIN:
            self._finish("it is gone")

    def work(self, overdue: Callable[[], bool]) -> bool:
        """Handle a slice of what there is to do, less if it is *overdue*; return whether there is more."""
        try:
            more = self._work(overdue)
        except MqttError as error:
            self.fail(error)
            more = False
        self._count_unparsed()
        if self._gone and not more and self.state < CLOSED:
            self._finish("it is gone")
        return more

    def take(self, size: int) -> bytes:
        """Return at most *size* bytes that are to be sent."""
        out = self._out
        if not out:
            return b""
        self.moved = True
        parts: list[bytes | memoryview] = []
        room = size
        while out and room > 0:
            part = out.popleft()
            if len(part) > room:
                view = memoryview(part)
                out.appendleft(view[room:])
                part = view[:room]
            parts.append(part)
            room -= len(part)
        self._owe(-(size - room))
        if not out:
            self._owe(-self.out_bytes)
        return b"".join(parts)

    @property
    def has_output(self) -> bool:
        """Whether `take` has something."""
        return bool(self._out)

    @property
    def done(self) -> bool:
        """Whether nothing follows what `take` still has."""
        return self.state >= CLOSING

    @property
    def ready(self) -> bool:
        """Whether further messages may be sent."""
        return self.writable and self.state == ONLINE and self.out_bytes < self._broker.bounds.write

    @property
    def applicant(self) -> tuple[str, str | None]:
        """The address and, once it is known, the name of who isn't logged in."""
        client = self._client
        return self.peer.host, None if client is None else client.username or client.clientid

    @property
    def pending_login(self) -> bool:
        """Whether it isn't logged in yet."""
        return self.state in (CONNECTING, LOGIN)

    def tick(self, now: float) -> None:
        """Look for what takes too long; every second or so."""
        bounds = self._broker.bounds
        if self.heard or self.inbound.ready:
            self.heard, self.heard_at = False, now
        session = self.session
        waits = self._out or not self.writable or (session is not None and session.waiting)
        if self.moved or not waits:
            self.moved, self.moved_at = False, now
        if self.pending_login:
            if now - self.since > bounds.connect_time:
                self.close(Reason.BUSY, f"not logged in within {bounds.connect_time:g} s")
            return
        if self.state != ONLINE or self._connect is None:
            return
        keepalive = self._connect.keepalive
        if keepalive and now - self.heard_at > 1.5 * keepalive:
            self.close(Reason.SILENT, f"silent for {now - self.heard_at:.0f} s")
        elif now - self.moved_at > bounds.stall:
            self.fail(MqttError(f"it hasn't read anything for {bounds.stall:g} s", Reason.QUOTA))
        elif self.inbound.late(now, bounds.packet_time):
            self.fail(MqttError(f"a packet isn't complete after {bounds.packet_time:g} s"))

    # --- from the session

    def send(self, *parts: bytes | memoryview) -> None:
        """Send *parts* of one packet, in order behind everything else."""
        if self.state >= CLOSING:
            return
        if not self._out:
            self._host.wants_work()
        self._out.extend(part for part in parts if part)
        self._owe(sum(map(len, parts)) + OVERHEAD)

    def taken_over(self, *, resumed: bool) -> None:
        """End: another connection of the client has come; *resumed*: it goes on with the session."""
        self.close(Reason.TAKEN_OVER, "another client has its clientid", resumed=resumed)

    # --- login

    def admitted(self, admitted: bool, *, busy: bool = False) -> None:
        """Take the answer of the login rule; *busy*: it hasn't looked, for too many wait."""
        if self.state != LOGIN:
            return
        if busy:
            self._broker.count("door_clients_refused", 1)
            log.warning("%s ! MQTT client%s refused: too many logins wait already", self.peer, self._name())
            self.close(Reason.BUSY, "")
            return
        if not admitted:
            self._broker.count("door_clients_denied", 1)
            client = self._client or ClientInfo("")
            words = "%s ! MQTT login refused: clientid %r, username %r: wrong clientid, username or password"
            log.warning(words, self.peer, client.clientid, client.username)
            self.close(Reason.BAD_LOGIN, "")
            self._host.denied()
            return
        try:
            self._let_in()
        except MqttError as error:
            self.fail(error)
            if error.code == Reason.NOT_AUTHORIZED:
                self._host.denied()
        self._host.wants_work()

    def _take_connect(self, packet: Packet) -> None:
        if not isinstance(packet, Connect):
            raise MqttError("its first packet is not a CONNECT")
        self.version = packet.version
        self._connect = packet
        if AUTHENTICATION_METHOD in packet.properties:
            raise MqttError("it asks for enhanced authentication", Reason.BAD_AUTHENTICATION)
        if not packet.clientid and packet.version == V4 and not packet.clean_start:
            raise MqttError(
                "it asks for a session to be kept, but gives no clientid", Reason.CLIENTID_INVALID
            )
        clientid = packet.clientid or self._broker.new_clientid()
        check_name("clientid", clientid)
        check_name("username", packet.username or "")
        packet.properties = _only(packet.properties, SESSION_EXPIRY, RECEIVE_MAXIMUM, MAXIMUM_PACKET)
        if packet.will is not None:
            check_message_topic(packet.will.topic)
            response = packet.will.properties.get(RESPONSE_TOPIC)
            if response:
                check_message_topic(response)
        self._client = ClientInfo(clientid, packet.username or "", keepalive=packet.keepalive)
        self.state = LOGIN
        password = packet.password
        packet.password = None
        try:
            text = None if password is None else password.decode()
        except UnicodeDecodeError:
            self.admitted(False)
            return
        self._host.login(self._client, text)

    def _let_in(self) -> None:
        connect, client, bounds = self._connect, self._client, self._broker.bounds
        if connect is None or client is None:
            return
        self._broker.check_owner(client)
        window = connect.properties.get(RECEIVE_MAXIMUM, bounds.in_flight)
        self.window = min(window, bounds.in_flight)
        self.maximum = connect.properties.get(MAXIMUM_PACKET, 0)
        session, present = self._broker.attach(client, connect)
        self.session = session
        self._exchange = Exchange(self._broker, session, self)
        self.state = ONLINE
        self.inbound.limit = bounds.packet
        properties: dict[int, Any] = {}
        if self.version == V5:
            properties = {
                RECEIVE_MAXIMUM: bounds.receive_max,
                MAXIMUM_PACKET: bounds.packet,
                SUBSCRIPTION_IDS_AVAILABLE: 0,
            }
            if not connect.clientid:
                properties[ASSIGNED_CLIENTID] = client.clientid
            if session.expiry != connect.properties.get(SESSION_EXPIRY, 0):
                properties[SESSION_EXPIRY] = session.expiry
        self.send(encode(ConnAck(0, present, properties or NONE), self.version))
        log.debug("%s = came in from %s", self, self.peer)
        if present:
            self._broker.hub.present(session)
        session.attach(self)

    # --- packets

    def _work(self, overdue: Callable[[], bool]) -> bool:
        if self.state == CONNECTING and self.inbound.first not in (None, CONNECT):
            raise MqttError("it speaks something else; MQTT 3.1.1 and 5 are understood")
        for _ in range(SLICE):
            exchange = self._exchange
            if exchange is not None and exchange.job is not None:
                exchange.go_on()
            elif not self._takes_packets or (found := self.inbound.next()) is None:
                break
            else:
                self._handle(*found)
            if overdue():
                break
        session = self.session
        if session is not None:
            session.pump()
            session.retain()
        return self._has_work or (session is not None and session.sendable)

    @property
    def _takes_packets(self) -> bool:
        return self.state in (CONNECTING, ONLINE)

    @property
    def _has_work(self) -> bool:
        if self._exchange is not None and self._exchange.job is not None:
            return True
        return self._takes_packets and self.inbound.ready

    def _handle(self, first: int, body: bytes) -> None:
        if self._exchange is not None:
            self._exchange.handle(decode(first, body, self.version))
            return
        if body[: len(BEGINNING_OF_5)] == BEGINNING_OF_5:
            self.version = V5  # whatever is wrong with the rest of it, it understands the answer
        self._take_connect(decode(first, body, self.version))

    # --- the end

    def disconnected(self, packet: Disconnect) -> None:
        """Take the client's DISCONNECT: no will, unless it wants it. Raises `MqttError`."""
        session, expiry = self.session, packet.properties.get(SESSION_EXPIRY)
        if session is not None and expiry is not None:
            if expiry and not session.expiry:
                raise MqttError("it asks for a session after it connected without one", Reason.PROTOCOL_ERROR)
            session.expiry = min(expiry, self._broker.bounds.session_expiry)
        if packet.code != Reason.WITH_WILL and self._connect is not None:
            self._connect.will = None
        self._finish("it said goodbye")
        self._host.close()

    def fail(self, error: MqttError) -> None:
        """End a client that broke a rule, told in its version of MQTT."""
        if self.state >= CLOSING:
            return
        self._broker.count("door_clients_failed", 1)
        log.warning("%s ! MQTT client%s closed: %s", self.peer, self._name(), error)
        self.close(error.code, "")

    def _name(self) -> str:
        return f" {self._client.clientid!r}" if self._client is not None else ""

    def close(self, code: Reason, words: str, *, resumed: bool = False) -> None:
        """End the connection, with *code* for the client and *words*, if any, for the log."""
        if self.state >= CLOSING:
            return
        if words:
            log.debug("%s = closing: %s", self, words)
        if self.pending_login:
            self._refuse(code)
        elif self.version == V5:
            self.send(encode(Disconnect(code), self.version))
        self._finish(words or "an error", resumed=resumed)
        self._host.close()

    def _refuse(self, code: Reason) -> None:
        """Answer a CONNECT, where one came, with a CONNACK (MQTT 3.1.1, 3.2.2.3)."""
        if code == Reason.UNSUPPORTED_VERSION:
            self.send(encode(ConnAck(1), V4))
        elif self._connect is None and self.version != V5:
            return
        elif self.version == V5:
            self.send(encode(ConnAck(code), V5))
        elif (old := connack_code(code)) is not None:
            self.send(encode(ConnAck(old), V4))

    def _finish(self, why: str, *, resumed: bool = False) -> None:
        if self.state >= CLOSING:
            return
        self.state = CLOSING
        self._exchange = None
        self.inbound.clear()
        self._count_unparsed()
        session, self.session = self.session, None
        if session is not None:
            log.debug("%s = went: %s", session, why)
            self._broker.detach(session, self._connect.will if self._connect else None, resumed=resumed)

    def lost(self) -> None:
        """Take note that the network connection is gone, after what came was handled."""
        self._finish("it is gone")
        self.state = CLOSED
        self._out.clear()
        self._owe(-self.out_bytes)

    def _owe(self, size: int) -> None:
        self.out_bytes += size
        self._broker.budget.used += size

    def _count_unparsed(self) -> None:
        """Count what is read and not handled among what all clients hold."""
        size = self.inbound.size
        budget = self._broker.budget
        budget.used += size - self._counted
        self._counted = size
        if size > budget.share and budget.used > budget.total and not self.inbound.ready:
            self.fail(MqttError(f"{budget.used} bytes are held for all clients", Reason.QUOTA))


def _only(properties: Properties, *names: int) -> Properties:
    """Keep what is needed later: the others may take much, and are there as long as the connection."""
    return {name: properties[name] for name in names if name in properties} or NONE
