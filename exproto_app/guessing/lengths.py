"""Length fields: where one stands, how wide it is, and what it counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, Literal, TypeAlias

import attrs

from ..framing import LengthPrefix, OctetCounting, Varint
from .candidates import Candidate
from .streams import MOST_BYTES, Stream, fit, reads_of

__all__ = ["NO_ENDS", "Field", "count_candidates", "length_candidates"]

Order: TypeAlias = Literal["big", "little"]

OFFSETS: Final = 17
"""Bytes that may stand before a length field."""

EXTRA: Final = 12
"""Bytes behind the field that it may not count."""

FORMS: Final[tuple[tuple[int, Order], ...]] = (
    (1, "big"),
    (2, "big"),
    (2, "little"),
    (4, "big"),
    (4, "little"),
    (3, "big"),
)

MOST: Final = 40
"""Fields that are looked at closely."""

NO_ENDS: Final = (b"\x00", b"\xff", b"\x20")
"""What stands at the end of frames by chance, as padding."""


@attrs.frozen
class Field:
    """A length field: a frame has its value and *more* bytes; so it was in *votes* of the reads."""

    offset: int
    size: int
    order: Order
    more: int
    votes: int = attrs.field(eq=False)
    sizes: int = attrs.field(default=1, eq=False)  # different lengths among these

    def value(self, data: bytes, start: int) -> int:
        """Return what the field of the frame at *start* says."""
        place = start + self.offset
        return int.from_bytes(data[place : place + self.size], self.order)


def length_candidates(streams: Sequence[Stream]) -> Iterator[Candidate]:
    """Yield framings with a length in front."""
    reads = [read for read in reads_of(streams) if read]
    fields = _by_reads(reads)
    if len(reads) < 8 or not fields or fields[0].votes < 0.6 * len(reads):
        fields += _by_walking(streams)
    for field in _unlike(fields)[:MOST]:
        yield from _framed(field, streams, reads)


def count_candidates(streams: Sequence[Stream]) -> Iterator[Candidate]:
    """Yield framings whose length has no fixed size."""
    for framing in (Varint(), OctetCounting()):
        found = fit(framing, streams)
        if found.covered > 0.9 and len(found.sizes) > 2 and found.aligned > 0.8:
            yield Candidate(framing, found)


def _by_reads(reads: Sequence[bytes]) -> list[Field]:
    """Return fields that tell where many a read ends."""
    fields: list[Field] = []
    least = max(2, len(reads) // 3)
    for offset in range(OFFSETS):
        for size, order in FORMS:
            header = offset + size
            votes: Counter[int] = Counter()
            sizes: dict[int, set[int]] = {}
            for read in reads:
                if len(read) < header:
                    continue
                more = len(read) - int.from_bytes(read[offset:header], order)
                if 0 <= more <= header + EXTRA:
                    votes[more] += 1
                    sizes.setdefault(more, set()).add(len(read))
            for more, count in votes.most_common(2):
                if count >= least:
                    fields.append(Field(offset, size, order, more, count, len(sizes[more])))
    return sorted(fields, key=_promise, reverse=True)


def _promise(field: Field) -> tuple[float, ...]:
    return field.votes * min(field.sizes, 8), field.sizes, -field.offset


def _by_walking(streams: Sequence[Stream]) -> list[Field]:
    """Return fields that lead from frame to frame through what came in large pieces."""
    data = max((stream.data for stream in streams), key=len, default=b"")[:8192]
    fields = []
    for offset in range(OFFSETS):
        for size, order in FORMS:
            for more in range(offset + size + EXTRA + 1):
                field = Field(offset, size, order, more, 0)
                steps, sizes = _walk(field, data)
                if steps >= 3:
                    fields.append(attrs.evolve(field, votes=steps, sizes=sizes))
    return sorted(fields, key=_promise, reverse=True)[:MOST]


def _walk(field: Field, data: bytes) -> tuple[int, int]:
    """Return how many frames *data* has by *field*, and of how many sizes; 0 where it leads astray."""
    start, size = 0, len(data)
    steps, header = 0, field.offset + field.size
    least, sizes = max(header, 2), set()
    alike = data[:1] if field.offset else b""
    while start + header <= size:
        if alike and data[start : start + 1] != alike:
            return 0, 0
        length = field.value(data, start) + field.more
        if length < least:
            return 0, 0
        if start + length > size:
            break
        start += length
        steps += 1
        sizes.add(length)
        if steps == 4 and size - start > MOST_BYTES:
            break
    good = size - start <= 2048 and (start >= 0.7 * size or steps > 20)
    return (steps, len(sizes)) if good else (0, 0)


def _unlike(fields: Sequence[Field]) -> list[Field]:
    seen: dict[Field, Field] = {}
    for field in fields:
        seen.setdefault(field, field)
    return list(seen.values())


def _framed(field: Field, streams: Sequence[Stream], reads: Sequence[bytes]) -> Iterator[Candidate]:
    """Yield the framings that have *field*: bare, with a start, with an end."""
    header = field.offset + field.size
    wires = [read for read in reads if len(read) >= header and field.value(read, 0) + field.more == len(read)]
    if len(wires) < 2:
        wires = _wires(field, max((stream.data for stream in streams), key=len, default=b""))
    if len(wires) < 2:
        return
    start = _common_start(wires)[: field.offset]
    if not start.strip(b"\0") and len(start) < 4:
        start = b""  # the upper part of a number, most likely
    end = _common_end(wires, field.more - header)
    for mark in dict.fromkeys((end, end[-1:], b"")):
        adjustment = field.more - header - len(mark)
        strip = {"strip": 0} if start and len(start) == field.offset and adjustment < -field.size else {}
        framing = LengthPrefix(
            field.size,
            byteorder=field.order,
            start=start,
            offset=field.offset,
            adjustment=adjustment,
            end=mark,
            **strip,
        )
        found = fit(framing, streams)
        if found.wires:
            yield Candidate(framing, found, narrow=_narrow(field, wires))


def _narrow(field: Field, wires: Sequence[bytes]) -> bool:
    """Return whether *field* is rather the lower part of a wider one, whose upper part is always zero."""
    before = slice(max(0, field.offset - field.size), field.offset)
    behind = slice(field.offset + field.size, field.offset + 2 * field.size)
    if field.size == 1:
        return any(_zero(wires, part) for part in (before, behind))
    return field.size == 2 and (
        (field.order == "big" and field.offset == 2 and _zero(wires, before))
        or (field.order == "little" and field.offset == 0 and _zero(wires, behind))
    )


def _zero(wires: Sequence[bytes], part: slice) -> bool:
    size = part.stop - part.start
    return size > 0 and all(wire[part] == bytes(size) for wire in wires)


def _wires(field: Field, data: bytes) -> list[bytes]:
    wires: list[bytes] = []
    start, least = 0, max(field.offset + field.size, 2)
    while start + least <= len(data) and len(wires) < 100:
        length = field.value(data, start) + field.more
        if length < least or start + length > len(data):
            break
        wires.append(data[start : start + length])
        start += length
    return wires


def _common_start(wires: Sequence[bytes]) -> bytes:
    """Return with what nearly all *wires* begin, at most four bytes."""
    start = b""
    for size in range(1, 5):
        (most, count), *_ = Counter(wire[:size] for wire in wires).most_common(1)
        if count < 0.95 * len(wires) or len(most) < size:
            break
        start = most
    return start


def _common_end(wires: Sequence[bytes], room: int) -> bytes:
    """Return with what nearly all *wires* end, at most two bytes; *room* is how many aren't counted."""
    if len(wires) < 3:
        return b""
    end = b""
    for size in (1, 2):
        (most, count), *_ = Counter(wire[-size:] for wire in wires).most_common(1)
        if count < 0.9 * len(wires) or most[:1] in NO_ENDS:
            break
        end = most
    return end if room >= 0 or len(end) == 2 or end in (b"\r", b"\n", b"\x16", b"\x03") else b""
