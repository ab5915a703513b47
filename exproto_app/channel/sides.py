"""What a channel has on either side, the device's `Link` and the broker's `Hub`, and what channels share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from ..app import App
from ..commands import Command, Outcome, Publish
from ..host import Runtime
from ..models import Limits, Message, Reason
from ..router import Handler, Router
from ..tap import Tap
from .turns import Turn

if TYPE_CHECKING:
    from .channel import Channel

__all__ = ["Hub", "Intake", "Link", "Served", "Shared"]


class Intake(Protocol):
    """What a driver feeds with the events of one connection; `Channel` explains each method.

    It is the connection's `Channel`, or, while its protocol isn't known, the `Sniffer` before it.
    """

    @property
    def closing(self) -> Reason | None: ...  # noqa: D102 - see above
    @property
    def gone(self) -> bool: ...  # noqa: D102 - see above
    @property
    def held(self) -> bool: ...  # noqa: D102 - see above
    @property
    def paused(self) -> bool: ...  # noqa: D102 - see above
    @property
    def turn(self) -> Turn | None: ...  # noqa: D102 - see above

    def received(self, data: bytes, /) -> None: ...  # noqa: D102 - see above
    def delivered(self, messages: Sequence[Message], /) -> None: ...  # noqa: D102 - see above
    def unwritable(self) -> None: ...  # noqa: D102 - see above
    def drained(self) -> None: ...  # noqa: D102 - see above
    def terminated(self, reason: Reason = ..., detail: str = ...) -> None: ...  # noqa: D102 - see above
    def end(self, reason: Reason, detail: str = ..., *, drain: bool = ...) -> None: ...  # noqa: D102 - see above


class Link(Protocol):
    """The device's side of one connection; the engine sets its *channel* before the first event.

    Where the protocol has to be found out first, it sets it a second time.
    """

    channel: Intake | None

    @property
    def answers(self) -> bool:
        """Whether `send` returns an outcome."""
        ...

    @property
    def fence(self) -> Callable[[], Outcome[None]] | None:
        """Asks whether everything that was handed over before has arrived; None where nobody can tell."""
        ...

    @property
    def write(self) -> Callable[[bytes], object] | None:
        """Sends what is one chunk of a stream, where nothing more is ever to be known of it; else None."""
        ...

    def send(self, chunks: list[bytes], /) -> Outcome[None] | None:
        """Send *chunks* in order, on a datagram socket each by itself; None where that is all to be known."""
        ...

    def close(self) -> None:
        """Close when what was sent is out, and report `terminated`."""
        ...

    def abort(self) -> None:
        """Close at once, and report `terminated`."""
        ...

    def pause(self) -> None:
        """Stop feeding `received` where the host can."""
        ...

    def resume(self) -> None:
        """Feed again."""
        ...


class Hub(Protocol):
    """The broker's side of all connections.

    *ordered*: it keeps the order of commands that still wait. *keeps_wills*: it sees to it that a client's
    will is published where `Channel.will_due` says so; else the engine does. *keeps_sessions*: a client's
    session may outlive its connection.
    """

    ordered: bool
    keeps_wills: bool
    keeps_sessions: bool

    def execute(self, channel: Channel, command: Command, /) -> Outcome[Any]:
        """Carry *command* out; the outcome may come later."""
        ...

    def publish(self, command: Publish, /) -> Outcome[None]:
        """Publish for the app itself."""
        ...

    def gone(self, channel: Channel, /) -> None:
        """Forget *channel*: its last handler has ended."""
        ...


class Shared(Protocol):
    """What all channels of a host share; the `Engine` is it."""

    app: App[Any]
    runtime: Runtime
    hub: Hub
    limits: Limits
    counters: dict[str, int]
    clients: dict[str, Channel]
    when_failed: Callable[[BaseException], object] | None

    def later(self, channel: Channel, /) -> None:
        """Pump *channel* after what runs now."""
        ...

    def from_thread(self, verb: Callable[[], Outcome[Any]], /) -> Outcome[Any]:
        """Run *verb* in the loop's thread; return its outcome to be."""
        ...

    def forget(self, channel: Channel, /) -> None:
        """Let go of *channel*: it has ended."""
        ...

    def count(self, name: str, number: int = 1, /) -> None:
        """Count what has no counter from the start."""
        ...

    def once(self, what: Hashable, text: str, /, *args: object) -> None:
        """Log a warning the first time that *what* happens."""
        ...

    def new_tap(self, conn_id: str, protocol: str, /) -> Tap:
        """Return a tap for a connection."""
        ...


@attrs.frozen(eq=False)
class Served:
    """A router as its channels need it: what all of them would look up again and again."""

    router: Router[Any]
    only: Handler | None
    encode: Callable[[Any], bytes]  # of a message, where the codec *builds*
    errors: tuple[Handler, ...]
    parse: Callable[[bytes], Any] | None = None
    builds: bool = False
