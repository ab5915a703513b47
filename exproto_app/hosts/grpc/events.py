"""Events: what becomes of the events that brokers call for.

An event goes into its connection's queue and is answered at once, with success whatever becomes of it: any
other answer would close the device. Only while the queue is full the answer is withheld.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ...models import Address, Certificate, ConnectionInfo, Message, SockType
from ...router import Router
from ..reasons import reason
from . import exproto_pb2 as pb
from .broker import Broker, Early
from .caller import Caller, InboundCall, Take
from .health import Health
from .link import GrpcLink

if TYPE_CHECKING:
    from .service import Service

__all__ = ["Events"]

log = logging.getLogger("exproto_app")

EARLY: Final = 1_000
"""Events of one connection that may come before the one that begins it: streams have no order.

The window of their stream, which stands still until then, holds no more than that.
"""

EARLY_ALL: Final = 10_000
"""Connections with such events."""

EARLY_BYTES: Final = 16_777_216
"""Bytes of all of them, for each broker."""

EARLY_WAIT: Final = 5.0
"""Seconds that they wait."""

EVENT_COST: Final = 512
"""Bytes that an event costs beside its own while it waits."""

MESSAGES: Final = 1_000
"""Messages to a device in one event; EMQX brings 101 at most."""

MAX_NAME: Final = 1_024
"""Bytes of the name of a connection; EMQX's have about 100."""

MAX_FACTS: Final = 65_536
"""Bytes of an event that brings neither bytes nor messages."""

LINGER: Final = 0.1
"""Seconds in which bytes may follow the end of a connection: the broker batches for up to 20 ms."""

PACKAGE: Final = "emqx.exproto.v1"
UNARY: Final = "ConnectionUnaryHandler"
STREAMS: Final = "ConnectionHandler"
SOCKTYPES: Final[Mapping[int, SockType]] = {0: "tcp", 1: "ssl", 2: "udp", 3: "dtls"}

Feed: TypeAlias = Callable[[GrpcLink], object]


class Events:
    """Takes the events of the brokers that call *service*."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._protocols = service.protocols
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time

    def methods(self) -> dict[bytes, tuple[Take, bool]]:
        """Return the methods of the service by their paths, and whether they take streams."""
        takes: dict[str, Take] = {
            "OnSocketCreated": self._created,
            "OnSocketClosed": self._closed,
            "OnReceivedBytes": self._received,
            "OnTimerTimeout": self._timed_out,
            "OnReceivedMessages": self._messages,
        }
        services = [f"{PACKAGE}.{name}".encode() for name in (UNARY, STREAMS)]
        return {
            **Health(services, lambda: self.service.stopping).methods(),
            **{
                f"/{PACKAGE}.{service}/{name}".encode(): (take, streaming)
                for service, streaming in ((UNARY, False), (STREAMS, True))
                for name, take in takes.items()
            },
        }

    def _received(self, caller: Caller, call: InboundCall, message: bytes) -> bool:
        """Take a device's bytes: the hot path. A ReceivedBytesRequest is two fields, read by hand."""
        broker = caller.broker
        if broker is not None and len(message) > 2 and message[0] == 10:
            at = message[1] + 2
            link = broker.links.get(message[2:at])
            if link is not None and (start := _start(message, at)):
                channel = link.channel
                link.heard = self._time()
                if call.streaming and not call.tied:
                    broker.streams.tie(link.conn, caller, call, known=True)
                if channel is None:
                    return True
                channel.received(message[start:])
                if channel.paused and not link.closing:
                    caller.withhold(call, link)
                    return False
                return True
        request = self._parse(pb.ReceivedBytesRequest, caller, call, message)
        if request is None:
            return True
        return self._event(caller, call, request.conn, partial(_feed_bytes, request.bytes), len(message))

    def _messages(self, caller: Caller, call: InboundCall, message: bytes) -> bool:
        if _has_more_fields(message, MESSAGES + 1):
            self._ignore(caller, f"more than {MESSAGES} messages in one event")
            return True
        request = self._parse(pb.ReceivedMessagesRequest, caller, call, message)
        if request is None:
            return True
        messages = [
            Message(
                item.topic,
                item.payload,
                min(item.qos, 2),
                id=item.id,
                sender=getattr(item, "from"),
                timestamp=item.timestamp,
            )
            for item in request.messages
        ]
        return self._event(caller, call, request.conn, partial(_feed_messages, messages), len(message))

    def _timed_out(self, caller: Caller, call: InboundCall, message: bytes) -> bool:
        request = self._parse(pb.TimerTimeoutRequest, caller, call, message)
        if request is not None:
            log.debug("%s ! the broker's own timer ends it", request.conn)
        return True

    def _created(self, caller: Caller, call: InboundCall, message: bytes) -> bool:
        request = self._parse(pb.SocketCreatedRequest, caller, call, message)
        broker = caller.broker
        if request is None or broker is None:
            return True
        self._greet(caller, call)
        conn = request.conn.encode()
        if conn in broker.links or conn in broker.ended:
            log.debug("%s ! began twice; the second time is ignored", request.conn)
            return True
        about = request.conninfo
        socktype = SOCKTYPES.get(about.socktype, "tcp")
        if socktype == "ssl" and about.sockname.port in self._protocols.datagrams:
            socktype = "dtls"
        info = ConnectionInfo(
            socktype,
            Address(about.peername.host, about.peername.port),
            Address(about.sockname.host, about.sockname.port),
            Certificate(dn=about.peercert.dn, cn=about.peercert.cn) if about.HasField("peercert") else None,
        )
        routers = self._routers(info.sockname.port)
        if routers is None or self.service.stopping or self.service.is_full():
            broker.refuse(conn)
            return True
        link = GrpcLink(broker, conn, datagram=info.socktype in ("udp", "dtls"))
        if link.datagram:
            link.lift_idle_limit()
        self._connect(link, info, routers, resumed=False)
        if conn in broker.early:
            self._feed_early(broker, conn, link)
        return True

    def _closed(self, caller: Caller, call: InboundCall, message: bytes) -> bool:
        request = self._parse(pb.SocketClosedRequest, caller, call, message)
        broker = caller.broker
        if request is None or broker is None:
            return True
        conn = request.conn.encode()
        link = broker.links.get(conn)
        end = partial(self._end, request.reason, late=call.streaming)
        if link is not None:
            end(link)
        elif call.streaming and conn not in broker.ended:
            self._hold(caller, call, conn, end, size=0)
        else:
            broker.ended.over(conn)
            self._loop.call_later(LINGER, broker.streams.answer, conn)
        return True

    def _end(self, words: str, link: GrpcLink, *, late: bool) -> None:
        if late:
            link.ended()
            self._loop.call_later(LINGER, partial(self._end, words, link, late=False))
            return
        link.over(reason(words), words)
        link.broker.streams.answer(link.conn)

    def _event(self, caller: Caller, call: InboundCall, conn: str, feed: Feed, size: int) -> bool:
        """Feed an event of *size* bytes; return False where its answer has to wait."""
        broker = caller.broker
        if broker is None:
            return True
        key = conn.encode()
        link = broker.links.get(key)
        if link is None:
            if key in broker.ended:
                return self._event_after_the_end(caller, call, key)
            if call.streaming:
                self._hold(caller, call, key, feed, size=size)
                return True
            link = self._meet(broker, key)
            if link is None:
                return True
        link.heard = self._time()
        feed(link)
        channel = link.channel
        if channel is not None and channel.paused and not link.closing:
            caller.withhold(call, link)
            return False
        return True

    def _event_after_the_end(self, caller: Caller, call: InboundCall, conn: bytes) -> bool:
        """Ignore an event of a connection that is over, or have the broker learn that it is."""
        broker = caller.broker
        self.service.count("events_ignored")
        if broker is None or not broker.ended.owes(conn):
            return True
        log.debug("%s ! is over, but the broker doesn't know: it is told again", conn.decode())
        broker.ended.close_again(conn)
        if call.streaming:
            return True
        # Any status but success closes the device, even where no Close gets through.
        caller.refuse(call.stream, b"10", b"the connection is over")
        return False

    def _hold(self, caller: Caller, call: InboundCall, conn: bytes, feed: Feed, *, size: int) -> None:
        """Keep an event until its connection begins: streams have no order among each other."""
        broker = caller.broker
        if broker is None:
            return
        early = broker.early.get(conn)
        if early is None:
            early = broker.early[conn] = Early()
            self._loop.call_later(EARLY_WAIT, self._held_too_long, broker, conn, early)
        early.feeds.append(feed)
        early.size += size + EVENT_COST
        broker.early_bytes += size + EVENT_COST
        if caller.http2.hold(call.stream):
            early.streams.append(partial(caller.http2.unhold, call.stream))
        too_early = _too_early(broker, early)
        if too_early:
            # With one event less the device's stream would have a hole: it shall come anew.
            log.warning("%s ! closed: %s", conn.decode(), too_early)
            self.service.count("events_ignored")
            self._feed_early(broker, conn, None)
            broker.refuse(conn)

    def _feed_early(self, broker: Broker, conn: bytes, link: GrpcLink | None) -> None:
        """Feed what was kept of *conn* to *link*, or drop it; have the streams go on."""
        early = broker.early.pop(conn)
        broker.early_bytes -= early.size
        if link is not None:
            for feed in early.feeds:
                feed(link)
        for go_on in early.streams:
            go_on()

    def _held_too_long(self, broker: Broker, conn: bytes, early: Early) -> None:
        if broker.early.get(conn) is early:
            self._feed_early(broker, conn, None if self.service.stopping else self._meet(broker, conn))

    def _meet(self, broker: Broker, conn: bytes) -> GrpcLink | None:
        """Meet a connection that this process never saw begin (rule 8)."""
        link = GrpcLink(broker, conn, datagram=False)
        routers = self._protocols.unseen or next(iter(self._protocols.ports.values()))
        known = self._protocols.unseen is not None and not self.service.stopping
        known = known and not self.service.is_full()
        if not self.service.runner.engine.unknown(link, routers, conn_id=_plain(conn), may_resume=known):
            broker.forget(link)
            return None
        nowhere = Address("", 0)
        self._connect(link, ConnectionInfo("tcp", nowhere, nowhere), routers, resumed=True)
        return link

    def _connect(
        self, link: GrpcLink, info: ConnectionInfo, routers: Sequence[Router[Any]], *, resumed: bool
    ) -> None:
        link.broker.links[link.conn] = link
        link.broker.streams.established(link.conn)
        link.heard = self._time()
        self.service.runner.engine.connected(link, info, routers, conn_id=_plain(link.conn), resumed=resumed)

    def _routers(self, port: int) -> Sequence[Router[Any]] | None:
        routers = self._protocols.find(port)
        if routers is None:
            text = "grpc ! devices of the listener on port %d are closed: no --protocol names it, only %s"
            self.service.say(("port", port), text, port, self._protocols)
        return routers

    def _greet(self, caller: Caller, call: InboundCall) -> None:
        """Tell who calls, the first time."""
        what = ("caller", caller.host, call.streaming)
        if not self.service.first_time(what):
            return
        where = caller.broker.client.name if caller.broker is not None else "nowhere"
        name = STREAMS if call.streaming else UNARY
        log.info("grpc = EMQX at %s calls %s; its adapter is %s", caller.host, name, where)
        if call.streaming:
            text = "grpc ! %s adds up to 20 ms; prefer service_name = %s where the broker has it"
            log.warning(text, STREAMS, UNARY)

    def _ignore(self, caller: Caller, what: str) -> None:
        self.service.count("events_ignored")
        log.warning("grpc ! %s sent %s", caller.host, what)

    def _parse(self, kind: Any, caller: Caller, call: InboundCall, message: bytes) -> Any:
        broker = caller.broker
        if broker is None:
            text = "grpc ! %s calls, but no --adapter is for it; its devices get no answers"
            self.service.say(("nobody", caller.host), text, caller.host)
            return None
        name = kind.DESCRIPTOR.name
        if len(message) > MAX_FACTS and kind not in (pb.ReceivedBytesRequest, pb.ReceivedMessagesRequest):
            self._ignore(caller, f"a {name} of {len(message)} bytes, limit is {MAX_FACTS}")
            return None
        try:
            request = kind.FromString(message)
        except Exception as error:  # noqa: BLE001 - protobuf's own error, whose place differs between versions
            self._ignore(caller, f"what is no {name}: {error}")
            return None
        if not request.conn:
            self._ignore(caller, f"a {name} without conn")
            return None
        if len(request.conn) > MAX_NAME:
            self._ignore(
                caller, f"a {name} whose conn has {len(request.conn)} characters, limit is {MAX_NAME}"
            )
            return None
        if call.streaming and not call.tied:
            conn = request.conn.encode()
            broker.streams.tie(conn, caller, call, known=conn in broker.links)
            if conn in broker.ended and not broker.ended.owes(conn):
                self._loop.call_later(LINGER, broker.streams.answer, conn)
        return request


def _start(message: bytes, at: int) -> int:
    """Return where the bytes of the second field, which begins *at*, start if they are the rest, else 0."""
    if message[at : at + 1] != b"\x12":
        return 0
    size = shift = 0
    for index in range(at + 1, min(at + 6, len(message))):
        byte = message[index]
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return index + 1 if index + 1 + size == len(message) else 0
    return 0


def _has_more_fields(message: bytes, most: int) -> bool:
    """Return whether *message* has more than *most* fields, which are looked at before they cost memory."""
    at, end = 0, len(message)
    for _ in range(most):
        if (
            at >= end or message[at] & 7 != 2
        ):  # only strings and messages belong here; others are left to protobuf
            return False
        size = shift = 0
        while True:
            at += 1
            if at >= end or shift > 28:
                return False
            byte = message[at]
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        at += 1 + size
    return at < end


def _too_early(broker: Broker, early: Early) -> str:
    """Return what is too much of what came before its beginning, nothing if it isn't."""
    if len(early.feeds) > EARLY:
        return f"{len(early.feeds)} events came before its beginning, limit is {EARLY}"
    if len(broker.early) > EARLY_ALL:
        return f"events of {len(broker.early)} connections wait for their beginning, limit is {EARLY_ALL}"
    if broker.early_bytes > EARLY_BYTES:
        return f"{broker.early_bytes} bytes wait for their connections, limit is {EARLY_BYTES}"
    return ""


def _feed_bytes(data: bytes, link: GrpcLink) -> None:
    if link.channel is not None:
        link.channel.received(data)


def _feed_messages(messages: list[Message], link: GrpcLink) -> None:
    if link.channel is not None:
        link.channel.delivered(messages)


def _plain(conn: bytes) -> str:
    """Return the broker's name of a connection, Base64, in letters that a clientid and a topic may have."""
    return conn.decode().replace("+", "-").replace("/", "_")
