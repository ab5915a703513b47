"""The asyncio half that every host shares: tasks, threads, the clock, and the watch over slow handlers."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from types import CoroutineType, FrameType
from typing import Any, Final

from ..app import App
from ..commands import Waiter
from ..core import Channel, Engine, Hub, Sniffer
from ..core.calls import HandlerCalls
from ..core.straight import Straight
from ..handlers import Handler
from ..ops.logs import WINDOW, Repeats
from ..ops.timing import Timing
from ..runtime import Timer
from .threads import IdleThreads

__all__ = ["Runner"]

log = logging.getLogger("exproto_app")

THREADS = 32
"""Handlers with `blocking=True` that run at the same time; more wait for a thread."""

SLOW = 1.0
"""Seconds that a handler may hold everybody up before the watchdog names it."""

EAGER: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}
"""Runs a task up to its first wait when it is made; many never need the loop then."""

CALLERS = frozenset(
    {one.__module__ for one in (HandlerCalls, Straight, Channel, Sniffer, Timing)} | {__name__}
)
"""The modules that call handlers, and the functions of a router."""


def wall() -> int:
    """Return the time of day, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Runner:
    """One app that runs on one host, in the running event loop; the engine's `Runtime`.

    While it runs, what goes wrong again and again is counted instead of logged each time, unless *limit_logs*
    is False. *exits* are the exceptions of a handler that end the whole process; none where that is somebody
    else's. *dials*: the host sees to the app's `dial` functions, or nobody has to. *wall* returns the time of
    day, in milliseconds since 1970.
    """

    ticks = True

    def __init__(
        self,
        app: App[Any],
        hub: Hub,
        *,
        limit_logs: bool = True,
        exits: tuple[type[BaseException], ...] = (KeyboardInterrupt, SystemExit),
        dials: bool = False,
        wall: Callable[[], int] = wall,
    ) -> None:
        self.app = app
        self._dials = dials
        self.exits = exits
        self.loop = asyncio.get_running_loop()
        self.time = _clock(self.loop)
        self.call_soon = self.loop.call_soon
        self.call_later: Callable[..., Timer] = self.loop.call_later
        self.call_from_thread = self.loop.call_soon_threadsafe
        self.wall = wall
        self.waiter: Callable[[], Waiter] = self.loop.create_future
        self.engine = Engine(app, self, hub)
        self.watchdog = Watchdog(self.loop)
        self._thread = threading.get_ident()
        self.mutex: AbstractContextManager[Any] = threading.RLock()
        self._threads: IdleThreads | None = None
        self._tasks: set[asyncio.Future[Any]] = set()
        self._repeats = Repeats(partial(self.call_from_thread, self._later_sweep)) if limit_logs else None
        self._sweeping: Timer | None = None
        self._exiting = False

    async def start(self) -> None:
        """Attach the app and run its `on_startup`. Raises what that raises, with the app detached again."""
        self.engine.start()
        if self._repeats is not None:
            log.addFilter(self._repeats)
            self.engine.held_back = self._repeats.again
        if self.app.dialled and not self._dials:
            log.warning("app ! @app.dial has no effect here: only exproto-app run connects to devices")
        try:
            for handler in self.app.startup:
                await _call(handler)
        except BaseException:
            self._tell_repeats()
            self.engine.stop()
            raise
        self.watchdog.start()

    async def stop(self) -> None:
        """End every connection, bounded in time, run `on_shutdown`, and detach the app."""
        try:
            await self._end_connections()
            await self._run_shutdown()
        finally:
            self.watchdog.stop()
            self._tell_repeats()
            self.engine.stop()

    async def _run_shutdown(self) -> None:
        """Run every `on_shutdown`: one that fails must not stop the others."""
        leaving: BaseException | None = None
        for handler in self.app.shutdown:
            try:
                await _call(handler)
            except self.exits as error:  # noqa: PERF203 - one that fails must not stop the others
                leaving = leaving or error
            except Exception:
                log.exception("app ! %s failed", handler.name)
        if leaving is not None and not self._exiting:
            raise leaving

    async def _end_connections(self) -> None:
        engine = self.engine
        if not engine.open:
            return
        empty = self.loop.create_future()
        engine.when_empty = partial(_wake, empty)
        engine.shutdown()
        # A handler, the flush, the close and on_terminated may each take their time.
        await asyncio.wait([empty], timeout=4 * engine.limits.end_timeout)
        engine.when_empty = None
        if engine.open:
            log.error("app ! %d connections didn't end in time", engine.open)

    def exit(self, error: BaseException) -> None:
        """End the loop by raising *error* in it, once."""
        if not self._exiting:
            self._exiting = True
            # From a callback of its own: some loops go on after one of a transport has raised.
            self.loop.call_soon(_raise, error)

    def in_other_thread(self) -> bool:
        """Return whether this is another thread than the loop's."""
        return threading.get_ident() != self._thread

    def run_task(
        self, awaitable: Any, done: Callable[[Any, BaseException | None], None], *, now: bool = False
    ) -> Timer:
        """Run *awaitable* in a task; *done* gets its result or its exception.

        *now*: it may begin at once, and *done* be called before this returns, which Python 3.12 and newer do.
        """
        task: asyncio.Future[Any]
        self.engine.scheduler.begun += 1
        if type(awaitable) is not CoroutineType:
            task = asyncio.ensure_future(_caught(awaitable))
        elif now and EAGER:
            task = asyncio.Task(_caught(awaitable), loop=self.loop, **EAGER)
            if task.done():
                self._done(done, task)
                del task  # the traceback of its exception leads to this frame, and it has the exception
                return _THROUGH
        else:
            task = self.loop.create_task(_caught(awaitable))
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(partial(self._done, done))
        return task

    def run_thread(
        self, function: Callable[[], Any], done: Callable[[Any, BaseException | None], None]
    ) -> Timer:
        """Run *function* in a thread; *done* gets its result or its exception."""
        if self._threads is None:  # a handler that never returns must not keep the process from ending
            self._threads = IdleThreads(THREADS, "exproto-app")
        future: asyncio.Future[Any] = self.loop.run_in_executor(self._threads, function)
        future.add_done_callback(partial(self._done, done))
        return future

    def _later_sweep(self) -> None:
        if self._sweeping is None:
            self._sweeping = self.call_later(WINDOW, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        if self._repeats is not None and self._repeats.sweep(time.time()):
            self._later_sweep()

    def _tell_repeats(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._repeats is not None:
            log.removeFilter(self._repeats)
            self._repeats.finish(time.time())

    def _done(self, done: Callable[[Any, BaseException | None], None], future: asyncio.Future[Any]) -> None:
        self._tasks.discard(future)
        if future.cancelled():
            done(None, asyncio.CancelledError())
        elif (error := future.exception()) is not None:
            done(None, error)
        else:
            result = future.result()
            if type(result) is _Exit:
                done(None, result.error)
            else:
                done(result, None)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Through:
    """A task that has ended."""

    def cancel(self) -> None:
        """Do nothing."""


_THROUGH: Final = _Through()


class _Exit:
    """The result of a coroutine that raised an exit."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


async def _caught(awaitable: Any) -> Any:
    """Await *awaitable*; return its exit, which a task would raise through the whole loop."""
    try:
        return await awaitable
    except (KeyboardInterrupt, SystemExit) as error:
        return _Exit(error)


def _clock(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return the clock of *loop*, or one like it that advances while a callback runs."""
    kind = type(loop)
    if kind.time is asyncio.BaseEventLoop.time or kind.__module__.startswith("uvloop"):
        return time.monotonic  # uvloop's own stands still from one turn of the loop to the next
    return loop.time


def _raise(error: BaseException) -> None:
    raise error


async def _call(handler: Handler) -> None:
    result = handler.call()
    if inspect.isawaitable(result):
        await result


class Watchdog:
    """A thread that names the handler that blocks the event loop, which no code in the loop can do.

    *awake* is False while the loop rests on purpose, between two calls of a `TestClient`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.awake = True
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._stopped = threading.Event()
        self._answered = False

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._watch, name="exproto-app watchdog", daemon=True).start()

    def stop(self) -> None:
        """End the watch."""
        self._stopped.set()

    def _answer(self) -> None:
        self._answered = True

    def _watch(self) -> None:
        asked, said = 0.0, False
        self._answered = True
        while not self._stopped.wait(SLOW / 4):
            now = time.monotonic()
            if self._answered or not self.awake:
                asked, said, self._answered = now, False, False
                try:
                    self._loop.call_soon_threadsafe(self._answer)
                except RuntimeError:  # the loop is closed
                    return
            elif not said and now - asked >= SLOW:
                said = True
                self._tell()

    def _tell(self) -> None:
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - documented for debuggers such as this
        if frame is None:
            return
        stack = "".join(traceback.format_stack(frame)).rstrip()
        text = "app ! %s has blocked all connections for %g s; make it a def with blocking=True. It is here:"
        record = log.makeRecord(log.name, logging.WARNING, __file__, 0, text, (_culprit(frame), SLOW), None)
        record.stack_info = stack
        log.handle(record)


def _culprit(frame: FrameType) -> str:
    """Return the name of the function that the engine called, or of the one that runs."""
    name = frame.f_code.co_name
    walk: FrameType | None = frame
    while walk is not None:
        caller = walk.f_back
        if caller is not None and caller.f_globals.get("__name__") in CALLERS:
            return walk.f_code.co_name
        walk = caller
    return name
