"""What a connection has around it: the device's `Link`, the broker's `Hub`, and what the engine shares.

`Owner` is the other direction: what the parts of a connection may ask of it, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import attrs

from ..commands import Command, Outcome, Publish
from ..errors import ClosedError, CommandError
from ..models import ClientInfo, Message, Reason
from .scheduler import Scheduler
from .states import State
from .tracing import Tracer

if TYPE_CHECKING:
    from ..app import App
    from ..connection import Connection
    from ..models import Limits
    from ..router import Handler, Router
    from ..runtime import Runtime
    from ..tap import Tap

__all__ = ["Broker", "CompiledRouter", "Context", "Event", "Intake", "Link", "Owner"]

C_contra = TypeVar("C_contra", contravariant=True)

Event: TypeAlias = tuple[Callable[[Any], None], Any]
"""What waits for its turn: a function and its argument."""


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
    def turn(self) -> object | None: ...  # noqa: D102 - see above

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
        """Sends bytes of a stream, where nothing more is ever to be known of them; else None."""
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


class Broker(Protocol[C_contra]):
    """The broker's side of all connections; `Hub` is that of channels.

    *ordered*: it keeps the order of commands that still wait. *keeps_wills*: it sees to it that a client's
    will is published where `Channel.will_due` says so; else the engine does. *keeps_sessions*: a client's
    session may outlive its connection.
    """

    ordered: bool
    keeps_wills: bool
    keeps_sessions: bool

    def execute(self, channel: C_contra, command: Command, /) -> Outcome[Any]:
        """Carry *command* out; the outcome may come later."""
        ...

    def publish(self, command: Publish, /) -> Outcome[None]:
        """Publish for the app itself."""
        ...

    def gone(self, channel: C_contra, /) -> None:
        """Forget *channel*: its last handler has ended."""
        ...


class Context(Protocol):
    """What all connections of a host share; the `Engine` is it."""

    app: App[Any]
    runtime: Runtime
    limits: Limits
    counters: dict[str, int]
    clients: dict[str, Any]
    when_failed: Callable[[BaseException], object] | None
    scheduler: Scheduler

    @property
    def hub(self) -> Broker[Any]:
        """The broker's side."""
        ...

    def from_thread(self, verb: Callable[[], Outcome[Any]], /) -> Outcome[Any]:
        """Run *verb* in the loop's thread; return its outcome to be."""
        ...

    def forget(self, channel: Any, /) -> None:
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
class CompiledRouter:
    """A router, made ready for its connections: what all of them would look up again and again."""

    router: Router[Any]
    catch_all: Handler | None  # takes every frame, where there is no other and no codec
    encode: Callable[[Any], bytes]  # of a message, where the codec *builds*
    errors: tuple[Handler, ...]
    parse: Callable[[bytes], Any] | None = None
    builds: bool = False


class Owner(Protocol):
    """The connection, as its parts see it; `Channel` explains each of these."""

    engine: Context
    counters: dict[str, int]
    link: Link
    protocol: CompiledRouter
    conn: Connection[Any]
    client: ClientInfo | None
    mount: str
    state: State
    waits: int
    scheduled: bool
    reason: Reason | None
    tracer: Tracer | None
    bytes_sent: int
    id: str

    @property
    def gone(self) -> bool: ...  # noqa: D102 - see above
    @property
    def commands_waiting(self) -> int: ...  # noqa: D102 - see above

    def route(self, frame: bytes, /) -> tuple[Handler | None, Any]: ...  # noqa: D102 - see above
    def put_back(self, run: Callable[[Any], None], argument: Any, /) -> None: ...  # noqa: D102 - see above
    def last_event(self) -> Event | None: ...  # noqa: D102 - see above
    def start_timer(self, seconds: float, /) -> None: ...  # noqa: D102 - see above
    def when_ended(self, callback: Callable[[], None], /) -> None: ...  # noqa: D102 - see above
    def publish_will(self) -> None: ...  # noqa: D102 - see above
    def let_go(self) -> None: ...  # noqa: D102 - see above
    def later(self) -> None: ...  # noqa: D102 - see above
    def advance(self) -> None: ...  # noqa: D102 - see above
    def enqueue(self, run: Callable[[Any], None], argument: Any, /) -> None: ...  # noqa: D102 - see above
    def choose_path(self) -> None: ...  # noqa: D102 - see above
    def move_on(self, state: State, /) -> None: ...  # noqa: D102 - see above
    def end(self, reason: Reason, detail: str = ..., *, drain: bool = ...) -> None: ...  # noqa: D102 - see above
    def lose(self, detail: str, /) -> None: ...  # noqa: D102 - see above
    def drop(self, what: str, count: int, why: str, /) -> None: ...  # noqa: D102 - see above
    def failed(  # noqa: D102 - see above
        self, where: Handler | str | None, after: Callable[[], None] | None, error: BaseException, /
    ) -> None: ...
    def command_failed(self, command: object, outcome: Outcome[Any], /) -> None: ...  # noqa: D102 - see above
    def track(self, outcome: Outcome[Any], /) -> None: ...  # noqa: D102 - see above
    def refuse(self, command: object, error: CommandError, /) -> Outcome[Any]: ...  # noqa: D102 - see above
    def closed_error(self) -> ClosedError: ...  # noqa: D102 - see above
