"""ClientConnection: the client's half of one HTTP/2 connection, and the calls on it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import unquote_to_bytes

from ..http2 import Budget, Fields, ProtocolError
from ..http2.frames import ENHANCE_YOUR_CALM, NO_ERROR, REFUSED_STREAM
from ..http2.transport import Http2Protocol

if TYPE_CHECKING:
    from .client import AdapterClient

__all__ = ["OK", "UNAVAILABLE", "Call", "ClientConnection", "Done", "Method"]

log = logging.getLogger("exproto_app")

OK: Final = 0
UNAVAILABLE: Final = 14

MAX_ANSWER: Final = 65_536
"""Bytes of an answer that are accepted; an adapter's have a code and a sentence."""

HEADS: Final = 4
"""Lists of fields that one answer may have: provisional ones, the first and the last."""

LAST_STREAM: Final = 0x7FFFFF00
"""Streams of a connection are numbered up to here; then a new one is made."""

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
    """A call that has no answer yet.

    *flow*: whose it is; those of one flow take their turns with those of others. *since*: when it was made;
    *begun*: when it was first on the wire, 0.0 before.
    """

    __slots__ = (
        "answer",
        "begun",
        "connection",
        "done",
        "finished",
        "flow",
        "given_up",
        "heads",
        "message",
        "method",
        "retry",
        "since",
        "size",
        "status",
        "stream",
        "words",
    )

    def __init__(self, method: Method, message: bytes, done: Done, flow: bytes, since: float) -> None:
        self.method = method
        self.message = message
        self.done = done
        self.flow = flow
        self.since = since
        self.begun = 0.0
        self.size = 0  # so much of it counts as held
        self.stream = 0
        self.connection: ClientConnection | None = None
        self.answer: bytes | bytearray = b""
        self.heads = 0
        self.status = -1
        self.words = b""
        self.retry = 0.0
        self.given_up = self.finished = False


class ClientConnection:
    """The client's half of one HTTP/2 connection; its `Endpoint`."""

    def __init__(self, client: AdapterClient) -> None:
        self.client = client
        self.protocol = Http2Protocol(self, client.scheduler, Budget(), client=True)
        self.http2 = self.protocol.http2
        self.calls: dict[int, Call] = {}
        self.held = 0  # what it holds is bounded by the calls that we make
        self.unfinished = False
        self.retired = False
        self.given_up = 0
        self.standing: asyncio.Future[None] = client.loop.create_future()
        self._next = 1

    @property
    def free(self) -> bool:
        """Whether another call may be put on the wire now."""
        on_wire = len(self.calls)
        return (
            on_wire - self.given_up < self.client.in_flight
            and on_wire < self.http2.max_streams
            and not self.protocol.full
        )

    def start(self, call: Call) -> None:
        """Put *call* on a stream of its own."""
        stream = self.http2.last = self._next
        self._next = stream + 2
        call.stream, call.connection = stream, self
        self.calls[stream] = call
        http2, message = self.http2, call.message
        block = http2.encoder.encode(call.method.fields)
        size = len(block)
        head = bytes((0, size >> 8, size & 0xFF, 1, 4)) + stream.to_bytes(4, "big") + block
        http2.write(head)
        http2.send(stream, b"\0" + len(message).to_bytes(4, "big") + message, ended=True)
        if stream > LAST_STREAM:
            self.retire()

    def retire(self) -> None:
        """Begin no more calls here; close when the last that somebody waits for has its answer."""
        self.retired = True
        self.client.retired(self)
        self._look_empty()

    def give_up(self, call: Call) -> None:
        """Wait no longer for the answer to *call*, which keeps its stream until it comes.

        It isn't cancelled: EMQX's cowlib (2.9.1) takes a RST_STREAM that two of its reads share for a broken
        rule and ends the connection, with all other calls. When it has hung for a while, that is likely.
        """
        call.answer = b""
        call.given_up = True
        self.given_up += 1
        # Each stream that stays open makes all others dearer for the adapter.
        if self.given_up >= self.client.in_flight and not self.retired:
            text = "adapter ! %s leaves %d calls unanswered; it is connected anew"
            log.warning(text, self.client.name, self.given_up)
            self.retire()
        elif self.retired:
            self._look_empty()

    # --- from the connection

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
        call.heads += 1
        if call.heads > HEADS:
            words = f"an answer has {call.heads} lists of fields, limit is {HEADS}"
            raise ProtocolError(ENHANCE_YOUR_CALM, words)
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
        if call.given_up:
            data = b""
        if not call.answer:
            call.answer = data  # nearly always that is all of it
        else:
            if isinstance(call.answer, bytes):
                call.answer = bytearray(call.answer)
            call.answer += data
        if len(call.answer) > MAX_ANSWER:
            self._pop(stream)
            self.http2.cancel(stream)
            self.client.finish(call, 8, b"the answer has more than %d bytes" % MAX_ANSWER)
        elif ended:
            self._ended(call)

    def reset(self, stream: int, code: int) -> None:
        call = self._pop(stream)
        if call is not None:
            # REFUSED_STREAM says that nothing was done.
            self.client.failed(
                call, b"the stream was reset, code %d" % code, untouched=code == REFUSED_STREAM
            )
            self._look_empty()

    def going(self, last: int) -> None:
        log.debug("adapter = %s ends the connection", self.client.name)
        self.retired = True
        self.client.retired(self)
        for stream in [stream for stream in self.calls if stream > last]:
            call = self._pop(stream)
            if call is not None:
                self.client.failed(call, b"the connection ends", untouched=True)
        self._look_empty()

    def resume(self) -> None:
        """Do nothing: an answer is small."""

    def writable(self) -> None:
        self.client.room()

    def unsuitable(self, data: bytes) -> None:
        self.client.strange(data)

    def broke_rule(self, error: ProtocolError) -> None:
        log.warning("adapter ! %s is connected anew, its connection ends: %s", self.client.name, error)
        self.retired = True
        self.client.retired(self)

    def closed(self, detail: str) -> None:
        calls, self.calls = self.calls, {}
        self.client.open.discard(self)
        self.retired = True
        self._stands()
        self.client.retired(self)
        self.given_up = 0
        for call in calls.values():
            self.client.failed(call, b"the connection broke: " + detail.encode(), untouched=False)

    def _pop(self, stream: int) -> Call | None:
        call = self.calls.pop(stream, None)
        if call is not None and call.given_up:
            self.given_up -= 1
        return call

    def _ended(self, call: Call) -> None:
        self.client.answered = self.http2.heard
        self._pop(call.stream)
        if self.http2.waits(call.stream):
            self.http2.cancel(call.stream, NO_ERROR)  # it has answered without reading all
        answer = call.answer
        status = call.status
        if status == OK:
            size = int.from_bytes(answer[1:5], "big")
            if len(answer) < 5 or answer[0] or len(answer) != size + 5:
                self.client.finish(call, 2, b"the answer is no message")
            else:
                self.client.finish(call, OK, bytes(answer[5:]))
        elif status == UNAVAILABLE:
            self.client.failed(call, call.words or b"it says that it is unavailable", untouched=True)
        else:
            words = b"the answer has no status" if status < 0 else b"status %d" % status
            self.client.finish(call, 2 if status < 0 else status, call.words or words)
        self._look_empty()

    def _look_empty(self) -> None:
        if self.retired:
            if len(self.calls) <= self.given_up:
                self.protocol.close()
        else:
            self.client.room()
