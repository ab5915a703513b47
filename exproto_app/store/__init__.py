"""The store: messages of devices, safe on the disk until the broker has them.

`Log` is an append-only log with group commit, one for each process of a gateway; `lock_folder` and
`lock_part` see to it that each has one of its own, and `leftovers` finds those whose process has ended.
`Order` tells each which part has the oldest messages of a client.

SQLite in WAL mode was measured beside it (`python -m tests.bench store`): as fast within the noise, at one
record a commit as at thousands. The log writes half as many bytes, which counts on the flash of small
gateways, and a damaged block costs the records in it, not the database. No well-kept library of an
append-only log was found; this one is a few hundred lines, and its format is tested byte by byte.
"""

from __future__ import annotations

from .files import Found, find
from .log import Log
from .order import NEWEST, Older, Order
from .parts import Lock, Place, leftovers, lock_folder, lock_part, look, take_over
from .segments import Run, Segment

__all__ = [
    "NEWEST",
    "Found",
    "Lock",
    "Log",
    "Older",
    "Order",
    "Place",
    "Run",
    "Segment",
    "find",
    "leftovers",
    "lock_folder",
    "lock_part",
    "look",
    "take_over",
]
