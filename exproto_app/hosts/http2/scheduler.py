"""Scheduler: whose turn it is among the connections that have more to do than one slice."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol

__all__ = ["SLICE", "Scheduler"]

SLICE: Final = 0.001
"""Seconds of one connection's work, behind which the others have their turn."""

ROUND: Final = 0.005
"""Seconds of all slices of one round of the loop, behind which sockets and timers have their turn."""


class Scheduled(Protocol):
    scheduled: bool

    def work(self) -> None:
        """Do what there is to do, for a slice at most."""
        ...


class Scheduler:
    """Gives connections their slices. While it is *busy*, what comes waits behind the others.

    Those that had more to do than their last slice come behind those that hadn't, so that a connection with a
    call now and then doesn't wait for all that flood.
    """

    __slots__ = ("_loop", "_running", "_unfinished", "_working", "queue")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.queue: deque[Scheduled] = deque()
        self._unfinished: deque[Scheduled] = deque()
        self._working: Scheduled | None = None
        self._running = False

    @property
    def busy(self) -> bool:
        """Whether any connection waits for its turn, or has it."""
        return self._running or bool(self.queue or self._unfinished)

    def later(self, one: Scheduled) -> None:
        """Have *one* work in its turn, after what runs now."""
        if one.scheduled:
            return
        one.scheduled = True
        if not self.busy:
            self._loop.call_soon(self._run)
        (self._unfinished if one is self._working else self.queue).append(one)

    def _run(self) -> None:
        queue, unfinished, time = self.queue, self._unfinished, self._loop.time
        end = time() + ROUND
        self._running = True
        try:
            for _ in range(len(queue) + len(unfinished)):
                one = (queue or unfinished).popleft()
                one.scheduled = False
                self._working = one
                one.work()
                if time() >= end:
                    break
        finally:
            self._running, self._working = False, None
            if queue or unfinished:
                self._loop.call_soon(self._run)
