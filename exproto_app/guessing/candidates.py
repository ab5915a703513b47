"""Candidates: framings that fit to some degree, and how good each is."""

from __future__ import annotations

from typing import Any

import attrs

from ..framing import Delimiter, FixedSize, Framing, JsonObjects, LengthPrefix, Line, StartEnd
from .streams import Fit, is_text
from .sums import Sum

__all__ = ["Candidate", "score", "torn"]


@attrs.frozen
class Candidate:
    """A *framing* without its checksum, how it fits, and the checksum that its frames carry, if they do.

    *narrow*: beside its length field only zeros stand, so the field may be wider.
    """

    framing: Framing
    fit: Fit
    checksum: Sum | None = None
    narrow: bool = False


def score(candidate: Candidate) -> float:
    """Return how good *candidate* is; what explains all bytes by few assumptions comes first."""
    found = candidate.fit
    points = 4 * found.covered + 2 * found.aligned
    checksum = candidate.checksum
    if checksum is not None:
        points += found.covered * checksum.share * (3 if checksum.kind.size > 1 else 2)
    aligned = max(found.aligned, 0.7) if torn(candidate.framing, found) else found.aligned
    points += 2 * (aligned - found.aligned)
    return points + _by_kind(candidate.framing, candidate, aligned * min(len(found.wires), 6) / 6)


def torn(framing: Any, found: Fit) -> bool:
    """Return whether reads are pieces of a stream, whose ends say nothing about frames."""
    if found.reads <= 3:
        return True
    lines = isinstance(framing, Line) and is_text(b"".join(found.frames[:50]))
    marked = getattr(framing, "start", b"") or getattr(framing, "end", b"") or lines
    return bool(marked) and len(found.wires) >= 3 * found.reads


def _by_kind(framing: Any, candidate: Candidate, many: float) -> float:  # noqa: PLR0911 - one for each kind
    """Return the points of what a framing of this kind proves."""
    found = candidate.fit
    if isinstance(framing, LengthPrefix):
        return many * _length_points(framing, candidate, min(len(found.sizes), 6) / 6)
    if isinstance(framing, StartEnd):
        escaped = 0.8 if framing.escapes else 0
        return many * (0.4 * min(len(framing.start), 2) + 0.5 * min(len(framing.end), 2) + escaped)
    if isinstance(framing, Line):
        return many * (1.8 if is_text(b"".join(found.frames[:50])) else 0.5)
    if isinstance(framing, JsonObjects):
        return many * 2.0
    if isinstance(framing, Delimiter):
        # What stands in the middle of reads as often as at their ends hardly ends a frame.
        torn = max(0.0, len(found.wires) / max(found.reads, 1) - 1.5) if found.reads > 3 else 0
        return many * 0.6 * min(len(framing.delimiter), 2) - min(2.0, torn)
    if isinstance(framing, FixedSize):
        return many * (0.5 if framing.size > 3 else 1.0)
    return many * 1.2


def _length_points(framing: LengthPrefix, candidate: Candidate, varied: float) -> float:
    points = 2.4 * varied + 0.35 * min(len(framing.start), 2) + 0.4 * min(len(framing.end), 2)
    header = framing.offset + framing.size
    points -= 0.03 * framing.offset
    if not framing.start and not framing.end and candidate.fit.reads <= 3:
        points -= 1.5
    # Whole, rest, or rest without a checksum: what fields usually count.
    usual = (0, -framing.size, -header, 1, 2, 4)
    whole = -header - len(framing.end)
    if framing.adjustment in usual or framing.adjustment == whole:
        points += 0.4
    if candidate.narrow:
        points -= 0.6
    if framing.size == 2 or framing.offset == 0:
        points += 0.1
    if framing.size == 3 or (framing.size == 4 and framing.offset > 0):
        points -= 0.15
    if framing.offset > len(framing.start) + 4:
        points -= 0.2
    return points
