"""What TLS listeners agree to: pre-shared keys, and the ciphers and the lowest version for old devices."""

from __future__ import annotations

import ssl
import sys
import warnings
from pathlib import Path
from typing import Final

from ...errors import SetupError

__all__ = ["VERSIONS", "check_version", "read_keys", "restrict", "share_keys"]

VERSIONS: Final = {
    "1.0": ssl.TLSVersion.TLSv1,
    "1.1": ssl.TLSVersion.TLSv1_1,
    "1.2": ssl.TLSVersion.TLSv1_2,
    "1.3": ssl.TLSVersion.TLSv1_3,
}
"""What `--tls-min` takes."""

LONGEST: Final = 256
"""Characters of an identity (RFC 4279, 5.3, wants 128), and bytes of a key."""


def check_version(who: str, version: str | None) -> str | None:
    """Return *version*, if it is one of TLS. Raises `SetupError` about *who*."""
    if version is not None and version not in VERSIONS:
        raise SetupError(f"{who}: tls-min is {version!r}; it must be one of {', '.join(VERSIONS)}")
    return version


def restrict(context: ssl.SSLContext, who: object, ciphers: str | None, version: str | None) -> None:
    """Have *context* agree to *ciphers*, by OpenSSL's names, and no version before *version*.

    Old versions need signatures that OpenSSL calls insecure; without *ciphers* they are allowed for them.
    Raises `SetupError` about *who*.
    """
    if version is not None:
        with warnings.catch_warnings():  # old ones are asked for
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = VERSIONS[version]
        if ciphers is None and version in ("1.0", "1.1"):
            ciphers = "DEFAULT:@SECLEVEL=0"
    if ciphers is None:
        return
    try:
        context.set_ciphers(ciphers)
    except ssl.SSLError:
        words = f"OpenSSL knows none of the ciphers {ciphers!r}; see: openssl ciphers -v"
        raise SetupError(f"{who}: {words}") from None


def read_keys(file: str, who: object) -> dict[str, bytes]:
    """Read pre-shared keys, `IDENTITY:HEXKEY` in each line; `#` begins a comment. Raises `SetupError`."""
    keys: dict[str, bytes] = {}
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise SetupError(f"{who}: {file} is not a text file in UTF-8; write IDENTITY:HEXKEY lines") from None
    except OSError as error:
        raise SetupError(f"{who}: {file} can't be read: {(error.strerror or str(error)).lower()}") from None
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        identity, colon, key = text.rpartition(":")
        try:
            value = bytes.fromhex(key)
        except ValueError:
            value = b""
        if not colon or not identity or len(identity) > LONGEST or not 0 < len(value) <= LONGEST:
            raise SetupError(f"{who}: {file}, line {number} is not IDENTITY:HEXKEY")  # it may be a secret
        if identity in keys:
            raise SetupError(f"{who}: {file}, line {number} has the identity {identity!r} a second time")
        keys[identity] = value
    return keys


def share_keys(context: ssl.SSLContext, file: str, who: object, *, certified: bool) -> None:
    """Have *context* take devices that know a key in *file*; *certified*: it has a certificate too.

    Raises `SetupError` about *who*, for a Python without it too.
    """
    keys = read_keys(file, who)
    if sys.version_info < (3, 13):
        words = (
            f"pre-shared keys need Python 3.13 or newer; this is {sys.version_info[0]}.{sys.version_info[1]}"
        )
        raise SetupError(f"{who}: {words}")
    if not certified:  # Python has no such keys for TLS 1.3
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("DEFAULT:PSK" if certified else "PSK")
    context.set_psk_server_callback(lambda identity: keys.get(identity or "", b""))
