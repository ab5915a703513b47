"""Which part has the oldest messages of a client, so that its order holds across processes.

A device may leave one worker of a gateway and come back to another while the broker is away. Then each has
messages of it in its part of the store, and whoever has the oldest has to send first. All parts tell this in
one file, `order` in the store's folder: a table for each, whose slots, found by a hash of the clientid, hold
the id of the oldest message, or an earlier one. Ids are times, so they put messages of all parts in order.
Clients that share a slot wait for each other, which delays them, and changes nothing else.

The table of a process that is killed stays as it is until another has taken its messages over. After a reboot
the file means nothing, so the gateway begins it anew: then parts with files count as `LOADING` until whoever
takes them over knows what is in them. A gateway of one process has no such file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final, TypeAlias
from zlib import crc32

__all__ = ["NEWEST", "Older", "Order", "begin"]

NAME: Final = "order"

PARTS: Final = 64
"""Parts that have a table; those with a higher number neither wait nor are waited for."""

SLOTS: Final = 131_072

LOADING: Final = (1 << 64) - 1
"""Stands for the number of used slots while nobody knows it."""

NEWEST: Final = LOADING
"""An id that no message reaches."""

_HEAD: Final = 8 * PARTS
_TABLE: Final = 8 * SLOTS
_NUMBER: Final = struct.Struct("<Q")
_COUNTS: Final = struct.Struct(f"<{PARTS}Q")

Older: TypeAlias = "tuple[tuple[int, int], ...]"
"""Parts that have older messages: the number of each, and the id of its oldest, 0 if nobody knows it."""


def begin(folder: Path, loading: Iterable[int], *, shared: bool) -> None:
    """Begin the file anew, unless there is one process alone; the parts *loading* have files.

    Raises `OSError`.
    """
    path = folder / NAME
    path.unlink(missing_ok=True)  # not emptied: a process that is about to end may have it open
    if not shared:
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        counts = [0] * PARTS
        for part in loading:
            if part <= PARTS:
                counts[part - 1] = LOADING
        os.ftruncate(descriptor, _HEAD + PARTS * _TABLE)
        os.pwrite(descriptor, _COUNTS.pack(*counts), 0)
    finally:
        os.close(descriptor)


class Order:
    """The file in *folder*, for who has part number *part*. Raises `OSError`, as its methods do.

    Nothing is told to others before `ready`.
    """

    def __init__(self, folder: Path, part: int) -> None:
        self._descriptor = os.open(folder / NAME, os.O_RDWR)
        self._part = part
        self._told = False
        self._slots: dict[int, dict[bytes, int]] = {}
        before = 8 * min(part - 1, PARTS)
        self._before, self._after = slice(before), slice(before + 8, _HEAD)
        self._quiet = bytes(before), bytes(max(0, _HEAD - before - 8))

    def ready(self) -> None:
        """Tell others what was put: it is all that waits in this part."""
        if self._part > PARTS:
            return
        table = bytearray(_TABLE)
        for slot, clients in self._slots.items():
            _NUMBER.pack_into(table, 8 * slot, min(clients.values()))
        start = self._table(self._part)
        if os.pread(self._descriptor, _TABLE, start) != table:
            os.pwrite(self._descriptor, table, start)
        self._told = True
        self._tell_count()

    def put(self, client: bytes, oldest: int) -> None:
        """Take note that messages of *client* wait here, none older than *oldest*."""
        slot = crc32(client) % SLOTS
        clients = self._slots.get(slot)
        if clients is None:
            self._slots[slot] = {client: oldest}
            self._tell(slot, oldest)
            self._tell_count()
            return
        before = min(clients.values())
        clients[client] = oldest
        after = min(clients.values())
        if after != before:
            self._tell(slot, after)

    def remove(self, client: bytes) -> None:
        """Take note that no messages of *client* wait here any more."""
        slot = crc32(client) % SLOTS
        clients = self._slots.get(slot)
        if clients is None or clients.pop(client, None) is None:
            return
        if clients:
            self._tell(slot, min(clients.values()))
        else:
            del self._slots[slot]
            self._tell(slot, 0)
            self._tell_count()

    def older(self, client: bytes, number: int) -> Older:
        """Return which other parts have messages of *client* that are older than the one with id *number*."""
        head = os.pread(self._descriptor, _HEAD, 0)
        if (head[self._before], head[self._after]) == self._quiet:  # as most of the time
            return ()
        found = []
        for part, count in self._others(head):
            if count == LOADING:
                found.append((part, 0))
                continue
            at = self._table(part) + 8 * (crc32(client) % SLOTS)
            oldest = int.from_bytes(os.pread(self._descriptor, 8, at), "little")
            if 0 < oldest < number:
                found.append((part, oldest))
        return tuple(found)

    def others(self) -> list[int]:
        """Return the other parts where messages wait."""
        return [part for part, _ in self._others(os.pread(self._descriptor, _HEAD, 0))]

    def taken_over(self, part: int) -> None:
        """Take note that nothing waits in *part* any more: this one has it all."""
        if part <= PARTS:
            os.pwrite(self._descriptor, _NUMBER.pack(0), 8 * (part - 1))

    def close(self) -> None:
        """Close the file; what waits still counts."""
        os.close(self._descriptor)

    def _others(self, head: bytes) -> list[tuple[int, int]]:
        """Return the other parts that *head* has a count of, with it."""
        counts = enumerate(_COUNTS.unpack(head), 1)
        return [(part, count) for part, count in counts if count and part != self._part]

    def _table(self, part: int) -> int:
        return _HEAD + (part - 1) * _TABLE

    def _tell(self, slot: int, oldest: int) -> None:
        if self._told:
            os.pwrite(self._descriptor, _NUMBER.pack(oldest), self._table(self._part) + 8 * slot)

    def _tell_count(self) -> None:
        if self._told:
            os.pwrite(self._descriptor, _NUMBER.pack(len(self._slots)), 8 * (self._part - 1))
