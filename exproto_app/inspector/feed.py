"""What a page gets of one connection: events as JSON, as many as it takes."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from typing import Any, Final

from ..tap import Event, Failed, Tap
from ..traffic.recording import Gap, facts_of

__all__ = ["Feed"]

EVENTS: Final = 1_000
"""Events that may wait for a page."""

SIZE: Final = 1024 * 1024
"""Characters of them."""

TRACE: Final = 16 * 1024
"""Characters of a traceback that are shown, its end."""


class Feed:
    """A watcher whose events wait until they are taken; *wake* is called when there is the first.

    What doesn't fit any more is left out, and a gap says how many those were. *began* is the runtime's time
    at which a recording of them begins.
    """

    def __init__(self, began: float, wake: Callable[[], object]) -> None:
        self._began = began
        self._wake = wake
        self._events: list[str] = []
        self._size = 0
        self._lost = 0
        self._latest = 0.0
        self._protocol = ""

    def __call__(self, tap: Tap, now: float, event: Event) -> None:
        """Keep *event*."""
        self._protocol = tap.protocol
        self._latest = round(now - self._began, 6)
        if self._lost or len(self._events) >= EVENTS or self._size >= SIZE:
            self._lost += 1
            return
        facts: dict[str, Any] = {"at": self._latest, "protocol": tap.protocol, **facts_of(event)}
        if type(event) is Failed:
            facts["traceback"] = tap.hide(_trace(event.error))
        text = json.dumps(facts, separators=(",", ":"))
        self._events.append(text)
        self._size += len(text)
        if len(self._events) == 1:
            self._wake()

    def take(self) -> str:
        """Return what waits, the elements of a JSON array; empty for nothing."""
        if self._lost:
            gap = {"at": self._latest, "protocol": self._protocol, **facts_of(Gap(self._lost))}
            self._events.append(json.dumps(gap, separators=(",", ":")))
        text = ",".join(self._events)
        self._events.clear()
        self._size = self._lost = 0
        return text


def _trace(error: BaseException) -> str:
    """Return the traceback of *error*; whatever a user's exception does, there is one."""
    try:
        return "".join(traceback.format_exception(error))[-TRACE:]
    except Exception:  # noqa: BLE001 - its own text may fail
        return "".join(traceback.format_tb(error.__traceback__))[-TRACE:]
