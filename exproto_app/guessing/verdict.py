"""The verdict: the framing that explains best what devices have sent, and how sure that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

import attrs

from ..errors import SetupError
from ..framing import Delimiter, FirstOf, FixedSize, Framing, JsonObjects, LengthPrefix, Line, StartEnd
from .behind import behind_ends
from .building import Built, built, first_of, sum_bodies, waking, with_sum
from .candidates import Candidate, score, torn
from .keys import Key, find_key
from .known import Known, example_of, foreign
from .lengths import count_candidates, length_candidates
from .marks import mark_candidates, wake_up
from .streams import Fit, Stream, fit, is_text, reads_of
from .sums import Sum, find_sum, find_text_sum
from .texts import text_candidates

__all__ = ["Guess", "guess"]

Certainty = Literal["sure", "likely", "unsure", "none"]

CLOSELY: Final = 10
"""Candidates whose checksums are looked for."""

GROUPS: Final = 6
"""Kinds of frames of one stream, by their first byte."""


@attrs.frozen
class Guess:
    """What devices probably speak: *code* makes the *framing*, *evidence* says why, in sentences."""

    certainty: Certainty
    evidence: tuple[str, ...]
    framing: Framing | None = None
    code: str = ""
    imports: tuple[str, ...] = ()
    text: bool = False
    key: Key | None = None
    known: Known | None = None
    others: tuple[str, ...] = ()
    frames: tuple[bytes, ...] = attrs.field(default=(), repr=False)
    parts: tuple[tuple[tuple[str, ...], Guess], ...] = ()


@attrs.frozen
class _Found:
    """A framing with its checksum, and how good it is."""

    built: Built
    plain: Any
    fit: Fit
    checksum: Sum | None
    points: float


def guess(streams: Sequence[Stream]) -> Guess:
    """Return what *streams* probably are; pure, and bounded in time whatever they hold.

    Where they are of several protocols, `parts` has a guess for each, with the names of its streams.
    """
    one = _guess(streams)
    if one.certainty in ("sure", "likely") or len(streams) < 2:
        return one
    groups: dict[tuple[bool, bytes], list[Stream]] = {}
    for stream in streams:
        if stream.data:
            groups.setdefault((is_text(stream.data[:4_000]), stream.data[:1]), []).append(stream)
    if not 2 <= len(groups) <= GROUPS:
        return one
    parts = tuple((tuple(one.name for one in group), _guess(group)) for group in groups.values())
    if sum(part.certainty in ("sure", "likely") for _, part in parts) < 2:
        return one
    text = f"the connections speak {len(parts)} protocols, told apart by their first bytes"
    return Guess("none", (text,), parts=parts)


def _guess(streams: Sequence[Stream]) -> Guess:
    streams = [stream for stream in streams if stream.data]
    total = sum(len(stream.data) for stream in streams)
    if total < 4:
        return Guess("none", (f"{total} bytes are too few to guess from",))
    other = foreign(streams)
    if other is not None:
        return Guess("none", (f"this is {other[0]}, not a device protocol; {other[1]}",))
    streams = _bounded(streams)
    example = example_of(streams)
    if example is not None:
        return _as_example(streams, *example)
    text = is_text(b"".join(reads_of(streams))[:20_000])
    found = _best(streams, text=text)
    if not found or found[0].fit.covered < 0.99 or (found[0].fit.aligned < 0.9 and not _torn(found[0])):
        found = sorted([*found, *_grouped(streams)], key=lambda one: one.points, reverse=True)
    if not found:
        return _none(streams, text=text)
    return _verdict(found, streams, text=text)


def _bounded(streams: Sequence[Stream]) -> list[Stream]:
    """Return as much of each stream as is looked at."""
    reads, size = 0, 0
    bounded = []
    share = max(4_000, 200_000 // len(streams))
    for stream in streams:
        kept: list[bytes] = []
        left = share
        for read in stream.reads:
            if left <= 0 or len(kept) >= 600:
                break
            kept.append(read[:left])
            left -= len(read)
        bounded.append(Stream(tuple(kept), stream.whole, stream.name))
        reads, size = reads + len(kept), size + share - left
        if reads > 2_000 or size > 300_000:
            break
    return bounded


def _as_example(streams: Sequence[Stream], known: Known, good: int, bad: int) -> Guess:
    frames = [frame for stream in streams for frame in _decoded(known.framing, stream)]
    words = f"{good} of {good + bad} frames are right, checksums included"
    return Guess(
        "sure" if good >= 3 else "likely",
        (f"looks like {known.name}: {known.example} speaks it; exproto-app examples copies it", words),
        framing=known.framing,
        code=known.code,
        imports=(
            "from exproto_app.checksums import CRC16_ARC, CRC16_X25, XOR",
            "from exproto_app.framing import JT808, Checked, FirstOf, LengthPrefix, Line",
        ),
        text=known.name.startswith("NMEA"),
        key=find_key(frames, text=known.name.startswith("NMEA")),
        known=known,
        frames=tuple(frames),
    )


def _decoded(framing: Framing, stream: Stream) -> list[bytes]:
    return fit(framing, [stream]).frames


# --- the best of all candidates


def _best(streams: Sequence[Stream], *, text: bool) -> list[_Found]:
    candidates = sorted(_candidates(streams, text=text), key=score, reverse=True)
    cache: dict[Any, Any] = {}
    found = [_with_sums(candidate, cache) for candidate in candidates[:CLOSELY]]
    for framing, checksum in behind_ends(streams):
        how = fit(framing.framing, streams)
        points = score(Candidate(framing.framing, how, checksum)) + 2
        found.append(_Found(framing, framing.framing, how, checksum, points))
    fill, stripped = wake_up(streams)
    if fill and (not found or max(one.points for one in found) < 9):
        found += [
            attrs.evolve(one, built=waking(one.built, fill), points=one.points + 0.2)
            for one in _best(stripped, text=text)[:3]
            if not _starts_with(one.plain, fill)
        ]
    sound = [
        one for one in found if one.checksum is not None or not (_torn(one) and _weak(one.plain, one.fit))
    ]
    return sorted(sound, key=lambda one: one.points, reverse=True)


def _starts_with(framing: Any, fill: bytes) -> bool:
    return bool(framing.starts) and any(start.startswith(fill) for start in framing.starts)


def _candidates(streams: Sequence[Stream], *, text: bool) -> Iterator[Candidate]:
    if text:
        yield from text_candidates(streams)
        yield from count_candidates(streams)
    else:
        yield from length_candidates(streams)
        yield from count_candidates(streams)
        yield from mark_candidates(streams)
        yield from (one for one in text_candidates(streams) if isinstance(one.framing, Line))


def _with_sums(candidate: Candidate, cache: dict[Any, Any]) -> _Found:
    """Return *candidate* with the checksum that its frames carry, if any."""
    framing, found = candidate.framing, candidate.fit
    inner = built(framing)
    bodies, before = sum_bodies(framing, found)
    text = is_text(b"".join(bodies[:50]))
    checksum = find_text_sum(bodies) if text else find_sum(bodies, cache)
    if checksum is not None and checksum.start < before and not isinstance(framing, LengthPrefix | StartEnd):
        checksum = None
    if checksum is not None:
        try:
            inner = with_sum(inner, checksum, before)
        except SetupError:  # it can't be said of this framing
            checksum = None
    candidate = attrs.evolve(candidate, checksum=checksum)
    return _Found(inner, framing, found, checksum, score(candidate))


# --- several kinds of frames


def _grouped(streams: Sequence[Stream]) -> list[_Found]:
    """Return a framing of several, one for each first byte that reads begin with."""
    reads = reads_of(streams)
    firsts = Counter(read[:1] for read in reads if read)
    groups = [(first, count) for first, count in firsts.most_common(GROUPS) if count >= 2]
    if len(groups) < 2 or sum(count for _, count in groups) < 0.9 * len(reads):
        return []
    choices: list[tuple[bytes, Built]] = []
    for first, _ in groups:
        own = [Stream((read,), whole=True) for read in reads if read[:1] == first]
        found = _best(own, text=is_text(b"".join(stream.data for stream in own)))
        if not found or found[0].fit.covered < 0.95 or found[0].fit.aligned < 0.9:
            continue
        choices.append((first, found[0].built))
    if len(choices) < 2:
        return []
    try:
        whole = first_of(choices)
    except SetupError:
        return []
    how = fit(whole.framing, streams)
    points = 4 * how.covered + 2 * how.aligned + 3
    return [_Found(whole, whole.framing, how, None, points)]


# --- words


def _verdict(found: Sequence[_Found], streams: Sequence[Stream], *, text: bool) -> Guess:
    best = found[0]
    certainty = _certainty(best)
    if certainty == "none":
        return _none(streams, text=text)
    others = tuple(dict.fromkeys(one.built.code for one in found[1:4] if one.points > best.points - 1.5))
    evidence = list(_evidence(best, text=text))
    if certainty == "unsure":
        evidence.append("this is unsure: try it on more traffic before you rely on it")
    key = find_key(best.fit.frames, text=text)
    if key is not None:
        evidence.append(key.evidence)
    return Guess(
        certainty,
        tuple(evidence),
        framing=best.built.framing,
        code=best.built.code,
        imports=tuple(best.built.lines()),
        text=text,
        key=key,
        others=tuple(code for code in others if code != best.built.code),
        frames=tuple(best.fit.frames),
    )


def _certainty(best: _Found) -> Certainty:  # noqa: PLR0911 - from the surest to the least sure
    how, checksum, framing = best.fit, best.checksum, best.plain
    count = len(how.wires)
    if how.covered < 0.5 or not count:
        return "none"
    checked = checksum is not None and checksum.share >= 0.9
    proved = checked and checksum is not None and checksum.fits >= (3 if checksum.kind.size > 1 else 6)
    if isinstance(framing, LengthPrefix) and len(how.sizes) == 1:
        return "likely" if proved else "unsure"
    if how.covered >= 0.97 and proved:
        return "sure"
    if not checked and _torn(best) and _weak(framing, how):
        return "none"
    if isinstance(framing, Delimiter) and count > 2 * how.reads > 6:
        return "unsure"
    marked = _marked(framing)
    aligned = 1.0 if _torn(best) else how.aligned
    if not checked and not marked and aligned < 0.5:
        return "none"
    several = isinstance(framing, FirstOf)
    if (
        not several
        and how.covered >= 0.97
        and aligned >= 0.9
        and count >= 8
        and marked
        and _proves(framing, how)
    ):
        return "sure"
    if how.covered >= 0.85 and aligned >= 0.7 and count >= 3 and (checked or _proves(framing, how)):
        return "likely"
    return "unsure"


def _weak(framing: Any, how: Fit) -> bool:
    """Return whether noise would fit *framing* as well, where reads say nothing about frames."""
    if isinstance(framing, LengthPrefix):
        return not framing.start and not framing.end and (framing.size == 1 or len(how.wires) < 5)
    return isinstance(framing, Line | Delimiter) and not is_text(b"".join(how.frames[:50]))


def _torn(found: _Found) -> bool:
    return torn(found.plain, found.fit)


def _marked(framing: Any) -> bool:
    return bool(getattr(framing, "start", b"") or getattr(framing, "end", b"")) or isinstance(
        framing, Line | Delimiter | JsonObjects | FirstOf
    )


def _proves(framing: Any, how: Fit) -> bool:
    if isinstance(framing, LengthPrefix):
        return len(how.sizes) >= 3
    return not isinstance(framing, FixedSize)


def _none(streams: Sequence[Stream], *, text: bool) -> Guess:
    """Return the guess that nothing fits, and what that may mean."""
    reads = reads_of(streams)
    data = b"".join(reads)
    evidence = [f"no framing fits {len(data)} bytes in {len(reads)} reads"]
    counts = Counter(data)
    if len(data) >= 2_048 and max(counts.values()) < 2.5 * len(data) / 256:
        evidence.append("it looks like noise: encrypted, or compressed")
    elif len(reads) >= 4:
        evidence.append(
            "nothing shows where a frame ends; if each read is a frame, start with RAW, "
            "or with Gap(0.05) on serial lines"
        )
    else:
        evidence.append("a capture with more messages, each as it arrived, would help")
    return Guess("none", tuple(evidence), text=text)


def _evidence(best: _Found, *, text: bool) -> Iterator[str]:
    how, checksum = best.fit, best.checksum
    reads = "all" if how.aligned >= 0.995 else f"{how.aligned:.0%} of"
    yield f"{len(how.wires)} frames cover {how.covered:.0%} of the bytes; {reads} reads end with one"
    yield f"the content is {'text' if text else 'binary'}"
    yield from _structure(best.plain, how)
    if checksum is not None:
        place = "behind the end mark" if checksum.behind else "at the end of the frame"
        order = f", {checksum.order} endian" if checksum.width > 1 and not checksum.text else ""
        yield (
            f"{checksum.kind.name} {place}{order}: right in {checksum.fits} of {checksum.tried} frames, "
            f"from byte {checksum.start} on"
        )


def _structure(framing: Any, how: Fit) -> Iterator[str]:
    if isinstance(framing, LengthPrefix):
        width = f"{framing.size} byte{'s' if framing.size > 1 else ''}"
        order = f", {framing.byteorder} endian" if framing.size > 1 else ""
        counts = framing.header + framing.adjustment + len(framing.end)
        what = "all of the frame" if counts == 0 else f"all but {counts} bytes of the frame"
        yield (
            f"a length of {width}{order} at byte {framing.offset} counts {what}; "
            f"frames have {len(how.sizes)} different sizes"
        )
    if isinstance(framing, StartEnd) and framing.escapes:
        pairs = ", ".join(f"{raw.hex()} as {escape.hex()}" for raw, escape in framing.escapes.items())
        yield f"bytes are escaped: {pairs}"
    start, end = getattr(framing, "start", b""), getattr(framing, "end", b"")
    if start and isinstance(start, bytes):
        yield f"each frame begins with {_shown(start)}"
    if end and isinstance(end, bytes):
        yield f"each frame ends with {_shown(end)}"
    if isinstance(framing, FixedSize):
        yield f"each read has {framing.size} bytes"


def _shown(mark: bytes) -> str:
    return repr(mark)[1:] if mark.isascii() and mark.decode().isprintable() else mark.hex()
