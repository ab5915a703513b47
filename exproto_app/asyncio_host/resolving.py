"""Names of hosts, looked up anew each time, in threads that nobody has to wait for: a resolver may hang."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, Final, TypeAlias

from .threads import IdleThreads

__all__ = ["Found", "Resolver"]

Found: TypeAlias = tuple[int, Any]
"""A family of addresses, and an address as its sockets have it."""

AT_ONCE: Final = 32
"""Lookups that are under way: one that hangs keeps its thread, also when nobody waits for it any more."""


class Resolver:
    """Looks names up for the running event loop, `AT_ONCE` at a time; the others wait."""

    def __init__(self) -> None:
        self._threads = IdleThreads(AT_ONCE, "exproto-app lookup")

    async def resolve(self, host: str, port: int, kind: int = socket.SOCK_STREAM) -> list[Found]:
        """Return the addresses of *host*, for sockets of *kind*. Raises `OSError` where there are none."""
        with contextlib.suppress(OSError, UnicodeError):  # an address needs no thread
            return _look_up(host, port, kind, socket.AI_NUMERICHOST)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, _look_up, host, port, kind, 0)
        except (OSError, UnicodeError):
            raise OSError("unknown host") from None


def _look_up(host: str, port: int, kind: int, flags: int) -> list[Found]:
    infos = socket.getaddrinfo(host, port, type=kind, flags=flags)
    return list(dict.fromkeys((int(info[0]), info[4]) for info in infos))
