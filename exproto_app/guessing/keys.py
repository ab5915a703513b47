"""Which byte, or word, tells the kinds of frames apart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

import attrs

__all__ = ["Key", "find_key"]

PLACES: Final = 16
MOST: Final = 64
LEAST: Final = 4


@attrs.frozen
class Key:
    """What picks the handler of a frame: the *code* of a function, and the *values* that were seen."""

    code: str
    values: tuple[bytes, ...]
    evidence: str


def find_key(frames: Sequence[bytes], *, text: bool) -> Key | None:
    """Return what tells the kinds of *frames* apart."""
    frames = frames[:500]
    if len(frames) < LEAST:
        return None
    return _word(frames) if text else _byte(frames)


def _byte(frames: Sequence[bytes]) -> Key | None:
    """Return the byte that says most of a frame's size; of those that say as much, the first."""
    least = min(map(len, frames))
    if len(set(map(len, frames))) < 2:
        return None
    best: tuple[float, int] = (0.35, -1)
    for place in range(min(PLACES, least)):
        values = Counter(frame[place] for frame in frames)
        if not 2 <= len(values) <= min(MOST, max(2, 0.6 * len(frames))):
            continue
        told = _information(frames, place) - 0.01 * place - 0.01 * len(values)
        if told > best[0]:
            best = told, place
    place = best[1]
    if place < 0:
        return None
    pieces = Counter(frame[place : place + 1] for frame in frames)
    common = tuple(piece for piece, _ in pieces.most_common(12))
    shown = ", ".join(value.hex() for value in common[:8])
    text = f"byte {place} of a frame shows its kind: {len(pieces)} values ({shown}) go with its size"
    return Key(f"lambda frame: frame[{place}:{place + 1}]", common, text)


def _information(frames: Sequence[bytes], place: int) -> float:
    """Return the share of what frame sizes leave open that the byte at *place* tells."""
    sizes = Counter(map(len, frames))
    whole = _entropy(sizes)
    groups: dict[int, Counter[int]] = {}
    for frame in frames:
        groups.setdefault(frame[place], Counter())[len(frame)] += 1
    left = sum(group.total() / len(frames) * _entropy(group) for group in groups.values())
    # A byte of many values tells a size by chance.
    chance = (len(groups) - 1) * (len(sizes) - 1) / (2 * len(frames) * math.log(2))
    return (whole - left - chance) / whole if whole else 0


def _entropy(counts: Counter[int]) -> float:
    total = counts.total()
    return -sum(count / total * math.log2(count / total) for count in counts.values())


def _word(frames: Sequence[bytes]) -> Key | None:
    """Return the word of a text that tells its kind: the first that has few values, but not one."""
    for comma in (b",", b";", b"|", b" ", b":", b"#"):
        split = [frame.split(comma) for frame in frames]
        if sum(len(words) > 1 for words in split) < 0.8 * len(frames):
            continue
        for place in range(3):
            words = Counter(words[place] for words in split if len(words) > place)
            if 2 <= len(words) <= max(2, 0.5 * len(frames)) and all(word.strip() for word in words):
                common = tuple(word for word, _ in words.most_common(12))
                shown = ", ".join(repr(word)[1:] for word in common[:6])
                text = f"word {place} between {comma!r} shows the kind: {len(words)} values ({shown})"
                return Key(_split(comma, place), common, text)
    return None


def _split(comma: bytes, place: int) -> str:
    if place == 0:
        return f"lambda frame: frame.partition({comma!r})[0]"
    # Which is empty where there are fewer words.
    return f'lambda frame: b"".join(frame.split({comma!r})[{place}:{place + 1}])'
