"""What framings made of framings share: how one of them is used, and read frame by frame."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, Literal, TypeAlias, cast

from ..errors import SetupError
from .base import Framing, Stock, StreamFraming, Wait, Wrong
from .enclosed import StartEnd
from .json_objects import JsonObjects
from .marked import Delimiter, Line
from .reader import FRAME_LIMIT, Decoding, Need, Reader
from .silence import Gap
from .sized import FixedSize, LengthPrefix, OctetCounting, Raw, Varint

__all__ = [
    "STOCK",
    "Mode",
    "frames_of",
    "gap_of",
    "limit_of",
    "mode_of",
    "refuse_gap",
    "refuse_unreadable",
    "starts_of",
]

Mode: TypeAlias = Literal["cut", "split", "decode"]
"""How a framing is used: `cut` and `scan` are for those of this package, the others for users' own."""

STOCK: Final = frozenset(
    {
        Raw,
        Line,
        Delimiter,
        LengthPrefix,
        Varint,
        OctetCounting,
        FixedSize,
        StartEnd,
        JsonObjects,
        Gap,
    }
)
"""Only these go straight to `cut`: a subclass may have a `split` of its own."""


def mode_of(framing: Framing) -> Mode:
    """Return how *framing* is used; raises `SetupError` if it isn't a framing."""
    kind = type(framing)
    if kind in STOCK:
        return "cut"
    if "mode" in vars(kind) and isinstance(framing, Stock):  # made of framings, and no subclass of such
        return cast("Mode", framing.mode)  # type: ignore[union-attr] # as was just seen
    if callable(getattr(framing, "split", None)):
        return "split"
    if callable(getattr(framing, "decode", None)):
        return "decode"
    raise SetupError(f"{framing!r} is not a framing: it has neither split nor decode")


def frames_of(framing: Framing, reader: Reader) -> Decoding:
    """Return a generator of the frames of *framing*, read one by one."""
    if mode_of(framing) == "cut":
        return _read(cast("Stock", framing), reader)
    return cast("StreamFraming", framing).decode(reader)


def _read(framing: Stock, reader: Reader) -> Decoding:
    """Read a framing of this package, where one of a user's own stands beside it."""
    while True:
        data, start = reader.window
        found = framing.first(data, start) if start < len(data) else Wait(1)
        if type(found) is tuple:
            item, end = found
            reader.move(end)
            if item is not None:
                yield item
        elif type(found) is Wait:
            seen = len(data) - start
            size = found.size if found.whole is None else seen + 1
            ended = yield from reader.wait(size, found.ends or None)
            if found.whole is not None:
                yield from _look_on(found, reader, seen)
            if ended:
                data, start = reader.window
                buffer = bytearray(data[start:])
                items = framing.finish(buffer)
                reader.move(len(data) - len(buffer))
                yield from items
        elif type(found) is Wrong:
            if not found.size:
                reader.refuse(found.reason)
            reader.pass_over(start + found.size, found.reason, may_hold=bool(found.excess))


def _look_on(wait: Wait, reader: Reader, seen: int) -> Generator[Need, None, None]:
    """Wait for what *wait* sees, in the bytes behind those of the frame that were *seen*."""
    while True:
        data, start = reader.window
        size = len(data) - start
        if size >= wait.size or wait.whole is None or wait.whole(data, start + seen):
            return
        seen = size
        yield from reader.wait(seen + 1)


def refuse_unreadable(where: str, framing: Framing) -> None:
    """Refuse a framing that can't be read frame by frame."""
    if mode_of(framing) == "split" and not callable(getattr(framing, "decode", None)):
        raise SetupError(
            f"{where}: {framing!r} has only split; to be one of several framings it needs decode"
        )


def refuse_gap(where: str, framing: Framing) -> None:
    """Refuse a framing whose frames end by silence."""
    if gap_of(framing) is not None:
        raise SetupError(f"{where}: {framing!r} takes whatever comes up to a silence; use it alone")


def gap_of(framing: Framing) -> float | None:
    """Return the seconds of silence that end a frame of *framing*; None where silence means nothing."""
    gap: float | None = getattr(framing, "gap", None)
    return gap


def starts_of(framing: Framing) -> tuple[bytes, ...]:
    """Return how frames of *framing* begin, if it says so."""
    starts: tuple[bytes, ...] = getattr(framing, "starts", ())
    return starts


def limit_of(framing: Framing) -> int:
    """Return the most bytes of a frame of *framing*."""
    limit: int = getattr(framing, "limit", FRAME_LIMIT)
    return limit
