"""Watchers that write: a recording into a file, a hex dump to the terminal.

Writing is done in a thread, so that a slow disk or a stopped terminal holds nobody up; what waits for it is
bounded, and what is too much is left out, and said.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Generic, TextIO, TypeAlias, TypeVar

from ..app import App
from ..models import ClientInfo
from ..names import escaped
from ..tap import (
    Burst,
    Closed,
    Delivered,
    Enough,
    Event,
    Frame,
    Opened,
    Received,
    Registered,
    Sent,
    Shown,
    Tap,
    masking,
)
from ..traffic.hexdump import shown
from ..traffic.recording import Entry, Gap, bytes_line, bytes_lines, line, opening

__all__ = ["KEEP", "SIZE", "Background", "HexDump", "Recorder", "record"]

log = logging.getLogger("exproto_app")

T = TypeVar("T")

Happened: TypeAlias = tuple[float, str, str, Shown | Gap]
"""When, on which connection, of which protocol, and what."""

SIZE: Final = 16 * 1024 * 1024
"""Bytes of a recording's file, at which the next is begun."""

KEEP: Final = 5
"""Files of older events that are kept."""

PAUSE: Final = 0.5
"""Seconds that events may wait to be written to a file."""

WAITING: Final = 8 * 1024 * 1024
"""Bytes that may wait to be written."""

ROOM: Final = 100
"""Bytes that an event counts among them beside those that it is about."""

PIECE: Final = 1_000
"""Events that are written at a time."""

GOODBYE: Final = 5.0
"""Seconds that writing what waits may take at the end."""


class Background(Generic[T]):
    """A thread that calls *write* with the items that were put; it is begun with the first of them.

    *pause* is how long it collects before it writes, *limit* how many bytes may wait. When *write* can't,
    *failed* is told, once, and nothing more is written.
    """

    def __init__(
        self,
        write: Callable[[list[T]], object],
        failed: Callable[[Exception], object],
        *,
        pause: float = 0.0,
        limit: int = WAITING,
    ) -> None:
        self.broken = False
        self._write = write
        self._failed = failed
        self._pause = pause
        self._limit = limit
        self._waiting: deque[tuple[T, int]] = deque()
        self._size = self._written = 0  # bytes that were put and that were written, one thread's each
        self._put = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def put(self, item: T, size: int) -> bool:
        """Have *item* written, which takes *size* bytes; return False where too much waits already."""
        if self._size + size - self._written > self._limit:
            return False
        self._size += size
        self._waiting.append((item, size))
        if not self._put.is_set():
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="exproto-app writer", daemon=True)
                self._thread.start()
                atexit.register(self.close)
            self._put.set()
        return True

    def close(self) -> None:
        """Write what waits, bounded in time, and end."""
        atexit.unregister(self.close)
        self._closing.set()
        self._put.set()
        if self._thread is not None:
            self._thread.join(GOODBYE)

    def _run(self) -> None:
        while True:
            self._put.wait()
            self._closing.wait(self._pause)
            self._put.clear()
            closing = self._closing.is_set()
            try:
                while items := self._take():
                    self._write([item for item, _ in items])
                    self._written += sum(size for _, size in items)
            except (OSError, ValueError) as error:  # ValueError: the file was closed
                self.broken = True
                self._failed(error)
                return
            if closing:
                return

    def _take(self) -> list[tuple[T, int]]:
        """Return what waits, a piece of it at most: the loop goes on meanwhile."""
        waiting = self._waiting
        return [waiting.popleft() for _ in range(min(len(waiting), PIECE))]


class _Files:
    """The file of a recording and those before it: FILE, FILE.1, FILE.2…; a None in the text begins the next.

    A file that is there already is kept, as FILE.1. Each is locked while it is written.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self._path = path
        self._keep = keep
        self._file: TextIO | None = None

    def write(self, texts: list[str | None]) -> None:
        part: list[str] = []
        for text in texts:
            if text is not None:
                part.append(text)
                continue
            if part:
                self._append("".join(part))
                part = []
            self._next()
        if part:
            self._append("".join(part))

    def _append(self, text: str) -> None:
        if self._file is None:
            raise OSError(f"{self._path} was never begun")
        self._file.write(text)
        self._file.flush()

    def _next(self) -> None:
        if self._file is None:
            self._look_for_others()
        else:
            self._file.close()
            self._file = None
        if self._path.exists() and self._path.stat().st_size:
            for number in range(self._keep, 0, -1):
                older = self._older(number - 1)
                if older.exists():
                    older.replace(self._older(number))
        # It may tell more than others should read.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._file = os.fdopen(descriptor, "w", encoding="utf-8", newline="\n")
        self._lock(self._file)

    def _older(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path

    def _look_for_others(self) -> None:
        with contextlib.suppress(FileNotFoundError), self._path.open("r+", encoding="utf-8") as file:
            self._lock(file)

    @staticmethod
    def _lock(file: TextIO) -> None:
        with contextlib.suppress(ImportError):  # Windows lets nobody move an open file anyway
            fcntl = importlib.import_module("fcntl")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError("another process records into it") from None

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what is in no file by now has been told
                self._file.close()
            self._file = None


class Recorder:
    """A watcher that records into the file *path*, as `exproto_app.traffic.recording` describes it.

    At *size* bytes the file becomes *path*.1, the one before *path*.2, and so on; *keep* of them stay, and
    what was there before is one of them. A file that can't be written is logged, and ends the recording,
    nothing else. *clock* returns the time of day, in seconds since 1970.

    The loop only hands the events over: all else is the thread's.
    """

    frames = False  # they follow from the bytes
    bursts = True

    def __init__(
        self,
        path: str | Path,
        *,
        size: int = SIZE,
        keep: int = KEEP,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = Path(path)
        self._clock = clock
        self._offset: float | None = None  # from the runtime's clock to the time of day
        self._script = _Script(size)
        self._files = _Files(self._path, keep)
        self._background: Background[Happened] = Background(self._write, self._failed, pause=PAUSE)
        self._lost = 0

    def __call__(self, tap: Tap, now: float, event: Shown) -> None:
        """Record *event*."""
        kind = type(event)
        if kind is Frame:
            return
        background = self._background
        if background.broken:
            raise Enough
        if self._offset is None:
            self._offset = self._script.offset = self._clock() - now
        if self._lost and background.put((now, tap.id, tap.protocol, Gap(self._lost)), ROOM):
            self._lost = 0
        if kind is Received or kind is Sent:
            size = ROOM + len(event.data)  # type: ignore[union-attr] # as the line above says
        elif isinstance(event, Burst):
            size = ROOM + sum([len(chunk) for chunk in event.chunks])
        else:
            size = 2 * ROOM
        if not background.put((now, tap.id, tap.protocol, event), size):
            self._lost += 1

    def close(self) -> None:
        """Write what waits, and end."""
        self._background.close()
        self._files.close()

    def _write(self, happened: list[Happened]) -> None:
        self._files.write(self._script.lines(happened))

    def _failed(self, error: Exception) -> None:
        words = (getattr(error, "strerror", None) or str(error)).lower()
        log.error("record ! %s can't be written: %s; nothing more is recorded", self._path, words)


class _Script:
    """What stands in the files of a recording, of about *size* bytes each.

    *offset* leads from the runtime's clock to the time of day.
    """

    def __init__(self, size: int) -> None:
        self.offset = 0.0
        self._size = size
        self._part = 0
        self._began = 0.0  # when this file did
        self._written: int | None = None  # bytes in this file, None before the first
        self._open: dict[str, Opened] = {}
        self._told: set[str] = set()
        self._texts: list[str | None] = []

    def lines(self, happened: list[Happened]) -> list[str | None]:
        """Return the text for *happened*; a None in it begins the next file."""
        told, opened, put = self._told, self._open, self._put
        for now, conn, protocol, event in happened:
            if self._written is None or (self._written > self._size and self._may_part(event)):
                self._next(now)
            kind = type(event)
            if isinstance(event, (Received, Sent, Burst)):
                if conn not in told and conn in opened:
                    self._tell_late(now, conn, protocol)
                at = now - self._began
                if isinstance(event, Burst):
                    put(bytes_lines(at, conn, protocol, event.chunks, received=False))
                else:
                    put(bytes_line(at, conn, protocol, event.data, kind is Received))
            else:
                self._follow(now, conn, protocol, event)
                put(line(Entry(now - self._began, conn, protocol, event)) + "\n")
                if kind is Closed:
                    self._open.pop(conn, None)
                    self._told.discard(conn)
        texts, self._texts = self._texts, []
        return texts

    def _put(self, text: str) -> None:
        self._texts.append(text)
        self._written = (self._written or 0) + len(text)

    def _may_part(self, event: Shown | Gap) -> bool:
        """Return whether a file may begin with *event*: an answer stays with what it answers, if it can."""
        return isinstance(event, Opened | Received | Delivered) or (self._written or 0) > 2 * self._size

    def _next(self, now: float) -> None:
        """Begin a file, in which the connections that are open begin late."""
        self._part += 1
        text = opening(now + self.offset, self._part) + "\n"
        self._texts += [None, text]
        self._began, self._written = now, len(text)
        self._told.clear()

    def _follow(self, now: float, conn: str, protocol: str, event: Shown | Gap) -> None:
        """Know what is open, and tell it before its first event in a file."""
        match event:
            case Opened():
                self._open[conn] = event
                self._told.add(conn)
                return
            case Registered(client) if conn in self._open:
                self._open[conn] = _as(self._open[conn], client)
        if conn in self._open and conn not in self._told:
            self._tell_late(now, conn, protocol)

    def _tell_late(self, now: float, conn: str, protocol: str) -> None:
        opened = self._open[conn]
        event = Opened(opened.info, late=True, client=opened.client)
        self._put(line(Entry(now - self._began, conn, protocol, event)) + "\n")
        self._told.add(conn)


def _as(opened: Opened, client: ClientInfo) -> Opened:
    return Opened(opened.info, opened.resumed, opened.late, client)


def record(
    app: App[Any, Any], path: str | Path, *, size: int = SIZE, keep: int = KEEP, masks: Iterable[str] = ()
) -> Recorder:
    """Have *app* recorded; *masks* are regular expressions, see `tap.masking`, the rest is `Recorder`'s."""
    app.masks += [masking(pattern) for pattern in masks]
    recorder = Recorder(path, size=size, keep=keep)
    app.watch(recorder)
    return recorder


class HexDump:
    """A watcher that prints to *stream*, see `exproto_app.traffic.hexdump`; *clock* is as for `Recorder`."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.time) -> None:
        self._stream = stream
        self._clock = clock
        self._offset: float | None = None
        self._background: Background[str] = Background(self._write, self._failed)
        self._lost = 0

    def __call__(self, tap: Tap, now: float, event: Event) -> None:
        """Print *event*."""
        if self._background.broken:
            raise Enough
        if self._offset is None:
            self._offset = self._clock() - now
        stamp = datetime.fromtimestamp(now + self._offset).astimezone().strftime("%H:%M:%S.%f")[:-3]
        head = f"{stamp} {tap.id or 'app'}{' ' if tap.protocol else ''}{tap.protocol} "
        text = head + "\n".join(map(escaped, shown(event))) + "\n"
        if self._lost:
            text = f"… {self._lost:,} events not shown: the terminal is too slow\n{text}"
        if self._background.put(text, len(text)):
            self._lost = 0
        else:
            self._lost += 1

    def close(self) -> None:
        """Print what waits, and end."""
        self._background.close()

    def _write(self, texts: list[str]) -> None:
        encoding = self._stream.encoding or "utf-8"
        text = "".join(texts).encode(encoding, "backslashreplace").decode(encoding)
        self._stream.write(text)
        self._stream.flush()

    def _failed(self, error: Exception) -> None:
        log.error("hex ! nothing more is printed: %s", error)
