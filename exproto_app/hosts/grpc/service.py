"""Service: the gRPC services that brokers call, and what becomes of their events.

An event goes into its connection's queue and is answered at once, with success whatever becomes of it: any
other answer would close the device. Only while the queue is full the answer is withheld.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ...app import App
from ...asyncio_host.runner import Runner
from ...errors import not_opened
from ...models import Address, Certificate, ConnectionInfo, Message, SockType
from ...router import Router
from ..reasons import reason
from . import exproto_pb2 as pb
from .adapter import AdapterHub
from .broker import AdapterMap, Broker, Early
from .caller import Caller, Inbound, Take
from .http2 import NO_ERROR, Wire
from .link import GrpcLink
from .tls import Tls

if TYPE_CHECKING:
    import ssl

    from typing_extensions import Self

__all__ = ["Service"]

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

LINGER: Final = 0.1
"""Seconds in which bytes may follow the end of a connection: the broker batches for up to 20 ms."""

SILENCE: Final = 600.0
"""Seconds without any event after which the broker is asked whether the connection still lives."""

SWEEP: Final = 30.0
"""Seconds between two looks for such connections: one timer for all of them."""

ACCEPTED: Final = 4
"""Rounds of the loop in which a connection that the kernel has accepted becomes one of ours."""

GOODBYE: Final = 2.0
"""Seconds that calls in flight may take when the service stops."""

SILENT_START: Final = 30.0
"""Seconds after which it is told that no broker has called yet, or that its adapter has answered nothing."""

SAID: Final = 1_000
"""Different things that are said once."""

UNARY: Final = "ConnectionUnaryHandler"
STREAMS: Final = "ConnectionHandler"
SOCKTYPES: Final[Mapping[int, SockType]] = {0: "tcp", 1: "ssl", 2: "udp", 3: "dtls"}

SERVING: Final = b"\0\0\0\0\2\x08\1"
NOT_SERVING: Final = b"\0\0\0\0\2\x08\2"
SERVICE_UNKNOWN: Final = b"\0\0\0\0\2\x08\3"
SERVICES: Final = {b"", *(f"emqx.exproto.v1.{name}".encode() for name in (UNARY, STREAMS))}
"""What a health check may ask for."""

Feed: TypeAlias = Callable[[GrpcLink], object]


class Service:
    """*app* as the service of brokers whose adapters *adapters* tells.

    *ports* says which protocol a listener of the broker's speaks, or which several, `gt06,jt808`, by its
    port; without it the app has to have one protocol only. What comes by TLS to a port of *datagrams* is
    DTLS, which EMQX doesn't tell apart. *shares*: the broker takes shared subscriptions. *sockets* are bound
    to *bind* already, by a process that outlives this one. Use it as an async context manager, or `start`
    and `stop` it. Raises `SetupError` for what doesn't fit the app and for an address that can't be bound.
    """

    def __init__(
        self,
        app: App[Any, Any],
        bind: Address,
        adapters: AdapterMap,
        *,
        ports: Mapping[int, str] | None = None,
        datagrams: Collection[int] = (),
        shares: bool = False,
        tls: Tls | None = None,
        sockets: Sequence[socket.socket] | None = None,
    ) -> None:
        self.app = app
        self.adapters = adapters
        self.address = bind
        self.callers: set[Caller] = set()
        self.stopping = False
        self.runner: Runner
        self.methods: Mapping[bytes, tuple[Take, bool]] = self._methods()
        self._ports = {port: app.find_protocols(name) for port, name in (ports or {}).items()}
        self._only = None if self._ports else app.find_protocols(None)
        # The protocol of a connection that we never saw begin, where that is certain.
        choices = {*self._ports.values()}
        self._unseen = choices.pop() if len(choices) == 1 else self._only
        self._datagrams = datagrams
        self._shares = shares
        self._tls = tls
        self._sockets = sockets
        self._servers: list[asyncio.Server] = []
        self._sweeping: asyncio.TimerHandle | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._said: set[object] = set()
        self._loop: asyncio.AbstractEventLoop
        self._time: Callable[[], float]

    @property
    def serving(self) -> bool:
        """Whether brokers may call."""
        return bool(self._servers) and not self.stopping

    @property
    def listening(self) -> list[tuple[str, str]]:
        """What brokers may call for: each protocol's name, and where, by the broker's listener."""
        where = f"gRPC on {self.address}"
        return [
            *((router.name, where) for router in self._only or ()),
            *(
                (router.name, f":{port} of EMQX, {where}")
                for port, routers in self._ports.items()
                for router in routers
            ),
        ]

    async def start(self) -> None:
        """Start the app, then listen."""
        context = self._tls.context() if self._tls is not None else None
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        self.runner = Runner(self.app, AdapterHub(self.adapters, shares=self._shares))
        await self.runner.start()
        try:
            await self._listen(context)
        except OSError as error:
            await self.runner.stop()
            raise not_opened(self.address, error, "stop it or choose another with --bind") from None
        except BaseException:
            await self.runner.stop()
            raise
        self.address = Address(*self._servers[0].sockets[0].getsockname()[:2])
        self._sweeping = self._loop.call_later(SWEEP, self._sweep)
        self._looking = self._loop.call_later(SILENT_START, self._look_for_brokers)

    async def _listen(self, context: ssl.SSLContext | None) -> None:
        make = partial(_wire, self)
        create = partial(self._loop.create_server, make, ssl=context, backlog=1024)
        if self._sockets is None:
            host, port = self.address.host or None, self.address.port
            self._servers.append(await create(host, port, reuse_address=True))
        for sock in self._sockets or ():
            self._servers.append(await create(sock=sock))

    async def stop(self) -> None:
        """Close every device, answer what is in flight, and let go of the brokers; bounded in time."""
        self.stopping = True
        for timer in (self._sweeping, self._looking):
            if timer is not None:
                timer.cancel()
        # Brokers may still connect meanwhile: they have to tell which connections have ended.
        await self.runner.stop()
        # asyncio leaks a connection that it has accepted but not yet made when the server closes.
        for listener in (sock for server in self._servers for sock in server.sockets):
            self._loop.remove_reader(listener.fileno())
        for _ in range(ACCEPTED):
            await asyncio.sleep(0)
        for server in self._servers:
            server.close()
        await self._until(lambda: not any(caller.waits for caller in self.callers))
        for caller in tuple(self.callers):
            # Not before the last answer: EMQX's gun forgets at a GOAWAY what it waits for.
            caller.end_streams()
            caller.wire.end(NO_ERROR)
        for broker in self.adapters:
            await broker.close()
        await self._until(lambda: not self.callers and all(broker.client.closed for broker in self.adapters))
        for caller in tuple(self.callers):
            caller.wire.abort()
        await self._until(lambda: not self.callers)

    async def _until(self, reached: Callable[[], bool]) -> None:
        deadline = self._time() + GOODBYE
        while not reached() and self._time() < deadline:  # noqa: ASYNC110 - a few times, at the end
            await asyncio.sleep(0.01)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    # --- for callers

    def say(self, what: object, text: str, *arguments: object) -> None:
        """Log a warning the first time that *what* happens."""
        if what not in self._said and len(self._said) < SAID:
            self._said.add(what)
            log.warning(text, *arguments)

    def count(self, name: str) -> None:
        """Count what isn't the engine's."""
        self.runner.engine.count(name)

    # --- events

    def _methods(self) -> dict[bytes, tuple[Take, bool]]:
        takes: dict[str, Take] = {
            "OnSocketCreated": self._created,
            "OnSocketClosed": self._closed,
            "OnReceivedBytes": self._received,
            "OnTimerTimeout": self._timed_out,
            "OnReceivedMessages": self._messages,
        }
        methods: dict[bytes, tuple[Take, bool]] = {
            f"/emqx.exproto.v1.{service}/{name}".encode(): (take, streaming)
            for service, streaming in ((UNARY, False), (STREAMS, True))
            for name, take in takes.items()
        }
        methods[b"/grpc.health.v1.Health/Check"] = self._check, False
        methods[b"/grpc.health.v1.Health/Watch"] = self._watch, False
        return methods

    def _received(self, caller: Caller, call: Inbound, message: bytes) -> bool:
        """Take a device's bytes: the hot path. A ReceivedBytesRequest is two fields, read by hand."""
        broker = caller.broker
        if broker is not None and len(message) > 2 and message[0] == 10:
            at = message[1] + 2
            link = broker.links.get(message[2:at])
            if link is not None and (start := _start(message, at)):
                channel = link.channel
                link.heard = self._time()
                if call.streaming and not call.tied:
                    broker.streams.tie(link.conn, caller, call)
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

    def _messages(self, caller: Caller, call: Inbound, message: bytes) -> bool:
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

    def _timed_out(self, caller: Caller, call: Inbound, message: bytes) -> bool:
        request = self._parse(pb.TimerTimeoutRequest, caller, call, message)
        if request is not None:
            log.debug("%s ! the broker's own timer ends it", request.conn)
        return True

    def _created(self, caller: Caller, call: Inbound, message: bytes) -> bool:
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
        if socktype == "ssl" and about.sockname.port in self._datagrams:
            socktype = "dtls"
        info = ConnectionInfo(
            socktype,
            Address(about.peername.host, about.peername.port),
            Address(about.sockname.host, about.sockname.port),
            Certificate(dn=about.peercert.dn, cn=about.peercert.cn) if about.HasField("peercert") else None,
        )
        routers = self._routers(info)
        if routers is None or self.stopping:
            broker.refuse(conn)
            return True
        link = GrpcLink(broker, conn, datagram=info.socktype in ("udp", "dtls"))
        if link.datagram:
            link.lift_idle_limit()
        self._connect(link, info, routers, resumed=False)
        if conn in broker.early:
            self._feed_early(broker, conn, link)
        return True

    def _closed(self, caller: Caller, call: Inbound, message: bytes) -> bool:
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

    def _event(self, caller: Caller, call: Inbound, conn: str, feed: Feed, size: int) -> bool:
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

    def _event_after_the_end(self, caller: Caller, call: Inbound, conn: bytes) -> bool:
        """Ignore an event of a connection that is over, or have the broker learn that it is."""
        broker = caller.broker
        self.count("events_ignored")
        if broker is None or not broker.ended.owes(conn):
            return True
        log.debug("%s ! is over, but the broker doesn't know: it is told again", conn.decode())
        broker.ended.close_again(conn)
        if call.streaming:
            return True
        # Any status but success closes the device, even where no Close gets through.
        caller.refuse(call.stream, b"10", b"the connection is over")
        return False

    def _hold(self, caller: Caller, call: Inbound, conn: bytes, feed: Feed, *, size: int) -> None:
        """Keep an event until its connection begins: streams have no order among each other."""
        broker = caller.broker
        if broker is None:
            return
        early = broker.early.get(conn)
        if early is None:
            early = broker.early[conn] = Early()
            self._loop.call_later(EARLY_WAIT, self._held_too_long, broker, conn, early)
        early.feeds.append(feed)
        early.size += size
        broker.early_bytes += size
        if caller.wire.hold(call.stream):
            early.streams.append(partial(caller.wire.unhold, call.stream))
        too_early = _too_early(broker, early)
        if too_early:
            # With one event less the device's stream would have a hole: it shall come anew.
            log.warning("%s ! closed: %s", conn.decode(), too_early)
            self.count("events_ignored")
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
            self._feed_early(broker, conn, None if self.stopping else self._meet(broker, conn))

    def _meet(self, broker: Broker, conn: bytes) -> GrpcLink | None:
        """Meet a connection that this process never saw begin (rule 8)."""
        link = GrpcLink(broker, conn, datagram=False)
        routers = self._unseen or next(iter(self._ports.values()))
        known = self._unseen is not None and not self.stopping
        if not self.runner.engine.unknown(link, routers, conn_id=conn.decode(), may_resume=known):
            broker.forget(link)
            return None
        nowhere = Address("", 0)
        self._connect(link, ConnectionInfo("tcp", nowhere, nowhere), routers, resumed=True)
        return link

    def _connect(
        self, link: GrpcLink, info: ConnectionInfo, routers: Sequence[Router[Any]], *, resumed: bool
    ) -> None:
        link.broker.links[link.conn] = link
        link.heard = self._time()
        self.runner.engine.connected(link, info, routers, conn_id=link.conn.decode(), resumed=resumed)

    def _routers(self, info: ConnectionInfo) -> Sequence[Router[Any]] | None:
        port = info.sockname.port
        routers = self._only or self._ports.get(port)
        if routers is None:
            known = ", ".join(
                f"{','.join(router.name for router in routers)}=:{port}"
                for port, routers in self._ports.items()
            )
            text = "grpc ! devices of the listener on port %d are closed: no --protocol names it, only %s"
            self.say(("port", port), text, port, known)
        return routers

    def _greet(self, caller: Caller, call: Inbound) -> None:
        """Tell who calls, the first time."""
        what = ("caller", caller.host, call.streaming)
        if what in self._said or len(self._said) >= SAID:
            return
        self._said.add(what)
        where = caller.broker.client.name if caller.broker is not None else "nowhere"
        name = STREAMS if call.streaming else UNARY
        log.info("grpc = EMQX at %s calls %s; its adapter is %s", caller.host, name, where)
        if call.streaming:
            text = "grpc ! %s adds up to 20 ms; prefer service_name = %s where the broker has it"
            log.warning(text, STREAMS, UNARY)

    def _parse(self, kind: Any, caller: Caller, call: Inbound, message: bytes) -> Any:
        broker = caller.broker
        if broker is None:
            text = "grpc ! %s calls, but no --adapter is for it; its devices get no answers"
            self.say(("nobody", caller.host), text, caller.host)
            return None
        try:
            request = kind.FromString(message)
        except Exception as error:  # noqa: BLE001 - protobuf's own error, whose place differs between versions
            self.count("events_ignored")
            log.warning("grpc ! %s sent what is no %s: %s", caller.host, kind.DESCRIPTOR.name, error)
            return None
        if not request.conn:
            self.count("events_ignored")
            log.warning("grpc ! %s sent a %s without conn", caller.host, kind.DESCRIPTOR.name)
            return None
        if call.streaming and not call.tied:
            conn = request.conn.encode()
            broker.streams.tie(conn, caller, call)
            if conn in broker.ended and not broker.ended.owes(conn):
                self._loop.call_later(LINGER, broker.streams.answer, conn)
        return request

    # --- health (grpc.health.v1: a request names a service in its one field)

    def _check(self, caller: Caller, call: Inbound, message: bytes) -> bool:
        if message[2:] in SERVICES:
            caller.answer(call.stream, NOT_SERVING if self.stopping else SERVING)
        else:
            caller.refuse(call.stream, b"5", b"there is no such service")
        return False

    def _watch(self, caller: Caller, call: Inbound, message: bytes) -> bool:
        call.endless, call.last = True, NOT_SERVING
        known = message[2:] in SERVICES
        caller.begin(call, (NOT_SERVING if self.stopping else SERVING) if known else SERVICE_UNKNOWN)
        return False

    # --- silence

    def _look_for_brokers(self) -> None:
        """Tell what should have come by now and hasn't: a broker, or its adapter's first answer."""
        callers = [broker for broker in self.adapters if broker.callers or broker.links]
        if not callers:
            text = "grpc ! no broker has called within %g s; the handler's address in EMQX has to lead to %s"
            log.warning(text, SILENT_START, self.address)
        for broker in callers:
            if broker.client.asked and not broker.client.reached:
                text = "adapter ! nothing was answered by %s within %g s; is that EMQX's server { bind }?"
                log.warning(text, broker.client.name, SILENT_START)

    def _sweep(self) -> None:
        """Ask the brokers about connections that have been silent for long: their end may have been lost."""
        now = self._time()
        for broker in self.adapters:
            for link in broker.links.values():
                if link.heard < now - SILENCE and not link.closing:
                    link.heard = now
                    broker.paced(link.probe)
        self._sweeping = self._loop.call_later(SWEEP, self._sweep)


def _wire(service: Service) -> Wire:
    return Caller(service).wire


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
