"""Checksums behind an end mark: STX … ETX BCC."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from ..framing import StartEnd
from .building import Built, built, with_sum
from .lengths import NO_ENDS
from .streams import Stream, reads_of
from .sums import KINDS, Sum

__all__ = ["behind_ends"]

LEAST: Final = 3
MOST: Final = 100
LONGEST: Final = 400
"""Reads that have to be right, that are looked at, and bytes of these."""


def behind_ends(streams: Sequence[Stream]) -> Iterator[tuple[Built, Sum]]:
    """Yield framings whose reads have a start, an end mark, and a checksum of one or two bytes behind it."""
    reads = [read for read in reads_of(streams) if 5 < len(read) <= LONGEST][:MOST]
    if len(reads) < LEAST:
        return
    start = _common(reads, slice(0, 1))
    for width in (1, 2):
        end = _common(reads, slice(-width - 1, -width))
        if not start or not end or end in NO_ENDS or start == end:
            continue
        for kind in KINDS:
            if kind.size != width:
                continue
            for first in (0, 1):
                for stop in (None, -1):
                    fits = sum(
                        kind.function(read[:-width][first:stop]) == int.from_bytes(read[-width:], "big")
                        for read in reads
                    )
                    if fits >= max(LEAST, 0.8 * len(reads)):
                        found = Sum(kind, first, width, "big", fits, len(reads), behind=True)
                        inner = built(StartEnd(start, end))
                        yield with_sum(inner, found, 1, at="behind", stop=stop), found
                        return


def _common(reads: Sequence[bytes], part: slice) -> bytes:
    piece, count = Counter(read[part] for read in reads).most_common(1)[0]
    return piece if count >= 0.9 * len(reads) else b""
