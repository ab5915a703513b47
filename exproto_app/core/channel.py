"""Channel: the state machine of one connection; `states` explains how it works."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import islice
from operator import length_hint
from typing import Any, Final, TypeAlias

from .. import tap as events
from ..commands import Outcome, Publish
from ..errors import ClosedError
from ..framing import Bad
from ..handlers import Handler
from ..masking import hide_masked
from ..models import Message, Reason
from .calls import ALONE
from .deliveries import Deliveries
from .inbound import EVENTS
from .memory import LARGE
from .seams import HubProtocol
from .states import (
    BACKLOG,
    BATCH,
    BLOCKS,
    CLOSED,
    CLOSING,
    COMMANDS_FULL,
    CONGESTED,
    DRAINING,
    ENDED,
    FAILURES,
    HANDLER,
    LEAVING,
    OPEN,
    OPENING,
    RESUMES,
    RUNNING,
    SENDS_FAILED,
)
from .straight import Straight
from .timers import Silence, Ticks

__all__ = ["Channel", "Hub"]

AGAIN: Final = RESUMES | FAILURES | SENDS_FAILED
"""Reasons for which there may be another turn, beside what waits in a queue."""

log = logging.getLogger("exproto_app")


class Channel(Straight):
    """The engine's half of one connection. Drivers feed it; `Connection` issues its verbs to it."""

    __slots__ = ()

    @property
    def line(self) -> Channel | None:
        """The connection that it is a child of, if it is one."""
        return None

    # --- events, from the driver

    def begin(self, *, resumed: bool, sniffed: bytes | None = None) -> None:
        """Run `on_connect`, the first turn, then handle *sniffed*, which is shown and counted already."""
        if self.tracer is not None and sniffed is None:
            self.tracer.show(events.Opened(self.conn.info, resumed))
        limits, routes = self.engine.limits, self.protocol.router.routes
        self.opening = self.engine.runtime.call_later(limits.first_frame, self._said_nothing)
        if self.inbound.datagram:
            self.silence = Silence(self, self.calls, limits.datagram_idle)
        if routes.ticks:
            self.ticks = Ticks(self, self.calls)
        if self.make_state("state=") and routes.connect is not None and not resumed:
            self.calls.run((ALONE,), routes.connect)
        if sniffed is not None:
            self.inbound.put_taken(sniffed)
        self.advance()

    def delivered(
        self, messages: Sequence[Message], acknowledge: Callable[[], object] | None = None
    ) -> Outcome[None] | None:
        """Take *messages* that the broker has for the device; return what whoever published may wait for.

        With *acknowledge* none is dropped for lack of room: the broker sends no more of those until it is
        called, when the turn of the last one has ended. It isn't called if the connection ends before.
        """
        if self.state is ENDED:
            self.drop("deliveries", len(messages), "closing")
            return None
        if self.subscriptions is not None:
            messages = self.subscriptions.share(messages, self.mount)
            if not messages:
                return None
        if self.roaming is not None and messages:
            receiver = self.roaming.receiver(messages[-1])
            if receiver is not self:
                outcome: Outcome[None] | None = receiver.delivered(messages, acknowledge)
                return outcome
        if self.deliveries is None:
            self.deliveries = Deliveries(self, self.calls)
        return self.deliveries.put(messages, acknowledge)

    def unwritable(self) -> None:
        """Stop sending: the device reads too slowly. Turns wait."""
        if self.state < ENDED:
            self.outbound.block()

    def drained(self) -> None:
        """Send again."""
        if self.state < ENDED:
            self.outbound.unblock()
            self.advance()
            self.scheduler.pace()

    def congested(self) -> None:
        """Hold turns, reading and commands: the queue of what this device publishes is full."""
        if self.state is ENDED:
            return
        self._make_broker_queue().hold()
        if self.state <= OPEN:
            self.waits |= CONGESTED
            self.inbound.pause()

    def relieved(self) -> None:
        """Resume: there is room in that queue again."""
        if self.state is ENDED:
            return
        self.waits &= ~CONGESTED
        if self.broker_queue is not None:
            self.broker_queue.resume()
        self.later()

    def terminated(self, reason: Reason = "device closed", detail: str = "") -> None:
        """Take the end of the connection; what it received before is still handled."""
        if self.gone:
            return
        if self.state <= OPEN:
            self.reason = self.left_for(reason)
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
        if self.children is not None:
            self.children.end_holding(self.reason or reason, self.detail)
        self._release(error)
        self.advance()
        self.scheduler.pace()

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
            if reason == "shutdown":
                self._make_ending().stop()
            return
        self.reason, self.detail = self.left_for(reason), detail
        self.move_on(DRAINING if drain else CLOSING)
        if drain:
            self.inbound.pause()
        ending = self._make_ending()
        if reason == "shutdown":
            ending.stop()
        ending.limit()
        self.later()

    # --- turns

    def advance(self) -> None:  # noqa: C901 - each look at the end may be one
        """Take turns while nothing makes the connection wait, then flush its queues and move its end on."""
        if self.waits & RUNNING or self.state >= ENDED:
            return
        runtime = self.engine.runtime
        until = self.scheduler.slice_end()
        more = False
        while self._take_turn():
            if runtime.time() >= until:
                more = self.waits & AGAIN != 0 or self.ending is not None
                break
        if self.state >= ENDED:
            return
        if self.chunks:
            self.outbound.flush()
        if self.ending is not None:
            self.ending.close_when_flushed()
        if self.state >= ENDED:  # what was flushed couldn't be sent
            return
        if self.backlog or self.inbound.waiting or (self.children is not None and self.children.ready):
            self.waits |= BACKLOG
            more = True
        else:
            self.backlog = None
            self.waits &= ~BACKLOG
        if more and not self.waits & BLOCKS:
            self.later()
        if self.tracer is not None:
            unfinished = not self.gone and self.inbound.unfinished
            self.tracer.release(runtime, unfinished=unfinished)
        if self.inbound.paused:
            self._resume_reading()

    def _take_turn(self) -> bool:  # noqa: C901 - one branch for each kind of turn
        """Take the next turn, or the next few frames; return whether there was one."""
        if self.waits & FAILURES:
            self._make_failures().judge()
        if self.chunks:
            self.outbound.flush()
        if self.waits & BLOCKS:
            if self.waits & COMMANDS_FULL and not self.waits & HANDLER:
                self.look_at_excess()
            return False
        self.waits &= ~BACKLOG
        inbound = self.inbound
        if self.waits & SENDS_FAILED and self.outbound.later is not None:
            self.outbound.later.judge()
        elif self.waits & RESUMES:
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
        elif not self._take_last_turn():
            return False
        return self.state < ENDED

    def _take_last_turn(self) -> bool:
        """Take a turn that nothing else waits for: of children that end with us, then of our end."""
        if self.children is not None and self.children.ready:
            self.children.run(self.children.ready.popleft())
            return True
        return self.ending is not None and self.ending.run_terminated()

    def _resume_reading(self) -> None:
        """Read again once little waits, unless something else is in the way."""
        most = LARGE if self.engine.memory.scarce else self.engine.limits.inbox // 2
        little = self.inbound.size <= most and self.inbound.events <= EVENTS // 2
        if little and self.state <= OPEN and not self.waits & (CONGESTED | COMMANDS_FULL):
            self.inbound.resume()

    def _discard(self) -> None:
        """Drop and count what was received and will never be handled."""
        inbound, backlog = self.inbound, self.backlog or ()
        frames = inbound.discard()
        for run, argument in backlog:
            if run == inbound.take:
                self.drop("bytes", len(argument), "closing")
            elif self.deliveries is not None and self.deliveries.waits_in((run, argument)):
                self.deliveries.waiting = self.deliveries.size = 0
                self.drop("deliveries", self.deliveries.lost(argument), "closing")
            elif self.children is not None and run == self.children.run:
                self.children.ready.append(argument)
        self.backlog = None
        self.drop("frames", frames, "closing")
        if self.tracer is not None:
            self.tracer.dropped("frames", frames)

    def route(self, frame: bytes) -> tuple[Handler | None, Any]:
        """Return the handler for *frame*, None if there is nothing to call, and the message that it holds."""
        message: Any = frame
        parse, routes = self.protocol.parse, self.protocol.router.routes
        if parse is not None:
            try:
                message = parse(frame)
            except Exception as error:  # noqa: BLE001 - a codec may raise anything
                bad = self._unparsed(frame, error)
                return routes.bad_frame, (bad.data, bad.reason)
            except BaseException as error:  # noqa: BLE001 - as a handler may
                self.failed("codec", None, error, frame)
                return None, None
        try:
            if self.requests is not None and self.requests.waiting and self.requests.offer(message):
                if self.tracer is not None:
                    self.tracer.show(events.Frame(frame, "request"))
                return None, None
            handler = routes.received(frame, message)
        except BaseException as error:  # noqa: BLE001 - the user's key= and match= are judged like handlers
            self.failed("key= or match=", None, error, frame)
            return None, None
        if self.tracer is not None and self.tracer.tap.frames:
            self.tracer.show(events.Frame(frame, None if handler is None else handler.name))
        if handler is None:
            self._unhandled(message)
        return handler, message

    def _unparsed(self, frame: bytes, error: Exception) -> Bad:
        """Drop a *frame* that the codec can't parse, and return it with why."""
        if self.tracer is not None:
            self.tracer.show(events.Frame(frame, None))
        bad = Bad(frame, f"the codec can't parse it: {error!r}")
        self.inbound.report([bad])
        return bad

    def answer_bad(self, item: Bad, after: Callable[[], None] | None = None) -> None:
        """Have a frame that the framing dropped answered by `on_bad_frame`."""
        self.calls.run(((item.data, item.reason),), self.protocol.router.routes.bad_frame, after)

    def _unhandled(self, message: Any) -> None:
        self.counters["frames_unhandled"] += 1
        name = self.protocol.router.name
        shown = repr(message[:64] if isinstance(message, bytes) else message)
        if self.client is None:
            log.debug("%s ! no on_received takes %s", self, shown)
            secret = self.protocol.router.secret
            shown = f"[{len(shown)} characters]" if secret is None else hide_masked(shown, (secret,))
        self.engine.once(("received", name), "%s ! no on_received of %r takes %s", self, name, shown)

    # --- the end

    def lose(self, detail: str) -> None:
        """Give the device up, with everything that waits for it."""
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
            self.issue(
                Publish(will.topic, will.payload, will.qos, will.retain, will.properties, absolute=True)
            )

    def let_go(self) -> None:
        """Remove the connection, which has ended, from all tables."""
        self.drop(
            "bytes", self.outbound.close(self.closed_error()), "unsent"
        )  # replies to a device that left
        if self.tracer is not None:
            self.tracer.tap.release()
            self.tracer = None
        if self.registration is not None:
            self.registration.leave()
        if self.deliveries is not None:
            self.deliveries.close()
        if self.broker_queue is not None:
            self.broker_queue.release(self.closed_error())
        self.engine.forget(self)
        # These point here; without the cycles all are freed at once.
        self.broker_queue = self.requests = self.registration = self.failures = self.deliveries = None
        self.ending = self.tasks = self.silence = self.ticks = self.backlog = None
        self.children = self.subscriptions = None
        del self.conn, self.inbound, self.outbound, self.calls

    def _said_nothing(self) -> None:
        if self.state is OPENING:
            self.end("timeout", f"no frame within {self.engine.limits.first_frame:g} s")

    def _release(self, error: ClosedError) -> None:
        """Let nobody wait for what won't come any more, and end the connection's timers and tasks."""
        for timed in (self.silence, self.ticks, self.tasks, self.inbound.gap):
            if timed is not None:
                timed.cancel()
        if self.registration is not None:
            self.registration.release()
        if self.requests is not None:
            self.requests.release(error)
        if self.broker_queue is not None:
            self.broker_queue.release(error)


Hub: TypeAlias = HubProtocol[Channel]
"""The broker's side of all connections."""
