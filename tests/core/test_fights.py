"""Clientids that change hands again and again."""

from __future__ import annotations

from exproto_app.core.takeovers import KNOWN, LONGEST, OFTEN, WINDOW, Takeovers


def test_fights_that_are_remembered_are_bounded() -> None:
    takeovers = Takeovers()
    for _ in range(OFTEN):
        assert takeovers.allows("busy", 0.0)
    assert not takeovers.allows("busy", 1.0)
    for number in range(KNOWN):
        takeovers.allows(str(number), 1.0)
    assert takeovers.allows("busy", 2.0), "nobody remembers it"


def test_a_host_that_can_wait_spreads_them_and_refuses_what_would_be_too_late() -> None:
    takeovers = Takeovers()
    delays = [takeovers.delay("a", 0.0) for _ in range(OFTEN + 20)]
    assert delays[:OFTEN] == [0.0] * OFTEN
    granted = [delay for delay in delays if delay is not None]
    assert granted == sorted(granted)
    assert max(granted) <= LONGEST
    assert delays[-1] is None
    assert takeovers.delay("a", LONGEST + WINDOW) == 0.0


def test_a_fight_is_told_of_now_and_then() -> None:
    takeovers = Takeovers()
    assert not takeovers.news("a", 0.0)
    for _ in range(OFTEN):
        takeovers.allows("a", 0.0)
    assert takeovers.news("a", 1.0)
    assert not takeovers.news("a", 2.0)


def test_two_lines_that_wait_for_each_other_are_a_circle() -> None:
    takeovers = Takeovers()
    assert not takeovers.begin("x", "y")
    assert not takeovers.begin("y", "z")
    assert takeovers.begin("z", "x")
    for line, other in (("x", "y"), ("y", "z"), ("z", "x")):
        takeovers.end(line, other)
    assert not takeovers.begin("z", "x")
