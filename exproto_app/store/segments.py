"""What a log consists of, and who appends to it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Protocol, TypeVar

import attrs

__all__ = ["Entry", "Owner", "Run", "Segment"]


@attrs.define(eq=False)
class Segment:
    """One file of *size* bytes: its *number*, and how many messages and bytes in it are still to be sent.

    *noted* are the ids that it notes as done of other files, by the number of that; None where nobody knows.
    """

    number: int
    live: int = 0
    bytes: int = 0
    size: int = 0
    noted: dict[int, array[int]] | None = None


@attrs.define(eq=False)
class Run:
    """Messages of one client that follow each other in one file, by offset; those before *next* are read.

    *first* is the id of the first one.
    """

    segment: Segment
    first: int = 0
    offsets: array[int] = attrs.Factory(lambda: array("L"))
    next: int = 0


class Entry(Protocol):
    """A message that is appended; the log sets where it is. Without a *segment* it is on no disk.

    Its *id*, of `Log.new_id`, puts it in order when the files are read again.
    """

    id: int
    segment: Segment | None
    offset: int
    size: int


E_contra = TypeVar("E_contra", bound=Entry, contravariant=True)


class Owner(Protocol[E_contra]):
    """Who appends, and is told what becomes of it."""

    def safe(self, entries: Sequence[E_contra], /) -> None:
        """Take note that *entries* are on the disk."""
        ...

    def unsafe(self, entries: Sequence[E_contra], /) -> None:
        """Take note that *entries* couldn't be written."""
        ...

    def room(self) -> None:
        """Take note that more can be appended."""
        ...
