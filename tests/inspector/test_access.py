"""Who may look: tokens, guesses, and requests of other sites, without a socket."""

from __future__ import annotations

import pytest

from exproto_app.inspector.access import ALL_GUESSES, GUESSES, WINDOW, Access
from exproto_app.models import is_loopback


def status(
    access: Access, token: str | None, peer: str = "peer", now: float = 0.0, cookie: str | None = None
) -> int:
    refusal = access.check_token(token, cookie, peer, now)
    return 200 if refusal is None else refusal.status


def test_guesses_are_forgotten_when_their_time_is_over() -> None:
    access = Access("swordfish", "0.0.0.0")
    for _ in range(GUESSES):
        assert status(access, "herring", now=100) == 401
    assert status(access, "herring", now=100 + WINDOW - 1) == 429
    assert status(access, "herring", now=100 + WINDOW) == 401


def test_whoever_has_the_token_or_the_cookie_passes_whatever_others_have_tried() -> None:
    access = Access("swordfish", "0.0.0.0")
    for number in range(2 * ALL_GUESSES):
        status(access, "herring", "the proxy" if number % 2 else f"peer {number}")
    assert status(access, "herring", "the proxy") == 429
    assert status(access, "swordfish", "the proxy") == 200
    assert status(access, None, "the proxy", cookie=access.cookie) == 200
    assert status(access, "herring", "the proxy", cookie=access.cookie) == 200


def test_one_address_is_not_made_to_wait_for_another() -> None:
    access = Access("swordfish", "0.0.0.0")
    for _ in range(GUESSES):
        status(access, "herring", "one")
    assert status(access, "herring", "one") == 429
    assert status(access, "herring", "other") == 401


def test_guesses_from_everywhere_are_limited_and_so_is_the_memory_of_them() -> None:
    access = Access("swordfish", "0.0.0.0")
    answers = [status(access, "herring", f"peer {number}") for number in range(ALL_GUESSES + 10)]
    assert answers == [401] * ALL_GUESSES + [429] * 10
    assert len(access._guesses) <= ALL_GUESSES
    assert status(access, "herring", "somebody", WINDOW) == 401
    assert len(access._guesses) == 1


def test_who_shows_nothing_has_not_guessed() -> None:
    access = Access("swordfish", "0.0.0.0")
    for _ in range(10 * GUESSES):
        assert status(access, None) == 401
    assert status(access, "swordfish") == 200


def test_a_cookie_counts_as_a_guess_too() -> None:
    access = Access("swordfish", "0.0.0.0")
    assert status(access, None, cookie=access.cookie) == 200
    for _ in range(GUESSES):
        assert status(access, None, cookie=Access("herring", "").cookie) == 401
    assert status(access, "herring") == 429


@pytest.mark.parametrize("token", ["", "swordfis", "swordfish ", "s\u00f6ordfish", "\ud800"])
def test_what_is_nearly_the_token_is_wrong(token: str) -> None:
    assert status(Access("swordfish", "0.0.0.0"), token) == 401


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8080", True),
        ("localhost:1", True),
        ("LOCALHOST", True),
        ("[::1]:8080", True),
        ("127.0.0.53", True),
        ("evil.example:8080", False),
        ("localhost.evil.example", False),
        ("192.168.1.2:8080", False),
        ("", False),
        ("[", False),
        ("127.0.0.1@evil.example", False),
    ],
)
def test_without_a_token_only_names_of_this_machine_are_served(host: str, allowed: bool) -> None:
    refusal = Access(None, "127.0.0.1").check_site(host, None, None)
    assert (refusal is None) is allowed


@pytest.mark.parametrize(
    "origin", ["null", "", "http://evil.example", "http://127.0.0.1:81", "http://[", "x"]
)
def test_other_origins_are_refused(origin: str) -> None:
    for access in (Access(None, "127.0.0.1"), Access("swordfish", "0.0.0.0")):
        refusal = access.check_site("127.0.0.1:80", origin, None)
        assert refusal is not None
        assert refusal.status == 403


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("", False),
        ("::", False),
        ("x", False),
    ],
)
def test_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
