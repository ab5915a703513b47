"""Certificates and keys in PEM files: loaded without ever asking a terminal, and until when they are good."""

from __future__ import annotations

import base64
import os
import re
import ssl
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

import attrs

from ..errors import SetupError

__all__ = [
    "KEY_PASSWORD",
    "KEY_PASSWORD_FILE",
    "Validity",
    "check_renewed",
    "key_password",
    "key_password_file",
    "load_identity",
    "read_secret",
    "validity",
]

KEY_PASSWORD: Final = "EXPROTO_KEY_PASSWORD"  # noqa: S105 - the name of a variable
"""The variable with the password of encrypted keys."""

KEY_PASSWORD_FILE: Final = "EXPROTO_KEY_PASSWORD_FILE"  # noqa: S105 - likewise
"""The variable with the name of a file that has it, which is read each time."""

BLOCK: Final = re.compile(rb"-----BEGIN (?:TRUSTED )?CERTIFICATE-----(.*?)-----END", re.DOTALL)

SEQUENCE: Final = 0x30
VERSION: Final = 0xA0
UTC_TIME: Final = 0x17
"""Tags of what is looked for in a certificate (X.690)."""


@attrs.frozen
class Validity:
    """From when until when a certificate is good."""

    begins: datetime
    ends: datetime

    def trouble(self, now: datetime) -> str:
        """Tell why it isn't good at *now*, nothing if it is."""
        if now >= self.ends:
            return f"it expired on {self.ends:%Y-%m-%d %H:%M} UTC"
        return f"it isn't valid before {self.begins:%Y-%m-%d %H:%M} UTC" if now < self.begins else ""

    def days(self, now: datetime) -> int:
        """Return how many days are left of it."""
        return (self.ends - now).days


def read_secret(file: str, option: str) -> str:
    """Return the first line of *file*, which *option* names. Raises `SetupError`."""
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        words = (error.strerror or str(error)).lower()
        raise SetupError(f"{option}: {file} can't be read: {words}") from None
    except UnicodeDecodeError:
        raise SetupError(f"{option}: {file} isn't UTF-8 text") from None
    secret = text.partition("\n")[0].rstrip("\r")
    if not secret:
        raise SetupError(f"{option}: the first line of {file} is empty")
    return secret


def key_password_file() -> str | None:
    """Return the file with the password of encrypted keys, if there is one."""
    return os.environ.get(KEY_PASSWORD_FILE) or None


def key_password() -> str | None:
    """Return the password of encrypted keys, None without one. Raises `SetupError` about its file."""
    file = key_password_file()
    return read_secret(file, "--key-password-file") if file else os.environ.get(KEY_PASSWORD)


def load_identity(context: ssl.SSLContext, cert: str, key: str | None, who: str) -> None:
    """Have *context* show *cert* (a chain) with its *key*, which may be in the same file.

    An encrypted key needs the password in `EXPROTO_KEY_PASSWORD`, or in the file that
    `EXPROTO_KEY_PASSWORD_FILE` names. Raises `SetupError` about *who* needs them.
    """
    password = key_password()
    asked = False

    def answer() -> str:  # without it OpenSSL would ask the terminal
        nonlocal asked
        asked = True
        return password or ""

    try:
        context.load_cert_chain(cert, key, password=answer)
    except (ssl.SSLError, OSError) as error:
        if asked and password is None:
            words = f"{who}: the key in {key or cert} is encrypted"
            raise SetupError(f"{words}; give --key-password-file FILE, or {KEY_PASSWORD}") from None
        if asked:
            words = f"{who}: the password of --key-password-file, or {KEY_PASSWORD}"
            raise SetupError(f"{words}, doesn't open the key in {key or cert}") from None
        if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
            raise SetupError(
                f"{who}: the key in {key or cert} isn't that of the certificate {cert}"
            ) from None
        words = str(error) if isinstance(error, ssl.SSLError) else (error.strerror or str(error)).lower()
        raise SetupError(f"{who}: {cert} and its key can't be used: {words}") from None


def validity(cert: str | Path) -> list[Validity]:
    """Return from when until when each certificate in a PEM file is good; the device's or server's own first.

    One that can't be read is left out: OpenSSL tells of that.
    """
    found = []
    for block in BLOCK.finditer(Path(cert).read_bytes()):
        try:
            found.append(_validity(base64.b64decode(block[1])))
        except (ValueError, IndexError, StopIteration):  # noqa: PERF203 - a handful
            continue
    return found


def check_renewed(before: list[Validity], now: list[Validity], who: str) -> None:
    """Raise `SetupError` about *who* if a certificate is to be renewed by one that isn't valid."""
    trouble = now[0].trouble(datetime.now(timezone.utc)) if now else ""
    if trouble and now != before:
        raise SetupError(f"{who} can't be used: {trouble}")


def _validity(der: bytes) -> Validity:
    """Read the times of a certificate (RFC 5280, 4.1), behind serial number, algorithm and issuer."""
    _, certificate = next(_elements(der))
    _, inner = next(_elements(certificate))
    fields = [field for field in _elements(inner) if field[0] != VERSION]
    tag, times = fields[3]
    if tag != SEQUENCE:
        raise ValueError("there is no validity")
    begins, ends = _elements(times)
    return Validity(_time(*begins), _time(*ends))


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element in *data* (X.690, DER)."""
    at = 0
    while at < len(data):
        tag, size, at = data[at], data[at + 1], at + 2
        if size & 0x80:
            count = size & 0x7F
            size, at = int.from_bytes(data[at : at + count], "big"), at + count
        yield tag, data[at : at + size]
        at += size


def _time(tag: int, text: bytes) -> datetime:
    year = "%y" if tag == UTC_TIME else "%Y"
    return datetime.strptime(text.decode("ascii"), f"{year}%m%d%H%M%SZ").replace(tzinfo=timezone.utc)
