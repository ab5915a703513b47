"""Files that a service reads again while it runs: when one has changed, and when it is asked to.

Each `Source` is read as a whole, in a thread, before anything of it is used; what is wrong is told, and what
was read before stays in force. A file that is being written is left alone: it is read when two looks in a row
have found it the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import attrs

from ..errors import SetupError
from ..ops.certificates import Validity, check_renewed, key_password_file, validity
from .threads import IdleThreads

__all__ = ["Renewal", "Source", "certificate_source"]

T = TypeVar("T")

log = logging.getLogger("exproto_app")

LOOK: Final = 0.5
"""Seconds between two looks at the files."""

RESTLESS: Final = 20
"""Looks after which a file that never stays the same is read nevertheless."""

Version: TypeAlias = "tuple[int, int, int, int] | None"
"""What tells one version of a file from another; None where there is no file."""

Versions: TypeAlias = dict[str, Version]


@attrs.frozen(eq=False)
class Source:
    """What is made of the files that *files* returns: by *read*, which may raise `SetupError`, for *use*.

    Those that are None don't count. *who* has it, and *what* it is, in the log; a source without *what* tells
    of itself. Without files it is read again only when that is asked for.
    """

    who: str
    what: str
    files: Callable[[], Iterable[str | os.PathLike[str] | None]]
    read: Callable[[], Any]
    use: Callable[[Any], object]


def certificate_source(
    who: str,
    what: str,
    read: Callable[[], T],
    use: Callable[[T], object],
    *,
    cert: str | None,
    named: str,
    files: Iterable[str | None],
) -> Source:
    """Return the source of what *read* makes of *cert* and other *files*, for *use*.

    A new certificate that isn't valid now is refused, in a sentence that begins with *named* and its file: an
    expired one is better than none, but none to renew another by.
    """
    valid = validity(cert) if cert and Path(cert).is_file() else []

    def read_again() -> tuple[T, list[Validity]]:
        made, found = read(), validity(cert) if cert else []
        check_renewed(valid, found, f"{named} {cert}")
        return made, found

    def take(found: tuple[T, list[Validity]]) -> None:
        made, valid[:] = found
        use(made)

    followed = (cert, *files, key_password_file() if cert else None)
    return Source(who, what, lambda: followed, read_again, take)


class _Followed:
    """A source, with the versions of its files that were *used*, and those that were seen last."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.asked = False
        self._used = self._last = _versions(source)
        self._looks = 0

    def look(self, now: Versions) -> bool:
        """Take the versions that there are *now*; return whether they are to be read."""
        settled, self._last = now == self._last, now
        if not self.asked and all(self._used.get(file, found) == found for file, found in now.items()):
            self._used, self._looks = now, 0
            return False
        self._looks += 1
        if not settled and self._looks < RESTLESS:
            return False
        self._used, self.asked, self._looks = now, False, 0
        return True


class Renewal:
    """Reads what was added again, from `start` until `stop`, in the loop that runs then."""

    def __init__(self) -> None:
        self._followed: list[_Followed] = []
        self._threads = IdleThreads(1, "exproto-app files")
        self._wake: asyncio.Event
        self._task: asyncio.Task[None] | None = None

    def add(self, source: Source) -> None:
        """Follow *source*, which is about to be read for the first time."""
        self._followed.append(_Followed(source))

    def start(self) -> None:
        """Begin."""
        self._wake = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Read nothing more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def ask(self) -> None:
        """Have everything be read again, whether or not it has changed."""
        for one in self._followed:
            one.asked = True
        if self._task is not None:
            self._wake.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._task is not None:  # `wait_for` may lose a cancellation before Python 3.12
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), LOOK)
            self._wake.clear()
            for one in tuple(self._followed):
                # A file may be on another machine, which doesn't answer: that isn't for the loop to wait for.
                now = await loop.run_in_executor(self._threads, _versions, one.source)
                if one.look(now):
                    await self._renew(one.source)

    async def _renew(self, source: Source) -> None:
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, source.read)
            source.use(found)
        except SetupError as error:
            text = "%s ! not renewed: %s; what was read before stays in force"
            log.error(text, source.who, error)  # noqa: TRY400 - the sentence is enough
        except Exception:
            log.exception("%s ! not renewed; what was read before stays in force", source.who)
        else:
            if source.what:
                log.info("%s = %s read again", source.who, source.what)


def _versions(source: Source) -> Versions:
    return {os.fspath(file): _version(os.fspath(file)) for file in source.files() if file}


def _version(file: str) -> Version:
    try:
        found = os.stat(file)  # noqa: PTH116 - a path may be anything here, also one that can't be
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
