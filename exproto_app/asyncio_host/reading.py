"""How much is read of a socket at a time, and how much the kernel keeps for it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, Final, cast

__all__ = ["READ", "limit_kernel", "limit_reads", "tcp_socket"]

READ: Final = 16_384
"""Bytes.

asyncio makes room for 256 KB each time, which costs some 80 µs if more than a little comes (on 3.11): a
thousand connections that say something at once would hold up everybody for a tenth of a second.
"""

KERNEL: Final = 65_536
"""Bytes that the kernel may keep in each direction, of which it keeps as many again for itself.

Left alone it keeps several megabytes for each device that doesn't read, and for each that isn't read.
"""


def tcp_socket(transport: Any) -> socket.socket | None:
    """Return the socket of *transport* if it is one of TCP."""
    sock: socket.socket | None = transport.get_extra_info("socket")
    return sock if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6) else None


def limit_reads(transport: asyncio.BaseTransport) -> None:
    """Have *transport* read `READ` bytes at a time, where it can be told: uvloop's can't."""
    if hasattr(transport, "max_size"):
        cast("Any", transport).max_size = READ
    secure: Any = getattr(transport, "_ssl_protocol", None)
    if hasattr(secure, "_ssl_buffer_view"):  # asyncio's, from Python 3.11 on: 256 KB for each connection
        secure.max_size = READ
        secure._ssl_buffer = buffer = bytearray(READ)  # noqa: SLF001 - there is no other way
        secure._ssl_buffer_view = memoryview(buffer)  # noqa: SLF001 - likewise


def limit_kernel(transport: asyncio.BaseTransport) -> None:
    """Have the kernel keep little for the connection of *transport*."""
    sock = tcp_socket(transport)
    if sock is None:
        return
    with contextlib.suppress(OSError, ValueError):  # it may be gone already, of which uvloop says the latter
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL)
