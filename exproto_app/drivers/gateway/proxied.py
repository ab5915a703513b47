"""A device behind a load balancer that speaks the PROXY protocol."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, cast

from ...errors import FramingError
from ...models import Address
from .proxy import Proxied, header
from .tcp import TcpLink

if TYPE_CHECKING:
    from .gateway import Door

__all__ = ["HeaderLink"]

log = logging.getLogger("exproto_app")


class HeaderLink(asyncio.BufferedProtocol):
    """Reads the PROXY header and not a byte more, then hands the connection to a `TcpLink`.

    What follows, a TLS handshake for example, finds its bytes still unread.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self._transport: asyncio.Transport
        self._peer: Address
        self._sockname: Address
        self._late: asyncio.TimerHandle | None = None
        self._header = header()
        self._seen = b""
        self._room = memoryview(bytearray(next(self._header)))
        self._filled = 0
        self._upgrade: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peername = transport.get_extra_info("peername")
        sockname = transport.get_extra_info("sockname")
        if not peername or not sockname:  # gone before we looked
            self._transport.abort()
            return
        self._peer, self._sockname = Address(*peername[:2]), Address(*sockname[:2])
        if not self._door.admit(self._peer):
            self._transport.abort()
            return
        self._door.pending.add(self)
        seconds = self._door.gateway.options.handshake_timeout
        self._late = asyncio.get_running_loop().call_later(
            seconds, self._refuse, f"no PROXY header within {seconds:g} s"
        )

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        return self._room[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._filled < len(self._room):
            return
        data = bytes(self._room)
        self._seen += data
        self._filled = 0
        try:
            self._room = memoryview(bytearray(self._header.send(data)))
        except StopIteration as done:
            self._take(done.value)
        except FramingError as error:
            self._refuse(str(error))

    def eof_received(self) -> None:
        self._refuse("it ended before its PROXY header was there")

    def connection_lost(self, exc: Exception | None) -> None:
        self._refuse(f"it was lost before its PROXY header was there ({exc})")

    def give_up(self) -> None:
        """Close the connection, because the gateway stops."""
        if self._leave():
            self._transport.abort()
        if self._upgrade is not None:
            self._upgrade.cancel()

    def _refuse(self, why: str) -> None:
        if self._leave():
            self._door.headless(self._peer, why, self._seen + bytes(self._room[: self._filled]))
            self._transport.abort()

    def _leave(self) -> bool:
        """Give the place among the connections back, once; tell whether it was still ours."""
        if self not in self._door.pending:
            return False
        self._door.pending.discard(self)
        self._forget_timer()
        self._door.leave()
        return True

    def _forget_timer(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _take(self, proxied: Proxied | None) -> None:
        """Go on with the device itself."""
        self._forget_timer()
        if proxied is not None:
            self._peer, self._sockname = proxied.source, proxied.destination
        if self._door.context is not None:
            self._transport.pause_reading()  # until the task runs nobody reads
            self._upgrade = asyncio.get_running_loop().create_task(self._start_tls())
            return
        link = TcpLink(self._door)
        self._transport.pause_reading()
        self._transport.set_protocol(link)
        self._transport.resume_reading()  # uvloop changes how it reads only when reading begins anew
        self._door.pending.discard(self)
        link.begin(self._transport, self._peer, self._sockname)

    async def _start_tls(self) -> None:
        door = self._door
        early = Early()
        try:
            transport: Any = await asyncio.get_running_loop().start_tls(
                self._transport,
                early,
                cast("Any", door.context),
                server_side=True,
                ssl_handshake_timeout=door.gateway.options.handshake_timeout,
            )
        except (OSError, asyncio.CancelledError) as error:  # ssl.SSLError is an OSError
            log.debug("gateway ! TLS handshake of %s failed: %s", self._peer, error)
            self._leave()
            self._transport.abort()
            return
        if self not in door.pending:  # the gateway stopped meanwhile
            transport.abort()
            return
        door.pending.discard(self)
        link = TcpLink(door)
        transport.set_protocol(link)
        link.begin(transport, self._peer, self._sockname)
        early.hand_over(link)


class Early(asyncio.Protocol):
    """Keeps what TLS brings before `start_tls` has returned: a few reads, in one round of the loop."""

    def __init__(self) -> None:
        self._data: list[bytes] = []
        self._link: TcpLink | None = None

    def data_received(self, data: bytes) -> None:
        self._data.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._link is not None:
            self._link.connection_lost(exc)

    def hand_over(self, link: TcpLink) -> None:
        """Tell *link* what came, and what is still on its way here."""
        self._link = link
        for data in self._data:
            link.data_received(data)
