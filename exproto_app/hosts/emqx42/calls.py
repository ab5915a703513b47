"""Calls of the broker's functions: how many are on their way, and what becomes of those without an answer.

The process that owns the port keeps its calls in a list: each costs more the more there are, and with 10,000
of them it does nothing else any more. So a few hundred are on the wire, the rest wait here. One that is not
answered soon, as by the process of a device that does not read, gives its place to others and waits on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import Any, Final

import attrs

from ...errors import CommandError, UnavailableError
from . import facts
from .link import Done
from .terms import Atom, encode

__all__ = ["Calls", "framed"]

log = logging.getLogger("exproto_app")

AT_ONCE: Final = 256
"""Calls on the wire at the same time."""

SOON: Final = 0.5
"""Seconds after which a call without an answer doesn't count among these any more."""

DEADLINE: Final = 10.0
"""Seconds that a function of the broker may take to answer, from the moment that it is called."""

WAITING: Final = 1_000_000
"""Calls that wait for their turn."""

_length: Final = Struct(">I").pack


def framed(term: object) -> bytes:
    """Return *term* as a frame with its length before it."""
    data = encode(term)
    return _length(len(data)) + data


@attrs.define(eq=False)
class Call:
    """A call; *counts* among those on the wire until it is late."""

    name: str
    term: tuple[Any, ...]
    done: Done
    counts: bool = True
    timer: asyncio.TimerHandle | None = None


class Calls:
    """All calls of a process; *lost*: the broker has closed the port."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self.write = write
        self.lost = False
        self._loop = asyncio.get_running_loop()
        self._wire: dict[int, Call] = {}
        self._counted = 0
        self._queue: deque[Call] = deque()
        self._last = 0
        self._settled: asyncio.Future[None] | None = None

    def call(
        self, module: str, function: str, arguments: list[Any], done: Done, *, context: str = "N"
    ) -> None:
        """Call a function of the broker; *done* gets its result or an error, within 10 s of being called.

        With the *context* `L` the process that owns the port calls it itself.
        """
        name = f"{module}:{function}"
        if self.lost:
            done(None, UnavailableError(f"the broker has closed the port, {name} can't be asked"))
            return
        if len(self._queue) >= WAITING:
            done(None, UnavailableError(f"{len(self._queue)} calls wait for the broker, limit is {WAITING}"))
            return
        call = Call(name, (Atom(module), Atom(function), arguments, Atom(context)), done)
        if self._counted < AT_ONCE and not self._queue:
            self._send(call)
        else:
            self._queue.append(call)

    def answered(self, number: object, result: object, error: object | None) -> None:
        """Take the broker's answer to a call."""
        call = self._wire.pop(number, None) if isinstance(number, int) else None
        if call is None:
            log.debug("port ! an answer to no call: %r", number)
            return
        if call.timer is not None:
            call.timer.cancel()
        self._freed(call)
        call.done(result, None if error is None else CommandError(facts.text(error)))
        self._settle()

    async def finish(self) -> None:
        """Wait for the answers that are still to come, each within its deadline, and what they lead to."""
        while self._wire or self._queue:
            self._settled = self._loop.create_future()
            await self._settled

    def lose(self) -> None:
        """Fail what waits and what comes: the broker has closed the port."""
        self.lost = True
        calls = [*self._wire.values(), *self._queue]
        self._wire.clear()
        self._queue.clear()
        for call in calls:
            if call.timer is not None:
                call.timer.cancel()
            call.done(None, UnavailableError("the broker has closed the port"))
        self._settle()

    def _send(self, call: Call) -> None:
        self._last += 1
        self._wire[self._last] = call
        self._counted += 1
        call.timer = self._loop.call_later(SOON, self._late, self._last)
        self.write(framed((Atom("C"), self._last, *call.term)))

    def _freed(self, call: Call) -> None:
        """Let the next call go in the place of *call*."""
        if call.counts:
            call.counts = False
            self._counted -= 1
        while self._queue and self._counted < AT_ONCE:
            self._send(self._queue.popleft())

    def _late(self, number: int) -> None:
        """Give the place of a call to others, and wait for its answer a while longer."""
        call = self._wire[number]
        call.timer = self._loop.call_later(DEADLINE - SOON, self._over, number)
        self._freed(call)

    def _over(self, number: int) -> None:
        call = self._wire.pop(number)
        call.done(None, UnavailableError(f"the broker's {call.name} gave no answer within {DEADLINE:g} s"))
        self._settle()

    def _settle(self) -> None:
        if self._settled is not None and not (self._wire or self._queue) and not self._settled.done():
            self._settled.set_result(None)
