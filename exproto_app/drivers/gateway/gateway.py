"""Gateway: an app on listeners of its own."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import attrs

from ...app import App
from ...channel import Hub
from ...engine import Engine
from ...errors import SetupError
from ...hub import MemoryHub
from ...models import Address
from ...router import Router
from ...runner import Runner
from .listeners import DEFAULT_LISTEN, Listen
from .tcp import TcpLink
from .udp import UdpPort

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Door", "Gateway", "Options"]

log = logging.getLogger("exproto_app")

BACKLOG = 4096
"""Connections that the kernel may keep for us while we are busy; its own limit counts too."""


@attrs.frozen(kw_only=True)
class Options:
    """What a gateway allows: connections in all, and seconds of a TLS handshake."""

    max_connections: int = 10_000
    handshake_timeout: float = 10.0


@attrs.define(eq=False)
class Door:
    """One listener that is open: what its connections share, and their number."""

    gateway: Gateway
    listen: Listen
    router: Router[Any]
    open: int = 0
    _refused: int = 0

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
        counters = self.engine.counters
        counters["connections_refused"] = counters.get("connections_refused", 0) + 1
        self._refused += 1
        if self._refused & (self._refused - 1) == 0:  # the 1st, 2nd, 4th, 8th…: a storm is no flood of lines
            log.warning(
                "gateway ! connection of %s refused (no. %d): %s, limit is %d",
                peer,
                self._refused,
                where,
                limit,
            )
        return False

    def leave(self) -> None:
        """Count a connection that has ended."""
        self.open -= 1
        self.gateway.open -= 1


class Gateway:
    """*app* on *listeners* of its own, with a *hub* in memory unless another is given.

    Use it as an async context manager, or `start` and `stop` it. Raises `SetupError` for listeners that
    don't fit the app or can't be opened.
    """

    def __init__(
        self,
        app: App[Any, Any],
        listeners: Sequence[Listen | str] = (DEFAULT_LISTEN,),
        *,
        hub: Hub | None = None,
        options: Options | None = None,
    ) -> None:
        self.app = app
        self.options = options or Options()
        self.hub = hub or MemoryHub()
        self.open = 0
        self.stopping = False
        self.runner: Runner
        parsed = [Listen.parse(listen) if isinstance(listen, str) else listen for listen in listeners]
        self._doors = [Door(self, listen, app.find_protocol(listen.protocol)) for listen in parsed]
        self._servers: list[asyncio.Server | asyncio.DatagramTransport] = []
        self.addresses: list[tuple[Listen, Router[Any], Address]] = []

    async def start(self) -> None:
        """Start the app, then open the listeners."""
        contexts = [door.listen.tls() for door in self._doors]
        self.runner = Runner(self.app, self.hub)
        await self.runner.start()
        try:
            for door, context in zip(self._doors, contexts, strict=True):
                listen = door.listen
                try:
                    names = await (
                        self._open_udp(door) if listen.scheme == "udp" else self._open_tcp(door, context)
                    )
                except OSError as error:
                    raise SetupError(_why(listen, error)) from None
                self.addresses += [(listen, door.router, name) for name in names]
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop accepting, end every connection, close."""
        self.stopping = True
        for server in self._servers:
            if isinstance(server, asyncio.Server):
                server.close()
        await self.runner.stop()
        for server in self._servers:
            if not isinstance(server, asyncio.Server):
                server.close()
        self._servers.clear()

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

    async def _open_tcp(self, door: Door, context: Any) -> list[Address]:
        listen = door.listen
        server = await asyncio.get_running_loop().create_server(
            lambda: TcpLink(door),
            listen.host or None,
            listen.port,
            ssl=context,
            ssl_handshake_timeout=None if context is None else self.options.handshake_timeout,
            backlog=BACKLOG,
            reuse_address=True,
        )
        self._servers.append(server)
        return [Address(*sock.getsockname()[:2]) for sock in server.sockets]

    async def _open_udp(self, door: Door) -> list[Address]:
        listen = door.listen
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: UdpPort(door),
            local_addr=(listen.host or "0.0.0.0", listen.port),  # noqa: S104 - asked for by leaving the host out
        )
        self._servers.append(transport)
        return [Address(*transport.get_extra_info("sockname")[:2])]


def _why(listen: Listen, error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"{listen} can't be opened: there is no host {listen.host!r} here"
    words = (error.strerror or str(error)).lower()
    if "address already in use" in str(error).lower():
        return (
            f"{listen} can't be opened: another program has the port; stop it or choose another with --listen"
        )
    return f"{listen} can't be opened: {words}"
