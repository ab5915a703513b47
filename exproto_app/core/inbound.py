"""Inbound: what came from the device, cut into frames, a piece at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from operator import length_hint
from typing import TYPE_CHECKING

from .. import tap as events
from ..errors import FramingError
from ..framing import FRAME_LIMIT, RAW, Bad, Decoder
from .naming import shown
from .states import BACKLOG, OPEN, OPENING, PIECE, RUNNING

if TYPE_CHECKING:
    from .seams import Owner

__all__ = ["Inbound"]

log = logging.getLogger("exproto_app")


class Inbound:
    """Bytes and frames of one connection on their way to their turns.

    *size* counts the bytes that wait, *frames* are those that are cut already. Once it is *shut*, what waits
    and what comes is dropped: nobody handles it any more. Above `Limits.inbox` bytes the
    device isn't read; a datagram socket can't wait, so there what is too much is dropped.
    """

    __slots__ = (
        "_owner",
        "datagram",
        "decoder",
        "frames",
        "paused",
        "piece",
        "raw",
        "received",
        "shut",
        "size",
    )

    def __init__(self, owner: Owner) -> None:
        framing = owner.protocol.router.framing
        self._owner = owner
        self.datagram = owner.conn.info.socktype in ("udp", "dtls")
        self.decoder = Decoder(framing)
        # What isn't cut is no work; a datagram is cut as a whole, for all of it counts or nothing.
        self.piece = FRAME_LIMIT if framing is RAW or self.datagram else PIECE
        self.raw = framing is RAW and not self.datagram
        self.frames: Iterator[bytes] | None = None
        self.size = 0
        self.received = 0  # frames, in all
        self.paused = False
        self.shut = False

    @property
    def waiting(self) -> bool:
        """Whether frames, or an error behind them, wait."""
        return self.frames is not None or self.decoder.error is not None

    @property
    def unfinished(self) -> bool:
        """Whether there is more than whole frames that are handled."""
        return bool(self.size) or self.frames is not None or bool(self.decoder.buffered)

    def put(self, data: bytes) -> None:
        """Have *data* wait for its turn."""
        owner = self._owner
        limit = owner.engine.limits.inbox
        closing = self.shut or owner.gone
        if closing or (self.datagram and self.size > limit):
            owner.drop("bytes", len(data), "closing" if closing else "queue_full")
            if owner.tracer is not None:
                owner.tracer.dropped("bytes", len(data))
            text = "%s ! %d bytes dropped: %d wait, limit is %d"
            log.log(logging.DEBUG if closing else logging.WARNING, text, owner, len(data), self.size, limit)
            return
        if owner.tracer is not None:
            owner.tracer.received(data)
        self.put_taken(data)
        if not owner.waits & RUNNING:
            owner.later()

    def put_taken(self, data: bytes) -> None:
        """Have *data*, which is shown and counted already, wait for its turn."""
        self._owner.enqueue(self.take, data)
        self.size += len(data)
        if self.size > self._owner.engine.limits.inbox:
            self.pause()

    def take(self, data: bytes | memoryview) -> None:
        """Cut the next piece of *data* into frames; the rest waits."""
        if len(data) > self.piece:
            view = memoryview(data)
            self._owner.put_back(self.take, view[self.piece :])
            data = view[: self.piece]
        self.size -= len(data)
        self.add(self.cut(data if type(data) is bytes else bytes(data)))

    def add(self, frames: list[bytes]) -> None:
        """Have *frames* wait for their turns."""
        if frames:
            self.frames = iter(frames)
            self._owner.waits |= BACKLOG

    def cut(self, data: bytes) -> list[bytes]:
        """Return the frames that *data* completes."""
        return self.sort_out(self._cut_datagram(data) if self.datagram else self.decoder.feed(data))

    def sort_out(self, frames: list[bytes]) -> list[bytes]:
        """Return *frames*, which the decoder has just given, and see to what else it has to tell."""
        owner, decoder = self._owner, self.decoder
        if decoder.error is not None:
            owner.waits |= BACKLOG
        if decoder.bad is not None:
            self.report(decoder.take_bad())
        if frames:
            self.count(len(frames))
        return frames

    def count(self, frames: int) -> None:
        """Count *frames*: the device says something useful."""
        owner = self._owner
        owner.counters["frames_received"] += frames
        self.received += frames
        if owner.state is OPENING:
            owner.move_on(OPEN)

    def finish(self) -> list[bytes]:
        """Return the frame that the end of the stream ends, where the framing has it so."""
        decoder = self.decoder
        if self.datagram or not decoder.buffered or decoder.error is not None:
            return []
        if getattr(decoder.framing, "last", False):
            frames = decoder.finish()
            if frames:
                self.count(len(frames))
            return frames
        return []

    def drop_unfinished(self) -> None:
        """Count the bytes of a frame that will never be whole."""
        owner, left = self._owner, self.decoder.buffered
        if left:
            owner.drop("bytes", left, "unfinished")
            if owner.tracer is not None:
                owner.tracer.dropped("bytes", left)
            log.info("%s ! %d bytes dropped: the stream ended within a frame", owner, left)
            self.decoder = Decoder(owner.protocol.router.framing)

    def framing_error(self, error: FramingError) -> None:
        """Take the turn of an error that stands behind the last frame."""
        owner, decoder = self._owner, self.decoder
        left = decoder.buffered

        def after() -> None:
            dropped = decoder.recover()
            owner.drop("bytes", dropped, "framing")
            if not self.shut:
                log.info("%s ! %d of %d bytes skipped after a framing error", owner, dropped, left)
                self.add(self.cut(b""))  # what stands behind the error has come already

        owner.failed(None, after, error)

    def report(self, bad: list[Bad]) -> None:
        """Log and count what the framing dropped, or the codec couldn't parse."""
        owner = self._owner
        frames = sum(item.frame for item in bad)
        skipped = sum(len(item.data) for item in bad if not item.frame)
        owner.counters["frames_bad"] += frames
        owner.counters["bytes_skipped"] += skipped
        if owner.tracer is not None:
            for item in bad:
                error = FramingError(f"{item.reason}: {shown(item.data)}")
                owner.tracer.show(events.Failed("framing", error))
        text = "%s ! %d bad frames dropped, %d bytes skipped: %s: %s"
        log.warning(text, owner, frames, skipped, bad[0].reason, shown(bad[0].data))

    def pause(self) -> None:
        """Read no more for now."""
        if not self.paused:
            self.paused = True
            self._owner.link.pause()

    def resume(self) -> None:
        """Read again."""
        if self.paused:
            self.paused = False
            self._owner.link.resume()

    def discard(self) -> int:
        """Drop the frames that wait, and return how many these were."""
        dropped = length_hint(self.frames) if self.frames is not None else 0
        self.frames = None
        self.size = 0
        if self.decoder.error is not None:
            self._owner.drop("bytes", self.decoder.buffered, "closing")
            self.decoder = Decoder(self._owner.protocol.router.framing)
        return dropped

    def _cut_datagram(self, data: bytes) -> list[bytes]:
        """Return the frames of a datagram, none if any of it is wrong: each datagram starts clean."""
        owner, decoder = self._owner, self.decoder
        frames = decoder.feed(data)
        if decoder.error is None:
            frames = [*frames, *decoder.finish()]
        if decoder.error is None:
            return frames
        owner.drop("datagrams", 1, "framing")
        if owner.tracer is not None:
            owner.tracer.show(events.Failed("framing", decoder.error))
        log.warning("%s ! datagram of %d bytes dropped: %s", owner, len(data), decoder.error)
        self.decoder = Decoder(owner.protocol.router.framing)
        return []
