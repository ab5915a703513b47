"""Flow control (RFC 9113, 5.2): what may be sent, and what is given back to the peer."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final

from .budget import STREAM_COST, Account
from .frames import (
    DATA,
    DEFAULT_WINDOW,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    MAX_FRAME,
    MAX_WINDOW,
    WINDOW_UPDATE,
    ProtocolError,
    pack_frame,
    pack_header,
)

__all__ = ["CONNECTION_WINDOW", "STREAM_WINDOW", "Receiver", "Sender"]

STREAM_WINDOW: Final = DEFAULT_WINDOW
"""Bytes that a peer may send on one stream before we say that we have taken them.

The default: EMQX's gun (1.3.3) doesn't apply another one to streams that it opened before it heard of it.
"""

CONNECTION_WINDOW: Final = 16_777_216
"""Likewise on the whole connection: no stream is to wait for another."""

GRANTS: Final = 1_024
"""Streams whose windows grew before they needed it that are remembered."""

_pack32: Final = Struct(">I").pack


class Queued:
    """Bytes of a stream that wait for the peer's window; *granted* is that window above the initial one."""

    __slots__ = ("data", "ended", "granted", "sent", "tail")

    def __init__(self, data: bytes, granted: int, *, ended: bool, tail: bytes) -> None:
        self.data = data
        self.sent = 0
        self.tail = tail
        self.granted = granted
        self.ended = ended


class Sender:
    """Sends data as the peer's windows allow. *write* takes frames, *account* what waits."""

    def __init__(self, write: Callable[[bytes], object], account: Account) -> None:
        self.initial = DEFAULT_WINDOW
        self.max_frame = MAX_FRAME
        self.queued: dict[int, Queued] = {}
        self._write = write
        self._account = account
        self._window = DEFAULT_WINDOW
        # Those whose own window is open, in their order: they wait for the connection's.
        self._ready: dict[int, None] = {}
        self._granted: dict[int, int] = {}

    def send(self, stream: int, data: bytes, *, ended: bool, tail: bytes = b"") -> None:
        """Send all of a stream's bytes, as the windows allow, and the frames of *tail* behind them."""
        granted = self._granted.pop(stream, 0) if self._granted else 0
        size = len(data)
        if size <= self._window and size <= self.initial + granted and size <= self.max_frame:
            self._window -= size
            head = pack_header(size >> 16, size & 0xFFFF, DATA, END_STREAM if ended else 0, stream)
            self._write(head + data + tail)
            return
        queued = self.queued[stream] = Queued(data, granted, ended=ended, tail=tail)
        self._send_queued(stream, queued)
        if stream in self.queued:
            self._account.charge(STREAM_COST + size)

    def forget_window(self, stream: int) -> None:
        """Let go of a stream that sends nothing more."""
        self._granted.pop(stream, None)

    def drop(self, stream: int) -> None:
        """Drop what waits of *stream*."""
        self._granted.pop(stream, None)
        self._ready.pop(stream, None)
        queued = self.queued.pop(stream, None)
        if queued is not None:
            self._account.release(STREAM_COST + len(queued.data))

    def clear(self) -> None:
        """Drop everything."""
        self.queued.clear()
        self._ready.clear()
        self._granted.clear()

    def grow(self, more: int) -> None:
        """Enlarge the connection's window, and send what waits for it. Raises `ProtocolError`."""
        self._window += more
        if self._window > MAX_WINDOW:
            raise ProtocolError(FLOW_CONTROL_ERROR, "the window is too large")
        while self._ready and self._window > 0:
            stream = next(iter(self._ready))
            del self._ready[stream]
            self._resume(stream)

    def grow_stream(self, stream: int, more: int, *, is_open: bool) -> None:
        """Enlarge a stream's window, and send what waits for it. Raises `ProtocolError`."""
        queued = self.queued.get(stream)
        if queued is not None:
            queued.granted += more
            if self.initial + queued.granted > MAX_WINDOW:
                raise ProtocolError(FLOW_CONTROL_ERROR, f"the window of stream {stream} is too large")
            self._resume(stream)
        elif self.initial < DEFAULT_WINDOW and is_open and len(self._granted) < GRANTS:
            # Otherwise all that we ever send before we hear of a window fits into it.
            self._granted[stream] = min(self._granted.get(stream, 0) + more, MAX_WINDOW)

    def set_initial(self, size: int) -> None:
        """Change the window that streams begin with, and those of all streams by as much."""
        grows, self.initial = size > self.initial, size
        for stream, queued in tuple(self.queued.items()):
            if size + queued.granted > MAX_WINDOW:
                raise ProtocolError(FLOW_CONTROL_ERROR, "the initial window makes a stream's too large")
            if grows:
                self._resume(stream)

    def _resume(self, stream: int) -> None:
        queued = self.queued[stream]
        size = len(queued.data)
        self._send_queued(stream, queued)
        if stream not in self.queued:
            self._account.release(STREAM_COST + size)

    def _send_queued(self, stream: int, queued: Queued) -> None:
        """Send what the windows allow of *queued*, and take it out when that is all."""
        while True:
            left = len(queued.data) - queued.sent
            window = self.initial + queued.granted
            size = min(left, self._window, window, self.max_frame)
            last = size == left
            if size <= 0 and not last:
                if window > 0:
                    self._ready[stream] = None
                return
            self._window -= size
            queued.granted -= size
            flags = END_STREAM if last and queued.ended else 0
            end = queued.sent + size
            frame = pack_frame(DATA, flags, stream, queued.data[queued.sent : end])
            queued.sent = end
            self._write(frame + queued.tail if last else frame)
            if last:
                del self.queued[stream]
                self._ready.pop(stream, None)
                return


class Receiver:
    """Gives back to the peer what was taken of its windows. *write* takes frames."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.taken_of: dict[int, int] = {}  # by stream: what was received and not yet given back
        self._write = write
        self.taken = 0  # what all streams received, wanted or not, and padding too
        self._held: set[int] = set()

    def give_back_all(self) -> None:
        """Open the connection's window again."""
        self._write(pack_frame(WINDOW_UPDATE, 0, 0, _pack32(self.taken)))
        self.taken = 0

    def give_back(self, stream: int) -> None:
        """Open the window of *stream* again if half of it was taken, unless it is held."""
        taken = self.taken_of.get(stream, 0)
        if taken >= STREAM_WINDOW // 2 and stream not in self._held:
            del self.taken_of[stream]
            self._write(pack_frame(WINDOW_UPDATE, 0, stream, _pack32(taken)))

    def hold(self, stream: int) -> bool:
        """Let the window of *stream* run dry; return False if it does already."""
        before = len(self._held)
        self._held.add(stream)
        return len(self._held) > before

    def unhold(self, stream: int) -> None:
        """Open it again."""
        self._held.discard(stream)
        self.give_back(stream)

    def forget(self, stream: int) -> None:
        """Let go of a stream that has ended early."""
        self.taken_of.pop(stream, None)
        self._held.discard(stream)
