"""An event loop on which nobody waits: where nothing happens, the time of the next timer comes at once."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

__all__ = ["hasty"]

MOMENT: Final = 0.01
"""Real seconds in which what was written on loopback has arrived at the other end."""


class HastySelector(selectors.DefaultSelector):
    """Waits a moment for the sockets; *skipped* is how many seconds it should have waited more."""

    skipped = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout <= MOMENT:
            return super().select(timeout)
        events = super().select(MOMENT)
        if not events:
            self.skipped += timeout - MOMENT
        return events


class HastyLoop(asyncio.SelectorEventLoop):
    """The system's sockets, and a clock that leaps."""

    def __init__(self) -> None:
        self._hasty = HastySelector()
        super().__init__(self._hasty)

    def time(self) -> float:
        return time.monotonic() + self._hasty.skipped


def hasty(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run *test*, both ends of whose connections are in its own loop; minutes cost nothing.

    There is no limit in this time: it leaps while a thread, of the store say, is at work.
    """
    loop = HastyLoop()
    try:
        loop.run_until_complete(test())
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
