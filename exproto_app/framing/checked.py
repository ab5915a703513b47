"""A checksum around any framing."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Literal, Protocol, cast

import attrs

from ..errors import SetupError
from .base import MIXED, Cut, Fatal, Found, Framing, Items, Stock, Wait, check_order
from .modes import Mode, frames_of, limit_of, mode_of, starts_of
from .reader import Bad, Decoding, Reader
from .resync import Resync
from .sized import LengthPrefix

__all__ = ["Checked", "Checksum"]


class Checksum(Protocol):
    """What computes a checksum, as the objects of `exproto_app.checksums` do: *size* is in bytes."""

    @property
    def size(self) -> int:
        """Bytes of the result."""
        ...

    def __call__(self, data: bytes, /) -> int:
        """Return the checksum of *data*."""
        ...


def _packer(size: int, order: Literal["big", "little"], mark: bytes, *, text: bool) -> Callable[[int], bytes]:
    """Return what writes a checksum as it stands behind a frame."""
    if text:
        return (mark.replace(b"%", b"%%") + b"%%0%dX" % size).__mod__
    code = {1: "B", 2: "H", 4: "I", 8: "Q"}.get(size)
    if code is not None and not mark:
        return struct.Struct((">" if order == "big" else "<") + code).pack
    return lambda value: mark + value.to_bytes(size, order)


@attrs.frozen
class Checked(Stock):
    r"""Frames of *framing* that end with a *checksum*, which is checked, dropped, and put on what is sent.

    *checksum* is one of `exproto_app.checksums`, or any function of bytes that returns a number. It covers
    the frame from byte *start* on, up to itself. A negative *start* has it cover that many bytes before the
    frame too, of those that a `LengthPrefix` strips, such as the length field. It has *size* bytes (None: as
    many as the checksum makes) in *byteorder*, or, as *text*, that many bytes in hex, two digits each; *mark*
    stands before it and is not covered. NMEA's is `Checked(…, XOR, text=True, mark=b"*")`.

    A frame whose checksum is wrong is dropped, logged and counted (`frames_bad`), the device stays and its
    next frames go on. With *bad* `error` it is a `FramingError`, which closes the device unless `on_error`
    keeps it. The *limit* is that of *framing*, with the checksum.
    """

    framing: Framing
    checksum: Checksum | Callable[[bytes], int]
    start: int = attrs.field(default=0, kw_only=True)
    size: int = attrs.field(default=None, kw_only=True)
    byteorder: Literal["big", "little"] = attrs.field(default="big", kw_only=True, validator=check_order)
    text: bool = attrs.field(default=False, kw_only=True)
    mark: bytes = attrs.field(default=b"", kw_only=True)
    bad: Literal["drop", "error"] = attrs.field(default="drop", kw_only=True)
    mode: Mode = attrs.field(init=False, repr=False, eq=False)
    _inner: Any = attrs.field(init=False, repr=False, eq=False)  # gives what is covered before the frame too
    _function: Callable[[bytes], int] = attrs.field(init=False, repr=False, eq=False)
    _pack: Callable[[int], bytes] = attrs.field(init=False, repr=False, eq=False)
    _tail: int = attrs.field(init=False, repr=False, eq=False)  # bytes behind what is covered

    def __attrs_post_init__(self) -> None:
        size = _checked_size(self)
        inner: Framing = self.framing
        if self.start < 0:
            inner = _with_header(self)
        digits = 2 * size if self.text else size
        fields = {
            "size": size,
            "mode": mode_of(self.framing),
            "_inner": inner,
            "_function": getattr(self.checksum, "function", self.checksum),
            "_pack": _packer(digits, self.byteorder, self.mark, text=self.text),
            "_tail": len(self.mark) + digits,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

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

    def encode(self, frame: bytes) -> bytes:
        """Return *frame* with its checksum, framed; raises `FramingError` as the framing does."""
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
        items, rest, wrong = cast("Stock", self._inner).cut(data)
        items, mixed = self.check(items)
        return items, rest, MIXED if mixed and wrong is None else wrong

    def check(self, items: Items) -> tuple[Items, bool]:
        """Return *items* without their checksums, `Bad` where that is wrong, and whether there is such."""
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

    def _checked(self, item: bytes | Bad | None) -> bytes | Bad | None:
        """Return *item* without its checksum if that is right, `Bad` if it is wrong."""
        if type(item) is not bytes:
            return item
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
        shows = [repr(text)[1:] if self.text else text.hex() for text in (found, expected)]
        return self._refused(item, f"checksum is {shows[0]}; it must be {shows[1]}")

    def _refused(self, frame: bytes, reason: str) -> Bad:
        return Bad(frame, reason) if self.bad == "drop" else Fatal(frame, reason)

    def waits(self, data: bytes) -> Wait:
        """Tell what *data*, which `cut` left, waits for."""
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
    if not isinstance(framing.mark, bytes):
        raise SetupError(f"Checked: mark is {framing.mark!r}; it must be bytes")
    if framing.bad not in ("drop", "error"):
        raise SetupError(f"Checked: bad is {framing.bad!r}; it must be 'drop' or 'error'")
    if isinstance(framing.framing, Resync):
        raise SetupError("Checked: put Resync around it, as in Resync(Checked(…))")
    return size


def _with_header(checked: Checked) -> Framing:
    framing = checked.framing
    if type(framing) is not LengthPrefix or framing.strip != framing.header:
        raise SetupError(
            f"Checked: start is {checked.start}, but {framing!r} strips no header that could be covered"
        )
    if -checked.start > framing.header:
        raise SetupError(f"Checked: start is {checked.start}, the header has {framing.header} bytes")
    return framing.keeping(-checked.start)
