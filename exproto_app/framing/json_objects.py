"""JSON objects, one behind another, without anything between them."""

from __future__ import annotations

import re
from typing import Final

import attrs

from ..errors import FramingError
from .base import Cut, Found, Items, Stock, Wait, Wrong, check_count, limit_option
from .reader import over, shown

__all__ = ["JsonObjects"]

_SPACE: Final = re.compile(rb"[ \t\r\n]+")
_OTHER: Final = re.compile(rb"[^{\[ \t\r\n]+")
_CLOSED: Final = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_UNCLOSED: Final = rb'"[^"\\]*(?:\\.[^"\\]*)*(\\?)\Z'
_PLAIN: Final = rb'[^"{}\[\]]*'

_TOKENS: Final = re.compile(
    rb"%b(?:%b%b)*(?:([{\[])|([}\]])|%b|\Z)" % (_PLAIN, _CLOSED, _PLAIN, _UNCLOSED), re.DOTALL
)
"""Whatever is no bracket, strings and the brackets in them too, and then an opening bracket, a closing one, a
string whose end hasn't come, or the end."""

_STRING_END: Final = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*(?:"|(\\?)\Z)', re.DOTALL)


class _Scan:
    """How far one value has been looked at; *too_deep*: where it nests too deeply, 0 if it doesn't."""

    __slots__ = ("_depth", "_in_string", "_most", "_skip", "too_deep")

    def __init__(self, most: int) -> None:
        self._most = most
        self._depth = 0
        self._in_string = False
        self._skip = 0  # 1 behind a backslash, whose character hasn't come
        self.too_deep = 0

    def end(self, data: bytes | bytearray, start: int) -> int:
        """Look at *data* from *start* on, behind what was looked at; return where the value ends, else -1."""
        if self._in_string:
            if start + self._skip > len(data):
                return -1
            found = _STRING_END.match(data, start + self._skip)
            if found is None or found.lastindex:
                self._skip = 0 if found is None else len(found[1])
                return -1
            self._in_string, self._skip, start = False, 0, found.end()
        depth, most = self._depth, self._most
        for token in _TOKENS.finditer(data, start):
            kind = token.lastindex
            if kind == 1:
                depth += 1
                if depth > most:
                    self.too_deep = token.end()
                    return -1
            elif kind == 2:
                depth -= 1
                if depth <= 0:
                    return token.end()
            elif kind == 3:
                self._in_string, self._skip = True, len(token[3])
        self._depth = depth
        return -1

    def whole(self, data: bytes | bytearray, start: int) -> bool:
        """Return whether a second look from the beginning is worth it."""
        return self.end(data, start) >= 0 or self.too_deep > 0


@attrs.frozen
class JsonObjects(Stock):
    """Each JSON object or array is a frame; nothing has to stand between them, white space may.

    Brackets in strings don't count. Whether what is between the brackets is JSON is left to who parses it.
    *depth* is how deep a frame may nest, *limit* how many bytes it may have; what exceeds either, or stands
    outside any bracket, is a `FramingError`. `encode` sends objects and arrays as they are.
    """

    depth: int = attrs.field(default=64, kw_only=True, validator=check_count)
    limit: int = limit_option()

    @property
    def starts(self) -> tuple[bytes, ...]:
        """The opening brackets."""
        return b"{", b"["

    @property
    def fills(self) -> tuple[bytes, ...]:
        """The white space between objects."""
        return b" ", b"\t", b"\r", b"\n"

    def encode(self, frame: bytes) -> bytes:
        """Return *frame*; raises `FramingError` if it isn't exactly one object or array."""
        end = _Scan(self.depth).end(frame, 0) if frame.startswith(self.starts) else -1
        if end != len(frame):
            raise FramingError(
                f"frame isn't one JSON object or array of at most {self.depth} levels: {shown(frame)}"
            )
        return frame

    def first(self, data: bytes, start: int) -> Found:
        """Return the object or array that begins at *start*, or the white space there."""
        space = _SPACE.match(data, start)
        if space is not None:
            return None, space.end()
        other = _OTHER.match(data, start)
        if other is not None:
            text = f"{len(other[0])} bytes outside any object or array: {shown(other[0])}"
            return Wrong(text, len(other[0]))
        scan = _Scan(self.depth)
        end = scan.end(data, start)
        size = (len(data) if end < 0 else end) - start
        if scan.too_deep:
            # What is behind may be looked at from each of these brackets, in vain: they are all skipped.
            reason = f"frame nests {self.depth + 1} levels deep, limit is {self.depth}"
            return Wrong(reason, scan.too_deep - start)
        if size > self.limit:
            # Its end may not have come yet, so who looks for starts must not go by it.
            return Wrong(over(size, self.limit), max(end - start, 0), 1)
        return (data[start:end], end) if end >= 0 else Wait(self.limit + 1, whole=scan.whole)

    def cut(self, data: bytes) -> Cut:
        """Return the frames in *data* and what is behind the last one."""
        most, limit = self.depth, self.limit
        frames: Items = []
        append = frames.append
        begin = depth = 0
        for token in _TOKENS.finditer(data):
            kind = token.lastindex
            if kind == 1:
                if depth == 0:
                    place = token.end() - 1
                    if place > begin and _SPACE.fullmatch(data, begin, place) is None:
                        break
                    begin = place
                depth += 1
                if depth > most:
                    break
            elif depth == 0:
                break  # a closing bracket, or a string
            elif kind == 2:
                depth -= 1
                if depth == 0:
                    end = token.end()
                    if end - begin > limit:
                        break
                    append(data[begin:end])
                    begin = end
        # What is left begins a frame, or is wrong: that is told by a look at it alone.
        items, end, wrong = self.scan(data, begin)
        return frames + items if items else frames, data[end:], wrong
