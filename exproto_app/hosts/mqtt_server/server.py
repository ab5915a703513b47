"""The MQTT server, on asyncio: sockets, the clock, login tasks, and whose turn it is."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Protocol, cast

from ...addresses import APPLICANT, Applicant
from ...asyncio_host.accepting import Accepting, bind
from ...asyncio_host.dead_peers import watch_peer
from ...asyncio_host.reading import limit_reads
from ...hub import Member, MemoryHub
from ...models import Address, ClientInfo
from .bounds import Bounds
from .broker import MqttBroker
from .connection import ClientConnection
from .reasons import Reason

__all__ = ["Gate", "MqttServer"]

log = logging.getLogger("exproto_app")

SLICE: Final = 0.005
"""Seconds that MQTT clients together may take before everything else in the loop gets its turn."""

BACKLOG: Final = 65_536
"""Bytes read and not handled beyond which a client isn't read."""

FAREWELL: Final = 0.5
"""Seconds that all clients together have for their last bytes when the server stops."""

SWEEP: Final = 1.0
"""Seconds between two looks at who is silent, stalled or expired."""


class Devices(Protocol):
    """What the server needs of the engine: the connected devices, and its counters."""

    @property
    def clients(self) -> Mapping[str, Member]:
        """The devices by clientid."""
        ...

    def count(self, name: str, number: int = 1, /) -> None:
        """Count what happens."""
        ...


class Gate(Protocol):
    """Who judges addresses, for all listeners of a gateway alike."""

    def admit(self, peer: Address, /) -> bool:
        """Count a connection of *peer*, or refuse it, logged and counted."""
        ...

    def leave(self, peer: Address, /) -> None:
        """Count the end of a connection that was admitted."""
        ...

    def login_failed(self, peer: Address, /) -> None:
        """Count a refused login."""
        ...


class MqttServer:
    """Takes MQTT clients, whom *gate* lets in if there is one, to *hub* at *address*.

    `start` raises `OSError` where the address can't be opened.
    """

    def __init__(
        self, hub: MemoryHub, address: Address, bounds: Bounds | None = None, gate: Gate | None = None
    ) -> None:
        self.hub = hub
        self.address = address
        self.bounds = bounds or Bounds()
        self.gate = gate
        self.stopping = False
        self.broker: MqttBroker
        self.engine: Devices
        self.links: set[ClientSocket] = set()
        self.half_open: OrderedDict[ClientSocket, None] = OrderedDict()
        self.loop: asyncio.AbstractEventLoop
        self._ready: deque[ClientSocket] = deque()
        self._running = False
        self._accepting: list[Accepting] = []
        self._beginning: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event

    async def start(self, engine: Devices) -> None:
        """Listen; what happens is counted in *engine*."""
        self.engine = engine
        self.loop = asyncio.get_running_loop()
        self.broker = MqttBroker(
            self.hub,
            self.bounds,
            waiter=self.loop.create_future,
            count=engine.count,
            devices=engine.clients,
            soon=self._settle_soon,
        )
        self._empty = asyncio.Event()
        sockets = bind(self.address)
        self.address = Address(*sockets[0].getsockname()[:2])
        who = f"gateway ! mqtt://{self.address}"
        self._accepting = [Accepting(sock, self._take, engine.count, who) for sock in sockets]
        try:
            for accepting in self._accepting:
                accepting.start()
        except OSError:  # two that bound the same port learn it when they listen
            self._accept_no_more()
            raise
        self._sweep()

    async def stop(self) -> None:
        """Let every client go; bounded in time."""
        self.stopping = True
        self._accept_no_more()
        if self._sweeping is not None:
            self._sweeping.cancel()
        for link in tuple(self.links):
            link.connection.close(Reason.SHUTTING_DOWN, "the gateway stops")
        for session in tuple(self.broker.sessions.values()):
            self.broker.end_session(session)
        self._empty.clear()
        if self.links:
            empty = asyncio.ensure_future(self._empty.wait())
            await asyncio.wait([empty], timeout=min(FAREWELL, self.bounds.goodbye))
            for link in tuple(self.links):
                link.abort()
            await empty
        self.broker.flush_counts()

    def _accept_no_more(self) -> None:
        for accepting in self._accepting:
            accepting.close()
        self._accepting.clear()

    def _take(self, sock: socket.socket, _: object) -> None:
        task = self.loop.create_task(self._begin(sock))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _begin(self, sock: socket.socket) -> None:
        try:
            transport, _ = await self.loop.connect_accepted_socket(partial(ClientSocket, self), sock)
            watch_peer(transport, self.bounds.stall)
        except OSError as error:  # it has gone already
            log.debug("mqtt ! a connection ended before it began: %s", error)
            sock.close()

    def admits(self, peer: Address) -> bool:
        """Make room for a client, at the cost of one that isn't logged in; count and log who is refused."""
        bounds = self.bounds
        full = len(self.links) >= bounds.clients
        if self.stopping or (full and not self.half_open):
            self.engine.count("door_clients_refused")
            words = "%s ! MQTT client refused: %d are connected, which is the limit"
            log.warning(words, peer, len(self.links))
            return False
        if full or len(self.half_open) >= bounds.half_open:
            self._drop_half_open()
        return True

    def end_clients(self, of: Callable[[str], bool]) -> None:
        """Close the clients of a banned address, whose host is one *of* its."""
        for link in tuple(self.links):
            if of(link.connection.peer.host):
                link.connection.close(Reason.NOT_AUTHORIZED, "its address is banned")

    def _drop_half_open(self) -> None:
        """Drop one that isn't logged in: the oldest of the address and name that have most of them.

        Where all have one, it is the newest: those who come in numbers put each other out, and nobody else.
        """
        alike: dict[tuple[str, str | None], list[ClientSocket]] = {}
        for link in reversed(self.half_open):
            alike.setdefault(link.connection.applicant, []).append(link)
        link = max(alike.values(), key=len)[-1]
        self.engine.count("door_clients_refused")
        words = "%s ! MQTT client dropped: %d connections aren't logged in, limit is %d"
        log.warning(words, link.connection.peer, len(self.half_open), self.bounds.half_open)
        del self.half_open[link]
        link.abort()

    def schedule(self, link: ClientSocket) -> None:
        """Let *link* have its turn soon."""
        if not link.scheduled:
            link.scheduled = True
            self._ready.append(link)
            if not self._running:
                self._running = True
                self.loop.call_soon(self._run)

    def forget(self, link: ClientSocket) -> None:
        """Let go of *link*: it is closed."""
        if link not in self.links:
            return
        self.links.discard(link)
        if self.gate is not None:
            self.gate.leave(link.connection.peer)
        self.half_open.pop(link, None)
        if not self.links:
            self._empty.set()

    def _run(self) -> None:
        """Give clients their turns, one after another, until the slice of time is used up."""
        time, ready = self.loop.time, self._ready
        deadline = time() + SLICE
        while ready:
            link = ready.popleft()
            link.scheduled = False
            link.step(lambda: time() >= deadline)
            if time() >= deadline:
                break
        self._running = bool(ready)
        if ready:
            self.loop.call_soon(self._run)

    def _settle_soon(self) -> None:
        self.loop.call_soon(self._settle_some)

    def _settle_some(self) -> None:
        """Have publishers go on that waited for room, for a slice of time."""
        deadline = self.loop.time() + SLICE
        if self.broker.settle_some(lambda: self.loop.time() >= deadline):
            self._settle_soon()

    def _sweep(self) -> None:
        now = self.loop.time()
        for link in tuple(self.links):
            link.look(now)
        self.broker.tick(now)
        self._sweeping = self.loop.call_later(SWEEP, self._sweep)


class ClientSocket(asyncio.Protocol):
    """The socket of one client."""

    def __init__(self, server: MqttServer) -> None:
        self.connection: ClientConnection
        self.scheduled = False
        self._server = server
        self._transport: asyncio.Transport
        self._login: asyncio.Task[bool] | None = None
        self._reading = True
        self._writable = True
        self._closing = 0.0
        self._closed = False
        self._lost = False

    # --- from asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)
        server = self._server
        peername = transport.get_extra_info("peername")
        peer = Address(*peername[:2]) if peername else Address("", 0)
        self.connection = ClientConnection(server.broker, peer, self, server.loop.time())
        if not peername or not self._let_in(peer):
            self._lost = True
            transport.abort()
            return
        limit_reads(transport)
        size = server.bounds.write
        transport.set_write_buffer_limits(high=size, low=size // 4)
        server.engine.count("door_clients_opened")
        server.links.add(self)
        server.half_open[self] = None

    def _let_in(self, peer: Address) -> bool:
        """Take a place, if the peer's address and the limits allow."""
        gate = self._server.gate
        if gate is not None and not gate.admit(peer):
            return False
        if self._server.admits(peer):
            return True
        if gate is not None:
            gate.leave(peer)
        return False

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self.connection.feed(data)
        if self._reading and self.connection.inbound.size > BACKLOG and self.connection.inbound.ready:
            self._reading = False
            self._transport.pause_reading()
        self._server.schedule(self)

    def eof_received(self) -> bool:
        self.connection.hung_up()
        self._cancel_login()
        self._server.schedule(self)
        return True  # what has come is handled and answered before it is closed

    def pause_writing(self) -> None:
        self._writable = self.connection.writable = False

    def resume_writing(self) -> None:
        self._writable = self.connection.writable = True
        self.connection.moved = True
        self._server.schedule(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio passes it
        if self._lost:
            return
        self._lost = True
        self._writable = self.connection.writable = False
        self._cancel_login()
        self.connection.hung_up()
        self._server.schedule(self)

    # --- from the connection

    def wants_work(self) -> None:
        self._server.schedule(self)

    def login(self, client: ClientInfo, password: str | None) -> None:
        if not self._server.hub.asks:
            self.connection.admitted(True)
            return
        applicant = Applicant(self.connection.peer.host, lambda: self.connection.done)
        before = APPLICANT.set(applicant)  # the task copies it
        try:
            self._login = self._server.loop.create_task(self._server.hub.admits(client, password))
        finally:
            APPLICANT.reset(before)
        self._login.add_done_callback(partial(self._logged_in, applicant))

    def denied(self) -> None:
        if self._server.gate is not None:
            self._server.gate.login_failed(self.connection.peer)

    def close(self) -> None:
        if not self._closing:
            self._closing = self._server.loop.time()
            self._cancel_login()
            self._server.half_open.pop(self, None)
            self._server.schedule(self)

    # --- from the server

    def step(self, overdue: Callable[[], bool]) -> None:
        """Do what there is to do, a slice of it."""
        connection = self.connection
        more = connection.work(overdue)
        if self._lost and not more:
            connection.lost()
            self._server.forget(self)
            return
        if self._writable and not self._transport.is_closing():
            data = connection.take(self._server.bounds.write)
            if data:
                self._transport.write(data)
        if not connection.pending_login:
            self._server.half_open.pop(self, None)
        if more or (self._writable and connection.has_output and not self._transport.is_closing()):
            self._server.schedule(self)
        elif not connection.has_output and connection.done and not self._closed:
            self._closed = True
            self._transport.close()
        if not (self._reading or self._closing or self._lost or connection.inbound.ready):
            self._reading = True
            self._transport.resume_reading()

    def look(self, now: float) -> None:
        """See whether the client is silent or stalled, or takes too long to go."""
        self.connection.tick(now)
        if self._closing and now - self._closing > self._server.bounds.goodbye:
            self.abort()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def _cancel_login(self) -> None:
        if self._login is not None:
            self._login.cancel()
            self._login = None

    def _logged_in(self, applicant: Applicant, task: asyncio.Task[bool]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            words = "%s ! the login rule failed: %r"
            log.error(words, self.connection.peer, error, exc_info=error)
        self._login = None
        self.connection.admitted(error is None and task.result(), busy=applicant.busy)
