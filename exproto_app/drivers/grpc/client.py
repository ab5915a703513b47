"""Client: unary gRPC calls to one address, over a connection that comes and goes."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias
from urllib.parse import unquote_to_bytes

from ...models import Address
from .blocks import Fields
from .http2 import Wire

__all__ = ["CANCELLED", "NOT_FOUND", "OK", "UNAVAILABLE", "UNIMPLEMENTED", "Client", "Done", "Method"]

log = logging.getLogger("exproto_app")

OK: Final = 0
CANCELLED: Final = 1
DEADLINE_EXCEEDED: Final = 4
NOT_FOUND: Final = 5
UNIMPLEMENTED: Final = 12
UNAVAILABLE: Final = 14

DEADLINE: Final = 5.0
"""Seconds that a call may take, its wait for a connection and its retries included."""

SWEEP: Final = 0.25
"""Seconds between two looks for calls that are late: one timer for all of them."""

BACKOFF: Final = (0.05, 2.0)
"""Seconds between two attempts to connect, the first time and at most."""

MAX_ANSWER: Final = 1_048_576
"""Bytes of an answer that are taken."""

GIVEN_UP: Final = 1_000
"""Calls without an answer in time, after which a connection is given up too."""

LAST_STREAM: Final = 0x7FFFFF00
"""Streams of a connection are numbered up to here; then a new one is made."""

SAY_AGAIN: Final = 30.0
"""Seconds between two log lines about an address that can't be reached."""

Done: TypeAlias = Callable[[int, bytes], object]
"""Gets the status of a call and its answer, or the words of the failure."""


class Method:
    """What is the same in all calls of one method. *again*: it does no harm to call it twice."""

    __slots__ = ("again", "fields", "name")

    def __init__(self, path: str, authority: str, *, again: bool) -> None:
        self.name = path.rpartition("/")[2]
        self.again = again
        self.fields = (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path.encode()),
            (b":authority", authority.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", b"exproto-app"),
        )


class Call:
    """A call that has no answer yet."""

    __slots__ = (
        "answer",
        "deadline",
        "done",
        "given_up",
        "message",
        "method",
        "retry",
        "status",
        "stream",
        "wire",
        "words",
    )

    def __init__(self, method: Method, message: bytes, done: Done, deadline: float) -> None:
        self.method = method
        self.message = message
        self.done = done
        self.deadline = deadline
        self.stream = 0
        self.wire: Connection | None = None
        self.answer = b""
        self.status = -1
        self.words = b""
        self.retry = 0.0
        self.given_up = False


class Connection:
    """The client's half of one HTTP/2 connection; a `Wire`'s owner."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.wire = Wire(self, client=True)
        self.calls: dict[int, Call] = {}
        self.retired = False
        self.given_up = 0
        self.standing: asyncio.Future[None] = client.loop.create_future()
        self._next = 1

    @property
    def free(self) -> bool:
        """Whether the peer would take another stream now."""
        return len(self.calls) < self.wire.max_streams and not self.wire.full

    def start(self, call: Call) -> None:
        """Put *call* on a stream of its own."""
        stream = self.wire.last = self._next
        self._next = stream + 2
        call.stream, call.wire = stream, self
        self.calls[stream] = call
        wire, message = self.wire, call.message
        block = wire.encoder.encode(call.method.fields)
        size = len(block)
        head = bytes((0, size >> 8, size & 0xFF, 1, 4)) + stream.to_bytes(4, "big") + block
        wire.write(head)
        wire.send(stream, b"\0" + len(message).to_bytes(4, "big") + message, ended=True)
        if stream > LAST_STREAM:
            self.retire()

    def retire(self) -> None:
        """Begin no more calls here; close when the last has its answer."""
        self.retired = True
        self.client.retired(self)
        if not self.calls:
            self.wire.close()

    def give_up(self, call: Call) -> None:
        """Wait no longer for the answer to *call*, which keeps its stream until it comes.

        It isn't cancelled: EMQX's cowlib (2.9.1) takes a RST_STREAM that two of its reads share for a broken
        rule and ends the connection, with all other calls. When it has hung for a while, that is likely.
        """
        call.message, call.given_up = b"", True
        self.given_up += 1
        if self.given_up > GIVEN_UP:
            text = "adapter ! %s leaves %d calls unanswered; it is connected anew"
            log.warning(text, self.client.name, GIVEN_UP)
            self.wire.abort()

    # --- from the wire

    def connected(self) -> None:
        # Until its settings are here, nobody knows who is at the other end.
        self.client.open.add(self)

    def settled(self) -> None:
        if self.standing.done():
            self.client.room()
        else:
            self._stands()
            self.client.ready(self)

    def _stands(self) -> None:
        if not self.standing.done():
            self.standing.set_result(None)

    def headers(self, stream: int, fields: Fields, *, ended: bool) -> None:
        call = self.calls.get(stream)
        if call is None:
            return
        status = fields.get(b"grpc-status")
        if status is not None:
            call.status = int(status) if status.isdigit() and len(status) < 4 else 2
            call.words = unquote_to_bytes(fields.get(b"grpc-message", b""))
        elif fields.get(b":status", b"200") != b"200":
            call.status = UNAVAILABLE
            call.words = b"it answers HTTP status " + fields[b":status"]
        if ended:
            self._ended(call)

    def data(self, stream: int, data: bytes, *, ended: bool) -> None:
        call = self.calls.get(stream)
        if call is None:
            return
        call.answer += data
        if len(call.answer) > MAX_ANSWER:
            del self.calls[stream]
            self.wire.cancel(stream)
            self.client.finish(call, 8, b"the answer has more than %d bytes" % MAX_ANSWER)
        elif ended:
            self._ended(call)

    def reset(self, stream: int, code: int) -> None:
        call = self.calls.pop(stream, None)
        if call is not None:
            # REFUSED_STREAM says that nothing was done.
            self.client.failed(call, b"the stream was reset, code %d" % code, untouched=code == 7)
            self._look_empty()

    def going(self, last: int) -> None:
        log.debug("adapter = %s ends the connection", self.client.name)
        self.retired = True
        self.client.retired(self)
        for stream in [stream for stream in self.calls if stream > last]:
            self.client.failed(self.calls.pop(stream), b"the connection ends", untouched=True)
        self._look_empty()

    def strange(self, data: bytes) -> None:
        self.client.strange(data)

    def closed(self, detail: str) -> None:
        calls, self.calls = self.calls, {}
        self.client.open.discard(self)
        self.retired = True
        self._stands()
        self.client.retired(self)
        for call in calls.values():
            self.client.failed(call, b"the connection broke: " + detail.encode(), untouched=False)

    def _ended(self, call: Call) -> None:
        del self.calls[call.stream]
        self.given_up -= call.given_up
        if self.wire.waits(call.stream):
            self.wire.cancel(call.stream, 0)  # it has answered without reading all
        answer = call.answer
        status = call.status
        if status == OK:
            size = int.from_bytes(answer[1:5], "big")
            if len(answer) < 5 or answer[0] or len(answer) != size + 5:
                self.client.finish(call, 2, b"the answer is no message")
            else:
                self.client.finish(call, OK, answer[5:])
        elif status == UNAVAILABLE:
            self.client.failed(call, call.words or b"it says that it is unavailable", untouched=True)
        else:
            words = b"the answer has no status" if status < 0 else b"status %d" % status
            self.client.finish(call, 2 if status < 0 else status, call.words or words)
        self._look_empty()

    def _look_empty(self) -> None:
        if self.retired:
            if not self.calls:
                self.wire.close()
        else:
            self.client.room()


class Client:
    """Calls to *host*:*port*. A call waits for a connection, at most until its deadline."""

    def __init__(self, host: str, port: int) -> None:
        self.name = str(Address(host, port))
        self.asked = self.reached = False
        self.trouble = ""  # why it couldn't be reached last
        self._host = host
        self._port = port
        self.loop = asyncio.get_running_loop()
        self.open: set[Connection] = set()
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._calls: dict[Call, None] = {}
        self._waiting: deque[Call] = deque()
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

    def method(self, path: str, *, again: bool = False) -> Method:
        """Return the method at *path*."""
        return Method(path, self.name, again=again)

    def call(self, method: Method, message: bytes, done: Done) -> None:
        """Call *method*; *done* gets what comes of it, later."""
        self.asked = True
        call = Call(method, message, done, self.loop.time() + DEADLINE)
        self._calls[call] = None
        if self._closed:
            self.loop.call_soon(self.finish, call, CANCELLED, b"the service stops")
            return
        if self._sweeping is None:
            self._sweeping = self.loop.call_later(SWEEP, self._sweep)
        self._start(call)

    async def close(self) -> None:
        """Let go of the connection; calls that have no answer fail."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._sweeping is not None:
            self._sweeping.cancel()
        for call in tuple(self._calls):
            self.finish(call, CANCELLED, b"the service stops")
        for connection in self.open:
            connection.wire.close()

    # --- from the connection

    def ready(self, connection: Connection) -> None:
        """Use *connection* from now on."""
        self._backoff = BACKOFF[0]
        self._connection = connection
        if self._down:
            self._down = False
            log.warning("adapter = %s is reached again", self.name)
        self.room()

    def retired(self, connection: Connection) -> None:
        """Begin no more calls on *connection*."""
        if self._connection is connection:
            self._connection = None
            if self._waiting:
                self._connect()

    def room(self) -> None:
        """Begin calls that wait, as far as the peer takes more."""
        while self._waiting and self._connection is not None and self._connection.free:
            call = self._waiting.popleft()
            if call in self._calls:
                self._connection.start(call)

    def finish(self, call: Call, status: int, answer: bytes) -> None:
        """Tell who called."""
        if call in self._calls:
            del self._calls[call]
            if status == OK and not self.reached:
                self.reached = True
                log.info("adapter = %s answers: the first %s succeeded", self.name, call.method.name)
            call.done(status, answer)

    def failed(self, call: Call, words: bytes, *, untouched: bool) -> None:
        """Try *call* again if that can do no harm, as long as its deadline allows."""
        if call not in self._calls:
            return
        if self._closed or not (untouched or call.method.again):
            self.finish(call, UNAVAILABLE, words)
            return
        call.words = words
        call.answer, call.status, call.wire = b"", -1, None
        call.retry = min(max(call.retry * 2, BACKOFF[0]), BACKOFF[1])
        self.loop.call_later(call.retry, self._start, call)

    def strange(self, data: bytes) -> None:
        """Take note that something else answers there."""
        self._tell(f"what is there doesn't speak gRPC, it said {data[:40]!r}")

    # --- inside

    def _start(self, call: Call) -> None:
        if call not in self._calls:
            return
        connection = self._connection
        if connection is not None and connection.free and not self._waiting:
            connection.start(call)
            return
        self._waiting.append(call)
        if connection is None:
            self._connect()

    def _connect(self) -> None:
        if self._connecting is None and not self._closed:
            self._connecting = self.loop.create_task(self._try_to_connect())

    async def _try_to_connect(self) -> None:
        """Connect, again and again while a call waits for it."""
        try:
            while self._connection is None and self._waiting:
                connection = Connection(self)
                try:
                    opened = self.loop.create_connection(lambda: connection.wire, self._host, self._port)  # noqa: B023 - called at once
                    await asyncio.wait_for(opened, DEADLINE)
                    await asyncio.wait_for(connection.standing, DEADLINE)
                except (OSError, ValueError, asyncio.TimeoutError) as error:
                    connection.wire.abort()
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
        """End calls that are late: the oldest stand first."""
        now = self.loop.time()
        self._sweeping = None
        late = []
        for call in self._calls:
            if call.deadline > now:
                break
            late.append(call)
        for call in late:
            if call.wire is not None:
                call.wire.give_up(call)
            words = call.words or b"no answer" if call.wire is not None or call.words else b"not reachable"
            self.finish(call, DEADLINE_EXCEEDED, words + b" within %g s" % DEADLINE)
        connection = self._connection
        if late and connection is not None and now - connection.wire.heard > DEADLINE:
            # It hangs, or the network swallows what is sent: the next call gets another connection.
            connection.wire.abort()
        while self._waiting and self._waiting[0] not in self._calls:
            self._waiting.popleft()
        if self._calls:
            self._sweeping = self.loop.call_later(SWEEP, self._sweep)
