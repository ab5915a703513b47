"""Our message loop in the broker's Python process, in the place of erlport's own."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import sys
from typing import Final

from ...ops.logs import configure_from
from .driver import Driver
from .logtext import LogText
from .process import Process

__all__ = ["Driver", "main"]

LOG_LINE: Final = "%(levelname)s %(name)s: %(message)s"
"""The broker's log has the time already."""

PIPE: Final = 1_048_576
"""Bytes that the pipe to the broker holds, where it may: fewer and larger reads and writes."""

F_SETPIPE_SZ: Final = 1031
"""`fcntl` has its name on Linux only."""

COLLECT: Final = (20_000, 20, 50)
"""Thresholds of the garbage collector."""


async def serve(read_fd: int, write_fd: int) -> None:
    """Serve the broker on these two files."""
    process = Process(read_fd, write_fd)
    stream = process.log = LogText(process.hub, asyncio.get_running_loop())
    sys.stdout = sys.stderr = stream
    configure_from(os.environ, stream, text=LOG_LINE)
    await process.run()


def main() -> None:
    """Take the pipe to the broker out of everybody's reach, then serve it."""
    read_fd, write_fd = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    # A stray byte on fd 1, of a child process or a C library, would wedge the broker's side for good.
    os.dup2(2 if _is_open(2) else null, 1)
    os.close(null)
    for fd in (read_fd, write_fd):
        with contextlib.suppress(OSError):  # it is no pipe, or may not be larger
            fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE)
    # What stands now stays: the collector needn't look at it time and again, nor at each few hundred frames.
    gc.freeze()
    gc.set_threshold(*COLLECT)
    # Not on uvloop: pipes of few and large reads gain nothing by it.
    asyncio.run(serve(read_fd, write_fd))


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
