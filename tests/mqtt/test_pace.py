"""Clients connect to the broker at a pace that one can choose."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from exproto_app.hosts.mqtt.dialling import BrokerConnections
from exproto_app.hosts.mqtt.url import Url


class Clock:
    """An event loop as far as dialling needs one: time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.dialled: list[float] = []
        self.timers: list[tuple[float, Callable[[], object]]] = []

    def time(self) -> float:
        return self.now

    def create_future(self) -> None:
        """Nobody waits here."""

    def call_later(self, seconds: float, callback: Callable[[], object]) -> object:
        self.timers.append((self.now + seconds, callback))
        return self

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> Clock:
        coroutine.close()
        self.dialled.append(self.now)
        return self

    def add_done_callback(self, callback: object) -> None:
        """No task ever ends."""

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while due := sorted(timer for timer in self.timers if timer[0] <= until):
            self.timers.remove(due[0])
            self.now = due[0][0]
            due[0][1]()
        self.now = until


@pytest.mark.parametrize(("rate", "seconds", "most"), [(100.0, 1.0, 106), (20.0, 2.0, 42), (0.0, 0.0, 200)])
def test_no_more_connect_in_a_second_than_allowed(rate: float, seconds: float, most: int) -> None:
    clock: Any = Clock()
    broker = BrokerConnections(Url.parse("mqtt://127.0.0.1"), None, 10.0, clock, rate=rate)
    links: list[Any] = [object() for _ in range(1000)]
    for link in links:
        broker.dial(link)
    clock.advance(seconds)
    assert most * 0.9 <= len(clock.dialled) <= most
    assert all(broker.waits(link) for link in links[len(clock.dialled) :])


def test_a_second_without_any_is_not_made_up_for_at_once() -> None:
    clock: Any = Clock()
    broker = BrokerConnections(Url.parse("mqtt://127.0.0.1"), None, 10.0, clock, rate=100.0)
    clock.advance(10)
    links: list[Any] = [object() for _ in range(100)]
    for link in links:
        broker.dial(link)
    assert len(clock.dialled) <= 6
