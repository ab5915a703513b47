"""Devices on UDP: each peer address is a connection."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import TYPE_CHECKING, Any, cast

from ...core import Intake
from ...models import Address, ConnectionInfo, Reason

if TYPE_CHECKING:
    from .door import Door

__all__ = ["UdpPort"]

log = logging.getLogger("exproto_app")

Peer = tuple[Any, ...]


class UdpPort(asyncio.DatagramProtocol):
    """The asyncio end of one UDP listener."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.transport: asyncio.DatagramTransport
        self.writable = True
        self._draining: socket.socket | None = None
        self._sockname: Address
        self._links: dict[Peer, UdpLink] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)
        self._sockname = Address(*transport.get_extra_info("sockname")[:2])

    def connection_lost(self, exc: Exception | None) -> None:
        if self._draining is None:
            for link in tuple(self._links.values()):
                link.lost(str(exc or ""))

    def stop_reading(self) -> None:
        """Leave what comes from now on to whoever reads the socket next; answers still go out."""
        handle = os.dup(self.transport.get_extra_info("socket").fileno())  # uvloop's sockets have no dup()
        self._draining = socket.socket(fileno=handle)
        self._draining.setblocking(False)
        self.transport.close()

    def close(self) -> None:
        """Let go of the socket, after `stop_reading`."""
        if self._draining is not None:
            self._draining.close()

    def datagram_received(self, data: bytes, addr: Peer) -> None:
        link = self._links.get(addr)
        if link is None:
            peer = Address(*addr[:2])
            if not self.door.admit(peer, datagrams=True):
                self._drop("refused")
                return
            link = self._links[addr] = UdpLink(self, addr)
            info = ConnectionInfo("udp", peer, self._sockname)
            self.door.engine.connected(link, info, self.door.routers)
        if link.channel is not None:
            link.channel.received(data)

    def error_received(self, exc: Exception) -> None:
        log.debug("%s ! %s", self.door.listen, exc)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True

    def send(self, datagram: bytes, peer: Peer) -> None:
        """Send *datagram*, or drop it where the kernel takes none: that is what UDP promises."""
        if self._draining is not None:
            try:
                self._draining.sendto(datagram, peer)
            except OSError:
                self._drop("socket_full")
        elif self.writable:
            self.transport.sendto(datagram, peer)
        else:
            self._drop("socket_full")

    def forget(self, link: UdpLink) -> None:
        """Let the next datagram of this peer begin a new connection."""
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
        self.door.leave(Address(*link.peer[:2]), datagrams=True)

    def _drop(self, why: str) -> None:
        self.door.engine.count("datagrams_dropped")
        self.door.engine.count(f"datagrams_dropped.{why}")


class UdpLink:
    """One peer of a UDP listener."""

    __slots__ = ("channel", "peer", "port")

    answers = False
    write = None
    fence = None

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
        self._end("device closed", detail)

    def vacate(self) -> bool:
        """Give the connection's place to somebody else; tell whether it still had one."""
        return self._end("lost", "it had proved nothing, and its place was needed")

    @property
    def number(self) -> int:
        """The listener's number."""
        return self.port.door.number

    def _end(self, reason: Reason, detail: str) -> bool:
        if self.channel is None:
            return False
        channel, self.channel = self.channel, None
        self.port.forget(self)
        channel.terminated(reason, detail)
        return True
