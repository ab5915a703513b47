"""Framings that know a frame's size before they have seen its end: fixed, or told in front."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, Literal

import attrs

from ..errors import FramingError, SetupError
from .base import (
    Cut,
    Found,
    Items,
    Stock,
    Wait,
    Wrong,
    check_count,
    check_not_negative,
    check_order,
    limit_option,
    partial,
)
from .reader import over, shown

__all__ = ["RAW", "FixedSize", "LengthPrefix", "OctetCounting", "Raw", "Varint"]

_DIGITS: Final = 10  # of a length in text; no frame needs more
_MORE: Final = 0x80  # the bit of a varint's byte that says that another one follows
_SEVEN: Final = 0x7F
_VARINT: Final = 5  # bytes of a varint of 32 bits


@attrs.frozen
class Raw(Stock):
    """Each read is a frame, as the network cut it; encode changes nothing.

    A read of more than *limit* bytes becomes several frames, so there is no error.
    """

    limit: int = limit_option()

    def encode(self, frame: bytes) -> bytes:
        """Return *frame*."""
        return frame

    def first(self, data: bytes, start: int) -> Found:
        """Return what is there from *start* on."""
        end = min(len(data), start + self.limit)
        return data[start:end], end

    def cut(self, data: bytes) -> Cut:
        """Return *data* as one frame."""
        if not data:
            return [], b"", None
        if len(data) <= self.limit:
            return [data], b"", None
        return [data[start : start + self.limit] for start in range(0, len(data), self.limit)], b"", None


RAW: Final = Raw()
"""The framing of protocols that have none: each read is a frame."""


@attrs.frozen
class FixedSize(Stock):
    """Every frame has *size* bytes, at most *limit*; `encode` refuses any other."""

    size: int = attrs.field(validator=check_count)
    limit: int = limit_option()

    def __attrs_post_init__(self) -> None:
        if self.size > self.limit:
            raise SetupError(f"FixedSize: size is {self.size} bytes, limit is {self.limit}")

    def encode(self, frame: bytes) -> bytes:
        """Return *frame*; raises `FramingError` if it has another size."""
        if len(frame) != self.size:
            raise FramingError(f"frame has {len(frame)} bytes, FixedSize({self.size}) needs {self.size}")
        return frame

    def first(self, data: bytes, start: int) -> Found:
        """Return the frame that begins at *start*."""
        end = start + self.size
        return Wait(self.size) if end > len(data) else (data[start:end], end)

    def cut(self, data: bytes) -> Cut:
        """Return the whole frames in *data* and what is behind them."""
        size = self.size
        end = len(data) - len(data) % size
        return [data[start : start + size] for start in range(0, end, size)], data[end:], None


def _three(order: Literal["big", "little"]) -> Callable[[bytes, int], tuple[Any, ...]]:
    """Return what `struct` lacks: a number of three bytes."""

    def unpack(data: bytes, start: int) -> tuple[Any, ...]:
        return (int.from_bytes(data[start : start + 3], order),)

    return unpack


def _unpack(framing: LengthPrefix) -> Callable[[bytes, int], tuple[Any, ...]]:
    if framing.size == 3:
        return _three(framing.byteorder)
    code = {1: "B", 2: "H", 4: "I", 8: "Q"}[framing.size]
    return struct.Struct((">" if framing.byteorder == "big" else "<") + code).unpack_from


def _size_known(_: object, __: object, size: int) -> None:
    if size not in (1, 2, 3, 4, 8) or isinstance(size, bool):
        raise SetupError(f"LengthPrefix: size is {size!r}, a length field has 1, 2, 3, 4 or 8 bytes")


def _marker(_: object, attribute: attrs.Attribute[bytes], marker: bytes) -> None:
    if not isinstance(marker, bytes):
        raise SetupError(f"LengthPrefix: {attribute.name} is {marker!r}; it must be bytes")


def _default_strip(framing: LengthPrefix) -> int:
    return 0 if framing.offset > len(framing.start) else framing.offset + framing.size


@attrs.frozen
class LengthPrefix(Stock):
    r"""Frames with a length field; `LengthPrefix(2)` is two bytes of length, then the payload.

    *size* is that of the length field, 1, 2, 3, 4 or 8 bytes, *byteorder* `big` or `little`; *offset* bytes
    stand before it. What the field counts is told by *adjustment*: a frame, from its first byte on, has
    offset + size + value + adjustment bytes. So it is 0 where the field counts what follows it, -size where
    it counts itself too, and 2 where a checksum of two bytes is not counted. (Netty's
    `LengthFieldBasedFrameDecoder` means the same by these words.)

    *start* is a marker before the length field, counted in *offset*, and *end* one behind the frame, which
    nothing counts. A frame that has others is a `FramingError`. For GT06:
    `LengthPrefix(1, start=b"\x78\x78", end=b"\r\n")`.

    *strip* is how many bytes are dropped from the front of a frame before the handler gets it, by default:

    - where nothing but *start* is before the length field: all of that; frames are payloads, without their
      *end* too, and `encode` puts it all around them;
    - else nothing; frames are whole, and `encode` adds nothing, it checks what is there.

    With any other *strip* frames can be received, not sent: `encode` can't know what was dropped, and the
    router needs a `reply_framing`. *limit* is in bytes of a frame as the handler gets it.
    """

    size: int = attrs.field(validator=_size_known)
    byteorder: Literal["big", "little"] = attrs.field(default="big", kw_only=True, validator=check_order)
    start: bytes = attrs.field(default=b"", kw_only=True, validator=_marker)
    offset: int = attrs.field(
        default=attrs.Factory(lambda self: len(self.start), takes_self=True),
        kw_only=True,
        validator=check_not_negative,
    )
    adjustment: int = attrs.field(default=0, kw_only=True)
    strip: int = attrs.field(
        default=attrs.Factory(_default_strip, takes_self=True), kw_only=True, validator=check_not_negative
    )
    end: bytes = attrs.field(default=b"", kw_only=True, validator=_marker)
    limit: int = limit_option()
    _unpack: Callable[[bytes, int], tuple[Any, ...]] = attrs.field(init=False, repr=False, eq=False)
    header: int = attrs.field(init=False, repr=False, eq=False)  # bytes up to the end of the length field
    _fixed: int = attrs.field(init=False, repr=False, eq=False)  # bytes that are not counted
    _least: int = attrs.field(init=False, repr=False, eq=False)
    _most: int = attrs.field(init=False, repr=False, eq=False)
    _front: int = attrs.field(init=False, repr=False)  # bytes dropped in front: strip, or fewer for `keeping`
    _back: int = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.adjustment, int):
            raise SetupError(f"LengthPrefix: adjustment is {self.adjustment!r}; it must be a whole number")
        if self.offset < len(self.start):
            raise SetupError(
                f"LengthPrefix: offset is {self.offset}, start alone has {len(self.start)} bytes"
            )
        header = self.offset + self.size
        if self.strip > header + max(self.adjustment, 0):
            raise SetupError(f"LengthPrefix: strip is {self.strip}, above the header's {header} bytes")
        back = len(self.end) if self.strip else 0
        fields = {
            "header": header,
            "_unpack": _unpack(self),
            "_fixed": header + self.adjustment + len(self.end),
            "_least": header + len(self.end),
            "_most": self.limit + self.strip + back,
            "_front": self.strip,
            "_back": back,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def pieces(self) -> tuple[Callable[[bytes, int], tuple[Any, ...]], bytes, bytes, int, int]:
        """What reads the length, start and end marker, where the length is, and bytes dropped at the end."""
        return self._unpack, self.start, self.end, self.offset, self._back

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """Bytes dropped in front, bytes that aren't counted, and of how many a frame consists with them."""
        return self._front, self._fixed, self._least, self._most

    @property
    def starts(self) -> tuple[bytes, ...]:
        """The start marker, if there is one."""
        return (self.start,) if self.start else ()

    @property
    def runs(self) -> bool:
        """Whether frames of others are told apart by their start."""
        return bool(self.start)

    def keeping(self, size: int) -> LengthPrefix:
        """Return a framing that leaves *size* bytes of what this one strips in front of its frames."""
        framing = attrs.evolve(self)
        object.__setattr__(framing, "_front", self.strip - size)
        return framing

    def encode(self, frame: bytes) -> bytes:
        """Return the length and *frame*, or the frame where its header is in it.

        Raises `FramingError` if the length doesn't fit the field, or the header in the frame is wrong.
        """
        if self.strip == 0:
            self._check(frame)
            return frame
        if self.offset > len(self.start) or self.strip != self.header:
            raise FramingError(f"{self!r} can't put back what it strips: give the router a reply_framing=")
        value = len(frame) - self.adjustment
        if not 0 <= value < 1 << 8 * self.size:
            raise FramingError(
                f"frame has {len(frame)} bytes; its length, {value}, doesn't fit into {self.size} bytes"
            )
        return self.start + value.to_bytes(self.size, self.byteorder) + frame + self.end

    def _check(self, frame: bytes) -> None:
        if len(frame) < self.header:
            raise FramingError(f"frame has {len(frame)} bytes, its header alone has {self.header}")
        told = self.header + self.adjustment + int(self._unpack(frame, self.offset)[0]) + len(self.end)
        if told != len(frame):
            raise FramingError(f"frame has {len(frame)} bytes, its length field says {told}")
        if not (frame.startswith(self.start) and frame.endswith(self.end)):
            raise FramingError(
                f"frame isn't between {shown(self.start)} and {shown(self.end)}: {shown(frame)}"
            )

    def first(self, data: bytes, start: int) -> Found:
        """Return the frame that begins at *start*."""
        place, size = start + self.offset, len(data)
        if place + self.size <= size and (not self.start or data.startswith(self.start, start)):
            length = self._fixed + (data[place] if self.size == 1 else self._unpack(data, place)[0])
            end = start + length
            if (
                end <= size
                and self._least <= length <= self._most
                and (not self.end or data.endswith(self.end, start, end))
            ):
                return data[start + self._front : end - self._back], end
        return self._why_not(data, start)

    def _why_not(self, data: bytes, start: int) -> Wait | Wrong:
        """Tell why there is no frame at *start*."""
        size = len(data) - start
        if not data.startswith(self.start, start) and not partial(data, start, (self.start,)):
            wrong = data[start : start + len(self.start)]
            return Wrong(f"frame starts with {shown(wrong)}, not with {shown(self.start)}", 0)
        if size < self.header:
            return Wait(self.header)
        length = int(self._fixed + self._unpack(data, start + self.offset)[0])
        if length < self._least:
            return Wrong(f"frame has {length} bytes by its length field, its header {self.header}", 0)
        if length > self._most:
            return Wrong(over(length - self.strip - self._back, self.limit), 0)
        if length > size:
            return Wait(length)
        wrong = data[start + length - len(self.end) : start + length]
        return Wrong(f"frame ends with {shown(wrong)}, not with {shown(self.end)}", 0)

    def cut(self, data: bytes) -> Cut:
        """Return the frames in *data* and what is behind the last whole one."""
        if self.start or self.end:
            frames, start, _ = self.run(data, 0)
            found = self.first(data, start) if start < len(data) else None
            return frames, data[start:], found if type(found) is Wrong else None
        unpack, offset, front = self._unpack, self.offset, self._front
        header, fixed, most = self.header, self._fixed, self._most
        size = len(data)
        last = size - header
        frames = []
        start = 0
        while start <= last:
            length = fixed + unpack(data, start + offset)[0]
            end = start + length
            if end > size or not header <= length <= most:
                found = self.first(data, start)
                return frames, data[start:], found if type(found) is Wrong else None
            frames.append(data[start + front : end])
            start = end
        return frames, data[start:], None

    def run(self, data: bytes, start: int) -> tuple[Items, int, bool]:
        """Return the whole frames from *start* on, up to anything else, and where they end."""
        unpack, offset, front, marker = self._unpack, self.offset, self._front, self.start
        tail, last_bytes, back = len(self.end), self.end, self._back
        fixed, least, most = self._fixed, self._least, self._most
        size = len(data)
        last = size - self.header
        frames: Items = []
        while start <= last:
            length = fixed + unpack(data, start + offset)[0]
            end = start + length
            if (
                end > size
                or not least <= length <= most
                or not data.startswith(marker, start)
                or (tail and data[end - tail : end] != last_bytes)
            ):
                break
            frames.append(data[start + front : end - back])
            start = end
        return frames, start, False


@attrs.frozen
class Varint(Stock):
    """Frames behind their length as a protobuf varint: seven bits a byte, the lowest first, at most 5 bytes.

    Netty has it as `ProtobufVarint32FrameDecoder`, protobuf as `writeDelimitedTo`.
    """

    limit: int = limit_option()

    def encode(self, frame: bytes) -> bytes:
        """Return the length and *frame*; raises `FramingError` if that has 4 GiB or more."""
        value = len(frame)
        if value >> 32:
            raise FramingError(over(value, (1 << 32) - 1))
        prefix = bytearray()
        while value > _SEVEN:
            prefix.append(value & _SEVEN | _MORE)
            value >>= 7
        prefix.append(value)
        return bytes(prefix) + frame

    def first(self, data: bytes, start: int) -> Found:
        """Return the frame that begins at *start*."""
        length = 0
        for place, byte in enumerate(data[start : start + _VARINT]):
            length |= (byte & _SEVEN) << 7 * place
            if byte < _MORE:
                break
        else:
            if len(data) - start < _VARINT:
                return Wait(len(data) - start + 1)
            return Wrong(
                f"length is not a varint of at most {_VARINT} bytes: {shown(data[start : start + 5])}", 0
            )
        if length > self.limit:
            return Wrong(over(length, self.limit), 0)
        begin = start + place + 1
        end = begin + length
        return (data[begin:end], end) if end <= len(data) else Wait(end - start)

    def cut(self, data: bytes) -> Cut:
        """Return the frames in *data* and what is behind the last whole one."""
        size, limit, first = len(data), self.limit, self.first
        frames: Items = []
        append = frames.append
        start = 0
        while start < size:
            length = data[start]
            end = start + 1 + length
            if length < _MORE and length <= limit:
                if end > size:
                    break
                append(data[start + 1 : end])
                start = end
                continue
            found = first(data, start)
            if type(found) is not tuple:
                return frames, data[start:], found if type(found) is Wrong else None
            frame, start = found
            append(frame)
        return frames, data[start:], None


@attrs.frozen
class OctetCounting(Stock):
    """Frames behind their length, a decimal number and a space, as in syslog over TCP (RFC 6587, 3.4.1).

    `FirstOf(OctetCounting(), (b"<", Line()))` takes both of that document's ways in one stream.
    """

    limit: int = limit_option()

    @property
    def starts(self) -> tuple[bytes, ...]:
        """Any digit but 0."""
        return tuple(bytes([digit]) for digit in b"123456789")

    def encode(self, frame: bytes) -> bytes:
        """Return the length, a space and *frame*; raises `FramingError` if that is empty."""
        if not frame:
            raise FramingError("an empty frame has no length: it begins with a digit above 0")
        return b"%d " % len(frame) + frame

    def first(self, data: bytes, start: int) -> Found:
        """Return the frame that begins at *start*."""
        space = data.find(b" ", start, start + _DIGITS + 1)
        digits = data[start:space] if space >= 0 else data[start : start + _DIGITS + 1]
        if not digits.isdigit() or digits[0] == 0x30 or (space < 0 and len(digits) > _DIGITS):
            return Wrong(f"frame begins with {shown(digits or b' ')}, not with its length and a space", 0)
        if space < 0:
            return Wait(len(digits) + 1)
        length = int(digits)
        if length > self.limit:
            return Wrong(over(length, self.limit), 0)
        end = space + 1 + length
        return (data[space + 1 : end], end) if end <= len(data) else Wait(end - start)

    def cut(self, data: bytes) -> Cut:
        """Return the frames in *data* and what is behind the last whole one."""
        find, size, limit = data.find, len(data), self.limit
        frames: Items = []
        start = 0
        while start < size:
            space = find(b" ", start, start + _DIGITS)
            digits = data[start:space]
            if space < 0 or not digits.isdigit() or digits[0] == 0x30:
                break
            end = space + 1 + int(digits)
            if end > size or end - space - 1 > limit:
                break
            frames.append(data[space + 1 : end])
            start = end
        if start == size:
            return frames, b"", None
        more, rest, wrong = self.cut_slowly(data[start:])
        return frames + more, rest, wrong
