"""Frames that are found again behind garbage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

import attrs

from ..errors import FramingError, SetupError
from .base import MIXED, Cut, Found, Framing, Items, Stock, Wait, Wrong, half, partial
from .enclosed import StartEnd
from .modes import Mode, frames_of, limit_of, mode_of, refuse_gap, refuse_unreadable, starts_of
from .reader import NEED, Bad, Decoding, Reader, Searched, shown

__all__ = ["Resync"]


def _start_tuple(start: bytes | Sequence[bytes] | None) -> tuple[bytes, ...]:
    starts = () if start is None else (start,) if isinstance(start, bytes) else tuple(start)
    if not all(isinstance(one, bytes) and one for one in starts):
        raise SetupError(f"Resync: start is {start!r}; it must be bytes, or several of them")
    return starts


@attrs.frozen
class Resync(Stock):
    """Frames of *framing*, found again after garbage: what isn't a frame is skipped up to the next *start*.

    *start* is how a frame begins, bytes or several of them; without it *framing* has to know
    (`LengthPrefix(…, start=…)`, `StartEnd`, or `FirstOf` and `Checked` with such ones). What is skipped is
    logged and counted (`bytes_skipped`), and the device stays; one that sends nothing else is closed by the
    limit *first_frame*. A start within garbage may be a false one, so a wrong length can take what comes
    behind it: an *end* or a checksum tells soonest.
    """

    framing: Framing
    start: tuple[bytes, ...] = attrs.field(default=None, converter=_start_tuple)
    mode: Mode = attrs.field(init=False, repr=False, eq=False)
    limit: int = attrs.field(init=False, repr=False, eq=False)
    _starts: tuple[bytes, ...] = attrs.field(init=False, repr=False, eq=False)
    _pattern: re.Pattern[bytes] = attrs.field(init=False, repr=False, eq=False)
    _filled: bool = attrs.field(init=False, repr=False, eq=False)  # fill may stand within what is skipped

    def __attrs_post_init__(self) -> None:
        refuse_unreadable("Resync", self.framing)
        refuse_gap("Resync", self.framing)
        starts = self.start or starts_of(self.framing)
        if isinstance(self.framing, StartEnd) and self.framing.shared:
            raise SetupError(
                "Resync: a frame may begin anywhere in StartEnd(…, shared=True), also in garbage"
            )
        if not starts:
            raise SetupError(f"Resync: {self.framing!r} may start with any bytes; say which, with start=")
        # Where fill begins garbage ends, as it does where a frame begins.
        fills: tuple[bytes, ...] = () if self.start else getattr(self.framing, "fills", ())
        fields = {
            "mode": "cut" if mode_of(self.framing) == "cut" else "decode",
            "limit": limit_of(self.framing),
            "_starts": starts,
            "_filled": bool(getattr(self.framing, "fill", ())),
            "_pattern": re.compile(b"|".join(map(re.escape, (*starts, *fills)))),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def starts(self) -> tuple[bytes, ...]:
        """How a frame begins."""
        return self._starts

    @property
    def flag(self) -> bytes | None:
        """That of the framing."""
        return cast("Stock", self.framing).flag if self.mode == "cut" else None

    def encode(self, frame: bytes) -> bytes:
        """Return *frame* as the framing sends it; raises `FramingError` if it would be skipped."""
        data = self.framing.encode(frame)
        if not data.startswith(self._starts):
            raise FramingError(f"frame would be skipped, it doesn't begin with its start: {shown(data)}")
        return data

    @property
    def core(self) -> Stock:
        """The framing, where it knows by itself how its frames begin."""
        return self if self.start else cast("Stock", self.framing)

    def cut(self, data: bytes) -> Cut:
        """Return the frames in *data*, `Bad` for what is skipped, and what is left behind."""
        if self.start:
            return self._hunt(data)
        return self.mend(cast("Stock", self.framing).cut(data))

    def mend(self, cut: Cut) -> Cut:
        """Look for frames behind what is wrong."""
        items, rest, wrong = cut
        if wrong is None or wrong is MIXED or self.start:
            return cut
        more, rest, _ = self._hunt(rest)
        return items + more, rest, MIXED

    def _hunt(self, data: bytes) -> Cut:
        """Do so frame by frame."""
        items: Items = []
        wrong: Wrong | None = None
        gap, reason = -1, ""
        start, size = 0, len(data)
        while start < size:
            found = self._first(data, start)
            if type(found) is Wait:
                break
            if type(found) is Wrong:
                if gap < 0:
                    gap, reason = start, found.reason
                    if type(data) is not Searched:
                        data = Searched(data)
                start = self._next(data, start, found)
                continue
            item, end = cast("tuple[bytes | Bad | None, int]", found)
            if gap >= 0:
                items.append(Bad(data[gap:start], reason, frame=False))
                gap, wrong = -1, MIXED
            if item is not None:
                items.append(item)
                if type(item) is not bytes:
                    wrong = MIXED
            start = end
        if gap >= 0:
            items.append(Bad(data[gap:start], reason, frame=False))
            wrong = MIXED
        return items, data[start:], wrong

    def _first(self, data: bytes, start: int) -> Found:
        if self.start and not data.startswith(self._starts, start):
            if partial(data, start, self._starts):
                return Wait(len(data) - start + 1)
            return Wrong(self._lost(data, start), 0)
        return cast("Stock", self.framing).first(data, start)

    def _lost(self, data: bytes, start: int) -> str:
        return f"no frame starts with {shown(data[start : start + max(map(len, self._starts))])}"

    def _next(self, data: bytes, start: int, wrong: Wrong) -> int:
        """Return where to look for a frame next."""
        if wrong.size and not wrong.excess:
            end = start + wrong.size
            fill = self._pattern.search(data, start + 1, end) if self._filled else None
            return fill.start() if fill else end
        begin = start + max(1, wrong.excess)
        found = self._pattern.search(data, begin)
        return found.start() if found else max(begin, len(data) - half(data, self._starts))

    def waits(self, data: bytes) -> Wait:
        """Return what *data*, which `cut` left, waits for."""
        found = self._first(data, 0)
        if type(found) is not Wait:
            return Wait(len(data) + 1)
        if not found.ends:
            return found
        # Each byte above the limit gives up one start, and all is looked at again for the next.
        return Wait(found.size + found.size // 16, found.ends)

    def finish(self, buffer: bytearray) -> Items:
        """Remove and return the frames that the end of a datagram ends."""
        return cast("Stock", self.framing).finish(buffer)

    def decode(self, reader: Reader) -> Decoding:
        """Yield the frames, where the framing is a user's own, or holds one."""
        frames: Decoding | None = None
        try:
            while True:
                yield from self._align(reader)
                begin = reader.place
                if frames is None:
                    frames = frames_of(self.framing, reader)
                try:
                    for item in frames:
                        yield item
                        if item is not NEED:
                            break
                    else:
                        frames = None
                except FramingError as error:
                    frames = None
                    reader.remember()
                    reader.go_back()
                    if reader.place == begin:
                        yield self._skipped(reader, str(error))
                    else:
                        yield Bad(b"", str(error))
        finally:
            if frames is not None:
                frames.close()

    def _align(self, reader: Reader) -> Decoding:
        """Skip to the start of a frame."""
        while True:
            yield from reader.peek(1)
            data, start = reader.window
            if data.startswith(self._starts, start):
                return
            if partial(data, start, self._starts):
                yield from reader.peek(len(data) - start + 1)
                continue
            yield self._skipped(reader, self._lost(data, start))

    def _skipped(self, reader: Reader, reason: str) -> Bad:
        """Have read up to where a frame may begin."""
        data, start = reader.window
        end = self._next(data, start, Wrong("", 0))
        reader.move(end)
        return Bad(data[start:end], reason, frame=False)
