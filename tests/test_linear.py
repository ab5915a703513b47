"""What is twice as long costs twice as much: every parser, whatever it is given.

Steps are counted, not seconds. What the interpreter copies or searches within one step is measured by the
benchmark.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exproto_app import checksums
from exproto_app.errors import SetupError
from exproto_app.framing import (
    JT808,
    Checked,
    Decoder,
    Delimiter,
    FirstOf,
    Framing,
    JsonObjects,
    LengthPrefix,
    Line,
    Resync,
    Skip,
    StartEnd,
)
from exproto_app.framing.reader import Searched
from exproto_app.traffic.hexdump import undump

from .framings import CASES, Case, Counted, CountedSplit, dense

units = st.one_of(dense, st.binary(min_size=1, max_size=6)).filter(bool)
few = settings(
    max_examples=max(2, settings().max_examples // 25),
    suppress_health_check=[HealthCheck.too_slow],
    deadline=None,
)


def steps(function: Callable[[], object]) -> int:
    """Return how many calls *function* makes, those of the interpreter's own functions included."""
    count = 0

    def profile(_: FrameType, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def all_errors_kept(framing: Framing, data: bytes, chunk: int) -> int:
    """Decode *data* in reads of *chunk* bytes, as with keep() after each error; return their number."""
    decoder, errors = Decoder(framing), 0
    for start in range(0, len(data), chunk):
        decoder.feed(data[start : start + chunk])
        while decoder.error is not None:
            errors += 1
            decoder.recover()
            decoder.feed(b"")
        decoder.take_bad()
    return errors


def in_proportion(cost: Callable[[int], int], size: int = 250) -> bool:
    """Tell whether four times *size* costs about four times as much."""
    return cost(4 * size) < 6 * cost(size) + 40 * size  # a frame may end just behind *size*


NESTED = [
    JT808,
    Checked(JT808, checksums.XOR),
    Checked(JT808, checksums.XOR, bad="error"),
    Resync(Checked(JT808, checksums.XOR)),
    StartEnd(b"x", b"a", {b"a": b"<>", b"<": b"<]"}, limit=64),
    Resync(StartEnd(b"x", b"a", limit=64)),
    Resync(FirstOf(StartEnd(b"x", b"a", limit=64), (b"\x7e", Counted()))),
    FirstOf((b"a", Line(limit=2)), (b"x", Checked(Counted(), checksums.SUM8, bad="error"))),
    Checked(Counted(), checksums.XOR, bad="error"),
    CountedSplit(),
    Line(limit=2),
    Resync(LengthPrefix(2, start=b"x", end=b"a", limit=64)),
    Resync(Checked(LengthPrefix(1, start=b"x"), checksums.XOR, bad="error")),
    Delimiter(b"a", b"\n", limit=64),
    Resync(Delimiter(b"\x02", b"\xff", limit=64), b"x"),
    Resync(Line(universal=True, limit=64), (b"x", b"<")),
    Skip(StartEnd(b"x", b"a", limit=64), b"<", b">]"),
    Resync(Skip(StartEnd(b"x", b"a", limit=64), b"<")),
    Resync(Checked(StartEnd(b"x", b"a", limit=64), checksums.XOR, at="behind")),
    Skip(Counted(), b"x", b"a<"),
]


JSON = [
    JsonObjects(),
    JsonObjects(depth=3, limit=40),
    Resync(JsonObjects()),
    FirstOf(JsonObjects(), Counted()),
]


@few
@given(data=st.data(), chunk=st.sampled_from([1, 50, 10**6]))
@pytest.mark.parametrize("framing", JSON, ids=repr)
def test_so_do_json_objects(framing: Framing, data: st.DataObject, chunk: int) -> None:
    """Of brackets, quotes and backslashes in any order, most of which nothing closes."""
    before = bytes(data.draw(st.lists(st.sampled_from(b'{["a'), max_size=6)))
    unit = bytes(data.draw(st.lists(st.sampled_from(b'{}[]"\\ a'), min_size=1, max_size=6)))

    def cost(size: int) -> int:
        return steps(lambda: all_errors_kept(framing, before + (unit * size)[:size], chunk))

    assert in_proportion(cost)


@few
@given(
    unit=st.one_of(dense, st.binary(min_size=1, max_size=6)).filter(bool),
    chunk=st.sampled_from([1, 7, 10**6]),
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_framing_takes_steps_in_proportion(case: Case, unit: bytes, chunk: int) -> None:
    """Whatever is repeated, and however it is cut."""

    def cost(size: int) -> int:
        return steps(lambda: all_errors_kept(case.framing, (unit * size)[:size], chunk))

    assert in_proportion(cost)


@few
@given(data=st.data(), chunk=st.sampled_from([1, 50, 10**6]))
@pytest.mark.parametrize("framing", NESTED, ids=repr)
def test_so_does_a_framing_made_of_framings(framing: Framing, data: st.DataObject, chunk: int) -> None:
    """Of its own bytes, which mean most to it."""
    alphabet = b"x<a>]\x7e\x7d\x02\x00\x01\xff\n"
    unit = bytes(data.draw(st.lists(st.sampled_from(alphabet), min_size=1, max_size=6)))

    def cost(size: int) -> int:
        return steps(lambda: all_errors_kept(framing, (unit * size)[:size], chunk))

    assert in_proportion(cost)


def test_what_was_searched_is_not_searched_again() -> None:
    """A distant mark is found once, however many places it is looked for from."""
    data = Searched(b"x" * 10 + b"a" + b"x" * 10 + b"ab")
    assert [data.find(b"a", place) for place in (0, 5, 10, 11, 21, 22)] == [10, 10, 10, 21, 21, -1]
    assert [data.find(b"a", place) for place in (0, 22, 3)] == [10, -1, 10]
    assert (data.find(b"b"), data.find(b"a", 0, 5), data.find(b"zz", 3)) == (22, -1, -1)


@pytest.mark.parametrize("unit", ["/*a", "/*", "{", "{{}", "//", "#\n", "0x", "aa,", "00000000 aa\n", "*\n"])
def test_hex_is_read_in_proportion(unit: str) -> None:
    """Comments that nothing closes, braces, half a dump: no text is looked at again and again."""

    def cost(size: int) -> int:
        def read() -> None:
            with contextlib.suppress(SetupError):
                undump((unit * size)[:size])

        return steps(read)

    assert in_proportion(cost)


def test_a_comment_that_nothing_closes_is_told() -> None:
    """It may have hidden bytes that were meant."""
    with pytest.raises(SetupError, match=r"the comment '/\*a7878' isn't closed"):
        undump("7878 /*a7878")
