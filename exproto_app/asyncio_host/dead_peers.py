"""Peers that die without a word: the kernel is told how long it may wait for them."""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Final

from .reading import tcp_socket

__all__ = ["watch_peer"]

PROBES: Final = 3
"""Questions that a silent peer may leave unanswered, where the kernel doesn't take the time for that."""

LONGEST: Final = 32_767
"""Seconds that the kernel takes."""


def watch_peer(transport: Any, stall: float, silence: float | None = None) -> None:
    """Have the kernel end the connection of *transport* when its peer has died.

    It has when it doesn't acknowledge within *stall* seconds what it was sent (on Linux; elsewhere the system
    has a time of its own, mostly minutes), or, after *silence* seconds without a byte, a question of the
    kernel's. None leaves the silence to the system: two hours, mostly.
    """
    sock = tcp_socket(transport)
    if sock is None:
        return
    with contextlib.suppress(OSError, ValueError):  # it may be gone already, of which uvloop says the latter
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        patience = getattr(socket, "TCP_USER_TIMEOUT", None)
        if patience is not None:
            sock.setsockopt(socket.IPPROTO_TCP, patience, int(min(stall, LONGEST) * 1_000))
        # The second one is that of macOS.
        idle = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)
        if silence is None or idle is None:
            return
        sock.setsockopt(socket.IPPROTO_TCP, idle, _whole(silence))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _whole(stall / PROBES))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)


def _whole(seconds: float) -> int:
    return max(1, min(LONGEST, round(seconds)))
