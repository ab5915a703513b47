"""A device on TCP or TLS."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from ...core import Intake
from ...models import Address, Certificate, ConnectionInfo

if TYPE_CHECKING:
    from .door import Door

__all__ = ["TcpLink", "why_failed"]

LOST = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETRESET})
"""Errors of a device that went away without a word."""


class TcpLink(asyncio.Protocol):
    """The asyncio end of one connection: feeds its channel and drains it."""

    __slots__ = ("_channel", "_door", "_secure", "_transport", "data_received", "peer")

    answers = False
    fence = None

    def __init__(self, door: Door, peer: Address) -> None:
        self.peer = peer
        self._door = door
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

    # --- from asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        sockname = transport.get_extra_info("sockname")
        if not sockname:  # gone before we looked
            self._transport.abort()
            self.never_began()
            return
        self.begin(self._transport, Address(*sockname[:2]))

    def never_began(self) -> None:
        """Give the place back that the connection had taken."""
        self._door.leave(self.peer)

    def begin(self, transport: asyncio.Transport, sockname: Address) -> None:
        """Begin the connection, which has its place."""
        if self._door.gateway.stopping:
            transport.abort()
            self.never_began()
            return
        self._transport = transport
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # it may be gone already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._secure = transport.get_extra_info("ssl_object") is not None
        certificate = _certificate(transport.get_extra_info("peercert")) if self._secure else None
        info = ConnectionInfo("ssl" if self._secure else "tcp", self.peer, sockname, certificate)
        engine = self._door.engine
        transport.set_write_buffer_limits(high=engine.limits.outbox)
        engine.connected(self, info, self._door.routers)

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
        self._door.leave(self.peer)
        lost = isinstance(exc, OSError) and exc.errno in LOST
        channel.terminated("lost" if lost else "device closed", str(exc or ""))

    # --- from the gateway

    def vacate(self) -> bool:
        """Give the connection's place to somebody else; tell whether it still had one."""
        channel, self._channel = self._channel, None
        if channel is None:
            return False
        self._door.leave(self.peer)
        self._transport.abort()
        channel.terminated("lost", "it had said nothing, and its place was needed")
        return True

    @property
    def number(self) -> int:
        """The listener's number."""
        return self._door.number

    # --- from the channel

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


def _certificate(peercert: dict[str, Any] | None) -> Certificate | None:
    """Return what the ssl module tells of a certificate, the name parts last first (RFC 4514)."""
    if not peercert:
        return None
    pairs = [pair for group in peercert.get("subject", ()) for pair in group]
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
