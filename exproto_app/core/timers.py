"""What happens to a connection by itself: its device is silent for too long, `every()` calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from .calls import ALONE, HandlerCalls
from .states import CONGESTED

if TYPE_CHECKING:
    from ..runtime import Timer
    from .seams import Owner

__all__ = ["FrameGap", "Silence", "Ticks"]

ROUNDING: Final = 1e-6
"""Seconds that sums of times may be off."""


class Silence:
    """How long the device has sent nothing: *heard* is when it last did, which the channel sets.

    Peers on a datagram socket never hang up: one counts as gone once it was silent for *idle* seconds (0:
    never), unless a timer runs. When the timer that `start` sets runs out in silence, `on_timeout` has its
    turn. While the connection is congested it isn't read, so it doesn't count as silent.
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
        """Stop."""
        for timer in (self._timer, self._idle_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._idle_timer = None

    def _look(self) -> None:
        """Check whether the device was silent all the time; it may have sent something since then."""
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


class FrameGap:
    """The silence that ends a frame: *seconds* behind the last bytes, *end* has its turn.

    It begins when bytes arrive, whether they can be handled then or not, so that frames that had to wait are
    told apart all the same. While the device isn't read, nobody is silent.
    """

    __slots__ = ("_end", "_heard", "_owner", "_seconds", "_timer")

    def __init__(self, owner: Owner, seconds: float, end: Callable[[Any], None]) -> None:
        self._owner = owner
        self._seconds = seconds
        self._end = end
        self._heard = 0.0
        self._timer: Timer | None = None

    def heard(self) -> None:
        """Take note that bytes have come, or may come again."""
        engine = self._owner.engine
        if not engine.runtime.ticks:
            engine.once(("gap",), "%s ! this host has no timers: each read ends a frame", self._owner)
            self._owner.enqueue(self._end, None)
            return
        self._heard = engine.runtime.time()
        if self._timer is None:
            self._timer = engine.runtime.call_later(self._seconds, self._look)

    def cancel(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """Look whether anything has come since the timer was set."""
        if self._timer is None:  # cancelled, and fired all the same
            return
        self._timer = None
        owner = self._owner
        if not owner.reading:
            return
        runtime = owner.engine.runtime
        left = self._heard + self._seconds - runtime.time()
        if left > ROUNDING:
            self._timer = runtime.call_later(left, self._look)
            return
        owner.enqueue(self._end, None)
        owner.later()


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
