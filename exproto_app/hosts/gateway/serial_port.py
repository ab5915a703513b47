"""Devices on serial ports: a port is a connection, opened again when it was unplugged and is back."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ...errors import ExprotoError, SetupError
from ...models import Address
from .dialling import DialError, DialledLink, Dialler, Ended
from .serial_line import SerialLine

if TYPE_CHECKING:
    from .endpoint import Endpoint
    from .listeners import Listen

__all__ = ["Port", "probe", "serve"]

READ: Final = 65_536
"""Bytes that are read at once."""

LOOK: Final = 0.01
"""Seconds between two looks whether the driver has sent all, where the port is to be closed then."""


async def serve(endpoint: Endpoint, _: socket.socket | None = None) -> Dialler:
    """Keep the port of *endpoint* open. Raises `ExprotoError` without pyserial."""
    library()
    dialler = Dialler(endpoint, partial(_open, endpoint))
    dialler.start()
    return dialler


def probe(listen: Listen) -> None:
    """See whether the port of *listen* can be opened. Raises `ExprotoError`."""
    try:
        open_port(listen.path, listen.settings).close()
    except DialError as error:
        raise SetupError(f"{listen} {error}") from None


def library() -> Any:
    """Return pyserial. Raises `ExprotoError` where it isn't there, or of no use."""
    try:
        import serial.rs485  # noqa: PLC0415 - an extra
    except ImportError:
        raise ExprotoError("serial:// needs: pip install 'exproto-app[serial]'") from None
    if os.name != "posix":
        raise ExprotoError("serial:// needs Linux, macOS or another Unix")
    return serial


async def _open(endpoint: Endpoint) -> Ended:
    """Open the port of *endpoint*, and begin its connection."""
    peer = Address(endpoint.listen.path, 0)
    if not endpoint.take_place(peer):
        raise DialError("room", "isn't opened: the gateway has no room for it")
    loop = asyncio.get_running_loop()
    line: SerialLine = endpoint.listen.settings
    try:
        port = open_port(endpoint.listen.path, line)
    except DialError:
        endpoint.leave(None)
        raise
    link = DialledLink(endpoint, peer, loop.create_future())
    transport = Port(loop, port, link, line.gap or 0.0, endpoint.engine.limits.inbox)
    link.connection_made(transport)
    transport.resume_reading()
    return link.ended


def open_port(path: str, line: SerialLine) -> Any:
    """Return the port at *path*, set up as *line* says. Raises `DialError`."""
    serial = library()
    try:
        port = serial.Serial(
            path,
            baudrate=line.baud,
            bytesize=line.bits,
            parity=line.parity,
            stopbits=line.stop,
            rtscts=line.rtscts,
            xonxoff=line.xonxoff,
            timeout=0,
            write_timeout=0,
            exclusive=True,
        )
    except (OSError, ValueError, OverflowError) as error:  # SerialException is an OSError
        raise DialError(*_why(path, line, error)) from None
    if line.rs485:
        try:
            port.rs485_mode = serial.rs485.RS485Settings()
        except (OSError, ValueError):
            port.close()
            raise DialError(
                "error", "can't be opened: its driver has no RS485 mode; leave rs485=1 out"
            ) from None
    return port


def _why(path: str, line: SerialLine, error: BaseException) -> tuple[str, str]:
    """Return what a port that can't be opened counts as, and why it can't, with the remedy."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return "absent", "isn't there: plug it in, or correct its path"
    if number in (errno.EACCES, errno.EPERM):
        return "denied", f"can't be opened: this user may not use it; {_remedy(path)}"
    if number in (errno.EBUSY, errno.EWOULDBLOCK) or "exclusively lock" in str(error):
        return "busy", "can't be opened: another program is using it; stop that program"
    if isinstance(error, ValueError | OverflowError) or number == errno.EINVAL:
        return (
            "error",
            f"can't be opened: its driver doesn't take {line}; correct baud=, bits=, parity=, stop=",
        )
    if number in (errno.ENOTTY, errno.EISDIR) or "configure port" in str(error):
        return "error", "can't be opened: it isn't a serial port; correct its path"
    words = os.strerror(number).lower() if number else str(error)
    return "error", f"can't be opened: {words}"


def _remedy(path: str) -> str:
    """Return which group has *path*."""
    with contextlib.suppress(OSError, KeyError, NotImplementedError):
        group = Path(path).group()
        if group != "root":
            return f"add it to the group {group}"
    return "change the owner or the mode of the device file"


class Port(asyncio.Transport):
    """The transport of an open *port*, for *protocol*.

    With *gap* seconds, what comes with shorter silences in between is given in one piece, of about *most*
    bytes at most.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, port: Any, protocol: asyncio.Protocol, gap: float, most: int
    ) -> None:
        super().__init__(extra={"sockname": port.port})
        self._loop = loop
        self._port = port
        self._fd: int = port.fileno()
        self._protocol = protocol
        self._gap = gap
        self._most = most
        self._read = bytearray()
        self._silence: asyncio.TimerHandle | None = None
        self._unsent = bytearray()
        self._high = READ
        self._full = False
        self._reading = False
        self._closing = False
        self._gone = False

    # --- reading

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        if not self._reading and not self._closing:
            self._reading = True
            self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        if not data:  # it says that there is something to read, and there isn't
            self._lose(OSError(errno.ENODEV, "it was unplugged"))
        elif not self._gap:
            self._protocol.data_received(data)
        else:
            self._read += data
            if self._silence is not None:
                self._silence.cancel()
            if len(self._read) >= self._most:
                self._hand_over()
            else:
                self._silence = self._loop.call_later(self._gap, self._hand_over)

    def _hand_over(self) -> None:
        data, self._silence = bytes(self._read), None
        self._read.clear()
        if data and not self._gone:
            self._protocol.data_received(data)

    # --- writing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:  # noqa: ARG002 - asyncio's signature
        self._high = READ if high is None else high

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or not data:
            return
        if not self._unsent:
            data = data[self._put(data) :]
            if not data or self._gone:
                return
            self._loop.add_writer(self._fd, self._writable)
        self._unsent += data
        if len(self._unsent) > self._high and not self._full:
            self._full = True
            self._protocol.pause_writing()

    def _put(self, data: bytes | bytearray | memoryview) -> int:
        try:
            return os.write(self._fd, data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self._lose(error)
            return 0

    def _writable(self) -> None:
        del self._unsent[: self._put(self._unsent)]
        if self._gone:
            return
        if not self._unsent:
            self._loop.remove_writer(self._fd)
            if self._closing:
                self._close_when_sent()
        if self._full and len(self._unsent) <= self._high // 4:
            self._full = False
            self._protocol.resume_writing()

    # --- the end

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if self._closing:
            return
        self.pause_reading()
        self._closing = True
        if not self._unsent:
            self._close_when_sent()

    def abort(self) -> None:
        if not self._gone:
            with contextlib.suppress(Exception):  # it may be gone
                self._port.reset_output_buffer()
        self._lose(None)

    def _close_when_sent(self) -> None:
        """Close when the driver has sent all: it would hold everybody up until then."""
        if self._gone:
            return
        waiting = 0
        with contextlib.suppress(OSError):
            waiting = self._port.out_waiting
        if waiting:
            self._loop.call_later(LOOK, self._close_when_sent)
        else:
            self._lose(None)

    def _lose(self, error: OSError | None) -> None:
        if self._gone:
            return
        self.pause_reading()
        self._loop.remove_writer(self._fd)
        self._closing = self._gone = True
        self._unsent.clear()
        left = bytes(self._read)
        self._read.clear()
        if self._silence is not None:
            self._silence.cancel()
        self._port.close()
        self._loop.call_soon(self._lost, left, error)

    def _lost(self, left: bytes, error: OSError | None) -> None:
        if left:
            self._protocol.data_received(left)
        self._protocol.connection_lost(error)
