"""`--reload`: one process that keeps the listeners, and another that restarts when a file changes.

A broken file is told as ever, and the listeners wait: who connects is served as soon as it is mended.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import click

from ..errors import ExprotoError, SetupError
from ..hosts.gateway import Listen
from ..hosts.gateway.sockets import bind
from ..target import split
from .children import AGAIN, Child, Children, cancel, how

__all__ = ["Reloader", "Watched", "find_roots", "reload", "reload_option"]

log = logging.getLogger("exproto_app")

FOLDERS: Final = 1_000
"""Folders that are watched while nobody knows which files the target needs."""

STOP_TIMEOUT: Final = 30.0
"""Seconds until a gateway that was told to end is killed."""

NAMED: Final = 3
"""Changed files that are named in the log."""


reload_option: Callable[[Any], Any] = click.option(
    "--reload",
    "reloads",
    is_flag=True,
    help="Restart when a file changes that TARGET imports from its own folder, or one that the options "
    "name; needs exproto-app[reload].",
)


def reload(
    target: str, listens: Sequence[Listen], files: Iterable[str | None], *, option: str = "--listen"
) -> int:
    """Serve *target* on *listens* until told to stop, anew whenever it or one of *files* changes.

    *option* is what gave them. Returns the exit code. Raises `SetupError`, and `ExprotoError` where
    watchfiles isn't installed.
    """
    if sys.platform == "win32":
        raise SetupError("--reload doesn't work on Windows, whose processes don't inherit sockets")
    if importlib.util.find_spec("watchfiles") is None:
        raise ExprotoError("--reload needs: pip install 'exproto-app[reload]'")
    given = [Path(file) for file in files if file]
    named = {path for file in given for path in (file.absolute(), file.resolve())}  # it may be a link
    watched = Watched(find_roots(target), named)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # we tell of changes ourselves
    sockets = [bind(listen, option) for listen in listens]
    try:
        return asyncio.run(Reloader(AGAIN, sockets, watched).run())
    except OSError as error:  # the kernel watches only so many files
        words = f"--reload can't watch the files: {error}; set WATCHFILES_FORCE_POLLING=1 to poll instead"
        raise ExprotoError(words) from None


def find_roots(target: str) -> list[Path]:
    """Return the folders of *target*'s own files. Raises `SetupError` for a file that isn't there."""
    where, _ = split(target)
    path = Path(where)
    if path.is_file():
        return [path.resolve().parent]
    if where.endswith(".py") or "/" in where:
        raise SetupError(f"there is no file {path}; give the path of the script that has the app")
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(where.partition(".")[0])
        if spec is not None and spec.submodule_search_locations:
            return [Path.cwd(), *map(Path, spec.submodule_search_locations)]
    return [Path.cwd()]


@attrs.define(eq=False)
class Watched:
    """The files that matter: *files*, and of those in *roots* what the target has *imported*.

    While *imported* is None, since nobody knows or it couldn't be imported, any Python file there matters.
    """

    roots: list[Path]
    files: set[Path]
    imported: set[Path] | None = None

    def folders(self) -> set[Path]:
        """Return the folders to look at: editors put another file in the place of the one before."""
        if self.imported is None:
            inner = {folder for root in self.roots for folder in _importable(root)}
        else:
            inner = {*self.roots, *(file.parent for file in self.imported)}
        return {folder for folder in inner | {file.parent for file in self.files} if folder.is_dir()}

    def concerns(self, path: str) -> bool:
        """Return whether a change at *path* matters."""
        file = Path(path)
        if file in self.files:
            return True
        if self.imported is not None:
            return file in self.imported
        return file.suffix == ".py" or (_may_be_package(file.name) and file.is_dir())

    def changed_since(self, folders: Iterable[Path], began: float) -> set[str]:
        """Return the files in *folders* changed from *began*, a time of `time.time`, until now."""
        now, changed = time.time(), set()
        for folder in folders:
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    if self.concerns(entry.path) and entry.is_file() and began < entry.stat().st_mtime <= now:
                        changed.add(entry.path)
        return changed

    async def change(self, folders: Iterable[Path], began: float) -> set[str]:
        """Wait until files in *folders* have changed since *began*; return them. Several at once are one."""
        from watchfiles import awatch  # noqa: PLC0415 - an extra

        changes = awatch(
            *folders,
            watch_filter=lambda _, path: self.concerns(path),
            recursive=False,
            ignore_permission_denied=True,
        )
        async with contextlib.aclosing(changes):
            upcoming = asyncio.ensure_future(anext(changes))
            try:
                # What was there before the watcher was is no change to it.
                await asyncio.sleep(0)
                missed = self.changed_since(folders, began)
                return missed or {path for _, path in await upcoming}
            finally:
                await cancel(upcoming)


class Reloader:
    """Has a process of *command* serve each listener's *sockets*, and another one when *watched* changes."""

    def __init__(self, command: Sequence[str], sockets: list[list[socket.socket]], watched: Watched) -> None:
        self._children = Children(command, "reload")
        self._sockets = sockets
        self._watched = watched
        self._served = False
        self._news = asyncio.Event()
        self._asked = False

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT, anew at SIGHUP too; return the exit code."""

        def asked() -> None:
            self._asked = True
            self._news.set()

        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked)
        return await self._children.until_told(self._work(), STOP_TIMEOUT)

    async def _work(self) -> int:
        roots = [str(root) for root in self._watched.roots]
        while True:
            began, self._watched.imported = time.time(), None
            child = await self._children.start(None, self._sockets, roots)
            following = asyncio.ensure_future(self._follow(child))
            try:
                changed = await self._until_changed(began)
            finally:
                await cancel(following)
            log.info("reload = %s; the gateway restarts", _told(changed))
            if child.process.returncode is None:
                await child.end(STOP_TIMEOUT)

    async def _follow(self, child: Child) -> None:
        """Take what *child* tells, and tell the user how it goes."""
        began = time.monotonic()
        while (news := await child.hear()) is not None:
            if "files" in news:
                self._watched.imported = set(map(Path, news["files"]))
                log.debug("reload = watches %s", " ".join(sorted(news["files"])))
                self._news.set()
            elif self._served:
                log.info("reload = serves again after %.1f s", time.monotonic() - began)
            else:
                self._served = True
                click.echo("\n".join(news["serves"]) + "; restarts when a file changes; Ctrl-C stops it")
        ended = how(await child.process.wait())
        self._watched.imported = None
        self._news.set()
        log.error("reload ! the gateway %s; it restarts when a file changes", ended)

    async def _until_changed(self, began: float) -> set[str]:
        """Wait for a change since *began*; return the files, none where the user has asked for it."""
        while True:
            folders = self._watched.folders()
            change = asyncio.ensure_future(self._watched.change(folders, began))
            try:
                while self._watched.folders() == folders:
                    self._news.clear()
                    news = asyncio.ensure_future(self._news.wait())
                    await asyncio.wait((change, news), return_when=asyncio.FIRST_COMPLETED)
                    await cancel(news)
                    if self._asked or change.done():
                        self._asked = False
                        return change.result() if change.done() else set()
            finally:
                await cancel(change)


def _importable(root: Path) -> Iterator[Path]:
    """Yield *root* and the folders in it that may hold modules, at most `FOLDERS`."""
    for count, (folder, names, _) in enumerate(os.walk(root), 1):
        yield Path(folder)
        if count >= FOLDERS:
            return
        names[:] = filter(_may_be_package, names)


def _may_be_package(name: str) -> bool:
    return name.isidentifier() and name not in ("__pycache__", "node_modules")


def _told(changed: set[str]) -> str:
    if not changed:
        return "asked by SIGHUP"
    names = sorted(os.path.relpath(path) for path in changed)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more} changed"
