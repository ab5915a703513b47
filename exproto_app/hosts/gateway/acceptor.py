"""Accepting connections on TCP and TLS: what happens before a device's connection begins.

A connection is judged by its address and takes its place before it costs anything. A TLS handshake begins
with the device's first byte, so that one who only connects costs a socket; as many as `HANDSHAKES` are under
way at once, beyond them the oldest of the address with the most of them is given up. Handshakes that fail are
logged, a few and then counted, as `tls_handshakes_failed`.

Where the system runs out of sockets, accepting pauses and goes on by itself, on every event loop alike:
asyncio's own server would try again for each connection of its backlog and log each time, uvloop's would say
nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from typing import TYPE_CHECKING, Any, Final, cast

from ...models import Address
from .proxied import HeaderLink
from .tcp import TcpLink, why_failed

if TYPE_CHECKING:
    from .door import Door

__all__ = ["Acceptor", "Arrival"]

log = logging.getLogger("exproto_app")

BACKLOG: Final = 4096
"""Connections that the kernel may keep for us while we are busy; its own limit counts too."""

AT_ONCE: Final = 32
"""Connections that are accepted in one round of the loop; others' devices have their turn then."""

PAUSE: Final = 0.5
"""Seconds until accepting is tried again after the system had no more sockets."""

QUIET: Final = 10.0
"""Seconds without such a pause after which the next one is news."""

HANDSHAKE: Final = b"\x16"
RECORD: Final = 1_024
"""How a TLS record with a handshake begins, and how much of the first one is waited for."""

FIRST_LOOK: Final = 0.02
LAST_LOOK: Final = 1.0
"""Seconds between two looks whether it is there."""

GONE: Final = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EHOSTUNREACH, errno.EPERM})
"""Errors of `accept` that are those of the connection (accept(2))."""


class Acceptor:
    """Accepts what comes to *sock*, bound to the address of *door*."""

    def __init__(self, door: Door, sock: socket.socket) -> None:
        self.door = door
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._paused: asyncio.TimerHandle | None = None
        self._news = -QUIET
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen. Raises `OSError`."""
        self._sock.setblocking(False)
        self._sock.listen(BACKLOG)
        try:
            self._loop.add_reader(self._sock, self._ready)
        except NotImplementedError:  # Windows' usual loop has none
            self._task = self._loop.create_task(self._accept_forever())

    def close(self) -> None:
        """Accept no more."""
        if self._paused is not None:
            self._paused.cancel()
        if self._task is not None:
            self._task.cancel()
        else:
            self._loop.remove_reader(self._sock)
        self._sock.close()

    async def _accept_forever(self) -> None:
        while True:
            try:
                self._take(*await self._loop.sock_accept(self._sock))
            except OSError as error:  # noqa: PERF203 - it goes on
                if error.errno not in GONE:
                    self._tell(error)
                    await asyncio.sleep(PAUSE)

    def _ready(self) -> None:
        for _ in range(AT_ONCE):
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in GONE:
                    continue
                self._loop.remove_reader(self._sock)
                self._tell(error)
                self._paused = self._loop.call_later(PAUSE, self._again)
                return
            sock.setblocking(False)
            self._take(sock, address)

    def _again(self) -> None:
        self._paused = None
        self._loop.add_reader(self._sock, self._ready)
        self._ready()

    def _tell(self, error: OSError) -> None:
        """Count a pause, and log the first of a row of them."""
        self.door.engine.count("accepts_paused")
        now = self._loop.time()
        if now - self._news >= QUIET:
            words = "gateway ! %s accepts nothing until others have gone: %s; see ulimit -n"
            log.warning(words, self.door.listen, (error.strerror or str(error)).lower())
        self._news = now

    def _take(self, sock: socket.socket, address: Any) -> None:
        door = self.door
        peer = Address(*address[:2])
        if door.listen.proxy_protocol:  # the address to be judged is in the header
            if door.take_place(peer):
                self._loop.create_task(self._begin(HeaderLink(door, peer), sock))
            else:
                sock.close()
        elif not door.admit(peer):
            sock.close()
        elif door.context is None:
            self._loop.create_task(self._begin(TcpLink(door, peer), sock))
        else:
            Arrival(door, sock, peer).wait()

    async def _begin(self, link: HeaderLink | TcpLink, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: link, sock)
        except OSError as error:  # it has gone already
            log.debug("%s ! connection lost before it began: %s", link.peer, error)
            sock.close()
            link.never_began()


class Arrival:
    """A connection to a TLS listener whose handshake is to come, or under way."""

    def __init__(self, door: Door, sock: socket.socket, peer: Address) -> None:
        self.peer = peer
        self._door = door
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self.since = self._loop.time()
        self._late: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._seen = False
        self._pause = FIRST_LOOK / 2
        self._handed_over = False  # the socket, to the event loop, which closes it

    def wait(self) -> None:
        """Wait for the first byte."""
        door = self._door
        door.pending[self] = None
        seconds = door.gateway.options.handshake_timeout
        self._late = self._loop.call_later(seconds, self._too_late, seconds)
        try:
            self._loop.add_reader(self._sock, self._ready)
        except NotImplementedError:  # Windows' usual loop has none
            self._shake()

    def vacate(self, why: str = "its place was needed") -> bool:
        """Give it up; tell whether it was still half-open."""
        if self not in self._door.pending:
            return False
        self._fail(why)
        return True

    def give_up(self) -> None:
        """Close it, because the gateway stops."""
        if self._leave():
            self._close()

    def _ready(self) -> None:
        try:
            first = self._sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._fail(str(error))
            return
        if first:
            self._loop.remove_reader(self._sock)
            self._look()
        elif self._leave():  # a load balancer looks whether somebody listens, again and again
            self._close()
            self._door.probed(self.peer)

    def _look(self) -> None:
        """Begin the handshake when its first record is whole: until then it costs no memory of TLS."""
        self._seen = True
        if self not in self._door.pending:
            return
        try:
            head = self._sock.recv(RECORD, socket.MSG_PEEK)
        except OSError as error:
            self._fail(str(error))
            return
        if head[:1] != HANDSHAKE or len(head) >= min(
            RECORD, 5 + int.from_bytes(head[3:5].ljust(2, b"\xff"), "big")
        ):
            self._shake()
            return
        # The socket stays readable, so it is looked at now and then.
        self._pause = min(LAST_LOOK, 2 * self._pause)
        self._loop.call_later(self._pause, self._look)

    def _too_late(self, seconds: float) -> None:
        what = "it wasn't complete" if self._seen else "nothing came"
        self._fail(f"{what} within {seconds:g} s")

    def _shake(self) -> None:
        if self._late is not None:
            self._late.cancel()
        self._door.gateway.shaking(self)
        self._task = self._loop.create_task(self._handshake())

    async def _handshake(self) -> None:
        door = self._door
        link = SecureLink(door, self.peer, self)
        seconds = door.gateway.options.handshake_timeout
        self._handed_over = True
        try:
            await self._loop.connect_accepted_socket(
                lambda: link, self._sock, ssl=door.context, ssl_handshake_timeout=seconds
            )
        except OSError as error:  # ssl.SSLError is one
            self._fail(why_failed(error, seconds))

    def begun(self) -> bool:
        """Take note that the handshake has succeeded; tell whether the connection still has its place."""
        self._door.gateway.shaken(self)
        return self._door.pending.pop(self, self) is not self

    def _fail(self, why: str) -> None:
        if self._leave():
            self._close()
            self._door.unshaken(self.peer, why)

    def _leave(self) -> bool:
        """Give the place back, once; tell whether it was still ours."""
        if self._door.pending.pop(self, self) is self:
            return False
        if self._late is not None:
            self._late.cancel()
        self._door.gateway.shaken(self)
        self._door.leave(self.peer)
        return True

    def _close(self) -> None:
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        if not self._handed_over:
            with contextlib.suppress(NotImplementedError):
                self._loop.remove_reader(self._sock)
            self._sock.close()


class SecureLink(TcpLink):
    """The connection of an *arrival* whose handshake succeeds."""

    __slots__ = ("_arrival",)

    def __init__(self, door: Door, peer: Address, arrival: Arrival) -> None:
        super().__init__(door, peer)
        self._arrival: Arrival | None = arrival

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        arrival, self._arrival = self._arrival, None
        if arrival is not None and arrival.begun():
            super().connection_made(transport)
        else:  # it was given up in the moment in which it succeeded
            cast("asyncio.Transport", transport).abort()
