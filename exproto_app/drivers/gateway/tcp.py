"""A device on TCP or TLS."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from ...core import Intake
from ...models import Address, Certificate, ConnectionInfo

if TYPE_CHECKING:
    from .gateway import Door

__all__ = ["TcpLink"]

LOST = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETRESET})
"""Errors of a device that went away without a word."""


class TcpLink(asyncio.Protocol):
    """The asyncio end of one connection: feeds its channel and drains it."""

    __slots__ = ("_channel", "_door", "_secure", "_transport", "data_received")

    answers = False
    fence = None

    def __init__(self, door: Door) -> None:
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
        peername = transport.get_extra_info("peername")
        sockname = transport.get_extra_info("sockname")
        self._transport = cast("asyncio.Transport", transport)
        if not peername or not sockname:  # gone before we looked
            self._transport.abort()
            return
        peer = Address(*peername[:2])
        if not self._door.admit(peer):
            self._transport.abort()
            return
        self.begin(self._transport, peer, Address(*sockname[:2]))

    def begin(self, transport: asyncio.Transport, peer: Address, sockname: Address) -> None:
        """Begin the connection of a device that is admitted."""
        self._transport = transport
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # it may be gone already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._secure = transport.get_extra_info("ssl_object") is not None
        certificate = _certificate(transport.get_extra_info("peercert")) if self._secure else None
        info = ConnectionInfo("ssl" if self._secure else "tcp", peer, sockname, certificate)
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
        self._door.leave()
        lost = isinstance(exc, OSError) and exc.errno in LOST
        channel.terminated("lost" if lost else "device closed", str(exc or ""))

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
