"""What a connection has around it: the device's `Link`, the broker's `Hub`, and what the engine shares.

`Owner` is the other direction: what the parts of a connection may ask of it, and no more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar

import attrs

from ..commands import Command, Outcome, Publish, Register
from ..errors import ClosedError, CommandError
from ..framing import Bad, Decoder
from ..models import ClientInfo, ConnectionInfo, Message, Reason
from .memory import Memory
from .scheduler import Scheduler
from .states import State
from .subscriptions import Subscriptions
from .takeovers import Takeovers
from .tracing import Tracer

if TYPE_CHECKING:
    from ..app import App
    from ..connection import Connection
    from ..handlers import Handler
    from ..models import Limits
    from ..router import Router
    from ..runtime import Runtime
    from ..tap import Tap
    from .login_queue import Judging

__all__ = [
    "IGNORED",
    "BrokerSide",
    "CompiledRouter",
    "Context",
    "Event",
    "HubProtocol",
    "Intake",
    "Link",
    "Owner",
]

C_contra = TypeVar("C_contra", contravariant=True)

IGNORED: Final = "%s ! expiry, content_type and the like are ignored: this host's broker doesn't support them"
"""What is said once of properties of messages, where `HubProtocol.has_properties` is False."""

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
    def busy(self) -> bool: ...  # noqa: D102 - see above
    @property
    def paused(self) -> bool: ...  # noqa: D102 - see above
    @property
    def scheduled(self) -> bool: ...  # noqa: D102 - see above
    @property
    def turn(self) -> object | None: ...  # noqa: D102 - see above
    @property
    def shut(self) -> bool: ...  # noqa: D102 - see above

    def received(self, data: bytes, /) -> None: ...  # noqa: D102 - see above
    def delivered(self, messages: Sequence[Message], /) -> object: ...  # noqa: D102 - see above
    def unwritable(self) -> None: ...  # noqa: D102 - see above
    def drained(self) -> None: ...  # noqa: D102 - see above
    def terminated(self, reason: Reason = ..., detail: str = ...) -> None: ...  # noqa: D102 - see above
    def end(self, reason: Reason, detail: str = ..., *, drain: bool = ...) -> None: ...  # noqa: D102 - see above
    def note_memory(self) -> None: ...  # noqa: D102 - see above


class Link(Protocol):
    """The device's side of one connection; the engine sets its *channel* before the first event.

    Where the protocol is recognized by sniffing, the engine sets it a second time.
    """

    channel: Intake | None

    @property
    def broker_side(self) -> BrokerSide[Any] | None:
        """Carries out what the connection asks of the broker, where this link does; None: the hub does."""
        ...

    @property
    def answers(self) -> bool:
        """Whether `send` returns an outcome."""
        ...

    @property
    def buffered(self) -> int:
        """How many bytes it holds itself, on their way in or out."""
        ...

    @property
    def confirm(self) -> Callable[[], Outcome[None]] | None:
        """Asks whether everything handed over before has arrived; None where that can't be known."""
        ...

    @property
    def write(self) -> Callable[[bytes], object] | None:
        """Sends bytes of a stream, where no more can ever be known about them; else None."""
        ...

    def send(self, chunks: list[bytes], /) -> Outcome[None] | None:
        """Send *chunks* in order, on a datagram socket each by itself; None where no more can be known."""
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


class BrokerSide(Protocol[C_contra]):
    """Carries out what connections ask of the broker."""

    def execute(self, channel: C_contra, command: Command, /) -> Outcome[Any]:
        """Carry *command* out; the outcome may come later."""
        ...

    def judges(self, channel: C_contra, command: Register, /) -> bool:
        """Return whether a login such as *command* may be refused.

        Then a device that hung up before the broker was asked counts as refused: what it sent after its
        login isn't published. Where logins are never refused, it is published, as it is for a device that
        never logs in.
        """
        ...


class HubProtocol(Protocol[C_contra]):
    """The broker behind all connections; `Hub` is that of channels.

    *broker_side* carries out what connections ask whose links don't bring a broker side of their own; None
    where all do. *ordered*: it keeps the order of commands that still wait. *keeps_wills*: it sees to it that
    a client's will is published where `Channel.will_due` says so; else the engine does. *keeps_sessions*: a
    client's session may outlive its connection. *many_clients*: each child of a connection is a client of its
    own. *has_properties*: messages may have those of MQTT 5. *roams*: several connections may be one client.

    A hub whose queue for a channel is full says so by `Channel.congested`, and by `relieved` when there is
    room again; for what the app itself publishes the `Engine` has the same two.
    """

    @property
    def broker_side(self) -> BrokerSide[C_contra] | None: ...  # noqa: D102 - see above
    @property
    def has_properties(self) -> bool: ...  # noqa: D102 - see above

    ordered: bool
    keeps_wills: bool
    keeps_sessions: bool
    many_clients: bool
    roams: bool

    def attach(self, context: Context, /) -> None:
        """Serve the connections of *context* from now on; its clock counts."""
        ...

    def publish(self, command: Publish, /) -> Outcome[None]:
        """Publish for the app itself."""
        ...

    def registered(self, channel: C_contra, command: Register, older: C_contra | None, /) -> None:
        """Take note that *channel* is the client of *command* from now on.

        It takes over from *older*, if there is one, and keeps the subscriptions that were made there. Where
        the broker itself continues the session, there is nothing to do.
        """
        ...

    def move(self, older: C_contra, heir: C_contra, /) -> None:
        """Have *heir* stand for the client that both are connections of, with all that *older* has here.

        With `Router(roaming=True)`; only where the broker can do it (*roams*).
        """
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
    held_back: Callable[[str, Any], bool]  # counts a line about a connection instead of having it logged
    scheduler: Scheduler
    memory: Memory
    together: dict[Any, None] | None
    takeovers: Takeovers
    when_denied: Callable[[ConnectionInfo], object]  # gets how a device is connected that on_login refuses

    @property
    def hub(self) -> HubProtocol[Any]:
        """The broker's side."""
        ...

    def judging(self, *, blocking: bool) -> Judging:
        """Return where logins are judged that take their time, by threads if *blocking*."""
        ...

    def new_child(self, line: Any, children: Any, name: str, /) -> Any:
        """Return a new child of *line*, which is to be begun."""
        ...

    def begin_child(self, child: Any, command: Register, /) -> Outcome[None]:
        """Begin *child*: it is to register by *command*."""
        ...

    def from_thread(self, verb: Callable[[], Outcome[Any]], /) -> Outcome[Any]:
        """Run *verb* in the loop's thread; return its future outcome."""
        ...

    def forget(self, channel: Any, /) -> None:
        """Remove *channel*: it has ended."""
        ...

    def count(self, name: str, number: int = 1, /) -> None:
        """Count what has no counter at the start."""
        ...

    def congested(self) -> None:
        """Have the host asked for nothing more by the app itself: its queue of that is full."""
        ...

    def relieved(self) -> None:
        """Go on: there is room in that queue again."""
        ...

    def once(self, what: Hashable, text: str, /, *args: object) -> None:
        """Log a warning the first time that *what* happens."""
        ...

    def new_tap(self, conn_id: str, protocol: str, /) -> Tap:
        """Return a tap for a connection."""
        ...


@attrs.frozen(eq=False)
class CompiledRouter:
    """A router, compiled for its connections: what each of them would look up again and again."""

    router: Router[Any]
    catch_all: Handler | None  # takes every frame, where there is no other and no codec
    encode: Callable[[Any], bytes]  # of a message, where the codec *builds*
    errors: tuple[Handler, ...]
    parse: Callable[[bytes], Any] | None = None
    builds: bool = False
    login: Handler | None = None  # judges logins before the broker


class Sends(Protocol):
    """What takes bytes for the device: `Outbound`."""

    def put(self, data: bytes, /) -> Outcome[None]:
        """Send *data* behind what waits."""
        ...


class Descendants(Protocol):
    """The children of a connection: `Children`."""

    def end(self, reason: Reason, detail: str, /) -> bool:
        """End a few; return whether any was left."""
        ...


class Owner(Protocol):
    """The connection, as its parts see it; `Channel` explains each of these."""

    engine: Context
    counters: dict[str, int]
    link: Link
    broker_side: BrokerSide[Any]
    protocol: CompiledRouter
    conn: Connection[Any]
    client: ClientInfo | None
    mount: str
    state: State
    waits: int
    scheduled: bool

    @property
    def newcomer(self) -> bool: ...  # noqa: D102 - see above

    reason: Reason | None
    detail: str
    tracer: Tracer | None
    roaming: Any  # a `Roaming`, or None
    subscriptions: Subscriptions | None
    bytes_sent: int
    frames_received: int
    decoder: Decoder | None
    piece: int
    write: Callable[[bytes], object] | None
    id: str

    @property
    def gone(self) -> bool: ...  # noqa: D102 - see above
    @property
    def line(self) -> Owner | None: ...  # noqa: D102 - see above
    @property
    def children(self) -> Descendants | None: ...  # noqa: D102 - see above
    @property
    def outbound(self) -> Sends: ...  # noqa: D102 - see above
    @property
    def commands_waiting(self) -> int: ...  # noqa: D102 - see above
    @property
    def bytes_held(self) -> int: ...  # noqa: D102 - see above
    @property
    def reading(self) -> bool: ...  # noqa: D102 - see above
    @property
    def keeps_session(self) -> bool: ...  # noqa: D102 - see above

    def route(self, frame: bytes, /) -> tuple[Handler | None, Any]: ...  # noqa: D102 - see above
    def answer_bad(self, item: Bad, after: Callable[[], None] | None = ..., /) -> None: ...  # noqa: D102 - see above
    def put_back(self, run: Callable[[Any], None], argument: Any, /) -> None: ...  # noqa: D102 - see above
    def last_event(self) -> Event | None: ...  # noqa: D102 - see above
    def replace_last(self, run: Callable[[Any], None], argument: Any, /) -> None: ...  # noqa: D102 - see above
    @property
    def backlog(self) -> deque[Event] | None: ...  # noqa: D102 - see above
    def start_timer(self, seconds: float, /) -> None: ...  # noqa: D102 - see above
    def when_ended(self, callback: Callable[[], None], /) -> None: ...  # noqa: D102 - see above
    def publish_will(self) -> None: ...  # noqa: D102 - see above
    def hand_over(self) -> None: ...  # noqa: D102 - see above
    def delivered(  # noqa: D102 - see above
        self, messages: Sequence[Message], acknowledge: Callable[[], object] | None = ..., /
    ) -> Any: ...
    def issue(self, command: Command, /) -> Outcome[Any]: ...  # noqa: D102 - see above
    def share_subscriptions(self) -> Subscriptions: ...  # noqa: D102 - see above
    def spoke(self) -> None: ...  # noqa: D102 - see above
    def take_deliveries(self) -> list[Message]: ...  # noqa: D102 - see above
    def let_go(self) -> None: ...  # noqa: D102 - see above
    def judged(self, command: Register, /) -> bool: ...  # noqa: D102 - see above
    def log_in(self, command: Register, /) -> Outcome[None]: ...  # noqa: D102 - see above
    def later(self) -> None: ...  # noqa: D102 - see above
    def advance(self) -> None: ...  # noqa: D102 - see above
    def enqueue(self, run: Callable[[Any], None], argument: Any, /) -> None: ...  # noqa: D102 - see above
    def choose_path(self) -> None: ...  # noqa: D102 - see above
    def move_on(self, state: State, /) -> None: ...  # noqa: D102 - see above
    def end(self, reason: Reason, detail: str = ..., *, drain: bool = ...) -> None: ...  # noqa: D102 - see above
    def lose(self, detail: str, /) -> None: ...  # noqa: D102 - see above
    def drop(self, what: str, count: int, why: str, /) -> None: ...  # noqa: D102 - see above
    def forgive(self) -> None: ...  # noqa: D102 - see above
    def hide(self, text: str, /) -> str: ...  # noqa: D102 - see above
    def failed(  # noqa: D102 - see above
        self,
        where: Handler | str | None,
        after: Callable[[], None] | None,
        error: BaseException,
        said: bytes | None = ...,
    ) -> None: ...
    def command_failed(self, command: object, outcome: Outcome[Any], /) -> None: ...  # noqa: D102 - see above
    def track(self, outcome: Outcome[Any], /) -> None: ...  # noqa: D102 - see above
    def refuse(self, command: object, error: CommandError, /) -> Outcome[Any]: ...  # noqa: D102 - see above
    def closed_error(self) -> ClosedError: ...  # noqa: D102 - see above
