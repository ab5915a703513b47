"""What verbs ask of the broker, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

import attrs

from .errors import CommandError
from .models import PLAIN, ClientInfo, Message, Properties

__all__ = [
    "DONE",
    "GRANTED",
    "Command",
    "Outcome",
    "Pending",
    "Publish",
    "Register",
    "Subscribe",
    "Unconfirmed",
    "Unsubscribe",
    "Waiter",
    "all_of",
    "refused",
    "several",
]

T = TypeVar("T")


@attrs.define
class Register:
    """Make the device a client of the broker; *password* is None if it gave none.

    *will* is published when the device has gone, *session_expiry* is how many seconds the broker keeps the
    client's session after that.
    """

    client: ClientInfo
    password: str | None = attrs.field(default=None, repr=False)
    will: Message | None = None
    session_expiry: int = 0


@attrs.define
class Publish:
    """A message from the device. *absolute*: its topic is the broker's, the client's mountpoint is in it."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties = PLAIN
    absolute: bool = False


@attrs.define
class Subscribe:
    """Have messages for a topic filter delivered to the device."""

    topic: str
    qos: int = 0


@attrs.define
class Unsubscribe:
    """Cancel a subscription."""

    topic: str


Command: TypeAlias = Register | Publish | Subscribe | Unsubscribe
"""What goes through a connection's broker queue."""


class Waiter(Protocol):
    """What an event loop waits for; an `asyncio.Future` is one."""

    def done(self) -> bool:
        """Return whether it is done, or nobody waits for it any more."""
        ...

    def set_result(self, result: None, /) -> None:
        """Wake the waiting coroutine."""
        ...

    def __await__(self) -> Generator[Any, None, None]: ...


class Outcome(Generic[T]):
    """What a verb returns: it may be awaited for its result, or dropped.

    Awaiting raises the `CommandError` that the verb came to. Settled once, by the host or by the engine;
    later attempts are ignored. Verbs whose result is known at once return a shared one.

    *watched*: a failure is judged elsewhere, where a send waits for it or it is one of several.
    """

    __slots__ = ("_callbacks", "_waiter", "awaited", "done", "error", "value", "watched")

    def __init__(self, waiter: Callable[[], Waiter]) -> None:
        self.done = False
        self.awaited = False
        self.watched = False
        self.error: CommandError | None = None
        self.value: T | None = None
        self._waiter = waiter
        self._callbacks: list[Callable[[Outcome[T]], None]] | None = None

    def __repr__(self) -> str:
        what = "pending" if not self.done else repr(self.error or self.value)
        return f"<Outcome {what}>"

    def settle(self, value: T) -> None:
        """Report that the verb has succeeded."""
        if not self.done:
            self.done, self.value = True, value
            if self._callbacks is not None:
                self._call_back()

    def fail(self, error: CommandError) -> None:
        """Report that the verb has failed."""
        if not self.done:
            self.done, self.error = True, error
            self._call_back()

    def follow(self, other: Outcome[T]) -> None:
        """Settle as *other* is settled."""
        other.when_done(self._follow)

    def _follow(self, other: Outcome[T]) -> None:
        if other.error is None:
            self.settle(other.value)  # type: ignore[arg-type] # settled without an error, so it is a T
        else:
            self.fail(other.error)

    def confirmed(self) -> Outcome[Any]:
        """Return the outcome that somebody who awaits this one waits for."""
        return self

    def when_done(self, callback: Callable[[Outcome[T]], None]) -> None:
        """Call *callback* with this outcome once it is settled; at once if it is."""
        if self.done:
            callback(self)
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    def _call_back(self) -> None:
        callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            callback(self)

    def _wait(self) -> Generator[Any, None, None]:
        waiter = self._waiter()

        def wake(_: Outcome[T]) -> None:
            if not waiter.done():
                waiter.set_result(None)

        self.when_done(wake)
        yield from waiter.__await__()

    def __await__(self) -> Generator[Any, None, T]:
        self.awaited = True
        if not self.done:
            yield from self._wait()
        if self.error is not None:
            try:
                raise self.error
            finally:
                del self  # the error's traceback has this frame, and the outcome has the error
        return self.value  # type: ignore[return-value] # settled without an error, so it is a T


class Unconfirmed(Outcome[T]):
    """The success of what was handed over in order; awaited, it asks the host whether it has arrived."""

    __slots__ = ("_ask",)

    def __init__(self, ask: Callable[[], Outcome[None]], value: T) -> None:
        super().__init__(_no_waiter)
        self._ask = ask
        self.settle(value)

    def confirmed(self) -> Outcome[Any]:
        """Ask the host, and return the outcome of that."""
        return self._ask()

    def __await__(self) -> Generator[Any, None, T]:
        self.awaited = True
        yield from self._ask().__await__()
        return self.value  # type: ignore[return-value] # given when it was made


class Pending(Outcome[T]):
    """The outcome of what the host isn't asked for yet; once it is, it is as good as what the host says."""

    __slots__ = ("_result",)

    def __init__(self, waiter: Callable[[], Waiter]) -> None:
        super().__init__(waiter)
        self._result: Outcome[Any] | None = None  # which may still have to be confirmed

    def _follow(self, other: Outcome[T]) -> None:
        if isinstance(other, Unconfirmed | Pending):
            self._result = other
        super()._follow(other)

    def confirmed(self) -> Outcome[Any]:
        """Once it is done, ask the host whether that has arrived; before that it is this."""
        if not self.done or self.error is not None or self._result is None:
            return self
        return self._result.confirmed()

    def __await__(self) -> Generator[Any, None, T]:
        try:
            value = yield from super().__await__()
            if self._result is not None:
                yield from self._result.confirmed().__await__()
            return value
        finally:
            del self  # as above: what it failed with has this frame


def _no_waiter() -> Waiter:
    raise AssertionError("a settled outcome has no waiter")


def _known(value: T) -> Outcome[T]:
    outcome: Outcome[T] = Outcome(_no_waiter)
    outcome.settle(value)
    return outcome


def refused(error: CommandError) -> Outcome[Any]:
    """Return an outcome that has failed already."""
    outcome: Outcome[Any] = Outcome(_no_waiter)
    outcome.fail(error)
    return outcome


def all_of(outcomes: Sequence[Outcome[None]]) -> Outcome[None]:
    """Return one outcome for several: it is done when all are, and fails if one of them has failed."""
    pending = [outcome for outcome in outcomes if not outcome.done]
    failed = next((outcome for outcome in outcomes if outcome.error is not None), None)
    if not pending:
        return failed or DONE
    joint: Outcome[None] = Outcome(pending[0]._waiter)  # noqa: SLF001 - the same class
    left = len(pending)

    def one_done(outcome: Outcome[None]) -> None:
        nonlocal left, failed
        left -= 1
        if outcome.error is not None:
            failed = outcome
        if left:
            return
        if failed is not None and failed.error is not None:
            joint.fail(failed.error)
        else:
            joint.settle(None)

    for outcome in pending:
        outcome.watched = True
        outcome.when_done(one_done)
    return joint


class Several(Pending[int]):
    """The one outcome of several verbs: their number once all have succeeded, else their first failure.

    They arrive in order, so the last one tells whether all have.
    """

    __slots__ = ("_failed", "_first", "_left", "_number")

    def __init__(self, outcomes: Sequence[Outcome[Any]], waiter: Callable[[], Waiter]) -> None:
        super().__init__(waiter)
        self._number = self._left = len(outcomes)
        self._failed = 0
        self._first: CommandError | None = None
        self._result = outcomes[-1]
        for outcome in outcomes:
            outcome.watched = True
            outcome.when_done(self._one_done)

    def _one_done(self, outcome: Outcome[Any]) -> None:
        self._left -= 1
        if outcome.error is not None:
            self._failed += 1
            self._first = self._first or outcome.error
        if self._left:
            return
        if self._first is None:
            self.settle(self._number)
        else:
            words = f"{self._failed} of {self._number} failed, the first: {self._first}"
            self.fail(type(self._first)(words))


def several(outcomes: Sequence[Outcome[Any]], waiter: Callable[[], Waiter]) -> Outcome[int]:
    """Return one outcome for *outcomes*, which are of verbs that were issued in this order."""
    if any(not outcome.done or outcome.error is not None for outcome in outcomes):
        return Several(outcomes, waiter)
    last = outcomes[-1] if outcomes else DONE
    if isinstance(last, Unconfirmed):
        return Unconfirmed(last.confirmed, len(outcomes))
    return _known(len(outcomes))


DONE: Final[Outcome[None]] = _known(None)
"""The one outcome of every verb that has succeeded already."""

GRANTED: Final[tuple[Outcome[int], ...]] = (_known(0), _known(1), _known(2))
"""Likewise for `subscribe`, by the QoS granted."""
