"""Messages that wait for room in a client's queue, so that nothing is dropped that its publisher awaits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...commands import Outcome, refused
from ...errors import UnavailableError
from ...models import Message

if TYPE_CHECKING:
    from ...commands import Waiter

__all__ = ["LateMessages", "Room"]


class Room:
    """The bytes that wait for room in the queues of all clients: *used*, of *total*."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0


class LateMessages:
    """Messages behind the queue of one client, in order.

    When there is too much of them in all, the oldest goes that nobody awaits, then what is new is refused.
    *dropped* counts and logs one, and returns what its publisher is told.
    """

    __slots__ = ("_dropped", "_messages", "_room", "_waiter")

    def __init__(
        self, room: Room, waiter: Callable[[], Waiter], dropped: Callable[[], UnavailableError]
    ) -> None:
        self._room = room
        self._waiter = waiter
        self._dropped = dropped
        self._messages: deque[tuple[Message, int, Outcome[None]]] = deque()

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: Message, size: int) -> Outcome[None]:
        """Have *message*, which counts *size* bytes, wait; the outcome says when it has its place."""
        room, messages = self._room, self._messages
        while room.used + size > room.total and messages:
            outcome = messages[0][2]
            if outcome.awaited or outcome.watched:
                break
            self.take()
            outcome.fail(self._dropped())
        if room.used + size > room.total:
            return refused(self._dropped())
        room.used += size
        messages.append((message, size, Outcome(self._waiter)))
        return messages[-1][2]

    @property
    def next_size(self) -> int:
        """What the first of them counts."""
        return self._messages[0][1]

    def take(self) -> tuple[Message, Outcome[None]]:
        """Take the first one out."""
        message, size, outcome = self._messages.popleft()
        self._room.used -= size
        return message, outcome

    def take_all(self) -> list[Outcome[None]]:
        """Take all out; return what their publishers wait for."""
        messages, self._messages = self._messages, deque()
        self._room.used -= sum(size for _, size, _ in messages)
        return [outcome for _, _, outcome in messages]
