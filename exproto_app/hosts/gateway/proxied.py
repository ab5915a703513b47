"""A device behind a load balancer that speaks the PROXY protocol."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from ...errors import FramingError
from ...models import Address
from .proxy import Proxied, header
from .tcp import TcpLink, why_failed

if TYPE_CHECKING:
    from .endpoint import Endpoint

__all__ = ["HeaderLink"]


class HeaderLink(asyncio.BufferedProtocol):
    """Reads the PROXY header and not a byte more, then hands the connection to a `TcpLink`.

    What follows, a TLS handshake for example, finds its bytes still unread.
    """

    def __init__(self, endpoint: Endpoint, peer: Address) -> None:
        self.peer = peer
        self.since = asyncio.get_running_loop().time()
        self._endpoint = endpoint
        self._judged: Address | None = None  # the device, once its address counts
        self._transport: asyncio.Transport
        self._sockname: Address
        self._late: asyncio.TimerHandle | None = None
        self._header = header()
        self._seen = b""
        self._room = memoryview(bytearray(next(self._header)))
        self._filled = 0
        self._upgrade: asyncio.Task[None] | None = None
        self._headed = False  # the header is there, and a handshake follows

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        sockname = transport.get_extra_info("sockname")
        if not sockname or self._endpoint.gateway.stopping:  # gone before we looked
            self._transport.abort()
            self.never_began()
            return
        self._sockname = Address(*sockname[:2])
        self._endpoint.pending[self] = None
        seconds = self._endpoint.gateway.options.handshake_timeout
        self._late = asyncio.get_running_loop().call_later(
            seconds, self._refuse, f"no PROXY header within {seconds:g} s"
        )

    @property
    def host(self) -> str:
        """The address that it comes from."""
        return self.peer.host

    def never_began(self) -> None:
        """Give the place back that the connection had taken."""
        self._endpoint.leave(self._judged)

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
        if self._seen or self._filled:
            self._refuse("it ended before its PROXY header was complete")
        elif self._leave():  # the load balancer looks whether somebody listens, again and again
            self._transport.abort()
            self._endpoint.probed(self.peer)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._seen or self._filled:
            self._refuse(f"it was lost before its PROXY header was complete ({exc})")
        elif self._leave():
            self._endpoint.probed(self.peer)

    def give_up(self) -> None:
        """Close the connection, because the gateway stops."""
        if self._leave():
            self._transport.abort()
        if self._upgrade is not None:
            self._upgrade.cancel()

    def vacate(self, why: str = "its place was needed") -> bool:
        """Give it up; return whether it was still half-open."""
        if self not in self._endpoint.pending:
            return False
        shaking = self._headed
        self.give_up()
        if shaking:
            self._endpoint.unshaken(self.peer, why)
        else:
            self._endpoint.headless(self.peer, why, self._seen + bytes(self._room[: self._filled]))
        return True

    def _refuse(self, why: str) -> None:
        if self._leave():
            self._endpoint.headless(self.peer, why, self._seen + bytes(self._room[: self._filled]))
            self._transport.abort()

    def _leave(self) -> bool:
        """Give the place among the connections back, once; return whether it was still ours."""
        if not self._endpoint.settled(self):
            return False
        self._forget_timer()
        self._endpoint.leave(self._judged)
        return True

    def _forget_timer(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _take(self, proxied: Proxied | None) -> None:
        """Go on with the device itself."""
        self._forget_timer()
        if proxied is not None:
            self.peer, self._sockname = proxied.source, proxied.destination
            if not self._endpoint.judge(self.peer):
                self._leave()
                self._transport.abort()
                return
            self._judged = self.peer
        if self._endpoint.context is not None:
            self._transport.pause_reading()  # until the task runs nobody reads
            self._headed = True
            self._endpoint.gateway.handshakes.wait(self, self._shake)
            return
        link = TcpLink(self._endpoint, self.peer)
        self._transport.pause_reading()
        self._transport.set_protocol(link)
        self._transport.resume_reading()  # uvloop changes how it reads only when reading begins anew
        del self._endpoint.pending[self]
        link.begin(self._transport, self._sockname)

    def _shake(self) -> None:
        self._upgrade = asyncio.get_running_loop().create_task(self._start_tls())

    async def _start_tls(self) -> None:
        endpoint = self._endpoint
        early = EarlyReads()
        try:
            transport: Any = await asyncio.get_running_loop().start_tls(
                self._transport,
                early,
                cast("Any", endpoint.context),
                server_side=True,
                ssl_handshake_timeout=endpoint.gateway.options.handshake_timeout,
            )
        except (OSError, asyncio.CancelledError) as error:  # ssl.SSLError is an OSError
            if self._leave() and isinstance(error, OSError):
                endpoint.unshaken(self.peer, why_failed(error, endpoint.gateway.options.handshake_timeout))
            self._transport.abort()
            return
        if not endpoint.settled(self):  # the gateway stopped meanwhile
            transport.abort()
            return
        link = TcpLink(endpoint, self.peer)
        transport.set_protocol(link)
        link.begin(transport, self._sockname)
        early.hand_over(link)


class EarlyReads(asyncio.Protocol):
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
