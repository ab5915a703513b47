"""Framings: where a frame ends in the bytes of a device, and what is put around a frame that is sent.

A framing is any object with `encode(frame) -> bytes` and one of two ways to find frames:

`decode(reader)` is a generator for the connection's life, so it can keep state. It asks for bytes and
yields frames::

    class Counted:
        def encode(self, frame: bytes) -> bytes:
            return len(frame).to_bytes(2, "big") + frame

        def decode(self, reader: Reader) -> Decoding:
            while True:
                size = yield from reader.exactly(2)
                frame = yield from reader.exactly(int.from_bytes(size, "big"))
                yield frame

`split(buffer)` is faster: it removes whole frames from the front of *buffer* (`del buffer[:n]`) and returns
them. It returns the good frames that stand before anything wrong, and raises `FramingError` only if the
first thing in the buffer is wrong: it is called again while it finds something. Had it removed the wrong
bytes before it raised, decoding can go on behind them. A framing with both ways is used by `split`.

Two things are optional. `limit` is the most bytes that a frame may have, 65,536 where there is none; it is
for what the device sends, not for what is sent to it. `finish(buffer)` belongs to `split`: it is called at
the end of a datagram with what `split` left, and returns the frames that end there.

For every framing here `decode(encode(frame)) == frame`: `encode` refuses a frame for which this can't hold.
They are stateless, may be shared, and are compared by their options.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Mapping
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias, cast, final

import attrs

from .errors import FramingError, SetupError

__all__ = [
    "RAW",
    "Decoder",
    "Decoding",
    "Delimiter",
    "FixedSize",
    "Framing",
    "LengthPrefix",
    "Line",
    "Need",
    "Raw",
    "Reader",
    "SplitFraming",
    "StartEnd",
    "StreamFraming",
]

FRAME_LIMIT: Final = 65_536  # bytes of one frame, where a framing says nothing else
_HEADER: Final = 64  # bytes around a frame that a reader may wait for above the limit
_LONG: Final = 4_096  # bytes of an unfinished frame, beyond which it is no longer searched from its start
_CR: Final = 0x0D
_STILL: Final = 10_000  # frames or looks without reading a byte, after which a generator is stopped


@final
class Need:
    """What a reader yields while it waits for bytes; nothing that a framing makes or looks at."""

    __slots__ = ()


_NEED: Final = Need()

Decoding: TypeAlias = Generator[bytes | Need, None, None]
"""What `decode` returns: a generator that yields frames."""


class Reader:
    """The bytes of one connection, for the `decode` of a framing; every method is for `yield from`."""

    __slots__ = (
        "_data",
        "_delimiter",
        "_ended",
        "_limit",
        "_looks",
        "_most",
        "_quick",
        "_refused",
        "_seen",
        "_size",
        "_start",
        "_wanted",
    )

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._most = limit + _HEADER
        self._data = b""
        self._start = 0
        self._size = 0
        self._quick = 0  # _size, unless that would let a frame over the limit pass
        self._wanted = 1
        self._delimiter: bytes | None = None
        self._ended = False
        self._seen = -1
        self._looks = 0
        self._refused: FramingError | None = None

    def exactly(self, size: int) -> Generator[Need, None, bytes]:
        """Return the next *size* bytes.

        Raises `FramingError` if *size* is negative, or above the framing's limit and 64 bytes for a header.
        """
        start = self._start
        end = start + size
        if start < end <= self._quick:
            self._start = end
            return self._data[start:end]
        if not 0 < size <= self._most:
            self._check(size)
        while self._start + size > self._size:
            self._wanted = size
            yield _NEED
        start = self._start
        self._start = start + size
        return self._data[start : self._start]

    def peek(self, size: int) -> Generator[Need, None, bytes]:
        """Return the next *size* bytes and leave them to be read; raises as `exactly` does."""
        self._look()
        if not 0 < size <= self._most:
            self._check(size)
        while self._start + size > self._size:
            self._wanted = size
            yield _NEED
        return self._data[self._start : self._start + size]

    def until(self, delimiter: bytes, limit: int | None = None) -> Generator[Need, None, bytes]:
        """Return the bytes before *delimiter*, and read past it; the end of a datagram counts as one.

        Raises `FramingError` if more than *limit* bytes stand before it (None: the framing's limit).
        """
        if not delimiter:
            raise ValueError("reader.until() needs a delimiter of at least one byte")
        most = self._limit if limit is None else limit
        while (end := self._data.find(delimiter, self._start)) < 0:
            if self._size - self._start >= most + len(delimiter):
                self._refuse(_over(self._size - self._start, most))
            if self._ended:
                self._ended = False
                end = self._size
                break
            self._wanted = most + len(delimiter)
            self._delimiter = delimiter
            yield _NEED
            self._delimiter = None
        start = self._start
        if end - start > most:
            self._refuse(_over(end - start, most))
        self._start = min(end + len(delimiter), self._size)
        return self._data[start:end]

    def _check(self, size: int) -> None:
        if size < 0:
            self._refuse(f"frame has {size} bytes by its own account")
        if size > self._most:
            self._refuse(_over(size, self._limit))
        self._look()

    def _look(self) -> None:
        # Looking for ever without reading would hang the whole process.
        if self._start != self._seen:
            self._seen = self._start
            self._looks = 0
        self._looks += 1
        if self._looks > _STILL:
            self._refuse(f"decode looked {_STILL} times without reading a byte")

    def _refuse(self, reason: str) -> None:
        self._refused = FramingError(reason)
        raise self._refused


class SplitFraming(Protocol):
    """A framing that removes whole frames from the front of a buffer."""

    def encode(self, frame: bytes, /) -> bytes:
        """Return what is sent for *frame*; raise `FramingError` if it can't be one."""

    def split(self, buffer: bytearray, /) -> list[bytes]:
        """Remove whole frames from the front of *buffer* and return them."""


class StreamFraming(Protocol):
    """A framing that reads a connection from its first byte to its last."""

    def encode(self, frame: bytes, /) -> bytes:
        """Return what is sent for *frame*; raise `FramingError` if it can't be one."""

    def decode(self, reader: Reader, /) -> Decoding:
        """Yield the frames that *reader*'s bytes make up."""


Framing: TypeAlias = SplitFraming | StreamFraming
"""What cuts a device's bytes into frames, and frames what is sent; the module's docstring tells how."""


class _Wrong(NamedTuple):
    """What is wrong behind the good frames, and how many bytes to skip to go on; 0 where nobody can tell."""

    reason: str
    size: int


_Cut: TypeAlias = tuple[list[bytes], bytes, _Wrong | None]
"""Frames, the bytes behind them, and what is wrong with these."""


class _Stock:
    """What the framings below share: all is said by `cut`, which sees bytes and changes nothing."""

    __slots__ = ()

    def split(self, buffer: bytearray) -> list[bytes]:
        """Remove whole frames from the front of *buffer* and return them.

        Raises `FramingError` if *buffer* starts with something wrong; that is removed where its end is known.
        """
        frames, rest, wrong = self.cut(bytes(buffer))
        gone = len(buffer) - len(rest)
        if wrong is None or frames:
            del buffer[:gone]
            return frames
        del buffer[: gone + wrong.size]
        raise FramingError(wrong.reason)

    def cut(self, data: bytes) -> _Cut:
        """Return the frames in *data*, what is left behind them, and what is wrong with that."""
        raise NotImplementedError

    def ready(self, buffer: bytearray, searched: int) -> bool:  # noqa: ARG002 - for those who wait
        """Tell whether `cut` may find something now that *buffer* is longer than *searched*."""
        return True

    def finish(self, buffer: bytearray) -> list[bytes]:  # noqa: ARG002 - only some have a use for it
        """Remove and return the frames that the end of a datagram ends."""
        return []


def _over(size: int, limit: int) -> str:
    return f"frame has {size} bytes, limit is {limit}"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _count(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if not _is_count(value):
        raise SetupError(
            f"{type(instance).__name__}: {attribute.name} is {value!r}, it has to be a whole number above 0"
        )


def _some_bytes(instance: object, attribute: attrs.Attribute[bytes], value: bytes) -> None:
    if not isinstance(value, bytes) or not value:
        raise SetupError(
            f"{type(instance).__name__}: {attribute.name} is {value!r}, it has to be bytes, at least one"
        )


def _limit() -> int:
    """Declare the option that every framing has."""
    limit: int = attrs.field(default=FRAME_LIMIT, kw_only=True, validator=_count)
    return limit


@attrs.frozen
class Raw(_Stock):
    """Each read is a frame, as the network cut it; encode changes nothing.

    A read of more than *limit* bytes becomes several frames, so there is no error.
    """

    limit: int = _limit()

    def encode(self, frame: bytes) -> bytes:
        """Return *frame*."""
        return frame

    def cut(self, data: bytes) -> _Cut:
        """Return *data* as one frame."""
        if not data:
            return [], b"", None
        if len(data) <= self.limit:
            return [data], b"", None
        return [data[start : start + self.limit] for start in range(0, len(data), self.limit)], b"", None


RAW: Final = Raw()
"""The framing of protocols that have none: each read is a frame."""


def _lines(framing: Line | Delimiter, delimiter: bytes, data: bytes, *, strip: bytes) -> _Cut:
    """Cut *data* frame by frame, up to the first that is over the limit."""
    frames: list[bytes] = []
    start = 0
    while (end := data.find(delimiter, start)) >= 0:
        frame = data[start:end].removesuffix(strip)
        if len(frame) > framing.limit:
            size = end + len(delimiter) - start
            return frames, data[start:], _Wrong(_over(len(frame), framing.limit), size)
        frames.append(frame)
        start = end + len(delimiter)
    rest = data[start:]
    # A part of the delimiter may have come.
    if len(rest.removesuffix(strip)) >= framing.limit + len(delimiter):
        return frames, rest, _Wrong(_over(len(rest), framing.limit), 0)
    return frames, rest, None


def _last_line(framing: Line | Delimiter, buffer: bytearray, *, strip: bytes) -> list[bytes]:
    """Take what the end of a datagram ends."""
    frame = bytes(buffer).removesuffix(strip)
    if len(frame) > framing.limit:
        raise FramingError(_over(len(frame), framing.limit))
    buffer.clear()
    return [frame]


@attrs.frozen
class Line(_Stock):
    r"""Frames end with a line feed, and a carriage return before it is dropped.

    *ending* is what `encode` appends, `b"\n"` or `b"\r\n"`. *limit* is in bytes without the ending. The end
    of a datagram ends a line too. A frame to be sent must not hold a line feed, nor end with a carriage
    return.
    """

    ending: bytes = attrs.field(default=b"\n", kw_only=True)
    limit: int = _limit()

    def __attrs_post_init__(self) -> None:
        if self.ending not in (b"\n", b"\r\n"):
            raise SetupError(f"Line: ending is {self.ending!r}, it has to be b'\\n' or b'\\r\\n'")

    def encode(self, frame: bytes) -> bytes:
        """Return *frame* and the ending; raises `FramingError` if it wouldn't be read as one line."""
        if frame.find(b"\n") >= 0 or frame.endswith(b"\r"):
            raise FramingError(
                f"a line can't hold a line feed or end with a carriage return: {_shown(frame)}"
            )
        return frame + self.ending

    def cut(self, data: bytes) -> _Cut:
        """Return the lines in *data* and what is behind the last one."""
        if _CR not in data:
            frames = data.split(b"\n")
        else:
            frames = data.split(b"\r\n")
            if len(frames) <= data.count(b"\n"):  # some lines end without a carriage return
                frames = data.replace(b"\r\n", b"\n").split(b"\n")
        rest = frames.pop()
        if len(data) > self.limit and (len(rest) > self.limit or max(map(len, frames)) > self.limit):
            return _lines(self, b"\n", data, strip=b"\r")
        return frames, rest, None

    def ready(self, buffer: bytearray, searched: int) -> bool:
        """Tell whether a line has ended, or is too long."""
        return buffer.find(b"\n", searched) >= 0 or len(buffer) > self.limit

    def finish(self, buffer: bytearray) -> list[bytes]:
        """Remove and return the line that the end of a datagram ends."""
        return _last_line(self, buffer, strip=b"\r")


@attrs.frozen
class Delimiter(_Stock):
    """Frames end with *delimiter*, any bytes; `encode` appends it.

    *limit* is in bytes without the delimiter. The end of a datagram ends a frame too. A frame to be sent must
    not hold the delimiter.
    """

    delimiter: bytes = attrs.field(validator=_some_bytes)
    limit: int = _limit()

    def encode(self, frame: bytes) -> bytes:
        """Return *frame* and the delimiter; raises `FramingError` if the frame would end before that."""
        data = frame + self.delimiter
        if data.find(self.delimiter) != len(frame):
            raise FramingError(f"frame would be cut by its delimiter {self.delimiter!r}: {_shown(frame)}")
        return data

    def cut(self, data: bytes) -> _Cut:
        """Return the frames in *data* and what is behind the last delimiter."""
        frames = data.split(self.delimiter)
        rest = frames.pop()
        if len(data) > self.limit and (len(rest) > self.limit or max(map(len, frames)) > self.limit):
            return _lines(self, self.delimiter, data, strip=b"")
        return frames, rest, None

    def ready(self, buffer: bytearray, searched: int) -> bool:
        """Tell whether a frame has ended, or is too long."""
        # The delimiter may straddle two reads.
        start = max(0, searched - len(self.delimiter) + 1)
        return buffer.find(self.delimiter, start) >= 0 or len(buffer) > self.limit

    def finish(self, buffer: bytearray) -> list[bytes]:
        """Remove and return the frame that the end of a datagram ends."""
        return _last_line(self, buffer, strip=b"")


def _three(order: Literal["big", "little"]) -> Callable[[bytes | bytearray, int], tuple[Any, ...]]:
    """Return what `struct` lacks: a number of three bytes."""

    def unpack(data: bytes | bytearray, start: int) -> tuple[Any, ...]:
        return (int.from_bytes(data[start : start + 3], order),)

    return unpack


def _unpack(framing: LengthPrefix) -> Callable[[bytes | bytearray, int], tuple[Any, ...]]:
    if framing.size == 3:
        return _three(framing.byteorder)
    code = {1: "B", 2: "H", 4: "I", 8: "Q"}[framing.size]
    return struct.Struct((">" if framing.byteorder == "big" else "<") + code).unpack_from


def _size_known(_: object, __: object, size: int) -> None:
    if size not in (1, 2, 3, 4, 8) or isinstance(size, bool):
        raise SetupError(f"LengthPrefix: size is {size!r}, a length field has 1, 2, 3, 4 or 8 bytes")


def _order_known(_: object, __: object, order: str) -> None:
    if order not in ("big", "little"):
        raise SetupError(f"LengthPrefix: byteorder is {order!r}, it has to be 'big' or 'little'")


def _not_negative(_: object, attribute: attrs.Attribute[int], value: int) -> None:
    if value != 0 and not _is_count(value):
        raise SetupError(
            f"LengthPrefix: {attribute.name} is {value!r}, it has to be a whole number, 0 or more"
        )


@attrs.frozen
class LengthPrefix(_Stock):
    """A length field tells where the frame ends; `LengthPrefix(2)` is two bytes of length, then the payload.

    *size* is that of the length field, 1, 2, 3, 4 or 8 bytes, *byteorder* `big` or `little`; *offset* bytes
    stand before it. What the field counts is told by *adjustment*: a frame, from its first byte on, has
    offset + size + value + adjustment bytes. So it is 0 where the field counts what follows it, -size where
    it counts itself too, and 2 where a checksum of two bytes is not counted.

    *strip* is how many bytes are dropped from the front of a frame before the handler gets it, by default:

    - offset 0: the length field; frames are payloads, and `encode` puts their length before them;
    - offset above 0: nothing; frames are whole, and `encode` adds nothing, it checks their length field.

    With any other *strip* frames can be received, not sent: `encode` can't know what was dropped, and the
    router needs a `reply_framing`. *limit* is in bytes of a frame as the handler gets it.
    """

    size: int = attrs.field(validator=_size_known)
    byteorder: Literal["big", "little"] = attrs.field(default="big", kw_only=True, validator=_order_known)
    offset: int = attrs.field(default=0, kw_only=True, validator=_not_negative)
    adjustment: int = attrs.field(default=0, kw_only=True)
    strip: int = attrs.field(
        default=attrs.Factory(lambda self: 0 if self.offset else self.size, takes_self=True),
        kw_only=True,
        validator=_not_negative,
    )
    limit: int = _limit()
    _unpack: Callable[[bytes | bytearray, int], tuple[Any, ...]] = attrs.field(
        init=False, repr=False, eq=False
    )

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.adjustment, int):
            raise SetupError(f"LengthPrefix: adjustment is {self.adjustment!r}, it has to be a whole number")
        header = self.offset + self.size
        if self.strip > header:
            raise SetupError(f"LengthPrefix: strip is {self.strip}, above the header's {header} bytes")
        object.__setattr__(self, "_unpack", _unpack(self))

    def encode(self, frame: bytes) -> bytes:
        """Return the length and *frame*, or the frame where its header is in it.

        Raises `FramingError` if the length doesn't fit the field, or the header in the frame is wrong.
        """
        if self.strip == 0:
            self._check(frame)
            return frame
        if self.offset or self.strip != self.size:
            raise FramingError(f"{self!r} can't put back what it strips: give the router a reply_framing=")
        value = len(frame) - self.adjustment
        if not 0 <= value < 1 << 8 * self.size:
            raise FramingError(
                f"frame has {len(frame)} bytes, that is no length of {self.size} bytes: {value}"
            )
        return value.to_bytes(self.size, self.byteorder) + frame

    def _check(self, frame: bytes) -> None:
        header = self.offset + self.size
        if len(frame) < header:
            raise FramingError(f"frame has {len(frame)} bytes, its header alone has {header}")
        told = header + self.adjustment + int(self._unpack(frame, self.offset)[0])
        if told != len(frame):
            raise FramingError(f"frame has {len(frame)} bytes, its length field makes it {told}")

    def cut(self, data: bytes) -> _Cut:
        """Return the frames in *data* and what is behind the last whole one."""
        unpack, offset, strip = self._unpack, self.offset, self.strip
        header = offset + self.size
        fixed = header + self.adjustment
        most = self.limit + strip
        size = len(data)
        last = size - header
        frames: list[bytes] = []
        start = 0
        while start <= last:
            length = fixed + unpack(data, start + offset)[0]
            end = start + length
            if end > size or not header <= length <= most:
                if length < header:
                    wrong = _Wrong(f"frame has {length} bytes by its length field, its header {header}", 0)
                    return frames, data[start:], wrong
                if length > most:
                    return frames, data[start:], _Wrong(_over(length - strip, self.limit), 0)
                break
            frames.append(data[start + strip : end])
            start = end
        return frames, data[start:], None

    def ready(self, buffer: bytearray, searched: int) -> bool:  # noqa: ARG002 - the length is in front
        """Tell whether the whole frame is there."""
        header = self.offset + self.size
        if len(buffer) < header:
            return False
        length = header + self.adjustment + int(self._unpack(buffer, self.offset)[0])
        return len(buffer) >= length


@attrs.frozen
class FixedSize(_Stock):
    """Every frame has *size* bytes, at most *limit*; `encode` refuses any other."""

    size: int = attrs.field(validator=_count)
    limit: int = _limit()

    def __attrs_post_init__(self) -> None:
        if self.size > self.limit:
            raise SetupError(f"FixedSize: size is {self.size} bytes, limit is {self.limit}")

    def encode(self, frame: bytes) -> bytes:
        """Return *frame*; raises `FramingError` if it has another size."""
        if len(frame) != self.size:
            raise FramingError(f"frame has {len(frame)} bytes, each has {self.size}")
        return frame

    def cut(self, data: bytes) -> _Cut:
        """Return the whole frames in *data* and what is behind them."""
        size = self.size
        end = len(data) - len(data) % size
        return [data[start : start + size] for start in range(0, end, size)], data[end:], None

    def ready(self, buffer: bytearray, searched: int) -> bool:  # noqa: ARG002 - the size says all
        """Tell whether a whole frame is there."""
        return len(buffer) >= self.size


def _shown(data: bytes) -> str:
    """Return *data* as hex, not all of it if it is long."""
    return data.hex() if len(data) <= 16 else f"{data[:16].hex()}… ({len(data)} bytes)"


def _table(escapes: Mapping[bytes, bytes] | None) -> dict[bytes, bytes]:
    try:
        return dict(escapes or {})
    except (TypeError, ValueError):
        raise SetupError(
            f"StartEnd: escapes is {escapes!r}, it has to be a mapping of bytes to bytes"
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
        raise SetupError("StartEnd: escapes start with different bytes, they have to start with the same one")
    if not leads < table.keys():
        raise SetupError(f"StartEnd: escapes lack {min(leads)!r}, with which they start, or any other byte")
    if len(seconds) < len(table) or seconds & table.keys():
        raise SetupError(
            "StartEnd: the second bytes of escapes have to differ, and not be escaped themselves"
        )
    if not any(bytes([byte]) in table.keys() - leads for byte in framing.end):
        raise SetupError(f"StartEnd: escapes don't keep the end marker {framing.end!r} out of frames")
    return tuple(sorted(((escape, raw) for raw, escape in table.items()), key=lambda pair: pair[1] in leads))


def _overlaps(marker: bytes) -> bool:
    """Tell whether *marker* may begin within itself, as in b"abab"."""
    return any(marker.endswith(marker[:size]) for size in range(1, len(marker)))


@attrs.frozen
class StartEnd(_Stock):
    r"""Frames stand between a *start* and an *end* marker, which may be the same and are not in the frame.

    *escapes* maps a byte to the two bytes that are sent for it inside a frame. For JT/T 808::

        StartEnd(b"\x7e", b"\x7e", {b"\x7e": b"\x7d\x02", b"\x7d": b"\x7d\x01"})

    Without it a frame to be sent must not hold the end marker. Bytes before a start marker are a
    `FramingError`, behind which decoding can go on. Where both markers are the same, markers with nothing
    between them are fill and are skipped, so an empty frame can't be sent. *limit* is in bytes of a frame as
    the handler gets it.
    """

    start: bytes = attrs.field(validator=_some_bytes)
    end: bytes = attrs.field(validator=_some_bytes)
    escapes: dict[bytes, bytes] = attrs.field(default=None, converter=_table, hash=False)
    limit: int = _limit()
    _escapes: tuple[tuple[bytes, bytes], ...] = attrs.field(init=False, repr=False, eq=False)
    _lead: int = attrs.field(init=False, repr=False, eq=False)
    _overlaps: bool = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        escapes = _escapes(self)
        object.__setattr__(self, "_escapes", escapes)
        object.__setattr__(self, "_lead", escapes[0][0][0] if escapes else -1)
        object.__setattr__(self, "_overlaps", _overlaps(self.end))

    def encode(self, frame: bytes) -> bytes:
        """Return *frame*, escaped, between its markers.

        Raises `FramingError` if the frame would end before its end marker, or be taken for fill.
        """
        if not frame and self.start == self.end:
            raise FramingError(f"an empty frame between markers {_shown(self.start)} is fill")
        content = frame
        # The escape byte first: the others' escapes hold it.
        for escape, raw in reversed(self._escapes):
            content = content.replace(raw, escape)
        data = content + self.end
        if data.find(self.end) != len(content):
            raise FramingError(f"frame would be cut by its end marker {_shown(self.end)}: {_shown(frame)}")
        return self.start + data

    def cut(self, data: bytes) -> _Cut:
        """Return the frames in *data* and what is behind the last end marker."""
        clean = self._alternating(data) if self.start == self.end else self._enclosed(data)
        if clean is None:
            return self._one_by_one(data)
        frames, rest = clean
        lead = self._lead
        if lead >= 0 and lead in data:
            plain = [self._plain(frame) if lead in frame else frame for frame in frames]
            frames = [frame for frame in plain if frame is not None]
            if len(frames) < len(plain):
                return self._one_by_one(data)
        if len(data) > self.limit and (
            self._waiting(len(rest)) or max(map(len, frames), default=0) > self.limit
        ):
            return self._one_by_one(data)
        return frames, rest, None

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

    def _one_by_one(self, data: bytes) -> _Cut:
        """Cut *data* frame by frame, up to the first thing that is wrong."""
        frames: list[bytes] = []
        first = 0
        while first < len(data):
            if not data.startswith(self.start, first):
                return frames, data[first:], self._garbage(data[first:])
            begin = first + len(self.start)
            end = data.find(self.end, begin)
            if end < 0:
                return frames, data[first:], self._waiting(len(data) - first)
            if end == begin and self.start == self.end:
                first = end  # the second marker of fill may start a frame
                continue
            frame = self._plain(data[begin:end])
            behind = end + len(self.end)
            if frame is None:
                reason = f"frame has an escape that stands for nothing: {_shown(data[begin:end])}"
                return frames, data[first:], _Wrong(reason, behind - first)
            if len(frame) > self.limit:
                return frames, data[first:], _Wrong(_over(len(frame), self.limit), behind - first)
            frames.append(frame)
            first = behind
        return frames, b"", None

    def _plain(self, content: bytes) -> bytes | None:
        """Undo escapes; None if there are others than those in the table."""
        plain = content
        for escape, raw in self._escapes:
            plain = plain.replace(escape, raw)
        if self._lead >= 0 and len(content) - len(plain) != content.count(self._lead):
            return None
        return plain

    def _garbage(self, data: bytes) -> _Wrong | None:
        """Tell what is wrong with data that begins with no start marker; None if it may be half of one."""
        size = data.find(self.start)
        if size < 0:
            half = next(
                part for part in range(len(self.start) - 1, -1, -1) if data.endswith(self.start[:part])
            )
            size = len(data) - half
        if not size:
            return None
        reason = f"{size} bytes before the start marker {_shown(self.start)}: {_shown(data[:size])}"
        return _Wrong(reason, size)

    def _waiting(self, size: int) -> _Wrong | None:
        """Tell whether *size* bytes from the start marker on, and no end marker, are too many."""
        content = size - len(self.start) - len(self.end) + 1
        least = (content + 1) // 2 if self._escapes else content
        return _Wrong(_over(least, self.limit), 0) if least > self.limit else None

    def ready(self, buffer: bytearray, searched: int) -> bool:
        """Tell whether a frame has ended, or is too long."""
        start = max(len(self.start), searched - len(self.end) + 1)
        return buffer.find(self.end, start) >= 0 or self._waiting(len(buffer)) is not None

    def finish(self, buffer: bytearray) -> list[bytes]:
        """Remove fill."""
        if self.start == self.end == buffer:
            buffer.clear()
        return []


def _blamed(framing: object, method: str, error: Exception) -> FramingError:
    """Return *error* as the framing error that it is, or that it becomes."""
    if isinstance(error, FramingError):
        return error
    blamed = FramingError(f"{framing!r}: {method} failed: {error!r}")
    blamed.__cause__ = error
    return blamed


def _within(size: int) -> FramingError:
    return FramingError(f"datagram ends within a frame: {size} bytes left")


@final
class _Splitter:
    """Runs the `split` of a user's framing over one connection."""

    __slots__ = ("_buffer", "_framing", "_limit", "_skipped", "error")

    def __init__(self, framing: SplitFraming, limit: int) -> None:
        self._framing = framing
        self._limit = limit
        self._buffer = bytearray()
        self._skipped = 0
        self.error: FramingError | None = None

    @property
    def buffered(self) -> int:
        return len(self._buffer) + self._skipped

    def feed(self, data: bytes) -> list[bytes]:
        buffer = self._buffer
        frames: list[bytes] = []
        size = len(buffer)
        try:
            buffer += data
            while buffer and self.error is None:
                size = len(buffer)
                more = self._framing.split(buffer)
                self._judge(more, size)
                frames += more
                if len(buffer) == size:
                    break
        except Exception as error:  # noqa: BLE001 - a user's framing may raise anything
            self._skipped = size - len(buffer)
            self.error = _blamed(self._framing, "split", error)
        if self.error is None and len(buffer) > self._limit + _HEADER:
            self.error = FramingError(_over(len(buffer), self._limit))
        return frames

    def _judge(self, frames: object, size: int) -> None:
        if not isinstance(frames, list):
            raise TypeError(f"it returned {type(frames).__name__}, not a list")
        for frame in frames:
            if type(frame) is not bytes:
                raise TypeError(f"it returned a frame of {type(frame).__name__}, not bytes")
        if frames and len(self._buffer) >= size:
            raise RuntimeError("it returned frames and removed nothing")

    def finish(self) -> list[bytes]:
        size = self.buffered
        frames: list[bytes] = []
        if size and self.error is None:
            frames, self.error = _finish(self._framing, self._buffer)
        if self.error is not None:
            self._skipped = size
        self._buffer.clear()
        return frames

    def recover(self) -> int:
        dropped = self._skipped or len(self._buffer)
        if not self._skipped:
            self._buffer.clear()
        self._skipped = 0
        self.error = None
        return dropped


def _finish(framing: object, buffer: bytearray) -> tuple[list[bytes], FramingError | None]:
    """Return the frames that the end of a datagram ends, and what is wrong with the rest."""
    finish: Callable[[bytearray], list[bytes]] | None = getattr(framing, "finish", None)
    frames: list[bytes] = []
    try:
        if finish is not None:
            frames = finish(buffer)
    except Exception as error:  # noqa: BLE001 - a user's framing may raise anything
        return [], _blamed(framing, "finish", error)
    return frames, _within(len(buffer)) if buffer else None


@final
class _Stream(Reader):
    """Runs the `decode` of a framing over one connection: the reader's other side."""

    __slots__ = ("_framing", "_generator", "_open", "_pending", "_skipped", "error")

    def __init__(self, framing: StreamFraming, limit: int) -> None:
        super().__init__(limit)
        self._framing = framing
        self._generator: Decoding | None = None
        self._open = 0  # bytes read since the last frame
        self._pending = bytearray()  # what came while too little is there; _data is empty then
        self._skipped = 0
        self.error: FramingError | None = None

    @property
    def buffered(self) -> int:
        return self._size + len(self._pending) + self._skipped

    def feed(self, data: bytes) -> list[bytes]:
        pending = self._pending
        if pending:
            searched = len(pending)
            pending += data
            if self.error is not None or not self._enough(pending, searched):
                return []
            data = bytes(pending)
            self._pending = bytearray()
        else:
            rest = self._data
            if rest:
                data = rest + data
            if self.error is not None or not self._enough(data, len(rest)):
                pending += data
                self._data = b""
                self._size = 0
                return []
        self._data = data
        self._size = len(data)
        self._quick = self._size if self._size <= self._most else 0
        self._seen = -1
        return self._run()

    def _enough(self, data: bytes | bytearray, searched: int) -> bool:
        if len(data) >= self._wanted:
            return True
        delimiter = self._delimiter
        # The delimiter may straddle two reads.
        return delimiter is not None and data.find(delimiter, max(0, searched - len(delimiter) + 1)) >= 0

    def _run(self) -> list[bytes]:
        """Return the frames that the generator yields before it waits: the hot path."""
        frames: list[bytes] = []
        append = frames.append
        limit = self._limit
        mark = -self._open
        still = 0
        item: object = None
        try:
            generator = self._generator
            if generator is None:
                generator = self._generator = self._framing.decode(self)
            for item in generator:
                if type(item) is not bytes or len(item) > limit:
                    break
                append(item)
                start = self._start
                if start == mark:
                    still += 1
                    if still >= _STILL:
                        break
                else:
                    mark = start
                    still = 0
            else:
                item = None
        except Exception as error:  # noqa: BLE001 - a user's framing may raise anything
            self._settle(mark)
            self._fail(_blamed(self._framing, "decode", error))
            return frames
        self._settle(mark)
        if item is not _NEED:
            self._judge(frames, item, still)
        return frames

    def _settle(self, mark: int) -> None:
        """Let go of what was read."""
        self._open = self._start - mark
        self._data = self._data[self._start :]
        self._size -= self._start
        self._start = 0
        self._quick = 0

    def _judge(self, frames: list[bytes], item: object, still: int) -> None:
        """Tell why the generator was stopped, if it isn't waiting."""
        where = f"{self._framing!r}: decode"
        if still >= _STILL:
            del frames[-still:]
            self._fail(FramingError(f"{where} yielded {still} frames without reading a byte"))
        elif item is None:
            self._wanted = 1
            self._delimiter = None
            if self._size:
                self._fail(FramingError(f"{where} returned, with {self._size} bytes to come"))
        elif isinstance(item, bytes) and len(item) > self._limit:
            self._fail(FramingError(_over(len(item), self._limit)))
        else:
            hint = "; is `yield from` missing?" if isinstance(item, Generator) else ""
            self._fail(FramingError(f"{where} yielded {type(item).__name__}, not bytes{hint}"))

    def _fail(self, error: FramingError) -> None:
        self.error = error
        # Where the reader refused, nobody knows where the frame ends.
        self._skipped = 0 if error is self._refused else self._open
        self._restart()

    def _restart(self) -> None:
        generator, self._generator = self._generator, None
        self._wanted = 1
        self._delimiter = None
        self._refused = None
        self._ended = False
        self._open = 0
        if generator is not None:
            try:
                generator.close()
            except Exception as error:  # noqa: BLE001 - a user's framing may raise anything
                self.error = self.error or _blamed(self._framing, "decode", error)

    def finish(self) -> list[bytes]:
        frames: list[bytes] = []
        size = self.buffered
        if self.error is None and self._delimiter is not None and size + self._open:
            self._data += bytes(self._pending)
            self._size = len(self._data)
            self._pending = bytearray()
            self._ended = True
            frames = self._run()
        left = self._size + len(self._pending) + self._open
        if self.error is None and left:
            self.error = _within(left)
        self._restart()
        self._clear()
        self._skipped = 0 if self.error is None else max(size, left)
        return frames

    def _clear(self) -> None:
        self._data = b""
        self._size = 0
        self._pending = bytearray()

    def recover(self) -> int:
        dropped = self._skipped or self.buffered
        if not self._skipped:
            self._clear()
        self._skipped = 0
        self.error = None
        return dropped


@final
class Decoder:
    """The frames of one connection: what comes is fed, whole frames come out.

    *framing* may be shared. Nothing is raised: `error` tells what is wrong behind the frames that were just
    returned. While it is set, bytes are kept and no frames come; `recover` goes on.
    """

    __slots__ = ("_fast", "_framing", "_long", "_other", "_rest", "_skipped", "error")

    def __init__(self, framing: Framing) -> None:
        self._framing = framing
        self._fast: _Stock | None = None  # None unless the next bytes can go straight to cut
        self._other: _Splitter | _Stream | None = None
        self._rest = b""
        self._long: bytearray | None = None  # instead of _rest: a long frame, or after an error
        self._skipped = 0
        self.error: FramingError | None = None
        if isinstance(framing, _Stock) and type(framing) in _STOCK:
            self._fast = framing
            return
        limit = getattr(framing, "limit", FRAME_LIMIT)
        if not _is_count(limit):
            raise SetupError(f"{framing!r}: limit is {limit!r}, it has to be a whole number above 0")
        if callable(getattr(framing, "split", None)):
            self._other = _Splitter(cast("SplitFraming", framing), limit)
        elif callable(getattr(framing, "decode", None)):
            self._other = _Stream(cast("StreamFraming", framing), limit)
        else:
            raise SetupError(f"{framing!r} is no framing, it has neither split nor decode")

    @property
    def framing(self) -> Framing:
        """The framing that this decoder was made for."""
        return self._framing

    @property
    def buffered(self) -> int:
        """How many bytes wait for the rest of their frame or, after an error, for `recover`."""
        if self._other is not None:
            return self._other.buffered
        return len(self._rest if self._long is None else self._long) + self._skipped

    def feed(self, data: bytes) -> list[bytes]:
        """Take *data* as it came and return all frames that are whole now; look at `error` next.

        After `recover`, `feed(b"")` gives the frames that had come behind the error.
        """
        framing = self._fast
        if framing is RAW and 0 < len(data) <= FRAME_LIMIT:
            return [data]
        if framing is None:
            return self._feed_slowly(data)
        rest = self._rest
        frames, rest, wrong = framing.cut(rest + data if rest else data)
        self._rest = rest
        if wrong is not None or len(rest) > _LONG:
            self._hold(wrong)
        return frames

    def _hold(self, wrong: _Wrong | None) -> None:
        """Collect what comes, until there is more to find in it or `recover` is called."""
        self._fast = None
        if wrong is not None:
            self.error = FramingError(wrong.reason)
            self._skipped = wrong.size
        self._long = bytearray(self._rest[self._skipped :])
        self._rest = b""

    def _feed_slowly(self, data: bytes) -> list[bytes]:
        other = self._other
        if other is not None:
            frames = other.feed(data)
            self.error = other.error
            return frames
        framing = cast("_Stock", self._framing)
        long = cast("bytearray", self._long)
        searched = len(long)
        long += data
        if self.error is not None or not framing.ready(long, searched):
            return []
        self._release()
        return self.feed(b"")

    def _release(self) -> None:
        self._rest = bytes(self._long or b"")
        self._long = None
        self._fast = cast("_Stock", self._framing)

    def finish(self) -> list[bytes]:
        """Return the frames that the end of a datagram ends, and be clean for the next; look at `error` next.

        What ends within a frame is an error, and is dropped.
        """
        other = self._other
        if other is not None:
            frames = other.finish()
            self.error = other.error
            return frames
        if not self._rest and self._long is None:
            return []
        return self._finish()

    def _finish(self) -> list[bytes]:
        size = self.buffered
        frames: list[bytes] = []
        if self.error is None:
            frames, self.error = _finish(self._framing, bytearray(self._long or self._rest))
        self._rest = b""
        self._long = None
        if self.error is None:
            self._fast = cast("_Stock", self._framing)
        else:
            self._skipped = size
            self._hold(None)
        return frames

    def recover(self) -> int:
        """Go on after `error`, and return how many bytes were dropped for it.

        That is the wrong ones, where the framing knows their end, or else all that had come.
        """
        other = self._other
        if other is not None:
            self.error = None
            return other.recover()
        if self.error is None:
            return 0
        if self._skipped:
            dropped = self._skipped
        else:
            dropped = self.buffered
            self._long = None
        self._skipped = 0
        self.error = None
        self._release()
        return dropped


_STOCK: Final = frozenset({Raw, Line, Delimiter, LengthPrefix, FixedSize, StartEnd})
"""Only these go straight to `cut`: a subclass may have a `split` of its own."""
