"""How long to wait before what failed, or ended, is tried again. No I/O, no clock."""

from __future__ import annotations

import random
from collections.abc import Callable

import attrs

__all__ = ["Backoff", "Pace"]


@attrs.define(eq=False)
class Backoff:
    """Waits that double, from *first* to *longest* seconds, each cut by up to a half, by chance.

    They begin anew after something has lasted for *steady* seconds. *chance* returns a number from 0 to 1.
    """

    first: float
    longest: float
    steady: float
    chance: Callable[[], float] = random.random
    _tries: int = 0

    def wait(self, lasted: float = 0.0) -> float:
        """Return how many seconds to wait, now that it has ended after it *lasted* so many."""
        if lasted >= self.steady:
            self._tries = 0
        wait = min(self.longest, self.first * 2.0 ** min(self._tries, 32))
        self._tries += 1
        return wait * (1.0 - self.chance() / 2)


@attrs.define(eq=False)
class Pace:
    """At most *rate* beginnings a second, evenly spread; by `take` up to *burst* seconds of these at once."""

    rate: float
    burst: float = 0.0
    _next: float = float("-inf")

    def wait(self, now: float) -> float:
        """Return how many seconds the one that asks at *now* has to wait; the next one waits longer."""
        begin = max(now, self._next)
        self._next = begin + 1.0 / self.rate
        return begin - now

    def take(self, now: float) -> float:
        """Return 0 where one may begin *now*, which counts then; else in how many seconds to ask again."""
        left = self._next - now - self.burst
        if left > 0:
            return left
        self.wait(now)
        return 0.0
