"""What happens to a connection by itself: its device is silent for too long, `every()` calls."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from .calls import ALONE, HandlerCalls
from .states import CONGESTED

if TYPE_CHECKING:
    from ..runtime import Timer
    from .seams import Owner

__all__ = ["Silence", "Ticks"]

ROUNDING: Final = 1e-6
"""Seconds that sums of times may be off."""


class Silence:
    """How long the device has said nothing: *heard* is when it was heard last, which the channel keeps.

    Peers on a datagram socket never say goodbye: one counts as gone once it was silent for *idle* seconds
    (0: never), unless a timer runs. When the timer that `start` sets has run out without a word, `on_timeout`
    has its turn. While the connection is congested it isn't read, so nobody is silent.
    """

    __slots__ = ("_calls", "_idle", "_idle_timer", "_limit", "_owner", "_timer", "heard", "timers")

    def __init__(self, owner: Owner, calls: HandlerCalls, idle: float = 0.0) -> None:
        runtime = owner.engine.runtime
        self._owner = owner
        self._calls = calls
        self._idle = idle
        self._limit = 0.0
        self._timer: Timer | None = None
        self.heard = runtime.time()
        self.timers = 0  # how often a timer was started
        self._idle_timer = runtime.call_later(idle, self._look_idle) if idle else None

    def start(self, seconds: float) -> None:
        """Limit the silence to *seconds* from now on."""
        if self._timer is not None:
            self._timer.cancel()
        runtime = self._owner.engine.runtime
        self.timers += 1
        self._limit = seconds
        self.heard = runtime.time()
        self._timer = runtime.call_later(seconds, self._look)

    def cancel(self) -> None:
        """Look no more."""
        for timer in (self._timer, self._idle_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._idle_timer = None

    def _look(self) -> None:
        """Look whether the device was silent all the time; it may have spoken since the timer was set."""
        if self._timer is None:  # cancelled, and fired all the same
            return
        runtime = self._owner.engine.runtime
        now = runtime.time()
        if self._owner.waits & CONGESTED:
            self.heard = now
        left = self.heard + self._limit - now
        if left > ROUNDING:
            self._timer = runtime.call_later(left, self._look)
            return
        seconds, self._limit, self._timer = self._limit, 0.0, None
        self._owner.enqueue(self._run_timeout, seconds)
        self._owner.later()

    def _look_idle(self) -> None:
        if self._idle_timer is None:
            return
        runtime = self._owner.engine.runtime
        left = self.heard + self._idle - runtime.time()
        if self._limit or left > ROUNDING:
            seconds = self._idle if self._limit else left
            self._idle_timer = runtime.call_later(seconds, self._look_idle)
            return
        self._idle_timer = None
        self._owner.end("timeout", f"no datagram for {self._idle:g} s")

    def _run_timeout(self, seconds: float) -> None:
        timers = self.timers

        def after() -> None:
            if self.timers == timers:
                self._owner.end("timeout", f"silent for {seconds:g} s")

        handler = self._owner.protocol.router.routes.timeout
        if handler is None:
            after()
        else:
            self._calls.run((ALONE,), handler, after)


class Ticks:
    """The calls that `every()` asks for. One that is due while the last one waits or runs is skipped."""

    __slots__ = ("_busy", "_calls", "_owner", "_timers")

    def __init__(self, owner: Owner, calls: HandlerCalls) -> None:
        self._owner = owner
        self._calls = calls
        self._busy: set[int] = set()
        ticks, runtime = owner.protocol.router.routes.ticks, owner.engine.runtime
        self._timers = [
            runtime.call_later(seconds, self._due, number) for number, (seconds, _) in enumerate(ticks)
        ]

    def cancel(self) -> None:
        """Call no more."""
        for timer in self._timers:
            timer.cancel()
        self._timers = []

    def _due(self, number: int) -> None:
        owner = self._owner
        if not self._timers:  # cancelled, and fired all the same
            return
        seconds, _ = owner.protocol.router.routes.ticks[number]
        self._timers[number] = owner.engine.runtime.call_later(seconds, self._due, number)
        if number in self._busy:
            owner.counters["ticks_skipped"] += 1
            return
        self._busy.add(number)
        owner.enqueue(self._run, number)
        owner.later()

    def _run(self, number: int) -> None:
        _, handler = self._owner.protocol.router.routes.ticks[number]
        self._calls.run((ALONE,), handler, partial(self._busy.discard, number))
