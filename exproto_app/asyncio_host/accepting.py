"""Accepting: the connections that come to a listening socket, for every listener alike.

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
from typing import Any, Final

from ..models import Address

__all__ = ["Accepting", "bind"]

log = logging.getLogger("exproto_app")

BACKLOG: Final = 4096
"""Connections that the kernel may keep for us while we are busy; its own limit counts too."""

AT_ONCE: Final = 8
"""Connections that are accepted in one round of the loop; others have their turn then.

Each takes half a millisecond until it has said something, in this round and the next.
"""

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


class Accepting:
    """Gives each connection that comes to *sock*, which is bound, to *take*, with the address of the peer.

    *count* counts by name; *who* is what the log says of the listener. While it is *crowded* nobody is
    accepted: they wait in the kernel.
    """

    def __init__(
        self,
        sock: socket.socket,
        take: Callable[[socket.socket, Any], object],
        count: Callable[[str], object],
        who: str,
        crowded: Callable[[], bool] = lambda: False,
    ) -> None:
        self.sock = sock
        self._crowded = crowded
        self._take = take
        self._count = count
        self._who = who
        self._loop = asyncio.get_running_loop()
        self._paused: asyncio.TimerHandle | None = None
        self._news = -QUIET
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen. Raises `OSError`."""
        self.sock.setblocking(False)
        self.sock.listen(BACKLOG)
        try:
            self._loop.add_reader(self.sock, self._ready)
        except NotImplementedError:  # Windows' usual loop has none
            self._task = self._loop.create_task(self._accept_forever())

    def close(self) -> None:
        """Accept no more; a second time changes nothing."""
        if self.sock.fileno() < 0:
            return
        if self._paused is not None:
            self._paused.cancel()
        if self._task is not None:
            self._task.cancel()
        else:
            self._loop.remove_reader(self.sock)
        self.sock.close()

    async def _accept_forever(self) -> None:
        while True:
            try:
                self._take(*await self._loop.sock_accept(self.sock))
            except OSError as error:  # noqa: PERF203 - it goes on
                if error.errno not in GONE:
                    self._tell(error)
                    await asyncio.sleep(PAUSE)

    def _ready(self) -> None:
        for _ in range(0 if self._crowded() else AT_ONCE):
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
            sock.setblocking(False)
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
            words = "%s accepts no connections until others have ended: %s; see ulimit -n"
            log.warning(words, self._who, (error.strerror or str(error)).lower())
        self._news = now
