"""What framings are, and what those of this package share: `first` and `cut` see bytes and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, Protocol, TypeAlias

import attrs

from ..errors import FramingError, SetupError
from .reader import FRAME_LIMIT, Bad, Decoding, Ends, Reader, Searched

__all__ = [
    "MIXED",
    "SIFTED",
    "Cut",
    "Fatal",
    "Found",
    "Framing",
    "Items",
    "Reason",
    "Scan",
    "Searched",
    "Sifted",
    "SplitFraming",
    "Stock",
    "StreamFraming",
    "Wait",
    "Wrong",
    "check_count",
    "check_not_negative",
    "check_order",
    "check_some_bytes",
    "half",
    "is_count",
    "limit_option",
    "partial",
]


class SplitFraming(Protocol):
    """A framing that removes whole frames from the front of a buffer."""

    def encode(self, frame: bytes, /) -> bytes:
        """Return what is sent for *frame*; raise `FramingError` if it can't be one."""

    def split(self, buffer: bytearray, /) -> Sequence[bytes | Bad]:
        """Remove whole frames from the front of *buffer* and return them, as a list."""


class StreamFraming(Protocol):
    """A framing that reads a connection from its first byte to its last."""

    def encode(self, frame: bytes, /) -> bytes:
        """Return what is sent for *frame*; raise `FramingError` if it can't be one."""

    def decode(self, reader: Reader, /) -> Decoding:
        """Yield the frames that *reader*'s bytes make up."""


Framing: TypeAlias = SplitFraming | StreamFraming
"""What cuts a device's bytes into frames, and frames what is sent; the module's docstring explains how."""


class Reason(tuple[Any, ...]):
    """The text of an error, made when somebody reads it: a function and its arguments.

    One who sends garbage sends much of it, and a flood of errors is counted, not told one by one.
    """

    __slots__ = ()

    def __str__(self) -> str:
        make, *arguments = self
        return str(make(*arguments))

    def __repr__(self) -> str:
        return repr(str(self))


@attrs.frozen
class Fatal(Bad):
    """A bad frame that counts as a framing error: the device is closed unless `on_error` keeps it."""


@attrs.frozen
class Wait:
    """No frame is whole yet, and none can be before there are *size* bytes or, if there is such, *ends*.

    *ends* may be several, any of which will do. *whole* is for framings that see the end in no fixed bytes:
    it is called with all that has come and where the new bytes begin, once for each byte.
    """

    size: int
    ends: Ends = b""
    whole: Callable[[bytes | bytearray, int], bool] | None = attrs.field(default=None, eq=False)


@attrs.define
class Wrong:
    """What is wrong behind the good frames, and how many bytes to skip to go on; 0 where that isn't known.

    *excess*: the end of a frame is that many bytes too far away, so a frame that begins fewer bytes behind is
    too long as well.
    """

    reason: str
    size: int
    excess: int = 0


MIXED: Final = Wrong("", 0)
"""In the place of what is wrong: nothing behind, but there is `Bad` among the frames."""

Found: TypeAlias = tuple["bytes | Bad | None", int] | Wait | Wrong
"""A frame and where it ends, None for fill between frames, or why there is neither."""

Items: TypeAlias = list[Any]
"""Frames, bytes all of them; only where something is wrong `Bad` may be among them."""

Cut: TypeAlias = tuple[Items, bytes, "Wrong | None"]
"""Frames, the bytes behind them, and what is wrong."""

Scan: TypeAlias = tuple[Items, int, "Wrong | None"]
"""Frames, where they end, and what is wrong there."""

Sifted: TypeAlias = tuple[Items, int, "FramingError | None", int]
"""Frames, where they end, the error there, and how many bytes to skip for it; 0 where that isn't known."""

SIFTED: Final = 64
"""Wrong things that are looked for at once."""


class Stock:
    """What the framings of this package share.

    *consumes*: what it searches for the end of a frame it takes too, even if it is wrong, so nothing is
    searched twice.
    """

    __slots__ = ()

    consumes: ClassVar[bool] = False

    @property
    def starts(self) -> tuple[bytes, ...]:
        """The bytes that a frame may start with; none where any may."""
        return ()

    @property
    def flag(self) -> bytes | None:
        """What stays in the buffer behind a frame that it ends, since it may begin the next one too."""
        return None

    @property
    def core(self) -> Stock:
        """What cuts as long as nothing is wrong."""
        return self

    @property
    def quick(self) -> Callable[[bytes, int], Found]:
        """`first`, in fewer steps where that is possible."""
        return self.first

    def mend(self, cut: Cut) -> Cut:
        """Return what the framing makes of what its `core` has *cut* up to something wrong."""
        return cut

    def closed(self) -> Stock:
        """Return the framing as it is for streams with frames of others between its own: without a `flag`."""
        return self

    @property
    def runs(self) -> bool:
        """Whether `run` may be used: frames that are others' are told apart by their start."""
        return False

    def run(self, data: bytes, start: int) -> tuple[Items, int, bool]:
        """Return the frames from *start* on, up to anything else, where they end, and whether one is bad."""
        raise NotImplementedError

    def split(self, buffer: bytearray) -> Items:
        """Remove whole frames from the front of *buffer* and return them.

        Raises `FramingError` if *buffer* starts with something wrong; that is removed where its end is known.
        """
        items, rest, wrong = self.cut(bytes(buffer))
        gone = len(buffer) - len(rest)
        if wrong is None or items:
            del buffer[:gone]
            return items
        del buffer[: gone + wrong.size]
        raise FramingError(wrong.reason)

    def first(self, data: bytes, start: int) -> Found:
        """Return the frame that begins at *start* of *data*, which has at least one byte there."""
        raise NotImplementedError

    def cut(self, data: bytes) -> Cut:
        """Return the frames in *data*, what is left behind them, and what is wrong."""
        return self.cut_slowly(data)

    def cut_slowly(self, data: bytes) -> Cut:
        """Do what `cut` does, frame by frame up to the first thing that is wrong."""
        items, end, wrong = self.scan(data, 0)
        return items, data[end:], wrong

    def sift(self, data: bytes, start: int) -> list[Sifted]:
        """Return what `scan` finds from *start* on, then what it finds behind that if it is wrong, and so on.

        These are a few at most, the first one last.
        """
        found: list[Sifted] = []
        size = 1
        while size and len(found) < SIFTED:
            last = self.sift_one(data, start)
            found.append(last)
            _, start, _, size = last
            start += size
        found.reverse()
        return found

    def sift_one(self, data: bytes, start: int) -> Sifted:
        """Return what `scan` finds from *start* on."""
        items, end, wrong = self.scan(data, start)
        if wrong is None or wrong is MIXED:
            return items, end, None, 0
        return items, end, FramingError(wrong.reason), wrong.size

    def scan(self, data: bytes, start: int) -> Scan:
        """Return the frames from *start* on, where they end, and what is wrong there."""
        items: Items = []
        append = items.append
        first = self.first
        wrong: Wrong | None = None
        size = len(data)
        while start < size:
            found = first(data, start)
            if type(found) is not tuple:
                if type(found) is Wrong:
                    wrong = found
                break
            item, start = found
            if type(item) is bytes:
                append(item)
            elif item is not None:
                append(item)
                wrong = MIXED
        return items, start, wrong

    def waits(self, data: bytes) -> Wait:
        """Return what *data*, which `cut` left, waits for."""
        found = self.first(data, 0)
        return found if type(found) is Wait else Wait(len(data) + 1)

    def finish(self, buffer: bytearray) -> Items:  # noqa: ARG002 - only some have a use for it
        """Remove and return the frames that the end of a datagram ends."""
        return []


def partial(data: bytes, start: int, markers: Sequence[bytes]) -> bool:
    """Return whether all of *data* from *start* on begins one of *markers*, and isn't the whole of it."""
    size = len(data) - start
    return any(size < len(marker) and data.startswith(marker[:size], start) for marker in markers)


def half(data: bytes, markers: Sequence[bytes]) -> int:
    """Return how many bytes at the end of *data* may be the beginning of one of *markers*."""
    longest = min(max(map(len, markers)) - 1, len(data))
    return next(size for size in range(longest, -1, -1) if partial(data, len(data) - size, markers))


def is_count(value: object) -> bool:
    """Return whether *value* is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def check_count(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    """Refuse anything but a whole number above 0."""
    if not is_count(value):
        raise SetupError(
            f"{type(instance).__name__}: {attribute.name} is {value!r}; it must be a whole number above 0"
        )


def check_not_negative(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    """Refuse anything but a whole number, 0 or more."""
    if isinstance(value, bool) or (value != 0 and not is_count(value)):
        name = type(instance).__name__
        raise SetupError(f"{name}: {attribute.name} is {value!r}; it must be a whole number, 0 or more")


def check_some_bytes(instance: object, attribute: attrs.Attribute[bytes], value: bytes) -> None:
    """Refuse anything but bytes, at least one."""
    if not isinstance(value, bytes) or not value:
        raise SetupError(
            f"{type(instance).__name__}: {attribute.name} is {value!r}; it must be bytes, at least one"
        )


def check_order(instance: object, _: object, order: str) -> None:
    """Refuse anything but the two byte orders."""
    if order not in ("big", "little"):
        raise SetupError(f"{type(instance).__name__}: byteorder is {order!r}; it must be 'big' or 'little'")


def limit_option() -> int:
    """Declare the option that every framing has."""
    limit: int = attrs.field(default=FRAME_LIMIT, kw_only=True, validator=check_count)
    return limit
