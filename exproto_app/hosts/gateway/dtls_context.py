"""What DTLS listeners agree to: certificates, versions and ciphers, and the cookies that prove an address."""

from __future__ import annotations

import hmac
import re
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ...errors import ExprotoError, SetupError
from ...models import Certificate
from ...ops.certificates import key_password
from .tcp import certificate_of

if TYPE_CHECKING:
    from .listeners import Listen

__all__ = ["Cookies", "make_context", "make_key", "peer_certificate", "words_of"]

DTLS_1_0: Final = 0xFEFF
DTLS_1_2: Final = 0xFEFD
VERSIONS: Final = {"1.0": DTLS_1_0, "1.1": DTLS_1_0, "1.2": DTLS_1_2}
"""What `--tls-min` means here: DTLS 1.0 came with TLS 1.1, and 1.1 was left out."""

LIFE: Final = 30.0
"""Seconds for which a cookie is good, up to twice that."""

PRIVATE_KEY: Final = re.compile(
    rb"-----BEGIN ([A-Z ]*)PRIVATE KEY-----.*?-----END \1PRIVATE KEY-----", re.DOTALL
)

NAMES: Final = {
    "2.5.4.3": "commonName",
    "2.5.4.4": "surname",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "countryName",
    "2.5.4.7": "localityName",
    "2.5.4.8": "stateOrProvinceName",
    "2.5.4.9": "streetAddress",
    "2.5.4.10": "organizationName",
    "2.5.4.11": "organizationalUnitName",
    "2.5.4.12": "title",
    "2.5.4.17": "postalCode",
    "2.5.4.42": "givenName",
    "2.5.4.46": "dnQualifier",
    "0.9.2342.19200300.100.1.1": "userId",
    "0.9.2342.19200300.100.1.25": "domainComponent",
    "1.2.840.113549.1.9.1": "emailAddress",
}
"""Parts of a name, as the ssl module calls them."""


def library(who: object) -> Any:
    """Return pyOpenSSL. Raises `ExprotoError` where *who* needs it and it isn't there."""
    try:
        from OpenSSL import SSL  # noqa: PLC0415 - an extra
    except ImportError:
        raise ExprotoError(f"{who} needs: pip install 'exproto-app[dtls]'") from None
    return SSL


def make_context(listen: Listen) -> Any:
    """Return the context of *listen*, whose files have been looked at. Raises `ExprotoError`.

    The application data of its connections has to be the address of the device, for the cookies.
    """
    ssl = library(listen)
    version = VERSIONS.get(listen.tls_min or "1.2")
    if version is None:
        raise SetupError(f"{listen}: tls-min is {listen.tls_min}; DTLS has 1.0 and 1.2")
    context = ssl.Context(ssl.DTLS_SERVER_METHOD)
    context.set_min_proto_version(version)
    context.set_max_proto_version(DTLS_1_2)
    context.set_options(ssl.OP_NO_QUERY_MTU | ssl.OP_NO_RENEGOTIATION)
    context.set_mode(ssl.MODE_RELEASE_BUFFERS)
    context.set_session_id(b"exproto-app")  # else devices with certificates couldn't resume a session
    context.set_session_cache_mode(ssl.SESS_CACHE_OFF)  # what they need for that is in their ticket
    cookies = Cookies(time.monotonic())
    context.set_cookie_generate_callback(lambda tls: cookies.make(tls.get_app_data(), time.monotonic()))
    context.set_cookie_verify_callback(
        lambda tls, cookie: cookies.check(tls.get_app_data(), cookie, time.monotonic())
    )
    context.set_cipher_list(_ciphers(listen, version).encode())
    context.use_certificate_chain_file(listen.cert)
    context.use_privatekey(make_key(Path(listen.key or listen.cert or "").read_bytes()))
    if listen.client_ca:
        context.load_verify_locations(listen.client_ca)
        context.set_verify(ssl.VERIFY_PEER | ssl.VERIFY_FAIL_IF_NO_PEER_CERT)
    return context


def _ciphers(listen: Listen, version: int) -> str:
    """Return which ciphers are agreed to; old versions need what OpenSSL calls insecure."""
    return listen.ciphers or ("DEFAULT:@SECLEVEL=0" if version == DTLS_1_0 else "DEFAULT")


def make_key(pem: bytes) -> Any:
    """Return the private key in *pem*, which may have other things too."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 - an extra

    block = PRIVATE_KEY.search(pem)
    found = block[0] + b"\n" if block else pem
    password = (key_password() or "").encode() if b"ENCRYPTED" in found else None
    return load_pem_private_key(found, password)


def peer_certificate(tls: Any) -> Certificate | None:
    """Return what the device's certificate says, if it has shown one."""
    shown = tls.get_peer_certificate(as_cryptography=True)
    if shown is None:
        return None
    pairs = [
        (NAMES.get(part.oid.dotted_string, part.oid.dotted_string), str(part.value)) for part in shown.subject
    ]
    return certificate_of(pairs)


def words_of(error: Exception) -> str:
    """Tell in plain words what an *error* of pyOpenSSL says."""
    told = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return ", ".join(reason for *_, reason in told if reason) or str(error) or "the other side hung up"


class Cookies:
    """What proves that a device has the address that it sends from; of those given away nothing is kept."""

    def __init__(self, now: float) -> None:
        self._secrets = (secrets.token_bytes(32), secrets.token_bytes(32))
        self._changed = now

    def make(self, address: bytes, now: float) -> bytes:
        """Return the cookie of *address*."""
        self._renew(now)
        return _mac(self._secrets[0], address)

    def check(self, address: bytes, cookie: bytes, now: float) -> bool:
        """Return whether *cookie* was given to *address*, not long ago."""
        self._renew(now)
        newer, older = (hmac.compare_digest(_mac(secret, address), cookie) for secret in self._secrets)
        return newer or older

    def _renew(self, now: float) -> None:
        age = now - self._changed
        if age < LIFE:
            return
        older = self._secrets[0] if age < 2 * LIFE else secrets.token_bytes(32)
        self._secrets = (secrets.token_bytes(32), older)
        self._changed = now


def _mac(secret: bytes, address: bytes) -> bytes:
    return hmac.digest(secret, address, "sha256")
