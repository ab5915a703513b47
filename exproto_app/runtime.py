"""What a host does for the engine, which knows neither sockets nor clocks nor tasks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from .commands import Waiter

__all__ = ["Runtime", "Timer"]


class Timer(Protocol):
    """A call that is due later, or a task that runs."""

    def cancel(self) -> object:
        """Cancel it."""
        ...


class Runtime(Protocol):
    """What the engine can't do itself; the `Runner` does it with asyncio.

    *ticks*: there are timers, so `call_later` works. *exits*: the exceptions of a handler that end the whole
    host, by `exit`; inside another program's process there are none, and they count as the handler's errors.
    *mutex* is held for a moment by what threads of handlers must not do at once; it may be taken again.
    """

    ticks: bool
    exits: tuple[type[BaseException], ...]
    mutex: AbstractContextManager[Any]

    def time(self) -> float:
        """Return the time in seconds, on a clock that never goes back."""
        ...

    def wall(self) -> int:
        """Return the time of day, in milliseconds since 1970."""
        ...

    def call_soon(self, callback: Callable[..., object], *args: Any) -> object:
        """Call *callback* after what runs now."""
        ...

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call *callback* in *delay* seconds."""
        ...

    def exit(self, error: BaseException) -> None:
        """End the host by *error*, one of *exits*; the first one counts."""
        ...

    def in_other_thread(self) -> bool:
        """Return whether this is another thread than the loop's."""
        ...

    def call_from_thread(self, callback: Callable[..., object], *args: Any) -> object:
        """Call *callback* in the loop's thread."""
        ...

    def waiter(self) -> Waiter:
        """Return something that a coroutine can wait for."""
        ...

    def run_task(
        self, awaitable: Any, done: Callable[[Any, BaseException | None], None], *, now: bool = False
    ) -> Timer:
        """Run *awaitable* in a task, in the present context; *done* gets its result or its exception.

        *now*: it may begin at once, and *done* be called before this returns.
        """
        ...

    def run_thread(
        self, function: Callable[[], Any], done: Callable[[Any, BaseException | None], None]
    ) -> Timer:
        """Run *function* in a thread; *done* gets its result or its exception."""
        ...
