"""Inbound: what came from the device, cut into frames, a piece at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from operator import length_hint
from typing import TYPE_CHECKING, Final, cast

from .. import tap as events
from ..errors import FramingError
from ..framing import FRAME_LIMIT, RAW, Bad, Decoder
from ..framing.decoder import BadFrameError
from ..framing.modes import gap_of
from ..masking import Later, hide_hex, hide_said, hide_secrets, masked, secrets_in
from .memory import LARGE
from .naming import shown
from .states import BACKLOG, CUT, FIRST_PIECE, LEAST_PIECE, OPEN, OPENING, PIECE, RUNNING
from .timers import FrameGap

if TYPE_CHECKING:
    from .seams import Owner

__all__ = ["Inbound"]

log = logging.getLogger("exproto_app")

READ: Final = 32_768
"""Bytes of one read that wait together."""

JOINED: Final = 4_096
"""Bytes up to which small reads wait as one."""

EVENT: Final = 200
"""Bytes that each read that waits takes beside its own, as whatever else waits for its turn."""

EVENTS: Final = 4_096
"""How many of them may wait."""


class Inbound:
    """Bytes and frames of one connection on their way to their turns.

    *size* counts the bytes that wait, *frames* are those that are cut already, of *cut_size* bytes. Once it
    is *shut*, what waits and what comes is dropped. Above `Limits.inbox` bytes, or a few where memory is
    scarce, or `EVENTS` reads, the device isn't read; a datagram socket can't wait, so there the excess is
    dropped.
    """

    __slots__ = (
        "_begun",
        "_owner",
        "cut_size",
        "datagram",
        "decoder",
        "frames",
        "gap",
        "paused",
        "shut",
        "size",
    )

    def __init__(self, owner: Owner) -> None:
        framing = owner.protocol.router.framing
        gap = gap_of(framing)
        self._owner = owner
        self.datagram = owner.conn.info.socktype in ("udp", "dtls")
        self.decoder: Decoder
        self.renew()
        self.gap = None if gap is None or self.datagram else FrameGap(owner, gap, self.end_frame)
        owner.piece = FRAME_LIMIT if framing is RAW else FIRST_PIECE  # what isn't cut is no work
        self.frames: Iterator[bytes] | None = None
        self._begun: list[bytes] | None = None  # the first frames of a datagram that is cut in parts
        self.size = self.cut_size = 0
        self.paused = False
        self.shut = False

    def renew(self) -> None:
        """Forget what stands in the decoder."""
        router = self._owner.protocol.router
        # A datagram is dropped for an error; a bad frame in it harms no other.
        stops = router.routes.bad_frame is not None and not self.datagram
        self.decoder = Decoder(router.framing, stops=stops)
        self._owner.decoder = None if router.framing is RAW else self.decoder

    @property
    def waiting(self) -> bool:
        """Whether frames, or an error behind them, wait."""
        return self.frames is not None or self.decoder.error is not None

    @property
    def held(self) -> int:
        """How many bytes it holds: those that wait, frames, and a part of a frame."""
        size = self.size + EVENT * self.events + self.decoder.buffered
        return size if self.frames is None else size + self.cut_size

    @property
    def events(self) -> int:
        """How many reads wait, and whatever else does."""
        backlog = self._owner.backlog
        return 0 if backlog is None else len(backlog)

    @property
    def unfinished(self) -> bool:
        """Whether anything waits: bytes, frames, or a part of a frame."""
        return bool(self.size) or self.frames is not None or bool(self.decoder.buffered)

    def put(self, data: bytes) -> None:
        """Have *data* wait for its turn."""
        owner = self._owner
        limit = owner.engine.limits.inbox
        closing = self.shut or owner.gone
        if closing or (self.datagram and (self.size > limit or self.events >= EVENTS)):
            owner.drop("bytes", len(data), "closing" if closing else "queue_full")
            if owner.tracer is not None:
                owner.tracer.dropped("bytes", len(data))
            text = "%s ! %d bytes dropped: %d wait, limit is %d, in %d pieces, limit is %d"
            if closing or not owner.engine.held_back(text, owner):
                level = logging.DEBUG if closing else logging.WARNING
                log.log(level, text, owner, len(data), self.size, limit, self.events, EVENTS)
            return
        if owner.tracer is not None:
            owner.tracer.received(data)
        self.put_taken(data)
        if not owner.waits & RUNNING:
            owner.later()

    def put_taken(self, data: bytes) -> None:
        """Have *data*, which is shown and counted already, wait for its turn."""
        if self.datagram or self._owner.protocol.router.framing is RAW:  # each read is a frame
            self._owner.enqueue(self.take, data)
        elif len(data) <= READ:
            last = self._owner.last_event() if len(data) < JOINED else None
            if last is None or last[0] != self.take or len(last[1]) + len(data) > JOINED:
                self._owner.enqueue(self.take, data)
            else:
                self._owner.replace_last(self.take, bytes(last[1]) + data)
        else:  # it would be kept whole until its end is handled
            for start in range(0, len(data), READ):
                self._owner.enqueue(self.take, data[start : start + READ])
        if self.gap is not None:
            self.gap.heard()
        self.size += len(data)
        engine = self._owner.engine
        if self.size + EVENT * self.events > LARGE:
            engine.memory.note(self._owner)
        if self.size > (LARGE if engine.memory.scarce else engine.limits.inbox) or self.events >= EVENTS:
            self.pause()

    def take(self, data: bytes | memoryview) -> None:
        """Cut the next piece of *data* into frames; the rest waits."""
        whole = cast("bytes", data.obj if type(data) is memoryview else data)
        rest: memoryview | None = None
        owner = self._owner
        if len(data) > owner.piece:
            view = memoryview(data)
            data, rest = view[: owner.piece], view[owner.piece :]
        size = len(data)
        self.size -= size
        clock = owner.engine.runtime.time
        began = clock()
        before = self.decoder.buffered
        piece = data if type(data) is bytes else bytes(data)
        if self.datagram and len(piece) < len(whole):
            rest = self._cut_part(piece, rest, whole)
        else:
            self.add(self.cut(piece))
        self.cut_size = before + size - self.decoder.buffered
        if self.held > LARGE:
            self._owner.engine.memory.note(self._owner)
        if rest is not None:
            owner.put_back(self.take, rest)
        took = clock() - began
        if size == owner.piece and took <= CUT / 2:
            owner.piece = min(2 * size, max(PIECE, size))
        elif took > CUT and LEAST_PIECE < owner.piece <= PIECE:
            owner.piece //= 2

    def add(self, frames: list[bytes]) -> None:
        """Have *frames* wait for their turns."""
        if frames:
            self.frames = iter(frames)
            self._owner.waits |= BACKLOG

    def cut(self, data: bytes) -> list[bytes]:
        """Return the frames that *data* completes."""
        return self.sort_out(self._cut_datagram(data) if self.datagram else self.decoder.feed(data))

    def sort_out(self, frames: list[bytes]) -> list[bytes]:
        """Return *frames*, just cut, and deal with what else the decoder reports."""
        owner, decoder = self._owner, self.decoder
        if decoder.error is not None:
            owner.waits |= BACKLOG
        if decoder.bad is not None:
            bad = decoder.take_bad()
            self.report(bad)
            if self.datagram and owner.protocol.router.routes.bad_frame is not None:
                for item in reversed(bad):
                    if item.frame:
                        owner.put_back(owner.answer_bad, item)
        if frames:
            self.count(len(frames))
        return frames

    def count(self, frames: int) -> None:
        """Count *frames*; the first one opens the connection."""
        owner = self._owner
        owner.counters["frames_received"] += frames
        owner.frames_received += frames
        if owner.state is OPENING:
            owner.move_on(OPEN)
        owner.spoke()

    def finish(self) -> list[bytes]:
        """Return the frame that the end of the stream completes, where the framing allows that."""
        decoder = self.decoder
        if self.datagram or not decoder.buffered or decoder.error is not None:
            return []
        if getattr(decoder.framing, "last", False):
            frames = decoder.finish()
            if frames:
                self.count(len(frames))
            return frames
        return []

    def end_frame(self, _: object) -> None:
        """Take the turn of a silence, which ends a frame."""
        decoder = self.decoder
        if decoder.error is None and decoder.buffered:
            self.add(self.sort_out(decoder.finish()))

    def drop_unfinished(self) -> None:
        """Count the bytes of a frame that will never be whole."""
        owner, left = self._owner, self.decoder.buffered
        if left:
            owner.drop("bytes", left, "unfinished")
            if owner.tracer is not None:
                owner.tracer.dropped("bytes", left)
            log.info("%s ! %d bytes dropped: the stream ended within a frame", owner, left)
            self.renew()

    def framing_error(self, error: FramingError) -> None:
        """Handle an error after the last whole frame, in its turn."""
        owner, decoder = self._owner, self.decoder
        left = decoder.buffered

        def next_frames() -> None:
            decoder.recover()
            if not self.shut:
                self.add(self.cut(b""))

        if isinstance(error, BadFrameError):
            self.report([error.item])
            owner.answer_bad(error.item, next_frames)
            return

        def after() -> None:
            dropped = decoder.recover()
            owner.drop("bytes", dropped, "framing")
            if not self.shut:
                text = "%s ! %d of %d bytes skipped after a framing error"
                if not owner.engine.held_back(text, owner):
                    log.info(text, owner, dropped, left)
                self.add(self.cut(b""))  # what follows the error has arrived already

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
        first = bad[0]
        if owner.engine.held_back(text, owner):
            return
        if owner.client is None:
            size = len(first.data)
            unsaid = [Later(partial(self.unsaid, first.reason, first.data, which), size) for which in (0, 1)]
            log.warning(text, owner, frames, skipped, *unsaid)
        if owner.client is not None or log.isEnabledFor(logging.DEBUG):
            level = logging.DEBUG if owner.client is None else logging.WARNING
            log.log(level, text, owner, frames, skipped, first.reason, shown(first.data))

    def unsaid(self, reason: str, data: bytes, which: int) -> str:
        """Return *reason*, or (*which*) *data*, as the log may show it of a device that isn't registered."""
        secret = self._owner.protocol.router.secret
        if which:
            return f"[{len(data)} bytes]" if secret is None else shown(masked(data, secret))
        if secret is None:
            return hide_said(hide_hex(reason), data)
        return hide_secrets(reason, secrets_in(data, secret))

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
            if self.gap is not None:
                self.gap.heard()

    def discard(self) -> int:
        """Drop the frames that wait, and return their number."""
        dropped = length_hint(self.frames) if self.frames is not None else 0
        dropped += len(self._begun or ())
        self.frames = self._begun = None
        self.size = 0
        if self.decoder.error is not None:
            self._owner.drop("bytes", self.decoder.buffered, "closing")
            self.renew()
        return dropped

    def _cut_datagram(self, data: bytes) -> list[bytes]:
        """Return the frames of a datagram, none if any of it is wrong: each datagram starts clean."""
        frames = self.decoder.feed(data)
        if self.decoder.error is None:
            frames = [*frames, *self.decoder.finish()]
        return self._sound(frames, data)

    def _cut_part(self, data: bytes, rest: memoryview | None, whole: bytes) -> memoryview | None:
        """Cut *data*, a part of the datagram *whole*; return the *rest*, if that is still to be cut."""
        frames, self._begun = self._begun or [], None
        frames += self.decoder.feed(data)
        if self.decoder.error is None and rest is not None:
            self._begun = frames
            return rest
        if self.decoder.error is None:
            frames += self.decoder.finish()
        self.size -= 0 if rest is None else len(rest)
        self.add(self.sort_out(self._sound(frames, whole)))
        return None

    def _sound(self, frames: list[bytes], whole: bytes) -> list[bytes]:
        """Return *frames*, those of the datagram *whole*, or none where anything in it is wrong."""
        owner, error = self._owner, self.decoder.error
        if error is None:
            return frames
        owner.drop("datagrams", 1, "framing")
        if owner.tracer is not None:
            owner.tracer.show(events.Failed("framing", error))
        text: object = str(error)
        if owner.client is None:
            text = Later(partial(self.unsaid, str(error), whole, 0), len(whole))
        log.warning("%s ! datagram of %d bytes dropped: %s", owner, len(whole), text)
        self.renew()
        return []
