"""Broker: one adapter and the connections behind it; AdapterMap: which of them calls."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import attrs

from ...errors import SetupError
from . import exproto_pb2 as pb
from .answers import Dead, judge
from .client import CANCELLED, IN_FLIGHT, AdapterClient, Done, Method
from .ended import Ended
from .link import GrpcLink
from .streams import Streams

__all__ = ["AdapterMap", "Broker", "Early"]

log = logging.getLogger("exproto_app")

PACE: Final = 64
"""Closes and probes that are on their way to one broker at a time."""


@attrs.define(eq=False)
class Early:
    """What came of a connection before its beginning: events, of *size* bytes, and the streams that stand."""

    feeds: list[Callable[[GrpcLink], object]] = attrs.Factory(list)
    size: int = 0
    streams: list[Callable[[], None]] = attrs.Factory(list)


class Broker:
    """One adapter, at most *in_flight* calls of it at a time, and the connections behind it.

    *shares*: the broker takes shared subscriptions.
    """

    def __init__(self, host: str, port: int, *, in_flight: int = IN_FLIGHT, shares: bool = False) -> None:
        self.shares = shares
        self.client = AdapterClient(host, port, in_flight=in_flight)
        self.loop = asyncio.get_running_loop()
        self.waiter = self.loop.create_future
        self.links: dict[bytes, GrpcLink] = {}
        self.ended = Ended(self.loop, self._have_closed)
        self.streams = Streams()
        self.early: dict[bytes, Early] = {}
        self.early_bytes = 0
        self.callers = 0  # connections on which it calls us
        self.refuses_anonymous = False  # it has refused a login without a password
        self._methods = {
            name: self.client.method(f"/emqx.exproto.v1.ConnectionAdapter/{name}", again=again)
            for name, again in {
                "Send": False,
                "Close": True,
                "Authenticate": False,
                "StartTimer": True,
                "Publish": False,
                "Subscribe": True,
                "Unsubscribe": True,
                "RawPublish": False,
            }.items()
        }
        self.send: Method = self._methods["Send"]
        self.raw = 0  # RawPublish calls on their way
        self._queue: deque[Callable[[Callable[[], None]], None]] = deque()
        self._running = 0

    def call(self, name: str, message: bytes, done: Done, flow: bytes = b"") -> None:
        """Call a method of the adapter for *flow*; *done* gets its status and its answer."""
        self.client.call(self._methods[name], message, done, flow)

    def paced(self, start: Callable[[Callable[[], None]], None]) -> None:
        """Run *start*, which tells by the function it is given that it is done; only some at a time."""
        if self._running >= PACE:
            self._queue.append(start)
            return
        self._running += 1
        start(self._paced_done)

    async def close(self) -> None:
        """Let go of the connection; what still waits is not started any more."""
        self._queue.clear()
        self.ended.stop()
        await self.client.close()

    def forget(self, link: GrpcLink) -> None:
        """Remember of *link* only that it has ended, and that the broker may not know."""
        link.ended()
        if self.links.get(link.conn) is link:
            del self.links[link.conn]
        if link.conn not in self.ended:
            self.ended.owe(link.conn)

    def refuse(self, conn: bytes) -> None:
        """Have *conn* closed, and ignore what comes of it."""
        self.ended.owe(conn)
        self.ended.close_again(conn)

    def _have_closed(self, conn: bytes) -> None:
        self.paced(partial(self._close, conn))

    def _close(self, conn: bytes, done: Callable[[], None]) -> None:
        request = pb.CloseSocketRequest(conn=conn.decode())

        def answered(status: int, answer: bytes) -> None:
            self._closed(conn, status, answer)
            done()

        self.call("Close", request.SerializeToString(), answered, conn)

    def _closed(self, conn: bytes, status: int, answer: bytes) -> None:
        """Take the answer to a Close."""
        link = self.links.get(conn)
        error = judge("Close", status, answer)
        if error is None:
            self.ended.told(conn)
            if link is not None:
                link.close_told()
        elif isinstance(error, Dead):
            self.ended.over(conn)
            if link is not None:
                link.missing()
        else:
            self.ended.failed(conn)
            if link is not None:
                if status != CANCELLED:
                    log.warning("%s ! the broker didn't close it, it will be told again: %s", link, error)
                link.unclosed()

    def _paced_done(self) -> None:
        self._running -= 1
        if self._queue:
            self._running += 1
            # Not at once: an answer that comes in the same breath must not nest ever deeper.
            self.loop.call_soon(self._queue.popleft(), self._paced_done)


class AdapterMap:
    """Which adapter belongs to a broker that calls, by the address it calls from.

    *texts* are `http://HOST:PORT` for all, `auto:PORT` for the address that called,
    `ADDRESS=http://HOST:PORT` for the one at ADDRESS. Each is called at most *in_flight* times at once.
    *shares*: the brokers take shared subscriptions. Raises `SetupError`.
    """

    def __init__(self, texts: Sequence[str], *, in_flight: int = IN_FLIGHT, shares: bool = False) -> None:
        self._in_flight = in_flight
        self._shares = shares
        self._fixed: dict[str, tuple[str, int]] = {}
        self._auto: int | None = None
        self._brokers: dict[tuple[str, int], Broker] = {}
        self.last: Broker | None = None
        for text in texts:
            self._add(text)
        if not self._fixed and self._auto is None:
            raise SetupError("there is no adapter; add --adapter http://HOST:9100")

    def __iter__(self) -> Any:
        return iter(self._brokers.values())

    @property
    def fixed(self) -> list[tuple[str, int]]:
        """Host and port of each adapter that is known before anybody calls."""
        return list(dict.fromkeys(self._fixed.values()))

    def find(self, caller: str) -> Broker | None:
        """Return the broker that *caller* stands for, None if nobody knows."""
        where = self._fixed.get(caller) or self._fixed.get("")
        if where is None and self._auto is not None:
            where = caller, self._auto
        if where is None:
            return None
        broker = self._brokers.get(where)
        if broker is None:
            broker = self._brokers[where] = Broker(*where, in_flight=self._in_flight, shares=self._shares)
        self.last = broker
        return broker

    def any(self) -> Broker | None:
        """Return the broker for what belongs to no connection: the last to call that is still there."""
        if self.last is None and "" in self._fixed:
            return self.find("")
        if self.last is None or self.last.callers:
            return self.last
        return next((broker for broker in self._brokers.values() if broker.callers), self.last)

    def _add(self, text: str) -> None:
        if text.startswith("auto:"):
            port = text.removeprefix("auto:")
            if not port.isdigit() or not 0 < int(port) < 65_536:
                raise SetupError(f"--adapter {text}: {port!r} is no port; write auto:9100")
            self._auto = int(port)
            return
        caller, _, url = text.rpartition("=")
        if url.startswith("https:"):
            raise SetupError(f"--adapter {text}: EMQX's adapter has no TLS; write http://")
        try:
            parts = urlsplit(url)
            host, number = parts.hostname, parts.port
        except ValueError:
            host = number = None
        if not url.startswith("http://") or not host or not number or parts.path.strip("/"):
            raise SetupError(f"--adapter {text} is no address; write http://HOST:9100, or auto:9100")
        if caller in self._fixed:
            raise SetupError(f"--adapter {text}: there is another for {caller or 'all brokers'} already")
        self._fixed[caller] = host, number
