"""Channel: the engine's half of one connection, its turns and its two lanes."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Hashable, Iterator, Sequence
from functools import partial
from itertools import islice
from operator import length_hint
from typing import Any, TypeAlias

import attrs

from .. import tap as events
from ..commands import (
    DONE,
    Command,
    Fence,
    Outcome,
    Publish,
    Register,
    Subscribe,
    Unsubscribe,
    refused,
)
from ..connection import Connection
from ..errors import (
    ClosedError,
    CommandError,
    DeniedError,
    FramingError,
    UnavailableError,
    UnsupportedError,
)
from ..framing import FRAME_LIMIT, RAW, Bad, Decoder
from ..host import Timer
from ..models import ClientInfo, ConnectionInfo, Message, Reason
from ..router import Handler
from ..tap import Tap, Watcher
from ..topics import split_share
from .lane import BrokerLane
from .requests import Request, Requests
from .sides import Link, Served, Shared
from .timers import Silence, Ticks
from .turns import TURN, After, Failed, Turn
from .words import name_of, object_of, one_word, shown

__all__ = ["Channel"]

log = logging.getLogger("exproto_app")

KEEPALIVE_FACTOR = 1.5
"""A client is silent for too long after this many keepalives (MQTT 5, 3.1.2.10)."""

HOLD = 1.0
"""Seconds that bytes of no whole frame are held back from watchers, lest half a password shows."""

FRAMES = 64
"""Frames that are handled before what they sent is counted against the limit, and flushed."""

LEFT = frozenset({"device closed", "lost", "taken over", "kicked"})
"""Reasons with which the device can't have got what a handler sent it last."""

Event: TypeAlias = tuple[Callable[[Any], None], Any]


@attrs.frozen(eq=False)
class Owed:
    """A message whose broker wants to know when its handler has ended."""

    message: Message
    taken: Callable[[], object]


class Channel:
    """The engine's half of one connection. Drivers feed it; `Connection` issues its verbs to it."""

    __slots__ = (
        "asked",
        "bytes_received",
        "bytes_sent",
        "client",
        "close_called",
        "closing",
        "congestion",
        "conn",
        "counters",
        "datagram",
        "decoder",
        "deliveries",
        "detail",
        "draining",
        "dropped",
        "encode",
        "end_timer",
        "ended",
        "engine",
        "failures",
        "finishing",
        "first",
        "frames",
        "frames_received",
        "gone",
        "held",
        "id",
        "in_error",
        "keeping",
        "lane",
        "link",
        "mount",
        "only",
        "outbox",
        "outbox_bytes",
        "paused",
        "protocol",
        "queue",
        "queued",
        "quick",
        "raw",
        "reason",
        "registers",
        "requests",
        "resumes",
        "running",
        "scheduled",
        "sending",
        "sent",
        "silence",
        "since",
        "stall",
        "tap",
        "tasks",
        "ticks",
        "turn",
        "when_ended",
        "will",
        "writable",
        "write",
    )

    def __init__(  # noqa: PLR0915 - a connection's whole state, each in its group
        self, engine: Shared, link: Link, info: ConnectionInfo, protocol: Served, conn_id: str
    ) -> None:
        router = protocol.router
        self.engine = engine
        self.counters = engine.counters
        self.link = link
        self.protocol = protocol
        self.only = protocol.only
        self.quick: Handler | None = None  # takes frames that come alone, once the device has spoken
        self.write = link.write
        self.tap: Tap | None = None  # while somebody looks; then the three above are None
        self.id = conn_id
        self.conn: Connection[Any] = Connection(
            self, conn_id=conn_id, protocol=router.name, info=info, state=None
        )
        self.client: ClientInfo | None = None
        self.mount = ""

        # What was counted of this connection alone, for whoever asks; *since* is on the runtime's clock.
        self.since = engine.runtime.time()
        self.bytes_received = self.bytes_sent = self.frames_received = 0

        # Turns. *held*: something has to be looked at before the next frame may run; see `pump`.
        self.datagram = info.socktype in ("udp", "dtls")
        self.decoder = Decoder(router.framing)
        self.raw = router.framing is RAW
        self.frames: Iterator[bytes] | None = None
        self.queue: deque[Event] | None = None
        self.queued = 0
        self.deliveries = 0
        self.dropped = 0
        self.turn: Turn | None = None
        self.running = False
        self.held = False
        self.scheduled = False
        self.paused = False
        self.in_error = False
        self.keeping = False
        self.requests: Requests | None = None
        self.asked: Sequence[Request] = ()  # those without an answer
        self.resumes: deque[Callable[[], None]] | None = None
        self.tasks: set[Timer] | None = None

        # The device's lane.
        self.encode = protocol.encode
        self.outbox: list[bytes] = []
        self.outbox_bytes = 0
        self.writable = True
        self.sending: Outcome[None] | None = None
        self.sent: list[Outcome[None]] | None = None
        self.stall: Timer | None = None

        # The broker's lane; None until the first command.
        self.lane: BrokerLane | None = None
        self.congestion = False
        self.will: Message | None = None
        self.registers = 0
        self.failures: list[tuple[object, Outcome[Any]]] | None = None

        # The end.
        self.closing: Reason | None = None
        self.draining = False
        self.close_called = False
        self.gone = False
        self.finishing = False
        self.ended = False
        self.reason: Reason | None = None
        self.detail = ""
        self.end_timer: Timer | None = None
        self.when_ended: list[Callable[[], None]] | None = None

        # Time.
        self.first: Timer | None = None
        self.silence: Silence | None = None
        self.ticks: Ticks | None = None

    def __str__(self) -> str:
        """Name the connection as the log does: `ID/PROTOCOL`, then `/CLIENTID` once it is registered."""
        name = f"{self.id}/{self.protocol.router.name}"
        return name if self.client is None else f"{name}/{one_word(self.client.clientid)}"

    # --- what watchers see

    def watch(self, watcher: Watcher, *, late: bool = True) -> None:
        """Show *watcher* what happens here; with *late* it is told first what it has missed."""
        if self.ended:
            return
        if self.tap is None:
            self.tap = self.engine.new_tap(self.id, self.protocol.router.name)
            self._choose_paths()
        self.tap.add(watcher, events.Opened(self.conn.info, late=True, client=self.client) if late else None)

    def take_tap(self, tap: Tap) -> None:
        """Go on with the *tap* that has shown what came before the protocol was known."""
        tap.protocol = self.protocol.router.name
        self.tap = tap
        self._choose_paths()

    def unwatch(self, watcher: Watcher) -> None:
        """Show *watcher* nothing more; without any, the quick paths are taken again."""
        if self.tap is None:
            return
        self.tap.remove(watcher)
        if not self.tap.watchers:
            self.tap = None
            self._choose_paths()

    def _choose_paths(self) -> None:
        """Take the quick paths where nobody looks."""
        if self.tap is not None:
            self.only = self.quick = self.write = None
            return
        self.only, self.write = self.protocol.only, self.link.write
        self.quick = self.only if self.first is None and not self.datagram else None

    def _show(self, event: events.Event) -> None:
        """Show *event*, after the turn that it belongs to as long as that may tell a password."""
        if self.tap is not None:
            in_turn = self.running or self.turn is not None or self.registers > 0
            self.tap.show(event, hold=in_turn and self.client is None)

    def _show_received(self, tap: Tap, data: bytes) -> None:
        tap.show(events.Received(data), hold=self.client is None or tap.has_secrets)

    def _show_held(self, tap: Tap) -> None:
        """Show what was held back, unless more of the turn or of the frame is to come."""
        if self.client is None and (self.turn is not None or self.registers):
            return
        runtime = self.engine.runtime
        unfinished = not self.gone and (self.queued or self.frames is not None or self.decoder.buffered)
        if unfinished and runtime.ticks and (self.client is None or tap.has_secrets):
            tap.release_later(runtime.call_later, HOLD)
        else:
            tap.release()

    def _show_frame(self, frame: bytes, handler: Handler | None) -> None:
        self._show(events.Frame(frame, None if handler is None else handler.name))

    def _show_delivered(self, messages: Sequence[Message]) -> None:
        more = len(messages)
        for message in messages:
            more -= 1
            handler = self.protocol.router.routes.deliver(message.topic.removeprefix(self.mount))
            self._show(events.Delivered(message, None if handler is None else handler.name, more))

    def _show_dropped(self, what: str, count: int) -> None:
        if count:
            self._show(events.Dropped(what, count))

    def _show_command(self, command: Command) -> None:
        match command:
            case Publish(topic, payload, qos, retain):
                self._show(events.Published(Message(topic, payload, qos, retain)))
            case Subscribe(topic, qos):
                self._show(events.Subscribed(topic, qos))
            case Unsubscribe(topic):
                self._show(events.Unsubscribed(topic))

    # --- events, from the driver

    def begin(self, *, resumed: bool, sniffed: bytes | None = None) -> None:
        """Run `on_connect`, the first turn; *sniffed* comes behind, which is shown and counted already."""
        if self.tap is not None and sniffed is None:
            self._show(events.Opened(self.conn.info, resumed))
        runtime, routes = self.engine.runtime, self.protocol.router.routes
        self.first = runtime.call_later(self.engine.limits.first_frame, self._said_nothing)
        if self.datagram:
            self._listen(self.engine.limits.datagram_idle)
        if routes.ticks:
            seconds = [seconds for seconds, _ in routes.ticks]
            self.ticks = Ticks(runtime, seconds, run=self._due, skipped=self._skipped_tick)
        make_state = self.protocol.router.state
        try:
            if make_state is not None:
                self.conn.state = make_state()
        except Exception as error:  # noqa: BLE001 - the user's state= is judged like a handler
            self._failed("state=", None, error)
        else:
            if routes.connect is not None and not resumed:
                self._run(routes.connect, (self.conn,))
        if sniffed is not None:
            self._enqueue_taken(sniffed)
        self.pump()

    def received(self, data: bytes) -> None:
        """Take *data*, as it came from the device; on a datagram socket, one datagram."""
        size = len(data)
        self.counters["bytes_received"] += size
        self.bytes_received += size
        if self.silence is not None:
            self.silence.heard = self.engine.runtime.time()
        if self.held or self.running:
            self._enqueue_data(data)
            return
        handler = self.quick
        if handler is None or self.asked:
            if self.tap is None:
                self._take(data)
            else:
                self._show_received(self.tap, data)
                self._take(data)
                self.held = True  # so that `pump` shows what was held back
        elif self.raw and 0 < size <= FRAME_LIMIT:
            self._run_frame(data, handler)
        else:
            decoder = self.decoder
            frames = decoder.feed(data)
            if len(frames) == 1 and decoder.error is None and decoder.bad is None:
                self._run_frame(frames[0], handler)
            else:
                self._take_frames(frames)
        if self.held:
            self.pump()
        elif self.outbox:
            self._flush()

    def delivered(self, messages: Sequence[Message], taken: Callable[[], object] | None = None) -> None:
        """Take *messages* that the broker has for the device.

        With *taken* none is dropped for want of room: the broker sends no more of those before it is called,
        when the turn of the last one has ended. It isn't if the connection ends before.
        """
        ends = self.gone or self.closing is not None
        room = self.engine.limits.deliveries - self.deliveries if taken is None else len(messages)
        if ends:
            room = 0
        if len(messages) > room:
            dropped = len(messages) - room
            self._dropped("deliveries", dropped, "closing" if ends else "queue_full")
            self._show_dropped("messages", dropped)
            before, self.dropped = self.dropped, self.dropped + dropped
            if before.bit_length() != self.dropped.bit_length():  # a flood of messages is none of lines
                log.warning("%s ! %d messages dropped: %s", self, self.dropped, self._why_no_room())
            messages = messages[:room]
        if not messages:
            return
        if self.tap is not None:
            self._show_delivered(messages)
        if self.mount:
            messages = [self._unmounted(message) for message in messages]
        self.counters["messages_delivered"] += len(messages)
        self.deliveries += len(messages)
        waiting: Sequence[Message | Owed] = messages
        if taken is not None:
            waiting = (*messages[:-1], Owed(messages[-1], taken))
        if self.queue and self.queue[-1][0] == self._run_messages:
            self.queue[-1][1].extend(waiting)
        else:
            self._enqueue(self._run_messages, deque(waiting))
            self._later()

    def unwritable(self) -> None:
        """Stop sending: the device reads too slowly. Turns wait."""
        self.writable = False
        self.held = True
        if self.stall is None and not self.gone:
            self.stall = self.engine.runtime.call_later(self.engine.limits.stall, self._stalled)

    def drained(self) -> None:
        """Send again."""
        self.writable = True
        if self.stall is not None:
            self.stall.cancel()
            self.stall = None
        self._settle_sent()
        self.pump()

    def congested(self) -> None:
        """Hold turns and reading: the queue of what this device publishes is full."""
        if self.congestion or self.gone:
            return
        self.congestion = self.held = True
        if not self.paused:
            self.paused = True
            self.link.pause()

    def relieved(self) -> None:
        """Go on: there is room in that queue again."""
        if self.congestion:
            self.congestion = False
            self._later()

    def terminated(self, reason: Reason = "device closed", detail: str = "") -> None:
        """Take the end of the connection; what it received before is still handled."""
        if self.gone:
            return
        self.gone = self.held = True
        if self.closing is None:
            self.reason, self.detail = reason, detail
        elif not self.detail:
            self.detail = detail
        self._cancel_timers()
        unsent = self.outbox_bytes
        if self.tap is not None:
            self._show_dropped("bytes", unsent)
            self._show(events.Closed(self.reason or reason, self.detail))
        if unsent:
            self._dropped("bytes", unsent, "unsent")
        self.outbox.clear()
        self.outbox_bytes, self.writable, self.congestion = 0, True, False
        left = self.decoder.buffered
        log.debug(
            "%s = closed: %s %s (%d bytes unsent, %d in no frame)",
            self,
            self.reason,
            self.detail,
            unsent,
            left,
        )
        self._release(ClosedError(f"the connection is closed: {self.reason}"))
        if self.turn is not None:
            self._set_deadline(self.turn)
        self._enqueue(self._run_end, None)
        self.pump()

    def end(self, reason: Reason, detail: str = "", *, drain: bool = False) -> None:
        """Close for *reason* when the lanes are flushed; with *drain*, when all input is handled too."""
        if self.gone or self.closing is not None:
            return
        self.closing = self.reason = reason
        self.detail = detail
        self.draining = drain
        self.held = True
        if drain and not self.paused:
            self.paused = True
            self.link.pause()
        self.end_timer = self.engine.runtime.call_later(self.engine.limits.end_timeout, self._end_now)
        self._later()

    # --- verbs, from the Connection

    @property
    def builds(self) -> bool:
        """Whether a codec makes frames of what is sent."""
        return self.protocol.builds

    def send(self, data: Any, *, raw: bool) -> Outcome[None]:
        """Put *data* into the device's lane."""
        if not raw:
            data = self.encode(data)
        if self.gone:
            return self._refused("send", self._closed())
        if self.engine.runtime.elsewhere():
            return self.engine.from_thread(partial(self.send, data, raw=True))
        self.outbox.append(data)
        self.outbox_bytes += len(data)
        if not self.running:
            self._later()
        limits = self.engine.limits
        if self.outbox_bytes > limits.outbox:
            self.held = True
            if self.outbox_bytes > limits.outbox_max:
                self._flush()
                if self.outbox_bytes > limits.outbox_max:
                    self._lost(
                        f"it doesn't read: {self.outbox_bytes} bytes wait, limit is {limits.outbox_max}"
                    )
                    return self._refused("send", self._closed())
        elif self.writable and not self.link.answers:
            fence = self.link.fence
            return DONE if fence is None else Fence(partial(self._fenced, fence), None)
        outcome: Outcome[None] = Outcome(self.engine.runtime.waiter)
        if self.sent is None:
            self.sent = []
        self.sent.append(outcome)
        self._later()
        return outcome

    def issue(self, command: Command) -> Outcome[Any]:
        """Put *command* into the broker's lane."""
        if self.gone and (self.ended or type(command) is not Publish):
            return self._refused(command, self._closed())
        if self.engine.runtime.elsewhere():
            return self.engine.from_thread(partial(self.issue, command))
        if self.tap is not None and type(command) is Register:
            self.tap.keep_secret(command.password, command.client)
        return self._lane().issue(command)

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
            frame = self.encode(frame)
        if self.gone:
            return self._refused("request", self._closed())
        if self.engine.runtime.elsewhere():
            ask = partial(self.request, match=match, timeout=timeout, retries=retries, key=key, raw=True)
            return self.engine.from_thread(partial(ask, frame))
        limit = self.engine.limits.requests
        if len(self.asked) >= limit:
            return self._refused(
                "request", UnavailableError(f"{limit} requests wait already, that is the limit")
            )
        runtime = self.engine.runtime
        if self.requests is None:
            self.requests = Requests(
                self,
                send=partial(self.send, raw=True),
                go_on=self._go_on,
                call_later=runtime.call_later,
                counters=self.counters,
                unawaited=partial(self._refused, "request"),
            )
            self.asked = self.requests.waiting
        request = Request(self, runtime.waiter, frame, match=match, timeout=timeout, retries=retries, key=key)
        self.requests.add(request)
        return request

    def spawn(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run *coroutine* until the connection ends."""
        if self.gone:
            coroutine.close()
            self._refused("spawn", self._closed())
            return
        if self.engine.runtime.elsewhere():
            self.engine.runtime.call_from_thread(self.spawn, coroutine)
            return
        if self.tasks is None:
            self.tasks = set()
        limit = self.engine.limits.tasks
        if len(self.tasks) >= limit:
            coroutine.close()
            raise UnavailableError(f"{limit} tasks run for this connection already, that is the limit")
        token = TURN.set(None)
        try:
            task = self.engine.runtime.run_task(
                coroutine, lambda _, error: self._spawned(task, coroutine, error)
            )
        finally:
            TURN.reset(token)
        self.tasks.add(task)

    def start_timer(self, seconds: float) -> None:
        """Limit the device's silence to *seconds* from now on."""
        runtime = self.engine.runtime
        if self.gone:
            return
        if not runtime.ticks:
            raise UnsupportedError("this host has no timers")
        if runtime.elsewhere():
            runtime.call_from_thread(self.start_timer, seconds)
            return
        self._listen().start(seconds)

    def terminate(self) -> None:
        """Close when the lanes are flushed."""
        if self.engine.runtime.elsewhere():
            if not self.gone:
                self.engine.runtime.call_from_thread(self.terminate)
        else:
            self.end("terminated")

    def keep(self) -> None:
        """Stay connected in spite of an error."""
        if not self.in_error:
            raise RuntimeError("keep() has a meaning in on_error only")
        self.keeping = True

    # --- turns

    def pump(self) -> None:  # noqa: C901, PLR0912 - what may come next, in its order, stands in one place
        """Run turns while nothing holds the connection; then see to its lanes and its end."""
        if self.running or self.ended:
            return
        limits = self.engine.limits
        while self.turn is None:
            if self.failures:
                self._judge()
            if self.outbox:
                self._flush()
            if (
                self.registers
                or (self.congestion and self.closing is None)
                or not self.writable
                or self.outbox_bytes > limits.outbox
            ):
                break
            if self.resumes:
                self.resumes.popleft()()
            elif self.closing is not None and not self.draining and not self.gone:
                self._discard()
                break
            elif self.frames is not None:
                self._run_frames()
            elif self.decoder.error is not None:
                self._framing_error(self.decoder.error)
            elif self.queue:
                run, argument = self.queue.popleft()
                run(argument)
            else:
                self.queue = None
                break
        if self.ended:
            return
        if self.outbox:
            self._flush()
        self._see_to_end()
        self.held = bool(
            self.turn is not None
            or self.queue
            or self.frames is not None
            or self.registers
            or self.congestion
            or not self.writable
            or self.outbox_bytes > limits.outbox
            or self.gone
            or self.closing is not None
        )
        if self.tap is not None:
            self._show_held(self.tap)
        if self.paused and self.queued <= limits.inbox // 2 and not self.held_back:
            self.paused = False
            self.link.resume()

    @property
    def held_back(self) -> bool:
        """Whether reading stays paused however little waits to be handled."""
        return self.congestion or self.gone or self.closing is not None

    def _later(self) -> None:
        if not self.scheduled:
            self.scheduled = True
            self.engine.later(self)

    def _enqueue(self, run: Callable[[Any], None], argument: Any) -> None:
        if self.queue is None:
            self.queue = deque()
        self.queue.append((run, argument))
        self.held = True

    def _enqueue_data(self, data: bytes) -> None:
        limit = self.engine.limits.inbox
        if self.gone or (self.datagram and self.queued > limit):
            self._dropped("bytes", len(data), "closing" if self.gone else "queue_full")
            self._show_dropped("bytes", len(data))
            log.warning("%s ! %d bytes dropped: %d wait, limit is %d", self, len(data), self.queued, limit)
            return
        if self.tap is not None:
            self._show_received(self.tap, data)
        self._enqueue_taken(data)
        if not self.running:
            self._later()

    def _enqueue_taken(self, data: bytes) -> None:
        self._enqueue(self._take_queued, data)
        self.queued += len(data)
        if self.queued > self.engine.limits.inbox and not self.paused:
            self.paused = True
            self.link.pause()

    def _take_queued(self, data: bytes) -> None:
        self.queued -= len(data)
        self._take(data)

    def _take(self, data: bytes) -> None:
        frames = self._cut_datagram(data) if self.datagram else self.decoder.feed(data)
        if frames and self.first is not None:
            self._speaks()
        self._take_frames(frames)

    def _take_frames(self, frames: list[bytes]) -> None:
        decoder = self.decoder
        if decoder.error is not None:
            self.held = True
        if decoder.bad is not None:
            self._tell_bad(decoder.take_bad())
        if frames:
            self.counters["frames_received"] += len(frames)
            self.frames_received += len(frames)
            self.frames = iter(frames)
            self._run_frames()

    def _tell_bad(self, bad: list[Bad]) -> None:
        """Log and count what the framing dropped, or the codec couldn't parse."""
        frames = sum(item.frame for item in bad)
        skipped = sum(len(item.data) for item in bad if not item.frame)
        self.counters["frames_bad"] += frames
        self.counters["bytes_skipped"] += skipped
        if self.tap is not None:
            for item in bad:
                self._show(events.Failed("framing", FramingError(f"{item.reason}: {shown(item.data)}")))
        text = "%s ! %d bad frames dropped, %d bytes skipped: %s: %s"
        log.warning(text, self, frames, skipped, bad[0].reason, shown(bad[0].data))

    def _cut_datagram(self, data: bytes) -> list[bytes]:
        """Return the frames of a datagram, none if any of it is wrong: each datagram starts clean."""
        decoder = self.decoder
        frames = decoder.feed(data)
        if decoder.error is None:
            frames = [*frames, *decoder.finish()]
        if decoder.error is None:
            return frames
        self._dropped("datagrams", 1, "framing")
        if self.tap is not None:
            self._show(events.Failed("framing", decoder.error))
        log.warning("%s ! datagram of %d bytes dropped: %s", self, len(data), decoder.error)
        self.decoder = Decoder(self.protocol.router.framing)
        return []

    def _run_frame(self, frame: bytes, handler: Handler) -> None:
        """Run the turn of a frame that came alone: the hot path of devices that wait for their answers."""
        self.counters["frames_received"] += 1
        self.frames_received += 1
        outbox, data = self.outbox, None
        self.running = True
        try:
            reply = handler.call(self.conn, frame)
            if type(reply) is bytes:
                data = self.encode(reply)
            elif reply is not None:
                self._reply(reply, handler, None, None)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises is judged by on_error
            self._failed(handler, None, error)
        self.running = False
        if data is not None:
            if self.write is not None and not outbox and not self.held:
                size = len(data)
                self.counters["bytes_sent"] += size
                self.bytes_sent += size
                self.write(data)
                return
            outbox.append(data)
        if outbox:
            self.outbox_bytes = sum(map(len, outbox))

    def _run_frames(self) -> None:  # noqa: C901, PLR0912 - the hot path is flat
        """Run the turns of the frames at hand until something holds the connection: the hot path."""
        conn, encode, only, parse = self.conn, self.encode, self.only, self.protocol.parse
        append = self.outbox.append
        handler = only
        if self.frames is None:
            return
        self.running = True
        try:
            for frame in islice(self.frames, FRAMES):
                try:
                    message = frame
                    if parse is not None:
                        try:
                            message = parse(frame)
                        except Exception as error:  # noqa: BLE001 - a codec may raise anything
                            self._unparsed(frame, error)
                            continue
                    if self.asked and self._offer(frame, message):
                        if self.held:
                            break  # whoever asked goes on before the next frame
                        continue
                    if only is None:
                        handler = self.protocol.router.routes.received(frame, message)
                        if self.tap is not None:
                            self._show_frame(frame, handler)
                        if handler is None or handler.blocking:
                            self._run_special(handler, message)
                            if self.held:
                                break
                            continue
                    reply = handler.call(conn, message)  # type: ignore[union-attr] # *only* or just found
                    if type(reply) is bytes:
                        append(encode(reply))
                    elif reply is not None:
                        self._reply(reply, handler, None, None)
                except (KeyboardInterrupt, SystemExit):
                    raise
                except BaseException as error:  # noqa: BLE001 - whatever a handler raises is judged by on_error
                    self._failed(handler or "key= or match=", None, error)
                if self.held:
                    break
        finally:
            self.running = False
            self.outbox_bytes = sum(map(len, self.outbox))
        if not length_hint(self.frames):
            self.frames = None
        else:
            self.held = True

    def _unparsed(self, frame: bytes, error: Exception) -> None:
        """Drop a *frame* that the codec can't parse."""
        if self.tap is not None:
            self._show_frame(frame, None)
        self._tell_bad([Bad(frame, f"the codec can't parse it: {error!r}")])

    def _run_special(self, handler: Handler | None, message: Any) -> None:
        if handler is not None:
            self._start_thread(handler, (self.conn, message), None, None)
            return
        self.counters["frames_unhandled"] += 1
        name = self.protocol.router.name
        shown = message[:64] if isinstance(message, bytes) else message
        self.engine.once(("received", name), "%s ! no on_received of %r takes %r", self, name, shown)

    def _run(
        self,
        handler: Handler,
        arguments: tuple[Any, ...],
        after: After | None = None,
        failed: Failed | None = None,
    ) -> None:
        """Run one turn: *handler*, then *after*, which is called in any case."""
        if handler.blocking:
            self._start_thread(handler, arguments, after, failed)
            return
        was_running, self.running = self.running, True
        try:
            reply = handler.call(*arguments)
            if reply is not None and not self._reply(reply, handler, after, failed):
                return
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises is judged by on_error
            if failed is None:
                self._failed(handler, after, error)
            else:
                failed(error)
            return
        finally:
            self.running = was_running
        if after is not None:
            after()

    def _reply(
        self, reply: object, handler: Handler | None, after: After | None, failed: Failed | None
    ) -> bool:
        """Take what *handler* gave; return whether its turn has ended with that."""
        if reply is None:
            return True
        if isinstance(reply, bytes) or (self.protocol.builds and not hasattr(reply, "__await__")):
            data = self.encode(reply)
            self.outbox.append(data)
            self.outbox_bytes += len(data)
            return True
        if hasattr(reply, "__await__") and handler is not None:
            self._start(reply, handler, after, failed)
            return False
        name = "the handler" if handler is None else handler.name
        hint = "; encode it first" if isinstance(reply, str) else ""
        raise TypeError(f"{name} returned {type(reply).__name__}, not bytes or None{hint}")

    def _new_turn(self, handler: Handler, after: After | None, failed: Failed | None) -> Turn:
        turn = Turn(self, handler, after, failed or partial(self._failed, handler, after))
        self.turn = turn
        self.held = True
        return turn

    def _start(self, awaitable: object, handler: Handler, after: After | None, failed: Failed | None) -> None:
        turn = self._new_turn(handler, after, failed)
        token = TURN.set(turn)
        try:
            task = self.engine.runtime.run_task(awaitable, partial(self._finished, turn), now=True)
        finally:
            TURN.reset(token)
        if not turn.ended:
            turn.task = task
            if not turn.parked:
                self._set_deadline(turn)

    def _start_thread(
        self, handler: Handler, arguments: tuple[Any, ...], after: After | None, failed: Failed | None
    ) -> None:
        turn = self._new_turn(handler, after, failed)
        call = partial(handler.call, *arguments)
        turn.task = self.engine.runtime.run_thread(call, partial(self._finished, turn))
        self._set_deadline(turn)

    def _set_deadline(self, turn: Turn) -> None:
        limits = self.engine.limits
        seconds = limits.handler_timeout
        if self.gone or self.closing is not None:
            seconds = min(seconds, limits.end_timeout)
        if turn.deadline is not None:
            turn.deadline.cancel()
        turn.deadline = self.engine.runtime.call_later(seconds, self._late, turn, seconds)

    def _late(self, turn: Turn, seconds: float) -> None:
        """End a handler that takes too long; the second time, go on without it."""
        if turn.ended:
            return
        if turn.error is not None:
            log.error("%s ! %s goes on although it was cancelled", self, turn.handler.name)
            self._finished(turn, None, turn.error)
            return
        turn.error = TimeoutError(f"{turn.handler.name} ran longer than {seconds:g} s")
        turn.deadline = self.engine.runtime.call_later(
            self.engine.limits.end_timeout, self._late, turn, seconds
        )
        if turn.task is not None:
            turn.task.cancel()

    def _finished(self, turn: Turn, reply: object, error: BaseException | None) -> None:
        """Take the end of a turn that needed longer."""
        if turn.ended:
            return
        turn.ended = True
        if turn.deadline is not None:
            turn.deadline.cancel()
        # Both know the context that they were made in, where the turn before may be, which would know the one
        # before that: no turn of a busy connection would ever be freed.
        turn.deadline = turn.task = None
        if self.turn is turn:
            self.turn = None
        if turn.error is not None:
            error = turn.error
        was_running, self.running = self.running, True
        try:
            if error is None:
                try:
                    # A coroutine's result is never awaited a second time.
                    self._reply(reply, None if hasattr(reply, "__await__") else turn.handler, None, None)
                except Exception as wrong:  # noqa: BLE001 - a reply that can't be sent is the handler's error
                    error = wrong
            if error is not None:
                turn.failed(error)
            elif turn.after is not None:
                turn.after()
        finally:
            self.running = was_running
        self.pump()

    def _run_messages(self, messages: deque[Message | Owed]) -> None:
        routes = self.protocol.router.routes
        takers: list[Callable[[], object]] = []
        first = _owed(messages.popleft(), takers)
        handler = routes.deliver(first.topic)
        argument: Any = first
        if handler is not None and handler.batch:
            argument = [first]
            while messages and routes.deliver(_topic(messages[0])) is handler:
                argument.append(_owed(messages.popleft(), takers))
            self.deliveries -= len(argument) - 1
        self.deliveries -= 1
        if messages and self.queue is not None:
            self.queue.appendleft((self._run_messages, messages))
        if handler is None:
            self.counters["messages_unhandled"] += 1
            name = self.protocol.router.name
            text = "%s ! no on_deliver of %r takes %r"
            self.engine.once(("deliver", name), text, self, name, first.topic)
            self._taken(takers)
        elif takers:
            self._run(handler, (self.conn, argument), partial(self._taken, takers))
        else:
            self._run(handler, (self.conn, argument))

    def _taken(self, takers: list[Callable[[], object]]) -> None:
        """Tell the broker that its messages are handled, unless the device left in the middle of it."""
        if not self.gone and self.reason not in LEFT:
            for taken in takers:
                taken()

    # --- failures

    def _failed(self, where: Handler | str | None, after: After | None, error: BaseException) -> None:
        """Judge a handler's *error*: the router's on_error, then the app's, else the connection ends."""
        name = where.name if isinstance(where, Handler) else where
        if self.gone and isinstance(error, ClosedError):
            log.debug("%s ! %s ended with the connection", self, name)
            if after is not None:
                after()
            return
        self.counters["handler_errors"] += 1
        if self.tap is not None:
            self._show(events.Failed(name or "framing", error))
        if self.engine.when_failed is not None and where is not None:
            self.engine.when_failed(error)
        self._ask_on_error(self.protocol.errors, name, error, after)

    def _ask_on_error(
        self, handlers: tuple[Handler, ...], name: str | None, error: BaseException, after: After | None
    ) -> None:
        if not handlers:
            if isinstance(error, FramingError):
                log.warning("%s ! %s", self, error)
            else:
                log.error("%s ! %s failed: %r", self, name, error, exc_info=error)
            self.end("error", str(error) or repr(error))
            if after is not None:
                after()
            return
        log.info("%s ! %s failed: %r", self, name or "framing", error)
        handler, *others = handlers
        self.in_error, self.keeping = True, False

        def judged() -> None:
            self.in_error = False
            if not self.keeping:
                self.end("error", str(error) or repr(error))
            if after is not None:
                after()

        def failed(another: BaseException) -> None:
            self.in_error = False
            if self.tap is not None:
                self._show(events.Failed(handler.name, another))
            log.error("%s ! %s failed: %r", self, handler.name, another, exc_info=another)
            self._ask_on_error(tuple(others), name, error, after)

        self._run(handler, (self.conn, error), judged, failed)

    def _framing_error(self, error: FramingError) -> None:
        self.frames = None
        left = self.decoder.buffered

        def after() -> None:
            dropped = self.decoder.recover()
            self._dropped("bytes", dropped, "framing")
            if self.closing is None and not self.gone:
                log.info("%s ! %d of %d bytes skipped after a framing error", self, dropped, left)
                self._take(b"")  # what stands behind the error has come already

        self._failed(None, after, error)

    # --- timers

    def _speaks(self) -> None:
        """Take note that the device says something useful."""
        if self.first is not None:
            self.first.cancel()
            self.first = None
            self._choose_paths()

    def _said_nothing(self) -> None:
        self.first = None
        self.end("timeout", f"no frame within {self.engine.limits.first_frame:g} s")

    def _listen(self, idle: float = 0.0) -> Silence:
        if self.silence is None:
            self.silence = Silence(
                self.engine.runtime, idle, deaf=lambda: self.congestion, over=self._silent, gone=self.end
            )
        return self.silence

    def _silent(self, silence: Silence, seconds: float) -> None:
        self._enqueue(partial(self._run_timeout, silence), seconds)
        self._later()

    def _run_timeout(self, silence: Silence, seconds: float) -> None:
        timers = silence.timers

        def after() -> None:
            if silence.timers == timers:
                self.end("timeout", f"silent for {seconds:g} s")

        handler = self.protocol.router.routes.timeout
        if handler is None:
            after()
        else:
            self._run(handler, (self.conn,), after)

    def _due(self, number: int) -> None:
        self._enqueue(self._run_tick, number)
        self._later()

    def _skipped_tick(self) -> None:
        self.counters["ticks_skipped"] += 1

    def _run_tick(self, number: int) -> None:
        _, handler = self.protocol.router.routes.ticks[number]
        self._run(handler, (self.conn,), None if self.ticks is None else partial(self.ticks.ended, number))

    # --- requests

    def park(self, turn: Turn) -> None:
        """Give *turn* up: its handler awaits an answer, which has to come in a turn of its own."""
        turn.parked += 1
        if self.turn is turn:
            self.turn = None
            if turn.deadline is not None:
                turn.deadline.cancel()
                turn.deadline = None
            self._later()

    def regain(self, turn: Turn) -> Generator[Any, None, None]:
        """Wait for the next free turn, after a wait for an answer that was cancelled."""
        waiter = self.engine.runtime.waiter()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        self._go_on(turn, wake)
        yield from waiter.__await__()

    def withdraw(self, request: Request) -> bool:
        """Forget *request*, for which nobody waits any more; return False if it has its answer already."""
        return self.requests is not None and self.requests.withdraw(request)

    def _offer(self, frame: bytes, message: Any) -> bool:
        """Offer *message*, the *frame* itself without a codec, to the requests; tell whether one took it."""
        taken = self.requests is not None and self.requests.offer(message)
        if taken and self.tap is not None:
            self._show(events.Frame(frame, "request"))
        return taken

    def _go_on(self, turn: Turn | None, wake: Callable[[], None]) -> None:
        """Have a parked handler go on with *wake*, in the next free turn."""
        if turn is None or turn.ended:
            wake()
            return

        def resume() -> None:
            turn.parked -= 1
            # While it awaits other answers too, the turn stays free for the frames that bring them.
            if turn.parked == 0 and not turn.ended:
                self.turn = turn
                self._set_deadline(turn)
            wake()

        if self.resumes is None:
            self.resumes = deque()
        self.resumes.append(resume)
        self.held = True
        self._later()

    # --- the broker's lane

    def _lane(self) -> BrokerLane:
        if self.lane is None:
            shared = self.engine
            self.lane = BrokerLane(
                self._execute,
                ordered=shared.hub.ordered,
                limit=shared.limits.commands,
                waiter=shared.runtime.waiter,
                failed=self._blame,
                idle=self._lane_idle,
            )
        return self.lane

    def _lane_idle(self) -> None:
        if self.finishing:
            self._finish_now()
        elif self.closing is not None and not self.running:
            self._later()

    def _execute(self, command: Command) -> Outcome[Any]:
        """Carry *command* out, now."""
        if type(command) is Register:
            return self._register(command)
        if type(command) is Publish:
            self.counters["messages_published"] += 1
        if self.mount:
            command = self._mounted(command)
        if self.tap is not None:
            self._show_command(command)
        return self.engine.hub.execute(self, command)

    def _register(self, command: Register) -> Outcome[None]:
        if self.client is not None:
            if attrs.evolve(command.client, keepalive=self.client.keepalive) == self.client:
                return DONE
            return refused(DeniedError(f"the connection is registered already, as {self.client.clientid!r}"))
        outcome: Outcome[None] = Outcome(self.engine.runtime.waiter)
        self.registers += 1
        self.held = True
        hub = self.engine.hub
        if command.session_expiry and not hub.keeps_sessions:
            text = "%s ! session_expiry is ignored: this host keeps no sessions of clients that have gone"
            self.engine.once("session_expiry", text, self)
        mount = command.client.mountpoint
        if command.will is not None and mount:
            command.will = attrs.evolve(command.will, topic=mount + command.will.topic)
        hub.execute(self, command).when_done(partial(self._registered, command, outcome))
        return outcome

    def _registered(self, command: Register, outcome: Outcome[None], result: Outcome[None]) -> None:
        """Take the host's answer to a register; an older connection of that client has to end first."""
        if self.gone:
            outcome.fail(self._closed())
            return
        if result.error is not None:
            self._register_done(outcome, result.error)
            return
        shared, client = self.engine, command.client
        older = shared.clients.get(client.clientid)
        self.client, self.mount, self.will = client, client.mountpoint, command.will
        shared.clients[client.clientid] = self
        shared.app.clients[client.clientid] = self.conn
        self.protocol.router.live[client.clientid] = self.conn
        if self.tap is not None:
            self._show(events.Registered(client))
        self._speaks()
        if client.keepalive and not shared.runtime.ticks:
            shared.once("keepalive", "%s ! keepalive is ignored: this host has no timers", self)
        elif client.keepalive:
            self.start_timer(KEEPALIVE_FACTOR * client.keepalive)
        log.debug("%s = registered %r", self, client.clientid)
        if older is None or older.ended:
            self._register_done(outcome, None)
            return

        def go_on() -> None:
            bound.cancel()
            self._register_done(outcome, None)

        bound = shared.runtime.call_later(2 * shared.limits.end_timeout, go_on)
        older.end("taken over", f"{client.clientid} is connected anew, as {self.id}")
        if older.when_ended is None:
            older.when_ended = []
        older.when_ended.append(go_on)

    def _register_done(self, outcome: Outcome[None], error: CommandError | None) -> None:
        if outcome.done:
            return
        if not self.gone:
            self.registers -= 1
        if error is None:
            outcome.settle(None)
        else:
            outcome.fail(error)
        if not self.running:
            self._later()

    def _mounted(self, command: Command) -> Command:
        match command:
            case Publish(topic, payload, qos, retain):
                return Publish(self.mount + topic, payload, qos, retain)
            case Subscribe(topic, qos):
                return Subscribe(self._mounted_filter(topic), qos)
            case Unsubscribe(topic):
                return Unsubscribe(self._mounted_filter(topic))
        return command

    def _mounted_filter(self, topic: str) -> str:
        group, plain = split_share(topic)
        return f"$share/{group}/{self.mount}{plain}" if group else self.mount + plain

    def _unmounted(self, message: Message) -> Message:
        topic = message.topic.removeprefix(self.mount)
        return attrs.evolve(message, topic=topic)

    # --- outcomes

    def _refused(self, command: object, error: CommandError) -> Outcome[Any]:
        outcome = refused(error)
        if isinstance(error, ClosedError):
            log.debug("%s ! %s after the end", self, name_of(command))
        else:
            self._blame(command, outcome)
        return outcome

    def _blame(self, command: object, outcome: Outcome[Any]) -> None:
        """Have a failure judged, once its issuer has had the chance to await it."""
        if self.tap is not None and outcome.error is not None and not isinstance(outcome.error, ClosedError):
            self._show(events.Refused(name_of(command), object_of(command), outcome.error))
        if self.running or self.turn is not None:
            if self.failures is None:
                self.failures = []
            self.failures.append((command, outcome))
            self.held = True
        else:
            self.engine.runtime.call_soon(self._judge_one, command, outcome)

    def _judge(self) -> None:
        failures, self.failures = self.failures, None
        for command, outcome in failures or ():
            self._judge_one(command, outcome)

    def _judge_one(self, command: object, outcome: Outcome[Any]) -> None:
        """Log and count a failure that nobody awaited; a refused register ends the connection."""
        if outcome.awaited:
            return
        if isinstance(outcome.error, ClosedError):
            log.debug("%s ! %s after the end", self, name_of(command))
            return
        self.counters["commands_failed"] += 1
        log.warning("%s ! %s failed: %s", self, name_of(command), outcome.error)
        if isinstance(command, Register) and self.client is None:
            self.end("error", f"register failed: {outcome.error}")

    def _closed(self) -> ClosedError:
        return ClosedError(f"the connection is closed: {self.reason}")

    # --- the device's lane

    def _fenced(self, fence: Callable[[], Outcome[None]]) -> Outcome[None]:
        """Flush, and ask whether it has arrived."""
        if self.gone:
            return refused(self._closed())
        self._flush()
        outcome = fence()
        self._lane().track(outcome)
        return outcome

    def _flush(self) -> None:
        if not self.writable or self.sending is not None or not self.outbox:
            return
        chunks = self.outbox[:]
        self.outbox.clear()
        self.counters["bytes_sent"] += self.outbox_bytes
        self.bytes_sent += self.outbox_bytes
        self.outbox_bytes = 0
        if self.tap is not None:
            for chunk in chunks:
                self._show(events.Sent(chunk))
        result = self.link.send(chunks)
        if result is None:
            if self.sent and self.writable:
                self._settle_sent()
            return
        sent, self.sent = self.sent, None
        self.sending = result
        result.when_done(partial(self._flushed, sent or []))

    def _flushed(self, sent: list[Outcome[None]], result: Outcome[None]) -> None:
        """Take the host's answer to what was sent."""
        self.sending = None
        for outcome in sent:
            if result.error is None:
                outcome.settle(None)
            else:
                outcome.fail(result.error)
        if result.error is not None and not self.gone:
            self.counters["sends_failed"] += 1
            if self.tap is not None:
                self._show(events.Refused("send", "", result.error))
            log.warning("%s ! send failed: %s", self, result.error)
            if not self.datagram and not isinstance(result.error, ClosedError) and not self.close_called:
                # What comes next would stand behind a hole in the stream: the device has to come anew.
                self._lost(f"what was sent didn't arrive: {result.error}")
        if not self.running:
            self._later()

    def _settle_sent(self) -> None:
        sent, self.sent = self.sent, None
        for outcome in sent or ():
            outcome.settle(None)

    def _stalled(self) -> None:
        self.stall = None
        self._lost(f"it has read nothing for {self.engine.limits.stall:g} s")

    def _lost(self, detail: str) -> None:
        """Give the device up."""
        log.warning("%s ! lost: %s", self, detail)
        self.end("lost", detail)
        self.close_called = True
        self.link.abort()

    def _dropped(self, what: str, count: int, why: str) -> None:
        """Count what is lost, in all and by its reason."""
        if count:
            self.counters[f"{what}_dropped"] += count
            self.engine.count(f"{what}_dropped.{why}", count)

    # --- the end

    def _discard(self) -> None:
        """Drop what came after the decision to close."""
        dropped = length_hint(self.frames or ())
        for run, argument in self.queue or ():
            if run == self._run_messages:
                self._dropped("deliveries", len(argument), "closing")
            elif run == self._take_queued:
                self._dropped("bytes", len(argument), "closing")
        self._dropped("frames", dropped, "closing")
        self._show_dropped("frames", dropped)
        self.frames = self.queue = None
        self.queued = self.deliveries = 0

    def _see_to_end(self) -> None:
        """Close when both lanes are flushed."""
        if (
            self.closing is None
            or self.gone
            or self.close_called
            or self.turn is not None
            or self.queue
            or self.frames is not None
            or self.outbox
            or self.sending is not None
            or (self.lane is not None and self.lane.busy)
        ):
            return
        self.close_called = True
        self.link.close()

    def _end_now(self) -> None:
        """End what took too long to end by itself."""
        if self.gone:
            return
        self.end_timer = self.engine.runtime.call_later(self.engine.limits.end_timeout, self.link.abort)
        if self.turn is not None:
            self._late(self.turn, self.engine.limits.end_timeout)
        if not self.close_called:
            self.close_called = True
            if self.outbox:
                self._flush()
            self.link.close()

    def _cancel_timers(self) -> None:
        for timer in (self.first, self.silence, self.ticks, self.stall, self.end_timer):
            if timer is not None:
                timer.cancel()
        self.first = self.silence = self.ticks = self.stall = self.end_timer = None

    def _release(self, error: ClosedError) -> None:
        """Let nobody wait for what won't come any more, and end the connection's tasks."""
        if self.requests is not None:
            self.requests.release(error)
        self.registers = 0
        if self.lane is not None:
            self.lane.release(error)
        sent, self.sent = self.sent, None
        for outcome in sent or ():
            outcome.fail(error)
        for task in tuple(self.tasks or ()):
            task.cancel()

    def _spawned(self, task: Timer, coroutine: object, error: BaseException | None) -> None:
        if self.tasks is not None:
            self.tasks.discard(task)
        if error is None or self.gone:
            return
        name = getattr(coroutine, "__qualname__", repr(coroutine))
        self._enqueue(lambda wrong: self._failed(name, None, wrong), error)
        self._later()

    def _run_end(self, _: None) -> None:
        handler = self.protocol.router.routes.terminated
        if handler is None:
            self._finish()
        else:
            self._run(handler, (self.conn, self.reason), self._finish)

    @property
    def will_due(self) -> bool:
        """Whether the client's will is to be published, now that it has gone: the app didn't end it."""
        return self.will is not None and self.reason != "terminated"

    def _finish(self) -> None:
        """Let go of everything, once what was published last is on its way (bounded in time)."""
        will = self.will
        if will is not None and self.will_due and not self.engine.hub.keeps_wills:
            self.mount = ""  # which the will's topic has already
            self.issue(Publish(will.topic, will.payload, will.qos, will.retain))
        self.finishing = True
        if self.lane is None or not self.lane.busy:
            self._finish_now()
        else:
            self.end_timer = self.engine.runtime.call_later(self.engine.limits.end_timeout, self._finish_now)

    def _finish_now(self) -> None:
        if self.ended:
            return
        self.ended = True
        if self.end_timer is not None:
            self.end_timer.cancel()
        if self.tap is not None:
            self.tap.release()
            self.tap = None
        if self.client is not None:
            clientid = self.client.clientid
            if self.engine.clients.get(clientid) is self:
                del self.engine.clients[clientid]
                del self.engine.app.clients[clientid]
                self.protocol.router.live.pop(clientid, None)
            elif self.protocol.router.live.get(clientid) is self.conn:
                del self.protocol.router.live[clientid]
        self.engine.forget(self)
        self.lane = self.requests = None
        del self.conn  # these point here; without the cycles all are freed at once
        for callback in self.when_ended or ():
            callback()

    def _why_no_room(self) -> str:
        if self.gone or self.closing is not None:
            return "the connection ends"
        return f"{self.deliveries} wait, limit is {self.engine.limits.deliveries}"


def _owed(item: Message | Owed, takers: list[Callable[[], object]]) -> Message:
    """Return the message, and put who waits for its end among *takers*."""
    if type(item) is Owed:
        takers.append(item.taken)
        return item.message
    return item  # type: ignore[return-value] # mypy doesn't narrow by type()


def _topic(item: Message | Owed) -> str:
    return item.message.topic if isinstance(item, Owed) else item.topic
