"""Devices on DTLS (RFC 6347): UDP whose datagrams are encrypted, by pyOpenSSL.

The first datagram of a handshake, a ClientHello, is answered with a cookie, and nothing is kept. Who sends it
back has the address that it sends from: it is judged by that, takes its place, and has a handshake, which is
bounded as those of TLS are. From then on it is a device as on UDP. A device that has lost its session, for
example in a restart, may begin another one from the same address: its cookie ends the old one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from ...asyncio_host.datagrams import Peer
from ...models import Address, Reason
from .dtls_context import library, peer_certificate, words_of
from .udp import UdpLink, UdpPort

if TYPE_CHECKING:
    from .endpoint import Endpoint

__all__ = ["DtlsPort", "serve"]

log = logging.getLogger("exproto_app")

HEADER: Final = 13
"""Bytes before what is in a record; the last two of them are its length (RFC 6347, 4.1)."""

RECORD: Final = 16_384
"""Bytes that a record carries at most."""

LONGEST_HELLO: Final = 4_096
MOST: Final = 65_536
"""Bytes of a first datagram, and of all that a device sends in a handshake."""


async def serve(endpoint: Endpoint, sock: socket.socket | None) -> DtlsPort:
    """Serve *endpoint* on *sock*, which is bound already. Raises `OSError`."""
    assert sock is not None  # noqa: S101 - its scheme has sockets
    port = DtlsPort(endpoint)
    await port.open(sock)
    return port


class DtlsPort(UdpPort):
    """One DTLS listener."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self.errors = library(endpoint.listen)
        self._listening: Any = None  # the next session; it has no device yet
        self._context: Any = None

    def datagram_received(self, data: bytes, addr: Peer) -> None:
        session: Handshake | DtlsLink | None = self._links.get(addr)
        random = random_of(data)
        if random and (session is None or random != session.random):
            self._hello(data, random, addr)
        elif session is not None:
            session.received(data)
        else:  # its session has ended, or was another process's
            self.drop("no_session")

    def flush(self, tls: Any, addr: Peer) -> None:
        """Send to *addr* what *tls* has made."""
        try:
            data = tls.bio_read(MOST)
        except self.errors.WantReadError:
            return
        for datagram in datagrams(data, self.line.mtu):
            self.send(datagram, addr)

    def established(self, link: DtlsLink) -> None:
        """Begin the connection of a device whose handshake has succeeded."""
        self.start_link(link, peer_certificate(link.tls))
        link.read()  # it may have come with the end of the handshake

    def _hello(self, data: bytes, random: bytes, addr: Peer) -> None:
        """Answer a ClientHello with a cookie; begin a handshake if it has one."""
        if self.endpoint.engine.scheduler.crowded:  # it will ask again
            self.drop("busy")
            return
        tls = self._next_session()
        tls.set_app_data(repr(addr).encode())
        try:
            tls.bio_write(data)
            tls.DTLSv1_listen()
        except self.errors.WantReadError:
            self._forget_errors(tls)
            self.flush(tls, addr)
            return
        except self.errors.Error as error:
            self._listening = None
            log.debug("%s ! no ClientHello: %s", Address(*addr[:2]), words_of(error))
            self.drop("bad_hello")
            return
        self._listening = None
        older: Handshake | DtlsLink | None = self._links.get(addr)
        if older is not None:
            older.replaced()
        if self.endpoint.admit(Address(*addr[:2]), datagrams=True, proved=True):
            handshake = self._links[addr] = Handshake(self, addr, tls, random)
            handshake.begin()
        else:
            self.drop("refused")

    def _forget_errors(self, tls: Any) -> None:
        """Empty OpenSSL's queue of errors, where `DTLSv1_listen` leaves some; the next session would fail."""
        with contextlib.suppress(self.errors.Error):
            tls.bio_write(b"")

    def _next_session(self) -> Any:
        """Return what the next ClientHello is shown to; it keeps nothing of those without a cookie."""
        if self._listening is None or self._context is not self.endpoint.context:
            self._context = self.endpoint.context
            self._listening = self.errors.Connection(self._context)
            self._listening.set_ciphertext_mtu(self.line.mtu)
            self._listening.set_accept_state()
        return self._listening


def random_of(data: bytes) -> bytes:
    """Return the random bytes of a ClientHello that is alone in its datagram; else nothing."""
    if len(data) < 61 or len(data) > LONGEST_HELLO or data[0] != 22 or data[1] != 0xFE or data[13] != 1:
        return b""
    if data[3:5] != b"\0\0" or int.from_bytes(data[11:13], "big") != len(data) - HEADER or any(data[19:22]):
        return b""
    return data[27:59]


def datagrams(data: bytes, mtu: int) -> Iterator[bytes]:
    """Yield the records in *data*, together as far as *mtu* bytes hold them."""
    begin = end = 0
    while end < len(data):
        size = HEADER + int.from_bytes(data[end + HEADER - 2 : end + HEADER], "big")
        if end > begin and end + size - begin > mtu:
            yield data[begin:end]
            begin = end
        end += size
    yield data[begin:]


class Handshake:
    """The handshake of a device whose address is proved; it counts as half-open."""

    def __init__(self, port: DtlsPort, addr: Peer, tls: Any, random: bytes) -> None:
        self.peer = Address(*addr[:2])
        self.random = random
        self.addr = addr
        self._port = port
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self.since = self._loop.time()
        self._taken = 0
        self._again: asyncio.TimerHandle | None = None
        self._late: asyncio.TimerHandle

    @property
    def host(self) -> str:
        """The address that it comes from."""
        return self.peer.host

    def begin(self) -> None:
        """Answer the ClientHello that had a cookie."""
        endpoint = self._port.endpoint
        endpoint.pending[self] = None
        endpoint.gateway.handshakes.enter(self)
        seconds = endpoint.gateway.options.handshake_timeout
        self._late = self._loop.call_later(seconds, self._fail, f"it wasn't complete within {seconds:g} s")
        self._step()

    def received(self, data: bytes) -> None:
        """Take a datagram."""
        self._taken += len(data)
        if self._taken > MOST:
            self._fail(f"it has sent more than {MOST} bytes")
        elif data:
            self._tls.bio_write(data)
            self._step()

    def replaced(self) -> None:
        """Give it up, because the device has begun another one."""
        self._leave()

    def lost(self, detail: str) -> None:
        """Give it up, because the socket has failed."""
        self._fail(detail)

    def vacate(self, why: str = "its place was needed") -> bool:
        """Give it up; return whether it was still half-open."""
        if self not in self._port.endpoint.pending:
            return False
        self._fail(why)
        return True

    def give_up(self) -> None:
        """Close it, because the gateway stops."""
        self._leave()

    def _step(self) -> None:
        errors = self._port.errors
        try:
            self._tls.do_handshake()
        except errors.WantReadError:
            self._port.flush(self._tls, self.addr)
            self._wait()
        except errors.Error as error:
            self._port.flush(self._tls, self.addr)
            self._fail(words_of(error))
        else:
            self._port.flush(self._tls, self.addr)
            self._done()

    def _wait(self) -> None:
        """Send again what isn't answered when OpenSSL wants that."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        seconds = self._tls.DTLSv1_get_timeout()
        if seconds is not None and self in self._port.endpoint.pending:
            self._again = self._loop.call_later(seconds, self._send_again)

    def _send_again(self) -> None:
        self._again = None
        try:
            self._tls.DTLSv1_handle_timeout()
        except self._port.errors.Error as error:
            self._fail(words_of(error))
            return
        self._port.flush(self._tls, self.addr)
        self._wait()

    def _done(self) -> None:
        if self._forget():
            self._port.established(DtlsLink(self._port, self.addr, self._tls, self.random))

    def _fail(self, why: str) -> None:
        if self._leave():
            self._port.endpoint.unshaken(self.peer, why, "DTLS")

    def _leave(self) -> bool:
        """Give the place back, once; return whether it was still ours."""
        if not self._forget():
            return False
        self._port.forget(self.addr, self)
        return True

    def _forget(self) -> bool:
        """Take note that the handshake is over, once; return whether it wasn't."""
        if not self._port.endpoint.settled(self):
            return False
        self._late.cancel()
        if self._again is not None:
            self._again.cancel()
        return True


class DtlsLink(UdpLink):
    """A device whose handshake has succeeded."""

    __slots__ = ("random", "tls")

    port: DtlsPort

    def __init__(self, port: DtlsPort, peer: Peer, tls: Any, random: bytes) -> None:
        super().__init__(port, peer)
        self.tls = tls
        self.random = random

    def received(self, data: bytes) -> None:
        """Take a datagram."""
        if data:
            self.tls.bio_write(data)
            self.read()

    def read(self) -> None:
        """Give what has come to the channel. What nobody has encrypted for us is left out by OpenSSL."""
        errors = self.port.errors
        try:
            while self.channel is not None:
                data = self.tls.recv(RECORD)
                if self.channel is not None and data:
                    self.channel.received(data)
        except errors.WantReadError:
            self.port.flush(self.tls, self.peer)
        except errors.ZeroReturnError:
            if self.channel is not None:
                self.channel.end("device closed", drain=True)
        except errors.Error as error:
            self.end("device closed", words_of(error))

    def send(self, chunks: list[bytes]) -> None:
        for chunk in chunks:
            if len(chunk) > RECORD:
                peer = Address(*self.peer[:2])
                log.warning("%s ! datagram dropped: it has %d bytes, limit is %d", peer, len(chunk), RECORD)
                self.port.drop("too_large")
            elif chunk and self.channel is not None:
                self._send(chunk)

    def _send(self, chunk: bytes) -> None:
        try:
            self.tls.send(chunk)
        except self.port.errors.Error as error:
            asyncio.get_running_loop().call_soon(self.lost, words_of(error))
        else:
            self.port.flush(self.tls, self.peer)

    def replaced(self) -> None:
        """End it, because the device has begun another session."""
        super().end("lost", "the device has begun another session")  # it can't read a goodbye any more

    def end(self, reason: Reason, detail: str) -> bool:
        if self.channel is None:
            return False
        try:
            self.tls.shutdown()
        except self.port.errors.Error:  # it has failed already
            pass
        else:
            self.port.flush(self.tls, self.peer)
        return super().end(reason, detail)
