"""A login rule from a file of names and hashed passwords."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import secrets
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import attrs

from ...errors import SetupError
from ...models import ClientInfo

__all__ = ["Users", "hash_password"]

log = logging.getLogger("exproto_app")

COST: Final = 14
"""scrypt's N as a power of two, with r=8 and p=1: 16 MiB and some 50 ms a password (RFC 7914, OWASP)."""

REMEMBERED: Final = 10_000
"""Right answers that are remembered, so that a storm of reconnects costs no scrypt each."""


@attrs.frozen
class Hash:
    """What is known of a password: scrypt's parameters, its salt and its result."""

    cost: int
    salt: bytes = attrs.field(repr=False)
    digest: bytes = attrs.field(repr=False)

    def of(self, password: str) -> bytes:
        """Return what *password* comes to with this salt."""
        return hashlib.scrypt(
            password.encode(), salt=self.salt, n=1 << self.cost, r=8, p=1, maxmem=(1 << self.cost) * 1024 * 2
        )


def hash_password(password: str) -> str:
    """Return the text that stands for *password* in the file: `$scrypt$ln=14,r=8,p=1$SALT$HASH`."""
    salt = secrets.token_bytes(16)
    digest = Hash(COST, salt, b"").of(password)
    parts = (base64.b64encode(part).decode().rstrip("=") for part in (salt, digest))
    return f"$scrypt$ln={COST},r=8,p=1${'$'.join(parts)}"


def _parse(text: str) -> Hash:
    empty, kind, parameters, salt, digest = text.split("$")
    cost = int(parameters.removeprefix("ln=").removesuffix(",r=8,p=1"))
    if empty or kind != "scrypt" or not 10 <= cost <= 20:
        raise ValueError(text)
    padded = (part + "=" * (-len(part) % 4) for part in (salt, digest))
    return Hash(cost, *(base64.b64decode(part, validate=True) for part in padded))


class Users:
    """May register who is in *path* with the right password: a line `NAME:HASH` each, `#` begins a comment.

    NAME is the client's username, or its clientid where it gives none. The file is read again when it has
    changed; a changed file that is wrong is logged, and the one before stays in force. Raises `SetupError`
    for a file that can't be read, with its line.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._stamp: tuple[int, int] | None = None
        self._hashes: dict[str, Hash] = {}
        self._nobody = Hash(COST, secrets.token_bytes(16), secrets.token_bytes(64))
        # Who was right lately, by a hash that is of no use to anybody else.
        self._key = secrets.token_bytes(32)
        self._right: OrderedDict[tuple[str, bytes], bytes] = OrderedDict()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="exproto-app users")
        self._read()

    async def __call__(self, client: ClientInfo, password: str | None) -> bool:
        """Tell whether *client* may register; the work is done in a thread."""
        if password is None:
            return False
        self._read_again()
        name = client.username or client.clientid
        known = self._hashes.get(name, self._nobody)
        quick = hmac.digest(self._key, password.encode(), "sha256")
        if self._right.get((name, quick)) == known.digest:
            return True
        # For a name that isn't there too, so that nobody learns which are.
        loop = asyncio.get_running_loop()
        digest = await loop.run_in_executor(self._threads, known.of, password)
        if not hmac.compare_digest(digest, known.digest):
            return False
        self._right[name, quick] = known.digest
        if len(self._right) > REMEMBERED:
            self._right.popitem(last=False)
        return True

    def _read_again(self) -> None:
        try:
            self._read()
        except SetupError as error:
            log.warning("users ! %s; the users from before stay", error)

    def _read(self) -> None:
        try:
            stat = self._path.stat()
            if (stat.st_mtime_ns, stat.st_size) == self._stamp:
                return
            self._stamp = (stat.st_mtime_ns, stat.st_size)
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise SetupError(
                f"{self._path} can't be read: {(error.strerror or str(error)).lower()}"
            ) from None
        except UnicodeDecodeError:
            raise SetupError(f"{self._path} is no UTF-8 text") from None
        hashes = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            name, separator, text = line.strip().partition(":")
            try:
                hashes[name] = _parse(text)
            except ValueError:
                what = "has no password hash" if separator else "has no ':'"
                remedy = "make the line with exproto-app hash-password NAME"
                raise SetupError(f"{self._path}, line {number} {what}; {remedy}") from None
        if not hashes:
            log.warning("users ! %s names nobody, so nobody may register", self._path)
        self._hashes = hashes
