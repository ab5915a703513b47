"""Budget: the memory that peers may have us hold, in bytes, for each connection and for all together.

What counts is what a peer can make grow: bytes that wait for their rest, streams that are open, answers that
it doesn't read. Whoever exceeds a connection's share ends; where all together are too much, the connection
that holds most ends, whichever grew last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .frames import ENHANCE_YOUR_CALM, ProtocolError

__all__ = ["STREAM_COST", "Account", "Budget"]

EACH: Final = 33_554_432
"""Bytes that are held for one connection: two of the largest events that are accepted."""

TOTAL: Final = 67_108_864
"""Bytes that are held for all connections."""

STREAM_COST: Final = 2_048
"""Bytes that a stream counts for beside its data.

Its objects take about 400; the rest stands for the time that it takes to let go of many of them at once.
"""


class Budget:
    """What connections hold together."""

    __slots__ = ("accounts", "each", "total", "used")

    def __init__(self, *, each: int = EACH, total: int = TOTAL) -> None:
        self.each = each
        self.total = total
        self.used = 0
        self.accounts: set[Account] = set()

    def make_room(self) -> None:
        """End those that hold most until all fits."""
        while self.used > self.total:
            largest = max(self.accounts, key=lambda account: account.used)
            error = ProtocolError(
                ENHANCE_YOUR_CALM,
                f"{self.used} bytes are held for all connections, limit is {self.total}, "
                f"and it holds most of them, {largest.used}",
            )
            largest.close()
            largest.end(error)


class Account:
    """What one connection holds; *end* ends it because of that."""

    __slots__ = ("_budget", "_known", "closed", "end", "used")

    def __init__(self, budget: Budget, end: Callable[[ProtocolError], object]) -> None:
        self.used = 0
        self.closed = False
        self.end = end
        self._budget = budget
        self._known = False

    def charge(self, size: int) -> None:
        """Hold *size* bytes more; where that is too much, the connection that holds too much is ended."""
        if self.closed:
            return
        budget = self._budget
        if not self._known:
            self._known = True
            budget.accounts.add(self)
        self.used += size
        budget.used += size
        if self.used > budget.each:
            words = f"{self.used} bytes are held for it, limit is {budget.each}"
            self.close()
            self.end(ProtocolError(ENHANCE_YOUR_CALM, words))
        elif budget.used > budget.total:
            budget.make_room()

    def release(self, size: int) -> None:
        """Hold *size* bytes less."""
        if not self.closed:
            self.used -= size
            self._budget.used -= size

    def close(self) -> None:
        """Give back everything."""
        if not self.closed:
            self.closed = True
            self._budget.used -= self.used
            self._budget.accounts.discard(self)
