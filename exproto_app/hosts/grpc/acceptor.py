"""Acceptor: accepts the connections of callers.

Where the system runs out of files, accepting pauses and goes on by itself, on every event loop alike:
asyncio's own server would try again for each connection of its backlog and log each time, uvloop's would say
nothing.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ...models import Address
from .caller import Caller

if TYPE_CHECKING:
    import ssl

__all__ = ["Acceptor", "bind"]

log = logging.getLogger("exproto_app")

BACKLOG: Final = 1_024
"""Connections that the kernel may keep for us while we are busy; its own limit counts too."""

AT_ONCE: Final = 32
"""Connections that are accepted in one round of the loop; others have their turn then."""

HANDSHAKES: Final = 256
"""TLS handshakes that are under way at once; then the oldest is given up."""

HANDSHAKE_WAIT: Final = 10.0
"""Seconds that a TLS handshake may take."""

PAUSE: Final = 0.5
"""Seconds until accepting is tried again after the system had no more files."""

QUIET: Final = 10.0
"""Seconds without such a pause after which the next one is news."""

GONE: Final = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EHOSTUNREACH, errno.EPERM})
"""Errors of `accept` that are those of the connection (accept(2))."""


def bind(address: Address) -> list[socket.socket]:
    """Return a socket for each address that *address* means. Raises `OSError`."""
    infos = socket.getaddrinfo(
        address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    try:
        for family, where in dict.fromkeys((int(info[0]), info[4]) for info in infos):
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError:
                if len(infos) > 1:  # a system without IPv6
                    continue
                raise
            sockets.append(sock)
            if sys.platform != "win32":  # there it would steal a port in use
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(where)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


class Acceptor:
    """Accepts what comes to *sock*; *make* makes a caller of it, *count* counts by name."""

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext | None,
        make: Callable[[], Caller],
        count: Callable[[str], object],
    ) -> None:
        self.sock = sock
        self._context = context
        self._make = make
        self._count = count
        self._loop = asyncio.get_running_loop()
        self._paused: asyncio.TimerHandle | None = None
        self._news = -QUIET
        self._forever: asyncio.Task[None] | None = None
        self._beginning: dict[asyncio.Task[None], None] = {}

    def start(self) -> None:
        """Listen. Raises `OSError`."""
        self.sock.setblocking(False)
        self.sock.listen(BACKLOG)
        try:
            self._loop.add_reader(self.sock, self._ready)
        except NotImplementedError:  # Windows' usual loop has none
            self._forever = self._loop.create_task(self._accept_forever())

    async def close(self) -> None:
        """Accept no more; what is half accepted is given up."""
        if self._paused is not None:
            self._paused.cancel()
        if self._forever is not None:
            self._forever.cancel()
        else:
            self._loop.remove_reader(self.sock)
        self.sock.close()
        if not self._beginning:
            return
        # On plain TCP this is a matter of a few rounds of the loop; a handshake may take longer.
        _, late = await asyncio.wait(self._beginning, timeout=0.0 if self._context is not None else 1.0)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _accept_forever(self) -> None:
        while True:
            try:
                self._take(*await self._loop.sock_accept(self.sock))
            except OSError as error:  # noqa: PERF203 - it goes on
                if error.errno not in GONE:
                    self._tell(error)
                    await asyncio.sleep(PAUSE)

    def _ready(self) -> None:
        for _ in range(AT_ONCE):
            try:
                sock, address = self.sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in GONE:
                    continue
                self._loop.remove_reader(self.sock)
                self._tell(error)
                self._paused = self._loop.call_later(PAUSE, self._again)
                return
            self._take(sock, address)

    def _again(self) -> None:
        self._paused = None
        self._loop.add_reader(self.sock, self._ready)
        self._ready()

    def _tell(self, error: OSError) -> None:
        """Count a pause, and log the first of a row of them."""
        self._count("accepts_paused")
        now = self._loop.time()
        if now - self._news >= QUIET:
            text = "grpc ! nobody new is accepted until others have gone: %s; see ulimit -n"
            log.warning(text, (error.strerror or str(error)).lower())
        self._news = now

    def _take(self, sock: socket.socket, address: tuple[str, int]) -> None:
        sock.setblocking(False)
        if self._context is not None and len(self._beginning) >= HANDSHAKES:
            self._count("callers_over_limit")
            text = "grpc ! %d TLS handshakes are under way, limit is %d; the oldest is given up"
            log.warning(text, len(self._beginning), HANDSHAKES)
            oldest = next(iter(self._beginning))
            del self._beginning[oldest]
            oldest.cancel()
        task = self._loop.create_task(self._begin(sock, Address(*address[:2])))
        self._beginning[task] = None
        task.add_done_callback(lambda task: self._beginning.pop(task, None))

    async def _begin(self, sock: socket.socket, peer: Address) -> None:
        caller = self._make()
        options = {} if self._context is None else {"ssl_handshake_timeout": HANDSHAKE_WAIT}
        try:
            await self._loop.connect_accepted_socket(
                lambda: caller.protocol, sock, ssl=self._context, **options
            )
        except OSError as error:  # it has gone already, or speaks no TLS, which is told elsewhere
            log.debug("grpc = a connection of %s ended before it began: %s", peer, error)
            sock.close()
            caller.protocol.abort()
