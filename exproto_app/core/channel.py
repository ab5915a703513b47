"""Channel: the state machine of one connection; `states` tells how it works."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Coroutine, Hashable, Sequence
from functools import partial
from itertools import islice
from operator import length_hint
from typing import Any, Final, TypeAlias

from .. import tap as events
from ..commands import Command, Outcome, Publish, Register, refused
from ..connection import Connection
from ..errors import ClosedError, CommandError, UnsupportedError
from ..framing import FRAME_LIMIT, Bad
from ..host import Timer
from ..models import ClientInfo, ConnectionInfo, Message, Reason
from ..router import Handler
from ..tap import Tap, Watcher
from .broker_queue import BrokerQueue
from .calls import ALONE, Call, HandlerCalls
from .deliveries import Deliveries
from .ending import Ending
from .failures import Failures
from .inbound import Inbound
from .naming import described, one_word
from .outbound import Outbound
from .registration import Registration, mounted
from .requests import Requests
from .seams import Broker, CompiledRouter, Context, Event, Link
from .states import (
    BACKLOG,
    BATCH,
    BLOCKS,
    CLOSED,
    CLOSING,
    CONGESTED,
    DRAINING,
    ENDED,
    ENDING,
    FAILURES,
    GONE,
    INDIRECT,
    LEAVING,
    OPEN,
    OPENING,
    PACE,
    PIECE,
    RESUMES,
    RUNNING,
    State,
)
from .tasks import Tasks
from .timers import Silence, Ticks
from .tracing import Tracer

__all__ = ["Channel", "Hub"]

MANY: Final = [b""] * (BATCH + 1)
"""Stands for the frames of a read that isn't cut on the spot."""

log = logging.getLogger("exproto_app")


class Channel:
    """The engine's half of one connection. Drivers feed it; `Connection` issues its verbs to it."""

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
            self, conn_id=conn_id, protocol=protocol.router.name, info=info, state=None
        )
        self.client: ClientInfo | None = None
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
        self.inbound = Inbound(self)
        self.outbound = Outbound(self)
        self.calls = HandlerCalls(self, self.outbound)

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

    # --- what drivers and watchers ask

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
    def will_due(self) -> bool:
        """Whether the client's will is to be published, now that it has gone: the app didn't end it."""
        registered = self.registration is not None and self.registration.will is not None
        return registered and self.reason != "terminated"

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
        self.tracer = Tracer(self, tap)
        self.choose_path()

    # --- events, from the driver

    def begin(self, *, resumed: bool, sniffed: bytes | None = None) -> None:
        """Run `on_connect`, the first turn; *sniffed* comes behind, which is shown and counted already."""
        if self.tracer is not None and sniffed is None:
            self.tracer.show(events.Opened(self.conn.info, resumed))
        limits, routes = self.engine.limits, self.protocol.router.routes
        self.opening = self.engine.runtime.call_later(limits.first_frame, self._said_nothing)
        if self.inbound.datagram:
            self.silence = Silence(self, self.calls, limits.datagram_idle)
        if routes.ticks:
            self.ticks = Ticks(self, self.calls)
        make_state = self.protocol.router.state
        try:
            if make_state is not None:
                self.conn.state = make_state()
        except BaseException as error:  # noqa: BLE001 - the user's state= is judged like a handler
            self.failed("state=", None, error)
        else:
            if routes.connect is not None and not resumed:
                self.calls.run((ALONE,), routes.connect)
        if sniffed is not None:
            self.inbound.put_taken(sniffed)
        self.advance()

    def received(self, data: bytes) -> None:
        """Take *data*, as it came from the device; on a datagram socket, one datagram: the hot path."""
        size = len(data)
        self.counters["bytes_received"] += size
        self.bytes_received += size
        if self.silence is not None:
            self.silence.heard = self.engine.runtime.time()
        if self.waits or self.scheduler.busy:
            self._received_slowly(data)
            return
        inbound = self.inbound
        if inbound.raw and 0 < size <= FRAME_LIMIT:
            frames = [data]
        else:
            decoder = inbound.decoder
            frames = decoder.feed(data) if size <= PIECE else MANY
            if len(frames) > BATCH or decoder.error is not None or decoder.bad is not None:
                self._sort_out(data, frames)
                return
        number = len(frames)
        self.counters["frames_received"] += number
        inbound.received += number
        rest = self.calls.run(frames, self.handler)
        if self.waits:
            inbound.frames = rest
            self.advance()
            return
        if self.outbound.chunks:
            self.outbound.flush()
        if not inbound.received & PACE:
            self.scheduler.pace()

    def _received_slowly(self, data: bytes) -> None:
        """Handle *data* where nothing but the detour is a reason to wait; else have it wait for its turn."""
        inbound = self.inbound if self.state is not ENDED else None
        if inbound is None:
            self.drop("bytes", len(data), "closing")
        elif self.waits != INDIRECT or self.scheduler.busy or len(data) > inbound.piece:
            inbound.put(data)
        else:
            if self.tracer is not None:
                self.tracer.received(data)
            inbound.add(inbound.cut(data))
            self.advance()

    def _sort_out(self, data: bytes, frames: list[bytes]) -> None:
        """Go on behind the straight path where there is more to do than handle a few *frames* of *data*."""
        if frames is MANY:
            self.inbound.put(data)
        else:
            self.inbound.add(self.inbound.sort_out(frames))
        self.advance()

    def delivered(self, messages: Sequence[Message], acknowledge: Callable[[], object] | None = None) -> None:
        """Take *messages* that the broker has for the device.

        With *acknowledge* none is dropped for want of room: the broker sends no more of those before it is
        called, when the turn of the last one has ended. It isn't if the connection ends before.
        """
        if self.state is ENDED:
            self.drop("deliveries", len(messages), "closing")
            return
        if self.deliveries is None:
            self.deliveries = Deliveries(self, self.calls)
        self.deliveries.put(messages, acknowledge)

    def unwritable(self) -> None:
        """Stop sending: the device reads too slowly. Turns wait."""
        if self.state < ENDED:
            self.outbound.block()

    def drained(self) -> None:
        """Send again."""
        if self.state < ENDED:
            self.outbound.unblock()
            self.advance()

    def congested(self) -> None:
        """Hold turns and reading: the queue of what this device publishes is full."""
        if self.state <= OPEN:
            self.waits |= CONGESTED
            self.inbound.pause()

    def relieved(self) -> None:
        """Go on: there is room in that queue again."""
        if self.waits & CONGESTED:
            self.waits &= ~CONGESTED
            self.later()

    def terminated(self, reason: Reason = "device closed", detail: str = "") -> None:
        """Take the end of the connection; what it received before is still handled."""
        if self.gone:
            return
        if self.state <= OPEN:
            self.reason = reason
        self.detail = self.detail or detail
        error = self.closed_error()
        unsent = self.outbound.close(error)
        if self.tracer is not None:
            self.tracer.dropped("bytes", unsent)
            self.tracer.show(events.Closed(self.reason or reason, self.detail))
        self.drop("bytes", unsent, "unsent")
        left = self.inbound.decoder.buffered
        text = "%s = closed: %s %s (%d bytes unsent, %d in no frame)"
        log.debug(text, self, self.reason, self.detail, unsent, left)
        self._make_ending().gone()
        self._release(error)
        self.advance()

    def end(self, reason: Reason, detail: str = "", *, drain: bool = False) -> None:
        """Close for *reason* when the queues are flushed; with *drain*, when all input is handled too."""
        if self.state >= LEAVING:
            return
        if not drain:
            self.inbound.shut = True
        if self.state > OPEN:
            if self.state is DRAINING and not drain:
                self.move_on(CLOSING)
                self.later()
            elif self.state is GONE and reason == "shutdown":
                self._make_ending().limit()
            return
        self.reason, self.detail = reason, detail
        self.move_on(DRAINING if drain else CLOSING)
        if drain:
            self.inbound.pause()
        self._make_ending().limit()
        self.later()

    # --- verbs, from the Connection

    @property
    def builds(self) -> bool:
        """Whether a codec makes frames of what is sent."""
        return self.protocol.builds

    def send(self, data: Any, *, raw: bool) -> Outcome[None]:
        """Have *data* sent, behind what was sent before."""
        if not raw:
            data = self.protocol.encode(data)
        if self.state >= CLOSED:
            return self.refuse("send", self.closed_error())
        if self.engine.runtime.in_other_thread():
            return self.engine.from_thread(partial(self.send, data, raw=True))
        return self.outbound.put(data)

    def issue(self, command: Command) -> Outcome[Any]:
        """Have the broker asked for *command*, behind what it was asked before."""
        if self.gone and (self.state is ENDED or type(command) is not Publish):
            return self.refuse(command, self.closed_error())
        if self.engine.runtime.in_other_thread():
            return self.engine.from_thread(partial(self.issue, command))
        if self.tracer is not None:
            self.tracer.keep_secret(command)
        return self._make_broker_queue().issue(command)

    def request(
        self,
        frame: Any,
        *,
        match: Callable[[Any], object] | None,
        timeout: float,
        retries: int,
        key: Hashable,
        raw: bool,
    ) -> Outcome[Any]:
        """Send *frame* and wait for the frame that answers it."""
        if not raw:
            frame = self.protocol.encode(frame)
        if self.state >= CLOSED:
            return self.refuse("request", self.closed_error())
        if self.engine.runtime.in_other_thread():
            ask = partial(self.request, match=match, timeout=timeout, retries=retries, key=key, raw=True)
            return self.engine.from_thread(partial(ask, frame))
        if self.requests is None:
            self.requests = Requests(self, self.calls, partial(self.send, raw=True))
        return self.requests.ask(frame, match=match, timeout=timeout, retries=retries, key=key)

    def spawn(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run *coroutine* until the connection ends."""
        if self.gone:
            coroutine.close()
            self.refuse("spawn", self.closed_error())
        elif self.engine.runtime.in_other_thread():
            self.engine.runtime.call_from_thread(self.spawn, coroutine)
        else:
            if self.tasks is None:
                self.tasks = Tasks(self)
            self.tasks.spawn(coroutine)

    def start_timer(self, seconds: float) -> None:
        """Limit the device's silence to *seconds* from now on."""
        runtime = self.engine.runtime
        if self.gone:
            return
        if not runtime.ticks:
            raise UnsupportedError("this host has no timers")
        if runtime.in_other_thread():
            runtime.call_from_thread(self.start_timer, seconds)
            return
        if self.silence is None:
            self.silence = Silence(self, self.calls)
        self.silence.start(seconds)

    def terminate(self) -> None:
        """Close when the queues are flushed."""
        if not self.engine.runtime.in_other_thread():
            self.end("terminated")
        elif not self.gone:
            self.engine.runtime.call_from_thread(self.terminate)

    def keep(self) -> None:
        """Stay connected in spite of an error."""
        if self.failures is None:
            raise RuntimeError("keep() has a meaning in on_error only")
        self.failures.keep()

    # --- turns

    def advance(self) -> None:
        """Take turns while nothing makes the connection wait; then see to its queues and its end."""
        if self.waits & RUNNING or self.state >= ENDED:
            return
        runtime = self.engine.runtime
        until = self.scheduler.slice_end()
        while self._take_turn():
            if runtime.time() >= until:
                break
        if self.state >= ENDED:
            return
        self.outbound.flush()
        if self.ending is not None:
            self.ending.close_when_flushed()
        if self.backlog or self.inbound.waiting:
            self.waits |= BACKLOG
            if not self.waits & BLOCKS:
                self.later()
        else:
            self.backlog = None
            self.waits &= ~BACKLOG
        if self.tracer is not None:
            unfinished = not self.gone and self.inbound.unfinished
            self.tracer.release(runtime, unfinished=unfinished)
        if self.inbound.paused:
            self._resume_reading()

    def _take_turn(self) -> bool:
        """Take the next turn, or the next few frames; return whether there was one."""
        if self.waits & FAILURES:
            self._make_failures().judge()
        self.outbound.flush()
        if self.waits & BLOCKS:
            return False
        self.waits &= ~BACKLOG
        inbound = self.inbound
        if self.waits & RESUMES:
            self.calls.resume_next()
        elif inbound.shut and (self.backlog or inbound.waiting):
            self._discard()
        elif inbound.frames is not None:
            frames = inbound.frames
            self.calls.run(islice(frames, BATCH), self.handler)
            if not length_hint(frames) and inbound.frames is frames:
                inbound.frames = None
        elif inbound.decoder.error is not None:
            inbound.framing_error(inbound.decoder.error)
        elif self.backlog:
            run, argument = self.backlog.popleft()
            run(argument)
        elif self.ending is None or not self.ending.run_terminated():
            return False
        return self.state < ENDED

    def _resume_reading(self) -> None:
        """Read again once little waits, unless something else is in the way."""
        little = self.inbound.size <= self.engine.limits.inbox // 2
        if little and self.state <= OPEN and not self.waits & CONGESTED:
            self.inbound.resume()

    def _discard(self) -> None:
        """Drop what was received and nobody will handle any more, and count it."""
        inbound, backlog = self.inbound, self.backlog or ()
        frames = inbound.discard()
        for run, argument in backlog:
            if run == inbound.take:
                self.drop("bytes", len(argument), "closing")
            elif self.deliveries is not None and run == self.deliveries.run:
                self.deliveries.waiting = 0
                self.drop("deliveries", len(argument), "closing")
        self.backlog = None
        self.drop("frames", frames, "closing")
        if self.tracer is not None:
            self.tracer.dropped("frames", frames)

    def route(self, frame: bytes) -> tuple[Handler | None, Any]:
        """Return the handler that takes *frame*, None if there is none for it, and the message that it holds."""
        message: Any = frame
        parse, routes = self.protocol.parse, self.protocol.router.routes
        if parse is not None:
            try:
                message = parse(frame)
            except Exception as error:  # noqa: BLE001 - a codec may raise anything
                self._unparsed(frame, error)
                return None, None
            except BaseException as error:  # noqa: BLE001 - as a handler may
                self.failed("codec", None, error)
                return None, None
        try:
            if self.requests is not None and self.requests.waiting and self.requests.offer(message):
                if self.tracer is not None:
                    self.tracer.show(events.Frame(frame, "request"))
                return None, None
            handler = routes.received(frame, message)
        except BaseException as error:  # noqa: BLE001 - the user's key= and match= are judged like handlers
            self.failed("key= or match=", None, error)
            return None, None
        if self.tracer is not None:
            self.tracer.show(events.Frame(frame, None if handler is None else handler.name))
        if handler is None:
            self._unhandled(message)
        return handler, message

    def _unparsed(self, frame: bytes, error: Exception) -> None:
        """Drop a *frame* that the codec can't parse."""
        if self.tracer is not None:
            self.tracer.show(events.Frame(frame, None))
        self.inbound.report([Bad(frame, f"the codec can't parse it: {error!r}")])

    def _unhandled(self, message: Any) -> None:
        self.counters["frames_unhandled"] += 1
        name = self.protocol.router.name
        shown = message[:64] if isinstance(message, bytes) else message
        self.engine.once(("received", name), "%s ! no on_received of %r takes %r", self, name, shown)

    def choose_path(self) -> None:
        """Handle frames on the spot, all by one handler, where nothing stands in the way."""
        asked = self.requests is not None and bool(self.requests.waiting)
        traced = self.tracer is not None
        self.handler = None if asked or traced else self.protocol.catch_all
        if self.state is OPENING or traced or self.inbound.datagram:
            self.waits |= INDIRECT
        else:
            self.waits &= ~INDIRECT

    # --- what the parts ask of the whole

    def later(self) -> None:
        """Advance after what runs now."""
        if not self.scheduled:
            self.scheduler.later(self)

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

    def lose(self, detail: str) -> None:
        """Give the device up, with all that waits for it."""
        if self.gone:
            return
        log.warning("%s ! lost: %s", self, detail)
        self.end("lost", detail)
        self.move_on(CLOSED)
        self.link.abort()

    def drop(self, what: str, count: int, why: str) -> None:
        """Count what is lost, in all and by its reason."""
        if count:
            self.counters[f"{what}_dropped"] += count
            self.engine.count(f"{what}_dropped.{why}", count)

    def failed(
        self, where: Handler | str | None, after: Callable[[], None] | None, error: BaseException
    ) -> None:
        """Have a handler's *error* judged; *after* is called in the end."""
        if self.state is ENDED:  # a thread, or a task that nobody could cancel
            name = where.name if isinstance(where, Handler) else where
            log.error("%s ! %s failed after the end: %r", self, name, error, exc_info=error)
            return
        self._make_failures().handler(where, after, error)

    def command_failed(self, command: object, outcome: Outcome[Any]) -> None:
        """Have the failure of *command* logged and judged."""
        if self.state is ENDED:
            log.debug("%s ! %s after the end", self, described(command))
            return
        self._make_failures().command(command, outcome)

    def refuse(self, command: object, error: CommandError) -> Outcome[Any]:
        """Return the outcome of a *command* that isn't carried out."""
        outcome = refused(error)
        self.command_failed(command, outcome)
        return outcome

    def track(self, outcome: Outcome[Any]) -> None:
        """Have *outcome* fail at the latest when the connection ends."""
        self._make_broker_queue().track(outcome)

    def closed_error(self) -> ClosedError:
        """Return what verbs raise now that the connection has ended."""
        return ClosedError(f"the connection is closed: {self.reason}")

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call *callback* when the connection, which is ending, has ended."""
        self._make_ending().when_ended(callback)

    def publish_will(self) -> None:
        """Publish the client's will, where the host doesn't."""
        will = None if self.registration is None else self.registration.will
        if will is not None and self.will_due and not self.engine.hub.keeps_wills:
            self.mount = ""  # which the will's topic has already
            self.issue(Publish(will.topic, will.payload, will.qos, will.retain))

    def let_go(self) -> None:
        """Have everybody forget the connection, which has ended."""
        self.drop("bytes", self.outbound.close(self.closed_error()), "unsent")  # replies to a device that left
        if self.tracer is not None:
            self.tracer.tap.release()
            self.tracer = None
        if self.registration is not None:
            self.registration.leave()
        self.engine.forget(self)
        # These point here; without the cycles all are freed at once.
        self.broker_queue = self.requests = self.registration = self.failures = self.deliveries = None
        self.ending = self.tasks = self.silence = self.ticks = self.backlog = None
        del self.conn, self.inbound, self.outbound, self.calls

    # --- the rest

    def _said_nothing(self) -> None:
        if self.state is OPENING:
            self.end("timeout", f"no frame within {self.engine.limits.first_frame:g} s")

    def _release(self, error: ClosedError) -> None:
        """Let nobody wait for what won't come any more, and end the connection's timers and tasks."""
        for timed in (self.silence, self.ticks, self.tasks):
            if timed is not None:
                timed.cancel()
        if self.registration is not None:
            self.registration.release()
        if self.requests is not None:
            self.requests.release(error)
        if self.broker_queue is not None:
            self.broker_queue.release(error)

    def _execute(self, command: Command) -> Outcome[Any]:
        """Carry *command* out, now."""
        if type(command) is Register:
            if self.registration is None:
                self.registration = Registration(self)
            return self.registration.register(command)
        if type(command) is Publish:
            self.counters["messages_published"] += 1
        if self.mount:
            command = mounted(command, self.mount)
        if self.tracer is not None:
            self.tracer.command(command)
        return self.engine.hub.execute(self, command)

    def _commands_done(self) -> None:
        """Take note that nothing is on its way to the broker any more."""
        if self.ending is not None:
            self.ending.idle()
            if not self.waits & RUNNING:
                self.later()

    def _make_broker_queue(self) -> BrokerQueue:
        if self.broker_queue is None:
            engine = self.engine
            self.broker_queue = BrokerQueue(
                self._execute,
                ordered=engine.hub.ordered,
                limit=engine.limits.commands,
                waiter=engine.runtime.waiter,
                failed=self.command_failed,
                idle=self._commands_done,
            )
        return self.broker_queue

    def _make_failures(self) -> Failures:
        if self.failures is None:
            self.failures = Failures(self, self.calls)
        return self.failures

    def _make_ending(self) -> Ending:
        if self.ending is None:
            self.ending = Ending(self, self.inbound, self.outbound, self.calls)
        return self.ending


Hub: TypeAlias = Broker[Channel]
"""The broker's side of all connections."""
