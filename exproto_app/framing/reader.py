"""The reader: what the `decode` of a framing asks for bytes, and what it yields."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final, TypeAlias, final

import attrs

from ..errors import FramingError

__all__ = [
    "FRAME_LIMIT",
    "HEADER",
    "NEED",
    "Bad",
    "Decoding",
    "Ends",
    "Need",
    "Reader",
    "Searched",
    "has_come",
    "over",
    "shown",
]

FRAME_LIMIT: Final = 65_536
"""Bytes of one frame, where a framing says nothing else."""

HEADER: Final = 64
"""Bytes around a frame that a reader may wait for above the limit."""

_STILL: Final = 10_000  # looks without reading a byte, after which a generator is stopped


@final
class Need:
    """What a reader yields while it waits for bytes; nothing that a framing makes or looks at."""

    __slots__ = ()


NEED: Final = Need()


@attrs.frozen
class Bad:
    """Bytes that a framing drops, and why: yielded by `decode`, or in the list of `split`, among the frames.

    *data* is a frame that is wrong, or, with *frame* False, bytes that belong to no frame. They are logged
    and counted (`frames_bad`, `bytes_skipped`), no handler gets them, and the connection stays.
    """

    data: bytes
    reason: str
    frame: bool = attrs.field(default=True, kw_only=True)


Decoding: TypeAlias = Generator["bytes | Bad | Need", None, None]
"""What `decode` returns: a generator that yields frames, and `Bad` for what it drops."""


Ends: TypeAlias = bytes | tuple[bytes, ...]
"""What a reader waits for: some bytes, or the first of several."""


class Searched(bytes):
    """Bytes that remember where something was found, for callers that search from one place after another.

    Otherwise each place where a frame may begin would cost the distance to the next end marker.
    """

    def find(self, wanted: Any, start: Any = 0, end: Any = None) -> int:
        """Return where *wanted* is found from *start* on, as `bytes.find` does."""
        if end is not None:
            return super().find(wanted, start, end)
        known = self.__dict__.get(wanted)
        if known is not None and known[0] <= start and not 0 <= known[1] < start:
            return int(known[1])
        place = super().find(wanted, start)
        self.__dict__[wanted] = start, place
        return place


class Reader:
    """The bytes of one connection, for the `decode` of a framing; every method is for `yield from`."""

    __slots__ = (
        "_back",
        "_data",
        "_delimiter",
        "_ended",
        "_limit",
        "_looks",
        "_most",
        "_passed",
        "_quick",
        "_refused",
        "_seen",
        "_size",
        "_start",
        "_wanted",
    )

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._most = limit + HEADER
        self._data = b""
        self._start = 0
        self._passed = 0  # bytes read before the window
        self._back: int | None = None
        self._size = 0
        self._quick = 0  # _size, unless that would let a frame over the limit pass
        self._wanted = 1
        self._delimiter: Ends | None = None
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
            yield NEED
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
            yield NEED
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
                self.refuse(over(self._size - self._start, most))
            if self._ended:
                self._ended = False
                end = self._size
                break
            self._wanted = most + len(delimiter)
            self._delimiter = delimiter
            yield NEED
            self._delimiter = None
        start = self._start
        if end - start > most:
            self.refuse(over(end - start, most))
        self._start = min(end + len(delimiter), self._size)
        return self._data[start:end]

    def skip(self, size: int, reason: str) -> Generator[Need | Bad, None, None]:
        """Drop the next *size* bytes, which belong to no frame; *reason* is logged with them.

        Raises as `exactly` does.
        """
        data = yield from self.exactly(size)
        yield Bad(data, reason, frame=False)

    # --- for the framings of this package, which look at the bytes themselves

    @property
    def window(self) -> tuple[bytes, int]:
        """The bytes at hand, and where those begin that are to be read."""
        return self._data, self._start

    def wait(self, size: int, ends: Ends | None = None, *, keep: bool = False) -> Generator[Need, None, bool]:
        """Wait for *size* bytes or, before that, for *ends*; return whether the end of a datagram came.

        That is told only to those who wait for *ends*, which may be empty; with *keep* to the next who waits
        too.
        """
        self._wanted = size
        self._delimiter = ends
        if not self._ended:
            yield NEED
        self._delimiter = None
        ended = self._ended
        if not keep:
            self._ended = False
        return ended

    @property
    def place(self) -> int:
        """How many bytes of the connection were read, since there is this reader."""
        return self._passed + self._start

    def move(self, place: int) -> None:
        """Have read up to *place* of the window."""
        self._start = place

    def pass_over(self, place: int, reason: str, *, may_hold: bool) -> None:
        """Have read up to *place*, and raise a `FramingError` for what is before it.

        Where that *may_hold* frames, whoever looks for them may `go_back`.
        """
        self._back = self._start if may_hold else None
        self._start = place
        raise FramingError(reason)

    def go_back(self) -> None:
        """Be where `pass_over`, which has just raised, was called."""
        if self._back is not None:
            self._start, self._back = self._back, None

    def remember(self) -> None:
        """Have the window remember where something was found: it will be looked through again and again."""
        if type(self._data) is not Searched:
            self._data = Searched(self._data)

    def refuse(self, reason: str) -> None:
        """Raise a `FramingError` behind which nobody knows where a frame begins."""
        self._refused = FramingError(reason)
        raise self._refused

    def _check(self, size: int) -> None:
        if size < 0:
            self.refuse(f"frame says that it has {size} bytes")
        if size > self._most:
            self.refuse(over(size, self._limit))
        self._look()

    def _look(self) -> None:
        # Looking for ever without reading would hang the whole process.
        if self._start != self._seen:
            self._seen = self._start
            self._looks = 0
        self._looks += 1
        if self._looks > _STILL:
            self.refuse(f"decode looked {_STILL} times without reading a byte")


def has_come(ends: Ends, data: bytes | bytearray, searched: int) -> bool:
    """Return whether one of *ends* is in *data*, of which *searched* bytes were looked through before."""
    # An end may straddle two reads.
    if isinstance(ends, bytes):
        return data.find(ends, max(0, searched - len(ends) + 1)) >= 0
    return any(data.find(end, max(0, searched - len(end) + 1)) >= 0 for end in ends)


def over(size: int, limit: int) -> str:
    """Tell that a frame is too long."""
    return f"frame has {size} bytes, limit is {limit}"


def shown(data: bytes) -> str:
    """Return *data* as hex, not all of it if it is long."""
    return data.hex() if len(data) <= 16 else f"{data[:16].hex()}… ({len(data)} bytes)"
