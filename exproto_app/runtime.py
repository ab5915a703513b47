"""What a host does for the engine, which knows neither sockets nor clocks nor tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from .commands import Waiter

__all__ = ["Runtime", "Timer"]


class Timer(Protocol):
    """Something that is going to happen, or a task that runs."""

    def cancel(self) -> object:
        """Have it not happen, or end it."""
        ...


class Runtime(Protocol):
    """What the engine can't do itself; the `Runner` does it with asyncio.

    *ticks*: time passes here, so that `call_later` calls. *exits*: the exceptions of a handler that end the
    whole host, by `exit`; inside somebody else's process there are none, and they are just the handler's.
    """

    ticks: bool
    exits: tuple[type[BaseException], ...]

    def time(self) -> float:
        """Return the time in seconds, on a clock that never goes back."""
        ...

    def call_soon(self, callback: Callable[..., object], *args: Any) -> object:
        """Call *callback* after what runs now."""
        ...

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call *callback* in *delay* seconds."""
        ...

    def exit(self, error: BaseException) -> None:
        """End the host, as *error*, one of *exits*, asks; the first one counts."""
        ...

    def in_other_thread(self) -> bool:
        """Tell whether this is another thread than the loop's."""
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
