"""The files of one part: writing behind each other, reading in blocks, reading all of them at the start.

All of this takes time, so it runs in a thread; see `disk`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Sequence
from io import FileIO
from pathlib import Path
from typing import Final

import attrs

from .records import Damage, Done, Stored, header, read_one, scan

__all__ = [
    "BLOCK",
    "OVER",
    "Found",
    "Part",
    "Writer",
    "find",
    "numbers",
    "path_of",
    "read_block",
    "sync_folder",
]

BLOCK: Final = 262_144
"""Bytes that are read at a time."""

OVER: Final = 65_536
"""Bytes behind a block that are read with it: most records that begin in it end there."""

SUFFIX: Final = ".log"

MOST: Final = 64 * 1024 * 1024
"""Bytes of a file that is read as a whole; those that a store writes are far smaller."""


@attrs.define
class Part:
    """What is to be written to file *number*, from *offset* on; *fresh*: the file doesn't exist yet."""

    number: int
    offset: int
    fresh: bool
    chunks: list[bytes] = attrs.Factory(list)


class Writer:
    """Writes the files in *folder*, which begin with a header for *marker*, one after another."""

    def __init__(self, folder: Path, marker: bytes) -> None:
        self._folder = folder
        self._marker = marker
        self._number = 0
        self._safe = self._plain = -1

    def write(self, parts: Sequence[Part], *, safe: bool) -> None:
        """Write *parts*; *safe*: to the disk itself. Raises `OSError`, with nothing written."""
        try:
            for part in parts:
                self._write(part, safe=safe)
        except OSError:
            self.close()
            for part in parts:
                with contextlib.suppress(OSError):
                    os.truncate(path_of(self._folder, part.number), part.offset)
            raise

    def remove(self, number: int) -> None:
        """Remove a file. Raises `OSError`."""
        if number == self._number:
            self.close()
        path_of(self._folder, number).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        for descriptor in {self._safe, self._plain} - {-1}:
            with contextlib.suppress(OSError):  # what is written is safe already
                os.close(descriptor)
        self._number, self._safe, self._plain = 0, -1, -1

    def _write(self, part: Part, *, safe: bool) -> None:
        if part.number != self._number:
            self._open(part)
        descriptor = self._safe if safe else self._plain
        data = b"".join(part.chunks)
        start = part.offset
        if part.fresh:
            data, start = header(self._marker) + data, 0
        os.lseek(descriptor, start, os.SEEK_SET)
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        if safe and self._safe == self._plain:
            os.fsync(descriptor)
        if part.fresh:
            sync_folder(self._folder)

    def _open(self, part: Part) -> None:
        self.close()
        path = path_of(self._folder, part.number)
        self._plain = self._safe = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        self._number = part.number
        # With this, one system call writes and waits for the disk: a second one would wait for the
        # interpreter, too, while the loop is busy.
        if hasattr(os, "O_DSYNC"):
            self._safe = os.open(path, os.O_WRONLY | os.O_DSYNC)


def path_of(folder: Path, number: int) -> Path:
    """Return where file *number* is."""
    return folder / f"{number:08}{SUFFIX}"


def numbers(folder: Path) -> list[int]:
    """Return the numbers of the files in *folder*. Raises `OSError`."""
    found = (path.name.removesuffix(SUFFIX) for path in folder.iterdir() if path.name.endswith(SUFFIX))
    return sorted(int(name) for name in found if name.isdigit())


def read_block(folder: Path, number: int, start: int, offset: int) -> bytes:
    """Return a block of a file, with the whole of the record at *offset*. Raises `OSError`."""
    with path_of(folder, number).open("rb", buffering=0) as file:
        file.seek(start)
        data = _read(file, BLOCK + OVER)
        found = read_one(data, offset - start, start)
        if isinstance(found, int):
            data += _read(file, offset - start + found - len(data))
            found = read_one(data, offset - start, start)
        if isinstance(found, int):  # its header wasn't there
            data += _read(file, offset - start + found - len(data))
        return data


def _read(file: FileIO, size: int) -> bytes:
    """Return *size* bytes, fewer at the end of *file*."""
    data = b""
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data


def _content(path: Path) -> bytes:
    """Return what is in the file at *path*. Raises `OSError`, also for one that can't be of a store."""
    flags = getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe would wait for its writer
    with open(os.open(path, os.O_RDONLY | flags), "rb") as file:  # noqa: PTH123 - it is open already
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it isn't a regular file")
        if status.st_size > MOST:
            raise OSError(errno.EFBIG, f"it has {status.st_size} bytes, limit is {MOST}")
        return file.read()


@attrs.define
class Found:
    """What the files of a part hold: the messages that wait, by clientid, each as file, offset and size.

    *sizes* are the files' own, *notes* what couldn't be read, *torn* what was cut off, or is being written.
    *highest* is the highest id.
    """

    waiting: dict[str, list[tuple[int, int, int, int]]] = attrs.Factory(dict)
    """By clientid: (id, file, offset, size), by id."""
    sizes: dict[int, int] = attrs.Factory(dict)
    notes: list[str] = attrs.Factory(list)
    torn: list[str] = attrs.Factory(list)
    highest: int = 0


def find(folder: Path, only: Sequence[int] | None = None) -> Found:
    """Read the files in *folder*, or *only* those numbers. Raises `OSError` if it can't be listed."""
    found = Found()
    through: set[int] = set()
    # A note of what is done stands behind it, so the newest come first: the set stays small.
    for number in reversed(numbers(folder) if only is None else only):
        path = path_of(folder, number)
        try:
            data = _content(path)
        except FileNotFoundError:  # it is done, and was removed meanwhile
            continue
        except OSError as error:
            found.notes.append(f"{path} can't be read: {error.strerror}")
            continue
        found.sizes[number] = len(data)
        for one in _sort_out(found, path, scan(data), through):
            if one.id in through:
                through.discard(one.id)
            else:
                waiting = found.waiting.setdefault(one.clientid, [])
                waiting.append((one.id, number, one.offset, one.size))
    for waiting in found.waiting.values():
        waiting.sort()
    found.notes.reverse()
    return found


def _sort_out(
    found: Found, path: Path, items: Iterable[Stored | Done | Damage], through: set[int]
) -> list[Stored]:
    """Return the messages among *items*; take note of the rest."""
    messages = []
    for item in items:
        if isinstance(item, Stored):
            messages.append(item)
            found.highest = max(found.highest, item.id)
        elif isinstance(item, Done):
            through.update(item.ids)
            found.highest = max(found.highest, *item.ids)
        elif item.torn:
            found.torn.append(f"{path}: the last {item.size} bytes were cut off while they were written")
        else:
            found.notes.append(f"{path}: {item.size} bytes at {item.offset} are damaged and are skipped")
    return messages


def sync_folder(folder: Path) -> None:
    """Have the names of new files be on the disk as well. Raises `OSError`."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows does it by itself
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
