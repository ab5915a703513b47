"""Processes that serve the sockets of this one: what `run --workers` and `run --reload` have in common.

Each is the present command once more. Its sockets stay open here, so what waits in them survives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import attrs

from .worker import VARIABLE

__all__ = ["AGAIN", "Child", "Children", "cancel", "how"]

log = logging.getLogger("exproto_app")

AGAIN: Final = (sys.executable, "-m", "exproto_app", *sys.argv[1:])
"""The present command once more."""

NEWS_SIZE: Final = 1_048_576
"""Bytes of what a child tells at once."""


class Children:
    """The processes of *command* that this one has; *name* is theirs in the log."""

    def __init__(self, command: Sequence[str], name: str) -> None:
        self.name = name
        self.alive: set[Child] = set()
        self._command = command
        self._stop = asyncio.Event()

    async def start(
        self,
        number: int | None,
        sockets: list[list[socket.socket]],
        roots: Sequence[str] = (),
        *,
        names: Sequence[Sequence[Any]] = (),
    ) -> Child:
        """Start a process; it learns from its end of a socket pair when this one has gone.

        *number* tells it apart from others, None where there are none; *sockets* has those of each listener,
        *names* the addresses that it is to bind those to that aren't bound. It tells which files it imports
        from the folders *roots*.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        handles = [[sock.fileno() for sock in each] for each in sockets]
        given = {
            "number": number,
            "sockets": handles,
            "control": theirs.fileno(),
            "roots": list(roots),
            "names": names,
        }
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, VARIABLE: json.dumps(given)},
                pass_fds=(theirs.fileno(), *(handle for each in handles for handle in each)),
                start_new_session=True,  # Ctrl-C is for its parent alone
            )
        child = Child(number, process, time.monotonic(), ours)
        self.alive.add(child)

        def ended(_: object) -> None:
            ours.close()
            self.alive.discard(child)

        child.reaper = asyncio.ensure_future(process.wait())
        child.reaper.add_done_callback(ended)
        return child

    async def until_told(
        self,
        work: Coroutine[Any, Any, int],
        stop_timeout: float,
        stopping: Callable[[], None] = lambda: None,
    ) -> int:
        """Do *work* until it ends, or SIGTERM or SIGINT comes; end every child; return the exit code.

        *stopping* is called when the end begins.
        """
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self._asked)
        working = loop.create_task(work)
        stop = loop.create_task(self._stop.wait())
        await asyncio.wait((working, stop), return_when=asyncio.FIRST_COMPLETED)
        stopping()
        code = working.result() if working.done() else 0
        await cancel(working, stop)
        if self.alive:
            log.info("%s = stopping: %d", self.name, len(self.alive))
        await asyncio.gather(*(child.end(stop_timeout) for child in tuple(self.alive)))
        log.info("%s = stopped", self.name)
        return code

    def _asked(self) -> None:
        if self._stop.is_set():  # asked twice: at once
            for child in self.alive:
                child.kill()
            os._exit(1)
        self._stop.set()


@attrs.define(eq=False)
class Child:
    """One process; *started* is a time of `time.monotonic`."""

    number: int | None
    process: asyncio.subprocess.Process
    started: float
    _control: socket.socket
    reaper: asyncio.Future[int] = attrs.field(init=False)
    _data: bytes = b""

    def __str__(self) -> str:
        return "gateway" if self.number is None else f"worker {self.number}"

    async def hear(self) -> dict[str, list[str]] | None:
        """Wait for the next that the process tells (see `Worker`); None where it ends before."""
        loop = asyncio.get_running_loop()
        while b"\n" not in self._data and len(self._data) < NEWS_SIZE:
            more = await loop.sock_recv(self._control, NEWS_SIZE)
            if not more:
                return None
            self._data += more
        line, _, self._data = self._data.partition(b"\n")
        news: dict[str, list[str]] = json.loads(line)
        return news

    async def ready(self) -> list[str] | None:
        """Wait until the process serves and return what it has to tell; None where it ends before."""
        while (news := await self.hear()) is not None:
            if "serves" in news:
                return news["serves"]
        return None

    async def end(self, seconds: float) -> None:
        """Have the process end; kill it when it takes longer than *seconds*."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), seconds)
        except asyncio.TimeoutError:
            log.error("%s ! didn't end within %g s and is killed", self, seconds)  # noqa: TRY400 - its traceback is ours alone
            self.kill()
            await self.process.wait()

    def drain(self) -> None:
        """Have the process let nobody in any more, and end when the last device has gone."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """Kill the process."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()


def how(code: int) -> str:
    """Say how a process ended, by its exit code."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"was killed by signal {-code}"


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel *tasks*, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
