"""Framings whose frames stand between a start and an end marker."""

from __future__ import annotations

from collections.abc import Mapping
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
    half,
    limit_option,
    partial,
)
from .reader import over, shown

__all__ = ["JT808", "SLIP", "StartEnd"]


def _table(escapes: Mapping[bytes, bytes] | None) -> dict[bytes, bytes]:
    try:
        return dict(escapes or {})
    except (TypeError, ValueError):
        raise SetupError(
            f"StartEnd: escapes is {escapes!r}; it must be a mapping of bytes to bytes"
        ) from None


def _escapes(framing: StartEnd) -> tuple[tuple[bytes, bytes], ...]:
    """Return escapes and what they stand for, the escape byte's own last; check that they can be undone."""
    table = framing.escapes
    for raw, escape in table.items():
        if not (isinstance(raw, bytes) and isinstance(escape, bytes) and len(raw) == 1 and len(escape) == 2):
            raise SetupError(
                f"StartEnd: escapes has {raw!r}: {escape!r}, it maps one byte to the two that are sent for it"
            )
    if not table:
        return ()
    leads = {escape[:1] for escape in table.values()}
    seconds = {escape[1:] for escape in table.values()}
    if len(leads) > 1:
        raise SetupError("StartEnd: escapes start with different bytes, they must start with the same one")
    if not leads < table.keys():
        raise SetupError(f"StartEnd: escapes lack {min(leads)!r}, with which they start, or any other byte")
    if len(seconds) < len(table) or seconds & table.keys():
        raise SetupError(
            "StartEnd: the second bytes of escapes must differ, and must not be escaped themselves"
        )
    if not any(bytes([byte]) in table.keys() - leads for byte in framing.end):
        raise SetupError(f"StartEnd: escapes don't keep the end marker {framing.end!r} out of frames")
    return tuple(sorted(((escape, raw) for raw, escape in table.items()), key=lambda pair: pair[1] in leads))


def _overlaps(marker: bytes) -> bool:
    """Return whether *marker* may begin within itself, as in b"abab"."""
    return any(marker.endswith(marker[:size]) for size in range(1, len(marker)))


@attrs.frozen
class StartEnd(Stock):
    r"""Frames stand between a *start* and an *end* marker, which may be the same and are not in the frame.

    *escapes* maps a byte to the two bytes that are sent for it inside a frame; `JT808` and `SLIP` are ready
    made. Without it a frame to be sent must not hold the end marker. Bytes before a start marker are a
    `FramingError`, behind which decoding can go on. Where both markers are the same, one may end a frame and
    begin the next, and markers with nothing between them are fill and are skipped, so an empty frame can't be
    sent. With *shared*, a frame need not begin with a marker at all, as in SLIP. *limit* is in bytes of a
    frame as the handler gets it.
    """

    consumes: ClassVar[bool] = True
    start: bytes = attrs.field(validator=check_some_bytes)
    end: bytes = attrs.field(validator=check_some_bytes)
    escapes: dict[bytes, bytes] = attrs.field(default=None, converter=_table, hash=False)
    shared: bool = attrs.field(default=False, kw_only=True)
    limit: int = limit_option()
    _escapes: tuple[tuple[bytes, bytes], ...] = attrs.field(init=False, repr=False, eq=False)
    _lead: int = attrs.field(init=False, repr=False, eq=False)
    _behind: int = attrs.field(init=False, repr=False)  # bytes of the end marker that are read with a frame
    _shown: str = attrs.field(init=False, repr=False, eq=False)
    _overlaps: bool = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if self.shared and self.start != self.end:
            raise SetupError(f"StartEnd: shared markers must be equal, not {self.start!r}, {self.end!r}")
        escapes = _escapes(self)
        object.__setattr__(self, "_escapes", escapes)
        object.__setattr__(self, "_lead", escapes[0][0][0] if escapes else -1)
        object.__setattr__(self, "_shown", shown(self.start))
        object.__setattr__(self, "_overlaps", _overlaps(self.end))
        flags = self.start == self.end and not self.shared
        object.__setattr__(self, "_behind", 0 if flags else len(self.end))

    @property
    def flag(self) -> bytes | None:
        """The marker, where it may end one frame and begin the next."""
        return None if self._behind else self.start

    def closed(self) -> StartEnd:
        """Return a framing whose end marker begins no other frame."""
        if self._behind:
            return self
        framing = attrs.evolve(self)
        object.__setattr__(framing, "_behind", len(self.end))
        return framing

    @property
    def starts(self) -> tuple[bytes, ...]:
        """The start marker, if it is always there."""
        return () if self.shared else (self.start,)

    def encode(self, frame: bytes) -> bytes:
        """Return *frame*, escaped, between its markers.

        Raises `FramingError` if the frame would end before its end marker, or be taken for fill.
        """
        if not frame and self.start == self.end:
            raise FramingError(f"an empty frame between markers {shown(self.start)} is fill")
        content = frame
        # The escape byte first: the others' escapes hold it.
        for escape, raw in reversed(self._escapes):
            content = content.replace(raw, escape)
        data = content + self.end
        if data.find(self.end) != len(content):
            raise FramingError(f"frame would be cut by its end marker {shown(self.end)}: {shown(frame)}")
        return self.start + data

    def first(self, data: bytes, start: int) -> Found:
        """Return the frame that begins at *start*."""
        begin = start
        if data.startswith(self.start, start):
            begin += len(self.start)
            if self.shared:
                return None, begin
        elif not self.shared:
            return self._garbage(data, start)
        end = data.find(self.end, begin)
        if end < 0:
            return self._waiting(len(data) - begin, begin - start)
        if end == begin and self.start == self.end:
            return None, end  # the second marker of fill may start a frame
        behind = end + self._behind
        content = data[begin:end]
        frame = self._plain(content)
        if frame is None or len(frame) > self.limit:
            reason, excess = self._refused(content, frame)
            return Wrong(reason, behind - start, excess)
        return frame, behind

    def sift(self, data: bytes, start: int) -> list[Sifted]:
        """Return the frames from *start* on, and what `first` says is wrong with others."""
        found: list[Sifted] = []
        items: Items = []
        mark, last, limit, width = self.start, self.end, self.limit, len(self.start)
        begins, find, plain, escaped = data.startswith, data.find, self._plain, bool(self._escapes)
        while len(found) < SIFTED:
            begin = start
            if begins(mark, start):
                begin += width
                if self.shared:
                    start = begin
                    continue
            elif not self.shared:
                if (end := find(mark, start)) < 0:
                    break
                found.append((items, start, FramingError(Reason((self._lost, data[start:end]))), end - start))
                items = []
                start = end
                continue
            if (end := find(last, begin)) < 0:
                break
            if end == begin and mark == last:  # fill
                start = end
                continue
            content = data[begin:end]
            frame = plain(content) if escaped else content
            behind = end + self._behind
            if frame is not None and len(frame) <= limit:
                items.append(frame)
            else:
                reason = Reason((self._why_refused, content, frame))
                found.append((items, start, FramingError(reason), behind - start))
                items = []
            start = behind
        if len(found) < SIFTED:
            more, end, error, skip = self.sift_one(data, start)
            found.append((items + more, end, error, skip))
        found.reverse()
        return found

    def _refused(self, content: bytes, frame: bytes | None) -> tuple[str, int]:
        """Return what is wrong with a frame, if not its escapes, and by how many bytes it is too long."""
        size = (len(content) + 1) // 2 if frame is None else len(frame)  # at least, as `_waiting` has it
        if size > self.limit:
            return over(size, self.limit), size - self.limit
        return f"frame has an unknown escape: {shown(content)}", 0

    def _why_refused(self, content: bytes, frame: bytes | None) -> str:
        return self._refused(content, frame)[0]

    def _lost(self, garbage: bytes) -> str:
        return f"{len(garbage)} bytes before the start marker {self._shown}: {shown(garbage)}"

    def cut(self, data: bytes) -> Cut:
        """Return the frames in *data* and what is behind the last end marker."""
        if self.shared:
            *parts, rest = data.split(self.start)
            clean: tuple[list[bytes], bytes] | None = ([part for part in parts if part], rest)
        elif self._behind:
            clean = self._alternating(data) if self.start == self.end else self._enclosed(data)
        else:
            clean = self._flagged(data)
        if clean is None:
            return self.cut_slowly(data)
        frames, rest = clean
        lead = self._lead
        if lead >= 0 and lead in data:
            plain = [self._plain(frame) if lead in frame else frame for frame in frames]
            frames = [frame for frame in plain if frame is not None]
            if len(frames) < len(plain):
                return self.cut_slowly(data)
        if len(data) > self.limit and (
            len(rest) > self.limit or max(map(len, frames), default=0) > self.limit
        ):
            return self.cut_slowly(data)
        return frames, rest, None

    def _flagged(self, data: bytes) -> tuple[list[bytes], bytes] | None:
        """Cut at flags, of which each may end a frame and begin the next; None if there is anything wrong."""
        if not data.startswith(self.start):
            return None
        *parts, rest = data.split(self.start)
        return [part for part in parts if part], self.start + rest

    def _alternating(self, data: bytes) -> tuple[list[bytes], bytes] | None:
        """Cut at equal markers; None if there is fill, or anything wrong."""
        parts = data.split(self.start)
        rest = parts.pop()
        if len(parts) % 2:
            rest = self.start + rest
        elif rest:
            return None
        frames = parts[1::2]
        if any(parts[::2]) or not all(frames):
            return None
        return frames, rest

    def _enclosed(self, data: bytes) -> tuple[list[bytes], bytes] | None:
        """Cut at different markers; None if there is anything wrong."""
        start, end = self.start, self.end
        if not data.startswith(start) or self._overlaps:
            return None
        frames = data[len(start) :].split(end + start)
        rest = frames.pop()
        if rest.endswith(end):
            frames.append(rest[: -len(end)])
            rest = b""
        else:
            rest = start + rest
        return (frames, rest) if data.count(end) == len(frames) else None

    def _plain(self, content: bytes) -> bytes | None:
        """Undo escapes; None if there are others than those in the table."""
        if self._lead < 0 or self._lead not in content:
            return content
        plain = content
        for escape, raw in self._escapes:
            plain = plain.replace(escape, raw)
        if len(content) - len(plain) != content.count(self._lead):
            return None
        return plain

    def _garbage(self, data: bytes, start: int) -> Wait | Wrong:
        """Return what is wrong with data that begins with no start marker; it may be half of one."""
        end = data.find(self.start, start)
        if end < 0:
            if partial(data, start, (self.start,)):
                return Wait(len(self.start))
            end = len(data) - half(data, (self.start,))
        return Wrong(self._lost(data[start:end]), end - start)

    def _waiting(self, size: int, before: int) -> Wait | Wrong:
        """Return whether *size* bytes without an end marker, behind *before* of a start, are too many."""
        content = size - len(self.end) + 1
        least = (content + 1) // 2 if self._escapes else content
        if least > self.limit:
            return Wrong(over(least, self.limit), 0, least - self.limit)
        most = 2 * self.limit if self._escapes else self.limit
        return Wait(before + most + len(self.end), self.end)

    def finish(self, buffer: bytearray) -> list[bytes]:
        """Remove fill."""
        if self.start == self.end == buffer:
            buffer.clear()
        return []


JT808: Final = StartEnd(b"\x7e", b"\x7e", {b"\x7e": b"\x7d\x02", b"\x7d": b"\x7d\x01"})
"""The frames of JT/T 808: between 7E, whose escape is 7D; the XOR at their end is `Checked`'s."""

SLIP: Final = StartEnd(b"\xc0", b"\xc0", {b"\xc0": b"\xdb\xdc", b"\xdb": b"\xdb\xdd"}, shared=True)
"""The frames of SLIP (RFC 1055): they end with C0, may begin with it too, and its escape is DB."""
