"""The straight path: what a device has sent, handled and answered on the spot.

Most reads are one frame that one plain handler takes and answers. `Straight.received` does for these what
`Inbound`, `HandlerCalls.run` and `Outbound.flush` do for all, in one go; wherever there is more to do, it
leaves off and has those do the rest.
"""

from __future__ import annotations

from operator import length_hint
from typing import TYPE_CHECKING, Final

from .memory import LARGE
from .states import BATCH, ENDED, INDIRECT, NOT_RUNNING, RUNNING
from .verbs import Verbs

__all__ = ["Straight"]

MANY: Final = [b""] * (BATCH + 1)
"""Stands for the frames of a read that isn't cut on the spot."""


class Straight(Verbs):
    """Takes what comes from the device."""

    __slots__ = ()

    if TYPE_CHECKING:

        def advance(self) -> None: ...  # noqa: D102 - as `Channel` has it

    def received(self, data: bytes) -> None:  # noqa: C901, PLR0912 - the hot path is flat
        """Take *data*, as it came from the device; on a datagram socket, one datagram: the hot path."""
        size = len(data)
        counters, scheduler = self.counters, self.scheduler
        counters["bytes_received"] += size
        self.bytes_received += size
        if self.silence is not None:
            self.silence.heard = self.engine.runtime.time()
        if self.waits or scheduler.busy:
            self._received_slowly(data)
            return
        if not 0 < size <= self.piece:
            self._sort_out(data, MANY)
            return
        frame, handler, decoder = data, self.handler, self.decoder
        if decoder is not None:
            frames = decoder.feed(data)
            if len(frames) != 1 or handler is None or decoder.error is not None or decoder.bad is not None:
                self._received_frames(data, frames)
                return
            frame = frames[0]
        elif handler is None:
            self._received_frames(data, [data])
            return
        counters["frames_received"] = total = counters["frames_received"] + 1
        self.frames_received += 1
        self.waits = RUNNING
        try:
            reply = handler.call(self.conn, frame)
            if type(reply) is bytes:
                if self.encode is not None:
                    reply = self.encode(reply)
            elif reply is not None:
                self.calls.take(reply, handler, frame)
                reply = None
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises is judged by on_error
            reply = None
            self.failed(handler, None, error, frame)
        write = self.write
        if reply is None or self.waits != RUNNING or self.chunks or write is None:
            self._answer(reply)
        else:
            self.waits = 0
            size = len(reply)
            counters["bytes_sent"] += size
            self.bytes_sent += size
            write(reply)
        if total >= scheduler.look_at:
            scheduler.look_at = total + BATCH
            scheduler.pace()

    def _answer(self, reply: bytes | None) -> None:
        """Send *reply* behind what the handler has sent, and see to what else there is to do."""
        self.waits &= NOT_RUNNING
        if reply is not None:
            self.chunks.append(reply)
        if self.waits:
            self.advance()
        elif self.chunks:
            self.outbound.flush()

    def _received_frames(self, data: bytes, frames: list[bytes]) -> None:
        """Handle *frames* of *data*: none or several, or each by another handler."""
        number, decoder = len(frames), self.inbound.decoder
        if number > BATCH or decoder.error is not None or decoder.bad is not None:
            self._sort_out(data, frames)
            return
        if not number:
            if decoder.buffered > LARGE:
                self.note_memory()
            return
        counters, scheduler = self.counters, self.scheduler
        counters["frames_received"] = total = counters["frames_received"] + number
        self.frames_received += number
        if number == 1:
            self.calls.run(frames, self.handler)
        else:
            rest = iter(frames)
            self.calls.run(rest, self.handler)
            if length_hint(rest):
                self.inbound.frames = rest
        if self.waits:
            self.advance()
            return
        if self.chunks:
            self.outbound.flush()
        if total >= scheduler.look_at:
            scheduler.look_at = total + BATCH
            scheduler.pace()

    def _received_slowly(self, data: bytes) -> None:
        """Handle *data* now if it only has to take the indirect path; else have it wait for its turn."""
        inbound = self.inbound if self.state is not ENDED else None
        if inbound is None:
            self.drop("bytes", len(data), "closing")
        elif self.waits != INDIRECT or self.scheduler.busy or len(data) > self.piece:
            inbound.put(data)
        else:
            if self.tracer is not None:
                self.tracer.received(data)
            if inbound.gap is not None:
                inbound.gap.heard()
            inbound.add(inbound.cut(data))
            self.advance()
            self.scheduler.pace()

    def _sort_out(self, data: bytes, frames: list[bytes]) -> None:
        """Take over from the hot path where there is more to do than handle a few *frames* of *data*."""
        if frames is MANY:
            self.inbound.put(data)
        else:
            self.inbound.add(self.inbound.sort_out(frames))
        self.advance()
        self.scheduler.pace()
