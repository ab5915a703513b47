"""The broker queue: what one connection asks of the broker, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from ..commands import Command, Outcome, Publish, Register, Waiter, refused
from ..errors import ClosedError, CommandError, DeniedError, UnavailableError

__all__ = ["BrokerQueue"]


class BrokerQueue:
    """Commands on their way to the broker, in order.

    *execute* carries one out. While a register has no outcome, or where the hub keeps no order itself
    (*ordered*) any other command, those behind it wait here, at most *limit* of them. *failed* gets each
    command that failed, *idle* is called when nothing waits or is on its way any more.

    *refusal* is the outcome of a login that was refused. It takes with it what the same handler asked for
    behind it, which would else happen in nobody's name: until the handler has awaited it, and so knows.
    """

    __slots__ = (
        "_blocked",
        "_closed",
        "_execute",
        "_failed",
        "_idle",
        "_limit",
        "_ordered",
        "_pending",
        "_queue",
        "_waiter",
        "refusal",
    )

    def __init__(
        self,
        execute: Callable[[Command], Outcome[Any]],
        *,
        ordered: bool,
        limit: int,
        waiter: Callable[[], Waiter],
        failed: Callable[[object, Outcome[Any]], None],
        idle: Callable[[], None],
    ) -> None:
        self._execute = execute
        self._ordered = ordered
        self._limit = limit
        self._waiter = waiter
        self._failed = failed
        self._idle = idle
        self.refusal: Outcome[Any] | None = None
        self._blocked = False
        self._closed = False
        self._queue: deque[tuple[Command, Outcome[Any]]] = deque()
        self._pending: set[Outcome[Any]] = set()

    @property
    def busy(self) -> bool:
        """Whether a command waits or is on its way."""
        return self._blocked or bool(self._pending)

    @property
    def waiting(self) -> int:
        """How many commands wait or are on their way."""
        return len(self._pending)

    def issue(self, command: Command) -> Outcome[Any]:
        """Carry *command* out when those before it allow."""
        if not self._blocked:
            return self._run(command, None)
        if len(self._queue) >= self._limit:
            outcome = refused(
                UnavailableError(f"{len(self._queue)} commands wait for the broker, limit is {self._limit}")
            )
            self._failed(command, outcome)
            return outcome
        outcome = Outcome(self._waiter)
        self._pending.add(outcome)
        self._queue.append((command, outcome))
        return outcome

    def refusal_of(self, command: Command) -> CommandError | None:
        """Return why *command* is refused behind a login that was; None if it may be carried out."""
        refusal = self.refusal
        if refusal is None or type(command) is Register:
            return None
        if refusal.awaited:
            self.refusal = None
            return None
        return _behind(refusal)

    def bar(self) -> None:
        """Refuse what comes: the device hung up before the broker could judge its login."""
        self.refusal = refused(ClosedError("the device hung up before the broker could judge it"))

    def track(self, outcome: Outcome[Any]) -> None:
        """Have *outcome* fail at the latest when the connection ends."""
        self._pending.add(outcome)
        outcome.when_done(self._pending.discard)

    def release(self, error: ClosedError) -> None:
        """Let nobody wait any more: the device has gone. What was to be published still goes."""
        self._closed = True
        pending, self._pending = self._pending, set()
        for outcome in tuple(pending):  # `track` takes each out as it fails
            outcome.fail(error)

    def _run(self, command: Command, target: Outcome[Any] | None) -> Outcome[Any]:
        result = self._execute(command)
        if result.done and target is None:
            if type(command) is Register:
                self._note(result, result)
            if result.error is not None:
                self._failed(command, result)
            return result
        holds = not result.done and (not self._ordered or type(command) is Register)
        outcome = target or (Outcome(self._waiter) if holds else result)
        self._blocked = holds
        self._pending.add(outcome)
        result.when_done(partial(self._done, command, outcome, holds))
        return outcome

    def _done(self, command: Command, outcome: Outcome[Any], holds: bool, result: Outcome[Any]) -> None:
        self._pending.discard(outcome)
        if outcome is not result:
            outcome.follow(result)
        if type(command) is Register:
            self._note(outcome, result)
        if result.error is not None:
            self._failed(command, outcome)
        if holds:
            self._blocked = False
            self._next()
        if not self.busy:
            self._idle()

    def _next(self) -> None:
        """Carry out what waited, until a command blocks the queue again."""
        while self._queue and not self._blocked:
            command, outcome = self._queue.popleft()
            if self.refusal is not None and type(command) is not Register:
                self._refuse(command, outcome, _behind(self.refusal))
            elif not self._closed or type(command) is Publish:
                self._run(command, outcome)
            elif type(command) is Register:
                self.bar()

    def _note(self, outcome: Outcome[Any], result: Outcome[Any]) -> None:
        """Take note of how a login ended; *outcome* is what its issuer has of *result*."""
        if result.error is None:
            self.refusal = None
        elif not isinstance(result.error, ClosedError):  # else the hub knows what still counts
            self.refusal = outcome

    def _refuse(self, command: Command, outcome: Outcome[Any], error: CommandError) -> None:
        """Refuse *command*, which waited behind a login that was refused."""
        self._pending.discard(outcome)
        if outcome.done:  # its issuer waits no more, but it is lost all the same
            outcome = refused(error)
        outcome.fail(error)
        self._failed(command, outcome)


def _behind(refusal: Outcome[Any]) -> CommandError:
    """Return the error of what stands behind the login that *refusal* is the outcome of."""
    words = f"the login before it failed: {refusal.error}"
    return UnavailableError(words) if isinstance(refusal.error, UnavailableError) else DeniedError(words)
