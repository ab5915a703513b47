"""What one open page is told, and what it asks for, over its WebSocket.

To the page go objects with a `type`: `state` and `table` every second, and at once when the page asks for
another table; `watching`, then `events`, of the connection that it looks at, `gone` where there is none;
`error` for what it asked wrongly.

The page sends `{"type": "table", …}` with the fields of a `Query`, `{"type": "watch", "id": …}`,
`{"type": "watch next", "protocol": …}`, `{"type": "unwatch"}`, and `{"type": "visible", "visible": …}`. It
may give what it watches a `number`, which comes back with all that is told of that.

A page that reads slowly gets fewer tables, and gaps in its events; one that reads nothing is let go.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any, Final

from aiohttp import WSMsgType, web

from ..core import Sniffer
from ..traffic.recording import opening
from .connections import ConnectionTable, One, Query
from .feed import Feed

__all__ = ["Live"]

TICK: Final = 1.0
"""Seconds from one table to the next."""

PAUSE: Final = 0.1
"""Seconds in which events are collected."""

PATIENCE: Final = 30.0
"""Seconds that a page may leave unread what it is sent."""


class Live:
    """One page; *look* tells the state, *hang_up* is called when the page doesn't read."""

    def __init__(
        self,
        table: ConnectionTable,
        look: Callable[[], dict[str, Any]],
        socket: web.WebSocketResponse,
        hang_up: Callable[[], object],
    ) -> None:
        self.visible = True
        self._table = table
        self._look = look
        self._socket = socket
        self._hang_up = hang_up
        self._wake = asyncio.Event()
        self._due = 0.0
        self._query = Query()
        self._watched: One | None = None
        self._feed: Feed | None = None
        self._withdraw: Callable[[], None] | None = None
        self._number = "null"
        self._waiting: list[str] = []  # for the next round; each answers one message of the page

    async def run(self) -> None:
        """Serve the page until it is gone."""
        sending = asyncio.ensure_future(self._send())
        sending.add_done_callback(self._sent)
        try:
            async for message in self._socket:
                if message.type is not WSMsgType.TEXT:
                    break
                self._take(message.data)
                await asyncio.sleep(0)  # it may have sent many, which nobody waits for
                while len(self._waiting) > 8 and not sending.done():  # it asks faster than it reads
                    await asyncio.wait((sending,), timeout=PAUSE)
                if sending.done():
                    break
        finally:
            self._unwatch()
            sending.cancel()
            await asyncio.wait((sending,))

    def _sent(self, sending: asyncio.Future[None]) -> None:
        if not sending.cancelled():
            sending.exception()  # that a page has gone is no error
            self._hang_up()

    # --- from the page

    def _take(self, text: str) -> None:
        try:
            self._obey(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self._answer({"type": "error", "text": f"the page sent an invalid message: {error}"})
        self._wake.set()

    def _obey(self, given: dict[str, Any]) -> None:
        match given["type"]:
            case "table":
                self._query = Query.read(given)
                self._due = 0.0
            case "watch":
                self._watch(str(given["id"]), given.get("number"))
            case "watch next":
                self._watch_next(given.get("protocol"), given.get("number"))
            case "unwatch":
                self._unwatch()
            case "visible":
                self.visible, self._due = bool(given["visible"]), 0.0
            case other:
                raise ValueError(f"there is no message {other!r}")

    def _answer(self, facts: dict[str, Any]) -> None:
        self._waiting.append(json.dumps(facts))
        self._wake.set()

    def _watch(self, conn_id: str, number: object) -> None:
        self._unwatch()
        self._number = json.dumps(number)
        one = self._table.find(conn_id)
        if one is None:
            self._answer({"type": "gone", "id": conn_id, "number": number})
        else:
            self._show(one, late=True)

    def _watch_next(self, protocol: str | None, number: object) -> None:
        self._unwatch()
        self._number = json.dumps(number)

        def taker(one: One) -> bool:
            if protocol and protocol not in self._table.row(one)["protocol"].split(","):
                return False
            self._withdraw = None
            self._show(one, late=False)
            return True

        self._withdraw = self._table.when_connected(taker)

    def _show(self, one: One, *, late: bool) -> None:
        began = one.engine.runtime.time()
        started = time.time()
        self._answer(
            {
                "type": "watching",
                "number": json.loads(self._number),
                "row": self._table.row(one),
                "started": started,
                "header": json.loads(opening(started)),
            }
        )
        self._watched, self._feed = one, Feed(began, self._wake.set)
        one.watch(self._feed, late=late)

    def _unwatch(self) -> None:
        if self._withdraw is not None:
            self._withdraw()
        one = self._watched
        if isinstance(one, Sniffer) and one.channel is not None:
            one = one.channel
        if one is not None and self._feed is not None:
            one.unwatch(self._feed)
        self._watched = self._feed = self._withdraw = None

    # --- to the page

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            for text in await self._round(loop.time()):
                impatient = loop.call_later(PATIENCE, self._hang_up)
                try:
                    await self._socket.send_str(text)
                finally:
                    impatient.cancel()
            tick = loop.call_at(self._due, self._wake.set) if self.visible else None
            await self._wake.wait()
            if tick is not None:
                tick.cancel()
            if not self._waiting and self._due > loop.time():  # events, of which there may be more
                await asyncio.sleep(PAUSE)

    async def _round(self, now: float) -> list[str]:
        """Return what is to be sent now."""
        texts, self._waiting = self._waiting, []
        if self._feed is not None and (events := self._feed.take()):
            texts.append(f'{{"type":"events","number":{self._number},"events":[{events}]}}')
        if self.visible and now >= self._due:
            self._due = now + TICK
            texts.append(json.dumps({"type": "state", **self._look()}))
            texts.append(json.dumps({"type": "table", **await self._table.table(self._query)}))
        return texts
