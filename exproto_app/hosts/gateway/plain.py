"""The gateway's own transport of plain sockets, on the event loops of asyncio itself.

It does what asyncio's does for a protocol, with less between the socket and the link: one call for a read,
one for a write, and a fraction of the memory. uvloop's transports are faster than any of Python, and TLS is
asyncio's matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .tcp import TcpLink

__all__ = ["SocketTransport", "serves"]

READ: Final = 65_536
"""Bytes that are read at once. What takes more room is mapped and unmapped by the C library for each read."""

LOW: Final = 4
"""The part of the high-water mark below which writing resumes, as asyncio has it."""


def serves(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether connections on *loop* are better off with this transport than with the loop's own."""
    return isinstance(loop, asyncio.SelectorEventLoop)


class SocketTransport(asyncio.Transport):
    """The socket of one connection, which feeds *link*, its protocol, and is written by it.

    `start` begins. The link is told of the end once, as `asyncio.Protocol` says, and the socket closed then.
    Like uvloop's it looks up whom to feed when it gets its protocol, not for each read.
    """

    __slots__ = (
        "_buffer",
        "_closing",
        "_fd",
        "_feed",
        "_full",
        "_high",
        "_hung_up",
        "_link",
        "_loop",
        "_lost",
        "_paused",
        "_sock",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, link: TcpLink) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = (
            sock.fileno()
        )  # what the loop is told: of a socket it looks up the name, which takes longer
        self.set_protocol(link)
        self._buffer: bytearray | None = None  # what the kernel had no room for
        self._high = READ
        self._full = False  # the link was told to pause
        self._paused = False
        self._hung_up = False  # the device has closed its half
        self._closing = False
        self._lost = False  # the link is told, or about to be
        if sock.family != getattr(socket, "AF_UNIX", None):
            with contextlib.suppress(OSError):  # it may be gone already
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def set_protocol(self, protocol: Any) -> None:
        """Feed *protocol* from now on, as it is now."""
        self._link = protocol
        self._feed = protocol.data_received

    def start(self) -> None:
        """Begin the connection, and read."""
        try:
            self._link.connection_made(self)
        except Exception as error:  # noqa: BLE001 - it must not cost more than this connection
            self._break("connection_made", error)
        self._read_on()

    # --- reading

    def _readable(self) -> None:
        try:
            data = self._sock.recv(READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        try:
            if data:
                self._feed(data)
            else:
                self._end_input()
        except Exception as error:  # noqa: BLE001 - it must not cost more than this connection
            self._break("data_received", error)

    def _end_input(self) -> None:
        self._hung_up = True
        if self._link.eof_received():
            self._loop.remove_reader(self._fd)
        else:
            self.close()

    def _read_on(self) -> None:
        if not (self._closing or self._paused or self._hung_up):
            self._loop.add_reader(self._fd, self._readable)

    def pause_reading(self) -> None:
        """Read no more for now."""
        if not (self._closing or self._paused):
            self._paused = True
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """Read again."""
        if self._paused:
            self._paused = False
            self._read_on()

    # --- writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send *data* at once, as far as the kernel has room; the rest when it has again."""
        if self._buffer or self._closing:
            self._keep(data)
            return
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._lose(error)
            return
        if sent < len(data):
            self._keep(data[sent:])

    def _keep(self, data: bytes | bytearray | memoryview) -> None:
        if self._lost:
            return
        if self._buffer is None:
            self._buffer = bytearray()
            self._loop.add_writer(self._fd, self._writable)
        self._buffer += data
        if len(self._buffer) > self._high and not self._full:
            self._full = True
            self._link.pause_writing()

    def _writable(self) -> None:
        buffer = self._buffer
        if buffer is None:
            return
        try:
            del buffer[: self._sock.send(buffer)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        if self._full and len(buffer) <= self._high // LOW:
            self._full = False
            self._link.resume_writing()  # which may write, or end it all
        if not buffer and not self._lost:
            self._buffer = None
            self._loop.remove_writer(self._fd)
            if self._closing:
                self._lose(None)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:  # noqa: ARG002 - LOW tells
        """Have the link pause when more than *high* bytes wait."""
        self._high = READ if high is None else high

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait for the kernel."""
        return 0 if self._buffer is None else len(self._buffer)

    # --- the end

    def close(self) -> None:
        """Close when what was written is out."""
        if not self._closing:
            self._closing = True
            self._loop.remove_reader(self._fd)
            if not self._buffer:
                self._lose(None)

    def abort(self) -> None:
        """Close at once."""
        self._lose(None)

    def is_closing(self) -> bool:
        """Return whether it is closed, or about to be."""
        return self._closing

    def _lose(self, error: BaseException | None) -> None:
        """Have the link told, once, that the connection has ended."""
        if self._lost:
            return
        self._lost = True
        if not self._closing:
            self._closing = True
            self._loop.remove_reader(self._fd)
        if self._buffer is not None:
            self._buffer = None
            self._loop.remove_writer(self._fd)
        self._loop.call_soon(self._end, error)

    def _end(self, error: BaseException | None) -> None:
        link, self._link = self._link, None
        del self._feed  # it may hold what is to be freed
        try:
            link.connection_lost(error)
        finally:
            self._sock.close()

    def _break(self, where: str, error: Exception) -> None:
        """End it because of an error of our own."""
        words = f"{where} failed"
        self._loop.call_exception_handler({"message": words, "exception": error, "transport": self})
        self._lose(error)

    # --- what it is

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return its `socket`, or a name of that."""
        if name == "socket":
            return self._sock
        names = {"sockname": self._sock.getsockname, "peername": self._sock.getpeername}
        if name not in names:
            return default
        try:
            return names[name]()
        except OSError:  # gone before we looked
            return default
