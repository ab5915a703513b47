"""HTTP/2 (RFC 9113) as far as gRPC needs it, on asyncio: frames, flow control, and the end.

It stands in the place of grpcio because a message costs a fraction here: no hand-over between threads, no
objects for a call but one, all that is sent in one round of the loop written at once, header blocks looked
up instead of decoded. One `Wire` is one TCP connection; its `Owner` is the server's or the client's half.

What a peer does wrong ends its connection, with the code of RFC 9113, where that allows a stream's end too:
nobody who speaks gRPC does it by accident.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from struct import Struct
from typing import Final, Protocol, cast

from .blocks import MAX_LIST, BlockError, Decoder, Encoder, Fields

__all__ = [
    "ENHANCE_YOUR_CALM",
    "NO_ERROR",
    "PREFACE",
    "STREAM_CLOSED",
    "Owner",
    "Wire",
    "WireError",
    "framed",
]

log = logging.getLogger("exproto_app")

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY_FRAME, RST_STREAM, SETTINGS, PUSH_PROMISE = 0, 1, 2, 3, 4, 5
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR = 0, 1, 3, 5, 6
CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 8, 9, 11

MAX_FRAME: Final = 16_384
"""Bytes of a frame's payload that we take; the least that a peer has to take."""

MAX_BLOCK: Final = MAX_LIST
"""Bytes of a header block that we take, and 16 less for each frame that it comes in."""

BACKLOG: Final = 16_777_216
"""Bytes that a peer may leave unread; above that a server reads no more of it, a client asks no more."""

IDLE_FRAMES: Final = 10_000
IDLE_SECONDS: Final = 10.0
"""Frames that bring nothing (pings, settings, resets, empty data) of a peer within this time."""

FAREWELL: Final = 2.0
"""Seconds that a peer may take to read why a connection ends, and to end it too."""

MAX_WINDOW: Final = 0x7FFFFFFF

DEFAULT_WINDOW: Final = 65_535
STREAM_WINDOW: Final = DEFAULT_WINDOW
"""Bytes that a peer may send on one stream before we say that we have taken them.

The default: EMQX's gun (1.3.3) doesn't apply another one to streams that it opened before it heard of it.
"""
WIRE_WINDOW: Final = 16_777_216
"""Likewise on the whole connection: no stream is to wait for another."""
GRANTS: Final = 1_024
"""Streams whose windows grew before they needed it that are remembered."""

LENGTHS: Final = {PRIORITY_FRAME: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
OF_STREAMS: Final = {PRIORITY_FRAME, RST_STREAM}
OF_ALL: Final = {SETTINGS, PING, GOAWAY}

_head: Final = Struct(">BHBBI").pack
_u32: Final = Struct(">I").unpack_from
_pack32: Final = Struct(">I").pack
_setting: Final = Struct(">HI").iter_unpack
_pack_setting: Final = Struct(">HI").pack


def framed(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    size = len(payload)
    return _head(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


class Owner(Protocol):
    """What gRPC makes of a connection's frames. *calls* are those that have not ended, by stream."""

    @property
    def calls(self) -> Mapping[int, object]: ...

    def connected(self) -> None:
        """Take note that the TCP connection stands."""
        ...

    def settled(self) -> None:
        """Take note that the peer speaks HTTP/2 and has told its settings, the first or later ones."""
        ...

    def headers(self, stream: int, fields: Fields, *, ended: bool) -> None:
        """Take the fields that begin a stream, or end it."""
        ...

    def data(self, stream: int, data: bytes, *, ended: bool) -> None:
        """Take some bytes of a stream."""
        ...

    def reset(self, stream: int, code: int) -> None:
        """Take note that the peer gave a stream up."""
        ...

    def going(self, last: int) -> None:
        """Take note that the peer takes no new streams, and has seen none above *last*."""
        ...

    def strange(self, data: bytes) -> None:
        """Take note that the peer, whose first bytes are *data*, doesn't speak HTTP/2."""
        ...

    def closed(self, detail: str) -> None:
        """Take the end of the connection."""
        ...


class WireError(Exception):
    """The peer broke a rule of HTTP/2. An owner may raise it for what it is called with."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


class Pending:
    """Bytes of a stream that wait for the peer's window."""

    __slots__ = ("data", "ended", "tail", "window")

    def __init__(self, data: bytes, window: int, *, ended: bool, tail: bytes) -> None:
        self.data = data
        self.tail = tail
        self.window = window
        self.ended = ended


class Wire(asyncio.Protocol):
    """One connection. On each stream the bytes to be sent are handed over at once (`send`)."""

    def __init__(self, owner: Owner, *, client: bool) -> None:
        self.owner = owner
        self.encoder = Encoder()
        self.heard = 0.0
        self.last = 0  # the highest stream that was begun
        self.max_streams = 1_000_000
        self.full = False  # the peer leaves too much unread
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._decoder = Decoder()
        self._buffer = b""
        self._greeted = client
        self._settled = False
        self._ended = False
        self._out: list[bytes] = []
        self._flushing = False
        # A header block that goes on in CONTINUATION frames: its stream, its flags, its bytes.
        self._block: tuple[int, int, bytearray] | None = None
        self._room = 0
        self._idle = 0
        self._idle_since = 0.0
        # What we may send.
        self._window = DEFAULT_WINDOW
        self._initial = DEFAULT_WINDOW
        self._max_frame = MAX_FRAME
        self._pending: dict[int, Pending] = {}
        self._granted: dict[int, int] = {}
        # What was received and not yet given back.
        self._taken = 0
        self._taken_of: dict[int, int] = {}
        self._held: set[int] = set()

    # --- from asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(BACKLOG)
        settings = _pack_setting(6, MAX_LIST)
        if self._client:
            settings += _pack_setting(2, 0)
            self._out.append(PREFACE)
        self._out.append(framed(SETTINGS, 0, 0, settings))
        self._out.append(framed(WINDOW_UPDATE, 0, 0, _pack32(WIRE_WINDOW - DEFAULT_WINDOW)))
        if self._client:
            self._flush()
        self.owner.connected()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self.heard = self._loop.time()
        buffer = self._buffer + data if self._buffer else data
        try:
            if not self._greeted:
                if len(buffer) < len(PREFACE) and PREFACE.startswith(buffer):
                    self._buffer = buffer
                    return
                if not buffer.startswith(PREFACE):
                    self._strange(buffer)
                    return
                self._greeted = True
                buffer = buffer[len(PREFACE) :]
            self._buffer = self._take(buffer)
        except WireError as error:
            self._buffer = b""
            if self._settled:
                log.warning("grpc ! %s broke a rule of HTTP/2: %s", self.peer, error)
                self.end(error.code)
            else:
                self._strange(buffer)
            return
        if self._out and not self._flushing:
            self._flush()

    def pause_writing(self) -> None:
        self.full = True
        # The answers to what is not read can't pile up. A client reads on: the other side may wait for that.
        if not self._client and self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.full = False
        if self._client:
            self.owner.settled()
        elif self._transport is not None:
            self._transport.resume_reading()

    def eof_received(self) -> None:
        return

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._transport = None
        self._out.clear()
        self._pending.clear()
        self.owner.closed(str(exc or "closed by the peer"))

    # --- sending

    @property
    def peer(self) -> str:
        """Return the host at the other end."""
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        host = str(name[0]) if name else "?"
        return host.removeprefix("::ffff:") if "." in host else host

    def write(self, frames: bytes) -> None:
        """Write *frames* together with what else is written in this round of the loop."""
        self._out.append(frames)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def send(self, stream: int, data: bytes, *, ended: bool, tail: bytes = b"") -> None:
        """Send all of a stream's bytes, as the peer's windows allow, and the frames of *tail* behind them."""
        window = self._initial + (self._granted.pop(stream, 0) if self._granted else 0)
        size = len(data)
        if size <= self._window and size <= window and size <= self._max_frame:
            self._window -= size
            head = _head(size >> 16, size & 0xFFFF, DATA, END_STREAM if ended else 0, stream)
            self.write(head + data + tail)
            return
        self._pending[stream] = Pending(data, window, ended=ended, tail=tail)
        self._send_pending(stream)

    def waits(self, stream: int) -> bool:
        """Tell whether bytes of *stream* wait for the peer's window."""
        return stream in self._pending

    def cancel(self, stream: int, code: int = CANCEL) -> None:
        """Give *stream* up."""
        self._pending.pop(stream, None)
        self.forget(stream)
        self.write(framed(RST_STREAM, 0, stream, _pack32(code)))

    def hold(self, stream: int) -> bool:
        """Let the peer's window of *stream* run dry; return False if it does already."""
        before = len(self._held)
        self._held.add(stream)
        return len(self._held) > before

    def unhold(self, stream: int) -> None:
        """Open it again."""
        self._held.discard(stream)
        taken = self._taken_of.get(stream, 0)
        if taken >= STREAM_WINDOW // 2:
            del self._taken_of[stream]
            self.write(framed(WINDOW_UPDATE, 0, stream, _pack32(taken)))

    def forget(self, stream: int) -> None:
        """Let go of a stream that has ended early."""
        self._taken_of.pop(stream, None)
        self._held.discard(stream)
        self._granted.pop(stream, None)

    def close(self) -> None:
        """Close behind what was written."""
        if self._transport is not None:
            self._flush()
            self._ended = True
            self._transport.close()

    def end(self, code: int) -> None:
        """Tell the peer that this is the end, and why; close when it has.

        To close at once could cost it what it has not read yet: the kernel answers with a reset what a peer
        sends to a closed socket.
        """
        if self._transport is None or not self._settled:
            self.close()  # nobody is there who would understand it
            return
        last = 0 if self._client else self.last
        self._out.append(framed(GOAWAY, 0, 0, _pack32(last) + _pack32(code)))
        self._flush()
        self._ended = True
        if self._transport.can_write_eof():
            with contextlib.suppress(OSError):  # it has gone by itself; the loop tells that soon
                self._transport.write_eof()
        self._loop.call_later(FAREWELL, self.abort)

    def abort(self) -> None:
        """Close at once."""
        self._ended = True
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        self._flushing = False
        if self._out and self._transport is not None:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _send_pending(self, stream: int) -> None:
        pending = self._pending[stream]
        while True:
            size = min(len(pending.data), self._window, pending.window, self._max_frame)
            last = size == len(pending.data)
            if size <= 0 and not last:
                return
            self._window -= size
            pending.window -= size
            flags = END_STREAM if last and pending.ended else 0
            frame = framed(DATA, flags, stream, pending.data[:size])
            self.write(frame + pending.tail if last else frame)
            if last:
                del self._pending[stream]
                return
            pending.data = pending.data[size:]

    # --- receiving

    def _strange(self, data: bytes) -> None:
        self._buffer = b""
        if not self._greeted:
            self._out.clear()  # a stranger gets no frames
        self.owner.strange(data)
        self.close()

    def _take(self, buffer: bytes) -> bytes:
        """Take all whole frames; return what is left."""
        at, end = 0, len(buffer)
        while end - at >= 9 and not self._ended:
            size = buffer[at] << 16 | buffer[at + 1] << 8 | buffer[at + 2]
            if size > MAX_FRAME:
                raise WireError(FRAME_SIZE_ERROR, f"a frame has {size} bytes, limit is {MAX_FRAME}")
            start = at + 9
            behind = start + size
            if behind > end:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            stream = _u32(buffer, at + 5)[0] & 0x7FFFFFFF
            payload = buffer[start:behind]
            at = behind
            if self._block is not None and kind != CONTINUATION:
                raise WireError(PROTOCOL_ERROR, "a header block was interrupted")
            if not self._settled and (kind != SETTINGS or flags & ACK):
                raise WireError(PROTOCOL_ERROR, "the first frame isn't the settings")
            if kind == DATA:
                self._data(stream, flags, payload, size)
            elif kind == HEADERS:
                if flags & (PADDED | PRIORITY | END_HEADERS) == END_HEADERS:
                    self._begin(stream, payload, ended=bool(flags & END_STREAM))
                else:
                    self._headers(stream, flags, payload)
            else:
                self._control(kind, flags, stream, payload)
        return buffer[at:] if at else buffer

    def _begin(self, stream: int, block: bytes, *, ended: bool) -> None:
        """Take the fields that begin a stream or end it."""
        try:
            fields = self._decoder.decode(block)
        except BlockError as error:
            raise WireError(COMPRESSION_ERROR, str(error)) from None
        if not stream & 1 or (self._client and stream > self.last):
            raise WireError(PROTOCOL_ERROR, f"there can be no stream {stream}")
        if stream > self.last:
            self.last = stream
        elif not self._client and not ended:
            raise WireError(PROTOCOL_ERROR, f"stream {stream} begins after stream {self.last}")
        elif stream not in self.owner.calls:
            return  # the end of what was given up already
        if ended and self._taken_of:
            self._taken_of.pop(stream, None)
        self.owner.headers(stream, fields, ended=ended)

    def _data(self, stream: int, flags: int, payload: bytes, size: int) -> None:
        # What is received counts whether it was wanted or not, padding included.
        self._taken += size
        if self._taken >= WIRE_WINDOW // 2:
            self._out.append(framed(WINDOW_UPDATE, 0, 0, _pack32(self._taken)))
            self._taken = 0
        if stream > self.last or not stream:
            raise WireError(PROTOCOL_ERROR, "data of no stream")
        if flags & PADDED:
            payload = _unpadded(payload)
        if flags & END_STREAM:
            if self._taken_of:
                self._taken_of.pop(stream, None)
            self.owner.data(stream, payload, ended=True)
            return
        if not payload:
            self._brings_nothing()
        if stream not in self.owner.calls:
            return
        taken = self._taken_of.get(stream, 0) + size
        if taken > STREAM_WINDOW:
            raise WireError(FLOW_CONTROL_ERROR, f"stream {stream} takes no heed of its window")
        self._taken_of[stream] = taken
        self.owner.data(stream, payload, ended=False)
        if taken >= STREAM_WINDOW // 2 and stream not in self._held and stream in self._taken_of:
            del self._taken_of[stream]
            self._out.append(framed(WINDOW_UPDATE, 0, stream, _pack32(taken)))

    def _headers(self, stream: int, flags: int, payload: bytes) -> None:
        if flags & PADDED:
            payload = _unpadded(payload)
        if flags & PRIORITY:
            if len(payload) < 5:
                raise WireError(FRAME_SIZE_ERROR, "a priority has to have 5 bytes")
            payload = payload[5:]
        if flags & END_HEADERS:
            self._begin(stream, payload, ended=bool(flags & END_STREAM))
        else:
            self._block = stream, flags, bytearray(payload)
            self._room = MAX_BLOCK - len(payload)

    def _continuation(self, stream: int, flags: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != stream:
            raise WireError(PROTOCOL_ERROR, "a header block goes on that never began")
        _, first, block = self._block
        block += payload
        self._room -= len(payload) + 16
        if self._room < 0:
            words = f"a header block has more than {MAX_BLOCK} bytes or {MAX_BLOCK // 16} frames"
            raise WireError(ENHANCE_YOUR_CALM, words)
        if flags & END_HEADERS:
            self._block = None
            self._begin(stream, bytes(block), ended=bool(first & END_STREAM))

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:  # noqa: C901, PLR0912 - one kind of frame after another
        if kind in LENGTHS and len(payload) != LENGTHS[kind]:
            raise WireError(FRAME_SIZE_ERROR, f"a frame of kind {kind} has {len(payload)} bytes")
        if kind in OF_STREAMS:
            if not stream or (stream > self.last and kind != PRIORITY_FRAME):
                raise WireError(PROTOCOL_ERROR, f"a frame of kind {kind} for stream {stream}")
        elif kind in OF_ALL and stream:
            raise WireError(PROTOCOL_ERROR, f"a frame of kind {kind} for stream {stream}, not for all")
        if kind == WINDOW_UPDATE:
            self._window_update(stream, _u32(payload, 0)[0] & MAX_WINDOW)
        elif kind == SETTINGS:
            self._settings(flags, payload)
        elif kind == PING:
            self._ping(flags, payload)
        elif kind == RST_STREAM:
            self._reset(stream, _u32(payload, 0)[0])
        elif kind == GOAWAY:
            if len(payload) < 8:
                raise WireError(FRAME_SIZE_ERROR, "a goaway has to have 8 bytes")
            self.owner.going(_u32(payload, 0)[0] & MAX_WINDOW)
        elif kind == CONTINUATION:
            self._continuation(stream, flags, payload)
        elif kind == PUSH_PROMISE:
            raise WireError(PROTOCOL_ERROR, "nobody asked for a push")
        else:  # priorities, and what is to be ignored (RFC 9113, 4.1)
            self._brings_nothing()

    def _brings_nothing(self) -> None:
        """Bound what a peer may have us do for nothing; that is far above what any of them does."""
        if self.heard - self._idle_since > IDLE_SECONDS:
            self._idle, self._idle_since = 0, self.heard
        self._idle += 1
        if self._idle > IDLE_FRAMES:
            raise WireError(ENHANCE_YOUR_CALM, f"{self._idle} frames that bring nothing")

    def _ping(self, flags: int, payload: bytes) -> None:
        self._brings_nothing()
        if not flags & ACK:
            self._out.append(framed(PING, ACK, 0, payload))

    def _reset(self, stream: int, code: int) -> None:
        self._brings_nothing()
        self._pending.pop(stream, None)
        self.forget(stream)
        self.owner.reset(stream, code)

    def _window_update(self, stream: int, more: int) -> None:
        if not more:
            raise WireError(PROTOCOL_ERROR, "a window update of nothing")
        if not stream:
            self._window += more
            if self._window > MAX_WINDOW:
                raise WireError(FLOW_CONTROL_ERROR, "the window is too large")
            for waiting in tuple(self._pending):
                self._send_pending(waiting)
        elif stream > self.last:
            raise WireError(PROTOCOL_ERROR, f"a window of stream {stream}, which never began")
        elif stream in self._pending:
            pending = self._pending[stream]
            pending.window += more
            if pending.window > MAX_WINDOW:
                raise WireError(FLOW_CONTROL_ERROR, f"the window of stream {stream} is too large")
            self._send_pending(stream)
        elif self._initial < DEFAULT_WINDOW and stream in self.owner.calls and len(self._granted) < GRANTS:
            # Otherwise all that we ever send before we hear of a window fits into it.
            self._granted[stream] = min(self._granted.get(stream, 0) + more, MAX_WINDOW)

    def _settings(self, flags: int, payload: bytes) -> None:
        self._brings_nothing()
        if len(payload) % 6 or (flags & ACK and payload):
            raise WireError(FRAME_SIZE_ERROR, f"settings of {len(payload)} bytes")
        if flags & ACK:
            return
        for name, value in _setting(payload):
            self._set(name, value)
        self._out.append(framed(SETTINGS, ACK, 0))
        self._settled = True
        self.owner.settled()
        for waiting in tuple(self._pending):
            self._send_pending(waiting)

    def _set(self, name: int, value: int) -> None:
        if name == 1:
            self.encoder.allow(value)
        elif name == 2 and value > 1:
            raise WireError(PROTOCOL_ERROR, f"pushes are allowed or not, not {value}")
        elif name == 3:
            self.max_streams = value
        elif name == 4:
            if value > MAX_WINDOW:
                raise WireError(FLOW_CONTROL_ERROR, "the initial window is too large")
            for pending in self._pending.values():
                pending.window += value - self._initial
                if pending.window > MAX_WINDOW:
                    raise WireError(FLOW_CONTROL_ERROR, "the initial window makes a stream's too large")
            self._initial = value
        elif name == 5:
            if not MAX_FRAME <= value <= 0xFFFFFF:
                raise WireError(PROTOCOL_ERROR, f"frames can't be limited to {value} bytes")
            self._max_frame = value


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise WireError(PROTOCOL_ERROR, "a frame has more padding than bytes")
    return payload[1 : len(payload) - payload[0]]
