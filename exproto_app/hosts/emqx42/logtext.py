"""What the app prints and logs, on its way into the broker's own log.

erlport's way, `{'P', Text}`, ends at the broker's console: without a time, and in characters that break JSON.
So each line is an event of Erlang's logger, as the broker's own are. Its level there is `warning` at least,
for what `log.level` of an untouched EMQX lets through; our own EXPROTO_LOG_LEVEL says what is logged at all.
"""

from __future__ import annotations

import asyncio
import io
import re
import threading
import time
from collections import deque
from struct import Struct
from typing import Any, Final

from ...errors import CommandError
from ...names import escaped_lines
from . import facts
from .broker import BrokerHub
from .calls import framed
from .terms import Atom, export

__all__ = ["LogText"]

WAITING: Final = 16_777_216
"""Bytes that wait for the broker's log; what comes beyond them is dropped and counted."""

LINE: Final = 65_536
"""Characters of a line; a longer one is cut."""

BATCH_LINES: Final = 128
BATCH_BYTES: Final = 131_072

_LEVEL: Final = re.compile(r'(?:\{"time": "[^"]*", "level": ")?(error|critical)\b', re.IGNORECASE)
_u32: Final = Struct(">I").pack


_FUNCTIONS: Final = {level: export("logger", level, 1) for level in ("warning", "error", "critical")}


class LogText(io.TextIOBase):
    """`sys.stdout` for the app: whole lines go to the broker's log, from any thread, in order."""

    def __init__(self, hub: BrokerHub, loop: asyncio.AbstractEventLoop) -> None:
        self._hub = hub
        self._loop = loop
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._line = ""
        self._level = "warning"
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._bytes = 0
        self._dropped = 0
        self._sending = False
        self._scheduled = False
        self._by_port = False  # the broker has no logger that takes them

    def writable(self) -> bool:
        """Tell that it may be written to."""
        return True

    def write(self, text: str) -> int:
        """Take *text*, of which whole lines leave."""
        with self._lock:
            *lines, self._line = (self._line + text).split("\n")
            while len(self._line) > LINE:
                lines.append(self._line[:LINE])
                self._line = self._line[LINE:]
            if not lines:
                return len(text)
            self._level = "warning"
            for line in lines:
                self._keep(line)
            schedule, self._scheduled = not self._scheduled, True
        if schedule and threading.get_ident() == self._thread:
            self._loop.call_soon(self._next)
        elif schedule:
            self._loop.call_soon_threadsafe(self._next)
        return len(text)

    async def finish(self) -> None:
        """Hand over what waits; the hub's calls are waited for by the hub."""
        with self._lock:
            rest, self._line = self._line, ""
        if rest:
            self.write(rest + "\n")
        while self._waiting and not self._hub.lost:
            self._next()
            await self._hub.finish()

    def _keep(self, line: str) -> None:
        found = _LEVEL.match(line)
        if found is not None:
            self._level = found[1].lower()
        line = escaped_lines(line)
        for at in range(0, len(line) or 1, LINE):
            data = line[at : at + LINE].encode()
            if self._bytes + len(data) > WAITING:
                self._dropped += 1
                continue
            self._bytes += len(data)
            self._waiting.append((self._level, data))

    def _next(self) -> None:
        """Log what waits, one batch after another, so that lines keep their order."""
        with self._lock:
            self._scheduled = False
            if self._sending or not self._waiting:
                return
            level, batch = self._batch()
        if self._by_port:
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            for data in batch:
                plain = f"{now} [{level}] {data.decode()}\n"
                self._hub.write(framed((Atom("P"), [ord(char) for char in plain])))
            self._loop.call_soon(self._next)
            return
        self._sending = True

        def logged(answer: object, error: CommandError | None) -> None:
            self._sending = False
            if self._hub.lost:
                self._waiting.clear()
                return
            if error is not None or facts.problem(answer):
                self._by_port = True
                with self._lock:
                    self._waiting.extendleft((level, data) for data in reversed(batch))
                    self._bytes += sum(map(len, batch))
            self._next()

        arguments: list[Any] = [_FUNCTIONS[level], batch]
        self._hub.call("lists", "foreach", arguments, logged)

    def _batch(self) -> tuple[str, list[bytes]]:
        """Take the next lines of one level."""
        batch: list[bytes] = []
        size = 0
        level = self._waiting[0][0]
        while self._waiting and self._waiting[0][0] == level:
            data = self._waiting[0][1]
            if batch and (len(batch) >= BATCH_LINES or size + len(data) > BATCH_BYTES):
                break
            self._waiting.popleft()
            batch.append(data)
            size += len(data)
        self._bytes -= size
        if self._dropped and not self._waiting:
            words = f"exproto-app ! {self._dropped} lines dropped: the broker's log takes them too slowly"
            self._waiting.append(("warning", words.encode()))
            self._bytes += len(words)
            self._dropped = 0
        return level, batch
