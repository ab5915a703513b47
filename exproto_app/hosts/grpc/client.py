"""AdapterClient: unary gRPC calls to one address, over a connection that comes and goes."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from ...models import Address
from ..http2.scheduler import Scheduler
from .connection import OK, UNAVAILABLE, Call, ClientConnection, Done, Method
from .fair import FairQueue

__all__ = [
    "CANCELLED",
    "IN_FLIGHT",
    "NOT_FOUND",
    "OK",
    "UNAVAILABLE",
    "UNIMPLEMENTED",
    "AdapterClient",
    "ClientConnection",
    "Done",
    "Method",
]

log = logging.getLogger("exproto_app")

CANCELLED: Final = 1
DEADLINE_EXCEEDED: Final = 4
NOT_FOUND: Final = 5
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12

IN_FLIGHT: Final = 100
"""Calls on the wire at a time: an adapter's answers cost the more, the more of them are open.

EMQX's keeps the streams of a connection in a list.
"""

DEADLINE: Final = 5.0
"""Seconds that a call may take from when it is on the wire, its retries included.

A call that isn't may wait as long for a connection, or for the next answer to any other.
"""

TURN: Final = 60.0
"""Seconds that a call may wait for its turn while others are answered."""

WAITING: Final = 100_000
"""Calls that may wait for their turn."""

HELD: Final = 134_217_728
"""Bytes of all calls that have no answer yet."""

AT_ONCE: Final = 200
"""Calls that are ended in one round of the loop, because they are late or the service stops."""

SWEEP: Final = 0.25
"""Seconds between two looks for calls that are late: one timer for all of them."""

BACKOFF: Final = (0.05, 2.0)
"""Seconds between two attempts to connect, the first time and at most."""

SAY_AGAIN: Final = 30.0
"""Seconds between two log lines about an address that can't be reached."""


class AdapterClient:
    """Calls to *host*:*port*, at most *in_flight* of them at a time; the others wait for their turn.

    Flows take turns, so that none waits for all of another's. A call that no turn comes for fails: when
    nothing at all has been answered for `DEADLINE`, else after `TURN`.
    """

    def __init__(self, host: str, port: int, *, in_flight: int = IN_FLIGHT) -> None:
        self.name = str(Address(host, port))
        self.in_flight = in_flight
        self.asked = self.reached = False
        self.answered = 0.0  # when the last answer came
        self.trouble = ""  # why it couldn't be reached last
        self._host = host
        self._port = port
        self.loop = asyncio.get_running_loop()
        self.scheduler = Scheduler(self.loop)
        self.open: set[ClientConnection] = set()
        self._connection: ClientConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        # The calls without an answer, those that were on the wire and the others; the oldest stand first.
        self._begun: dict[Call, None] = {}
        self._unbegun: dict[Call, None] = {}
        self._waiting: FairQueue[Call] = FairQueue()
        self._held = 0  # bytes of all of them
        self._sweeping: asyncio.TimerHandle | None = None
        self._backoff = BACKOFF[0]
        self._said = -SAY_AGAIN
        self._down = False
        self._closed = False

    @property
    def away(self) -> bool:
        """Whether the last attempt to reach it failed."""
        return self._down

    @property
    def closed(self) -> bool:
        """Whether no TCP connection is left."""
        return not self.open

    @property
    def unanswered(self) -> int:
        """How many calls have no answer yet."""
        return len(self._begun) + len(self._unbegun)

    def mute(self, seconds: float) -> bool:
        """Whether calls wait, and none has had an answer for so long."""
        oldest = min(
            (call.since for calls in (self._begun, self._unbegun) for call in (*calls,)[:1]), default=None
        )
        return oldest is not None and self.loop.time() - max(oldest, self.answered) > seconds

    def method(self, path: str, *, again: bool = False) -> Method:
        """Return the method at *path*."""
        return Method(path, self.name, again=again)

    def call(self, method: Method, message: bytes, done: Done, flow: bytes = b"") -> None:
        """Call *method* for *flow*; *done* gets what comes of it, later."""
        self.asked = True
        call = Call(method, message, done, flow, self.loop.time())
        if self._closed:
            self.loop.call_soon(self.finish, call, CANCELLED, b"the service stops")
            return
        if self._sweeping is None:
            self._sweeping = self.loop.call_later(SWEEP, self._sweep)
        if len(self._waiting) >= WAITING:
            words = b"%d calls wait for their turn, limit is %d" % (len(self._waiting), WAITING)
            self.loop.call_soon(self.finish, call, RESOURCE_EXHAUSTED, words)
            return
        size = len(message)
        if self._held and self._held + size > HELD:
            words = b"calls of %d bytes have no answer yet, limit is %d" % (self._held, HELD)
            self.loop.call_soon(self.finish, call, RESOURCE_EXHAUSTED, words)
            return
        call.size = size
        self._held += size
        self._start(call)

    async def close(self) -> None:
        """Let go of the connection; calls that have no answer fail."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._sweeping is not None:
            self._sweeping.cancel()
        for number, call in enumerate((*self._begun, *self._unbegun), 1):
            self.finish(call, CANCELLED, b"the service stops")
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        for connection in tuple(self.open):
            connection.protocol.close()

    def abort(self) -> None:
        """Cut what is left of the connection."""
        for connection in tuple(self.open):
            connection.protocol.abort()

    # --- from the connection

    def ready(self, connection: ClientConnection) -> None:
        """Use *connection* from now on."""
        self._backoff = BACKOFF[0]
        self._connection = connection
        if self._down:
            self._down = False
            log.warning("adapter = %s is reached again", self.name)
        self.room()

    def retired(self, connection: ClientConnection) -> None:
        """Begin no more calls on *connection*."""
        if self._connection is connection:
            self._connection = None
            if self._waiting:
                self._connect()

    def room(self) -> None:
        """Begin calls that wait, as far as the peer takes more."""
        while self._waiting and self._connection is not None and self._connection.free:
            self._begin(self._connection, self._waiting.pop())

    def finish(self, call: Call, status: int, answer: bytes) -> None:
        """Tell who called."""
        if call.finished:
            return
        call.finished = True
        self._held -= call.size
        call.message = b""
        if call.begun:
            self._begun.pop(call, None)
        else:
            self._unbegun.pop(call, None)
        if status == OK and not self.reached:
            self.reached = True
            log.info("adapter = %s answers: the first %s succeeded", self.name, call.method.name)
        call.done(status, answer)

    def failed(self, call: Call, words: bytes, *, untouched: bool) -> None:
        """Try *call* again if that can do no harm, as long as its deadline allows."""
        if call.finished:
            return
        if self._closed or not (untouched or call.method.again):
            self.finish(call, UNAVAILABLE, words)
            return
        call.words = words
        call.answer = b""
        call.status, call.heads, call.connection = -1, 0, None
        call.retry = min(max(call.retry * 2, BACKOFF[0]), BACKOFF[1])
        self.loop.call_later(call.retry, self._start, call)

    def strange(self, data: bytes) -> None:
        """Take note that something else answers there."""
        self._tell(f"what is there doesn't speak gRPC, it said {data[:40]!r}")

    # --- inside

    def _start(self, call: Call) -> None:
        if call.finished:
            return
        connection = self._connection
        if connection is not None and connection.free and not self._waiting:
            self._begin(connection, call)
            return
        if not call.begun:
            self._unbegun[call] = None
        self._waiting.push(call)
        if connection is None:
            self._connect()

    def _begin(self, connection: ClientConnection, call: Call) -> None:
        if not call.begun:
            call.begun = self.loop.time()
            self._unbegun.pop(call, None)
            self._begun[call] = None
        connection.start(call)

    def _connect(self) -> None:
        if self._connecting is None and not self._closed:
            self._connecting = self.loop.create_task(self._try_to_connect())

    async def _try_to_connect(self) -> None:
        """Connect, again and again while a call waits for it."""
        try:
            while self._connection is None and self._waiting:
                connection = ClientConnection(self)
                try:
                    opened = self.loop.create_connection(lambda: connection.protocol, self._host, self._port)  # noqa: B023 - called at once
                    await asyncio.wait_for(opened, DEADLINE)
                    await asyncio.wait_for(connection.standing, DEADLINE)
                except (OSError, ValueError, asyncio.TimeoutError) as error:
                    connection.protocol.abort()
                    self._tell(str(error) or "no answer")
                if self._connection is None:
                    await asyncio.sleep(self._backoff)
                    self._backoff = min(2 * self._backoff, BACKOFF[1])
        finally:
            self._connecting = None

    def _tell(self, words: str) -> None:
        """Say that the adapter is away, not too often."""
        self._down, self.trouble = True, words
        now = self.loop.time()
        if now - self._said >= SAY_AGAIN:
            self._said = now
            log.warning("adapter ! unreachable at %s: %s", self.name, words)

    def _sweep(self) -> None:
        """End calls that are late."""
        self._sweeping = None
        now = self.loop.time()
        late = self._late(now)
        for call in late:
            connection = call.connection
            if connection is None:
                self._waiting.discard(call)
            self.finish(call, DEADLINE_EXCEEDED, self._why_late(call, now))
            if connection is not None:
                connection.give_up(call)
        current = self._connection
        if late and current is not None and now - current.http2.heard > DEADLINE:
            # It hangs, or the network swallows what is sent: the next call gets another connection.
            current.protocol.abort()
        if self._begun or self._unbegun:
            self._sweeping = self.loop.call_later(0 if len(late) >= AT_ONCE else SWEEP, self._sweep)

    def _late(self, now: float) -> list[Call]:
        late: list[Call] = []
        for call in self._begun:
            if call.begun + DEADLINE > now:
                break
            late.append(call)
        for call in self._unbegun:
            if len(late) >= AT_ONCE or (
                max(call.since, self.answered) + DEADLINE > now and call.since + TURN > now
            ):
                break
            late.append(call)
        return late

    def _why_late(self, call: Call, now: float) -> bytes:
        if call.begun:
            return (call.words or b"no answer") + b" within %g s" % DEADLINE
        if self._connection is None:
            return b"not reachable within %g s" % DEADLINE
        return b"its turn didn't come within %.0f s, %d calls wait" % (now - call.since, len(self._waiting))
