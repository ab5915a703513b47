"""Gateway: an app on listeners of its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import attrs

from ...app import App
from ...core import Engine, Hub
from ...hub import MemoryHub
from ...models import Address
from ...router import Router
from ...runner import Runner
from .listeners import DEFAULT_LISTEN, Listen
from .proxied import HeaderLink
from .sockets import bind, why_not
from .tcp import TcpLink
from .udp import UdpPort

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Door", "Gateway", "Options"]

log = logging.getLogger("exproto_app")

BACKLOG = 4096
"""Connections that the kernel may keep for us while we are busy; its own limit counts too."""

SHOWN = 64
"""Bytes of a bad PROXY header that the log shows."""


@attrs.frozen(kw_only=True)
class Options:
    """What a gateway allows.

    *max_connections* in all, in this process; *handshake_timeout*: seconds of a TLS handshake, and of the
    PROXY header before it.
    """

    max_connections: int = 10_000
    handshake_timeout: float = 10.0


@runtime_checkable
class Networked(Protocol):
    """A hub that has to be started and stopped: before the app starts, and after it has stopped."""

    async def start(self, engine: Engine, /) -> None:
        """Connect. Raises `UnavailableError` where that has to succeed and doesn't."""
        ...

    async def stop(self) -> None:
        """Disconnect."""
        ...


@attrs.define(eq=False)
class Door:
    """One listener that is open: what its connections share, and their number."""

    gateway: Gateway
    listen: Listen
    routers: Sequence[Router[Any]]
    context: ssl.SSLContext | None = None
    open: int = 0
    pending: set[HeaderLink] = attrs.field(factory=set)

    @property
    def engine(self) -> Engine:
        """The engine that takes the connections."""
        return self.gateway.runner.engine

    def admit(self, peer: Address) -> bool:
        """Count a new connection, or refuse it because of a limit, logged and counted."""
        gateway = self.gateway
        limit = self.listen.max_connections
        if limit is not None and self.open >= limit:
            where = f"{self.listen} has {self.open}"
        elif gateway.open >= gateway.options.max_connections:
            where, limit = f"the gateway has {gateway.open}", gateway.options.max_connections
        elif gateway.stopping:
            return False
        else:
            self.open += 1
            gateway.open += 1
            return True
        self.engine.count("connections_refused")
        log.warning("%s ! connection refused: %s, limit is %d", peer, where, limit)
        return False

    def leave(self) -> None:
        """Count a connection that has ended."""
        self.open -= 1
        self.gateway.open -= 1

    def headless(self, peer: Address, why: str, data: bytes) -> None:
        """Count and log a connection that is closed for want of a PROXY header; *data* is what came."""
        self.engine.count("proxy_headers_refused")
        shown = data[:SHOWN].hex(" ")
        log.warning("%s ! connection closed: %s; %d bytes came: %s", peer, why, len(data), shown)


class Gateway:
    """*app* on *listeners* of its own, with a *hub* in memory unless another is given.

    *sockets*: for each listener those that are bound already, by a process that shares or outlives this one;
    they are closed with the gateway. Use it as an async context manager, or `start` and `stop` it. Raises
    `SetupError` for listeners that don't fit the app or can't be opened.
    """

    def __init__(
        self,
        app: App[Any, Any],
        listeners: Sequence[Listen | str] = (DEFAULT_LISTEN,),
        *,
        hub: Hub | None = None,
        options: Options | None = None,
        sockets: Sequence[Sequence[socket.socket]] | None = None,
    ) -> None:
        self.app = app
        self.options = options or Options()
        self.hub = hub or MemoryHub()
        self.open = 0
        self.stopping = False
        self.runner: Runner
        parsed = [Listen.parse(listen) if isinstance(listen, str) else listen for listen in listeners]
        self._doors = [Door(self, listen, listen.routers(app)) for listen in parsed]
        self._sockets = sockets
        self._servers: list[asyncio.Server] = []
        self._ports: list[UdpPort] = []
        self.addresses: list[tuple[Listen, Sequence[Router[Any]], Address]] = []

    @property
    def serving(self) -> bool:
        """Whether the listeners are open."""
        return bool(self.addresses) and not self.stopping

    @property
    def listening(self) -> list[tuple[str, str]]:
        """The listeners that are open, for each protocol: its name, and the URL."""
        return [
            (router.name, f"{listen.scheme}://{address}")
            for listen, routers, address in self.addresses
            for router in routers
        ]

    async def start(self) -> None:
        """Start the app, then open the listeners."""
        for door in self._doors:
            door.context = door.listen.tls()
        self.runner = Runner(self.app, self.hub)
        if isinstance(self.hub, Networked):
            await self.hub.start(self.runner.engine)
        try:
            await self.runner.start()
        except BaseException:
            if isinstance(self.hub, Networked):
                await self.hub.stop()
            raise
        try:
            for number, door in enumerate(self._doors):
                sockets = self._sockets[number] if self._sockets is not None else bind(door.listen)
                names = [Address(*sock.getsockname()[:2]) for sock in sockets]
                await self._serve(door, list(sockets))
                self.addresses += [(door.listen, door.routers, name) for name in names]
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop accepting, end every connection, close."""
        for server in self._servers:
            server.close()
        for port in self._ports:
            port.stop_reading()
        # Those that are accepted already come in, so that they get a proper end.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.stopping = True
        for door in self._doors:
            for link in tuple(door.pending):
                link.give_up()
        await self.runner.stop()
        if isinstance(self.hub, Networked):
            await self.hub.stop()
        for port in self._ports:
            port.close()
        self._servers.clear()
        self._ports.clear()

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

    async def _serve(self, door: Door, sockets: list[socket.socket]) -> None:
        """Serve *door* on *sockets*; close those that can't be served."""
        loop = asyncio.get_running_loop()
        try:
            while sockets:
                if door.listen.scheme == "udp":
                    _, port = await loop.create_datagram_endpoint(lambda: UdpPort(door), sock=sockets[0])
                    self._ports.append(port)
                else:
                    self._servers.append(await self._open_tcp(door, sockets[0]))
                del sockets[0]
        except OSError as error:  # two that bound the same port learn it when they listen
            raise why_not(door.listen, error) from None
        finally:
            for sock in sockets:
                sock.close()

    async def _open_tcp(self, door: Door, sock: socket.socket) -> asyncio.Server:
        create = asyncio.get_running_loop().create_server
        if door.listen.proxy_protocol:  # the handshake comes after the header
            return await create(lambda: HeaderLink(door), sock=sock, backlog=BACKLOG)
        return await create(
            lambda: TcpLink(door),
            sock=sock,
            ssl=door.context,
            ssl_handshake_timeout=None if door.context is None else self.options.handshake_timeout,
            backlog=BACKLOG,
        )
