"""Who owns what in a store's folder: one gateway the folder, each of its processes a part.

A part is a folder `part-N` with files of its own, locked by the process that writes there. What another left
behind, a worker that died or the run before, is taken over: its files move to the part of who finds them.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
from collections.abc import Collection
from itertools import count
from pathlib import Path
from typing import Any, Final

import attrs

from ..errors import SetupError
from .files import Found, find, numbers, path_of, sync_folder
from .order import begin

__all__ = ["Lock", "Place", "leftovers", "lock_folder", "lock_part", "look", "parts", "take_over"]

PREFIX: Final = "part-"

FAULTS: Final = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""What is wrong with a disk, not with the folder that somebody chose on it."""


class Lock:
    """The lock on a file, until `release` or the end of the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Let others have it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _lock(path: Path) -> Lock | None:
    """Lock the file *path*; None where another has. Raises `OSError`."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        if error.errno not in FAULTS or not path.exists():
            raise
        descriptor = os.open(path, os.O_RDONLY)  # nobody can write here, but perhaps others read
    try:
        fcntl: Any = importlib.import_module("fcntl")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows
        pass
    except BlockingIOError:
        os.close(descriptor)
        return None
    return Lock(descriptor)


def lock_folder(folder: Path, *, shared: bool = False) -> Lock | None:
    """Make *folder* where it isn't there, and lock it for this gateway; None where its disk is at fault.

    *shared*: several processes will have parts of it at a time. Raises `SetupError` if another gateway has
    it, or if nobody could ever write there.
    """
    path = folder / "lock"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _lock(path)
        for _, part in parts(folder):
            _check(part)
    except OSError as error:
        if error.errno in FAULTS and folder.is_dir():
            return None
        name = folder if error.filename in (None, str(path)) else error.filename
        words = f"{name} can't be used: {error.strerror}; name a folder that this user may write to"
        raise SetupError(f"--store {folder}: {words}") from None
    if lock is None:
        raise SetupError(f"--store {folder}: another gateway uses this folder; give each one of its own")
    with contextlib.suppress(OSError):  # without it, devices that change workers lose their order
        loading = [number for number, part in parts(folder) if numbers(part)]
        begin(folder, loading, shared=shared)
    return lock


def _check(part: Path) -> None:
    """Raise `OSError` where this user may not write to a part: another one has run the gateway before."""
    for path in (part, part / "lock"):
        if path.exists() and not os.access(path, os.R_OK | os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def parts(folder: Path) -> list[tuple[int, Path]]:
    """Return the parts in *folder*, with their numbers. Raises `OSError`."""
    found = [(path.name.removeprefix(PREFIX), path) for path in folder.iterdir() if path.is_dir()]
    return sorted((int(number), path) for number, path in found if number.isdigit())


@attrs.define
class Place:
    """A part that this process has: its *number*, its *folder*, and the numbers of its *files*."""

    number: int
    folder: Path
    files: list[int]
    _lock: Lock

    def release(self) -> None:
        """Let others have it."""
        self._lock.release()


def lock_part(folder: Path) -> Place:
    """Take the first part that nobody has, a new one if need be. Raises `OSError`."""
    for number in count(1):
        path = folder / f"{PREFIX}{number}"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _lock(path / "lock")
        if lock is not None:
            return Place(number, path, numbers(path), lock)
    raise AssertionError("numbers end")


def leftovers(folder: Path, own: int, also: Collection[int] = ()) -> list[Place]:
    """Return every other part that has files, or is in *also*, and nobody who writes them, locked.

    Raises `OSError`.
    """
    found = []
    for number, path in parts(folder):
        if number != own and (number in also or numbers(path)):
            lock = _lock(path / "lock")
            if lock is not None:
                found.append(Place(number, path, numbers(path), lock))
    return found


def take_over(place: Place, target: Path, first: int) -> list[int]:
    """Move the files of *place* to *target*, where they get numbers from *first* on; return those.

    Raises `OSError`.
    """
    taken = []
    # The newest first: their notes of what is done are there before what they are about.
    for position, number in reversed(list(enumerate(place.files))):
        path_of(place.folder, number).rename(path_of(target, first + position))
        taken.append(first + position)
    sync_folder(target)
    return sorted(taken)


def look(folder: Path) -> Found:
    """Return what waits in all parts of *folder*, whoever has them, as if they were one. Raises `OSError`."""
    whole = Found()
    for _, path in parts(folder):
        found = find(path)
        whole.notes += found.notes
        for clientid, waiting in found.waiting.items():
            whole.waiting[clientid] = sorted(whole.waiting.get(clientid, []) + waiting)
    return whole
