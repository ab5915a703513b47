"""When the broker's calls are answered: a connection's process waits for that, and with it the device."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from ...core import Intake
from .link import ErlangLink

__all__ = ["Answers"]

LOOKED_AT: Final = 256
"""Events that wait for their turn, and that are looked at in one round of the loop."""


class Answers:
    """Answers events in time: behind what their handlers do first, and not while the queue is full.

    The connection's process handles what was sent to it before it looks after the device again: what comes
    later than a hang-up would be lost.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[ErlangLink] = deque()
        self._scheduled = False

    def behind(self, link: ErlangLink, channel: Intake, answer: bytes) -> None:
        """Write *answer* behind what an async handler does before its first await."""
        if channel.paused and channel.closing is None and link.may_wait:
            link.withheld = answer
        elif channel.scheduled and link.may_wait:
            # The process is busy, and the event's turn has yet to come.
            link.withheld = answer
            self._waiting.append(link)
            self._look_again()
        elif channel.turn is None:
            self._write(answer)
        else:
            self._loop.call_soon(self._write, answer)

    def _look_again(self) -> None:
        if self._waiting and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        """Answer those whose turn has come."""
        self._scheduled = False
        waiting = self._waiting
        for _ in range(min(len(waiting), LOOKED_AT)):
            link = waiting.popleft()
            answer, link.withheld = link.withheld, None
            if answer is None:
                continue
            if link.channel is None:
                self._write(answer)
            else:
                self.behind(link, link.channel, answer)
        self._look_again()
