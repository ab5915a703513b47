"""The broker queue: what one connection, or the app itself, asks of the broker, in order.

**Room.** A host whose own queue is full says so (`hold`), and takes nothing more until it has room again
(`resume`); what is asked meanwhile waits here. Whoever awaits that waits for room, however much it is. What
nobody awaits is bounded, in number by *limit* and in bytes by *limit_bytes*: beyond either turns wait, so it
takes a handler that asks for more in one turn, or a task, to get there. A verb may be awaited later than it
is issued, so nothing is dropped before the turn has ended and the loop has gone round (`drop_excess`).

A host that takes whatever it is given, as the embedded hub does, is given `UNANSWERED` commands at a time:
what waits here takes a third of the memory. Of what waits for that alone nothing is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from ..commands import DONE, Command, Outcome, Pending, Publish, Register, Waiter, refused
from ..errors import ClosedError, CommandError, DeniedError, UnavailableError
from .memory import LARGE

__all__ = ["BrokerQueue"]

MOST: Final = 67_108_864
"""Bytes that wait, awaited or not, beyond which everything is refused."""

UNANSWERED: Final = 256
"""Commands on their way to the broker, beyond which further ones wait here.

So many fit into the queue of a device on the embedded hub behind its half, where publishers begin to wait.
"""

OVERHEAD: Final = 64
"""Bytes that a command counts among them beside its topic and payload."""


class BrokerQueue:
    """Commands on their way to the broker, in order.

    *execute* carries one out. While a register has no outcome, or where the hub keeps no order itself
    (*ordered*) any other command, those behind it wait here, and so they do while the hub has no room.
    *failed* gets each command that failed, *idle* is called when nothing waits or is on its way any more;
    *full* whenever more than *limit* or *limit_bytes* wait, *room* when half of that is free again; *large*
    whenever more waits than `LARGE` bytes.

    *refusal* is the outcome of a login that was refused. It takes with it what the same handler asked for
    behind it, which would else happen in nobody's name: until the handler has awaited it, and so knows.
    """

    __slots__ = (
        "_blocked",
        "_closed",
        "_crowded",
        "_execute",
        "_failed",
        "_forced",
        "_full",
        "_held",
        "_idle",
        "_large",
        "_limit",
        "_limit_bytes",
        "_ordered",
        "_pending",
        "_queue",
        "_room",
        "_waiter",
        "bytes",
        "refusal",
    )

    def __init__(
        self,
        execute: Callable[[Command], Outcome[Any]],
        *,
        ordered: bool,
        limit: int,
        limit_bytes: int,
        waiter: Callable[[], Waiter],
        failed: Callable[[object, Outcome[Any]], None],
        idle: Callable[[], None],
        full: Callable[[], None],
        room: Callable[[], None],
        large: Callable[[], None],
    ) -> None:
        self._execute = execute
        self._ordered = ordered
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._waiter = waiter
        self._failed = failed
        self._idle = idle
        self._full = full
        self._room = room
        self._large = large
        self.refusal: Outcome[Any] | None = None
        self._blocked = False
        self._held = False
        self._forced = False
        self._closed = False
        self._crowded = False  # what waits does so because too many are unanswered
        self.bytes = 0  # of the commands that wait
        # None is where a refusal before it counts no more.
        self._queue: deque[tuple[Command, Outcome[Any]] | None] | None = None  # most of the time
        self._pending: dict[Outcome[Any], Command | None] = {}  # on their way

    @property
    def busy(self) -> bool:
        """Whether a command waits or is on its way."""
        return self._blocked or bool(self._pending) or self.bytes > 0

    @property
    def waiting(self) -> int:
        """How many commands wait or are on their way."""
        return len(self._pending) + (len(self._queue or ()) if self.bytes else 0)

    @property
    def excess(self) -> bool:
        """Whether more wait than may without being awaited."""
        queue = self._queue
        return queue is not None and (len(queue) > self._limit or self.bytes > self._limit_bytes)

    def issue(self, command: Command) -> Outcome[Any]:
        """Carry *command* out when those before it, and the host's room, allow."""
        pending = self._pending
        if not (self._blocked or self._held or self._queue or len(pending) >= UNANSWERED):
            result = self._execute(command)
            if result is DONE and type(command) is Publish:  # as most are, at the hub
                return result
            if result.done or not self._ordered or type(command) is Register or result in pending:
                return self._take(command, result, None)
            pending[result] = command  # as most: the hot path
            result.when_done(self._answered)
            return result
        if self.bytes > MOST:
            words = f"commands of {self.bytes} bytes wait for the broker, limit is {MOST}"
            outcome = refused(UnavailableError(words))
            self._failed(command, outcome)
            return outcome
        outcome = Pending(self._waiter)
        if not self._queue:
            self._crowded = len(pending) >= UNANSWERED
        self._wait((command, outcome))
        self.bytes += _size(command)
        if self.bytes > LARGE:
            self._large()
        if self.excess:
            self._full()
        return outcome

    def _wait(self, what: tuple[Command, Outcome[Any]] | None) -> None:
        if self._queue is None:
            self._queue = deque()
        self._queue.append(what)

    def hold(self) -> None:
        """Carry nothing more out: the host has no room."""
        self._held = not self._forced

    def resume(self) -> None:
        """Go on: the host has room again."""
        if self._held:
            self._held = False
            self._next()

    def force(self) -> None:
        """Go on without room: the connection ends, and the host has its rules for what is left then."""
        self._forced = True
        self._held = False
        if self._queue:
            self._next()

    def drop_excess(self) -> None:
        """Drop what is beyond the limit and nobody awaits."""
        if self._queue is None or not self.excess or not (self._held or self._blocked):
            return
        number, size, before = len(self._queue), 0, self.bytes
        kept: deque[tuple[Command, Outcome[Any]] | None] = deque()
        dropped: list[tuple[Command, Outcome[Any]]] = []
        for one in self._queue:
            size += 0 if one is None else _size(one[0])
            fits = len(kept) < self._limit and size <= self._limit_bytes
            if one is None or fits or not kept or one[1].awaited or one[1].watched:
                kept.append(one)
            else:
                dropped.append(one)
        self._queue = kept
        words = f"{number} commands wait for the broker, limit is {self._limit}"
        if number <= self._limit:
            words = f"commands of {before} bytes wait for the broker, limit is {self._limit_bytes}"
        for command, outcome in dropped:
            self.bytes -= _size(command)
            self._refuse(command, outcome, UnavailableError(words))

    def refusal_of(self, command: Command) -> CommandError | None:
        """Return why *command* is refused behind a login that was; None if it may be carried out."""
        refusal = self.refusal
        if refusal is None or type(command) is Register:
            return None
        if refusal.awaited:
            self.refusal = None
            return None
        return _behind(refusal)

    def forgive(self) -> None:
        """Have a login that was refused, or will be, count no more for what comes."""
        self.refusal = None
        if self._blocked or self._queue:
            self._wait(None)

    def bar(self) -> None:
        """Refuse what comes: the device hung up before the broker answered its login."""
        self.refusal = refused(ClosedError("the device hung up before the broker answered"))

    def track(self, outcome: Outcome[Any]) -> None:
        """Have *outcome* fail at the latest when the connection ends."""
        self._pending[outcome] = None
        outcome.when_done(self._forget)

    def release(self, error: ClosedError) -> None:
        """Let nobody wait any more: the device has gone. What was to be published still goes."""
        self._closed = True
        waiting = [waited[1] for waited in self._queue or () if waited is not None]
        for outcome in (*self._pending, *waiting):  # each is taken out as it fails
            outcome.fail(error)
        self._pending.clear()

    def _forget(self, outcome: Outcome[Any]) -> None:
        self._pending.pop(outcome, None)

    def _answered(self, outcome: Outcome[Any]) -> None:
        """Take the host's answer to a command that held none up: the hot path."""
        pending = self._pending
        command = pending.pop(outcome, None)
        if outcome.error is not None and command is not None:
            self._failed(command, outcome)
        if self._crowded:
            self._go_on()
        elif not (pending or self._blocked or self.bytes):
            self._idle()

    def _take(self, command: Command, result: Outcome[Any], target: Outcome[Any] | None) -> Outcome[Any]:
        """Take what became of *command*; *target* is the outcome that its issuer has already, if it has."""
        if result.done and target is None:
            if type(command) is Register:
                self._note(result, result)
            if result.error is not None:
                self._failed(command, result)
            return result
        holds = not result.done and (not self._ordered or type(command) is Register)
        outcome = target or (Pending(self._waiter) if holds else result)
        if target is not None and (target.awaited or target.watched):
            result.watched = True
        self._blocked = holds
        self._pending.setdefault(outcome, None)
        result.when_done(partial(self._done, command, outcome, holds))
        return outcome

    def _done(self, command: Command, outcome: Outcome[Any], holds: bool, result: Outcome[Any]) -> None:
        self._pending.pop(outcome, None)
        if outcome is not result:
            outcome.follow(result)
        if type(command) is Register:
            self._note(outcome, result)
        if result.error is not None:
            self._failed(command, outcome)
        if holds:
            self._blocked = False
            self._next()
        elif self._crowded:
            self._go_on()
        if not self.busy:
            self._idle()

    def _go_on(self) -> None:
        """Carry out what waited for answers, once half of those have come."""
        if len(self._pending) <= UNANSWERED // 2:
            self._next()

    def _next(self) -> None:
        """Carry out what waited, until a command blocks the queue again."""
        self._crowded = False
        while self._queue and not (self._blocked or self._held):
            if len(self._pending) >= UNANSWERED and not self._forced:
                self._crowded = True
                break
            waited = self._queue.popleft()
            if waited is None:
                self.refusal = None
                continue
            command, outcome = waited
            self.bytes -= _size(command)
            if self.refusal is not None and type(command) is not Register:
                self._refuse(command, outcome, _behind(self.refusal))
            elif not self._closed or type(command) is Publish:
                self._take(command, self._execute(command), outcome)
            elif type(command) is Register:
                self.bar()
        if not self._queue:
            self._queue = None
        if len(self._queue or ()) <= self._limit // 2 and self.bytes <= self._limit_bytes // 2:
            self._room()

    def _note(self, outcome: Outcome[Any], result: Outcome[Any]) -> None:
        """Take note of how a login ended; *outcome* is what its issuer has of *result*."""
        if result.error is None:
            self.refusal = None
        elif not isinstance(result.error, ClosedError):  # else the hub knows what still counts
            self.refusal = outcome

    def _refuse(self, command: Command, outcome: Outcome[Any], error: CommandError) -> None:
        """Refuse *command*, which waited behind a login that was refused."""
        self._pending.pop(outcome, None)
        if outcome.done:  # its issuer waits no more, but it is lost all the same
            outcome = refused(error)
        outcome.fail(error)
        self._failed(command, outcome)


def _size(command: Command) -> int:
    return OVERHEAD + (len(command.topic) + len(command.payload) if isinstance(command, Publish) else 0)


def _behind(refusal: Outcome[Any]) -> CommandError:
    """Return the error of what stands behind the login that *refusal* is the outcome of."""
    words = f"the login before it failed: {refusal.error}"
    return UnavailableError(words) if isinstance(refusal.error, UnavailableError) else DeniedError(words)
