"""Tasks that run beside the turns of a connection, at most until it ends."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from ..errors import UnavailableError
from .calls import CURRENT

if TYPE_CHECKING:
    from ..runtime import Timer
    from .seams import Owner

__all__ = ["Tasks"]


class Tasks:
    """The tasks that one connection has spawned; made for the first one."""

    __slots__ = ("_owner", "_running")

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._running: set[Timer] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run *coroutine*; raises `UnavailableError` if there are too many."""
        limit = self._owner.engine.limits.tasks
        if len(self._running) >= limit:
            coroutine.close()
            raise UnavailableError(
                f"{limit} tasks are running for this connection already, which is the limit"
            )
        token = CURRENT.set(None)
        try:
            task = self._owner.engine.runtime.run_task(
                coroutine, lambda _, error: self._ended(task, coroutine, error)
            )
        finally:
            CURRENT.reset(token)
        self._running.add(task)

    def cancel(self) -> None:
        """End them all: the device has gone."""
        for task in tuple(self._running):
            task.cancel()

    def _ended(self, task: Timer, coroutine: object, error: BaseException | None) -> None:
        self._running.discard(task)
        owner = self._owner
        if error is None:
            return
        runtime = owner.engine.runtime
        if owner.gone:
            if isinstance(error, runtime.exits):
                runtime.exit(error)
            return
        name = getattr(coroutine, "__qualname__", repr(coroutine))
        owner.enqueue(lambda wrong: owner.failed(name, None, wrong), error)
        owner.later()
