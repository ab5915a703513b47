"""Incidents: what went wrong on a connection, kept as a recording and a test that replays it.

Of each connection the last events are remembered. When a handler or a framing fails, or a connection is lost,
they are written to a folder: `NAME.jsonl`, see `exproto_app.traffic.recording`, and `test_NAME.py`, which
fails as long as the app does.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections import Counter, deque
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, TypeAlias

import attrs

from ..app import App
from ..models import ClientInfo
from ..tap import (
    Burst,
    Closed,
    Dropped,
    Enough,
    Failed,
    Frame,
    Opened,
    Received,
    Registered,
    Sent,
    Shown,
    Tap,
)
from ..traffic.recording import Entry, line, opening
from .recorder import Background

__all__ = ["Incidents", "keep_incidents"]

log = logging.getLogger("exproto_app")

ROOM: Final = 16 * 1024
"""Bytes of a connection's last events that are remembered; a larger event isn't, but counted."""

TOTAL: Final = 32 * 1024 * 1024
"""Bytes that are remembered of all connections: where there are many, each has less room."""

LEAST: Final = 1024
"""Bytes that a connection has all the same."""

PARTS: Final = 2
"""The older part is forgotten when the newer one is full."""

EVENT: Final = 100
"""Bytes that an event counts beside those that it is about."""

ALIKE: Final = 3
"""Incidents of one kind that are written; further ones are counted."""

MOST: Final = 100
"""Incidents in a folder."""

ENDED: Final = 100
"""Ended connections that are remembered."""

KINDS: Final = 1_000
"""Kinds of incidents that are told apart."""

Happened: TypeAlias = tuple[float, str, str, Shown]
"""When, on which connection, of which protocol, and what."""


@attrs.define(eq=False)
class _Line:
    """The last events of a connection and of its children: *events*, of *size* bytes, and those *before*.

    *opened* is the first of all. *whole* until events were forgotten; *why* and *kind* once something failed.
    """

    conn: str
    protocol: str
    opened: Opened
    began: float
    before: list[Happened] = attrs.Factory(list)
    events: list[Happened] = attrs.Factory(list)
    size: int = 0
    whole: bool = True
    client: ClientInfo | None = None
    ended: bool = False
    why: str = ""
    kind: tuple[str, ...] = ()


@attrs.frozen
class _Incident:
    name: str
    why: str
    recording: str


class Incidents:
    """A watcher that writes what failed into *folder*; the tests there load the app from *target*.

    At most `MOST` incidents are in a folder, and `ALIKE` of a kind: the same exception in the same handler.
    A folder that can't be written is logged, and ends this, nothing else. *clock* returns the time of day, in
    seconds since 1970.
    """

    frames = False  # they follow from the bytes
    bursts = True

    def __init__(self, folder: str | Path, target: str, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = Path(folder)
        self._target = target
        self._clock = clock
        self._lines: dict[str, _Line] = {}
        self._ended: deque[str] = deque()
        self._room = ROOM // PARTS
        self._kinds: Counter[tuple[str, ...]] = Counter()
        self._numbers = 0
        self._left: int | None = None  # incidents that the folder still takes; the writer's
        self._background: Background[_Incident] = Background(self._write, self._failed)

    def __call__(self, tap: Tap, now: float, event: Shown) -> None:
        """Remember *event*, and write the connection's last ones if it tells that something failed."""
        kind = type(event)
        kept = self._lines.get(tap.id)
        if kept is None:
            kept = self._of(tap, now, event)
            if kept is None:
                return
        if kind is Frame:
            return
        if kept.why and kind is Received:
            self._tell(kept, now)
        size = EVENT
        if kind is Received or kind is Sent:
            size += len(event.data)  # type: ignore[union-attr] # as the line above says
        elif isinstance(event, Burst):
            size += sum([len(chunk) for chunk in event.chunks])
        if size > self._room:
            event = Dropped("bytes", size - EVENT)
            size = EVENT
        # A recording may begin with what the device says, not between that and its answer.
        if kept.size > self._room and (kind is Received or kept.size > 2 * self._room):
            kept.whole = kept.whole and not kept.before
            kept.before, kept.events, kept.size = kept.events, [], 0
        kept.events.append((now, tap.id, tap.protocol, event))
        kept.size += size
        if kind is Failed or kind is Closed or kind is Registered:
            self._judge(kept, tap, now, event)

    def close(self) -> None:
        """Write what has failed, and end."""
        for kept in set(self._lines.values()):
            if kept.why:
                self._tell(kept, kept.events[-1][0])
        self._lines.clear()
        self._background.close()
        alike = sum(max(0, count - ALIKE) for count in self._kinds.values())
        if alike:
            log.info("incidents = %d like others weren't written", alike)

    def _of(self, tap: Tap, now: float, event: Shown) -> _Line | None:
        """Return where the events of a connection are remembered that says something first, if anywhere."""
        if isinstance(event, Opened):
            if self._background.broken:
                raise Enough
            self._lines[tap.id] = _Line(tap.id, tap.protocol, event, now, client=event.client)
            self._room = max(LEAST, min(ROOM, TOTAL // len(self._lines))) // PARTS
            return None
        kept = self._lines.get(tap.id.rpartition(".")[0])
        if kept is not None:
            self._lines[tap.id] = kept  # a child; its line brings its bytes
        return kept

    def _judge(self, kept: _Line, tap: Tap, now: float, event: Shown) -> None:
        match event:
            case Registered(client) if tap.id == kept.conn:
                kept.client = client
            case Failed(where, error, text) if not kept.why:
                kept.why, kept.kind = f"{where}: {text}", (tap.protocol, where, type(error).__name__)
            case Closed("lost", detail) if not kept.why:
                kept.why, kept.kind = f"lost: {detail}", (tap.protocol, "lost", detail)
        if isinstance(event, Closed):
            self._end(kept, tap)
        if kept.ended and kept.why:
            self._tell(kept, now)

    def _end(self, kept: _Line, tap: Tap) -> None:
        """Remember an ended connection for a while: its `on_terminated` may fail yet."""
        kept.ended = kept.ended or tap.id == kept.conn
        self._ended.append(tap.id)
        while len(self._ended) > ENDED:
            self._lines.pop(self._ended.popleft(), None)

    def _tell(self, kept: _Line, now: float) -> None:
        """Have what is remembered of *kept* written, unless enough like it has been."""
        why, kind, kept.why = kept.why, kept.kind, ""
        if len(self._kinds) < KINDS or kind in self._kinds:
            self._kinds[kind] += 1
        if not 0 < self._kinds[kind] <= ALIKE:
            return
        offset = self._clock() - now
        events = [*kept.before, *kept.events]
        begun = kept.began if kept.whole else events[0][0]
        opened = kept.opened if kept.whole else Opened(kept.opened.info, late=True, client=kept.client)
        texts = [opening(begun + offset)]
        for at, conn, protocol, event in ((begun, kept.conn, kept.protocol, opened), *events):
            chunks = [Sent(chunk) for chunk in event.chunks] if isinstance(event, Burst) else [event]
            texts += [line(Entry(at - begun, conn, protocol, chunk)) for chunk in chunks]
        self._numbers += 1
        stamp = datetime.fromtimestamp(now + offset, timezone.utc).strftime("%Y%m%d_%H%M%S")
        words = re.sub(r"[^a-z0-9]+", "_", "_".join(kind).lower()).strip("_")[:60]
        name = f"{stamp}_{words}_{os.getpid()}_{self._numbers}"
        who = f"{kept.conn}/{kept.protocol}" + (f"/{kept.client.clientid}" if kept.client else "")
        incident = _Incident(name, f"{who}: {why}", "\n".join(texts) + "\n")
        self._background.put(incident, len(incident.recording))

    def _write(self, incidents: list[_Incident]) -> None:
        if self._left is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._left = MOST - sum(1 for _ in self._folder.glob("test_*.py"))
        for incident in incidents:
            if self._left <= 0:
                raise OSError(f"it has {MOST} incidents; remove some and restart")
            self._left -= 1
            _write_own(self._folder / f"{incident.name}.jsonl", incident.recording)
            test = _TEST.format(why=ascii(incident.why), target=self._target, name=incident.name)
            _write_own(self._folder / f"test_{incident.name}.py", test)
            log.info("incidents = %s, in %s", incident.why, self._folder / f"test_{incident.name}.py")

    def _failed(self, error: Exception) -> None:
        words = (getattr(error, "strerror", None) or str(error)).lower()
        log.error("incidents ! %s can't be written: %s; nothing more is kept", self._folder, words)


_TEST: Final = '''\
"""An incident; run it with pytest. It fails as long as the app does."""

from pathlib import Path

from exproto_app.target import load
from exproto_app.testing import failures

WHY = {why}
RECORDING = Path(__file__).with_name("{name}.jsonl")


def test_nothing_fails() -> None:
    assert failures(load({target!r}), RECORDING) == [], WHY
'''


def _write_own(path: Path, text: str) -> None:
    """Write a file that others can't read: it may tell more than they should know."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def keep_incidents(app: App[Any, Any], folder: str | Path, target: str) -> Incidents:
    """Have incidents of *app*, which *target* names, written into *folder*."""
    incidents = Incidents(folder, target)
    app.watch(incidents)
    return incidents
