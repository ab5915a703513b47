"""Accepting connections on TCP and TLS: what happens before a device's connection begins.

A connection is judged by its address and takes its place before it costs anything. A TLS handshake begins
when the device's first record is whole, so that one who only connects costs a socket; `Handshakes` says in
whose turn. Handshakes that fail are logged, a few and then counted, as `tls_handshakes_failed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from typing import TYPE_CHECKING, Any, Final, cast

from ...asyncio_host.accepting import Accepting
from ...models import Address
from .plain import SocketTransport, serves
from .proxied import HeaderLink
from .tcp import TcpLink, why_failed

if TYPE_CHECKING:
    from .endpoint import Endpoint

__all__ = ["Acceptor", "Arrival", "serve"]

log = logging.getLogger("exproto_app")

HANDSHAKE: Final = b"\x16"
RECORD: Final = 1_024
"""How a TLS record with a handshake begins, and how much of the first one is waited for."""

FIRST_LOOK: Final = 0.02
LAST_LOOK: Final = 1.0
"""Seconds between two looks whether it is there."""


async def serve(endpoint: Endpoint, sock: socket.socket | None) -> Acceptor:
    """Serve *endpoint* on *sock*, which is bound already. Raises `OSError`."""
    assert sock is not None  # noqa: S101 - its scheme has sockets
    acceptor = Acceptor(endpoint, sock)
    acceptor.start()
    return acceptor


class Acceptor:
    """Accepts what comes to *sock*, bound to the address of *endpoint*."""

    def __init__(self, endpoint: Endpoint, sock: socket.socket) -> None:
        self.endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._plain = serves(self._loop)
        scheduler = endpoint.engine.scheduler
        who = f"gateway ! {endpoint.listen}"
        self._accepting = Accepting(sock, self._take, endpoint.engine.count, who, lambda: scheduler.crowded)

    def start(self) -> None:
        """Listen. Raises `OSError`."""
        self._accepting.start()

    async def close(self) -> None:
        """Do nothing: connections have sockets of their own."""

    def stop(self) -> None:
        """Accept no more."""
        self._accepting.close()

    def _take(self, sock: socket.socket, address: Any) -> None:
        endpoint = self.endpoint
        peer = Address(*address[:2]) if address and isinstance(address, tuple) else _process(endpoint, sock)
        if endpoint.listen.proxy_protocol:  # the address to be judged is in the header
            if endpoint.take_place(peer):
                self._loop.create_task(self._begin(HeaderLink(endpoint, peer), sock))
            else:
                sock.close()
        elif not endpoint.admit(peer):
            sock.close()
        elif endpoint.context is not None:
            Arrival(endpoint, sock, peer).wait()
        elif self._plain:
            self._loop.call_soon(SocketTransport(self._loop, sock, TcpLink(endpoint, peer)).start)
        else:
            self._loop.create_task(self._begin(TcpLink(endpoint, peer), sock))

    async def _begin(self, link: HeaderLink | TcpLink, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: link, sock)
        except OSError as error:  # it has gone already
            log.debug("%s ! connection lost before it began: %s", link.peer, error)
            sock.close()
            link.never_began()


def _process(endpoint: Endpoint, sock: socket.socket) -> Address:
    """Return whom a Unix socket is connected to: its path, and the other process's number, 0 if unknown."""
    number = 0
    option = getattr(socket, "SO_PEERCRED", None)  # Linux has it
    if option is not None:
        with contextlib.suppress(OSError):
            number = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, option, 12))[0]
    return Address(endpoint.listen.path, number)


class Arrival:
    """A connection to a TLS listener whose handshake is to come, or under way."""

    def __init__(self, endpoint: Endpoint, sock: socket.socket, peer: Address) -> None:
        self.peer = peer
        self._endpoint = endpoint
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self.since = self._loop.time()
        self._late: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._seen = False
        self._pause = FIRST_LOOK / 2
        self._handed_over = False  # the socket, to the event loop, which closes it

    @property
    def host(self) -> str:
        """The address that it comes from."""
        return self.peer.host

    def wait(self) -> None:
        """Wait for the first byte."""
        endpoint = self._endpoint
        endpoint.pending[self] = None
        seconds = endpoint.gateway.options.handshake_timeout
        self._late = self._loop.call_later(seconds, self._too_late, seconds)
        try:
            self._loop.add_reader(self._sock.fileno(), self._ready)
        except NotImplementedError:  # Windows' usual loop has none
            self._shake()

    def vacate(self, why: str = "its place was needed") -> bool:
        """Give it up; return whether it was still half-open."""
        if self not in self._endpoint.pending:
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
            self._loop.remove_reader(self._sock.fileno())
            self._look()
        elif self._leave():  # a load balancer looks whether somebody listens, again and again
            self._close()
            self._endpoint.probed(self.peer)

    def _look(self) -> None:
        """Begin the handshake when its first record is whole: until then it costs no memory of TLS."""
        self._seen = True
        if self not in self._endpoint.pending:
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
        self._endpoint.gateway.handshakes.wait(self, self._begin)

    def _begin(self) -> None:
        if self._late is not None:
            self._late.cancel()
        self._task = self._loop.create_task(self._handshake())

    async def _handshake(self) -> None:
        endpoint = self._endpoint
        link = SecureLink(endpoint, self.peer, self)
        seconds = endpoint.gateway.options.handshake_timeout
        self._handed_over = True
        try:
            await self._loop.connect_accepted_socket(
                lambda: link, self._sock, ssl=endpoint.context, ssl_handshake_timeout=seconds
            )
        except OSError as error:  # ssl.SSLError is one
            self._fail(why_failed(error, seconds))
        finally:
            self._task = None  # what it has raised holds all of this, and it holds what it has raised

    def begun(self) -> bool:
        """Take note that the handshake has succeeded; return whether the connection still has its place."""
        return self._endpoint.settled(self)

    def _fail(self, why: str) -> None:
        if self._leave():
            self._close()
            self._endpoint.unshaken(self.peer, why)

    def _leave(self) -> bool:
        """Give the place back, once; return whether it was still ours."""
        if not self._endpoint.settled(self):
            return False
        if self._late is not None:
            self._late.cancel()
        self._endpoint.leave(self.peer)
        return True

    def _close(self) -> None:
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        if not self._handed_over:
            with contextlib.suppress(NotImplementedError):
                self._loop.remove_reader(self._sock.fileno())
            self._sock.close()


class SecureLink(TcpLink):
    """The connection of an *arrival* whose handshake succeeds."""

    __slots__ = ("_arrival",)

    def __init__(self, endpoint: Endpoint, peer: Address, arrival: Arrival) -> None:
        super().__init__(endpoint, peer)
        self._arrival: Arrival | None = arrival

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        arrival, self._arrival = self._arrival, None
        if arrival is not None and arrival.begun():
            super().connection_made(transport)
        else:  # it was given up in the moment in which it succeeded
            cast("asyncio.Transport", transport).abort()
