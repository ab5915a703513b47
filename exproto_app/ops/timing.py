"""How long handlers take: measured by wrapping them, so that nobody else pays for it.

The time of a plain `def` is what it held its thread for. That of an `async def` goes from its call to its
end, with all that it awaited, `conn.request()` included. With `blocking=True` the wait for a thread doesn't
count.
"""

from __future__ import annotations

import inspect
import threading
from bisect import bisect_left
from collections.abc import Awaitable, Callable
from typing import Any, Final

import attrs

from ..app import App
from ..handlers import Handler

__all__ = ["BOUNDS", "Times", "Timing"]

BOUNDS: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0)
"""Upper bounds of the histogram's buckets, in seconds: from a look at some bytes to the `handler_timeout`."""

LOWEST: Final = BOUNDS[0]

HOT: Final = ("on_received", "on_deliver")
"""Where handlers may be called very often; each takes the connection and one thing more."""

Clock = Callable[[], float]
Call = Callable[..., Any]


@attrs.define(eq=False)
class Times:
    """What the calls of one handler took: a count for each of `BOUNDS` and one for longer, and their sum.

    *failed* is how many of them raised an exception.
    """

    protocol: str
    event: str
    handler: str
    counts: list[int] = attrs.Factory(lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0
    failed: int = 0

    def add(self, seconds: float) -> None:
        """Count a call that took *seconds*."""
        self.seconds += seconds
        self.counts[bisect_left(BOUNDS, seconds)] += 1


class Timing:
    """Measures the handlers of *app* by *clock*, in seconds, from `attach` until `detach`."""

    def __init__(self, app: App[Any], clock: Clock) -> None:
        self._app = app
        self._clock = clock
        self._calls: dict[Handler, Call] = {}
        self.times: dict[tuple[str, str, str], Times] = {}

    def attach(self) -> None:
        """Begin to measure."""
        # The app's own on_error serves the others even where the app has no protocol of its own.
        for router in dict.fromkeys((self._app, *self._app.protocols.values())):
            for handler in router.routes:
                key = router.name, handler.where, handler.name
                times = self.times.setdefault(key, Times(*key))
                self._calls[handler] = handler.call
                handler.call = _timed(handler, times, self._clock)

    def detach(self) -> None:
        """Leave the handlers as they were."""
        for handler, call in self._calls.items():
            handler.call = call
        self._calls.clear()


def _timed(handler: Handler, times: Times, clock: Clock) -> Call:
    if handler.blocking:
        return _in_thread(handler.call, times, clock)
    if inspect.iscoroutinefunction(handler.function):
        return _async(handler.call, times, clock)
    return (_hot if handler.where.startswith(HOT) else _sync)(handler.call, times, clock)


def _sync(call: Call, times: Times, clock: Clock) -> Call:
    def timed(*args: Any) -> Any:
        started = clock()
        try:
            result = call(*args)
        except Exception:
            times.failed += 1
            times.add(clock() - started)
            raise
        if inspect.isawaitable(result):
            return _finish(result, started, times, clock)
        times.add(clock() - started)
        return result

    return timed


def _hot(call: Call, times: Times, clock: Clock) -> Call:
    """Return *call*, which has two arguments, measured: `_sync`, as flat as can be."""
    counts = times.counts

    def timed(conn: Any, item: Any) -> Any:
        started = clock()
        try:
            result = call(conn, item)
        except Exception:
            times.failed += 1
            times.add(clock() - started)
            raise
        if result is not None and type(result) is not bytes and inspect.isawaitable(result):
            return _finish(result, started, times, clock)
        seconds = clock() - started
        times.seconds += seconds
        if seconds <= LOWEST:
            counts[0] += 1
        else:
            counts[bisect_left(BOUNDS, seconds)] += 1
        return result

    return timed


def _async(call: Call, times: Times, clock: Clock) -> Call:
    async def timed(*args: Any) -> Any:
        started = clock()
        try:
            return await call(*args)
        except Exception:
            times.failed += 1
            raise
        finally:
            times.add(clock() - started)

    return timed


async def _finish(awaitable: Awaitable[Any], started: float, times: Times, clock: Clock) -> Any:
    """Await what a plain `def` gave, and count its time from its call on."""
    try:
        return await awaitable
    except Exception:
        times.failed += 1
        raise
    finally:
        times.add(clock() - started)


def _in_thread(call: Call, times: Times, clock: Clock) -> Call:
    lock = threading.Lock()  # calls of one handler run at the same time

    def timed(*args: Any) -> Any:
        started = clock()
        failed = True
        try:
            result = call(*args)
            failed = False
        finally:
            seconds = clock() - started
            with lock:
                times.failed += failed
                times.add(seconds)
        return result

    return timed
