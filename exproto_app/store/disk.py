"""The thread that reads and writes a store's files, so that no disk holds the loop up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

__all__ = ["Disk"]

T = TypeVar("T")

_Job: TypeAlias = "tuple[Callable[[], Any], Callable[[Any, Exception | None], object]]"


class Disk:
    """Runs jobs in order; each ends with a call in *loop*."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        # A disk that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="exproto-app store", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T], then: Callable[[T, Exception | None], object]) -> None:
        """Run *job*; *then* gets what it returns, and what it raised."""
        self._jobs.put((job, then))

    async def run(self, job: Callable[[], T]) -> T:
        """Run *job*, and return what it returns."""
        future: asyncio.Future[T] = self._loop.create_future()

        def then(result: T, error: Exception | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.submit(job, then)
        return await future

    def close(self) -> None:
        """Take no more jobs."""
        self._jobs.put(None)

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            work, then = job
            result = error = None
            try:
                result = work()
            except Exception as caught:  # noqa: BLE001 - whoever asked for it is told
                error = caught
            try:
                self._loop.call_soon_threadsafe(then, result, error)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return
