"""An append-only log of messages: written by many, made safe together, noted as done one by one.

Everything that is appended in one turn of the loop, and while the disk is busy, is written together and
waited for once (group commit); where that is much, writing begins before the turn has ended. One file
follows another; the oldest is removed when all its messages are done. Where a message that waits for ever
keeps it, those behind it are removed too, once the files take more than `SPARE` and twice what waits; what
they note of older files is noted anew before. The files never take more than twice the limit. Why a log of
our own and not SQLite: see `exproto_app.store`.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Generic, Literal, TypeAlias, TypeVar

from ..commands import Publish
from .disk import Disk
from .files import BLOCK, Found, Part, Writer, path_of, read_block
from .records import HEADER, Stored, done, message, new_marker, read_one
from .segments import Entry, Owner, Run, Segment

__all__ = ["Log"]

log = logging.getLogger("exproto_app")

LARGEST: Final = 8 * 1024 * 1024
SMALLEST: Final = 4 * 1024
"""Bytes of a file, at which the next is begun; a sixteenth of the limit, if that lies between."""

SPARE: Final = 4
"""Files that may be there without anything in them that waits, beside as much as waits."""

EARLY: Final = 131_072
"""Bytes that are written at once if the disk is idle, although more may come in the same turn of the loop."""

WRITING: Final = 16 * 1024 * 1024
"""Bytes that may be on their way to the disk; then nothing more is taken."""

CACHE: Final = 8 * 1024 * 1024
"""Bytes that are kept after reading: devices that were stored together are read together."""

NOTES: Final = 0.1
"""Seconds that a note of what is done may wait for company."""

RETRY: Final = 5.0
"""Seconds until a disk that failed is tried again."""


E = TypeVar("E", bound=Entry)

Notes: TypeAlias = "dict[Segment, array[int]]"
"""The ids of messages that are done, by the file that they are in."""


class Log(Generic[E]):
    """The log in *folder*, of *limit* bytes; *part* is its number among others of the same store.

    *clock* returns the time of day, in seconds since 1970.
    """

    def __init__(  # noqa: PLR0917 - what it is made of, each once
        self,
        folder: Path,
        part: int,
        limit: int,
        owner: Owner[E],
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self.folder = folder
        self.limit = limit
        self.live = 0  # bytes that are to be sent
        self.size = 0  # bytes of the files
        self.count = 0  # messages
        self.trouble = ""
        self._told = ""
        self.segments: dict[int, Segment] = {}
        self.segment_size = min(LARGEST, max(SMALLEST, limit // 16))
        self.disk = Disk(loop)
        self._part = part
        self._owner = owner
        self._loop = loop
        self._clock = clock
        self._marker = new_marker()
        self._writer = Writer(folder, self._marker)
        self._last_id = 0
        self._tail: Segment | None = None
        self._last_number = 0
        self._parts: list[Part] = []
        self._entries: list[E] = []
        self._notes: Notes = {}
        self._doomed: list[int] = []  # files that go once what they noted is written anew
        self._noting: asyncio.TimerHandle | None = None
        self._uncommitted = self._committing = 0
        self._scheduled = self._writing = self._short = False
        self._retrying: asyncio.TimerHandle | None = None
        self._blocks: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._cached = 0
        self._unreadable: set[tuple[int, int]] = set()
        self._reading: dict[tuple[int, int], list[Callable[[], object]]] = {}

    @property
    def busy(self) -> bool:
        """Whether anything is on its way to the disk."""
        return self._writing or bool(self._parts or self._notes)

    # --- what is there already

    def adopt(self, found: Found) -> dict[str, list[Run]]:
        """Take over what *found* tells of files in the folder; return what waits, by clientid."""
        # Of another part; the next is higher all the same.
        self._last_id = max(self._last_id, found.highest & ~0xFF | self._part & 0xFF)
        self._last_number = max(self._last_number, *found.sizes, 0)
        for number, size in found.sizes.items():
            self.segments[number] = Segment(number, size=size)
            self.size += size
        waiting: dict[str, list[Run]] = {}
        for clientid, entries in found.waiting.items():
            runs = waiting[clientid] = []
            last = 0
            for one, number, offset, size in entries:
                if one == last:  # written twice, when the disk had failed
                    continue
                last = one
                segment = self.segments[number]
                segment.live += 1
                segment.bytes += size
                self.count += 1
                self.live += size
                if not runs or runs[-1].segment is not segment:
                    runs.append(Run(segment, one))
                runs[-1].offsets.append(offset)
        self.segments = dict(sorted(self.segments.items()))
        self._clean_up()
        return waiting

    def reserve(self, count: int) -> int:
        """Keep *count* numbers of files for files of others; return the first."""
        self._last_number += count
        self._tail = None
        return self._last_number - count + 1

    # --- appending

    def append(self, entry: E, clientid: bytes, command: Publish) -> bool:
        """Have *command* written; return False where it can't be now: *entry* is on no disk then."""
        if self.trouble or self._uncommitted > WRITING:
            self._short = True
            return False
        data = message(self._marker, entry.id, clientid, command)
        size = len(data)
        if self.live + size > self.limit or self.size + size > 2 * self.limit:
            self._full()
            return False
        segment = self._tail
        if segment is not None and self._parts and segment.size + size <= self.segment_size:
            self._parts[-1].chunks.append(data)  # as `_put` has it: this is the hot path
            segment.size += size
            self.size += size
        else:
            segment = self._put(data)
        entry.segment = segment
        entry.offset = segment.size - size
        entry.size = size
        segment.live += 1
        segment.bytes += size
        self.live += size
        self.count += 1
        self._entries.append(entry)
        self._uncommitted += size
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._commit)
        elif self._uncommitted > EARLY and not self._writing:
            self._commit()
        return True

    def _full(self) -> None:
        if not self._short:
            self._short = True
            log.warning("store ! %s: the store is full, limit is %d bytes", self.folder, self.limit)

    def done(self, entry: E) -> None:
        """Note that *entry* need not be sent any more."""
        segment = entry.segment
        if segment is not None:
            entry.segment = None
            notes = self._notes.get(segment)
            if notes is None:
                notes = self._notes[segment] = array("Q")
            notes.append(entry.id)
            if segment.live > 1 and not self._short:  # as `_settle` has it: this is the hot path
                segment.live -= 1
                segment.bytes -= entry.size
                self.count -= 1
                self.live -= entry.size
            else:
                self._settle(segment, 1, entry.size)
            if self._noting is None:
                self._note_soon()

    def _settle(self, segment: Segment, count: int, size: int) -> None:
        segment.live -= count
        if not segment.live:
            size = segment.bytes  # of some, nobody could tell how large they were
        segment.bytes -= size
        self.count -= count
        self.live -= size
        if not segment.live:
            self._clean_up()
        if self._short and self._roomy:
            self._tell_room()

    @property
    def _roomy(self) -> bool:
        return self.live <= self.limit - self.limit // 16 and self.size <= 2 * self.limit - self.limit // 16

    def _note_again(self, notes: Notes) -> None:
        for segment, ids in notes.items():
            self._notes.setdefault(segment, array("Q")).extend(ids)

    def _note_soon(self) -> None:
        if self._noting is None:
            self._noting = self._loop.call_later(NOTES, self._commit)

    def _tell_room(self) -> None:
        self._short = False
        self._loop.call_soon(self._owner.room)

    def new_id(self) -> int:
        """Return an id, higher than all before."""
        if self._scheduled:  # in the same turn of the loop
            self._last_id += 256
            return self._last_id
        number = (int(self._clock() * 1_000_000) << 8) | (self._part & 0xFF)
        if number <= self._last_id:  # within a microsecond, or the clock was set back
            number = ((self._last_id >> 8) + 1 << 8) | (self._part & 0xFF)
        self._last_id = number
        return number

    def _put(self, data: bytes) -> Segment:
        """Put *data* behind what is to be written."""
        segment = self._tail
        if segment is None or segment.size + len(data) > self.segment_size:
            self._last_number += 1
            segment = self._tail = Segment(self._last_number, size=HEADER, noted={})
            self.segments[segment.number] = segment
            self.size += HEADER
            self._parts.append(Part(segment.number, HEADER, fresh=True))
            self._clean_up()
        elif not self._parts:
            self._parts.append(Part(segment.number, segment.size, fresh=False))
        self._parts[-1].chunks.append(data)
        segment.size += len(data)
        self.size += len(data)
        return segment

    def _commit(self) -> None:
        """Write what has come together, unless the disk is busy; then it goes with what comes meanwhile."""
        self._scheduled = False
        if self._noting is not None:
            self._noting.cancel()
            self._noting = None
        if self._writing or self.trouble:
            return
        notes, self._notes = self._notes, {}
        if notes and (self._tail is not None or self.live):
            self._write_notes(notes)
        if not self._parts:
            return
        doomed, self._doomed = self._doomed, []
        parts, self._parts = self._parts, []
        entries, self._entries = self._entries, []
        self._committing = self._uncommitted
        self._writing = True
        # A note may be lost: then a message is sent twice.
        work = partial(self._writer.write, parts, safe=bool(entries))
        self.disk.submit(work, partial(self._written, entries, notes, doomed))

    def _write_notes(self, notes: Notes) -> None:
        """Put *notes* behind what is to be written, and remember those about other files."""
        tail = self._put(done(self._marker, _together(notes)))
        for segment, ids in notes.items():
            if segment is not tail and segment.number in self.segments and tail.noted is not None:
                tail.noted.setdefault(segment.number, array("Q")).extend(ids)

    def _written(
        self,
        entries: list[E],
        notes: Notes,
        doomed: list[int],
        _: None,
        error: Exception | None,
    ) -> None:
        self._writing = False
        if error is not None:
            self._note_again(notes)
            self._doomed = doomed + self._doomed
            self._failed(entries, error)
            return
        if entries and self._told:
            self._told = ""
            log.info("store = %s is written again", self.folder)
        for number in doomed:
            self.disk.submit(partial(self._writer.remove, number), _nothing)
        self._uncommitted -= self._committing
        if self._parts or self._notes:
            self._commit()
        if entries:
            self._owner.safe(entries)
        if self._short and self._uncommitted <= WRITING // 2 and self._roomy:
            self._tell_room()

    # --- a disk that fails

    def _failed(self, entries: list[E], error: Exception) -> None:
        """Give up what was to be written: nothing of it is on the disk. Try again after a while."""
        entries += self._entries
        self._entries, self._parts, self._tail, self._uncommitted = [], [], None, 0
        self.trouble = _words(error)
        if self._told != self.trouble:
            self._told = self.trouble
            log.error("store ! %s can't be written: %s; trying again", self.folder, self.trouble)
        for entry in entries:
            segment = entry.segment
            if segment is not None:
                entry.segment = None
                self._settle(segment, 1, entry.size)
        self._clean_up()
        self._retrying = self._loop.call_later(RETRY, self._retry)
        self._owner.unsafe(entries)

    def _retry(self) -> None:
        """See whether a file can be written, with what was noted meanwhile."""
        self._last_number += 1
        probe = Part(self._last_number, HEADER, fresh=True)
        notes, self._notes = self._notes, {}
        if notes:
            probe.chunks.append(done(self._marker, _together(notes)))
        segment = Segment(probe.number, size=HEADER + sum(map(len, probe.chunks)))
        self.disk.submit(
            partial(self._writer.write, [probe], safe=True), partial(self._tried, segment, notes)
        )

    def _tried(self, segment: Segment, notes: Notes, _: None, error: Exception | None) -> None:
        if error is not None:
            self._note_again(notes)
            self._retrying = self._loop.call_later(RETRY, self._retry)
            self.trouble = _words(error)
            self.disk.submit(partial(self._writer.remove, segment.number), _nothing)
            return
        self.trouble = ""
        self.segments[segment.number] = self._tail = segment
        self.size += segment.size
        self._tell_room()

    # --- room

    def _clean_up(self) -> None:
        """Remove the oldest files, as far as all in them is done; and others, where those keep too many."""
        unwritten = {part.number for part in self._parts}
        kept = False  # by a message that waits in an older one
        for number, segment in tuple(self.segments.items()):
            if segment is self._tail or number in unwritten:
                break
            if segment.live:
                kept = True
            elif not kept:
                # Notes of what is done are about messages before them: the oldest may go.
                self._forget(segment)
                self.disk.submit(partial(self._writer.remove, number), _nothing)
            elif segment.noted is not None and self.size > 2 * self.live + SPARE * self.segment_size:
                self._note_again({self.segments[other]: ids for other, ids in segment.noted.items()})
                self._forget(segment)
                self._doomed.append(number)
                self._note_soon()

    def _forget(self, segment: Segment) -> None:
        self.size -= segment.size
        del self.segments[segment.number]
        for other in self.segments.values():
            if other.noted:
                other.noted.pop(segment.number, None)

    def oldest(self) -> Segment | None:
        """Return the file that may be dropped first; None where only that being written has messages."""
        segment = next((segment for segment in self.segments.values() if segment.live), None)
        return None if segment is self._tail else segment

    def drop(self, segment: Segment) -> int:
        """Give up all that waits in *segment*; return how many messages that was."""
        count = segment.live
        self._settle(segment, count, segment.bytes)
        return count

    # --- reading

    def read(self, run: Run, then: Callable[[], object]) -> Stored | Literal["gone"] | None:
        """Return the next message of *run*, None where it has to be read first: *then* is called after that.

        It is gone where it can't be read any more, which is logged.
        """
        number, offset = run.segment.number, run.offsets[run.next]
        start = offset // BLOCK * BLOCK
        data = self._blocks.get((number, start), b"")
        found = read_one(data, offset - start, start)
        if isinstance(found, Stored):
            run.next += 1
            return found
        if (number, offset) in self._unreadable:
            self._unreadable.discard((number, offset))
            run.next += 1
            self._settle(run.segment, 1, 0)
            log.error("store ! a message in %s can't be read and is dropped", path_of(self.folder, number))
            return "gone"
        callbacks = self._reading.setdefault((number, start), [])
        callbacks.append(then)
        if len(callbacks) == 1:
            work = partial(read_block, self.folder, number, start, offset)
            self.disk.submit(work, partial(self._fetched, number, start, offset))
        return None

    def _fetched(self, number: int, start: int, offset: int, data: bytes, error: Exception | None) -> None:
        """Keep a block, and have those go on that waited for it."""
        if error is None:
            self._blocks[number, start] = data
            self._cached += len(data)
            while self._cached > CACHE and len(self._blocks) > 1:
                _, old = self._blocks.popitem(last=False)
                self._cached -= len(old)
        if error is not None or not isinstance(read_one(data, offset - start, start), Stored):
            self._unreadable.add((number, offset))
        for then in self._reading.pop((number, start), ()):
            then()

    async def close(self) -> None:
        """Write what waits, and end."""
        for timer in (self._noting, self._retrying):
            if timer is not None:
                timer.cancel()
        self._commit()
        while self._writing:
            await self.disk.run(_nothing)
        self.trouble = "the store is closed"
        await self.disk.run(self._writer.close)
        self.disk.close()


def _together(notes: Notes) -> array[int]:
    ids = array("Q")
    for one in notes.values():
        ids.extend(one)
    return ids


def _words(error: Exception) -> str:
    """Return what went wrong, for people."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()


def _nothing(*_: object) -> None:
    """Do nothing; a file that can't be removed is found done at the next start."""
