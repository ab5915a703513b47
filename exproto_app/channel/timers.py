"""What happens to a connection by itself: its device is silent for too long, `every()` calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..host import Runtime, Timer
from ..models import Reason

__all__ = ["Silence", "Ticks"]

ROUNDING = 1e-6
"""Seconds that sums of times may be off."""


class Silence:
    """How long the device has said nothing: *heard* is when it was heard last, which the channel keeps.

    Peers on a datagram socket never say goodbye: *gone* is called once one was silent for *idle* seconds (0:
    it doesn't count), unless a timer runs. *over* is called once the timer that `start` sets has run out
    without a word. While *deaf* says that nobody listens, nobody is silent.
    """

    __slots__ = (
        "_deaf",
        "_gone",
        "_idle",
        "_idle_timer",
        "_limit",
        "_over",
        "_runtime",
        "_timer",
        "heard",
        "timers",
    )

    def __init__(
        self,
        runtime: Runtime,
        idle: float,
        *,
        deaf: Callable[[], bool],
        over: Callable[[Silence, float], None],
        gone: Callable[[Reason, str], None],
    ) -> None:
        self._runtime = runtime
        self._idle = idle
        self._deaf = deaf
        self._over = over
        self._gone = gone
        self._limit = 0.0
        self._timer: Timer | None = None
        self.heard = runtime.time()
        self.timers = 0
        self._idle_timer = runtime.call_later(idle, self._look_idle) if idle else None

    def start(self, seconds: float) -> None:
        """Limit the silence to *seconds* from now on; *timers* counts how often that was done."""
        if self._timer is not None:
            self._timer.cancel()
        self.timers += 1
        self._limit = seconds
        self.heard = self._runtime.time()
        self._timer = self._runtime.call_later(seconds, self._look)

    def cancel(self) -> None:
        """Look no more."""
        for timer in (self._timer, self._idle_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._idle_timer = None

    def _look(self) -> None:
        """Look whether the device was silent all the time; it may have spoken since the timer was set."""
        now = self._runtime.time()
        if self._deaf():
            self.heard = now
        left = self.heard + self._limit - now
        if left > ROUNDING:
            self._timer = self._runtime.call_later(left, self._look)
            return
        seconds, self._limit, self._timer = self._limit, 0.0, None
        self._over(self, seconds)

    def _look_idle(self) -> None:
        left = self.heard + self._idle - self._runtime.time()
        if self._limit or left > ROUNDING:
            seconds = self._idle if self._limit else left
            self._idle_timer = self._runtime.call_later(seconds, self._look_idle)
            return
        self._idle_timer = None
        self._gone("timeout", f"no datagram for {self._idle:g} s")


class Ticks:
    """The calls that `every()` asks for: *run* gets the number of each that is due, one of *seconds*.

    One that comes due while the call before still waits or runs, until `ended`, is left out: *skipped*.
    """

    __slots__ = ("_busy", "_run", "_runtime", "_seconds", "_skipped", "_timers")

    def __init__(
        self,
        runtime: Runtime,
        seconds: Sequence[float],
        *,
        run: Callable[[int], None],
        skipped: Callable[[], None],
    ) -> None:
        self._runtime = runtime
        self._seconds = seconds
        self._run = run
        self._skipped = skipped
        self._busy: set[int] = set()
        self._timers = [runtime.call_later(every, self._due, number) for number, every in enumerate(seconds)]

    def ended(self, number: int) -> None:
        """Take note that the call of *number* has ended."""
        self._busy.discard(number)

    def cancel(self) -> None:
        """Call no more."""
        for timer in self._timers:
            timer.cancel()

    def _due(self, number: int) -> None:
        self._timers[number] = self._runtime.call_later(self._seconds[number], self._due, number)
        if number in self._busy:
            self._skipped()
            return
        self._busy.add(number)
        self._run(number)
