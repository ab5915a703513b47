"""Devices on UDP: each peer address is a connection.

Where a listener is bound to every address of the machine, what a peer sends to another one of them is another
connection: it is answered from there.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any, Protocol

from ...asyncio_host.datagrams import Datagrams, Peer, enlarge, local_address
from ...core import Intake
from ...models import Address, Certificate, Reason
from .datagram_line import DatagramLine
from .tcp import address_of

if TYPE_CHECKING:
    from .endpoint import Endpoint

__all__ = ["UdpLink", "UdpPort", "serve"]

log = logging.getLogger("exproto_app")


async def serve(endpoint: Endpoint, sock: socket.socket | None) -> UdpPort:
    """Serve *endpoint* on *sock*, which is bound already. Raises `OSError`."""
    assert sock is not None  # noqa: S101 - its scheme has sockets
    port = UdpPort(endpoint)
    await port.open(sock)
    return port


class Transport(Protocol):
    """What sends datagrams."""

    def sendto(self, data: bytes, addr: Any, /) -> object:
        """Send *data*."""
        ...

    def close(self) -> None:
        """Let go of the socket."""
        ...


class UdpPort(asyncio.DatagramProtocol):
    """One UDP listener."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.line: DatagramLine = endpoint.listen.settings or DatagramLine()
        self.transport: Transport
        self._sockname: Address
        self._links: dict[Peer, Any] = {}
        self._datagrams: Datagrams | None = None

    async def open(self, sock: socket.socket) -> None:
        """Serve on *sock*. Raises `OSError`."""
        self._enlarge(sock)
        datagrams = Datagrams(sock, self)
        self.transport, self._datagrams = datagrams, datagrams
        self._sockname = address_of(sock.getsockname())
        try:
            datagrams.start()
        except NotImplementedError:  # Windows' usual loop: it reads in its own way
            self._datagrams = None
            await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, sock=sock)

    def _enlarge(self, sock: socket.socket) -> None:
        """Have the kernel keep as many bytes for us as the listener says."""
        wanted = self.line.buffer
        if wanted is None:
            return
        got = enlarge(sock, wanted)
        if got < wanted:
            words = "gateway ! %s: the kernel buffers %d bytes, not %d; raise net.core.rmem_max with sysctl"
            log.warning(words, self.endpoint.listen, got, wanted)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment] # of datagrams
        self._sockname = address_of(transport.get_extra_info("sockname"))

    def connection_lost(self, exc: Exception | None) -> None:
        for link in tuple(self._links.values()):
            link.lost(str(exc or ""))

    def stop(self) -> None:
        """Leave what comes from now on to whoever reads the socket next; answers still go out."""
        if self._datagrams is not None:
            self._datagrams.stop()

    async def close(self) -> None:
        """Let go of the socket, after `stop`."""
        self.transport.close()

    def datagram_received(self, data: bytes, addr: Peer) -> None:
        link = self._links.get(addr)
        if link is None:
            if self.endpoint.engine.scheduler.crowded:  # it would wait here for longer than it is of use
                self.drop("busy")
                return
            if not self.endpoint.admit(Address(*addr[:2]), datagrams=True):
                self.drop("refused")
                return
            link = self.new_link(addr)
            self.start_link(link)
        if link.channel is not None:
            link.channel.received(data)

    def start_link(self, link: UdpLink, certificate: Certificate | None = None) -> None:
        """Begin the connection of *link*, which has its place."""
        self._links[link.peer] = link
        sockname = local_address(self._sockname, link.peer)
        info = self.endpoint.info(Address(*link.peer[:2]), sockname, certificate)
        self.endpoint.connected(link, info)

    def new_link(self, addr: Peer) -> UdpLink:
        """Return the link of *addr*."""
        return UdpLink(self, addr)

    def error_received(self, exc: Exception) -> None:
        log.debug("%s ! %s", self.endpoint.listen, exc)

    def send(self, datagram: bytes, peer: Peer) -> None:
        """Send *datagram*, or drop it where the kernel takes none: that is what UDP promises."""
        self.transport.sendto(datagram, peer)

    def forget(self, addr: Peer, link: object) -> None:
        """Let the next datagram of *addr* begin a new connection; *link* has ended."""
        if self._links.get(addr) is link:
            del self._links[addr]
        self.endpoint.leave(Address(*addr[:2]), datagrams=True)

    def drop(self, why: str, number: int = 1) -> None:
        """Count datagrams that are lost."""
        self.endpoint.engine.count("datagrams_dropped", number)
        self.endpoint.engine.count(f"datagrams_dropped.{why}", number)
        if why == "kernel":
            words = (
                "gateway ! %s: %d datagrams lost, which came faster than they were read; see ?buffer=BYTES"
            )
            log.warning(words, self.endpoint.listen, number)


class UdpLink:
    """One peer of a UDP listener."""

    __slots__ = ("channel", "peer", "port")

    answers = False
    write = None
    broker_side = None
    confirm = None
    buffered = 0

    def __init__(self, port: UdpPort, peer: Peer) -> None:
        self.port = port
        self.peer = peer
        self.channel: Intake | None = None

    def send(self, chunks: list[bytes]) -> None:
        for chunk in chunks:
            self.port.send(chunk, self.peer)

    def close(self) -> None:
        asyncio.get_running_loop().call_soon(self.lost, "")

    abort = close

    def pause(self) -> None:
        """Do nothing: the channel drops what is too much."""

    def resume(self) -> None:
        """Do nothing."""

    def lost(self, detail: str) -> None:
        """End the connection."""
        self.end("device closed", detail)

    def vacate(self) -> bool:
        """Give the connection's place to somebody else; return whether it still had one."""
        return self.end("lost", "it hadn't registered, and its place was needed")

    @property
    def endpoint(self) -> Endpoint:
        """The listener."""
        return self.port.endpoint

    def end(self, reason: Reason, detail: str) -> bool:
        """End the connection; return whether that was still to do."""
        if self.channel is None:
            return False
        channel, self.channel = self.channel, None
        self.port.forget(self.peer, self)
        channel.terminated(reason, detail)
        return True
