"""A login rule from a file of names and hashed passwords."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import sys
import threading
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Final

import attrs

from ...addresses import APPLICANT, Applicant
from ...asyncio_host.renewal import Source
from ...asyncio_host.threads import IdleThreads
from ...core.login_queue import EACH, MOST, Login, LoginQueue
from ...errors import SetupError
from ...models import ClientInfo

__all__ = ["Users", "hash_password"]

log = logging.getLogger("exproto_app")

COST: Final = 14
"""scrypt's N as a power of two, with r=8 and p=1: 16 MiB and some 50 ms a password (RFC 7914, OWASP)."""

WRONG: Final = 10_000
"""Wrong passwords that are remembered, so that a device which tries the same one for ever costs one check."""

CHECKS: Final = 2
"""Passwords that are checked at the same time, each in a thread."""


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


def _give_way(steps: int) -> None:
    """Have this thread give way to others, the event loop for one: *steps* of 19, which is to all of them."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        with contextlib.suppress(OSError):
            before = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, before + steps))


@attrs.define(eq=False)
class _Check:
    """The work of a login that waits; *answer* None: it was refused without."""

    known: Hash
    password: str = attrs.field(repr=False)
    asked: float
    answer: asyncio.Future[bool | None]


class Users:
    """May register who is in *path* with the right password: a line `NAME:HASH` each, `#` begins a comment.

    NAME is the client's username, or its clientid where it gives none. The file is read again when it has
    changed; a changed file that is wrong is logged, and the one before stays in force. Raises `SetupError`
    for a file that can't be read, with its line.

    A check takes some 50 ms of CPU. It is done for names that are there and whose password isn't known yet;
    then it tells right from wrong by memory, until the line changes. `LoginQueue` has what waits for a check.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._stamp: tuple[int, int] | None = None
        self._followed = False
        self._hashes: dict[str, Hash] = {}
        # What was right or wrong lately, by a hash that is of no use to anybody else.
        self._key = secrets.token_bytes(32)
        self._right: dict[str, tuple[bytes, bytes]] = {}
        self._wrong: OrderedDict[tuple[str, bytes], bytes] = OrderedDict()
        self._threads = IdleThreads(CHECKS, "exproto-app users", partial(_give_way, 5))
        self._slow_threads = IdleThreads(1, "exproto-app suspects", partial(_give_way, 19))
        self._waiting: LoginQueue[_Check] = LoginQueue()
        self._checking = 0
        self._takes = 0.05  # seconds, as of the last check
        self._read()

    def follow(self) -> Source:
        """Return what the file is read again by, as soon as it has changed; logins don't look at it then."""
        self._followed = True
        return Source("users", f"names in {self._path}", lambda: (self._path,), self._load, self._take)

    async def __call__(self, client: ClientInfo, password: str | None) -> bool:
        """Return whether *client* may register; the work is done in a thread."""
        if password is None:
            return False
        if not self._followed:
            self._read_again()
        try:
            return await self._judge(client, password)
        except asyncio.CancelledError:  # the event loop ends; nobody waits for the answer
            return False

    async def _judge(self, client: ClientInfo, password: str) -> bool:
        name = client.username or client.clientid
        fingerprint = hmac.digest(self._key, password.encode(errors="surrogatepass"), "sha256")
        known = self._hashes.get(name)
        verdict = self._remembered(name, fingerprint, known)
        if verdict is None and known is not None:
            return await self._check(name, password, fingerprint, known)
        if not verdict:
            # As long as a check takes, so that nobody learns which names there are.
            await asyncio.sleep(self._takes)
        return bool(verdict)

    def _remembered(self, name: str, fingerprint: bytes, known: Hash | None) -> bool | None:
        """Return what is known without a check: a name has one password, so any other is wrong."""
        if known is None:
            return None
        digest, right = self._right.get(name, (b"", b""))
        if digest == known.digest:
            return hmac.compare_digest(right, fingerprint)
        return False if self._wrong.get((name, fingerprint)) == known.digest else None

    async def _check(self, name: str, password: str, fingerprint: bytes, known: Hash) -> bool:
        """Have the password checked when it is its turn."""
        loop = asyncio.get_running_loop()
        applicant = APPLICANT.get() or Applicant("", lambda: False)
        login = Login(name, applicant, _Check(known, password, loop.time(), loop.create_future()))
        applicant.refuse = partial(self._refuse, login)
        for out in self._waiting.add(login):
            self._refuse(out)
        self._start(loop)
        right = await login.work.answer
        if right is None:
            return False
        if right:
            self._right[name] = known.digest, fingerprint
        else:
            self._wrong[name, fingerprint] = known.digest
            if len(self._wrong) > WRONG:
                self._wrong.popitem(last=False)
        return right

    def _refuse(self, login: Login[_Check]) -> None:
        """Answer a login without a check."""
        applicant = login.applicant
        applicant.busy = True
        self._waiting.discard(login)
        if not applicant.gone() and not applicant.leaving():
            words = "users ! a login as %r is refused: %d wait, limits are %d, and %d of one name and address"
            log.warning(words, login.name, len(self._waiting), MOST, EACH)
        if not login.work.answer.done():
            login.work.answer.set_result(None)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        # The last thread isn't for names that somebody guesses at.
        while self._checking < CHECKS:
            login = self._waiting.next(innocent=self._checking == CHECKS - 1)
            if login is None:
                break
            self._checking += 1
            work = login.work
            threads = self._slow_threads if self._waiting.suspects(login) else self._threads
            done = loop.run_in_executor(threads, work.known.of, work.password)
            done.add_done_callback(partial(self._checked, loop, login))
        for out in self._waiting.drop_gone():
            self._refuse(out)

    def _checked(
        self, loop: asyncio.AbstractEventLoop, login: Login[_Check], done: asyncio.Future[bytes]
    ) -> None:
        self._checking -= 1
        work = login.work
        if done.cancelled():
            return
        if (error := done.exception()) is not None:
            if not work.answer.done():
                work.answer.set_exception(error)
        else:
            right = hmac.compare_digest(done.result(), work.known.digest)
            self._takes = min(1.0, loop.time() - work.asked)
            if not right:
                self._waiting.failed(login, loop.time())
            if not work.answer.done():
                work.answer.set_result(right)
        self._start(loop)

    def _read_again(self) -> None:
        try:
            self._read()
        except SetupError as error:
            log.warning("users ! %s; the users from before stay", error)

    def _read(self) -> None:
        try:
            stat = self._path.stat()
        except OSError as error:
            raise self._unreadable(error) from None
        if (stat.st_mtime_ns, stat.st_size) != self._stamp:
            self._stamp = (stat.st_mtime_ns, stat.st_size)
            self._take(self._load())

    def _load(self) -> dict[str, Hash]:
        """Return what is known of each name. Raises `SetupError`."""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise self._unreadable(error) from None
        except UnicodeDecodeError:
            raise SetupError(f"{self._path} is not UTF-8 text") from None
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
        return hashes

    def _take(self, hashes: dict[str, Hash]) -> None:
        if not hashes:
            log.warning("users ! %s has no users, so nobody may register", self._path)
        self._hashes = hashes

    def _unreadable(self, error: OSError) -> SetupError:
        return SetupError(f"{self._path} can't be read: {(error.strerror or str(error)).lower()}")
