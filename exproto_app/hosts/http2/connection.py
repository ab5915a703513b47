"""Connection: one HTTP/2 connection, without I/O: bytes in, calls of an `Endpoint`; frames out.

It stands in the place of grpcio because a message costs a fraction here: no hand-over between threads, no
objects for a call but one, all that is sent in one round of the loop written at once, header blocks looked
up instead of decoded.

What a peer does wrong ends its connection, with the code of RFC 9113, where that allows a stream's end too:
nobody who speaks gRPC does it by accident.

Whoever drives it gives it what came (`receive`), has it work that off a few frames at a time (`advance`), and
writes what it has to say (`take_output`) when it asks for that by *wake*.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final

from .budget import Account
from .endpoint import Endpoint
from .flow_control import CONNECTION_WINDOW, STREAM_WINDOW, Receiver, Sender
from .frames import (
    ACK,
    CANCEL,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    MAX_FRAME,
    MAX_WINDOW,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_FRAME,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ProtocolError,
    pack_frame,
    remove_padding,
    unpack_header,
)
from .header_blocks import MAX_LIST, BlockError, Decoder, Encoder

__all__ = ["Connection"]

MAX_BLOCK: Final = MAX_LIST
"""Bytes of a header block that are accepted, and 16 less for each frame that it comes in."""

IDLE_FRAMES: Final = 10_000
IDLE_SECONDS: Final = 10.0
"""Frames that bring nothing (pings, settings, resets, empty data) of a peer within this time."""

LENGTHS: Final = {PRIORITY_FRAME: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
OF_STREAMS: Final = {PRIORITY_FRAME, RST_STREAM}
OF_ALL: Final = {SETTINGS, PING, GOAWAY}
UNUSUAL: Final = PADDED | PRIORITY | END_HEADERS
"""Flags of a HEADERS frame; usually END_HEADERS alone is set of them."""

_u32: Final = Struct(">I").unpack_from
_pack32: Final = Struct(">I").pack
_setting: Final = Struct(">HI").iter_unpack
_pack_setting: Final = Struct(">HI").pack


class Connection:
    """One connection. On each stream the bytes to be sent are handed over at once (`send`).

    *account* bears what is held for the peer; *wake* is called when there is something to be written.
    """

    def __init__(
        self, endpoint: Endpoint, account: Account, wake: Callable[[], object], *, client: bool
    ) -> None:
        self.endpoint = endpoint
        self.account = account
        self.encoder = Encoder()
        self.heard = 0.0
        self.last = 0  # the highest stream that was begun
        self.max_streams = 1_000_000
        self.settled = False
        self.ended = False
        self.greeted = client
        self._client = client
        self._wake = wake
        self._decoder = Decoder()
        self._output: list[bytes] = []
        self._buffer = b""
        self._at = 0  # so much of it was worked off
        self._rest = 0  # bytes of that, and of a header block, that are held
        self._charged = 0
        # A header block that goes on in CONTINUATION frames: its stream, its flags, its bytes.
        self._block: tuple[int, int, bytearray] | None = None
        self._room = 0
        self._idle = 0
        self._idle_since = 0.0
        self._receiver = Receiver(self.write)
        self._sender = Sender(self.write, account)
        self.send = self._sender.send
        self.hold = self._receiver.hold
        self.unhold = self._receiver.unhold

    # --- sending

    def start(self) -> None:
        """Say what begins a connection."""
        settings = _pack_setting(6, MAX_LIST)
        if self._client:
            settings += _pack_setting(2, 0)
            self.write(PREFACE)
        self.write(pack_frame(SETTINGS, 0, 0, settings))
        self.write(pack_frame(WINDOW_UPDATE, 0, 0, _pack32(CONNECTION_WINDOW - DEFAULT_WINDOW)))

    def write(self, frames: bytes) -> None:
        """Write *frames* together with what else is written in this round of the loop."""
        output = self._output
        if not output:
            self._wake()
        output.append(frames)

    def take_output(self) -> bytes:
        """Return what is to be written now."""
        data = b"".join(self._output)
        self._output.clear()
        return data

    def waits(self, stream: int) -> bool:
        """Return whether bytes of *stream* wait for the peer's window."""
        return stream in self._sender.queued

    def cancel(self, stream: int, code: int = CANCEL) -> None:
        """Give *stream* up."""
        self._sender.drop(stream)
        self._receiver.forget(stream)
        self.write(pack_frame(RST_STREAM, 0, stream, _pack32(code)))

    def forget(self, stream: int) -> None:
        """Let go of a stream that has ended early; what waits of it is still sent."""
        self._receiver.forget(stream)
        self._sender.forget_window(stream)

    def go_away(self, code: int) -> None:
        """Tell the peer that this is the end, and why; nothing more is received."""
        self.write(pack_frame(GOAWAY, 0, 0, _pack32(0 if self._client else self.last) + _pack32(code)))
        self.ended = True

    def close(self) -> None:
        """Let go of everything."""
        self.ended = True
        self.account.close()
        self._output.clear()
        self._buffer, self._at, self._block = b"", 0, None
        self._sender.clear()

    # --- receiving

    def receive(self, data: bytes, now: float) -> None:
        """Take what came *now*; `advance` works it off."""
        self.heard = now
        if self._at < len(self._buffer):
            self._buffer = self._buffer[self._at :] + data
        else:
            self._buffer = data
        self._at = 0

    def first_bytes(self) -> bytes:
        """Return how the last bytes began that came."""
        return self._buffer.removeprefix(PREFACE)[:64]

    def advance(self, frames: int) -> bool:  # noqa: C901, PLR0912 - the hot path, with as few calls as can be
        """Work off up to so many *frames*; return whether there is more. Raises `ProtocolError`."""
        if self.ended or not (self.greeted or self._greet()):
            return False
        endpoint, buffer, at = self.endpoint, self._buffer, self._at
        end = len(buffer)
        more = True
        for _ in range(frames):
            if endpoint.unfinished:
                endpoint.resume()
            else:
                start = at + 9
                if start > end:
                    more = False
                    break
                upper, size, kind, flags, stream = unpack_header(buffer, at)
                if upper or size > MAX_FRAME:
                    words = f"a frame has {upper << 16 | size} bytes, limit is {MAX_FRAME}"
                    raise ProtocolError(FRAME_SIZE_ERROR, words)
                if start + size > end:
                    more = False
                    break
                at = self._at = start + size
                payload = buffer[start:at]
                stream &= MAX_WINDOW
                if self._block is not None or not self.settled:
                    self._check_order(kind, flags)
                if kind == DATA:
                    self._data(stream, flags, payload)
                elif kind == HEADERS and flags & UNUSUAL == END_HEADERS:
                    self._begin(stream, payload, ended=bool(flags & END_STREAM))
                else:
                    self._control(kind, flags, stream, payload)
            if self.ended:
                return False
        if at < end or self._rest or endpoint.held != self._charged:
            self.settle()
        return more

    def settle(self) -> None:
        """Have the account bear what is held now."""
        held = self.endpoint.held
        self._rest = len(self._buffer) - self._at
        if self._block is not None:
            self._rest += len(self._block[2])
        held += self._rest
        change, self._charged = held - self._charged, held
        if change > 0:
            self.account.charge(change)
        elif change:
            self.account.release(-change)

    def _greet(self) -> bool:
        """Return whether the preface has come. Raises `ProtocolError` for anything else."""
        buffer = self._buffer
        if buffer.startswith(PREFACE):
            self.greeted, self._at = True, len(PREFACE)
            self.start()  # not before: who speaks another protocol gets no frames
        elif not PREFACE.startswith(buffer):
            raise ProtocolError(PROTOCOL_ERROR, "the connection doesn't begin as HTTP/2 does")
        return self.greeted

    def _check_order(self, kind: int, flags: int) -> None:
        """Raise `ProtocolError` for a frame that can't come now."""
        if self._block is not None and kind != CONTINUATION:
            raise ProtocolError(PROTOCOL_ERROR, "a header block was interrupted")
        if not self.settled and (kind != SETTINGS or flags & ACK):
            raise ProtocolError(PROTOCOL_ERROR, "the first frame isn't the settings")

    def _begin(self, stream: int, block: bytes, *, ended: bool) -> None:
        """Take the fields that begin a stream or end it."""
        try:
            fields = self._decoder.decode(block)
        except BlockError as error:
            raise ProtocolError(COMPRESSION_ERROR, str(error)) from None
        if not stream & 1 or (self._client and stream > self.last):
            raise ProtocolError(PROTOCOL_ERROR, f"there can be no stream {stream}")
        if stream > self.last:
            self.last = stream
        elif not self._client and not ended:
            raise ProtocolError(PROTOCOL_ERROR, f"stream {stream} begins after stream {self.last}")
        elif stream not in self.endpoint.calls:
            self._brings_nothing()  # the end of what was given up already
            return
        if ended and self._receiver.taken_of:
            self._receiver.taken_of.pop(stream, None)
        self.endpoint.headers(stream, fields, ended=ended)

    def _data(self, stream: int, flags: int, payload: bytes) -> None:
        receiver, endpoint = self._receiver, self.endpoint
        size = len(payload)
        receiver.taken += size
        if receiver.taken >= CONNECTION_WINDOW // 2:
            receiver.give_back_all()
        if stream > self.last or not stream:
            raise ProtocolError(PROTOCOL_ERROR, "data of no stream")
        if flags & PADDED:
            payload = remove_padding(payload)
        if flags & END_STREAM:
            if receiver.taken_of:
                receiver.taken_of.pop(stream, None)
            endpoint.data(stream, payload, ended=True)
            return
        known = stream in endpoint.calls
        if not (known and payload):
            self._brings_nothing()
        if not known:
            return
        taken = receiver.taken_of[stream] = receiver.taken_of.get(stream, 0) + size
        if taken > STREAM_WINDOW:
            raise ProtocolError(FLOW_CONTROL_ERROR, f"stream {stream} exceeds its window")
        endpoint.data(stream, payload, ended=False)
        if taken >= STREAM_WINDOW // 2 and stream in receiver.taken_of:
            receiver.give_back(stream)

    def _headers(self, stream: int, flags: int, payload: bytes) -> None:
        if flags & PADDED:
            payload = remove_padding(payload)
        if flags & PRIORITY:
            if len(payload) < 5:
                raise ProtocolError(FRAME_SIZE_ERROR, "a priority has to have 5 bytes")
            payload = payload[5:]
        if flags & END_HEADERS:
            self._begin(stream, payload, ended=bool(flags & END_STREAM))
        else:
            self._block = stream, flags, bytearray(payload)
            self._room = MAX_BLOCK - len(payload)

    def _continuation(self, stream: int, flags: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != stream:
            raise ProtocolError(PROTOCOL_ERROR, "a header block goes on that never began")
        _, first, block = self._block
        block += payload
        self._room -= len(payload) + 16
        if self._room < 0:
            words = f"a header block has more than {MAX_BLOCK} bytes or {MAX_BLOCK // 16} frames"
            raise ProtocolError(ENHANCE_YOUR_CALM, words)
        if flags & END_HEADERS:
            self._block = None
            self._begin(stream, bytes(block), ended=bool(first & END_STREAM))

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:  # noqa: C901, PLR0912 - one kind of frame after another
        if kind in LENGTHS and len(payload) != LENGTHS[kind]:
            raise ProtocolError(FRAME_SIZE_ERROR, f"a frame of kind {kind} has {len(payload)} bytes")
        if kind in OF_STREAMS:
            if not stream or (stream > self.last and kind != PRIORITY_FRAME):
                raise ProtocolError(PROTOCOL_ERROR, f"a frame of kind {kind} for stream {stream}")
        elif kind in OF_ALL and stream:
            raise ProtocolError(PROTOCOL_ERROR, f"a frame of kind {kind} for stream {stream}, not for all")
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
                raise ProtocolError(FRAME_SIZE_ERROR, "a goaway has to have 8 bytes")
            self._brings_nothing()
            self.endpoint.going(_u32(payload, 0)[0] & MAX_WINDOW)
        elif kind == HEADERS:
            self._headers(stream, flags, payload)
        elif kind == CONTINUATION:
            self._continuation(stream, flags, payload)
        elif kind == PUSH_PROMISE:
            raise ProtocolError(PROTOCOL_ERROR, "nobody asked for a push")
        else:  # priorities, and what is to be ignored (RFC 9113, 4.1)
            self._brings_nothing()

    def _brings_nothing(self, cost: int = 1) -> None:
        """Bound what a peer may have us do for nothing; that is far above what any of them does."""
        if self.heard - self._idle_since > IDLE_SECONDS:
            self._idle, self._idle_since = 0, self.heard
        self._idle += cost
        if self._idle > IDLE_FRAMES:
            raise ProtocolError(ENHANCE_YOUR_CALM, f"{self._idle} frames that bring nothing")

    def _ping(self, flags: int, payload: bytes) -> None:
        self._brings_nothing()
        if not flags & ACK:
            self.write(pack_frame(PING, ACK, 0, payload))

    def _reset(self, stream: int, code: int) -> None:
        self._brings_nothing()
        self._sender.drop(stream)
        self._receiver.forget(stream)
        self.endpoint.reset(stream, code)

    def _window_update(self, stream: int, more: int) -> None:
        if not more:
            raise ProtocolError(PROTOCOL_ERROR, "a window update of nothing")
        if not stream:
            self._sender.grow(more)
        elif stream > self.last:
            raise ProtocolError(PROTOCOL_ERROR, f"a window of stream {stream}, which never began")
        else:
            self._sender.grow_stream(stream, more, is_open=stream in self.endpoint.calls)

    def _settings(self, flags: int, payload: bytes) -> None:
        # All that waits is looked at, and each setting.
        self._brings_nothing(1 + len(self._sender.queued) // 16 + len(payload) // 192)
        if len(payload) % 6 or (flags & ACK and payload):
            raise ProtocolError(FRAME_SIZE_ERROR, f"settings of {len(payload)} bytes")
        if flags & ACK:
            return
        initial = None
        for name, value in _setting(payload):
            self._set(name, value)
            initial = value if name == 4 else initial
        self.write(pack_frame(SETTINGS, ACK, 0))
        if initial is not None:
            self._sender.set_initial(initial)
        self.settled = True
        self.endpoint.settled()

    def _set(self, name: int, value: int) -> None:
        if name == 1:
            self.encoder.allow(value)
        elif name == 2 and value > 1:
            raise ProtocolError(PROTOCOL_ERROR, f"pushes are allowed or not, not {value}")
        elif name == 3:
            self.max_streams = value
        elif name == 4 and value > MAX_WINDOW:
            raise ProtocolError(FLOW_CONTROL_ERROR, "the initial window is too large")
        elif name == 5:
            if not MAX_FRAME <= value <= 0xFFFFFF:
                raise ProtocolError(PROTOCOL_ERROR, f"frames can't be limited to {value} bytes")
            self._sender.max_frame = value
