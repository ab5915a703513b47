"""Logins that wait for a check, without any check."""

from __future__ import annotations

from exproto_app.addresses import Applicant
from exproto_app.core.login_queue import EACH, MOST, REMEMBERED, SUSPECT, WINDOW, Login, LoginQueue

from ..test_linear import steps


def login(host: str, name: str, *, gone: bool = False, leaving: bool = False) -> Login[None]:
    return Login(name, Applicant(host, lambda: gone, lambda: leaving), None)


def names(waiting: LoginQueue[None]) -> list[str]:
    found: list[str] = []
    waiting.drop_gone()
    while (one := waiting.next()) is not None:
        found.append(f"{one.applicant.host} {one.name}")
    return found


def test_who_hung_up_is_forgotten() -> None:
    waiting: LoginQueue[None] = LoginQueue()
    waiting.add(login("a", "1", gone=True))
    waiting.add(login("a", "2"))
    assert names(waiting) == ["a 2"]


def test_who_is_leaving_comes_last_and_makes_room_first() -> None:
    waiting: LoginQueue[None] = LoginQueue()
    leaving = login("a", "1", leaving=True)
    waiting.add(leaving)
    for _ in range(EACH - 1):
        waiting.add(login("a", "1"))
    waiting.add(login("b", "2"))
    assert waiting.add(login("a", "1")) == [leaving]
    waiting.add(login("c", "3", leaving=True))
    waiting.add(login("d", "4"))
    assert names(waiting)[-2:] == ["d 4", "c 3"]


def test_those_with_the_fewest_wrong_passwords_come_first() -> None:
    waiting: LoginQueue[None] = LoginQueue()
    for host, name in (("bad", "x"), ("bad", "good"), ("good", "x"), ("good", "good")):
        waiting.add(login(host, name))
    for _ in range(3):
        waiting.failed(login("bad", "x"), 0.0)
    assert names(waiting) == ["good good", "bad good", "good x", "bad x"]


def test_wrong_passwords_are_forgotten_after_a_minute() -> None:
    waiting: LoginQueue[None] = LoginQueue()
    for _ in range(9):
        waiting.failed(login("a", "1"), 0.0)
    waiting.failed(login("a", "1"), WINDOW)
    for _ in range(2):
        waiting.failed(login("b", "2"), WINDOW)
    waiting.add(login("b", "2"))
    waiting.add(login("a", "1"))
    assert names(waiting) == ["a 1", "b 2"]


def test_one_name_from_one_address_waits_so_many_times() -> None:
    waiting: LoginQueue[None] = LoginQueue()
    first = login("a", "1")
    waiting.add(first)
    for _ in range(EACH - 1):
        assert waiting.add(login("a", "1")) == []
    assert waiting.add(login("a", "1")) == [first]
    assert waiting.add(login("a", "2")) == []
    assert len(waiting) == EACH + 1


def test_who_hung_up_makes_room_first() -> None:
    waiting: LoginQueue[None] = LoginQueue()
    gone = [login("a", "1", gone=True) for _ in range(EACH)]
    out = [other for one in (*gone, login("a", "1")) for other in waiting.add(one)]
    assert out == gone
    assert len(waiting) == 1


def test_a_place_is_kept_for_names_that_nobody_guesses_at() -> None:
    waiting: LoginQueue[None] = LoginQueue()
    for _ in range(SUSPECT):
        waiting.failed(login("a", "guessed"), 0.0)
    waiting.add(login("a", "guessed"))
    assert waiting.next(innocent=True) is None
    innocent = login("a", "other")
    waiting.add(innocent)
    assert waiting.next(innocent=True) is innocent
    assert names(waiting) == ["a guessed"]


def test_in_all_too_the_one_with_the_most_wrong_passwords_is_refused() -> None:
    waiting: LoginQueue[None] = LoginQueue()
    bad = login("bad", "x")
    waiting.failed(bad, 0.0)
    waiting.add(bad)
    for number in range(MOST - 1):
        waiting.add(login("good", str(number)))
    assert waiting.add(login("good", "last")) == [bad]
    assert len(waiting) == MOST


def test_many_that_wait_cost_little_each() -> None:
    """The order is made anew now and then, not for each login; whose turn it is stays right."""

    def cost(size: int) -> int:
        waiting: LoginQueue[None] = LoginQueue()
        logins = [login(f"h{number % 7}", f"n{number}") for number in range(size)]

        def come_and_go() -> None:
            for number, one in enumerate(logins):
                waiting.add(one)
                if number % 3 == 0:
                    waiting.failed(one, 0.0)
            assert len(names(waiting)) == size

        return steps(come_and_go)

    assert cost(800) < 20 * cost(100)


def test_what_is_counted_is_bounded() -> None:
    waiting: LoginQueue[None] = LoginQueue()
    for number in range(REMEMBERED):
        waiting.failed(login(f"host {number}", f"name {number}"), 0.0)
    assert len(waiting._wrong) == REMEMBERED
