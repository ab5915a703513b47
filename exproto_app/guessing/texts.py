"""Text: lines, delimiters, marks around sentences, JSON."""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from ..framing import Delimiter, Framing, JsonObjects, Line, StartEnd
from .candidates import Candidate
from .marks import FEW
from .streams import Stream, fit, reads_of

__all__ = ["text_candidates"]

MARKS: Final = frozenset(string.punctuation.encode()) | frozenset(b"\x02\x03\x04\x17\x00")
JSON: Final = 20
"""Frames that are parsed, to see whether they are JSON."""


def text_candidates(streams: Sequence[Stream]) -> Iterator[Candidate]:
    """Yield framings of text."""
    reads = [read for read in reads_of(streams) if read]
    for framing in dict.fromkeys(_framings(reads)):
        found = fit(framing, streams)
        if found.wires and (type(framing) is not JsonObjects or _is_json(found.frames)):
            yield Candidate(framing, found)


def _is_json(frames: Sequence[bytes]) -> bool:
    good = 0
    for frame in frames[:JSON]:
        try:
            json.loads(frame)
        except ValueError:
            continue
        good += 1
    return good >= 0.8 * len(frames[:JSON])


def _framings(reads: Sequence[bytes]) -> Iterator[Framing]:
    data = b"".join(reads)
    feeds, returns, both = data.count(b"\n"), data.count(b"\r"), data.count(b"\r\n")
    if data.lstrip()[:1] in (b"{", b"["):
        yield JsonObjects()
    if feeds:
        yield Line(ending=b"\r\n") if both > feeds / 2 else Line()
    if returns > both:
        yield Line(ending=b"\r")
    yield from _marked(reads)


def _marked(reads: Sequence[bytes]) -> Iterator[Framing]:
    # A line feed behind the end mark of a sentence is left to the framing of lines.
    if len(reads) < FEW:
        yield from _inside(b"".join(reads))
        return
    ends = [end for end in _runs(reads, last=True) if end]
    starts = [start for start in _runs(reads, last=False) if start]
    for end in ends:
        for start in starts:
            if start != end:
                yield StartEnd(start, end)
        yield Delimiter(end)
    yield from _inside(b"".join(reads))


def _runs(reads: Sequence[bytes], *, last: bool) -> list[bytes]:
    """Return the marks that many *reads* begin or end with, longest first."""
    many, found = 0.6 * len(reads), []
    for size in (3, 2, 1):
        pieces = Counter(read[-size:] if last else read[:size] for read in reads if len(read) > 2 * size)
        for piece, count in pieces.most_common(2):
            if count >= many and set(piece) <= MARKS:
                found.append(piece)
    return found


def _inside(data: bytes) -> Iterator[Framing]:
    """Yield what splits one long text: marks that meet again and again, or are frequent."""
    pairs = Counter(data[at : at + 2] for at in range(len(data) - 1))
    start = data[:1]
    for pair, count in pairs.most_common(40):
        if count >= 3 and pair[1:] == start and set(pair) <= MARKS and pair[:1] != start:
            yield StartEnd(start, pair[:1])
    for byte, count in Counter(data).most_common(20):
        if count >= 3 and byte in b";#!|\x00\x03\x04":
            yield Delimiter(bytes([byte]))
