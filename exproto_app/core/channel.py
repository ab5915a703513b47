"""Channel: the state machine of one connection; `states` tells how it works."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import islice
from operator import length_hint
from typing import Any, Final, TypeAlias

from .. import tap as events
from ..commands import Publish
from ..errors import ClosedError
from ..framing import FRAME_LIMIT, Bad
from ..models import Message, Reason
from ..router import Handler
from .calls import ALONE
from .deliveries import Deliveries
from .seams import Broker
from .states import (
    BACKLOG,
    BATCH,
    BLOCKS,
    CLOSED,
    CLOSING,
    CONGESTED,
    DRAINING,
    ENDED,
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
)
from .timers import Silence, Ticks
from .verbs import Verbs

__all__ = ["Channel", "Hub"]

MANY: Final = [b""] * (BATCH + 1)
"""Stands for the frames of a read that isn't cut on the spot."""

log = logging.getLogger("exproto_app")


class Channel(Verbs):
    """The engine's half of one connection. Drivers feed it; `Connection` issues its verbs to it."""

    __slots__ = ()

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
        """Return the handler that takes *frame*, None if none has to, and the message that it holds."""
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

    # --- the end

    def lose(self, detail: str) -> None:
        """Give the device up, with all that waits for it."""
        if self.gone:
            return
        log.warning("%s ! lost: %s", self, detail)
        self.end("lost", detail)
        self.move_on(CLOSED)
        self.link.abort()

    def publish_will(self) -> None:
        """Publish the client's will, where the host doesn't."""
        will = None if self.registration is None else self.registration.will
        if will is not None and self.will_due and not self.engine.hub.keeps_wills:
            self.mount = ""  # which the will's topic has already
            self.issue(Publish(will.topic, will.payload, will.qos, will.retain))

    def let_go(self) -> None:
        """Have everybody forget the connection, which has ended."""
        self.drop(
            "bytes", self.outbound.close(self.closed_error()), "unsent"
        )  # replies to a device that left
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


Hub: TypeAlias = Broker[Channel]
"""The broker's side of all connections."""
