"""Framings whose frames end with a mark: lines and delimiters."""

from __future__ import annotations

from typing import ClassVar, Final

import attrs

from ..errors import FramingError, SetupError
from .base import (
    SIFTED,
    Cut,
    Found,
    Items,
    Reason,
    Sifted,
    Stock,
    Wait,
    Wrong,
    check_some_bytes,
    limit_option,
)
from .reader import FRAME_LIMIT, over, shown
from .several import NEWLINES, Marks

__all__ = ["Delimiter", "Line"]

_CR: Final = 0x0D
_LF: Final = 0x0A


def _first_line(data: bytes, start: int, delimiter: bytes, strip: bytes, limit: int) -> Found:
    end = data.find(delimiter, start)
    if end >= 0:
        frame = data[start:end].removesuffix(strip)
        behind = end + len(delimiter)
        if len(frame) > limit:
            return Wrong(over(len(frame), limit), behind - start, len(frame) - limit)
        return frame, behind
    size = len(data) - start - (len(strip) if data.endswith(strip, start) else 0)
    # A part of the delimiter may have come.
    if size >= limit + len(delimiter):
        return Wrong(over(len(data) - start, limit), 0, size - limit - len(delimiter) + 1)
    return Wait(limit + len(strip) + len(delimiter), delimiter)


def _sift_lines(framing: Line | Delimiter, data: bytes, start: int, delimiter: bytes) -> list[Sifted]:
    """Do for lines what `sift` does."""
    found: list[Sifted] = []
    items: Items = []
    find, size, limit = data.find, len(delimiter), framing.limit
    strip = b"\r" if type(framing) is Line else b""
    while len(found) < SIFTED and (end := find(delimiter, start)) >= 0:
        frame = data[start:end].removesuffix(strip)
        if len(frame) <= limit:
            items.append(frame)
        else:
            found.append((items, start, FramingError(Reason((over, len(frame), limit))), end + size - start))
            items = []
        start = end + size
    if len(found) < SIFTED:  # the last line has no end
        more, end, error, skip = framing.sift_one(data, start)
        found.append((items + more, end, error, skip))
    found.reverse()
    return found


def _last_line(buffer: bytearray, strip: bytes, limit: int) -> list[bytes]:
    """Take what the end of a datagram ends."""
    frame = bytes(buffer).removesuffix(strip)
    if len(frame) > limit:
        raise FramingError(over(len(frame), limit))
    buffer.clear()
    return [frame]


@attrs.frozen
class Line(Stock):
    r"""Frames end with a line feed, and a carriage return before it is dropped.

    With *universal* a lone carriage return ends a line too, at once, and empty lines are skipped. *ending* is
    what `encode` appends, `b"\n"`, `b"\r\n"`, or `b"\r"`, which makes it universal. *limit* is in bytes
    without the ending. The end of a datagram ends a line too; with *last* so does the end of a connection,
    whose bytes behind the last ending are dropped otherwise. A frame to be sent must not hold a line feed,
    nor end with a carriage return; nor, with *universal*, hold one, or be empty.
    """

    consumes: ClassVar[bool] = True
    ending: bytes = attrs.field(default=b"\n", kw_only=True)
    limit: int = limit_option()
    last: bool = attrs.field(default=False, kw_only=True, repr=False)
    universal: bool = attrs.field(
        default=attrs.Factory(lambda self: self.ending == b"\r", takes_self=True), kw_only=True
    )

    def __attrs_post_init__(self) -> None:
        if self.ending not in NEWLINES.marks:
            raise SetupError(f"Line: ending is {self.ending!r}; it must be b'\\n', b'\\r\\n' or b'\\r'")
        if self.ending == b"\r" and not self.universal:
            raise SetupError("Line: ending is b'\\r', which ends a line only with universal=True")

    def __repr__(self) -> str:
        options = [f"ending={self.ending!r}"]
        if self.universal and self.ending != b"\r":
            options.append("universal=True")
        return f"Line({', '.join((*options, f'limit={self.limit}'))})"

    def encode(self, frame: bytes) -> bytes:
        """Return *frame* and the ending; raises `FramingError` if it wouldn't be read as one line."""
        if self.universal:
            if not NEWLINES.ends(frame, self.ending):
                raise FramingError(f"a line can't be empty, or hold a line feed or return: {shown(frame)}")
        elif _LF in frame or (_CR in frame and frame.endswith(b"\r")):
            raise FramingError(f"a line can't hold a line feed or end with a carriage return: {shown(frame)}")
        return frame + self.ending

    def first(self, data: bytes, start: int) -> Found:
        """Return the line that begins at *start*."""
        if self.universal:
            return NEWLINES.first(data, start, self.limit)
        end = data.find(b"\n", start)
        if 0 <= end <= start + self.limit:
            return data[start:end].removesuffix(b"\r"), end + 1
        return _first_line(data, start, b"\n", b"\r", self.limit)

    def sift(self, data: bytes, start: int) -> list[Sifted]:
        """Return the lines from *start* on, and what is wrong with others."""
        return super().sift(data, start) if self.universal else _sift_lines(self, data, start, b"\n")

    def cut(self, data: bytes) -> Cut:
        """Return the lines in *data* and what is behind the last one."""
        if _CR not in data:
            frames = data.split(b"\n")
            if self.universal:
                frames = [*filter(None, frames[:-1]), frames[-1]]
        elif self.universal:
            return NEWLINES.cut(data, self.limit) or self.cut_slowly(data)
        else:
            frames = data.split(b"\r\n")
            if len(frames) <= data.count(b"\n"):  # some lines end without a carriage return
                frames = data.replace(b"\r\n", b"\n").split(b"\n")
        rest = frames.pop()
        if len(data) > self.limit and (
            len(rest) > self.limit or max(map(len, frames), default=0) > self.limit
        ):
            return self.cut_slowly(data)
        return frames, rest, None

    def finish(self, buffer: bytearray) -> list[bytes]:
        """Remove and return the line that the end of a datagram ends."""
        if self.universal and not buffer:
            return []
        return _last_line(buffer, b"" if self.universal else b"\r", self.limit)


@attrs.frozen(init=False, repr=False)
class Delimiter(Stock):
    r"""Frames end with *delimiter*, any bytes; `encode` appends it.

    With several, as in `Delimiter(b";", b"\n")`, the first of them that comes ends a frame, nothing between
    two isn't a frame, and `encode` appends the first. *limit* is in bytes without the delimiter. The end of a
    datagram ends a frame too; with *last* so does the end of a connection, whose bytes behind the last
    delimiter are dropped otherwise. A frame to be sent must not hold a delimiter, nor be empty if there are
    several.
    """

    consumes: ClassVar[bool] = True
    delimiter: bytes = attrs.field(validator=check_some_bytes)
    others: tuple[bytes, ...]
    limit: int = limit_option()
    last: bool = attrs.field(default=False, kw_only=True)
    _marks: Marks | None = attrs.field(init=False, eq=False)

    def __init__(
        self, delimiter: bytes, *others: bytes, limit: int = FRAME_LIMIT, last: bool = False
    ) -> None:
        self.__attrs_init__(delimiter, others, limit=limit, last=last)
        for other in others:
            if not isinstance(other, bytes) or not other:
                raise SetupError(f"Delimiter: {other!r} is not a delimiter; give bytes, at least one")
        marks = Marks((delimiter, *others)) if others else None
        if marks is not None:
            marks.check("Delimiter")
        object.__setattr__(self, "_marks", marks)

    def __repr__(self) -> str:
        marks = [repr(self.delimiter) if self.others else f"delimiter={self.delimiter!r}"]
        return f"Delimiter({', '.join((*marks, *map(repr, self.others)))}, limit={self.limit})"

    def encode(self, frame: bytes) -> bytes:
        """Return *frame* and the delimiter; raises `FramingError` if the frame would end before that."""
        data = frame + self.delimiter
        if self._marks is not None:
            if not self._marks.ends(frame, self.delimiter):
                raise FramingError(f"frame would be cut by one of its delimiters: {shown(frame)}")
        elif data.find(self.delimiter) != len(frame):
            raise FramingError(f"frame would be cut by its delimiter {self.delimiter!r}: {shown(frame)}")
        return data

    def first(self, data: bytes, start: int) -> Found:
        """Return the frame that begins at *start*."""
        if self._marks is not None:
            return self._marks.first(data, start, self.limit)
        return _first_line(data, start, self.delimiter, b"", self.limit)

    def sift(self, data: bytes, start: int) -> list[Sifted]:
        """Return the frames from *start* on, and what is wrong with others."""
        if self._marks is not None:
            return super().sift(data, start)
        return _sift_lines(self, data, start, self.delimiter)

    def cut(self, data: bytes) -> Cut:
        """Return the frames in *data* and what is behind the last delimiter."""
        if self._marks is not None:
            return self._marks.cut(data, self.limit) or self.cut_slowly(data)
        frames = data.split(self.delimiter)
        rest = frames.pop()
        if len(data) > self.limit and (len(rest) > self.limit or max(map(len, frames)) > self.limit):
            return self.cut_slowly(data)
        return frames, rest, None

    def finish(self, buffer: bytearray) -> list[bytes]:
        """Remove and return the frame that the end of a datagram ends."""
        if self._marks is not None and not buffer:
            return []
        return _last_line(buffer, b"", self.limit)
