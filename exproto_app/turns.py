"""Turns that take longer, and the requests for which a handler gives its turn up."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from contextvars import ContextVar
from typing import Any, Protocol, TypeAlias

from .commands import Outcome, Waiter
from .errors import CommandError
from .host import Timer
from .router import Handler

__all__ = ["TURN", "After", "Failed", "Parking", "Request", "Turn"]

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

    def withdraw(self, request: Request, /) -> bool:
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


class Request(Outcome[Any]):
    """A frame sent to the device, waiting for the frame that answers it."""

    __slots__ = ("channel", "deadline", "frame", "key", "match", "retries", "timeout", "tries", "turn")

    def __init__(
        self,
        channel: Parking,
        waiter: Callable[[], Waiter],
        frame: bytes,
        *,
        match: Callable[[Any], object] | None,
        timeout: float,
        retries: int,
        key: Hashable,
    ) -> None:
        super().__init__(waiter)
        self.channel = channel
        self.frame = frame
        self.match = match
        self.timeout = timeout
        self.retries = retries
        self.key = key
        self.tries = 0
        self.turn: Turn | None = None
        self.deadline: Timer | None = None

    def __await__(self) -> Generator[Any, None, Any]:
        self.awaited = True
        turn = TURN.get()
        if self.done or turn is None or turn.channel is not self.channel or turn.ended:
            return (yield from super().__await__())
        self.turn = turn
        self.channel.park(turn)
        try:
            return (yield from super().__await__())
        except GeneratorExit:
            self.channel.withdraw(self)
            raise
        except CommandError:
            raise
        except BaseException:
            # Cancelled, by a timeout of the handler's own: it goes on in the next free turn all the same.
            if self.channel.withdraw(self):
                yield from self.channel.regain(turn)
            elif not self.done:
                yield from self._wait()
            raise
