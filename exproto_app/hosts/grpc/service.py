"""Service: the gRPC service that brokers call: its life, its listening sockets, its brokers."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from ...app import App
from ...asyncio_host.accepting import bind
from ...asyncio_host.renewal import Renewal
from ...asyncio_host.runner import Runner
from ...errors import not_opened
from ...models import Address
from ..http2.frames import NO_ERROR
from .acceptor import Acceptor
from .adapter import AdapterHub
from .broker import AdapterMap, Broker
from .caller import Caller, Take
from .callers import Callers
from .events import Events
from .protocols import Protocols
from .tls import Tls

if TYPE_CHECKING:
    import ssl

    from typing_extensions import Self

__all__ = ["Service"]

log = logging.getLogger("exproto_app")

MOST: Final = 100_000
"""Connections that brokers may announce: each takes some kilobytes, and whoever calls may announce any."""

SILENCE: Final = 600.0
"""Seconds without any event after which the broker is asked whether the connection still lives."""

SWEEP: Final = 30.0
"""Seconds between two looks for such connections: one timer for all of them."""

MUTE: Final = 2.0
"""Seconds without an answer after which an adapter is given up when the service stops."""

GOODBYE: Final = 2.0
"""Seconds that calls in flight may take when the service stops."""

FAREWELL: Final = 0.5
"""Seconds that the ends of connections may take after that."""

AT_ONCE: Final = 200
"""Connections that are given up in one round of the loop."""

SILENT_START: Final = 30.0
"""Seconds after which it is told that no broker has called yet, or that its adapter has answered nothing."""

SAID: Final = 1_000
"""Different things that are said once."""


class Service:
    """*app* as the service of brokers; *adapters* maps them to their adapters.

    *ports* says which protocol a listener of the broker's speaks, or which several, `gt06,jt808`, by its
    port; without it the app has to have one protocol only. What comes by TLS to a port of *datagrams* is
    DTLS, which EMQX doesn't tell apart. *sockets* are bound to *bind* already, by a process that outlives
    this one. What brokers announce beyond *max_connections* is closed. Use it as an async context manager, or
    `start` and `stop` it. Raises `SetupError` for what doesn't fit the app and for an address that can't be
    bound.
    """

    def __init__(
        self,
        app: App[Any, Any],
        bind: Address,
        adapters: AdapterMap,
        *,
        ports: Mapping[int, str] | None = None,
        datagrams: Collection[int] = (),
        tls: Tls | None = None,
        sockets: Sequence[socket.socket] | None = None,
        max_connections: int = MOST,
    ) -> None:
        self.app = app
        self._most = max_connections
        self.adapters = adapters
        self.address = bind
        self.stopping = False
        self.protocols = Protocols(app, ports or {}, datagrams)
        self.runner: Runner
        self.callers: Callers
        self.methods: Mapping[bytes, tuple[Take, bool]]
        self._tls = tls
        self._renewal = Renewal()
        self._sockets = sockets
        self._acceptors: list[Acceptor] = []
        self._sweeping: asyncio.TimerHandle | None = None
        self._looking: asyncio.TimerHandle | None = None
        self.said: set[object] = set()
        self._loop: asyncio.AbstractEventLoop
        self._time: Callable[[], float]

    @property
    def serving(self) -> bool:
        """Whether brokers may call."""
        return bool(self._acceptors) and not self.stopping

    @property
    def listening(self) -> list[tuple[str, str]]:
        """What brokers may call for: each protocol's name, and where, by the broker's listener."""
        return self.protocols.listening(f"gRPC on {self.address}")

    @property
    def renewable(self) -> bool:
        """Whether `renew` has anything to read."""
        return self._tls is not None

    async def start(self) -> None:
        """Start the app, then listen."""
        context = None
        if self._tls is not None:
            self._renewal.add(self._tls.source(self._use))
            context = self._tls.context()
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        self.callers = Callers()
        self.methods = Events(self).methods()
        self.runner = Runner(self.app, AdapterHub(self.adapters))
        await self.runner.start()
        try:
            self._listen(context)
        except OSError as error:
            await self._not_started()
            raise not_opened(self.address, error, "stop it or choose another with --bind") from None
        except BaseException:
            await self._not_started()
            raise
        self.address = Address(*self._acceptors[0].sock.getsockname()[:2])
        self._sweeping = self._loop.call_later(SWEEP, self._sweep)
        self._looking = self._loop.call_later(SILENT_START, self._look_for_brokers)
        self._renewal.start()

    def renew(self) -> None:
        """Have certificate, key and CA be read again, for handshakes from now on.

        If one is wrong, those from before stay. Brokers that are connected stay so.
        """
        self._renewal.ask()

    def _use(self, context: ssl.SSLContext) -> None:
        for acceptor in self._acceptors:
            acceptor.context = context

    async def _not_started(self) -> None:
        await self.runner.stop()
        for acceptor in self._acceptors:
            await acceptor.close()
        self._acceptors.clear()

    def _listen(self, context: ssl.SSLContext | None) -> None:
        """Accept connections. Raises `OSError`."""
        for sock in self._sockets if self._sockets is not None else bind(self.address):
            acceptor = Acceptor(sock, context, self._make_caller, self.count)
            self._acceptors.append(acceptor)
            acceptor.start()

    def _make_caller(self) -> Caller:
        return Caller(self)

    async def stop(self) -> None:
        """Close every device, answer what is in flight, and let go of the brokers; bounded in time.

        An adapter that answers nothing meanwhile is given up, with what it was called for.
        """
        self.stopping = True
        self._renewal.stop()
        for timer in (self._sweeping, self._looking):
            if timer is not None:
                timer.cancel()
        # Brokers may still connect meanwhile: they have to tell which connections have ended.
        await self._stop_runner()
        for acceptor in self._acceptors:
            await acceptor.close()
        deadline = self._time() + GOODBYE
        await self._until(lambda: not any(caller.waits for caller in self.callers), deadline)
        for caller in self.callers:
            # Not before the last answer: EMQX's gun forgets at a GOAWAY what it waits for.
            caller.end_streams()
            caller.protocol.end(NO_ERROR)
        for broker in self.adapters:
            await broker.close()
        clients = [broker.client for broker in self.adapters]
        deadline = self._time() + FAREWELL
        await self._until(lambda: not self.callers and all(client.closed for client in clients), deadline)
        for caller in self.callers:
            caller.protocol.abort()
        for client in clients:
            client.abort()
        deadline = self._time() + FAREWELL
        await self._until(lambda: not self.callers and all(client.closed for client in clients), deadline)

    async def _stop_runner(self) -> None:
        stopping = asyncio.ensure_future(self.runner.stop())
        while not (await asyncio.wait([stopping], timeout=MUTE / 8))[0]:
            for broker in self.adapters:
                if broker.client.mute(MUTE):
                    await self._give_up(broker)
        await stopping

    async def _give_up(self, broker: Broker) -> None:
        """Wait no longer for an adapter; tell what is lost with it."""
        client, links = broker.client, tuple(broker.links.values())
        text = (
            "adapter ! %s was given up, it answered nothing within %g s of the stop: "
            "%d connections may stay open at the broker, %d calls were not answered"
        )
        log.warning(text, client.name, MUTE, len(links), client.unanswered)
        await broker.close()
        for number, link in enumerate(links, 1):
            link.gone("the broker's adapter was given up")
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)

    async def _until(self, reached: Callable[[], bool], deadline: float) -> None:
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
        if self.first_time(what):
            log.warning(text, *arguments)

    def first_time(self, what: object) -> bool:
        """Return whether *what* happens for the first time; never where too much else has."""
        if what in self.said or len(self.said) >= SAID:
            return False
        self.said.add(what)
        return True

    def is_full(self) -> bool:
        """Return whether there is no room for one more connection, logged and counted."""
        engine = self.runner.engine
        if engine.open < self._most:
            return False
        engine.count("connections_refused")
        engine.count("connections_refused.service")
        log.warning("grpc ! connection refused: there are %d, limit is %d", engine.open, self._most)
        return True

    def count(self, name: str) -> None:
        """Count what isn't the engine's."""
        self.runner.engine.count(name)

    # --- silence

    def _look_for_brokers(self) -> None:
        """Log what should have come by now and hasn't: a broker, or its adapter's first answer."""
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
