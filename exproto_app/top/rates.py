"""What happens in a second: the difference of two looks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import attrs

from .source import Handler, Inspected, Measured

__all__ = ["HandlerRate", "Look", "Rates"]

SHOWN: Final = ("connections_opened", "frames_received", "messages_published", "messages_delivered")
"""Counters that everybody wants to see; `bytes_received` and `bytes_sent` beside them."""

TROUBLE: Final = (
    "_banned",
    "_bad",
    "_dropped",
    "_errors",
    "_evicted",
    "_failed",
    "_refused",
    "_refusals",
    "_retried",
    "_skipped",
    "_timed_out",
    "_unhandled",
)
"""How the names of counters end that count what went wrong."""


@attrs.frozen
class Look:
    """What all processes told at *time*, in seconds of any clock that only goes on."""

    time: float
    states: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    found: int
    handlers: list[Handler] = attrs.Factory(list)

    @classmethod
    def take(
        cls,
        time: float,
        inspected: Sequence[Inspected],
        measured: Iterable[Measured],
        *,
        search: str,
        sort: str,
        limit: int,
    ) -> Look:
        """Ask everybody. Raises `SourceError`."""
        states = [one.state() for one in inspected]
        tables = [one.connections(search, sort, limit) for one in inspected]
        rows = [{**row, "process": number} for number, table in enumerate(tables, 1) for row in table["rows"]]
        handlers = [handler for one in measured for handler in one.handlers()]
        return cls(time, states, rows, sum(table["found"] for table in tables), handlers)

    @property
    def counters(self) -> Counter[str]:
        """The counters of all processes together; those that are parts of another are left out."""
        total: Counter[str] = Counter()
        for state in self.states:
            total.update({name: value for name, value in state["counters"].items() if "." not in name})
        return total

    @property
    def connections(self) -> int:
        """How many are open."""
        return sum(protocol["connections"] for state in self.states for protocol in state["protocols"])


@attrs.frozen
class HandlerRate:
    """What a handler did: calls a second, seconds a call, and the part of the time that it took."""

    protocol: str
    event: str
    name: str
    rate: float
    mean: float
    share: float


@attrs.frozen
class Rates:
    """What happened from one look to the next, a second. Nothing is known after a restart in between."""

    counted: Mapping[str, float]
    handlers: list[HandlerRate]

    @classmethod
    def between(cls, before: Look, now: Look) -> Rates:
        """Compare two looks."""
        passed = max(now.time - before.time, 1e-6)
        restarted = [one["instance"] for one in before.states] != [one["instance"] for one in now.states]
        if restarted:
            return cls({}, [])
        old, new = before.counters, now.counters
        counted = {name: (value - old[name]) / passed for name, value in new.items()}
        return cls(counted, _handler_rates(before.handlers, now.handlers, passed))

    def trouble(self, counters: Mapping[str, int]) -> list[tuple[str, int, float]]:
        """Return what went wrong, with how often in all and in a second; what goes on first."""
        rows = [
            (name, value, self.counted.get(name, 0.0))
            for name, value in counters.items()
            if value and name.endswith(TROUBLE)
        ]
        return sorted(rows, key=lambda row: (-row[2], -row[1], row[0]))


def _handler_rates(before: list[Handler], now: list[Handler], passed: float) -> list[HandlerRate]:
    calls: defaultdict[tuple[str, str, str], int] = defaultdict(int)
    seconds: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    for sign, handlers in ((1, now), (-1, before)):
        for one in handlers:
            key = one.protocol, one.event, one.name
            calls[key] += sign * one.calls
            seconds[key] += sign * one.seconds
    rows = [
        HandlerRate(*key, count / passed, seconds[key] / count, seconds[key] / passed)
        for key, count in calls.items()
        if count > 0
    ]
    return sorted(rows, key=lambda row: -row.share)
