"""Turns that take longer than their handler's call."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import Any, Protocol, TypeAlias

from ..host import Timer
from ..router import Handler

__all__ = ["TURN", "After", "Failed", "Parking", "Turn"]

After: TypeAlias = Callable[[], None]
Failed: TypeAlias = Callable[[BaseException], None]


class Parking(Protocol):
    """The connection that a turn and its requests belong to."""

    def park(self, turn: Turn, /) -> None:
        """Give *turn* up: its handler awaits an answer, which has to come in a turn of its own."""
        ...

    def regain(self, turn: Turn, /) -> Generator[Any, None, None]:
        """Wait for the next free turn, after a wait for an answer that was cancelled."""
        ...

    def withdraw(self, request: Any, /) -> bool:
        """Forget *request*, for which nobody waits any more; return False if it has its answer already."""
        ...


class Turn:
    """A turn whose handler has not returned yet: a coroutine or a thread."""

    __slots__ = ("after", "channel", "deadline", "ended", "error", "failed", "handler", "parked", "task")

    def __init__(self, channel: Parking, handler: Handler, after: After | None, failed: Failed) -> None:
        self.channel = channel
        self.handler = handler
        self.after = after
        self.failed = failed
        self.parked = 0
        self.ended = False
        self.error: Exception | None = None
        self.task: Timer | None = None
        self.deadline: Timer | None = None


# Which turn a coroutine belongs to, also in tasks that its handler made (asyncio.gather, wait_for): the one
# that `await conn.request()` gives up. Nothing else reads it.
TURN: ContextVar[Turn | None] = ContextVar("turn", default=None)
