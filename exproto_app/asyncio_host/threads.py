"""Threads for work that nobody waits for at the end: they don't keep the process from ending."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["IdleThreads"]

T = TypeVar("T")


class IdleThreads(Executor):
    """At most *count* threads, made when they are needed; *begin* is called in each.

    `ThreadPoolExecutor` has the process wait at its end for what runs in it, however low its priority.
    """

    def __init__(self, count: int, name: str, begin: Callable[[], object] = lambda: None) -> None:
        self._left = count
        self._name = name
        self._begin = begin
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._idle = threading.Semaphore(0)

    def submit(self, function: Callable[..., T], /, *args: Any, **options: Any) -> Future[T]:
        """Have a thread call *function*; return its result to be."""
        future: Future[T] = Future()
        self._work.put((future, lambda: function(*args, **options)))
        if not self._idle.acquire(blocking=False) and self._left:
            self._left -= 1
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        return future

    def _run(self) -> None:
        self._begin()
        while True:
            future, call = self._work.get()
            if future.set_running_or_notify_cancel():
                try:
                    result = call()
                except BaseException as error:  # noqa: BLE001 - it is the caller's
                    future.set_exception(error)
                else:
                    future.set_result(result)
            del future, call
            self._idle.release()
