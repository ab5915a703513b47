"""Several marks, each of which ends a frame."""

from __future__ import annotations

import re
from typing import Final

import attrs

from ..errors import SetupError
from .base import Cut, Found, Wait, Wrong
from .reader import Searched, over

__all__ = ["NEWLINES", "Marks"]


def _pattern(marks: Marks) -> re.Pattern[bytes]:
    # Of two that begin at the same place, the longer one.
    return re.compile(b"|".join(map(re.escape, sorted(marks.marks, key=len, reverse=True))))


def _singles(marks: Marks) -> tuple[bytes, ...]:
    """Return the marks of one byte if all others are made of these, which then do as well."""
    singles = tuple(mark for mark in marks.marks if len(mark) == 1)
    made = all(byte in b"".join(singles) for mark in marks.marks for byte in mark)
    return singles if made else ()


@attrs.frozen
class Marks:
    r"""The first of *marks* that comes ends a frame. Nothing between two of them is fill, and no frame.

    So a `\r` can end its frame at once, although a `\n` may follow that belongs to it.
    """

    marks: tuple[bytes, ...]
    longest: int = attrs.field(
        init=False, default=attrs.Factory(lambda self: max(map(len, self.marks)), takes_self=True)
    )
    pattern: re.Pattern[bytes] = attrs.field(
        init=False, default=attrs.Factory(_pattern, takes_self=True), repr=False, eq=False
    )

    singles: tuple[bytes, ...] = attrs.field(
        init=False, default=attrs.Factory(_singles, takes_self=True), repr=False, eq=False
    )

    def check(self, where: str) -> None:
        """Refuse marks of which one is never seen, since another one in it ends the frame before."""
        if len(set(self.marks)) < len(self.marks):
            raise SetupError(f"{where}: {list(self.marks)!r} has a duplicate")
        for mark in self.marks:
            others = tuple(other for other in self.marks if other != mark and other in mark)
            inner = [other for other in others if mark.find(other) < len(mark) - len(other)]
            if inner and not re.fullmatch(b"(?:" + b"|".join(map(re.escape, others)) + b")+", mark):
                raise SetupError(
                    f"{where}: {mark!r} never matches, because {inner[0]!r} in it ends a frame first"
                )

    def find(self, data: bytes, start: int) -> tuple[int, int]:
        """Return where the next mark begins and where it ends; -1 for both if there is none."""
        if type(data) is not Searched:
            found = self.pattern.search(data, start)
            return found.span() if found else (-1, -1)
        # It is searched from many places, and remembers.
        places = [(place, -len(mark)) for mark in self.marks if (place := data.find(mark, start)) >= 0]
        place, size = min(places, default=(-1, 0))
        return place, place - size

    def first(self, data: bytes, start: int, limit: int) -> Found:
        """Return the frame that begins at *start*, or the fill there."""
        place, behind = self.find(data, start)
        size = place - start
        if place == start:
            return None, behind
        if place < 0:
            size = len(data) - start
            # A part of a mark may have come.
            if size >= limit + self.longest:
                return Wrong(over(size, limit), 0, size - limit - self.longest + 1)
            return Wait(limit + self.longest, self.marks)
        if size > limit:
            return Wrong(over(size, limit), behind - start, size - limit)
        return data[start:place], behind

    def cut(self, data: bytes, limit: int) -> Cut | None:
        """Return the frames in *data* and what is behind the last mark; None if any may be too long."""
        if self.singles:
            first, *others = self.singles
            plain = data
            for other in others:
                plain = plain.replace(other, first)
            frames = plain.split(first)
        else:
            frames = self.pattern.split(data)
        rest = frames.pop()
        frames = list(filter(None, frames))
        if len(data) > limit and (len(rest) > limit or max(map(len, frames), default=0) > limit):
            return None
        return frames, rest, None

    def ends(self, frame: bytes, ending: bytes) -> bool:
        """Return whether *frame* with *ending* is read as this one frame."""
        return bool(frame) and self.find(frame + ending, 0)[0] == len(frame)


NEWLINES: Final = Marks((b"\r\n", b"\n", b"\r"))
r"""All ends of lines: those of Unix, of Windows, and a lone carriage return."""
