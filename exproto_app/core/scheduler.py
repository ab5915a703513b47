"""The scheduler: whose turn it is among the connections that have more to do than one slice."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from .states import ROUND, SLICE

if TYPE_CHECKING:
    from ..runtime import Runtime

__all__ = ["Scheduler"]


class Scheduled(Protocol):
    """A connection that has something to do."""

    scheduled: bool

    def advance(self) -> None:
        """Do it, for a slice at most."""
        ...


class Scheduler:
    """Gives connections their slices, round robin; `states` tells how long these are.

    While it is *busy* nothing is handled on the spot: what just came waits behind what came before.
    """

    __slots__ = ("_looked", "_queue", "_round_end", "_runtime", "busy")

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._queue: deque[Scheduled] = deque()
        self._looked = 0.0
        self._round_end: float | None = None
        self.busy = False

    def later(self, channel: Scheduled) -> None:
        """Have *channel* advance in its turn, after what runs now."""
        if channel.scheduled:
            return
        channel.scheduled = True
        if not self._queue and self._round_end is None:
            self._runtime.call_soon(self._run)
        self._queue.append(channel)

    def slice_end(self) -> float:
        """Return when a slice that begins now has to end."""
        end = self._runtime.time() + SLICE
        return end if self._round_end is None else min(end, self._round_end)

    def pace(self) -> None:
        """Look whether the few frames that were handled on the spot since the last look took too long.

        That they came slowly looks the same, and does no harm: the next ones wait for the next round.
        """
        now = self._runtime.time()
        if now - self._looked >= ROUND and not self.busy:
            self.busy = True
            if not self._queue and self._round_end is None:
                self._runtime.call_soon(self._run)
        self._looked = now

    def _run(self) -> None:
        """Run a round: each that is ready has a slice, as long as there is time."""
        queue, time = self._queue, self._runtime.time
        self._round_end = end = time() + ROUND
        try:
            # Those that become ready meanwhile wait for the next round, so that sockets get their share.
            for _ in range(len(queue)):
                channel = queue.popleft()
                channel.scheduled = False
                channel.advance()
                if time() >= end:
                    break
        finally:
            self._round_end = None
            if queue:
                self._runtime.call_soon(self._run)
            else:
                self.busy = False
            self._looked = time()
