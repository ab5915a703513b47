"""Datagrams: a socket that is read in batches, and that answers from the address that was asked.

asyncio's own endpoint takes one datagram a round of the loop, and doesn't tell at which of the machine's
addresses it was, so that answers leave from another one and are never seen.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
import struct
import sys
from collections import deque
from typing import Any, Final, Protocol, TypeAlias

from ..models import Address

__all__ = ["Datagrams", "Peer", "Reader", "enlarge", "kernel_drops", "local_address"]

log = logging.getLogger("exproto_app")

Peer: TypeAlias = tuple[Any, ...]
"""The address of a peer; behind it, on a socket that is bound to all addresses, the one that it asked."""

LARGEST: Final = 65_536
"""Bytes of a datagram."""

AT_ONCE: Final = 64
BUDGET: Final = 0.005
"""Datagrams that are read at once, and seconds after which others have their turn."""

WAITING: Final = 65_536
"""Bytes that may wait for a socket that is full."""

LOOK: Final = 1.0
"""Seconds from a datagram to a look at what the kernel has lost."""

MOST_SOURCES: Final = 1_024
"""Addresses of the machine that are remembered."""

LINUX: Final = sys.platform == "linux"
IP_PKTINFO: Final = 8
SO_RCVBUFFORCE: Final = 33
SO_MEMINFO: Final = 55
"""Numbers of Linux, which not every Python has; see ip(7) and socket(7)."""

MEMINFO: Final = struct.Struct("9I")
V4: Final = 4
V6: Final = 16
"""Bytes of an address."""


class Reader(Protocol):
    """What datagrams are for."""

    def datagram_received(self, data: bytes, addr: Peer, /) -> None:
        """Take a datagram."""
        ...

    def drop(self, why: str, number: int = 1, /) -> None:
        """Count datagrams that are lost."""
        ...


class Datagrams:
    """Reads *sock* for *reader*, and sends."""

    def __init__(self, sock: socket.socket, reader: Reader) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._asked = _tell_asked(sock)  # how many bytes of an address tell who was asked
        self._sources = Sources()
        self._waiting: deque[tuple[bytes, Peer]] = deque()
        self._size = 0
        self._look: asyncio.TimerHandle | None = None
        self._lost = kernel_drops(sock)  # another process may have had it

    def start(self) -> None:
        """Begin to read. Raises `NotImplementedError` on a loop that can't."""
        self._loop.add_reader(self.sock, self._read_asked if self._asked else self._read)

    def stop(self) -> None:
        """Leave what comes from now on to whoever reads the socket next; what is sent still goes out."""
        self._loop.remove_reader(self.sock)
        self._look_at_losses()

    def close(self) -> None:
        """Close the socket."""
        self._loop.remove_reader(self.sock)
        self._loop.remove_writer(self.sock)
        if self._look is not None:
            self._look.cancel()
        self.sock.close()

    # --- reading

    def _read(self) -> None:
        take, receive = self._reader.datagram_received, self.sock.recvfrom
        until = self._loop.time() + BUDGET
        for _ in range(AT_ONCE):
            try:
                data, addr = receive(LARGEST)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                log.debug("%s ! %s", self.sock, error)
                break
            take(data, addr)
            if self._loop.time() >= until:
                break
        self._look_later()

    def _read_asked(self) -> None:
        take, receive, space = self._reader.datagram_received, self.sock.recvmsg, socket.CMSG_SPACE(20)
        first, last = (4, 8) if self._asked == V4 else (0, V6)
        until = self._loop.time() + BUDGET
        for _ in range(AT_ONCE):
            try:
                data, told, _, addr = receive(LARGEST, space)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                log.debug("%s ! %s", self.sock, error)
                break
            take(data, (*addr, told[0][2][first:last] if told else b""))
            if self._loop.time() >= until:
                break
        self._look_later()

    # --- sending

    def sendto(self, data: bytes, addr: Peer) -> None:
        """Send *data*, or let it wait a little where the kernel takes none; beyond that it is dropped."""
        if not self._waiting and self._put(data, addr):
            return
        if self._size + len(data) > WAITING:
            self._reader.drop("socket_full")
            return
        if not self._waiting:
            self._loop.add_writer(self.sock, self._writable)
        self._waiting.append((data, addr))
        self._size += len(data)

    def _put(self, data: bytes, addr: Peer) -> bool:
        """Send *data*; return whether that is over, well or not."""
        try:
            if self._asked:
                self.sock.sendmsg((data,), self._sources[addr[-1]], 0, addr[:-1])
            else:
                self.sock.sendto(data, addr)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            peer = Address(*addr[:2])
            if error.errno == errno.EMSGSIZE:
                log.warning("%s ! datagram dropped: it has %d bytes, more than UDP carries", peer, len(data))
                self._reader.drop("too_large")
            else:
                log.debug("%s ! datagram dropped: %s", peer, error)
                self._reader.drop("unsent")
        return True

    def _writable(self) -> None:
        while self._waiting:
            data, addr = self._waiting[0]
            if not self._put(data, addr):
                return
            self._waiting.popleft()
            self._size -= len(data)
        self._loop.remove_writer(self.sock)

    # --- what the kernel has lost

    def _look_later(self) -> None:
        if self._look is None:
            self._look = self._loop.call_later(LOOK, self._look_at_losses)

    def _look_at_losses(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None
        lost = kernel_drops(self.sock)
        if lost > self._lost:
            self._reader.drop("kernel", lost - self._lost)
            self._lost = lost


class Sources(dict[bytes, "tuple[tuple[int, int, bytes], ...]"]):
    """What has a datagram leave from each of the machine's addresses (ip(7), ipv6(7))."""

    def __missing__(self, asked: bytes) -> tuple[tuple[int, int, bytes], ...]:
        if len(self) >= MOST_SOURCES:
            self.clear()
        found = self[asked] = (_from(asked),) if asked else ()
        return found


def _tell_asked(sock: socket.socket) -> int:
    """Have *sock* tell who was asked, if that can be several; return how many bytes of an address do."""
    host = ipaddress.ip_address(sock.getsockname()[0].partition("%")[0])
    if not host.is_unspecified:
        return 0
    if sock.family == socket.AF_INET6:
        option = getattr(socket, "IPV6_RECVPKTINFO", None)
        if option is None:
            return 0
        sock.setsockopt(socket.IPPROTO_IPV6, option, 1)
        return V6
    if not LINUX:
        return 0
    sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    return V4


def _from(address: bytes) -> tuple[int, int, bytes]:
    """Return what has a datagram leave from *address*."""
    if len(address) == V4:
        return socket.IPPROTO_IP, IP_PKTINFO, b"\0\0\0\0" + address + b"\0\0\0\0"
    source = bytes(V6) if address[0] == 0xFF else address  # nobody sends from a group
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, source + b"\0\0\0\0"


def local_address(sockname: Address, addr: Peer) -> Address:
    """Return which address of the socket named *sockname* the peer *addr* has asked."""
    asked = addr[-1]
    if not asked or not isinstance(asked, bytes):
        return sockname
    return Address(str(ipaddress.ip_address(asked)), sockname.port)


def kernel_drops(sock: socket.socket) -> int:
    """Return how many datagrams the kernel has lost because nobody read *sock*; 0 where it doesn't tell."""
    if not LINUX:
        return 0
    try:
        told = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, MEMINFO.size)
    except OSError:  # an older kernel, or a sandbox
        return 0
    return int(MEMINFO.unpack(told)[-1]) if len(told) == MEMINFO.size else 0


def enlarge(sock: socket.socket, size: int) -> int:
    """Ask for a receive buffer of *size* bytes; return how many the kernel gives."""
    if LINUX:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size)
        except OSError:  # who isn't root has a limit
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # it counts its own overhead too
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
