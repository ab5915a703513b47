"""Calls of the broker's functions: how many are on their way, and what becomes of those without an answer.

The process that owns the port handles one message after another: the calls of all connections, our answers,
our calls. With 10,000 devices that speak at once something that we send is looked at seconds later. And it
keeps the calls that run in a list, so that each costs more the more there are. Three rules follow.

- What can be told in one call isn't told in many: `each` joins calls of one function that come at the same
  time. What only has to arrive, `reach`, isn't a call at all: the connection's process answers to the port,
  which passes on whatever it is sent.
- A few hundred calls are on the wire, the rest wait here. One that takes longer, as to the process of a
  device that doesn't read, gives its place to others and waits on.
- A deadline runs from the moment that the call does. A call in the context `L` is carried out by the port's
  process itself, in its turn, so its answer tells that whatever was sent before it runs, and that whatever
  was answered before it has arrived.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import Any, Final

import attrs

from ...commands import Waiter
from ...errors import CommandError, UnavailableError
from . import facts
from .link import Done
from .terms import Atom, Opaque, body, encode, export

__all__ = ["Calls", "framed"]

log = logging.getLogger("exproto_app")

AT_ONCE: Final = 256
"""Calls on the wire at the same time."""

SOON: Final = 0.5
"""Seconds after which a call without an answer doesn't count among these any more."""

DEADLINE: Final = 10.0
"""Seconds that a function of the broker may run."""

PORT: Final = 60.0
"""Seconds that the process that owns the port may take for what comes before a call in its mailbox."""

LOOK: Final = 0.5
"""Seconds between two looks at how far the broker has come, while calls are on the wire."""

WAITING: Final = 1_000_000
"""Calls that wait for their turn."""

JOINED: Final = 1_000
"""Calls of one function that are told in one."""

IN_TURN: Final = 2
"""Of such calls on the wire at a time; what comes meanwhile is told together in the next one."""

_length: Final = Struct(">I").pack
_MAIL: Final = b"\x83h\x03" + body(Atom("M"))
_SYSTEM: Final = b"h\x03" + body(Atom("system")) + b"h\x02"
_RESUME: Final = body(Atom("resume"))


def framed(term: object) -> bytes:
    """Return *term* as a frame with its length before it."""
    data = encode(term)
    return _length(len(data)) + data


@attrs.define(eq=False)
class Call:
    """A call; *counts* among those on the wire until it is late, *runs* since then at the latest."""

    name: str
    term: tuple[Any, ...]
    done: Done
    counts: bool = True
    sent: float = 0.0
    runs: float | None = None


@attrs.define(eq=False)
class Joined:
    """Calls of one function: those that wait to be told together, and how many such calls are *running*."""

    waiting: list[tuple[Any, Done]] = attrs.Factory(list)
    running: int = 0


class Calls:
    """All calls of a process; *own* is the process that has the port, *lost*: the broker has closed it."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self.write = write
        self.own: Opaque | None = None
        self.lost = False
        self._loop = asyncio.get_running_loop()
        self.call_later = self._loop.call_later
        self.waiter: Callable[[], Waiter] = self._loop.create_future
        self._wire: dict[int, Call] = {}  # in the order in which they were sent
        self._counted = 0
        self._queue: deque[Call] = deque()
        self._joined: dict[tuple[str, str], Joined] = {}
        self._last = 0
        self._watch: asyncio.TimerHandle | None = None
        self._settled: asyncio.Future[None] | None = None

    def call(
        self, module: str, function: str, arguments: list[Any], done: Done, *, context: str = "N"
    ) -> None:
        """Call a function of the broker; *done* gets its result or an error, when it has run for 10 s.

        With the *context* `L` the process that owns the port calls it itself.
        """
        call = Call(f"{module}:{function}", (Atom(module), Atom(function), arguments, Atom(context)), done)
        if self.lost:
            done(None, _closed(call.name))
        elif len(self._queue) >= WAITING:
            done(None, UnavailableError(f"{len(self._queue)} calls wait for the broker, limit is {WAITING}"))
        elif self._counted < AT_ONCE and not self._queue:
            self._send(call)
        else:
            self._queue.append(call)

    def each(self, module: str, function: str, argument: Any, done: Done) -> None:
        """Call a function that takes one argument and neither waits nor fails, with others of its kind."""
        kind = module, function
        joined = self._joined.get(kind)
        if joined is None:
            joined = self._joined[kind] = Joined()
        joined.waiting.append((argument, done))
        if len(joined.waiting) == 1 and joined.running < IN_TURN:
            self._loop.call_soon(self._call_each, kind, joined)

    def _call_each(self, kind: tuple[str, str], joined: Joined) -> None:
        part, joined.waiting = joined.waiting[:JOINED], joined.waiting[JOINED:]
        if not part:
            return
        joined.running += 1

        def answered(answer: Any, error: CommandError | None) -> None:
            if error is None and not (isinstance(answer, list) and len(answer) == len(part)):
                error = CommandError(facts.problem(answer) or repr(answer))
            joined.running -= 1
            for place, (_, done) in enumerate(part):
                done(answer[place] if error is None else None, error)
            self._call_each(kind, joined)

        arguments = [export(*kind, 1), [argument for argument, _ in part]]
        self.call("lists", "map", arguments, answered)

    def reach(self, pid: bytes, done: Done) -> int | None:
        """Have *done* called when the process *pid* has handled all that was sent to it before.

        Return the number of this question, for `give_up`: a process that has gone answers nothing.
        """
        if self.own is None:

            def informed(answer: Any, error: CommandError | None) -> None:
                wrong = None if isinstance(answer, dict) else UnavailableError(f"its answer is {answer!r}")
                done(answer, error or wrong)

            self.call("emqx_exproto_conn", "info", [Opaque(pid)], informed)
            return None
        if self.lost:
            done(None, _closed("a connection's process"))
            return None
        if len(self._wire) >= WAITING:
            done(
                None, UnavailableError(f"{len(self._wire)} answers of the broker are due, that is the limit")
            )
            return None
        number = self._note(Call("process", (), done, counts=False))
        # As `sys:resume/1` does, which a process that wasn't suspended answers, and goes on.
        data = b"".join((_MAIL, pid, _SYSTEM, self.own.raw, body(number), _RESUME))
        self.write(_length(len(data)) + data)
        return number

    def give_up(self, number: int, error: CommandError) -> None:
        """Fail a question that will have no answer."""
        call = self._wire.pop(number, None)
        if call is not None:
            call.done(None, error)
            self._settle()

    def answered(self, number: object, result: object, error: object | None) -> None:
        """Take the broker's answer to a call."""
        call = self._wire.pop(number, None) if isinstance(number, int) else None
        if call is None:
            log.debug("port ! an answer to no call: %r", number)
            return
        self._freed(call)
        call.done(result, None if error is None else CommandError(facts.failure(error)))
        self._settle()

    async def finish(self) -> None:
        """Wait for the answers that are still to come, 10 s at most, and what they lead to."""
        until = self._loop.time() + DEADLINE
        while not self._idle and self._loop.time() < until:
            self._settled = self._loop.create_future()
            await asyncio.wait([self._settled], timeout=until - self._loop.time())
        self._fail_all("the process ends")

    def lose(self) -> None:
        """Fail what waits and what comes: the broker has closed the port."""
        self.lost = True
        self._fail_all("the broker has closed the port")

    def _fail_all(self, why: str) -> None:
        calls = [*self._wire.values(), *self._queue]
        self._wire.clear()
        self._queue.clear()
        self._counted = 0
        for call in calls:
            call.counts = False
            call.done(None, UnavailableError(why))
        self._settle()

    def _send(self, call: Call) -> None:
        number = self._note(call)
        self.write(framed((Atom("C"), number, *call.term)))

    def _note(self, call: Call) -> int:
        """Expect an answer to *call*; return its number."""
        self._last += 1
        self._wire[self._last] = call
        self._counted += call.counts
        call.sent = self._loop.time()
        if self._watch is None:
            self._watch = self._loop.call_later(LOOK, self._look)
        return self._last

    def _freed(self, call: Call) -> None:
        """Let the next call go in the place of *call*."""
        if call.counts:
            call.counts = False
            self._counted -= 1
        while self._queue and self._counted < AT_ONCE:
            self._send(self._queue.popleft())

    # --- deadlines

    def _look(self) -> None:
        """Ask how far the broker has come, if anything is on the wire."""
        self._watch = None
        if not self._wire:
            return
        sent = self._loop.time()
        number = self._last + 1

        def came(_: object, __: CommandError | None) -> None:
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None
            self._sweep(sent)
            if self._wire and self._watch is None:
                self._watch = self._loop.call_later(LOOK, self._look)

        arguments: tuple[Any, ...] = (Atom("erlang"), Atom("self"), [], Atom("L"))
        self._watch = self._loop.call_later(PORT, self._stuck, number)
        self._send(Call("erlang:self", arguments, came, counts=False))

    def _sweep(self, sent: float) -> None:
        """See to calls that run for long, all that was sent or answered before *sent* being known."""
        now = self._loop.time()
        late, over = [], []
        for number, call in self._wire.items():
            if call.runs is None:
                if call.sent > sent:
                    break
                call.runs = now
            elif sent - call.runs >= DEADLINE:
                over.append(number)
            elif call.counts and sent - call.runs >= SOON:
                late.append(call)
        for number in over:
            call = self._wire.pop(number)
            self._freed(call)
            call.done(
                None, UnavailableError(f"the broker's {call.name} gave no answer within {DEADLINE:g} s")
            )
        for call in late:
            self._freed(call)
        self._settle()

    def _stuck(self, number: int) -> None:
        """Give up all calls: the port's process doesn't come to its mailbox."""
        self._watch = None
        if number in self._wire:
            self._fail_all(f"the broker hasn't looked at its port for {PORT:g} s")

    @property
    def _idle(self) -> bool:
        waiting = any(joined.waiting for joined in self._joined.values())
        return not (self._wire or self._queue or waiting)

    def _settle(self) -> None:
        if self._settled is not None and not self._settled.done() and self._idle:
            self._settled.set_result(None)


def _closed(name: str) -> UnavailableError:
    return UnavailableError(f"the broker has closed the port, {name} can't be asked")
