"""What the inspector's table says: the connections there are, and those that ended last."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

import attrs

from ..core import Channel, Engine, Sniffer, State
from ..core.states import REGISTER, WRITE_BLOCKED

__all__ = ["ConnectionTable", "One", "Query"]

ENDED: Final = 200
"""Connections that have ended and are remembered."""

MOST: Final = 500
"""Rows that are given at once."""

LONGEST: Final = 256
"""Characters of a name that a table shows, and of a search."""

SLICE: Final = 100
"""Connections that are looked at before others have their turn."""

SHORTEST: Final = 0.1
"""Seconds between two looks that make a rate."""

One: TypeAlias = Channel | Sniffer
"""A connection; a `Sniffer` as long as its protocol isn't known."""

Row: TypeAlias = dict[str, Any]


def _name(row: Row) -> tuple[bool, Any]:
    return row["clientid"] is None, (row["clientid"] or "").casefold()


def _number(row: Row) -> tuple[int, str]:
    # 10 stands behind 9; hosts whose ids are no numbers have them of a length.
    return len(row["id"]), row["id"]


SORTS: Final[Mapping[str, Callable[[Row], Any]]] = {
    "id": _number,
    "protocol": lambda row: row["protocol"],
    "peer": lambda row: row["peer"],
    "clientid": _name,
    "since": lambda row: (row["since"], _number(row)),
    "last": lambda row: row["last"] or 0.0,
    "rate": lambda row: row["frame_rate"],
    "bytes": lambda row: row["rate_in"] + row["rate_out"],
    "queue": lambda row: row["queue"],
    "state": lambda row: row["state"],
}

ENDED_SORTS: Final[Mapping[str, Callable[[Row], Any]]] = {
    **SORTS,
    "last": lambda row: row["ended"],
    "rate": lambda row: row["frames"],
    "bytes": lambda row: row["received"] + row["sent"],
}
"""What has ended has no rates, so it goes by what there was in all."""


@attrs.frozen
class Query:
    """Which rows: those that have all words of *search*, by *sort*, *limit* of them from *offset* on.

    *ended*: of the connections that are gone.
    """

    search: str = ""
    sort: str = "since"
    descending: bool = True
    offset: int = 0
    limit: int = 100
    ended: bool = False

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Query:
        """Read what a page sent. Raises `ValueError` if it is invalid."""
        sort = given.get("sort", "since")
        if sort not in SORTS:
            raise ValueError(f"{sort!r} is not a sort order; use one of {', '.join(SORTS)}")
        try:
            offset, limit = int(given.get("offset", 0)), int(given.get("limit", 100))
        except (TypeError, ValueError, OverflowError):
            raise ValueError("offset and limit are numbers") from None
        return cls(
            str(given.get("search", ""))[:LONGEST],
            sort,
            _flag(given.get("descending", True)),
            max(0, offset),
            min(max(1, limit), MOST),
            _flag(given.get("ended", False)),
        )


def _flag(value: Any) -> bool:
    return value not in (False, None, "", "0", "false")


@attrs.define
class _Mark:
    """What was counted of a connection when it was last looked at; *last* is when frames had come."""

    frames: int = 0
    received: int = 0
    sent: int = 0
    last: float | None = None
    frame_rate: float = 0.0
    rate_in: float = 0.0
    rate_out: float = 0.0


class ConnectionTable:
    """The connections of *engine*, as rows.

    Connections tell their counts, no times; `sample`, called every other second, makes of them rates and the
    time of the last frame. *offset*: from the runtime's clock to seconds since 1970.
    """

    def __init__(self, engine: Engine, offset: float) -> None:
        self._engine = engine
        self._offset = offset
        self._marks: dict[Channel, _Mark] = {}
        self._sampled = 0.0
        self._ended: deque[Row] = deque(maxlen=ENDED)
        self._waiting: list[Callable[[One], bool]] = []
        self._by_id = {one.id: one for one in engine.connections()}

    # --- the engine's observer

    def connected(self, one: One) -> None:
        """Take note of a connection, and show it to those who wait for one."""
        self._by_id[one.id] = one
        self._waiting = [taker for taker in self._waiting if not taker(one)]

    def ended(self, one: One) -> None:
        """Remember how a connection ended."""
        row = self.row(one)
        row.update(state=one.reason or "closed", detail=one.detail[:LONGEST], ended=self._now())
        self._ended.append(row)
        self._by_id.pop(one.id, None)
        if isinstance(one, Channel):
            self._marks.pop(one, None)

    def when_connected(self, taker: Callable[[One], bool]) -> Callable[[], None]:
        """Show each new connection to *taker* until it returns True; return what takes this back."""
        self._waiting.append(taker)

        def withdraw() -> None:
            self._waiting = [other for other in self._waiting if other is not taker]

        return withdraw

    # --- looking

    def sample(self) -> None:
        """Look at what was counted since the last time, unless that was just now."""
        now = self._engine.runtime.time()
        passed = now - self._sampled
        if passed < SHORTEST:
            return
        self._sampled = now
        marks = self._marks
        for channel in self._engine.channels:
            mark = marks.get(channel)
            if mark is None:
                mark = marks[channel] = _Mark()
            frames, received, sent = channel.frames_received, channel.bytes_received, channel.bytes_sent
            if frames == mark.frames and received == mark.received and sent == mark.sent:
                mark.frame_rate = mark.rate_in = mark.rate_out = 0.0
                continue
            if frames != mark.frames:
                mark.last = now
            mark.frame_rate = (frames - mark.frames) / passed
            mark.rate_in = (received - mark.received) / passed
            mark.rate_out = (sent - mark.sent) / passed
            mark.frames, mark.received, mark.sent = frames, received, sent

    def find(self, conn_id: str) -> One | None:
        """Return the connection of that id."""
        one = self._by_id.get(conn_id)
        if isinstance(one, Sniffer) and one.channel is not None:
            one = self._by_id[conn_id] = one.channel
        return one

    async def table(self, query: Query) -> dict[str, Any]:
        """Return the rows that *query* asks for, and how many there are; devices come in between."""
        words = query.search.casefold().split()
        found: list[Row] = []
        looked_at: Iterable[Row | One] = tuple(self._ended if query.ended else self._engine.connections())
        for number, one in enumerate(looked_at, 1):
            if number % SLICE == 0:
                await asyncio.sleep(0)
            if not isinstance(one, dict):
                if isinstance(one, Channel) and one.state is State.ENDED:
                    continue
                row = self.row(one)
            else:
                row = one
            if not words or _has(row, words):
                found.append(row)
        sorts = ENDED_SORTS if query.ended else SORTS
        found.sort(key=sorts[query.sort], reverse=query.descending)
        return {
            "rows": found[query.offset : query.offset + query.limit],
            "offset": query.offset,
            "found": len(found),
            "open": self._engine.open,
            "ended": len(self._ended),
            "now": self._now(),
        }

    def row(self, one: One) -> Row:
        """Return what is known of a connection; times are in seconds since 1970, rates are a second."""
        info = one.info if isinstance(one, Sniffer) else one.conn.info
        row: Row = {
            "id": one.id,
            "protocol": one.rules.name if isinstance(one, Sniffer) else one.conn.protocol,
            "peer": str(info.peername),
            "line": None if one.line is None else one.line.id,
            "socktype": info.socktype,
            "since": one.since + self._offset,
        }
        row.update(_sniffer_facts(one) if isinstance(one, Sniffer) else self._facts(one))
        return row

    def _facts(self, channel: Channel) -> Row:
        mark = self._marks.get(channel) or _NO_MARK
        client = channel.client
        queue = {
            "bytes to handle": channel.inbound.size,
            "bytes to send": channel.outbound.size,
            "messages": 0 if channel.deliveries is None else channel.deliveries.waiting,
            "commands": channel.commands_waiting,
            "requests": 0 if channel.requests is None else len(channel.requests.waiting),
        }
        last = mark.last if channel.frames_received == mark.frames else self._engine.runtime.time()
        return {
            "clientid": None if client is None else client.clientid[:LONGEST],
            "username": "" if client is None else client.username[:LONGEST],
            "last": None if last is None else last + self._offset,
            "frames": channel.frames_received,
            "received": channel.bytes_received,
            "sent": channel.bytes_sent,
            "frame_rate": mark.frame_rate,
            "rate_in": mark.rate_in,
            "rate_out": mark.rate_out,
            "queue": sum(queue.values()),
            "queues": {name: number for name, number in queue.items() if number},
            "state": _state(channel),
        }

    def _now(self) -> float:
        return self._engine.runtime.time() + self._offset


_NO_MARK: Final = _Mark()


def _sniffer_facts(sniffer: Sniffer) -> Row:
    """Return what is known of a connection whose protocol isn't."""
    waiting = len(sniffer.data)
    return {
        "clientid": None,
        "username": "",
        "last": None,
        "frames": 0,
        "received": waiting,
        "sent": 0,
        "frame_rate": 0.0,
        "rate_in": 0.0,
        "rate_out": 0.0,
        "queue": waiting,
        "queues": {"bytes to handle": waiting} if waiting else {},
        "state": "sniffing" if sniffer.reason is None else "closing",
    }


def _state(channel: Channel) -> str:
    if channel.closing is not None:
        return "closing"
    if channel.waits & WRITE_BLOCKED:
        return "stalled"
    if channel.paused:
        return "paused"
    if channel.waits & REGISTER:
        return "registering"
    if channel.turn is not None:
        return "busy"
    return "open" if channel.client is None else "registered"


def _has(row: Row, words: list[str]) -> bool:
    names = (
        row["clientid"] or "",
        row["peer"],
        row["protocol"],
        row["state"],
        row["username"],
        f"#{row['id']}",
    )
    text = " ".join(names).casefold()
    return all(word in text for word in words)
