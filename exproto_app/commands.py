"""What verbs ask of the broker, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

import attrs

from .errors import CommandError
from .models import ClientInfo, Message

__all__ = [
    "DONE",
    "GRANTED",
    "Command",
    "Fence",
    "Outcome",
    "Publish",
    "Register",
    "Subscribe",
    "Unsubscribe",
    "Waiter",
    "all_of",
    "refused",
]

T = TypeVar("T")


@attrs.define
class Register:
    """Make the device a client of the broker; *password* None means that it has shown none.

    *will* is published when the device has gone, *session_expiry* is how many seconds the broker keeps the
    client's session after that.
    """

    client: ClientInfo
    password: str | None = attrs.field(default=None, repr=False)
    will: Message | None = None
    session_expiry: int = 0


@attrs.define
class Publish:
    """A message from the device."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False


@attrs.define
class Subscribe:
    """Have messages for a topic filter delivered to the device."""

    topic: str
    qos: int = 0


@attrs.define
class Unsubscribe:
    """Take a subscription back."""

    topic: str


Command: TypeAlias = Register | Publish | Subscribe | Unsubscribe
"""What goes through a connection's lane to the broker; bytes for the device need no wrapping."""


class Waiter(Protocol):
    """What an event loop waits for; an `asyncio.Future` is one."""

    def done(self) -> bool:
        """Tell whether nobody waits for it any more."""
        ...

    def set_result(self, result: None, /) -> None:
        """Wake whoever waits."""
        ...

    def __await__(self) -> Generator[Any, None, None]: ...


class Outcome(Generic[T]):
    """What a verb returns: may be awaited for its result, may as well be dropped.

    Awaiting raises the `CommandError` that the verb came to. Settled once, by the host or by the engine;
    later attempts are ignored. Verbs whose result is known at once return a shared one.
    """

    __slots__ = ("_callbacks", "_waiter", "awaited", "done", "error", "value")

    def __init__(self, waiter: Callable[[], Waiter]) -> None:
        self.done = False
        self.awaited = False
        self.error: CommandError | None = None
        self.value: T | None = None
        self._waiter = waiter
        self._callbacks: list[Callable[[Outcome[T]], None]] | None = None

    def __repr__(self) -> str:
        what = "pending" if not self.done else repr(self.error or self.value)
        return f"<Outcome {what}>"

    def settle(self, value: T) -> None:
        """Tell whoever waits that the verb succeeded."""
        if not self.done:
            self.done, self.value = True, value
            self._call_back()

    def fail(self, error: CommandError) -> None:
        """Tell whoever waits that the verb failed."""
        if not self.done:
            self.done, self.error = True, error
            self._call_back()

    def follow(self, other: Outcome[T]) -> None:
        """Come to what *other* comes to."""
        other.when_done(self._follow)

    def _follow(self, other: Outcome[T]) -> None:
        if other.error is None:
            self.settle(other.value)  # type: ignore[arg-type] # settled without an error, so it is a T
        else:
            self.fail(other.error)

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
            raise self.error
        return self.value  # type: ignore[return-value] # settled without an error, so it is a T


class Fence(Outcome[T]):
    """The success of what was handed over in order; awaited, it asks the host whether it has arrived."""

    __slots__ = ("_ask",)

    def __init__(self, ask: Callable[[], Outcome[None]], value: T) -> None:
        super().__init__(_no_waiter)
        self._ask = ask
        self.settle(value)

    def __await__(self) -> Generator[Any, None, T]:
        self.awaited = True
        yield from self._ask().__await__()
        return self.value  # type: ignore[return-value] # given when it was made


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
        outcome.when_done(one_done)
    return joint


DONE: Final[Outcome[None]] = _known(None)
"""The one outcome of every verb that has succeeded already."""

GRANTED: Final[tuple[Outcome[int], ...]] = (_known(0), _known(1), _known(2))
"""Likewise for `subscribe`, by the QoS granted."""
