"""Caller: the server's half of a connection on which a broker calls us."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Protocol, TypeAlias

from ..http2 import Fields, ProtocolError, pack_frame
from ..http2.budget import STREAM_COST
from ..http2.frames import END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, HEADERS, NO_ERROR, STREAM_CLOSED
from ..http2.transport import Http2Protocol
from .broker import AdapterMap, Broker
from .callers import Callers
from .link import GrpcLink

__all__ = ["MAX_MESSAGE", "Caller", "CallerService", "InboundCall", "Take"]

log = logging.getLogger("exproto_app")

MAX_MESSAGE: Final = 16_777_216
"""Bytes of one event that are taken; the device that sent more in one go is closed."""

MESSAGES: Final = 16
"""Messages of one frame that are handled before the clock is looked at."""

MAX_WITHHELD: Final = 16
"""Answers of one device that are withheld; a broker has one call in flight for each, so that is plenty."""

PREFACE_WAIT: Final = 10.0
"""Seconds until somebody who connects has to speak HTTP/2."""

WHOLE_WAIT: Final = 60.0
"""Seconds within which a call has to bring its first event whole."""

RESPONSE: Final = ((b":status", b"200"), (b"content-type", b"application/grpc"))
TRAILERS: Final = ((b"grpc-status", b"0"),)
EMPTY: Final = b"\0\0\0\0\0"
"""A message of no bytes: EmptySuccess."""


class InboundCall:
    """A call that is not answered yet.

    *streaming*: it brings one message after another. *endless*: it gets no answer but *last*, when the
    service stops. *waits*: its answer is withheld. *begun*: a part of its answer is out. *tied*: it is known
    which connection a stream belongs to. *since*: when it began. *cost*: bytes that are held for it.
    *standing*: its first event was whole, and it stays.
    """

    __slots__ = (
        "begun",
        "buffer",
        "cost",
        "ended",
        "endless",
        "last",
        "since",
        "standing",
        "stream",
        "streaming",
        "take",
        "tied",
        "waits",
    )

    def __init__(self, stream: int, take: Take, *, streaming: bool) -> None:
        self.stream = stream
        self.take = take
        self.streaming = self.endless = streaming
        self.buffer: bytearray | None = None
        self.since = 0.0
        self.cost = 0
        self.begun = self.ended = self.waits = self.tied = self.standing = False
        self.last = EMPTY


class CallerService(Protocol):
    """What a caller needs of the service."""

    adapters: AdapterMap
    methods: Mapping[bytes, tuple[Take, bool]]
    callers: Callers

    def say(self, what: object, text: str, /, *arguments: object) -> None:
        """Log a warning the first time that *what* happens."""
        ...

    def count(self, name: str, /) -> None:
        """Count what isn't the engine's."""
        ...


class Caller:
    """The server's half of one HTTP/2 connection; its `Endpoint`.

    A call costs its peer from its beginning until its first event is whole; from then on a stream belongs to
    a device, if there is such a device, and is that device's.
    """

    def __init__(self, service: CallerService) -> None:
        self.service = service
        callers = service.callers
        self.protocol = Http2Protocol(self, callers.scheduler, callers.budget, client=False)
        self.http2 = self.protocol.http2
        self.host = "?"
        self.broker: Broker | None = None
        self.calls: dict[int, InboundCall] = {}
        self.held = 0
        self.unfinished = False
        self.proven = False  # it has called a method of ours, with a whole message
        self._incomplete: dict[int, InboundCall] = {}  # those whose first event is not whole, by age
        self._standing = 0  # those that are whole and get no answer
        self._collecting: InboundCall | None = None
        self._mute: asyncio.TimerHandle | None = None

    @property
    def waits(self) -> bool:
        """Whether a call waits for its answer; streams never get one while the broker lives."""
        return len(self.calls) > len(self._incomplete) + self._standing

    # --- from the connection

    def connected(self) -> None:
        self.host = self.protocol.peer
        self.service.callers.add(self)
        self._mute = asyncio.get_running_loop().call_later(PREFACE_WAIT, self._said_nothing)

    def settled(self) -> None:
        if self._mute is not None:
            self._speaks()
            self.service.callers.spoke(self)
            self.broker = self.service.adapters.find(self.host)
            if self.broker is not None:
                self.broker.callers += 1

    def headers(self, stream: int, fields: Fields, *, ended: bool) -> None:
        if stream in self.calls:  # trailers, which nobody sends
            self.data(stream, b"", ended=True)
            return
        path = fields.get(b":path", b"")
        method = self.service.methods.get(path)
        if method is None:
            self._refuse(stream, path)
            return
        take, streaming = method
        call = self.calls[stream] = InboundCall(stream, take, streaming=streaming)
        if ended:
            self.data(stream, b"", ended=True)
            return
        self._incomplete[stream] = call
        call.since = self.http2.heard
        call.cost = STREAM_COST
        self.held += STREAM_COST

    def data(self, stream: int, data: bytes, *, ended: bool) -> None:
        call = self.calls.get(stream)
        if call is None:
            return
        if call.ended:
            raise ProtocolError(STREAM_CLOSED, f"stream {stream} goes on after its end")
        if ended:
            call.ended = True
            if self._incomplete.pop(stream, None) is not None:
                self.held -= call.cost
                call.cost = 0
            if call.buffer is None and len(data) - 5 == int.from_bytes(data[:5], "big"):
                # Nearly always a call is one frame with one message, not compressed.
                if self._take(call, data[5:]) or call.streaming:
                    self.answer(stream)
                return
        self._collect(call, data)

    def resume(self) -> None:
        call, self._collecting, self.unfinished = self._collecting, None, False
        if call is not None and call.buffer is not None:
            self._take_messages(call, call.buffer)

    def _stand(self, call: InboundCall) -> None:
        """Count *call* among those that stay and get no answer."""
        self._incomplete.pop(call.stream, None)
        call.standing = True
        self._standing += 1

    def watch(self, call: InboundCall, message: bytes, last: bytes) -> None:
        """Answer with *message* now and with *last* in the end; such a call costs its peer all the time."""
        call.endless, call.last = True, last
        self.begin(call, message)
        self._stand(call)
        if not call.cost:
            call.cost = STREAM_COST
            self.held += STREAM_COST

    def established(self, call: InboundCall) -> None:
        """Take note that the stream *call* belongs to a connected device, and costs nothing more."""
        if call.cost and self.calls.get(call.stream) is call:
            self.held -= call.cost
            call.cost = 0

    def end_incomplete(self, now: float) -> None:
        """End calls that have not brought a whole event in time."""
        while self._incomplete:
            stream, call = next(iter(self._incomplete.items()))
            if call.since + WHOLE_WAIT > now:
                return
            self.service.count("events_ignored")
            text = "grpc ! %s began a call and brought no whole event within %g s; the call ends"
            log.warning(text, self.host, WHOLE_WAIT)
            self.refuse(stream, b"4", b"no whole event came in time")
            self.http2.settle()

    def reset(self, stream: int, code: int) -> None:
        log.debug("grpc < %s reset stream %d, code %d", self.host, stream, code)
        self._drop(stream)

    def going(self, last: int) -> None:
        """Do nothing: the peer closes when it has its answers."""

    def unsuitable(self, data: bytes) -> None:
        self._speaks()
        if data[:2] == b"\x16\x03":
            words = (
                "speaks TLS, but the service has none; write http:// in the handler's address, or give --cert"
            )
        elif data[:4] in (b"GET ", b"POST", b"HEAD", b"PUT "):
            words = "speaks HTTP/1; this port is for EMQX, which speaks gRPC"
        else:
            words = "doesn't speak gRPC; devices belong on a listener of EMQX's gateway, not on this port"
        self.service.say(("strange", self.host), "grpc ! %s %s: %r", self.host, words, data[:40])
        self.service.count("callers_refused")

    def closed(self, detail: str) -> None:
        self._speaks()
        if self.broker is not None:
            self.broker.callers -= 1
            self.broker = None
        self._forget_all()
        self.service.callers.discard(self)
        log.debug("grpc = %s went: %s", self.host, detail)

    def broke_rule(self, error: ProtocolError) -> None:
        self._forget_all()
        calm = error.code == ENHANCE_YOUR_CALM
        self.service.count("callers_over_limit" if calm else "callers_broke_rule")
        text = (
            "grpc ! %s exceeds a limit, its connection ends: %s"
            if calm
            else ("grpc ! %s broke a rule of HTTP/2, its connection ends: %s")
        )
        log.warning(text, self.host, error)

    def writable(self) -> None:
        """Do nothing: the connection reads on by itself."""

    def give_way(self, why: str) -> None:
        """End a connection that has proved nothing, because its place is needed."""
        self._speaks()
        self.service.count("callers_over_limit")
        log.warning("grpc ! %s gives way: %s", self.host, why)
        self.protocol.abort()

    # --- answers

    def answer(self, stream: int, message: bytes = EMPTY) -> None:
        """Answer with success."""
        call = self._drop(stream)
        if call is None:
            return
        http2 = self.http2
        number = stream.to_bytes(4, "big")
        if not call.begun:
            block = http2.encoder.encode(RESPONSE)
            http2.write(bytes((0, 0, len(block), HEADERS, END_HEADERS)) + number + block)
        end = http2.encoder.encode(TRAILERS)
        tail = bytes((0, 0, len(end), HEADERS, END_HEADERS | END_STREAM)) + number + end
        http2.send(stream, message, ended=False, tail=tail)
        if call.streaming:
            http2.forget(stream)  # the peer may never end its half

    def begin(self, call: InboundCall, message: bytes) -> None:
        """Answer with *message*, and leave the stream open."""
        call.begun = True
        block = self.http2.encoder.encode(RESPONSE)
        self.http2.write(pack_frame(HEADERS, END_HEADERS, call.stream, block))
        self.http2.send(call.stream, message, ended=False)

    def withhold(self, call: InboundCall, link: GrpcLink) -> None:
        """Answer when *link* says so; on a stream, take no more until then."""
        withheld = link.withheld
        if withheld is None:
            withheld = link.withheld = []
        if not call.streaming:
            withheld.append(partial(self.answer, call.stream))
        elif self.http2.hold(call.stream):
            withheld.append(partial(self.http2.unhold, call.stream))
        if len(withheld) > MAX_WITHHELD and link.channel is not None:
            words = f"the broker waits for no answers: {len(withheld)} are withheld, limit is {MAX_WITHHELD}"
            log.warning("%s ! %s; it is closed", link.conn.decode(), words)
            link.channel.end("error", words)

    def end_streams(self) -> None:
        """Answer the streams, which the broker never ends."""
        for call in [call for call in self.calls.values() if call.endless]:
            self.answer(call.stream, call.last)

    # --- inside

    def _drop(self, stream: int) -> InboundCall | None:
        call = self.calls.pop(stream, None)
        if call is None:
            return None
        self._standing -= call.standing
        self._incomplete.pop(stream, None)
        self.held -= call.cost
        if call.buffer is not None:
            self.held -= len(call.buffer)
            call.buffer = None
        return call

    def _forget_all(self) -> None:
        self.calls.clear()
        self._incomplete.clear()
        self.held = 0
        self._standing = 0
        self._collecting, self.unfinished = None, False

    def _refuse(self, stream: int, path: bytes) -> None:
        text = "grpc ! %s calls %s, which is no method of the handler's services"
        self.service.say(("method", path[:80]), text, self.host, path[:80].decode(errors="replace"))
        self.refuse(stream, b"12", b"there is no such method")

    def refuse(self, stream: int, status: bytes, words: bytes) -> None:
        """Answer with a *status* other than success; for what is no event."""
        self._drop(stream)
        self.http2.forget(stream)
        fields = (*RESPONSE, (b"grpc-status", status), (b"grpc-message", words))
        block = self.http2.encoder.encode(fields)
        self.http2.write(pack_frame(HEADERS, END_HEADERS | END_STREAM, stream, block))

    def _take(self, call: InboundCall, message: bytes) -> bool:
        """Take a message; return whether it may be answered now."""
        self.proven = True
        try:
            return call.take(self, call, message)
        except Exception:
            # A mistake of ours is no reason to close the device, or even everyone's connection.
            self.service.count("events_ignored")
            log.exception("grpc ! an event of %s failed", self.host)
            return True

    def _collect(self, call: InboundCall, data: bytes) -> None:
        """Take messages that come in pieces, or many on one stream."""
        if call.buffer is None:
            call.buffer = bytearray()
        call.buffer += data
        self.held += len(data)
        self._take_messages(call, call.buffer)

    def _take_messages(self, call: InboundCall, buffer: bytearray) -> None:
        """Take the whole messages in *buffer*, a bounded number of them at a time."""
        at = taken = 0
        while len(buffer) - at >= 5:
            size = int.from_bytes(buffer[at + 1 : at + 5], "big")
            if size > MAX_MESSAGE:
                self._too_long(call, bytes(buffer[at + 5 : at + 200]), size)
                return
            behind = at + 5 + size
            if len(buffer) < behind:
                break
            if taken == MESSAGES:
                self._collecting, self.unfinished = call, True
                break
            if buffer[at]:
                self._unreadable("a compressed event, which nobody offered to take")
            elif not self._take(call, bytes(buffer[at + 5 : behind])):
                call.waits = True
            at, taken = behind, taken + 1
        if call.buffer is None:
            return  # answered meanwhile
        del buffer[:at]
        self.held -= at
        if taken and call.endless and not call.standing:
            self._stand(call)
        if call.ended and not self.unfinished:
            self._collected(call, len(buffer))

    def _collected(self, call: InboundCall, left: int) -> None:
        if left:
            self._unreadable(f"{left} bytes that are no event")
        # On a stream, what is withheld is the window, not the answer at the end.
        if call.streaming or not call.waits:
            self.answer(call.stream)

    def _unreadable(self, what: str) -> None:
        self.service.count("events_ignored")
        log.warning("grpc ! %s sent %s", self.host, what)

    def _too_long(self, call: InboundCall, beginning: bytes, size: int) -> None:
        conn = beginning[2 : 2 + beginning[1]] if len(beginning) > 1 else b""
        link = self.broker.links.get(conn) if self.broker is not None else None
        words = f"{size} bytes in one call, limit is {MAX_MESSAGE}"
        self.service.count("events_ignored")
        log.warning("grpc ! %s sent %s; it is closed", conn.decode(errors="replace"), words)
        if link is not None and link.channel is not None:
            link.channel.end("error", words)
        self.answer(call.stream)
        self.http2.cancel(call.stream, NO_ERROR)  # what still comes is of no use

    def _speaks(self) -> None:
        if self._mute is not None:
            self._mute.cancel()
            self._mute = None

    def _said_nothing(self) -> None:
        self._mute = None
        text = "grpc ! %s connects but says nothing; devices belong on a listener of EMQX's gateway"
        self.service.say(("mute", self.host), text, self.host)
        self.protocol.abort()


Take: TypeAlias = Callable[[Caller, InboundCall, bytes], bool]
"""Takes a message of a call; False withholds the answer, until `GrpcLink.answer`."""
