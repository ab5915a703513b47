"""The MQTT server, on asyncio: sockets, the clock, login tasks, and whose turn it is."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Protocol, cast

from ...hub import Member, MemoryHub
from ...models import Address, ClientInfo
from .bounds import Bounds
from .broker import Broker
from .connection import ClientConnection
from .reasons import Reason

__all__ = ["MqttServer"]

log = logging.getLogger("exproto_app")

SLICE: Final = 0.005
"""Seconds that MQTT clients together may take before everything else in the loop gets its turn."""

BACKLOG: Final = 65_536
"""Bytes read and not handled beyond which a client isn't read."""

SWEEP: Final = 1.0
"""Seconds between two looks at who is silent, stalled or expired."""


class Engine(Protocol):
    """What the server needs of the engine: the connected devices, and its counters."""

    @property
    def clients(self) -> Mapping[str, Member]:
        """The devices by clientid."""
        ...

    def count(self, name: str, number: int = 1, /) -> None:
        """Count what happens."""
        ...


class MqttServer:
    """Takes MQTT clients to *hub* at *address*. `start` raises `OSError` where that can't be opened."""

    def __init__(self, hub: MemoryHub, address: Address, bounds: Bounds | None = None) -> None:
        self.hub = hub
        self.address = address
        self.bounds = bounds or Bounds()
        self.stopping = False
        self.broker: Broker
        self.engine: Engine
        self.links: set[Link] = set()
        self.half_open: OrderedDict[Link, None] = OrderedDict()
        self.loop: asyncio.AbstractEventLoop
        self._ready: deque[Link] = deque()
        self._running = False
        self._server: asyncio.Server | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event

    async def start(self, engine: Engine) -> None:
        """Listen; what happens is counted in *engine*."""
        self.engine = engine
        self.loop = asyncio.get_running_loop()
        self.broker = Broker(
            self.hub,
            self.bounds,
            waiter=self.loop.create_future,
            count=engine.count,
            devices=engine.clients,
        )
        self._empty = asyncio.Event()
        host = self.address.host or None
        make = partial(Link, self)
        self._server = await self.loop.create_server(make, host, self.address.port, reuse_address=True)
        self.address = Address(*self._server.sockets[0].getsockname()[:2])
        self._sweep()

    async def stop(self) -> None:
        """Let every client go; bounded in time."""
        self.stopping = True
        if self._server is not None:
            self._server.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
        for link in tuple(self.links):
            link.connection.close(Reason.SHUTTING_DOWN, "the gateway stops")
        for session in tuple(self.broker.sessions.values()):
            self.broker.end_session(session)
        self._empty.clear()
        if self.links:
            empty = asyncio.ensure_future(self._empty.wait())
            await asyncio.wait([empty], timeout=self.bounds.goodbye)
            for link in tuple(self.links):
                link.abort()
            await empty
        self.broker.flush_counts()

    def admits(self, peer: Address) -> bool:
        """Make room for a client, at the cost of one that isn't logged in; count and log who is refused."""
        bounds = self.bounds
        full = len(self.links) >= bounds.clients
        if self.stopping or (full and not self.half_open):
            self.engine.count("door_clients_refused")
            words = "%s ! MQTT client refused: %d are connected, that is the limit"
            log.warning(words, peer, len(self.links))
            return False
        if full or len(self.half_open) >= bounds.half_open:
            self._drop_half_open()
        return True

    def _drop_half_open(self) -> None:
        """Drop one that isn't logged in: the oldest of the address and name that have most of them.

        Where all have one, it is the newest: those who come in numbers put each other out, and nobody else.
        """
        alike: dict[tuple[str, str | None], list[Link]] = {}
        for link in reversed(self.half_open):
            alike.setdefault(link.connection.applicant, []).append(link)
        link = max(alike.values(), key=len)[-1]
        self.engine.count("door_clients_refused")
        words = "%s ! MQTT client dropped: %d connections aren't logged in, limit is %d"
        log.warning(words, link.connection.peer, len(self.half_open), self.bounds.half_open)
        del self.half_open[link]
        link.abort()

    def schedule(self, link: Link) -> None:
        """Let *link* have its turn soon."""
        if not link.scheduled:
            link.scheduled = True
            self._ready.append(link)
            if not self._running:
                self._running = True
                self.loop.call_soon(self._run)

    def forget(self, link: Link) -> None:
        """Let go of *link*: it is closed."""
        self.links.discard(link)
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

    def _sweep(self) -> None:
        now = self.loop.time()
        for link in tuple(self.links):
            link.look(now)
        self.broker.tick(now)
        self._sweeping = self.loop.call_later(SWEEP, self._sweep)


class Link(asyncio.Protocol):
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
        if not peername or not server.admits(peer):
            self._lost = True
            transport.abort()
            return
        size = server.bounds.write
        transport.set_write_buffer_limits(high=size, low=size // 4)
        server.engine.count("door_clients_opened")
        server.links.add(self)
        server.half_open[self] = None

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
        asked = self._server.hub.admits(client, password)
        self._login = self._server.loop.create_task(asked)
        self._login.add_done_callback(self._logged_in)

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

    def _logged_in(self, task: asyncio.Task[bool]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            words = "%s ! the login rule failed: %r"
            log.error(words, self.connection.peer, error, exc_info=error)
        self._login = None
        self.connection.admitted(error is None and task.result())
