"""What devices have sent, as guesses are made from it."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias, cast

import attrs

from ..framing import Bad, Framing
from ..framing.base import Stock

__all__ = ["MOST_BYTES", "MOST_READS", "Fit", "Span", "Stream", "fit", "is_text", "reads_of"]

MOST_BYTES: Final = 200_000
MOST_READS: Final = 600
"""Of what has come, so much is looked at: a guess doesn't get better by more."""

Span: TypeAlias = tuple[int, int, int]
"""A frame: in which stream it stands, where it begins and where it ends."""


MOST_FRAMES: Final = 3_000
"""Frames of one stream that are looked at."""

TEXT: Final = frozenset(string.printable.encode()) | frozenset(range(0x80, 0x100))


@attrs.frozen
class Stream:
    """What one device has sent, as it came: *reads* are what its end of a socket was given at a time.

    *whole*: each read is a message by itself, as a datagram is, or a line of a hand-made dump.
    """

    reads: tuple[bytes, ...]
    whole: bool = False
    name: str = ""
    data: bytes = attrs.field(
        init=False, default=attrs.Factory(lambda self: b"".join(self.reads), takes_self=True), repr=False
    )

    def ends(self) -> list[int]:
        """Return where each read ends."""
        ends, place = [], 0
        for read in self.reads:
            place += len(read)
            ends.append(place)
        return ends


def reads_of(streams: Sequence[Stream]) -> list[bytes]:
    """Return all reads, up to what is looked at."""
    reads: list[bytes] = []
    size = 0
    for stream in streams:
        for read in stream.reads:
            if len(reads) >= MOST_READS or size >= MOST_BYTES:
                return reads
            reads.append(read)
            size += len(read)
    return reads


@attrs.frozen
class Fit:
    """How a framing fits: the frames that it finds, as they are on the wire and as a handler gets them.

    *covered* is the share of all bytes that are in frames, *aligned* the share of reads that end with one.
    """

    wires: list[bytes]
    frames: list[bytes]
    covered: float
    aligned: float
    bad: int = 0
    reads: int = 0

    @property
    def sizes(self) -> set[int]:
        """The different sizes of frames."""
        return set(map(len, self.wires))


def fit(framing: Framing, streams: Sequence[Stream]) -> Fit:
    """Return how *framing* fits; behind what doesn't, it begins anew where a read begins."""
    found = _fit(framing, streams)
    flag = getattr(framing, "flag", None)
    if flag:
        # Mostly each frame has two flags of its own; then both are part of it.
        other = _fit(cast("Framing", cast("Stock", framing).closed()), streams)
        return other if other.covered > found.covered else found
    return found


def _fit(framing: Framing, streams: Sequence[Stream]) -> Fit:
    wires: list[bytes] = []
    frames: list[bytes] = []
    covered = total = met = ends_all = bad = 0
    for stream in streams:
        data, ends = stream.data, stream.ends()
        total += len(data)
        ends_all += len(ends)
        stops = set()
        for begin, end, item in _spans(framing, data, ends):
            stops.add(end)
            covered += end - begin
            if len(wires) >= MOST_FRAMES:
                total -= len(data) - end
                ends_all -= sum(place > end for place in ends)
                break
            if item is None:
                continue
            if isinstance(item, Bad):
                bad += 1
                continue
            wires.append(data[begin:end])
            frames.append(item)
        met += sum(end in stops for end in ends)
    return Fit(wires, frames, covered / (total or 1), met / (ends_all or 1), bad, ends_all)


def _spans(framing: Framing, data: bytes, ends: Sequence[int]) -> Iterator[tuple[int, int, Any]]:
    first = cast("Stock", framing).first
    place, size, number = 0, len(data), 0
    while place < size:
        found = first(data, place)
        if type(found) is tuple:
            yield place, found[1], found[0]
            place = found[1]
            continue
        while number < len(ends) and ends[number] <= place:
            number += 1
        if number >= len(ends):
            return
        place = ends[number]


def is_text(data: bytes) -> bool:
    """Return whether *data* is for people to read: hardly a byte of it is anything else."""
    if not data:
        return False
    plain = sum(byte < 0x80 and byte in TEXT for byte in data)
    other = sum(byte not in TEXT for byte in data)
    return plain >= 0.9 * len(data) and other <= 0.02 * len(data) + 2
