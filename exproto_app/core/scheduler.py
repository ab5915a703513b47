"""The scheduler: whose turn it is among the connections that have more to do than one slice.

Whoever has worked least comes first, so that a device with a line a second doesn't wait for the slices of all
that flood ("start-time fair queueing"). The clock of that is the work itself: `_now` is how long anybody has
had who waits now. A connection's slice begins there, or where its last one ended if that is later, and ends
as much later as it took. When nobody waits any more, all is forgotten. The first slice is a short one: most
who come need no more, and those who do may be many. Who has had nothing to do for `REST` seconds comes first
again, whatever its last slice took: among a thousand that flood, a millisecond of it would cost a second.

Connections that have said nothing useful yet come behind those that have, and take turns with those that have
much to do. While it is `crowded` with them no more of them should come: they would only wait here.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Final, Protocol

from .states import FIRST_SLICE, ROUND, SLICE

if TYPE_CHECKING:
    from ..runtime import Runtime

__all__ = ["Scheduler"]

CROWD: Final = 64
"""Newcomers that wait, beyond which no more of them should come."""

TASKS: Final = 16
"""Async handlers that begin in one round: most of their work comes behind it, in tasks of the event loop."""

LEAST: Final = 256
"""Connections whose work is remembered, before the first look at who needn't be."""


REST: Final = 0.1
"""Seconds."""


class Scheduled(Protocol):
    """A connection that has something to do."""

    scheduled: bool

    @property
    def newcomer(self) -> bool:
        """Whether it has said nothing useful yet."""
        ...

    def advance(self) -> None:
        """Do it, for a slice at most."""
        ...


class Scheduler:
    """Gives connections their slices; `states` says how long these are.

    While it is *busy* nothing is handled at once: what just came waits its turn.
    """

    __slots__ = (
        "_ahead",
        "_done",
        "_fresh",
        "_looked",
        "_most",
        "_new",
        "_now",
        "_order",
        "_passing",
        "_round_end",
        "_running",
        "_runtime",
        "_slice",
        "_worked",
        "begun",
        "busy",
        "look_at",
    )

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._fresh: deque[Scheduled] = (
            deque()
        )  # who waits, and has had no more than those who get slices now
        self._new: deque[Scheduled] = deque()  # likewise, newcomers
        self._worked: list[tuple[float, int, Scheduled]] = []  # a heap of the others, who has had least first
        self._ahead: dict[Scheduled, float] = {}  # where the last slice of each has ended
        self._done: dict[Scheduled, float] = {}  # when those had nothing more to do
        self._most = LEAST
        self._now = 0.0
        self._order = count()
        self._running: Scheduled | None = None
        self._slice = SLICE
        self._looked = 0.0
        self._passing = False  # since _looked, in one pass of the loop
        self._round_end: float | None = None
        self.begun = 0  # async handlers in this round
        self.busy = False
        self.look_at = 0  # how many frames all connections have received when the clock is checked next

    @property
    def crowded(self) -> bool:
        """Whether so many newcomers wait that no more of them should come."""
        return len(self._new) >= CROWD

    def later(self, channel: Scheduled) -> None:
        """Have *channel* advance in its turn, after what runs now."""
        if channel.scheduled:
            return
        channel.scheduled = True
        self._wake()
        if channel is not self._running:  # else it is put where it belongs when its slice has ended
            self._put(channel)

    def slice_end(self) -> float:
        """Return when a slice that begins now has to end."""
        now = self._runtime.time()
        if self._round_end is not None:
            return min(now + self._slice, self._round_end)
        return now if self.busy and self._waiting else now + SLICE

    def pace(self) -> None:
        """Look whether what was handled on the spot, by all, took too long for one pass of the loop.

        Between two passes sockets and timers have their turn. So half a round is timed, from a moment that is
        in the same pass for sure: that all connections are busy makes nobody wait.
        """
        now = self._runtime.time()
        if now - self._looked < ROUND / 2:
            return
        self._looked = now
        if not self._passing:
            self._passing = True
            self._runtime.call_soon(self._passed)
        elif not self.busy:
            self._wake()
            self.busy = True

    def _passed(self) -> None:
        """Note that the loop has come round."""
        self._passing = False
        self._looked = self._runtime.time()

    @property
    def _waiting(self) -> int:
        """How many connections wait."""
        return len(self._fresh) + len(self._new) + len(self._worked)

    def _wake(self) -> None:
        """See to it that there is a round."""
        if not (self._waiting or self._round_end is not None or self.busy):
            self._runtime.call_soon(self._run)

    def _put(self, channel: Scheduled) -> None:
        at = self._ahead.get(channel, 0.0) if self._ahead else 0.0
        if at > self._now and not self._rested(channel):
            heappush(self._worked, (at, next(self._order), channel))
        elif channel.newcomer:
            self._new.append(channel)
        else:
            self._fresh.append(channel)

    def _rested(self, channel: Scheduled) -> bool:
        """Return whether *channel* has had nothing to do for a while."""
        done = self._done.get(channel)
        return done is not None and self._runtime.time() - done >= REST

    def _run(self) -> None:
        """Run a round: those that are ready have a slice each, as long as there is time."""
        time = self._runtime.time
        began = time()
        self._round_end = end = began + ROUND
        self.begun = 0
        try:
            # Those that become ready meanwhile wait for the next round, so that sockets get their share.
            for _ in range(self._waiting):
                self._give_slice()
                now = time()
                self._charge(now - began)
                if now >= end or self.begun >= TASKS:
                    break
                began = now
        finally:
            self._round_end = None
            self._end_round()
            self._looked = time()

    def _give_slice(self) -> None:
        if self._fresh:
            channel = self._fresh.popleft()
            self._slice = FIRST_SLICE
        elif self._new and not (self._worked and self._slice is FIRST_SLICE):
            channel = self._new.popleft()
            self._slice = FIRST_SLICE
        else:
            self._now, _, channel = heappop(self._worked)
            self._slice = SLICE
        channel.scheduled = False
        self._running = channel
        channel.advance()

    def _charge(self, seconds: float) -> None:
        """Remember that the connection that was running took *seconds*; have it wait if it has more to do."""
        channel, self._running = self._running, None
        if channel is None:
            return
        if self._slice is FIRST_SLICE:  # what it took beyond that is the system's, most likely
            seconds = min(seconds, FIRST_SLICE)
        self._ahead[channel] = max(self._ahead.get(channel, 0.0), self._now) + seconds
        if channel.scheduled:
            self._done.pop(channel, None)
            self._put(channel)
        else:
            self._done[channel] = self._runtime.time()

    def _end_round(self) -> None:
        self._charge(0.0)  # of one that raised
        if self._waiting:
            self._runtime.call_soon(self._run)
            if len(self._ahead) > self._most:
                self._ahead = {one: at for one, at in self._ahead.items() if at > self._now}
                self._done = {one: at for one, at in self._done.items() if one in self._ahead}
                self._most = max(LEAST, 2 * len(self._ahead))
        else:
            self.busy = False
            self._ahead.clear()
            self._done.clear()
