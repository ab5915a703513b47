"""The pipe to the broker: frames of a 4-byte length and a term, without ever blocking the loop."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from struct import Struct
from typing import Final

__all__ = ["Port"]

log = logging.getLogger("exproto_app")

READ: Final = 65_536
"""Bytes of one read, some hundred calls: what their handlers began runs before the next one."""

LARGEST: Final = 67_108_864
"""Bytes of a frame that is still looked at; a larger one is skipped, for memory is not endless."""

HEAD: Final = 64
"""Bytes of such a frame that are: they tell what it is."""

BACKLOG: Final = 8_388_608
"""Bytes that wait for the broker to read them, beyond which we read nothing from it."""

_LENGTH: Final = Struct(">I")


class Port:
    """Both ends of the pipe on the event loop.

    *received* gets each frame without its length; what is written meanwhile leaves in one go behind the last
    frame of a read. *unreadable* gets the beginning of a frame that can't be taken, and why. *ended* is
    called at the end of the broker's stream.
    """

    def __init__(
        self,
        read_fd: int,
        write_fd: int,
        *,
        received: Callable[[bytes], None],
        unreadable: Callable[[bytes, str], None],
        ended: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._received = received
        self._unreadable = unreadable
        self._ended = ended
        self._more: list[bytes] = []
        self._missing = 0
        self._skip = 0
        self._out: list[bytes] = []
        self.write_in_batch = self._out.append  # `write` for what is written while frames are handed over
        self._backlog = b""
        self._reading = False
        self._scheduled = False
        self._in_batch = False
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)

    def start(self) -> None:
        """Begin to read."""
        self._reading = True
        self._loop.add_reader(self._read_fd, self._readable)

    def stop(self) -> None:
        """Read no more; flush what waits, as far as the broker takes it at once."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._read_fd)
        self.flush()

    def write(self, frame: bytes) -> None:
        """Send *frame*, a whole term with its length before it, with the next batch."""
        self._out.append(frame)
        if not (self._in_batch or self._scheduled):
            self._scheduled = True
            self._loop.call_soon(self.flush)

    @property
    def full(self) -> bool:
        """Whether more waits for the broker than is good."""
        return len(self._backlog) > BACKLOG

    def flush(self) -> None:
        """Write what waits."""
        self._scheduled = False
        if self._backlog:
            self._out.insert(0, self._backlog)
            self._backlog = b""
        if not self._out:
            return
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        try:
            written = os.write(self._write_fd, data)
        except (BlockingIOError, InterruptedError):
            written = 0
        except OSError as error:
            log.warning("port ! the broker reads no more: %s", error)
            self._end()
            return
        if written < len(data):
            self._backlog = data[written:]
            self._loop.add_writer(self._write_fd, self._writable)
            if self._reading and self.full:
                self._reading = False
                self._loop.remove_reader(self._read_fd)

    def _writable(self) -> None:
        self._loop.remove_writer(self._write_fd)
        self.flush()
        if not self._reading and not self.full:
            self._reading = True
            self._loop.add_reader(self._read_fd, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self._read_fd, READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            log.warning("port ! reading from the broker failed: %s", error)
            data = b""
        if not data:
            self._end()
            return
        self._in_batch = True
        try:
            self._cut(data)
        finally:
            self._in_batch = False
            self.flush()

    def _end(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._read_fd)
            self._ended()

    def _cut(self, data: bytes) -> None:
        """Hand over the frames in *data* and what came before it."""
        if self._missing > len(data):
            # In the middle of a large frame: joining at each read would be quadratic.
            self._missing -= len(data)
            self._more.append(data)
            return
        if self._more:
            data = b"".join((*self._more, data))
            self._more.clear()
        self._missing = 0
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        size, start = len(data), 0
        unpack = _LENGTH.unpack_from
        while start + 4 <= size:
            end = start + 4 + unpack(data, start)[0]
            if end > size:
                if end - start > LARGEST and size - start >= HEAD:
                    self._skip = end - size
                    words = f"a frame of {end - start - 4} bytes is skipped, limit is {LARGEST}"
                    self._unreadable(data[start + 4 : start + HEAD], words)
                    return
                break
            frame = data[start + 4 : end]
            try:
                self._received(frame)
            except Exception:
                log.exception("port ! handling a frame failed")
                self._unreadable(frame, f"a frame of {len(frame)} bytes is given up")
            start = end
        if start < size:
            self._more.append(data[start:])
            end = start + 4
            if end <= size:
                end += unpack(data, start)[0]
            wanted = end if end - start <= LARGEST else start + HEAD
            self._missing = max(1, wanted - size)
