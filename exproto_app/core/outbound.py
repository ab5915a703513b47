"""Outbound: what waits to be sent to the device, the connection's write queue."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ..commands import DONE, Outcome, Unconfirmed, refused
from .memory import LARGE
from .states import CLOSED, OUTBOUND_FULL, RUNNING, WRITE_BLOCKED
from .waiting_sends import WaitingSends

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..errors import ClosedError
    from ..runtime import Timer
    from .seams import Owner

__all__ = ["Outbound"]

log = logging.getLogger("exproto_app")

GRACE: Final = 1.0
"""Seconds from a send that failed to the end of its stream; what the device had said is handled meanwhile."""


class Outbound:
    """Chunks on their way to the device, in order, *size* bytes in all.

    They wait while a turn runs, while the device reads too slowly, and while the host hasn't answered what
    was sent before. Above `Limits.outbox` no new turn starts; above `Limits.outbox_max`, or after
    `Limits.stall` seconds without reading, the device counts as lost.

    *later* are the sends that wait for an outcome first; *strict* are the same while everything else has to
    wait behind them.
    """

    __slots__ = (
        "_broken",
        "_owner",
        "_sending",
        "_stall",
        "chunks",
        "later",
        "size",
        "strict",
        "waiting",
    )

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._sending: Outcome[None] | None = None  # what the host hasn't answered yet
        self.waiting: list[Outcome[None]] | None = None  # of sends that somebody may await
        self._stall: Timer | None = None
        self._broken = False
        self.chunks: list[bytes] = []
        self.size = 0
        self.later: WaitingSends | None = None
        self.strict: WaitingSends | None = None

    @property
    def busy(self) -> bool:
        """Whether anything is on its way, or waits for something that is."""
        if self.later is not None and len(self.later):
            return True
        return (bool(self.chunks) and not self._broken) or self._sending is not None

    def put(self, data: bytes) -> Outcome[None]:
        """Send *data* behind what waits; the outcome succeeds when there is room again."""
        if self.strict is not None:
            return self.strict.put(data, ())
        owner = self._owner
        if not owner.waits & RUNNING:
            owner.later()
        return self.add(data)

    def put_after(
        self, data: bytes, after: Sequence[Outcome[Any]], sender: Owner | None = None
    ) -> Outcome[None]:
        """Send *data* when all of *after* have succeeded, behind what waits in the same way.

        *sender* is the child whose it is, which a failure is about; without one it is the connection's.
        """
        later = self.later
        if later is None:
            for outcome in after:
                if type(outcome) is not Outcome or not outcome.done or outcome.error is not None:
                    break
            else:
                return self.put(data)
            later = self.later = WaitingSends(self._owner, self)
        return later.put(data, after, sender)

    def order(self, strict: WaitingSends | None) -> None:
        """Have everything wait behind *strict*; with None, behind nothing any more."""
        self.strict = strict
        self._owner.write = self._owner.link.write if strict is None else None

    def add(self, data: bytes) -> Outcome[None]:
        """Send *data* as `put` does; the caller sees to it that it is flushed."""
        owner = self._owner
        self.chunks.append(data)
        self.size += len(data)
        limits = owner.engine.limits
        if self.size > limits.outbox:
            if self.size > limits.outbox_max:
                self.flush()
                if self.size > limits.outbox_max:
                    owner.lose(f"it doesn't read: {self.size} bytes wait, limit is {limits.outbox_max}")
                    return owner.refuse("send", owner.closed_error())
            self._check()
        elif not owner.waits & WRITE_BLOCKED and not owner.link.answers:
            confirm = owner.link.confirm
            return DONE if confirm is None else Unconfirmed(partial(self._confirm, confirm), None)
        outcome: Outcome[None] = Outcome(owner.engine.runtime.waiter)
        if self.waiting is None:
            self.waiting = []
        self.waiting.append(outcome)
        owner.later()
        return outcome

    def flush(self) -> None:
        """Send what waits, if nothing keeps it."""
        owner, chunks = self._owner, self.chunks
        write = owner.write
        if write is not None and len(chunks) == 1 and not owner.waits and self.waiting is None:
            data = chunks.pop()
            size = len(data)
            owner.counters["bytes_sent"] += size
            owner.bytes_sent += size
            self.size = 0
            write(data)
        elif chunks:
            self._flush(chunks)

    def _flush(self, chunks: list[bytes]) -> None:
        owner = self._owner
        if self.strict is not None:
            self.strict.absorb()
            if not chunks:
                return
        self.size = size = sum(map(len, chunks))
        if owner.gone:  # its replies must not keep the turns that are left
            owner.drop("bytes", self.close(owner.closed_error()), "unsent")
            return
        if self._broken or self._sending is not None or owner.waits & WRITE_BLOCKED or owner.state >= CLOSED:
            self._check()
            return
        owner.counters["bytes_sent"] += size
        owner.bytes_sent += size
        self.size = 0
        owner.waits &= ~OUTBOUND_FULL
        if owner.tracer is not None:
            owner.tracer.sent(chunks)
        taken = chunks[:]
        chunks.clear()
        if self.strict is not None:
            self.strict.count_ahead()
        result = owner.link.send(taken)
        if result is None:
            if self.waiting and not owner.waits & WRITE_BLOCKED:
                self._settle()
            return
        waiting, self.waiting = self.waiting, None
        self._sending = result
        result.when_done(partial(self._answered, waiting or []))

    def _check(self) -> None:
        """Have turns wait while there is too much."""
        owner = self._owner
        if self.size > LARGE:
            owner.engine.memory.note(owner)
        if self.size > owner.engine.limits.outbox:
            owner.waits |= OUTBOUND_FULL

    def block(self) -> None:
        """Stop sending: the device reads too slowly. Turns wait."""
        owner = self._owner
        owner.waits |= WRITE_BLOCKED
        owner.engine.memory.note(owner)
        if self._stall is None and not owner.gone and not self._broken:
            self._stall = owner.engine.runtime.call_later(owner.engine.limits.stall, self._stalled)

    def unblock(self) -> None:
        """Send again."""
        self._owner.waits &= ~WRITE_BLOCKED
        if not self._broken:
            self._cancel_stall()
        self._settle()

    def close(self, error: ClosedError) -> int:
        """Let go of what will never be sent, and return how many bytes that is."""
        self._cancel_stall()
        unsent, self.size = sum(map(len, self.chunks)), 0
        self.chunks.clear()
        if self.later is not None:
            unsent += self.later.close(error)
        self._owner.waits &= ~(WRITE_BLOCKED | OUTBOUND_FULL)
        waiting, self.waiting = self.waiting, None
        for outcome in waiting or ():
            outcome.fail(error)
        return unsent

    def _answered(self, waiting: list[Outcome[None]], result: Outcome[None]) -> None:
        """Take the host's answer to what was sent."""
        self._sending = None
        owner = self._owner
        for outcome in waiting:
            outcome.follow(result)
        if result.error is not None and not owner.gone:
            owner.counters["sends_failed"] += 1
            if owner.tracer is not None:
                owner.tracer.refused("send", result.error)
            log.warning("%s ! send failed: %s", owner, result.error)
            if owner.conn.info.socktype not in ("udp", "dtls"):
                self._break()
        if not owner.waits & RUNNING:
            owner.later()

    def _break(self) -> None:
        """Send no more: the stream has a hole. The host may be about to say why."""
        if not self._broken:
            self._broken = True
            self._cancel_stall()
            lose = self._owner.lose
            self._stall = self._owner.engine.runtime.call_later(GRACE, lose, "a send failed")

    def _settle(self) -> None:
        waiting, self.waiting = self.waiting, None
        for outcome in waiting or ():
            outcome.settle(None)

    def _confirm(self, confirm: Callable[[], Outcome[None]]) -> Outcome[None]:
        """Flush, and ask whether it has arrived."""
        owner = self._owner
        if owner.gone:
            return refused(owner.closed_error())
        self.flush()
        outcome = confirm()
        owner.track(outcome)
        return outcome

    def _stalled(self) -> None:
        self._stall = None
        self._owner.lose(f"it hasn't read anything for {self._owner.engine.limits.stall:g} s")

    def _cancel_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
