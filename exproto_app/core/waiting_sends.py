"""Waiting sends: what the device is sent only once something else has succeeded.

`conn.send(data, after=outcome)` acknowledges the device when the broker has its record, and no turn waits for
that. A send goes through these states:

    waiting ──▶ sent        all its outcomes have succeeded, and those before it are sent
       ╰──────▶ dropped     an outcome failed, its own or that of one before it; or the connection has ended

They leave in the order in which they were issued. Other sends pass them, unless the router has a strict
order: then whatever is sent behind one that waits waits too.

A failure leaves a hole: a device that is told of the next record may take that for all before it. So what
waits behind it is dropped, and so is what comes, until `on_error` has judged the failure, in a turn of its
own. A handler that awaited the send knows by itself. Where several devices share the line, all this is about
the one whose send it was: the others' go on.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..commands import DONE, Outcome
from ..errors import ClosedError, CommandError, UnavailableError
from .memory import LARGE
from .states import CLOSED, ENDED, RUNNING, SENDS_FAILED, SENDS_FULL

if TYPE_CHECKING:
    from .seams import Owner

__all__ = ["WaitingSends"]

log = logging.getLogger("exproto_app")

HARD: Final = 256
"""One turn may have this many times `Limits.waiting_sends` wait; what is more fails."""


class WriteQueue(Protocol):
    """Where they go, `Outbound`."""

    chunks: list[bytes]
    strict: WaitingSends | None
    waiting: list[Outcome[None]] | None

    def add(self, data: bytes, /) -> Outcome[None]: ...
    def order(self, strict: WaitingSends | None, /) -> None: ...
    def flush(self) -> None: ...


class WaitingSend(Outcome[None]):
    """One send of *sender*, the connection or a child of it, that waits for *left* more outcomes."""

    __slots__ = ("data", "left", "sender", "sends")

    def __init__(self, sends: WaitingSends, data: bytes, left: int, sender: Owner) -> None:
        # As the base has it; a call of that would be a tenth of what a message costs.
        self.done = self.awaited = self.watched = False
        self.error = self.value = self._callbacks = None
        self._waiter = sends.waiter
        self.sends = sends
        self.data = data
        self.left = left
        self.sender = sender

    def one_done(self, outcome: Outcome[Any]) -> None:
        """Take what one of its outcomes has come to."""
        if self.done:
            outcome.watched = False  # so that somebody judges it
        elif outcome.error is not None:
            self.sends.failed(self, outcome.error, outcome)
        elif (confirmed := outcome.confirmed()) is not outcome:  # it has only just been handed over
            confirmed.when_done(self.one_done)
        else:
            self.left -= 1
            if not self.left:
                self.sends.release()


class WaitingSends:
    """The waiting sends of one connection, *size* bytes in all; made for the first one."""

    __slots__ = (
        "_ahead",
        "_culprits",
        "_limits",
        "_much",
        "_outbound",
        "_owner",
        "_queue",
        "_strict",
        "size",
        "waiter",
    )

    def __init__(self, owner: Owner, outbound: WriteQueue) -> None:
        self._owner = owner
        self._outbound = outbound
        self._strict = owner.protocol.router.strict_order
        self._queue: deque[WaitingSend] = deque()
        # Whose failure isn't judged yet, by who sent it.
        self._culprits: dict[Owner, tuple[WaitingSend, Outcome[Any] | None]] = {}
        self._ahead = 0  # chunks of the write queue that were there before the first that waits
        self._limits = limits = owner.engine.limits
        self._much = min(LARGE, limits.outbox, limits.outbox_max)  # bytes that somebody has to look at
        self.waiter = owner.engine.runtime.waiter
        self.size = 0

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, data: bytes, after: Sequence[Outcome[Any]], sender: Owner | None = None) -> Outcome[None]:
        """Send *data* of *sender* when those before it are sent and all of *after* have succeeded."""
        send = WaitingSend(self, data, len(after), sender or self._owner)
        for outcome in after:
            outcome.watched = True
        if self._culprits:
            culprit = self._culprits.get(send.sender)
            if culprit is not None and not culprit[0].awaited:
                self._drop([send], culprit[0].error)
                for outcome in after:
                    outcome.when_done(send.one_done)
                return send
        if self._strict:
            self._append_strictly(send)
        else:
            self._queue.append(send)
            self.size += len(data)
        for outcome in after:
            outcome.confirmed().when_done(send.one_done)
        if not after:
            self.release()
        if self.size > self._much or len(self._queue) > self._limits.waiting_sends:
            self._look_for_room(send)
        return send

    def absorb(self) -> None:
        """Have what handlers returned meanwhile wait behind what waits: the order is strict."""
        outbound = self._outbound
        if outbound.strict is None:
            return
        chunks = outbound.chunks
        late, chunks[self._ahead :] = chunks[self._ahead :], ()
        for data in late:
            self._append(WaitingSend(self, data, 0, self._owner))

    def _append_strictly(self, send: WaitingSend) -> None:
        """Have *send* wait behind what handlers returned meanwhile, and all else behind it."""
        self.absorb()
        if not self._queue:
            self._outbound.order(self)
            self._ahead = len(self._outbound.chunks)
        self._append(send)

    def count_ahead(self) -> None:
        """Take note that all that is in the write queue stands before what waits."""
        self._ahead = len(self._outbound.chunks)

    def release(self) -> None:  # noqa: C901 - the hot path is flat
        """Send what needn't wait any more."""
        owner, outbound, queue = self._owner, self._outbound, self._queue
        if not queue or queue[0].left:
            return
        if self._strict:
            self.absorb()
        if not owner.waits and self._send_now():
            return
        while queue and not queue[0].left and owner.state < CLOSED:
            send = queue.popleft()
            self.size -= len(send.data)
            result = outbound.add(send.data)
            if result is DONE:
                send.settle(None)
            else:
                send.follow(result.confirmed() if send.awaited else result)
        if self._strict:
            self._ahead = len(outbound.chunks)
            if not queue:
                outbound.order(None)
        if owner.waits & SENDS_FULL:
            self._look_for_room()
        if owner.waits & RUNNING:
            return
        together = owner.engine.together
        if together is None:
            self.flush()
        else:
            together[self] = None

    def _send_now(self) -> bool:
        """Send the first, unless something is in the way; as `Outbound.flush` does it, for most are alone."""
        owner, outbound, queue = self._owner, self._outbound, self._queue
        write = owner.write
        if write is None or outbound.chunks or outbound.waiting or owner.engine.together is not None:
            return False
        if len(queue) > 1 and not queue[1].left:
            return False
        send = queue.popleft()
        size = len(send.data)
        self.size -= size
        owner.counters["bytes_sent"] += size
        owner.bytes_sent += size
        write(send.data)
        send.settle(None)
        return True

    def flush(self) -> None:
        """Have what was released leave."""
        owner = self._owner
        if owner.state < CLOSED and not owner.waits & RUNNING:
            self._outbound.flush()
            if owner.waits:
                owner.later()

    def failed(self, send: WaitingSend, error: CommandError, outcome: Outcome[Any] | None = None) -> None:
        """Drop *send*, because of *error*, and what its sender has waiting behind it."""
        owner, queue = self._owner, self._queue
        dropped: list[WaitingSend] = []
        kept: list[WaitingSend] = []
        while queue and (not dropped or dropped[-1] is not send):
            one = queue.pop()
            (dropped if one.sender is send.sender else kept).append(one)
        dropped.reverse()
        queue.extend(reversed(kept))
        self.size -= sum(len(one.data) for one in dropped)
        if not queue:
            self._outbound.order(None)
        if send.sender not in self._culprits:
            self._culprits[send.sender] = send, outcome
            owner.waits |= SENDS_FAILED
        self._drop(dropped, error)
        if kept:
            self.release()
        if owner.waits & SENDS_FULL:
            self._look_for_room()
        if not owner.waits & RUNNING:
            owner.later()

    def judge(self) -> None:
        """Have failures judged like a handler's, unless a handler has awaited them: the turn of it."""
        self._owner.waits &= ~SENDS_FAILED
        for sender in tuple(self._culprits):
            if sender is self._owner:
                self._judge(sender)
            elif sender.state is ENDED:
                del self._culprits[sender]
            else:
                sender.enqueue(self._judge, sender)
                sender.later()

    def _judge(self, sender: Owner) -> None:
        """Have the failure of what *sender* sent judged, in a turn of its own."""
        culprit = self._culprits.pop(sender, None)
        if culprit is None:
            return
        send, outcome = culprit
        if outcome is not None:
            outcome.awaited = True  # on_error knows it now
        if not send.awaited and send.error is not None:
            sender.failed("send", None, send.error)

    def close(self, error: ClosedError) -> int:
        """Let go of what will never be sent, and return how many bytes that is."""
        owner = self._owner
        owner.waits &= ~(SENDS_FULL | SENDS_FAILED)
        self._culprits.clear()
        size, self.size = self.size, 0
        sends = tuple(self._queue)
        self._queue.clear()
        self._outbound.order(None)
        for send in sends:
            send.fail(error)
        return size

    def _append(self, send: WaitingSend) -> None:
        self._queue.append(send)
        self.size += len(send.data)

    def _drop(self, sends: Sequence[WaitingSend], error: CommandError | None) -> None:
        """Count and log *sends*, which are dropped because of *error*."""
        owner = self._owner
        owner.counters["sends_dropped"] += len(sends)
        owner.drop("bytes", sum(len(send.data) for send in sends), "unsent")
        text = "%s ! %d sends dropped: the outcome they waited for failed: %s"
        log.warning(text, sends[0].sender, len(sends), error)
        if error is not None:
            if owner.tracer is not None:
                owner.tracer.refused("send", error)
            first, *behind = sends
            first.fail(error)
            for send in behind:
                send.fail(
                    UnavailableError(f"not sent: an earlier send waited for an outcome that failed: {error}")
                )

    def _look_for_room(self, last: WaitingSend | None = None) -> None:
        """Have turns wait while too much waits here; *last* fails where even one turn may have no more."""
        owner, number = self._owner, len(self._queue)
        limits = self._limits
        most = limits.waiting_sends
        if last is not None and self.size > LARGE:
            owner.engine.memory.note(owner)
        if number > HARD * most or self.size > limits.outbox_max:
            if last is not None and not last.done:
                bounds = f"limits are {HARD * most} and {limits.outbox_max}"
                self.failed(last, UnavailableError(f"{number} sends wait, {self.size} bytes, {bounds}"))
        elif number > most or self.size > limits.outbox:
            owner.waits |= SENDS_FULL
        elif owner.waits & SENDS_FULL and number <= most // 2 and self.size <= limits.outbox // 2:
            owner.waits &= ~SENDS_FULL
            if not owner.waits & RUNNING:
                owner.later()
