"""Virtual time: an event loop that never sleeps; its time moves only when nothing else can."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

__all__ = ["VirtualLoop"]

T = TypeVar("T")

PATIENCE = 30.0
"""Real seconds that a call waits for threads (`blocking=True`) before it gives up."""


class _Selector(selectors.DefaultSelector):
    """Asks the loop what to do where others would sleep."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        if self.loop.threads:
            return self._wait_for_threads()
        self.loop.rest(timeout)
        return []

    def _wait_for_threads(self) -> list[tuple[selectors.SelectorKey, int]]:
        started = time.monotonic()
        while time.monotonic() - started < PATIENCE:
            events: list[tuple[selectors.SelectorKey, int]] = super().select(1.0)
            if events:
                return events
        raise TimeoutError(f"a thread still runs after {PATIENCE:g} s of real time")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time moves only when nothing else can: up to *target*, then it stops."""

    def __init__(self) -> None:
        self.now = self.target = 1000.0
        self.threads = 0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def rest(self, timeout: float | None) -> None:
        """Go on to the next timer if it is due by the target, else stop."""
        if timeout is not None and self.now + timeout <= self.target:
            self.now += timeout
        else:
            self.stop()

    def run_in_executor(self, executor: Executor | None, func: Any, *args: Any) -> asyncio.Future[Any]:  # type: ignore[override] # the stubs differ from version to version
        future: asyncio.Future[Any] = super().run_in_executor(executor, func, *args)
        self.threads += 1
        future.add_done_callback(self._thread_done)
        return future

    def _thread_done(self, _: object) -> None:
        self.threads -= 1

    def advance(self, seconds: float) -> None:
        """Run until nothing can go on before *seconds* have passed."""
        self.target = self.now + seconds
        self.run_forever()
        self.now = self.target

    def complete(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run *coroutine* to its end; time passes as it needs."""
        self.target = float("inf")
        try:
            return self.run_until_complete(coroutine)
        finally:
            self.target = self.now
