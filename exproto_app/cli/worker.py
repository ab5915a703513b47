"""A child's side of `run --workers` and `run --reload`: what its parent gave it, and how it answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

__all__ = ["VARIABLE", "Worker"]

log = logging.getLogger("exproto_app")

VARIABLE: Final = "EXPROTO_WORKER"
"""Tells a process that it is a worker: JSON with its number and the handles that it inherits."""

LOOK: Final = 1.0
"""Seconds between two looks whether something more was imported."""


@attrs.define(eq=False)
class Worker:
    """What a process is given that serves for another one.

    Its *number*, from 1, where there are several; the *sockets* of each listener; and the *roots*, folders
    of which it tells what files it imports. It tells by JSON objects, one a line: `files`, and `serves` with
    what the parent may tell its user.
    """

    number: int | None
    sockets: list[list[socket.socket]]
    _control: socket.socket
    _roots: tuple[str, ...] = ()
    _names: list[list[Any]] = attrs.field(factory=list)
    _modules: int = 0

    @classmethod
    def take(cls) -> Worker | None:
        """Return what a parent gave to this process; None where there is none."""
        text = os.environ.pop(VARIABLE, None)  # programs that the app starts are no workers
        if text is None:
            return None
        given = json.loads(text)
        sockets = [[_inherited(handle) for handle in handles] for handles in given["sockets"]]
        worker = cls(
            given["number"], sockets, _inherited(given["control"]), tuple(given["roots"]), given["names"]
        )
        if worker._roots:
            # Python takes a compiled file for fresh by its second and size; edits may be quicker.
            sys.dont_write_bytecode = True
        return worker

    def open(self) -> list[list[socket.socket]]:
        """Return the sockets, all bound: from now on somebody reads what comes there. Raises `OSError`."""
        for sockets, names in zip(self.sockets, self._names):  # noqa: B905 - there may be none
            for sock, name in zip(sockets, names, strict=True):
                if sock.type == socket.SOCK_DGRAM and not sock.getsockname()[1]:
                    sock.bind(tuple(name))
        return self.sockets

    def obey(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
        """Set *stop* when the parent asks for it, or has gone."""

        def gone() -> None:
            loop.remove_reader(self._control)
            if not stop.is_set():
                log.warning("worker ! the supervisor is gone; the worker ends")
                stop.set()

        loop.add_reader(self._control, gone)  # nothing is ever sent this way, so it is the end
        # Service managers may signal every process as well; a second time means nothing here.
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGINT, stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)  # the parent reloads

    def ready(self, lines: list[str]) -> None:
        """Tell the parent that this process serves; *lines* is what it may tell its user."""
        if self._roots:
            self._follow(asyncio.get_running_loop())
        self._tell(serves=lines)

    def _follow(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell of files now and when more are imported, by a handler for example."""
        if len(sys.modules) != self._modules:
            self._modules = len(sys.modules)
            self._tell(files=sorted(set(_imported(self._roots))))
        loop.call_later(LOOK, self._follow, loop)

    def _tell(self, **news: Sequence[str]) -> None:
        with contextlib.suppress(OSError):  # it has gone, as `obey` sees too
            self._control.sendall(json.dumps(news).encode() + b"\n")


def _imported(roots: Sequence[str]) -> Iterator[str]:
    """Yield the files in *roots* and below that were imported, leaving out what is installed there."""
    for module in tuple(sys.modules.values()):
        file = getattr(module, "__file__", None)
        for root in roots:
            if isinstance(file, str) and (path := Path(file)).is_relative_to(root):
                inner = path.relative_to(root).parts
                if "site-packages" not in inner and "dist-packages" not in inner:
                    yield file


def _inherited(handle: int) -> socket.socket:
    os.set_inheritable(handle, False)
    return socket.socket(fileno=handle)
