"""A checksum around any framing."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, Literal, Protocol, cast

import attrs

from ..errors import SetupError
from .base import MIXED, Cut, Fatal, Found, Framing, Items, Stock, Wait, check_order
from .modes import Mode, frames_of, gap_of, limit_of, mode_of, starts_of
from .places import Place, Text, kept_end, place_of
from .reader import Bad, Decoding, Reader, shown
from .resync import Resync
from .sized import LengthPrefix

__all__ = ["Checked", "Checksum"]

_SHORT: Final = 256
"""Bytes of a read that is often just one frame."""


class Checksum(Protocol):
    """What computes a checksum, as the objects of `exproto_app.checksums` do: *size* is in bytes."""

    @property
    def size(self) -> int:
        """Bytes of the result."""
        ...

    def __call__(self, data: bytes, /) -> int:
        """Return the checksum of *data*."""
        ...


def _packer(framing: Checked, digits: int) -> Callable[[int], bytes]:
    """Return what writes a checksum as it stands behind a frame."""
    mark = framing.mark
    if framing.text:
        how = {"short": b"%X", "decimal": b"%d"}.get(cast("str", framing.text), b"%%0%dX" % digits)
        return (mark.replace(b"%", b"%%") + how).__mod__
    code = {1: "B", 2: "H", 4: "I", 8: "Q"}.get(digits)
    if code is not None and not mark:
        return struct.Struct((">" if framing.byteorder == "big" else "<") + code).pack
    return lambda value: mark + value.to_bytes(digits, framing.byteorder)


@attrs.frozen(repr=False)
class Checked(Stock):
    r"""Frames of *framing* with a *checksum*, which is checked, dropped, and put on what is sent.

    *checksum* is one of `exproto_app.checksums`, or any function of bytes that returns a number. It has
    *size* bytes (None: as many as the checksum makes) in *byteorder*, or, as *text*, that many bytes in hex,
    two digits each. *mark* stands before it. NMEA's is `Checked(…, XOR, text=True, mark=b"*")`. With *text*
    "short" leading zeros are left out, "decimal" is a decimal number; both need a *mark*.

    *at* is where it stands: at the "end" of the frame; "behind" the end mark that follows the frame
    (`StartEnd`, `Delimiter`, `LengthPrefix` with an *end*); or at that byte of the frame. At the end, the
    bytes *end* may stand behind it, and are dropped too; by default they are the end mark of a `LengthPrefix`
    whose frames are whole. So the meters of DL/T 645, `68 … 68 C L data CS 16`, are
    `Checked(LengthPrefix(1, start=b"\x68", offset=9, adjustment=1, end=b"\x16"), SUM8)`.

    It covers the frame without the checksum, from byte *start* up to *stop*, as a slice does. Where it stands
    "behind", the end mark is covered; `stop=-1` leaves out an ETX. The *mark* is covered with *covers_mark*
    only. A negative *start* has it cover so many bytes before the frame too, of those that are dropped: the
    header of a `LengthPrefix`, the start marker of a `StartEnd`.

    A frame whose checksum is wrong is dropped, logged and counted (`frames_bad`), the device stays and its
    next frames go on; `on_bad_frame` may answer it. With *bad* `error` it is a `FramingError`, which closes
    the device unless `on_error` keeps it. The *limit* is that of *framing*, with the checksum.
    """

    framing: Framing
    checksum: Checksum | Callable[[bytes], int]
    start: int = attrs.field(default=0, kw_only=True)
    stop: int | None = attrs.field(default=None, kw_only=True)
    size: int = attrs.field(default=None, kw_only=True)
    byteorder: Literal["big", "little"] = attrs.field(default="big", kw_only=True, validator=check_order)
    text: Text = attrs.field(default=False, kw_only=True)
    mark: bytes = attrs.field(default=b"", kw_only=True)
    covers_mark: bool = attrs.field(default=False, kw_only=True)
    at: Literal["end", "behind"] | int = attrs.field(default="end", kw_only=True)
    end: bytes = attrs.field(default=None, kw_only=True)
    bad: Literal["drop", "error"] = attrs.field(default="drop", kw_only=True)
    mode: Mode = attrs.field(init=False, eq=False)
    _inner: Any = attrs.field(init=False, eq=False)  # gives what is covered before the frame too
    _function: Callable[[bytes], int] = attrs.field(init=False, eq=False)
    _pack: Callable[[int], bytes] = attrs.field(init=False, eq=False)
    _tail: int = attrs.field(init=False, eq=False)  # bytes behind what is covered
    _place: Place | None = attrs.field(init=False, eq=False)  # None where all before it is covered
    _quick: Callable[[bytes, int], Found] | None = attrs.field(init=False, eq=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "size", _checked_size(self))
        if self.end is None:
            kept = kept_end(self.framing) if self.at == "end" else b""
            object.__setattr__(self, "end", kept)
        digits = 2 * self.size if self.text else self.size
        tail = len(self.mark) + digits
        inner, place = place_of(self, tail)
        pack, end = _packer(self, digits), self.end
        if place is None and end:
            plain = pack
            pack = lambda value: plain(value) + end  # noqa: E731 - the other is a bound method
            tail += len(end)
        fields = {
            "mode": mode_of(self.framing),
            "_inner": inner,
            "_function": getattr(self.checksum, "function", self.checksum),
            "_pack": pack,
            "_tail": tail,
            "_place": place,
            "_quick": None,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        if type(inner) is LengthPrefix and place is None and self.start <= 0:
            object.__setattr__(self, "_quick", _in_one_step(self, inner))

    def __repr__(self) -> str:
        fields = attrs.fields_dict(type(self))
        defaults = {"size": getattr(self.checksum, "size", None), "end": kept_end(self.framing)}
        names = ("start", "stop", "size", "byteorder", "text", "mark", "covers_mark", "at", "end", "bad")
        texts = [
            f", {name}={value!r}"
            for name in names
            if (value := getattr(self, name)) != defaults.get(name, fields[name].default)
        ]
        return f"Checked(framing={self.framing!r}, checksum={self.checksum!r}{''.join(texts)})"

    @property
    def limit(self) -> int:
        """That of the framing."""
        return limit_of(self.framing)

    @property
    def starts(self) -> tuple[bytes, ...]:
        """Those of the framing."""
        return starts_of(self.framing)

    @property
    def flag(self) -> bytes | None:
        """That of the framing."""
        return cast("Stock", self._inner).flag if self.mode == "cut" else None

    def closed(self) -> Checked:
        """Return a `Checked` around the framing without its flag."""
        if self.flag is None:
            return self
        return attrs.evolve(self, framing=cast("Framing", cast("Stock", self.framing).closed()))

    @property
    def gap(self) -> float | None:
        """That of the framing."""
        return gap_of(self.framing)

    @property
    def last(self) -> bool:
        """Whether the end of the connection ends a frame, as with the framing."""
        return bool(getattr(self.framing, "last", False))

    def encode(self, frame: bytes) -> bytes:
        """Return *frame* with its checksum, framed; raises `FramingError` as the framing does."""
        if self._place is not None:
            return self._place.encode(self.framing, frame, self._function, self._pack)
        if self.start >= 0:
            return self.framing.encode(frame + self._pack(self._function(frame[self.start :])))
        # The length field is covered too, so it has to be there first.
        data = self.framing.encode(frame + self._pack(0))
        header = cast("LengthPrefix", self.framing).header
        place = header + len(frame)
        tail = self._pack(self._function(data[header + self.start : place]))
        return data[:place] + tail + data[place + len(tail) :]

    def first(self, data: bytes, start: int) -> Found:
        """Return the frame that begins at *start*."""
        found: Found = self._inner.first(data, start)
        if type(found) is tuple:
            return self._checked(found[0]), found[1]
        return found

    @property
    def quick(self) -> Callable[[bytes, int], Found]:
        """`first`, for a length prefix in one step."""
        return self._quick or self.first

    @property
    def runs(self) -> bool:
        """Whether `run` may be used, as with the framing."""
        return self.mode == "cut" and cast("Stock", self._inner).runs

    def run(self, data: bytes, start: int) -> tuple[Items, int, bool]:
        """Return the frames from *start* on, up to anything else, where they end, and whether one is bad."""
        items, end, _ = cast("Stock", self._inner).run(data, start)
        items, mixed = self.check(items)
        return items, end, mixed

    def cut(self, data: bytes) -> Cut:
        """Return the frames in *data* that are right, `Bad` for the others, and what is left behind."""
        if self._quick is not None and 0 < len(data) <= _SHORT:
            found = self._quick(data, 0)
            if type(found) is tuple and found[1] == len(data) and type(found[0]) is bytes:
                return [found[0]], b"", None
        items, rest, wrong = cast("Stock", self._inner).cut(data)
        items, mixed = self.check(items)
        return items, rest, MIXED if mixed and wrong is None else wrong

    def check(self, items: Items) -> tuple[Items, bool]:
        """Return *items* without their checksums, `Bad` where that is wrong, and whether there is such."""
        if self._place is not None:
            items = [self._checked(item) for item in items]
            return items, any(type(item) is not bytes for item in items)
        frames: Items = []
        append = frames.append
        function, pack, tail = self._function, self._pack, -self._tail
        begin = max(self.start, 0)
        front = max(-self.start, 0)
        mixed = False
        for item in items:
            try:
                body = item[:tail]
                good = pack(function(body[begin:] if begin else body)) == item[tail:]
            except Exception:  # noqa: BLE001 - a user's checksum may raise anything
                good = False
            if good:
                append(body[front:] if front else body)
                continue
            checked = self._checked(item)
            append(checked)
            mixed = mixed or type(checked) is not bytes
        return frames, mixed

    @property
    def pieces(self) -> tuple[Callable[[bytes], int], Callable[[int], bytes], int]:
        """What computes the checksum, what writes it, and how many bytes stand behind what it covers."""
        return self._function, self._pack, self._tail

    def _checked(self, item: bytes | Bad | None) -> bytes | Bad | None:
        """Return *item* without its checksum if that is right, `Bad` if it is wrong."""
        if type(item) is not bytes:
            return item
        if self._place is not None:
            return self._placed(self._place, item)
        start, tail = self.start, -self._tail
        body, found = item[:tail], item[tail:]
        try:
            expected = self._pack(self._function(body[start:] if start > 0 else body))
        except Exception as error:  # noqa: BLE001 - a user's checksum may raise anything
            return self._refused(item, f"checksum failed: {error!r}")
        # Hex may come in small letters too.
        if found == expected or (self.text and found.upper() == expected.upper()):
            return body[-start:] if start < 0 else body
        if len(found) < self._tail:
            return self._refused(item, f"frame has {len(item)} bytes, its checksum alone {self._tail}")
        return self._differs(item, found, expected)

    def _placed(self, place: Place, item: bytes) -> bytes | Bad:
        """Do so where it stands in a place of its own."""
        apart = place.apart(item)
        if isinstance(apart, str):
            return self._refused(item, apart)
        body, found = apart
        try:
            value = self._function(place.covered(body))
            expected = self._pack(value)
        except Exception as error:  # noqa: BLE001 - a user's checksum may raise anything
            return self._refused(item, f"checksum failed: {error!r}")
        if found == expected or (self.text and found.upper() == expected.upper()):
            return place.frame(body)
        if place.base and place.same(found, value):
            return place.frame(body)
        return self._differs(item, found, expected)

    def _differs(self, item: bytes, found: bytes, expected: bytes) -> Bad:
        end = self.end if self._place is None else b""
        if end and not found.endswith(end):
            return self._refused(item, f"frame ends with {shown(found[-len(end) :])}, not with {shown(end)}")
        if end:
            found, expected = found[: -len(end)], expected[: -len(end)]
        shows = [repr(text)[1:] if self.text else text.hex() for text in (found, expected)]
        return self._refused(item, f"checksum is {shows[0]}; it must be {shows[1]}")

    def _refused(self, frame: bytes, reason: str) -> Bad:
        return Bad(frame, reason) if self.bad == "drop" else Fatal(frame, reason)

    def waits(self, data: bytes) -> Wait:
        """Return what *data*, which `cut` left, waits for."""
        wait: Wait = self._inner.waits(data)
        return wait

    def finish(self, buffer: bytearray) -> Items:
        """Remove and return the frames that the end of a datagram ends."""
        finish = getattr(self._inner, "finish", None)
        return [] if finish is None else [self._checked(item) for item in finish(buffer)]

    def split(self, buffer: bytearray) -> Items:
        """Remove whole frames from the front of *buffer* and return them."""
        if self.mode == "cut":
            return super().split(buffer)
        items = self._inner.split(buffer)
        return self.check(items)[0] if isinstance(items, list) else items

    def decode(self, reader: Reader) -> Decoding:
        """Yield the frames, where the framing is a user's own."""
        for item in frames_of(self._inner, reader):
            yield cast("bytes | Bad", self._checked(item)) if type(item) is bytes else item


def _in_one_step(framing: Checked, prefix: LengthPrefix) -> Callable[[bytes, int], Found]:
    """Return `first` of *framing*, in one step for frames that are right; others take all steps."""
    function, pack, tail = framing.pieces
    unpack, marker, end_mark, offset, back = prefix.pieces
    begin, fixed, least, most = prefix.bounds
    behind, front, least = tail + back, max(-framing.start, 0), max(least, begin + tail + back)
    needed = offset + prefix.size
    all_steps = framing.first

    def first(data: bytes, start: int) -> Found:
        if start + needed <= len(data) and data.startswith(marker, start):
            length = fixed + unpack(data, start + offset)[0]
            end = start + length
            if end <= len(data) and least <= length <= most and data.endswith(end_mark, start, end):
                body = data[start + begin : end - behind]
                try:
                    good = pack(function(body)) == data[end - behind : end - back]
                except Exception:  # noqa: BLE001 - a user's checksum may raise anything
                    good = False
                if good:
                    return body[front:], end
        return all_steps(data, start)

    return first


def _checked_size(framing: Checked) -> int:
    size: object = framing.size
    natural = getattr(framing.checksum, "size", None)
    if not callable(framing.checksum):
        raise SetupError(f"Checked: checksum is {framing.checksum!r}; it must be a function of bytes")
    if size is None:
        size = natural
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise SetupError(f"Checked: size is {size!r}, say how many bytes {framing.checksum!r} returns")
    if natural is not None and size < natural:
        raise SetupError(f"Checked: size is {size}, {framing.checksum!r} makes {natural} bytes")
    if framing.bad not in ("drop", "error"):
        raise SetupError(f"Checked: bad is {framing.bad!r}; it must be 'drop' or 'error'")
    if isinstance(framing.framing, Resync):
        raise SetupError("Checked: put Resync around it, as in Resync(Checked(…))")
    return size
