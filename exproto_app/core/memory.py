"""Memory: the bytes that all connections of a host hold together. No I/O, no clock.

Each connection has limits of its own, but ten thousand that use them up take more memory than there is. So
what holds more than `LARGE` bytes says so whenever that grows (`Memory.note`), and where all together hold
more than they may, those that hold most are closed, the one first that has held it for longest. Before that,
when half of it is used, who has anything waiting isn't read on (`scarce`). What a connection gives back it
needn't tell: that is found out when it matters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from ..runtime import Runtime

__all__ = ["EACH", "LARGE", "Memory"]

LARGE: Final = 4_096
"""Bytes that a connection may hold without being looked at."""

EACH: Final = 300
"""Bytes that a message or a command that waits takes beside its topic and payload."""

SCARCE: Final = 0.5
ENOUGH: Final = 0.9
"""Parts of the limit: beyond the first one memory is scarce, the second one is left when room was made."""

AGAIN: Final = 1.0
"""Seconds from one look at all to the next while memory is scarce."""

SLICE: Final = 0.004
"""Seconds for which connections are closed before others have their turn."""


class Holder(Protocol):
    """A connection: a `Channel` or a `Sniffer`."""

    @property
    def bytes_held(self) -> int:
        """How many bytes it holds, on their way in and out."""
        ...

    def lose(self, detail: str, /) -> None:
        """Give the device up."""
        ...


class Memory:
    """What is held by those that hold much: *limit* bytes at most. *count* counts by name."""

    __slots__ = ("_count", "_held", "_largest", "_limit", "_looked", "_making_room", "_runtime", "used")

    def __init__(self, runtime: Runtime, limit: int, count: Callable[[str], object]) -> None:
        self._runtime = runtime
        self._limit = limit
        self._count = count
        self._held: dict[Holder, int] = {}  # what each held when it was last looked at
        self._largest: list[Holder] = []  # those that are to be closed, the next one last
        self._making_room = False
        self._looked = 0.0
        self.used = 0

    @property
    def scarce(self) -> bool:
        """Whether so much is held that whoever has to wait shouldn't be read on."""
        return self.used > SCARCE * self._limit

    def note(self, one: Holder) -> None:
        """Take note that *one* holds more than before."""
        self._look_at(one)
        if self.scarce and self._runtime.time() - self._looked > AGAIN:
            self._look_at_all()
        if self.used > self._limit and not self._making_room:
            self._making_room = True
            self._runtime.call_soon(self._make_room)

    def forget(self, one: Holder) -> None:
        """Let go of *one*, which has ended."""
        if self._held:
            self.used -= self._held.pop(one, 0)

    def _look_at(self, one: Holder) -> int:
        """Return what *one* holds, and count that."""
        held = one.bytes_held
        self.used += (held if held > LARGE else 0) - self._held.get(one, 0)
        if held > LARGE:
            self._held[one] = held
        else:
            self._held.pop(one, None)
        return held

    def _look_at_all(self) -> dict[Holder, int]:
        """Return what those hold that hold much."""
        self._looked = self._runtime.time()
        return {one: self._look_at(one) for one in tuple(self._held)}

    def _make_room(self) -> None:
        """Close those that hold most, as many as it takes; a few now, the others soon."""
        if not self._largest:
            held = self._look_at_all()
            # Of those that hold about as much, the one that has done so for longest: the dictionary's order.
            self._largest = sorted(held, key=lambda one: held[one].bit_length(), reverse=True)[::-1]
        time = self._runtime.time
        until = time() + SLICE
        while self._largest and self.used > ENOUGH * self._limit:
            one = self._largest.pop()
            held_by_one = self._look_at(one)
            if held_by_one <= LARGE:  # it has given it back
                continue
            self._close(one, held_by_one)
            if time() >= until:
                self._runtime.call_soon(self._make_room)
                return
        self._largest.clear()
        self._making_room = False

    def _close(self, one: Holder, held: int) -> None:
        self._count("connections_evicted")
        self._count("connections_evicted.memory")
        words = f"connections hold {self.used} bytes, limit is {self._limit}, and this one holds {held}"
        one.lose(words)
        self.forget(one)
