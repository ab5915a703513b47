"""Http2Protocol: drives a `Connection` on asyncio. It reads, writes, and has the time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from typing import Final, cast

from .budget import Account, Budget
from .connection import Connection
from .endpoint import Endpoint
from .frames import ENHANCE_YOUR_CALM, ProtocolError
from .scheduler import SLICE, Scheduler

__all__ = ["Http2Protocol"]

log = logging.getLogger("exproto_app")

BATCH: Final = 8
"""Frames that are worked off before the clock is looked at."""

LARGE: Final = 65_536
"""Bytes of a read behind which nothing more is read in this round of the loop: uvloop reads on and on."""

UNREAD: Final = 1_048_576
"""Bytes that a peer may leave unread; above that a server reads no more of it, a client asks no more."""

STALLED: Final = 30.0
"""Seconds for which it may do so until the connection is cut."""

FAREWELL: Final = 2.0
"""Seconds that a peer may take to read why a connection ends, and to end it too."""


class Http2Protocol(asyncio.Protocol):
    """One TCP connection, whose frames *endpoint* gets. *scheduler* and *budget* are shared with others."""

    def __init__(self, endpoint: Endpoint, scheduler: Scheduler, budget: Budget, *, client: bool) -> None:
        self._loop = asyncio.get_running_loop()
        wake = partial(self._loop.call_soon, self._flush)
        self.http2 = Connection(endpoint, Account(budget, self._end_for), wake, client=client)
        self.full = False  # the peer leaves too much unread
        self.scheduled = False
        self._endpoint = endpoint
        self._client = client
        self._scheduler = scheduler
        self._time = self._loop.time
        self._waiting = scheduler.queue
        self._transport: asyncio.Transport | None = None
        self._closing = False
        self._behind = False  # there is more to be worked off
        self._reading = True
        self._unread = 0
        self._stalled: asyncio.TimerHandle | None = None

    @property
    def peer(self) -> str:
        """Return the host at the other end."""
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        host = str(name[0]) if name else "?"
        return host.removeprefix("::ffff:") if "." in host else host

    # --- from asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(UNREAD)
        self._endpoint.connected()
        if self._client:
            self.http2.start()
            self._flush()

    def data_received(self, data: bytes) -> None:
        http2 = self.http2
        if http2.ended:
            return
        http2.receive(data, self._time())
        if self._waiting or len(data) >= LARGE:
            self._work_later()
        else:
            self.work()

    def pause_writing(self) -> None:
        self.full = True
        if self._transport is not None:
            self._unread = self._transport.get_write_buffer_size()
            self._stalled = self._loop.call_later(STALLED, self._cut)
            # The answers to what is not read can't pile up. A client reads on: the peer may wait for that.
            self._read_or_pause()
            self.http2.account.charge(self._unread)

    def resume_writing(self) -> None:
        self._writes_again()
        self._read_or_pause()
        self._endpoint.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writes_again()
        self._closing = True
        self._transport = None
        self.http2.close()
        self._endpoint.closed(str(exc or "closed by the peer"))

    # --- from the scheduler

    def work(self) -> None:
        """Work off what came, for a slice at most."""
        try:
            more = self.http2.advance(BATCH)
            if more:
                until = self._time() + SLICE
                while more and self._time() < until:
                    more = self.http2.advance(BATCH)
        except ProtocolError as error:
            self._end_for(error)
            return
        except Exception:
            log.exception("http2 ! a connection with %s is cut: a mistake of ours", self.peer)
            self.abort()
            return
        if more:
            self._work_later()
        elif self._behind:
            self._behind = False
            self._read_or_pause()

    # --- from the endpoint

    def close(self) -> None:
        """Close behind what was written; the peer has `FAREWELL` to read it."""
        if self._transport is not None and not self._closing:
            self._flush()
            self._closing = True
            self.http2.close()
            self._transport.close()
            self._loop.call_later(FAREWELL, self.abort)

    def end(self, code: int) -> None:
        """Tell the peer that this is the end, and why; close when it has.

        To close at once could cost it what it has not read yet: the kernel answers with a reset what a peer
        sends to a closed socket.
        """
        transport = self._transport
        if transport is None or self._closing:
            return
        if not self.http2.settled:
            self.close()  # nobody is there who would understand it
            return
        self.http2.go_away(code)
        self._flush()
        self._closing = True
        self.http2.close()
        if transport.can_write_eof():
            with contextlib.suppress(OSError):  # it has gone by itself; the loop tells that soon
                transport.write_eof()
        self._loop.call_later(FAREWELL, self.abort)

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        self.http2.close()
        if self._transport is not None:
            self._transport.abort()

    # --- inside

    def _flush(self) -> None:
        data = self.http2.take_output()
        if data and self._transport is not None and not self._closing:
            self._transport.write(data)

    def _work_later(self) -> None:
        if not self._closing:
            self._behind = True
            self._scheduler.later(self)
            self._read_or_pause()

    def _read_or_pause(self) -> None:
        """Read while there is nothing left to be worked off, and the peer reads too."""
        reading = not self._behind and (self._client or not self.full)
        if reading == self._reading or self._transport is None or self._closing:
            return
        self._reading = reading
        if reading:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _writes_again(self) -> None:
        self.full = False
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        self.http2.account.release(self._unread)
        self._unread = 0

    def _cut(self) -> None:
        self._stalled = None
        words = f"it leaves {self._unread} bytes unread for {STALLED:g} s"
        self._endpoint.broke_rule(ProtocolError(ENHANCE_YOUR_CALM, words))
        self.abort()

    def _end_for(self, error: ProtocolError) -> None:
        """End the connection because of what the peer did."""
        if self._closing:
            return
        if self.http2.settled:
            self._endpoint.broke_rule(error)
            self.end(error.code)
        else:
            self._endpoint.unsuitable(self.http2.first_bytes())
            self.close()
