"""Messages that are kept for later subscribers: bounds, and those that expire."""

from __future__ import annotations

from exproto_app import Message
from exproto_app.commands import DONE
from exproto_app.core.retained import Retained


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def message(topic: str, payload: bytes = b"x", expiry: int | None = None) -> Message:
    return Message(topic, payload, expiry=expiry)


def test_what_has_expired_is_told_nobody_and_makes_room() -> None:
    clock = Clock()
    kept = Retained(2, 1_000, clock)
    assert kept.put(message("a", expiry=5)) is DONE
    assert kept.put(message("b")) is DONE
    clock.now = 3.0
    found = kept.get("a")
    assert found is not None
    assert found.expiry == 2
    assert kept.put(message("c")).error is not None, "both still count"
    clock.now = 6.0
    assert [one.topic for one in kept.matching("#")] == ["b"]
    assert kept.put(message("c")) is DONE
    assert [one for one in kept.topics("#") if one is not None] == ["b", "c"]


def test_what_has_expired_unseen_makes_room_too_looked_for_once_a_second() -> None:
    clock = Clock()
    kept = Retained(2, 1_000, clock)
    kept.put(message("a", expiry=5))
    kept.put(message("b", expiry=50))
    clock.now = 10.0
    assert kept.put(message("c")) is DONE
    assert (len(kept), kept.get("a")) == (2, None)
    clock.now = 10.5
    assert kept.put(message("d")).error is not None


def test_an_empty_one_removes_what_was_there() -> None:
    kept = Retained(1, 1_000, Clock())
    kept.put(message("a", b"12345"))
    assert kept.size > 0
    assert kept.put(message("a", b"")) is DONE
    assert (len(kept), kept.size, kept.get("a")) == (0, 0, None)


def test_bytes_are_bounded() -> None:
    kept = Retained(10, 300, Clock())
    assert kept.put(message("a", bytes(100))) is DONE
    assert "isn't retained" in str(kept.put(message("b", bytes(300))).error)
    assert kept.put(message("a", bytes(10))) is DONE, "it replaces its own"
