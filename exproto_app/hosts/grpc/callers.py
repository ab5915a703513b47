"""Callers: the connections on which brokers call, what they share, and who gives way to whom.

Places go to those who use them: a connection that has not yet spoken HTTP/2 costs little, but only so many of
them wait at once; one that has called nothing yet gives its place to a newcomer, the oldest first.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ..http2 import Budget
from ..http2.scheduler import Scheduler

if TYPE_CHECKING:
    from .caller import Caller

__all__ = ["Callers"]

MOST: Final = 1_024
"""Connections of brokers: EMQX has one for each of its schedulers, so that is plenty for many nodes."""

HALF_OPEN: Final = 256
"""Connections that have not yet spoken HTTP/2."""

CHECK: Final = 5.0
"""Seconds between two looks for calls that bring no event: one timer for all of them."""


class Callers:
    """The connections on which brokers call."""

    def __init__(self, *, most: int = MOST, half_open: int = HALF_OPEN) -> None:
        self._loop = asyncio.get_running_loop()
        self.scheduler = Scheduler(self._loop)
        self.budget = Budget()
        self._most = most
        self._half_open_most = half_open
        self._all: dict[Caller, None] = {}
        self._half_open: dict[Caller, None] = {}
        self._checking: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Caller]:
        return iter(tuple(self._all))

    def __contains__(self, caller: object) -> bool:
        return caller in self._all

    def add(self, caller: Caller) -> None:
        """Take *caller* in, for another one if there is no room."""
        self._all[caller] = self._half_open[caller] = None
        if len(self._half_open) > self._half_open_most:
            hosts = Counter(one.host for one in self._half_open)
            most, _ = hosts.most_common(1)[0]
            oldest = next(one for one in self._half_open if one.host == most)
            words = f"{len(self._half_open)} connections say nothing, limit is {self._half_open_most}"
            self._have_give_way(oldest, words)
        elif len(self._all) > self._most:
            oldest = next((one for one in self._all if not one.proven), caller)
            self._have_give_way(oldest, f"there are {len(self._all)} connections, limit is {self._most}")
        if self._checking is None:
            self._checking = self._loop.call_later(CHECK, self._check)

    def _have_give_way(self, caller: Caller, why: str) -> None:
        self.discard(caller)
        caller.give_way(why)

    def spoke(self, caller: Caller) -> None:
        """Take note that *caller* speaks HTTP/2."""
        self._half_open.pop(caller, None)

    def discard(self, caller: Caller) -> None:
        """Forget *caller*."""
        self._all.pop(caller, None)
        self._half_open.pop(caller, None)
        if not self._all and self._checking is not None:
            self._checking.cancel()
            self._checking = None

    def _check(self) -> None:
        self._checking = self._loop.call_later(CHECK, self._check)
        now = self._loop.time()
        for caller in self:
            caller.end_incomplete(now)
