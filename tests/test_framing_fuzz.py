"""Hostile bytes: whatever comes, and however it is cut, a framing stays within its bounds.

`make test` tries a few streams for each framing, `make fuzz` thousands.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exproto_app.errors import FramingError
from exproto_app.framing import Checked, Decoder, Delimiter, FirstOf, Framing, Line, Resync, Skip, StartEnd
from exproto_app.framing.base import Sifted, Stock

from .framings import CASES, Case, bytewise, cut, dense, places

LIMIT = 24  # bytes of a frame, so that limits are reached
some = settings(max_examples=settings().max_examples // 5)  # each looks at three runs of a whole stream
MOST = 2 * LIMIT + 64 + 8  # bytes that may wait: all escaped, or with a reader's allowance for a header


def limited(framing: Framing) -> Framing:
    """Return the same framing with a low limit, in all that it is made of."""
    if isinstance(framing, FirstOf):
        choices = [choice if isinstance(choice, tuple) else (None, choice) for choice in framing.choices]
        lower = [(start, limited(choice)) for start, choice in choices]
        return FirstOf(*(choice if start is None else (start, choice) for start, choice in lower))
    if isinstance(framing, Checked | Resync):
        return attrs.evolve(framing, framing=limited(framing.framing))
    if isinstance(framing, Skip):
        return Skip(limited(framing.framing), *framing.fill, send=framing.send)
    if isinstance(framing, Delimiter):
        return Delimiter(framing.delimiter, *framing.others, limit=LIMIT)
    return cast("Framing", attrs.evolve(cast("Any", framing), limit=LIMIT))


def pieces(case: Case) -> st.SearchStrategy[bytes]:
    """Return what a hostile stream is made of: frames, parts of them, wrong bytes in them, and anything."""

    def framed(frame: bytes) -> bytes:
        try:
            return case.framing.encode(frame)
        except FramingError:
            return frame

    def spoilt(data: bytes, place: int, byte: int) -> bytes:
        place %= len(data) or 1
        return data[:place] + bytes([byte]) + data[place + 1 :]

    whole = case.frames.map(framed)
    part = st.builds(
        lambda data, start, size: data[start : start + size], whole, st.integers(0, 9), st.integers(0, 40)
    )
    wrong = st.builds(spoilt, whole, st.integers(0, 99), st.integers(0, 255))
    return st.one_of(whole, whole, part, wrong, dense, st.binary(max_size=8))


@attrs.define
class Run:
    """What a decoder made of a stream."""

    frames: list[bytes] = attrs.Factory(list)
    bad: list[bytes] = attrs.Factory(list)
    skipped: bytes = b""
    safe: int | None = None  # frames before the first error


def run(framing: Framing, chunks: list[bytes]) -> Run:
    """Feed *chunks*, survive every error, and check the bounds all the time."""
    decoder = Decoder(framing)
    result = Run()
    rounds = 0
    for chunk in chunks:
        data = chunk
        while True:
            rounds += 1
            assert rounds <= sum(map(len, chunks)) + len(chunks), "it goes on without consuming"
            result.frames += decoder.feed(data)
            for item in decoder.take_bad():
                if item.frame:
                    result.bad.append(item.data)
                else:
                    result.skipped += item.data
            if decoder.error is None:
                break
            if result.safe is None:
                result.safe = len(result.frames)
            decoder.recover()
            data = b""
        assert decoder.buffered <= MOST
    assert all(len(frame) <= LIMIT for frame in result.frames)
    assert len(result.skipped) + sum(map(len, result.frames)) <= sum(map(len, chunks))
    return result


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@some
@given(data=st.data())
def test_hostile_bytes(case: Case, data: st.DataObject) -> None:
    """Frames keep the limit, what waits is bounded, errors are survived; cuts change nothing before them."""
    framing = limited(case.framing)
    stream = b"".join(data.draw(st.lists(pieces(case), max_size=12)))
    runs = [run(framing, chunks) for chunks in ([stream], cut(stream, data.draw(places)), bytewise(stream))]
    first = runs[0]
    for other in runs[1:]:
        assert other.frames[: other.safe] == first.frames[: first.safe]
        assert (other.safe is None) == (first.safe is None)
        if first.safe is None:
            assert (other.bad, other.skipped) == (first.bad, first.skipped)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@some
@given(data=st.data())
def test_hostile_datagrams(case: Case, data: st.DataObject) -> None:
    """A datagram leaves nothing behind, and a good one after it gives its frames."""
    framing = limited(case.framing)
    decoder = Decoder(framing)
    for datagram in data.draw(st.lists(pieces(case), max_size=4)):
        decoder.feed(datagram)
        decoder.finish()
        decoder.take_bad()
        if decoder.error is not None:
            decoder.recover()
            decoder.feed(b"")
            decoder.finish()
            decoder.take_bad()
            decoder.recover()
        assert decoder.buffered == 0


def sifted(sift: Callable[[bytes, int], list[Sifted]], data: bytes) -> list[tuple[Any, int, str, int]]:
    """Return all that *sift* finds in *data*, the first one first."""
    found: list[tuple[Any, int, str, int]] = []
    start, size = 0, 1
    while size:
        for items, end, error, wrong in reversed(sift(data, start)):
            found.append((items, end, str(error), wrong))
            start, size = end + wrong, wrong
    return found


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if type(case.framing) in (Line, Delimiter, StartEnd)],
    ids=lambda case: case.name,
)
@some
@given(data=st.data())
def test_a_framing_sifts_as_it_scans(case: Case, data: st.DataObject) -> None:
    """One that has a faster way to look for many errors finds the same frames and errors."""
    framing = cast("Stock", limited(case.framing))
    stream = b"".join(data.draw(st.lists(pieces(case), max_size=12)))
    assert sifted(framing.sift, stream) == sifted(partial(Stock.sift, framing), stream)
