"""Frames between marks, escaped or not, behind wake-up bytes, and frames of one size."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from ..errors import SetupError
from ..framing import JT808, SLIP, Delimiter, FixedSize, StartEnd
from .candidates import Candidate
from .lengths import NO_ENDS
from .streams import Stream, fit, reads_of

__all__ = ["FEW", "mark_candidates", "wake_up"]

PPP: Final = {b"\x7e": b"\x7d\x5e", b"\x7d": b"\x7d\x5d"}
"""The escapes of HDLC-like framing (RFC 1662)."""

WAKE_UP: Final = b"\xfe\xff\x00"
"""Bytes that wake a meter up, or pad."""

FEW: Final = 3
"""Reads, of which fewer say nothing about how frames begin and end."""

OFTEN: Final = 5
"""How often marks have to meet, where nothing else tells them."""


def mark_candidates(streams: Sequence[Stream]) -> Iterator[Candidate]:
    """Yield framings with marks around frames or behind them, and of a fixed size."""
    reads = [read for read in reads_of(streams) if read]
    framings = (*_between(reads), *_fixed(reads)) if len(reads) >= FEW else _within(b"".join(reads))
    for framing in framings:
        found = fit(framing, streams)
        if found.wires and found.covered > 0.5:
            yield Candidate(framing, found)


def _within(data: bytes) -> Iterator[StartEnd]:
    """Yield marks that meet again and again within *data*, of which no read tells where frames end."""
    start = data[:1]
    if start in (b"\x7e", b"\xc0"):
        yield from _flags(start, [data])
    for size in (1, 2):
        begin = data[:size]
        ends = Counter(data[at - size : at] for at in _places(data, begin) if at >= size)
        for end, count in ends.most_common(2):
            if count >= OFTEN and end != begin and end[-1:] not in NO_ENDS:
                yield StartEnd(begin, end)


def _places(data: bytes, mark: bytes) -> Iterator[int]:
    place = data.find(mark)
    while place >= 0:
        yield place
        place = data.find(mark, place + 1)


def _between(reads: Sequence[bytes]) -> Iterator[StartEnd | Delimiter]:
    firsts = Counter(read[:1] for read in reads).most_common(2)
    lasts = Counter(read[-1:] for read in reads).most_common(2)
    many = 0.6 * len(reads)
    for start, count in firsts:
        if count < many:
            continue
        for end, number in lasts:
            if number < many or end in NO_ENDS:
                continue
            if start == end:
                yield from _flags(start, reads)
            else:
                yield StartEnd(start, end)
                yield from _longer(start, end, reads)
    for end, number in lasts:
        if number >= many and end not in NO_ENDS:
            yield Delimiter(end)
            pairs = Counter(read[-2:] for read in reads).most_common(1)
            if pairs[0][1] >= many and len(pairs[0][0]) == 2:
                yield Delimiter(pairs[0][0])


def _longer(start: bytes, end: bytes, reads: Sequence[bytes]) -> Iterator[StartEnd]:
    (begin, count), *_ = Counter(read[:2] for read in reads if read[:1] == start).most_common(1)
    (finish, number), *_ = Counter(read[-2:] for read in reads if read[-1:] == end).most_common(1)
    many = 0.9 * len(reads)
    if count >= many and len(begin) == 2:
        yield StartEnd(begin, end)
    if number >= many and len(finish) == 2:
        yield StartEnd(start, finish)
        if count >= many and len(begin) == 2:
            yield StartEnd(begin, finish)


def _flags(flag: bytes, reads: Sequence[bytes]) -> Iterator[StartEnd]:
    if flag == b"\x7e":
        yield JT808
        yield StartEnd(flag, flag, PPP)
    if flag == b"\xc0":
        yield SLIP
    table = _escapes(flag, reads)
    if table:
        with contextlib.suppress(SetupError):  # what looked like escapes may be none
            yield StartEnd(flag, flag, table)
    yield StartEnd(flag, flag)


def _escapes(flag: bytes, reads: Sequence[bytes]) -> Mapping[bytes, bytes]:
    """Return the escapes within frames, if one byte is always followed by one of two."""
    inner = b"\0".join(read[1:-1] for read in reads)
    followers: dict[int, set[int]] = {}
    counts = Counter(inner)
    for at in range(len(inner) - 1):
        followers.setdefault(inner[at], set()).add(inner[at + 1])
    for byte, behind in followers.items():
        if not 1 <= len(behind) <= 2 or counts[byte] < 3 or byte in (0, flag[0]):
            continue
        lead = bytes([byte])
        # Usual: both with a bit turned over, or small numbers, the flag's own first or last.
        pairs = (
            (flag[0] ^ 0x20, byte ^ 0x20),
            *((one, two) for one in range(16) for two in range(16) if one != two),
        )
        for of_flag, of_lead in pairs:
            if behind <= {of_flag, of_lead} and (of_flag in behind or len(behind) == 2):
                return {flag: lead + bytes([of_flag]), lead: lead + bytes([of_lead])}
    return {}


def _fixed(reads: Sequence[bytes]) -> Iterator[FixedSize]:
    sizes = Counter(map(len, reads))
    least = min(sizes, default=0)
    if len(reads) > 2 and (len(sizes) == 1 or (least > 3 and all(size % least == 0 for size in sizes))):
        yield FixedSize(least)


def wake_up(streams: Sequence[Stream]) -> tuple[bytes, list[Stream]]:
    """Return the byte that stands before frames to wake somebody up, and the streams without it."""
    reads = [read for read in reads_of(streams) if len(read) > 4]
    firsts = Counter(read[0] for read in reads if read[0] in WAKE_UP and read[0] == read[1])
    if not firsts:
        return b"", []
    byte, count = firsts.most_common(1)[0]
    lead = bytes([byte])
    behind = Counter(read.lstrip(lead)[:1] for read in reads)
    if count < 0.3 * len(reads) or behind.most_common(1)[0][1] < 0.8 * len(reads):
        return b"", []
    return lead, [
        Stream(tuple(read.lstrip(lead) for read in stream.reads), stream.whole, stream.name)
        for stream in streams
    ]
