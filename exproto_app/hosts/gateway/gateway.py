"""Gateway: an app on listeners of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import attrs

from ...addresses import AddressLimits, Guard
from ...app import App
from ...asyncio_host.runner import Runner
from ...core import Channel, Engine, Hub
from ...errors import SetupError
from ...hub import MemoryHub
from ...models import Address
from ...ops.certificates import validity
from ...router import Router
from .acceptor import Acceptor
from .door import Door, HalfOpen
from .faults import BadFrames, info_of
from .listeners import DEFAULT_LISTEN, Listen
from .logins import LoginGate
from .room import Candidate, Room, crowded
from .sockets import bind, files_left, why_not
from .tcp import TcpLink
from .udp import UdpLink, UdpPort

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Gateway", "Options"]

log = logging.getLogger("exproto_app")


HANDSHAKES = 100
"""TLS handshakes that are under way at the same time: each takes some 100 KB of memory, and CPU."""

EXPIRES_SOON = 14
"""Days before a certificate's end from which on we warn."""

LEAST = 0.5
"""Seconds that the hub has to end, however long the connections took."""

SPARE_FILES = 32
"""Open files that are left for whoever looks (`/healthz`), the log, and the app itself."""


@attrs.frozen(kw_only=True)
class Options:
    """What a gateway allows.

    *max_connections* in all, in this process; *handshake_timeout*: seconds of a TLS handshake, and of the
    PROXY header before it; *addresses*: what each address may do; *files*: those that one connection opens,
    2 where each device has a connection to the broker; *stop_timeout*: seconds that connections, and then the
    hub, may take to end before they are cut.
    """

    max_connections: int = 10_000
    handshake_timeout: float = 10.0
    addresses: AddressLimits = attrs.field(factory=AddressLimits)
    files: int = 1
    stop_timeout: float = 5.0


@runtime_checkable
class Networked(Protocol):
    """A hub that has to be started and stopped: before the app starts, and after it has stopped."""

    async def start(self, engine: Engine, /) -> None:
        """Connect. Raises `UnavailableError` where that has to succeed and doesn't."""
        ...

    async def stop(self) -> None:
        """Disconnect."""
        ...


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
        self.guard = Guard(self.options.addresses)
        self.stopping = False
        self.runner: Runner
        parsed = [Listen.parse(listen) if isinstance(listen, str) else listen for listen in listeners]
        self._doors = [
            Door(self, number, listen, listen.routers(app)) for number, listen in enumerate(parsed)
        ]
        most = [listen.max_connections for listen in parsed]
        self.room = Room(self.options.max_connections, most, self._candidates)
        self._shaking: dict[HalfOpen, str] = {}
        self._sockets = sockets
        self._acceptors: list[Acceptor] = []
        self._ports: list[UdpPort] = []
        self.addresses: list[tuple[Listen, Sequence[Router[Any]], Address]] = []

    @property
    def open(self) -> int:
        """How many connections there are, half-open ones among them."""
        return self.room.total

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
        self._look_at_certificates()
        self._limit_files()
        self._gate = LoginGate(self.hub, self.login_failed)
        self.runner = Runner(self.app, self._gate.as_hub())
        if isinstance(self.hub, Networked):
            await self.hub.start(self.runner.engine)
        try:
            await self.runner.start()
        except BaseException:
            if isinstance(self.hub, Networked):
                await self.hub.stop()
            raise
        try:
            if self.options.addresses.bad_frames is not None:
                self._watch_frames()
            for number, door in enumerate(self._doors):
                sockets = self._sockets[number] if self._sockets is not None else bind(door.listen)
                names = [Address(*sock.getsockname()[:2]) for sock in sockets]
                await self._serve(door, list(sockets))
                self.addresses += [(door.listen, door.routers, name) for name in names]
        except BaseException:
            await self.stop()
            raise

    def renew(self) -> None:
        """Read certificates, keys and CAs again, for handshakes from now on.

        If one is wrong, those from before stay. Devices that are connected stay so.
        """
        try:
            contexts = [door.listen.tls() for door in self._doors]
        except SetupError as error:
            log.error("gateway ! not renewed: %s; the certificates from before stay", error)  # noqa: TRY400 - the sentence is enough
            return
        for door, context in zip(self._doors, contexts, strict=True):
            door.context = context
        log.info("gateway = certificates read again")
        self._look_at_certificates()

    def _look_at_certificates(self) -> None:
        """Warn of certificates that aren't good, or not for long."""
        now = datetime.now(timezone.utc)
        for listen in {door.listen.cert: door.listen for door in self._doors if door.context}.values():
            for each in validity(listen.cert or ""):
                trouble = each.trouble(now)
                if not trouble and each.days(now) < EXPIRES_SOON:
                    trouble = f"it expires in {each.days(now)} days"
                if trouble:
                    log.warning("gateway ! the certificate %s of %s: %s", listen.cert, listen, trouble)

    async def stop(self) -> None:
        """Stop accepting, end every connection, close."""
        for acceptor in self._acceptors:
            acceptor.close()
        for port in self._ports:
            port.stop_reading()
        # Those that are accepted already come in, so that they get a proper end.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.stopping = True
        for door in self._doors:
            for link in tuple(door.pending):
                link.give_up()
        self._gate.stop()
        until = self.runner.time() + self.options.stop_timeout
        stopping = asyncio.ensure_future(self.runner.stop())
        if not (await asyncio.wait([stopping], timeout=self.options.stop_timeout))[0]:
            self._give_up()
        await stopping
        if isinstance(self.hub, Networked):
            await self._stop_hub(self.hub, max(LEAST, until - self.runner.time()))
        for port in self._ports:
            port.close()
        self._acceptors.clear()
        self._ports.clear()

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

    def shaking(self, one: HalfOpen) -> None:
        """Count a TLS handshake that begins; beyond the limit another one is given up for it."""
        if len(self._shaking) >= HANDSHAKES:
            crowded(self._shaking.items()).vacate("too many handshakes are under way")
        self._shaking[one] = one.peer.host

    def shaken(self, one: HalfOpen) -> None:
        """Take note that it has ended."""
        self._shaking.pop(one, None)

    def login_failed(self, peer: Address, socktype: str) -> None:
        """Count a refused login; an address with too many of them is banned, but for UDP's, which lie."""
        self.runner.engine.count("logins_failed")
        if socktype != "udp" and self.guard.failed(peer.host, "failed_logins", self.runner.time()):
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
            if self.guard.same(info.peername.host, peer.host) and info.socktype != "udp":
                one.end("error", f"its address is banned: too many {why}")

    def _candidates(self) -> Iterator[Candidate]:
        """Yield the connections that have proved nothing yet."""
        for door in self._doors:
            for half in door.pending:
                yield Candidate("half-open", door.number, half.since, half.vacate)
        for one in self.runner.engine.connections():
            link: Any = one.link
            info = info_of(one)
            kind = "udp" if info.socktype == "udp" else "tcp"
            if not _proved(one, kind):
                vacate = partial(self._vacate, link, info.peername, kind)
                yield Candidate(kind, link.number, one.since, vacate)

    def _vacate(self, link: TcpLink | UdpLink, peer: Address, kind: str) -> bool:
        one: Any = link.channel
        if one is None or _proved(one, kind) or not link.vacate():
            return False
        engine = self.runner.engine
        engine.count("connections_evicted")
        engine.count(f"connections_evicted.{kind}")
        log.info("%s ! connection closed: it had proved nothing, and its place was needed", peer)
        return True

    def _limit_files(self) -> None:
        """Take no more connections than the system allows files, but for a few that others need."""
        left = files_left()
        if left is None:
            return
        self.room.sockets = max(1, (left - SPARE_FILES) // self.options.files)
        if self.room.sockets < self.options.max_connections:
            words = "gateway ! open files suffice for %d connections, not for %d; see ulimit -n"
            log.warning(words, self.room.sockets, self.options.max_connections)

    async def _serve(self, door: Door, sockets: list[socket.socket]) -> None:
        """Serve *door* on *sockets*; close those that can't be served."""
        loop = asyncio.get_running_loop()
        try:
            while sockets:
                if door.listen.scheme == "udp":
                    _, port = await loop.create_datagram_endpoint(lambda: UdpPort(door), sock=sockets[0])
                    self._ports.append(port)
                else:
                    acceptor = Acceptor(door, sockets[0])
                    acceptor.start()
                    self._acceptors.append(acceptor)
                del sockets[0]
        except OSError as error:  # two that bound the same port learn it when they listen
            raise why_not(door.listen, error) from None
        finally:
            for sock in sockets:
                sock.close()


def _proved(one: Any, kind: str) -> bool:
    """Tell whether a channel or sniffer may keep its place: it has registered, or said something on TCP."""
    if getattr(one, "client", None) is not None:
        return True
    return kind == "tcp" and getattr(one, "frames_received", 0) > 0
