"""Life: what a connection consists of, how it moves on, and what its parts ask of it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from .. import tap as events
from ..commands import Outcome, Register, refused
from ..connection import Connection
from ..errors import ClosedError, CommandError
from ..framing import Decoder
from ..handlers import Handler
from ..masking import hide_masked, hide_secrets, log_error, password_forms
from ..models import ClientInfo, ConnectionInfo, Message, Reason
from ..runtime import Timer
from ..tap import Tap, Watcher
from .broker_queue import BrokerQueue
from .calls import Call, HandlerCalls
from .children import Children
from .deliveries import Deliveries
from .ending import Ending
from .failures import Failures
from .inbound import Inbound
from .memory import EACH
from .naming import described, one_word
from .outbound import Outbound
from .registration import Registration
from .requests import Requests
from .roaming import Roaming
from .seams import CompiledRouter, Context, Event, Link, Owner
from .states import (
    BACKLOG,
    CLOSED,
    COMMANDS_FULL,
    CONGESTED,
    ENDED,
    ENDING,
    GONE,
    INDIRECT,
    LEAVING,
    OPEN,
    OPENING,
    State,
)
from .subscriptions import Subscriptions
from .tasks import Tasks
from .timers import Silence, Ticks
from .tracing import Tracer

__all__ = ["Life"]

log = logging.getLogger("exproto_app")

STAYS: Final = frozenset({"terminated", "taken over"})
"""Reasons with which a client leaves no will: the app ended it, or it is connected elsewhere."""

GOES: Final = frozenset({"device closed", "timeout", "lost"})
"""Reasons that are those of one address, where a client speaks from several."""

SECRETS: Final = 16
"""Passwords of one connection that are remembered, so that they can be masked."""


class Hot:
    """What the hot path needs (`Straight.received`), side by side: memory is slower than the path itself.

    *decoder* is that of `inbound`, None where each read is a frame; a read of more than *piece* bytes isn't
    cut on the spot. *handler* takes every frame; None: each has to be routed. *encode* frames replies; None:
    they are sent as they are. *chunks* are those of `outbound`, *write* sends one; None where there is more
    to know of a send.
    """

    __slots__ = (
        "bytes_received",
        "bytes_sent",
        "chunks",
        "conn",
        "counters",
        "decoder",
        "encode",
        "frames_received",
        "handler",
        "piece",
        "scheduler",
        "silence",
        "waits",
        "write",
    )


class Life(Hot):
    """The ground that `Channel` stands on: its state, its reasons to wait, and its parts."""

    __slots__ = (
        "backlog",
        "broker_queue",
        "broker_side",
        "calls",
        "children",
        "client",
        "deliveries",
        "detail",
        "ending",
        "engine",
        "failures",
        "id",
        "inbound",
        "judging",
        "link",
        "mount",
        "opening",
        "outbound",
        "protocol",
        "reason",
        "registration",
        "requests",
        "roaming",
        "scheduled",
        "secrets",
        "since",
        "state",
        "subscriptions",
        "tasks",
        "ticks",
        "tracer",
    )

    def __init__(
        self, engine: Context, link: Link, info: ConnectionInfo, protocol: CompiledRouter, conn_id: str
    ) -> None:
        self.engine = engine
        self.counters = engine.counters
        self.scheduler = engine.scheduler
        self.link = link
        broker_side = link.broker_side or engine.hub.broker_side
        if broker_side is None:
            raise TypeError(f"neither {link!r} nor {engine.hub!r} has a broker side")
        self.broker_side = broker_side
        self.protocol = protocol
        self.id = conn_id
        self.conn: Connection[Any] = Connection(
            self,  # type: ignore[arg-type] # see `_whole`
            conn_id=conn_id,
            protocol=protocol.router.name,
            info=info,
            state=None,
        )
        self.client: ClientInfo | None = None
        self.secrets: tuple[str, ...] = ()  # passwords that it has registered with, or tried to
        self.mount = ""
        self.since = engine.runtime.time()
        self.bytes_received = self.bytes_sent = self.frames_received = 0

        self.state = OPENING
        self.waits = INDIRECT
        self.scheduled = False
        self.judging = False  # it will be looked at soon whether too many commands wait
        self.reason: Reason | None = None
        self.detail = ""
        self.opening: Timer | None = None

        self.tracer: Tracer | None = None
        self.handler: Handler | None = None
        self.decoder: Decoder | None = None
        self.piece = 0
        self.write: Callable[[bytes], object] | None = link.write
        self.inbound = Inbound(self._whole)
        self.outbound = Outbound(self._whole)
        self.chunks = self.outbound.chunks
        self.calls = HandlerCalls(self._whole, self.outbound)
        self.encode = self.calls.encode

        # Made on first use: most connections need few of them.
        self.backlog: deque[Event] | None = None
        self.broker_queue: BrokerQueue | None = None
        self.registration: Registration | None = None
        self.roaming: Roaming | None = None
        self.deliveries: Deliveries | None = None
        self.requests: Requests | None = None
        self.tasks: Tasks | None = None
        self.silence: Silence | None = None
        self.ticks: Ticks | None = None
        self.failures: Failures | None = None
        self.ending: Ending | None = None
        self.children: Children | None = None
        self.subscriptions: Subscriptions | None = None

    def __str__(self) -> str:
        """Name the connection as the log does: `ID/PROTOCOL`, then `/CLIENTID` once it is registered."""
        name = f"{self.id}/{self.protocol.router.name}"
        return name if self.client is None else f"{name}/{one_word(self.client.clientid)}"

    @property
    def gone(self) -> bool:
        """Whether the device is gone."""
        return self.state >= GONE

    @property
    def newcomer(self) -> bool:
        """Whether the device has said nothing useful yet."""
        return self.state is OPENING

    @property
    def closing(self) -> Reason | None:
        """Why we are closing the connection; None while we aren't."""
        return self.reason if self.state > OPEN else None

    @property
    def busy(self) -> bool:
        """Whether there is a reason to wait."""
        return self.waits & ~INDIRECT != 0

    @property
    def paused(self) -> bool:
        """Whether the device isn't read."""
        return self.state is not ENDED and self.inbound.paused

    @property
    def reading(self) -> bool:
        """Whether the device is read."""
        return not self.gone and not self.inbound.paused

    @property
    def turn(self) -> Call | None:
        """The handler call in progress, if it takes longer."""
        return None if self.state is ENDED else self.calls.turn

    @property
    def shut(self) -> bool:
        """Whether what comes is dropped: we have closed, or are about to."""
        return self.state is CLOSED or self.state >= LEAVING or self.inbound.shut

    @property
    def commands_waiting(self) -> int:
        """How many commands wait for the broker or its answer."""
        return 0 if self.broker_queue is None else self.broker_queue.waiting

    @property
    def bytes_held(self) -> int:
        """How many bytes it holds: what came and isn't handled, what waits for the device and the broker."""
        if self.state >= CLOSED:  # all of it is about to go
            return 0
        inbound, outbound = self.inbound, self.outbound
        size = inbound.held + outbound.size + self.link.buffered
        if outbound.later is not None:
            size += outbound.later.size + EACH * len(outbound.later)
        if self.deliveries is not None:
            size += self.deliveries.size + EACH * self.deliveries.waiting
        if self.broker_queue is not None:
            size += self.broker_queue.bytes + EACH * self.broker_queue.waiting
        return size

    def note_memory(self) -> None:
        """Take note that it holds much, and more than before."""
        self.engine.memory.note(self._whole)

    @property
    def all_handled(self) -> bool:
        """Whether all that the device had said is handled: `on_terminated` runs, or has run."""
        return self.ending is not None and self.ending.terminating

    def left_for(self, reason: Reason) -> Reason:
        """Return why the connection ends, where *reason* is it: a client that speaks elsewhere isn't gone."""
        stays = self.roaming is not None and len(self.roaming.members) > 1
        return "taken over" if stays and reason in GOES else reason

    @property
    def keeps_session(self) -> bool:
        """Whether the broker keeps its client's session, with what it hasn't been told is handled."""
        return self.registration is not None and self.registration.keeps_session

    @property
    def will_due(self) -> bool:
        """Whether the client's will is to be published: it has gone, and the app didn't end it."""
        registered = self.registration is not None and self.registration.will is not None
        return registered and self.reason not in STAYS

    def check_client(self, client: ClientInfo) -> None:
        """Refuse names that the protocol doesn't allow."""
        self.protocol.router.check_client(client)

    def hide(self, text: str) -> str:
        """Return *text* with what is secret in it masked."""
        for password in self.secrets:
            text = hide_secrets(text, password_forms(password))
        secret = self.protocol.router.secret
        return hide_masked(
            text, self.engine.app.masks if secret is None else (*self.engine.app.masks, secret)
        )

    def keep_secret(self, command: Register) -> None:
        """Mask the password of a registration from now on."""
        password, client = command.password, command.client
        if not password or password in (client.clientid, client.username, *self.secrets):
            return
        self.secrets = (*self.secrets[1 - SECRETS :], password)
        if self.tracer is not None:
            self.tracer.keep_secret(password)

    def watch(self, watcher: Watcher, *, late: bool = True) -> None:
        """Show *watcher* what happens here; with *late*, first what it has missed."""
        if self.state is ENDED:
            return
        if self.tracer is None:
            self.trace(self.engine.new_tap(self.id, self.protocol.router.name))
        if self.tracer is not None:
            first = events.Opened(self.conn.info, late=True, client=self.client) if late else None
            self.tracer.add(watcher, first)
            self.choose_path()

    def unwatch(self, watcher: Watcher) -> None:
        """Show *watcher* nothing more."""
        if self.tracer is None:
            return
        if not self.tracer.remove(watcher):
            self.tracer = None
        self.choose_path()

    def trace(self, tap: Tap) -> None:
        """Show what happens by *tap*."""
        tap.protocol = self.protocol.router.name
        secret = self.protocol.router.secret
        if secret is not None:
            tap.mask_too(secret)
        for password in self.secrets:
            tap.keep_secret(password)
        self.tracer = Tracer(self, tap)
        self.choose_path()

    def make_state(self, option: str) -> bool:
        """Make `conn.state` by the router's *option*; return whether that went well."""
        make = self.protocol.router.state
        try:
            if make is not None:
                self.conn.state = make()
        except BaseException as error:  # noqa: BLE001 - the user's function is judged like a handler
            self.failed(option, None, error)
            return False
        return True

    def choose_path(self) -> None:
        """Take the hot path, and one handler for all frames, where nothing stands in the way."""
        asked = self.requests is not None and bool(self.requests.waiting)
        held = self.deliveries is not None and bool(self.deliveries.held)
        traced = self.tracer is not None
        shown = self.tracer is not None and self.tracer.tap.frames
        self.handler = None if asked or shown else self.protocol.catch_all
        slow = self.inbound.datagram or self.inbound.gap is not None
        if self.state is OPENING or traced or held or slow:
            self.waits |= INDIRECT
        else:
            self.waits &= ~INDIRECT

    def later(self) -> None:
        """Advance after what runs now."""
        if not self.scheduled:
            self.scheduler.later(self._whole)

    def enqueue(self, run: Callable[[Any], None], argument: Any) -> None:
        """Have *run* called with *argument* when all before it have had their turns."""
        if self.backlog is None:
            self.backlog = deque()
        self.backlog.append((run, argument))
        self.waits |= BACKLOG

    def spoke(self) -> None:
        """Take note that the device has said something useful."""
        if self.deliveries is not None and self.deliveries.held:
            self.deliveries.spoke()

    def take_deliveries(self) -> list[Message]:
        """Take out the messages that wait for their turn, for another connection of the client to handle."""
        deliveries = self.deliveries
        if deliveries is None:
            return []
        kept: deque[Event] = deque()
        taken: list[Message] = []
        for event in self.backlog or ():
            if deliveries.waits_in(event):
                taken += deliveries.take_out(event[1])
                if not event[1]:
                    continue
            kept.append(event)
        self.backlog = kept
        if deliveries.held:
            taken += deliveries.take_out(deliveries.held)
        return taken

    def put_back(self, run: Callable[[Any], None], argument: Any) -> None:
        """Have *run* called with *argument* before all others."""
        if self.backlog is None:
            self.backlog = deque()
        self.backlog.appendleft((run, argument))
        self.waits |= BACKLOG

    def last_event(self) -> Event | None:
        """Return the event that is last in the backlog."""
        return self.backlog[-1] if self.backlog else None

    def replace_last(self, run: Callable[[Any], None], argument: Any) -> None:
        """Have *run* called with *argument* in place of the event that is last in the backlog."""
        if self.backlog:
            self.backlog[-1] = (run, argument)

    def move_on(self, state: State) -> None:
        """Move on to *state*, unless that is past."""
        if state <= self.state:
            return
        self.state = state
        if self.opening is not None:
            self.opening.cancel()
            self.opening = None
        if state > OPEN:
            self.waits = self.waits & ~(CONGESTED | COMMANDS_FULL) | ENDING
        if state is not ENDED:
            self.choose_path()

    def drop(self, what: str, count: int, why: str) -> None:
        """Count what is lost, in total and by reason."""
        if count:
            self.counters[f"{what}_dropped"] += count
            self.engine.count(f"{what}_dropped.{why}", count)

    def failed(
        self,
        where: Handler | str | None,
        after: Callable[[], None] | None,
        error: BaseException,
        said: bytes | None = None,
    ) -> None:
        """Have a handler's *error* judged, then *after* called. *said* is the frame that it was given."""
        if self.state is ENDED:  # a thread, or a task that nobody could cancel
            name = where.name if isinstance(where, Handler) else where
            log_error(log, "%s ! %s failed after the end: %s", self, name, error=error, hide=self.hide)
            return
        self._make_failures().handler(where, after, error, said)

    def command_failed(self, command: object, outcome: Outcome[Any]) -> None:
        """Have the failure of *command* logged and judged, unless the connection's end is the reason."""
        # Threads and destructors may get here, so nothing may touch the loop.
        if self.state is ENDED or isinstance(outcome.error, ClosedError):
            log.debug("%s ! %s after the end", self, described(command))
            return
        self._make_failures().command(command, outcome)

    def refuse(self, command: object, error: CommandError) -> Outcome[Any]:
        """Return the outcome of a *command* that isn't carried out."""
        outcome = refused(error)
        self.command_failed(command, outcome)
        return outcome

    def closed_error(self) -> ClosedError:
        """Return the error of verbs after the end."""
        return ClosedError(f"the connection is closed: {self.reason}")

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call *callback* when the connection, which is ending, has ended."""
        self._make_ending().when_ended(callback)

    def _make_failures(self) -> Failures:
        if self.failures is None:
            self.failures = Failures(self._whole, self.calls)
        return self.failures

    def _make_ending(self) -> Ending:
        if self.ending is None:
            self.ending = Ending(self._whole, self.inbound, self.outbound, self.calls)
        return self.ending

    @property
    def _whole(self) -> Owner:
        """The connection, as its parts see it."""
        return self  # type: ignore[return-value] # the `Channel` that it is
