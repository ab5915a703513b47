"""Life: what a connection is, how it moves on, and what its parts ask of it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from .. import tap as events
from ..commands import Outcome, Register, refused
from ..connection import Connection
from ..errors import ClosedError, CommandError
from ..masking import hide_masked, hide_secrets, log_error, password_forms
from ..models import ClientInfo, ConnectionInfo, Reason
from ..router import Handler
from ..runtime import Timer
from ..tap import Tap, Watcher
from .broker_queue import BrokerQueue
from .calls import Call, HandlerCalls
from .deliveries import Deliveries
from .ending import Ending
from .failures import Failures
from .inbound import Inbound
from .naming import described, one_word
from .outbound import Outbound
from .registration import Registration
from .requests import Requests
from .seams import CompiledRouter, Context, Event, Link, Owner
from .states import (
    BACKLOG,
    CONGESTED,
    ENDED,
    ENDING,
    GONE,
    INDIRECT,
    OPEN,
    OPENING,
    State,
)
from .tasks import Tasks
from .timers import Silence, Ticks
from .tracing import Tracer

__all__ = ["Life"]

log = logging.getLogger("exproto_app")

SECRETS: Final = 16
"""Passwords of one connection that are remembered, to be masked."""


class Life:
    """The ground that `Channel` stands on: its state, its reasons to wait, and its parts."""

    __slots__ = (
        "backlog",
        "broker_queue",
        "bytes_received",
        "bytes_sent",
        "calls",
        "client",
        "conn",
        "counters",
        "deliveries",
        "detail",
        "ending",
        "engine",
        "failures",
        "handler",
        "id",
        "inbound",
        "link",
        "mount",
        "opening",
        "outbound",
        "protocol",
        "reason",
        "registration",
        "requests",
        "scheduled",
        "scheduler",
        "secrets",
        "silence",
        "since",
        "state",
        "tasks",
        "ticks",
        "tracer",
        "waits",
    )

    def __init__(
        self, engine: Context, link: Link, info: ConnectionInfo, protocol: CompiledRouter, conn_id: str
    ) -> None:
        self.engine = engine
        self.counters = engine.counters
        self.scheduler = engine.scheduler
        self.link = link
        self.protocol = protocol
        self.id = conn_id
        self.conn: Connection[Any] = Connection(
            self,  # type: ignore[arg-type] # as `_whole` has it
            conn_id=conn_id,
            protocol=protocol.router.name,
            info=info,
            state=None,
        )
        self.client: ClientInfo | None = None
        self.secrets: tuple[str, ...] = ()  # passwords that it has registered with, or tried to
        self.mount = ""
        self.since = engine.runtime.time()
        self.bytes_received = self.bytes_sent = 0

        self.state = OPENING
        self.waits = INDIRECT
        self.scheduled = False
        self.reason: Reason | None = None
        self.detail = ""
        self.opening: Timer | None = None

        self.tracer: Tracer | None = None
        self.handler: Handler | None = None  # takes every frame; None: each has to be routed
        self.inbound = Inbound(self._whole)
        self.outbound = Outbound(self._whole)
        self.calls = HandlerCalls(self._whole, self.outbound)

        # Made for their first use: most connections have no need of most of them.
        self.backlog: deque[Event] | None = None
        self.broker_queue: BrokerQueue | None = None
        self.registration: Registration | None = None
        self.deliveries: Deliveries | None = None
        self.requests: Requests | None = None
        self.tasks: Tasks | None = None
        self.silence: Silence | None = None
        self.ticks: Ticks | None = None
        self.failures: Failures | None = None
        self.ending: Ending | None = None

    def __str__(self) -> str:
        """Name the connection as the log does: `ID/PROTOCOL`, then `/CLIENTID` once it is registered."""
        name = f"{self.id}/{self.protocol.router.name}"
        return name if self.client is None else f"{name}/{one_word(self.client.clientid)}"

    @property
    def gone(self) -> bool:
        """Whether the device is gone."""
        return self.state >= GONE

    @property
    def closing(self) -> Reason | None:
        """Why we close the connection; None while we don't."""
        return self.reason if self.state > OPEN else None

    @property
    def held(self) -> bool:
        """Whether there is a reason to wait."""
        return self.waits & ~INDIRECT != 0

    @property
    def paused(self) -> bool:
        """Whether the device isn't read."""
        return self.state is not ENDED and self.inbound.paused

    @property
    def turn(self) -> Call | None:
        """The call that takes longer and has the turn."""
        return None if self.state is ENDED else self.calls.turn

    @property
    def commands_waiting(self) -> int:
        """How many commands wait for the broker or its answer."""
        return 0 if self.broker_queue is None else self.broker_queue.waiting

    @property
    def all_handled(self) -> bool:
        """Whether all that the device had said is handled: `on_terminated` runs, or has run."""
        return self.ending is not None and self.ending.terminating

    @property
    def will_due(self) -> bool:
        """Whether the client's will is to be published, now that it has gone: the app didn't end it."""
        registered = self.registration is not None and self.registration.will is not None
        return registered and self.reason != "terminated"

    def check_client(self, client: ClientInfo) -> None:
        """Refuse names that the protocol doesn't take."""
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
        """Show *watcher* what happens here; with *late* it is told first what it has missed."""
        if self.state is ENDED:
            return
        if self.tracer is None:
            self.trace(self.engine.new_tap(self.id, self.protocol.router.name))
        if self.tracer is not None:
            first = events.Opened(self.conn.info, late=True, client=self.client) if late else None
            self.tracer.add(watcher, first)

    def unwatch(self, watcher: Watcher) -> None:
        """Show *watcher* nothing more."""
        if self.tracer is not None and not self.tracer.remove(watcher):
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

    def choose_path(self) -> None:
        """Handle frames on the spot, all by one handler, where nothing stands in the way."""
        asked = self.requests is not None and bool(self.requests.waiting)
        traced = self.tracer is not None
        self.handler = None if asked or traced else self.protocol.catch_all
        if self.state is OPENING or traced or self.inbound.datagram:
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

    def put_back(self, run: Callable[[Any], None], argument: Any) -> None:
        """Have *run* called with *argument* before all others."""
        if self.backlog is None:
            self.backlog = deque()
        self.backlog.appendleft((run, argument))
        self.waits |= BACKLOG

    def last_event(self) -> Event | None:
        """Return the event that waits behind all others."""
        return self.backlog[-1] if self.backlog else None

    def move_on(self, state: State) -> None:
        """Be in *state* from now on, unless that is past."""
        if state <= self.state:
            return
        self.state = state
        if self.opening is not None:
            self.opening.cancel()
            self.opening = None
        if state > OPEN:
            self.waits = self.waits & ~CONGESTED | ENDING
        if state is not ENDED:
            self.choose_path()

    def drop(self, what: str, count: int, why: str) -> None:
        """Count what is lost, in all and by its reason."""
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
        """Have a handler's *error* judged; *after* is called in the end. *said* is the frame that it had."""
        if self.state is ENDED:  # a thread, or a task that nobody could cancel
            name = where.name if isinstance(where, Handler) else where
            log_error(log, "%s ! %s failed after the end: %s", self, name, error=error, hide=self.hide)
            return
        self._make_failures().handler(where, after, error, said)

    def command_failed(self, command: object, outcome: Outcome[Any]) -> None:
        """Have the failure of *command* logged and judged, unless the connection's end is the reason."""
        # Which threads and destructors find out where they are: it must not touch the loop.
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
        """Return what verbs raise now that the connection has ended."""
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
