"""Ended: connections that are over here, and whether the broker knows it too.

A broker that could not be told goes on with its half: the device stays connected, and nobody serves it. So a
Close without an answer is owed, and made again: at the device's next event, and when the adapter is back.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from itertools import islice
from typing import Final

__all__ = ["Ended"]

KEPT: Final = 10_000
"""Connections that are remembered after their end, for what still comes in their name."""

OWED: Final = 100_000
"""Connections that the broker still has to close."""

FLUSH: Final = 20.0
"""Seconds for which the broker may go on with what it has queued when it has been told; EMQX takes 15."""

AT_ONCE: Final = 200
"""Connections that are closed again at once; those behind them follow when these are."""

RETRY: Final = 2.0
"""Seconds until a Close that is owed is made again, where no event of the device comes first."""


class Ended:
    """The ended connections of one broker.

    *close* has the broker close one; what comes of it is told by `over`, `told` or `failed`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, close: Callable[[bytes], object]) -> None:
        self._loop = loop
        self._close = close
        self._until: dict[bytes, float] = {}
        self._owed: dict[bytes, bool] = {}  # and whether a Close has failed
        self._closing: set[bytes] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    def __contains__(self, conn: object) -> bool:
        return conn in self._until or conn in self._owed

    def owes(self, conn: bytes) -> bool:
        """Whether the broker goes on with *conn*, which is over here, and no Close is about to end that."""
        owed = self._owed.get(conn)
        if owed is not None:
            return owed or conn not in self._closing
        return self._until.get(conn, math.inf) < self._loop.time()

    def over(self, conn: bytes) -> None:
        """Take note that the broker has ended *conn*."""
        self._settle(conn, math.inf)

    def told(self, conn: bytes) -> None:
        """Take note that the broker was told to close *conn*, and will."""
        was_owed = conn in self._owed
        if self._until.get(conn) != math.inf:
            self._settle(conn, self._loop.time() + FLUSH)
        if was_owed and len(self._closing) < len(self._owed):  # it can be reached: then all others too
            for other in tuple(islice(self._owed, AT_ONCE)):
                self.close_again(other)

    def owe(self, conn: bytes, *, failed: bool = False) -> None:
        """Take note that *conn* is over here, and that the broker doesn't know; a Close may have *failed*."""
        if self._until.get(conn) == math.inf:
            return
        self._until.pop(conn, None)
        self._owed[conn] = failed or self._owed.get(conn, False)
        if len(self._owed) > OWED:
            del self._owed[next(iter(self._owed))]
        if self._timer is None and not self._stopped:
            self._timer = self._loop.call_later(RETRY, self._retry)

    def failed(self, conn: bytes) -> None:
        """Take note that the broker could not be told to close *conn*."""
        self._closing.discard(conn)
        self.owe(conn, failed=True)

    def close_again(self, conn: bytes) -> None:
        """Have the broker close *conn*, unless that is on its way."""
        if conn not in self._closing:
            self._closing.add(conn)
            self._close(conn)

    def stop(self) -> None:
        """Close nothing any more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _settle(self, conn: bytes, until: float) -> None:
        self._owed.pop(conn, None)
        self._closing.discard(conn)
        self._until[conn] = until
        if len(self._until) > KEPT:
            del self._until[next(iter(self._until))]

    def _retry(self) -> None:
        self._timer = None
        if self._owed:
            self._timer = self._loop.call_later(RETRY, self._retry)
            self.close_again(next(iter(self._owed)))  # one tells whether it can be reached
