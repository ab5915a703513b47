"""What waits of one client in the store, in order, and who sends it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...commands import Outcome, Publish, Waiter
from ...core import Channel
from ...errors import CommandError
from ...store import Run, Segment
from .flights import size_of

if TYPE_CHECKING:
    from .device import Sender
    from .stored import Backlog

__all__ = ["Carrier", "Labelled", "Queue", "Record"]


class Labelled(Outcome[None]):
    """The outcome of a message that the gateway's own client publishes for *clientid*."""

    __slots__ = ("clientid",)

    def __init__(self, waiter: Callable[[], Waiter], clientid: str) -> None:
        super().__init__(waiter)
        self.clientid = clientid


class Record(Outcome[None]):
    """A message of *queue*; as an outcome it is the broker's answer, *safe* is what the device waits for.

    Where it is on the disk, *segment*, *offset* and *size* say where; *committed*: by now it surely is. The
    *id* puts the messages of a queue in order.
    """

    __slots__ = ("command", "committed", "id", "offset", "queue", "safe", "segment", "size")

    def __init__(self, queue: Queue, command: Publish, number: int, safe: Outcome[None] | None) -> None:
        super().__init__(queue.backlog.waiter)
        self.queue = queue
        self.command = command
        self.id = number
        self.safe = safe
        self.segment: Segment | None = None
        self.offset = self.size = 0
        self.committed = False

    def settle(self, value: None) -> None:  # noqa: ARG002 - as an outcome has it
        """Take note that the broker has it."""
        if not self.done:
            self.done = True
            self.queue.backlog.acknowledged(self)

    def fail(self, error: CommandError) -> None:
        """Take note that the broker hasn't taken it."""
        if not self.done:
            self.done = True
            self.queue.backlog.failed(self, error)


class Carrier:
    """A session that sends what is stored: *outstanding* messages; the queues *waiting* have more."""

    __slots__ = ("outstanding", "sender", "waiting")

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.outstanding = 0
        self.waiting: dict[Queue, None] = {}


class Queue:
    """The messages of *clientid*, the oldest first.

    1. *launched*: on their way to the broker, by *carrier*; once there is none, by its *heir*;
    2. *ready*: in memory, for they were read, or came back;
    3. *runs*: on the disk alone;
    4. *writing*: in memory, on their way to the disk or there;
    5. *tail*: in memory alone, because the disk can't take them now; *channels* wait for it to get shorter.

    *parked*: the gateway's own client may not publish these; they wait for the device. *overtakes*: it waits
    no longer for older messages in other processes.
    """

    __slots__ = (
        "backlog",
        "carrier",
        "channels",
        "clientid",
        "heir",
        "key",
        "launched",
        "loading",
        "overtakes",
        "parked",
        "pumping",
        "ready",
        "runs",
        "tail",
        "tail_bytes",
        "writing",
    )

    def __init__(self, backlog: Backlog, clientid: str, carrier: Carrier) -> None:
        self.backlog = backlog
        self.clientid = clientid
        self.key = clientid.encode()
        self.carrier = carrier
        self.heir: Carrier | None = None
        self.parked = self.pumping = self.loading = self.overtakes = False
        self.launched: dict[Record, None] = {}
        self.ready: deque[Record] | None = None
        self.runs: deque[Run] | None = None
        self.writing: deque[Record] | None = None
        self.tail: deque[Record] | None = None
        self.tail_bytes = 0
        self.channels: set[Channel] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing waits, but for what is launched."""
        return not (self.ready or self.runs or self.writing or self.tail)

    @property
    def empty(self) -> bool:
        """Whether nothing waits, nor is launched."""
        return self.idle and not self.launched

    @property
    def oldest(self) -> int:
        """The id of the oldest, or an earlier one; 0 where nobody knows it."""
        if self.launched:
            return next(iter(self.launched)).id
        return self.next_id or (self.runs[0].first if self.runs else 0)

    @property
    def next_id(self) -> int:
        """The id of the next that is to be launched; 0 where it has to be read first."""
        if self.ready:
            return self.ready[0].id
        if self.runs:
            return 0
        waiting = self.writing or self.tail
        return waiting[0].id if waiting else 0

    def put_back(self, records: list[Record]) -> None:
        """Have *records*, which were launched, be launched again, before everything else."""
        for record in records:
            record.done = False
            self.launched.pop(record, None)
        # They come back one by one, or many together.
        self.ready = deque(sorted((*records, *(self.ready or ())), key=_order))

    def adopt(self, runs: list[Run]) -> None:
        """Take *runs* of another process, among what is on the disk already."""
        ready, self.ready = self.ready or (), None
        unwritten = [record for record in ready if not record.committed]
        if unwritten:
            self.writing = deque((*unwritten, *(self.writing or ())))
        for record in ready:
            if record.committed and record.segment is not None:
                run = Run(record.segment, record.id)
                run.offsets.append(record.offset)
                runs.append(run)
        self.runs = deque(sorted((*runs, *(self.runs or ())), key=_first))

    def write(self, record: Record) -> None:
        """Take *record*, which is on its way to the disk."""
        if self.writing is None:
            self.writing = deque()
        self.writing.append(record)

    def hold(self, record: Record) -> None:
        """Take *record*, which the disk doesn't."""
        if self.tail is None:
            self.tail = deque()
        self.tail.append(record)
        self.tail_bytes += size_of(record.command)

    def unhold(self) -> Record:
        """Return the oldest that the disk hasn't taken, of one at least."""
        record = self.tail.popleft()  # type: ignore[union-attr] # there is one
        self.tail_bytes -= size_of(record.command)
        return record

    def spill(self, keep: int = 0) -> None:
        """Let go of what is on the disk, all but *keep*."""
        writing = self.writing
        while writing and len(writing) > keep and writing[0].committed:
            record = writing.popleft()
            segment = record.segment
            if segment is None:  # its file was dropped
                continue
            if self.runs is None:
                self.runs = deque()
            if not self.runs or self.runs[-1].segment is not segment:
                self.runs.append(Run(segment, record.id))
            self.runs[-1].offsets.append(record.offset)

    def unwritten(self) -> None:
        """Take note that what isn't committed couldn't be written."""
        if not self.writing:
            return
        failed = [record for record in self.writing if not record.committed]
        self.writing = deque(record for record in self.writing if record.committed)
        self.tail = deque((*failed, *(self.tail or ())))
        self.tail_bytes = sum(size_of(record.command) for record in self.tail)

    def forget(self, segment: Segment) -> None:
        """Let go of what waits in *segment*, which is dropped; what is launched goes on."""
        for record in self.launched:
            if record.segment is segment:
                record.segment = None
        if self.ready:
            self.ready = deque(record for record in self.ready if record.segment is not segment)
        if self.runs:
            self.runs = deque(run for run in self.runs if run.segment is not segment)
        if self.writing:
            self.writing = deque(record for record in self.writing if record.segment is not segment)


def _order(record: Record) -> Any:
    return record.id


def _first(run: Run) -> Any:
    return run.first
