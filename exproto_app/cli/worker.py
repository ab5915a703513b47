"""A worker's side of `run --workers`: what its supervisor gave it, and how it answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket

import attrs

__all__ = ["VARIABLE", "Worker"]

log = logging.getLogger("exproto_app")

VARIABLE = "EXPROTO_WORKER"
"""Tells a process that it is a worker: JSON with its number and the handles that it inherits."""


@attrs.define(eq=False)
class Worker:
    """What one of several processes is given: its *number*, from 1, and the *sockets* of each listener."""

    number: int
    sockets: list[list[socket.socket]]
    _control: socket.socket

    @classmethod
    def take(cls) -> Worker | None:
        """Return what a supervisor gave to this process; None where there is none."""
        text = os.environ.pop(VARIABLE, None)  # programs that the app starts are no workers
        if text is None:
            return None
        given = json.loads(text)
        sockets = [[_inherited(handle) for handle in handles] for handles in given["sockets"]]
        return cls(given["number"], sockets, _inherited(given["control"]))

    def obey(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
        """Set *stop* when the supervisor asks for it, or has gone."""

        def gone() -> None:
            loop.remove_reader(self._control)
            if not stop.is_set():
                log.warning("worker ! the supervisor has gone; it ends")
                stop.set()

        loop.add_reader(self._control, gone)  # nothing is ever sent this way, so it is the end
        # Service managers may signal every process as well; a second time means nothing here.
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGINT, stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)  # the supervisor reloads

    def ready(self, lines: list[str]) -> None:
        """Tell the supervisor that this process serves; *lines* is what it may tell its user."""
        with contextlib.suppress(OSError):  # it has gone, as `obey` sees too
            self._control.sendall(json.dumps(lines).encode() + b"\n")


def _inherited(handle: int) -> socket.socket:
    os.set_inheritable(handle, False)
    return socket.socket(fileno=handle)
