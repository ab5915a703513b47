"""A device on TCP or TLS."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ssl
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from ...asyncio_host.dead_peers import watch_peer
from ...asyncio_host.reading import limit_kernel, limit_reads
from ...core import Intake
from ...models import Address, Certificate
from .plain import SocketTransport

if TYPE_CHECKING:
    from .endpoint import Endpoint

__all__ = ["TcpLink", "address_of", "certificate_of", "why_failed"]

LOST = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETRESET})
"""Errors of a device that went away without a word."""


class TcpLink(asyncio.Protocol):
    """The asyncio end of one connection: feeds its channel and drains it."""

    __slots__ = ("_channel", "_endpoint", "_secure", "_transport", "data_received", "peer")

    answers = False
    broker_side = None
    confirm = None

    def __init__(self, endpoint: Endpoint, peer: Address) -> None:
        self.peer = peer
        self._endpoint = endpoint
        self._channel: Intake | None = None
        self._transport: asyncio.Transport
        self._secure = False
        # An attribute, so that asyncio calls the channel without a call in between; uvloop has looked it up
        # before the channel is there.
        self.data_received = self._received  # type: ignore[method-assign] # as said

    @property
    def channel(self) -> Intake | None:
        """What is fed."""
        return self._channel

    @channel.setter
    def channel(self, channel: Intake | None) -> None:
        self._channel = channel
        feed = self._received if channel is None else channel.received
        self.data_received = feed  # type: ignore[assignment] # as said above
        if type(self._transport) is SocketTransport:
            self._transport.set_protocol(self)

    # --- from asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        sockname = transport.get_extra_info("sockname")
        if not sockname:  # gone before we looked
            self._transport.abort()
            self.never_began()
            return
        self.begin(self._transport, address_of(sockname))

    def never_began(self) -> None:
        """Give the place back that the connection had taken."""
        self._endpoint.leave(self.peer)

    def begin(self, transport: asyncio.Transport, sockname: Address) -> None:
        """Begin the connection, which has its place."""
        if self._endpoint.gateway.stopping:
            transport.abort()
            self.never_began()
            return
        self._transport = transport
        limits, options = self._endpoint.engine.limits, self._endpoint.gateway.options
        watch_peer(transport, limits.stall, options.keepalive)
        limit_kernel(transport)
        limit_reads(transport)
        self._secure = transport.get_extra_info("ssl_object") is not None
        certificate = _certificate(transport.get_extra_info("peercert")) if self._secure else None
        info = self._endpoint.info(self.peer, sockname, certificate)
        transport.set_write_buffer_limits(high=limits.outbox)
        self._endpoint.connected(self, info)

    def _received(self, data: bytes) -> None:
        if self._channel is not None:
            self._channel.received(data)

    def eof_received(self) -> bool:
        """Answer what the device has sent before it closes: it may still read."""
        if self.channel is None or self._secure:  # TLS has no half-closed connections
            return False
        self.channel.end("device closed", drain=True)
        return True

    def pause_writing(self) -> None:
        if self.channel is not None:
            self.channel.unwritable()

    def resume_writing(self) -> None:
        if self.channel is not None:
            self.channel.drained()

    def connection_lost(self, exc: Exception | None) -> None:
        channel, self._channel = self._channel, None
        del self.data_received  # it would keep the channel, or this, alive
        if channel is None:
            return
        self._endpoint.leave(self.peer)
        lost = isinstance(exc, OSError) and exc.errno in LOST
        channel.terminated("lost" if lost else "device closed", str(exc or ""))

    # --- from the gateway

    def vacate(self) -> bool:
        """Give the connection's place to somebody else; return whether it still had one."""
        channel, self._channel = self._channel, None
        if channel is None:
            return False
        self._endpoint.leave(self.peer)
        self._transport.abort()
        channel.terminated("lost", "it hadn't sent anything, and its place was needed")
        return True

    @property
    def endpoint(self) -> Endpoint:
        """The listener."""
        return self._endpoint

    # --- from the channel

    @property
    def buffered(self) -> int:
        return self._transport.get_write_buffer_size()

    @property
    def write(self) -> Callable[[bytes], object]:
        return self._transport.write

    def send(self, chunks: list[bytes]) -> None:
        if self._transport.is_closing():  # it has gone, and `connection_lost` is about to say so
            return
        self._transport.write(chunks[0] if len(chunks) == 1 else b"".join(chunks))

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    # TLS of Python 3.10 has nothing left to pause between a loss and its report.
    def pause(self) -> None:
        with contextlib.suppress(AttributeError):
            self._transport.pause_reading()

    def resume(self) -> None:
        with contextlib.suppress(AttributeError):
            self._transport.resume_reading()


def address_of(name: Any) -> Address:
    """Return a socket's name, or its peer's: of a Unix socket, its path, empty where it has none."""
    if isinstance(name, tuple):
        return Address(*name[:2])
    return Address(name if isinstance(name, str) else repr(name), 0)


def _certificate(peercert: dict[str, Any] | None) -> Certificate | None:
    """Return what the ssl module tells of a certificate."""
    if not peercert:
        return None
    return certificate_of([pair for group in peercert.get("subject", ()) for pair in group])


def certificate_of(pairs: Sequence[tuple[str, str]]) -> Certificate:
    """Return a certificate whose subject has *pairs*; the last of them stands first (RFC 4514)."""
    short = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C"}
    short |= {"localityName": "L", "stateOrProvinceName": "ST"}
    dn = ",".join(f"{short.get(name, name)}={value}" for name, value in reversed(pairs))
    cn = next((value for name, value in pairs if name == "commonName"), "")
    return Certificate(dn=dn, cn=cn)


def why_failed(error: OSError, seconds: float) -> str:
    """Tell in plain words why a TLS handshake that may take *seconds* came to nothing."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    if isinstance(error, ConnectionAbortedError):
        return f"it wasn't complete within {seconds:g} s"
    if isinstance(error, ConnectionError):
        return "the other side hung up"
    return str(error) or type(error).__name__
