"""Gateway: an app on listeners of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import attrs

from ...addresses import AddressLimits, Guard
from ...app import App
from ...asyncio_host.renewal import Renewal, Source
from ...asyncio_host.resolving import Resolver
from ...asyncio_host.runner import Runner
from ...core import Channel, Engine, Hub
from ...hub import MemoryHub
from ...models import Address, ConnectionInfo
from ...ops.backoff import Pace
from ...router import Router
from .dialling import DialOptions
from .dials import Dials, Share
from .endpoint import Endpoint
from .faults import BadFrames, accountable, info_of
from .guests import GuestGate
from .handshakes import Handshakes
from .listeners import DEFAULT_LISTEN, Listen
from .logins import LoginGate
from .renewing import Lists, follow_identity, warn_of_certificates
from .room import Room
from .schemes import Server
from .sockets import bind, files_left, release, why_not
from .targets import Target
from .tcp import address_of
from .unproved import Unproved

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Gateway", "Options"]

log = logging.getLogger("exproto_app")

Sockets: TypeAlias = Sequence[Sequence[socket.socket]]
"""The sockets of each listener."""

LEAST = 0.5
"""Seconds that the hub has to end, however long the connections took."""

SPARE_FILES = 32
"""Open files that are left for whoever looks (`/healthz`), the log, and the app itself."""


@attrs.frozen(kw_only=True)
class Options:
    """What a gateway allows.

    *max_connections* in all, in this process; *handshake_timeout*: seconds of a TLS handshake, and of the
    PROXY header before it; *addresses*: what each address may do; *lists*: files with more networks that may
    connect, or may not; *files*: those that one connection opens, 2 where each device has a connection to the
    broker; *stop_timeout*: seconds that connections, and then the hub, may take to end before they are cut;
    *dial*: how targets are dialled; *keepalive*: seconds of silence after which the kernel asks a TCP device
    whether it is there, None for the system's, two hours mostly.
    """

    max_connections: int = 10_000
    handshake_timeout: float = 10.0
    addresses: AddressLimits = attrs.field(factory=AddressLimits)
    lists: Lists = attrs.field(factory=Lists)
    files: int = 1
    stop_timeout: float = 5.0
    dial: DialOptions = attrs.field(factory=DialOptions)
    keepalive: float | None = None


@runtime_checkable
class Networked(Protocol):
    """A hub that has to be started and stopped: before the app starts, and after it has stopped."""

    async def start(self, engine: Engine, /) -> None:
        """Connect. Raises `UnavailableError` where that has to succeed and doesn't."""
        ...

    async def stop(self) -> None:
        """Disconnect."""
        ...


@runtime_checkable
class Renewable(Protocol):
    """A hub that is made of files, some of which may change while it works."""

    def sources(self) -> Iterable[Source]:
        """Return what is read again then."""
        ...


class Gateway:
    """*app* on *listeners* of its own, with a *hub* in memory unless another is given.

    *dial* has targets that it connects to, and *dial_file* more, one a line; the app's `dial` functions yield
    others. *sockets*: for each listener those that are bound already, by a process that shares or outlives
    this one, or a function that returns them when they are to be served; they are closed with the gateway.
    *share*: this process's part of what is dialled. Use it as an async context manager, or `start` and `stop`
    it. Raises `SetupError` for listeners and targets that don't fit the app, and for listeners that can't be
    opened.
    """

    def __init__(
        self,
        app: App[Any, Any],
        listeners: Sequence[Listen | str] = (DEFAULT_LISTEN,),
        *,
        hub: Hub | None = None,
        options: Options | None = None,
        dial: Sequence[Target | str] = (),
        dial_file: str | Path | None = None,
        share: Share | None = None,
        sockets: Sockets | Callable[[], Sockets] | None = None,
    ) -> None:
        self.app = app
        self.options = options or Options()
        self.hub = hub or MemoryHub()
        self.guard = Guard(self.options.addresses)
        self.guests = GuestGate(self)
        self.renewal = Renewal()
        self.stopping = False
        self._started = False
        self.runner: Runner
        self.resolver: Resolver
        parsed = [Listen.parse(listen) if isinstance(listen, str) else listen for listen in listeners]
        self.endpoints = [
            Endpoint(self, number, listen, listen.routers(app)) for number, listen in enumerate(parsed)
        ]
        self.share = share or Share()
        self.pace = Pace(self.options.dial.rate)
        targets = [Target.parse(target) if isinstance(target, str) else target for target in dial]
        self.dials = Dials(self, targets, dial_file)
        most = [listen.max_connections for listen in parsed]
        if self.dials.wanted:  # they are as one more listener
            most.append(None)
        self._unproved = Unproved(self)
        shared = frozenset(endpoint.number for endpoint in self.endpoints if endpoint.listen.kind.datagrams)
        self.room = Room(self.options.max_connections, most, self._unproved.oldest, shared=shared)
        self.handshakes: Handshakes
        self._sockets = sockets
        self._servers: list[tuple[Endpoint, Server]] = []
        self.addresses: list[tuple[Listen, Sequence[Router[Any]], Address]] = []

    @property
    def open(self) -> int:
        """How many connections there are, half-open ones among them."""
        return self.room.total

    @property
    def serving(self) -> bool:
        """Whether devices may connect."""
        return self._started and not self.stopping and not self.room.closed

    @property
    def listening(self) -> list[tuple[str, str]]:
        """The listeners that are open, for each protocol: its name, and the URL."""
        return [
            (router.name, listen.at(address))
            for listen, routers, address in self.addresses
            for router in routers
        ]

    def gauges(self) -> dict[str, float]:
        """Return what is measured beside the connections."""
        if not self.dials.wanted:
            return {}
        return {"dial_targets": len(self.dials.targets), "dial_targets_up": self.dials.up}

    async def start(self) -> None:
        """Start the app, then open the listeners."""
        self._read_files()
        self._limit_files()
        self.resolver = Resolver()
        self.handshakes = Handshakes(asyncio.get_running_loop().call_soon)
        self._gate = LoginGate(self.hub, self._login_failed)
        self.runner = Runner(self.app, self._gate.as_hub(), dials=True)
        self.runner.engine.when_denied = self._login_failed
        if isinstance(self.hub, Networked):
            await self.hub.start(self.runner.engine)
        try:
            await self.runner.start()
        except BaseException:
            if isinstance(self.hub, Networked):
                await self.hub.stop()
            raise
        self.runner.engine.observers += (self._unproved,)
        try:
            if self.options.addresses.bad_frames is not None:
                self._watch_frames()
            given = self._sockets() if callable(self._sockets) else self._sockets
            for number, endpoint in enumerate(self.endpoints):
                if endpoint.listen.kind.kind is None and not self.share.has(endpoint.listen):
                    continue
                sockets = bind(endpoint.listen) if given is None else given[number]
                names = [address_of(sock.getsockname()) for sock in sockets]
                await self._serve(endpoint, list(sockets))
                if not names:
                    names = [Address(endpoint.listen.host or endpoint.listen.path, endpoint.listen.port)]
                self.addresses += [(endpoint.listen, endpoint.routers, name) for name in names]
            await self.dials.start()
            self.renewal.start()
            self._started = True
        except BaseException:
            await self.stop()
            raise

    def _read_files(self) -> None:
        """Read what is read again when it changes: certificates, keys, lists of networks."""
        for endpoint in self.endpoints:
            if endpoint.listen.kind.tls and not endpoint.listen.kind.dialled:
                follow_identity(endpoint)
        warn_of_certificates([endpoint.listen for endpoint in self.endpoints])
        self.options.lists.follow(self)
        self.renewal.add(self.dials.source())
        if isinstance(self.hub, Renewable):
            for source in self.hub.sources():
                self.renewal.add(source)

    def renew(self) -> None:
        """Have everything be read again that comes from files, and ask what is to be dialled.

        What is wrong is told, and what was read before stays. Devices that are connected stay so.
        """
        self.renewal.ask()

    def close_doors(self) -> None:
        """Let no new device in, and dial none; those that are connected stay. Not ready any more."""
        self.room.closed = True
        self.dials.stop()
        for endpoint, server in self._servers:
            if not endpoint.listen.kind.datagrams:  # one socket has all of those; `room` refuses new ones
                server.stop()

    async def stop(self) -> None:
        """Stop accepting, end every connection, close."""
        self.renewal.stop()
        self.dials.stop()
        if self._sockets is None:  # else they outlive this process
            for listen, _, _ in self.addresses:
                release(listen)
        for _, server in self._servers:
            server.stop()
        # Those that are accepted already come in, so that they get a proper end.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.stopping = True
        for endpoint in self.endpoints:
            for link in tuple(endpoint.pending):
                link.give_up()
        self._gate.stop()
        until = self.runner.time() + self.options.stop_timeout
        stopping = asyncio.ensure_future(self.runner.stop())
        if not (await asyncio.wait([stopping], timeout=self.options.stop_timeout))[0]:
            self._give_up()
        await stopping
        if isinstance(self.hub, Networked):
            await self._stop_hub(self.hub, max(LEAST, until - self.runner.time()))
        for _, server in self._servers:
            await server.close()
        self._servers.clear()
        self.dials.close()

    def _give_up(self) -> None:
        """Cut the connections that are still there; tell what is lost with them."""
        left = self.runner.engine.connections()
        log.warning(
            "gateway ! gave up after %g s: %d connections had not ended, %d verbs waited for %s",
            self.options.stop_timeout,
            len(left),
            sum(one.commands_waiting for one in left if isinstance(one, Channel)),
            self.hub,
        )
        for one in left:
            one.link.abort()

    async def _stop_hub(self, hub: Networked, seconds: float) -> None:
        stopping = asyncio.ensure_future(hub.stop())
        if not (await asyncio.wait([stopping], timeout=seconds))[0]:
            log.warning("gateway ! gave up after %.1f s: %s did not end", seconds, self.hub)
            stopping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stopping

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

    def _login_failed(self, info: ConnectionInfo) -> None:
        self.login_failed(info.peername, ban=accountable(info))

    def login_failed(self, peer: Address, *, ban: bool) -> None:
        """Count a refused login; an address with too many of them is banned, if it may be."""
        self.runner.engine.count("logins_failed")
        if ban and self.guard.failed(peer.host, "failed_logins", self.runner.time()):
            self._ban(peer, "failed logins")

    def _watch_frames(self) -> None:
        faults = BadFrames(self._bad_frame)
        engine = self.runner.engine
        engine.observers = (*engine.observers, faults)
        engine.watch(faults)

    def _bad_frame(self, peer: Address) -> None:
        if self.guard.failed(peer.host, "bad_frames", self.runner.time()):
            self.runner.call_soon(self._ban, peer, "bad frames")

    def _ban(self, peer: Address, why: str) -> None:
        """Tell of a ban, and end what the address has open."""
        self.runner.engine.count("addresses_banned")
        seconds = self.options.addresses.ban
        log.warning("%s ! banned for %g s: too many %s within a minute", peer, seconds, why)
        for one in self.runner.engine.connections():
            info = info_of(one)
            if accountable(info) and self.guard.same(info.peername.host, peer.host):
                one.end("error", f"its address is banned: too many {why}")
        self.guests.end(partial(self.guard.same, peer.host))

    def _limit_files(self) -> None:
        """Take no more connections than the system allows files, but for a few that others need."""
        left = files_left()
        if left is None:
            return
        self.room.sockets = max(1, (left - SPARE_FILES) // self.options.files)
        if self.room.sockets < self.options.max_connections:
            words = "gateway ! the open-file limit allows %d connections, not %d; raise it, see ulimit -n"
            log.warning(words, self.room.sockets, self.options.max_connections)

    async def _serve(self, endpoint: Endpoint, sockets: list[socket.socket]) -> None:
        """Serve *endpoint* on *sockets*; close those that can't be served."""
        serve = endpoint.listen.kind.load()
        try:
            if endpoint.listen.kind.kind is None:
                self._servers.append((endpoint, await serve(endpoint, None)))
            while sockets:
                self._servers.append((endpoint, await serve(endpoint, sockets[0])))
                del sockets[0]
        except OSError as error:  # two that bound the same port learn it when they listen
            raise why_not(endpoint.listen, error) from None
        finally:
            for sock in sockets:
                sock.close()
