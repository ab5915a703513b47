"""Frames with fill before them: wake-up bytes, padding, idle bytes."""

from __future__ import annotations

import re
from typing import cast

import attrs

from ..errors import FramingError, SetupError
from .base import Found, Framing, Items, Stock, Wait, check_not_negative, partial
from .modes import Mode, frames_of, gap_of, limit_of, mode_of, refuse_unreadable, starts_of
from .reader import NEED, Decoding, Reader, shown
from .resync import Resync

__all__ = ["Skip"]


@attrs.frozen(init=False, repr=False)
class Skip(Stock):
    r"""Frames of *framing* with *fill* before them, any number of times; that isn't garbage, it is skipped.

    So wake-up bytes, padding and idle bytes are neither logged nor counted. Each *fill* is bytes. With *send*
    the first of them is sent so many times before each frame: a meter that wakes up by four FE is
    `Skip(framing, b"\xfe", send=4)`. A frame can't begin with fill, so such a one isn't sent.
    """

    framing: Framing
    fill: tuple[bytes, ...]
    send: int = attrs.field(validator=check_not_negative)
    mode: Mode = attrs.field(init=False, eq=False)
    limit: int = attrs.field(init=False, eq=False)
    _pattern: re.Pattern[bytes] = attrs.field(init=False, eq=False)
    _lead: bytes = attrs.field(init=False, eq=False)
    _first_bytes: bytes = attrs.field(init=False, eq=False)  # of the fill

    def __init__(self, framing: Framing, *fill: bytes, send: int = 0) -> None:
        self.__attrs_init__(framing, fill, send)
        refuse_unreadable("Skip", framing)
        if isinstance(framing, Resync):
            raise SetupError("Skip: put Resync around it, as in Resync(Skip(…))")
        if not fill or not all(isinstance(one, bytes) and one for one in fill):
            raise SetupError(
                f"Skip: fill is {fill!r}; say which bytes to skip, as in Skip(framing, b'\\xfe')"
            )
        hidden = [start for start in starts_of(framing) if start.startswith(fill)]
        if hidden:
            raise SetupError(f"Skip: {framing!r} starts with {hidden[0]!r}, which would be skipped")
        fields = {
            "mode": "cut" if mode_of(framing) == "cut" else "decode",
            "limit": limit_of(framing),
            "_pattern": re.compile(b"(?:" + b"|".join(map(re.escape, fill)) + b")+"),
            "_lead": fill[0] * send,
            "_first_bytes": bytes(one[0] for one in fill),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        send = f", send={self.send}" if self.send else ""
        return f"Skip({self.framing!r}, {', '.join(map(repr, self.fill))}{send})"

    @property
    def starts(self) -> tuple[bytes, ...]:
        """How frames of the framing begin, and the fill; none where a frame may begin with any bytes."""
        starts = starts_of(self.framing)
        return (*starts, *self.fill) if starts else ()

    @property
    def gap(self) -> float | None:
        """That of the framing."""
        return gap_of(self.framing)

    @property
    def last(self) -> bool:
        """Whether the end of the connection ends a frame, as with the framing."""
        return bool(getattr(self.framing, "last", False))

    def closed(self) -> Skip:
        """Return a `Skip` around the framing without its flag."""
        if self.mode != "cut":
            return self
        return Skip(cast("Framing", cast("Stock", self.framing).closed()), *self.fill, send=self.send)

    @property
    def flag(self) -> bytes | None:
        """That of the framing."""
        return cast("Stock", self.framing).flag if self.mode == "cut" else None

    def encode(self, frame: bytes) -> bytes:
        """Return *frame* as the framing sends it, behind fill if that is to be sent.

        Raises `FramingError` if a part of the frame would be taken for fill.
        """
        data = self.framing.encode(frame)
        if data.startswith(self.fill) or partial(data, 0, self.fill):
            raise FramingError(f"frame would be skipped, it begins with fill: {shown(data)}")
        return self._lead + data

    def first(self, data: bytes, start: int) -> Found:
        """Return the fill at *start*, or the frame that begins there."""
        if data[start] not in self._first_bytes:
            return cast("Stock", self.framing).first(data, start)
        fill = self._pattern.match(data, start)
        if fill is not None:
            return None, fill.end()
        if partial(data, start, self.fill):
            return Wait(len(data) - start + 1)
        return cast("Stock", self.framing).first(data, start)

    def waits(self, data: bytes) -> Wait:
        """Return what *data*, which `cut` left, waits for."""
        if partial(data, 0, self.fill):
            return Wait(len(data) + 1)
        return cast("Stock", self.framing).waits(data)

    def finish(self, buffer: bytearray) -> Items:
        """Remove and return the frames that the end of a datagram ends."""
        return cast("Stock", self.framing).finish(buffer)

    def decode(self, reader: Reader) -> Decoding:
        """Yield the frames, where the framing is a user's own."""
        frames: Decoding | None = None
        try:
            while True:
                yield from self._pass(reader)
                if frames is None:
                    frames = frames_of(self.framing, reader)
                for item in frames:
                    yield item
                    if item is not NEED:
                        break
                else:
                    frames = None
        finally:
            if frames is not None:
                frames.close()

    def _pass(self, reader: Reader) -> Decoding:
        """Read up to where a frame begins."""
        while True:
            yield from reader.peek(1)
            data, start = reader.window
            fill = self._pattern.match(data, start)
            if fill is not None:
                reader.move(fill.end())
            elif partial(data, start, self.fill):
                yield from reader.peek(len(data) - start + 1)
            else:
                return
