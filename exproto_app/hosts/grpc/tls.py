"""Tls: the service's own TLS, from the broker to here."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs

from ...asyncio_host.renewal import Source, certificate_source
from ...errors import SetupError
from ...ops.certificates import load_identity

__all__ = ["Tls"]

log = logging.getLogger("exproto_app")

_HINTS: Final = {
    "HTTP_REQUEST": "; it speaks plain HTTP, so write https:// in the handler's address",
    "WRONG_VERSION": "; it speaks no TLS, so write https:// in the handler's address, or leave --cert out",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "; --client-ca demands one, which belongs into EMQX's ssl_options",
    "UNKNOWN_CA": "; it doesn't trust the certificate of --cert; its CA belongs into EMQX's ssl_options",
    "VERIFY_FAILED": "; its certificate isn't signed by the CA of --client-ca",
}


@attrs.frozen
class Tls:
    """Files of the service's own TLS: certificate chain, key, and the CA that brokers are signed by."""

    cert: str
    key: str | None = None
    client_ca: str | None = None

    def context(self) -> ssl.SSLContext:
        """Return what the listener needs. Raises `SetupError`."""
        for option, file in (("cert", self.cert), ("key", self.key), ("client-ca", self.client_ca)):
            if file is not None and not Path(file).is_file():
                raise SetupError(f"--{option}: there is no file {file}")
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.client_ca)
        except (OSError, ssl.SSLError) as error:
            raise SetupError(f"--client-ca: {self.client_ca} can't be used: {error}") from None
        load_identity(context, self.cert, self.key, "--cert")
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols(["h2"])
        context.sslobject_class = _Handshake
        return context

    def source(self, use: Callable[[ssl.SSLContext], object]) -> Source:
        """Return what is read again, for *use*."""
        files = (self.key, self.client_ca)
        what = "certificate and key"
        return certificate_source(
            "grpc", what, self.context, use, cert=self.cert, named="--cert:", files=files
        )


class _Handshake(ssl.SSLObject):
    """One TLS connection of a caller. It tells what asyncio keeps to itself: why a handshake failed."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            why = error.reason or str(error)
            hint = next((hint for word, hint in _HINTS.items() if word in why), "")
            log.warning("grpc ! somebody's TLS handshake failed: %s%s", why.replace("_", " ").lower(), hint)
            raise
