"""Takeovers: how often each clientid has changed hands lately, and when that is too often."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any, Final

import attrs

__all__ = ["OFTEN", "WINDOW", "Takeovers"]

OFTEN: Final = 5
"""Takeovers of one clientid that are told of in `REPEATS` seconds, and delayed in `WINDOW` seconds."""

WINDOW: Final = 10.0
LONGEST: Final = 20.0
REPEATS: Final = 300.0

AGAIN: Final = 60.0
"""Seconds after which a fight that goes on is told of again."""

KNOWN: Final = 4_096
"""Clientids that are remembered, those that changed hands last."""


@attrs.define(eq=False)
class _Fight:
    """When one clientid changed hands, or is going to, and when that was told of."""

    times: deque[float] = attrs.field(factory=lambda: deque(maxlen=OFTEN))
    told: float = float("-inf")


class Takeovers:
    """The takeovers of one host.

    A device that comes back has its clientid at once. Two that fight for one take it from each other for
    ever, each time with a login at the broker: beyond `OFTEN` takeovers in `WINDOW` seconds each further one
    waits for its time (`delay`), and is refused where that is more than `LONGEST` away, or where the host
    can't wait (`allows`).
    """

    def __init__(self) -> None:
        self._fights: OrderedDict[str, _Fight] = OrderedDict()
        self._waiting: dict[Any, list[Any]] = {}

    def delay(self, clientid: str, now: float) -> float | None:
        """Take note that *clientid* is to change hands; return in how many seconds it may, None for never."""
        times = self._fight(clientid).times
        due = now
        if len(times) == OFTEN:
            due = max(now, times[0] + WINDOW, times[-1] + WINDOW / OFTEN if times[-1] > now else now)
        if due - now > LONGEST:
            return None
        times.append(due)
        return due - now

    def allows(self, clientid: str, now: float) -> bool:
        """Take note that *clientid* changes hands now; return False where it has done so too often lately."""
        times = self._fight(clientid).times
        if len(times) == OFTEN and times[0] > now - WINDOW:
            return False
        times.append(now)
        return True

    def begin(self, line: Any, other: Any) -> bool:
        """Take note that *line* waits for an end on *other*; return whether *other* waits for *line* already.

        Then neither may wait: each end takes a turn of its line, whose handler waits for the other end.
        """
        seen, ahead = set[Any](), [other]
        while ahead:
            one = ahead.pop()
            if one not in seen:
                seen.add(one)
                ahead += self._waiting.get(one, ())
        self._waiting.setdefault(line, []).append(other)
        return line in seen

    def end(self, line: Any, other: Any) -> None:
        """Take note that *line* waits for that end no more."""
        others = self._waiting[line]
        others.remove(other)
        if not others:
            del self._waiting[line]

    def news(self, clientid: str, now: float) -> bool:
        """Return whether *clientid* changes hands again and again, and that wasn't told of lately."""
        fight = self._fights.get(clientid)
        if fight is None or len(fight.times) < OFTEN:
            return False
        if fight.times[0] < now - REPEATS or now - fight.told < AGAIN:
            return False
        fight.told = now
        return True

    def _fight(self, clientid: str) -> _Fight:
        """Return what is known of *clientid*, which counts as the latest from now on."""
        fight = self._fights.pop(clientid, None) or _Fight()
        self._fights[clientid] = fight
        if len(self._fights) > KNOWN:
            self._fights.popitem(last=False)
        return fight
