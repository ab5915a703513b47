"""A device on DTLS, for tests."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

from OpenSSL import SSL

from exproto_app.asyncio_host.datagrams import enlarge
from exproto_app.hosts.gateway.dtls import datagrams
from exproto_app.hosts.gateway.dtls_context import make_key

__all__ = ["MTU", "DtlsClient", "client_context"]

MTU = 1_232


def client_context(ca: Path | None = None, certificate: Path | None = None) -> Any:
    """Return the context of a device that trusts *ca*, anybody without, and shows *certificate*."""
    context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
    context.set_options(SSL.OP_NO_QUERY_MTU)
    if ca is not None:
        context.load_verify_locations(str(ca))
        context.set_verify(SSL.VERIFY_PEER)
    if certificate is not None:
        context.use_certificate_chain_file(str(certificate))
        context.use_privatekey(make_key(certificate.read_bytes()))
    return context


class DtlsClient:
    """A device on DTLS; every wait is bounded by *patience* seconds."""

    def __init__(self, address: tuple[str, int], context: Any = None, *, patience: float = 20.0) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        enlarge(self.sock, 4 << 20)  # hundreds of answers may come before the test takes the first
        self.sock.connect(address)
        self.sock.settimeout(patience)
        self.context = context or client_context()
        self.begin()

    def begin(self) -> None:
        """Begin a session, without a datagram of it."""
        self.tls = SSL.Connection(self.context)
        self.tls.set_ciphertext_mtu(MTU)
        self.tls.set_connect_state()

    def shake(self) -> None:
        """Do the handshake."""
        while not self.step():
            self.take()

    def step(self) -> bool:
        """Go on with the handshake as far as it can; tell whether it is done."""
        try:
            self.tls.do_handshake()
        except SSL.WantReadError:
            return False
        finally:
            self.flush()
        return True

    def take(self) -> None:
        """Wait for a datagram."""
        data = self.sock.recv(65_536)
        if data:
            self.tls.bio_write(data)

    def flush(self) -> None:
        """Send what there is to send."""
        with contextlib.suppress(SSL.WantReadError):
            for datagram in datagrams(self.tls.bio_read(65_536), MTU):
                self.wire(datagram)

    def wire(self, datagram: bytes) -> object:
        """Send *datagram* as it is."""
        return self.sock.send(datagram)

    def send(self, data: bytes) -> None:
        """Send *data* as one datagram."""
        self.tls.send(data)
        self.flush()

    def receive(self) -> bytes:
        """Wait for a datagram; return nothing at the end of the session."""
        while True:
            try:
                data: bytes = self.tls.recv(16_384)
            except SSL.WantReadError:  # noqa: PERF203 - as pyOpenSSL has it
                self.flush()
                self.take()
            except SSL.ZeroReturnError:
                return b""
            else:
                return data

    def close(self) -> None:
        """Say goodbye, and close."""
        with contextlib.suppress(SSL.Error):
            self.tls.shutdown()
            self.flush()
        self.sock.close()
