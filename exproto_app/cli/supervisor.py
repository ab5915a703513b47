"""`run --workers`: one process that keeps the listeners, and others that serve them.

Each worker is this same command in a slot of its own. A slot's sockets stay open here, so what waits in them
survives a reload. When a worker dies while others serve, its sockets are closed at once: the kernel would go
on giving them a share of the devices, and nobody would serve those. Who waited there is refused, and finds a
worker when it comes back. The successor's socket for datagrams joins the others when it serves. Where no
other worker serves, devices wait for the successor.

It comes within a tenth of a second at first, then after growing pauses up to 10 s. An app that is broken from
the start is told once, and ends the whole with its exit code; one that a reload finds broken leaves the old
workers where they are, and the log says why. Options of the command line stay as they were. Workers whose
supervisor is gone end by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Final

import click

from ..errors import SetupError
from ..hosts.gateway import Listen
from ..hosts.gateway.sockets import share, share_again
from ..ops.backoff import Backoff
from ..ops.service_manager import ServiceManager
from .children import AGAIN, Child, Children, cancel, how

__all__ = ["Supervisor", "supervise"]

log = logging.getLogger("exproto_app")

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0
"""Seconds until a worker that died is replaced, doubled each time; the slot's devices wait meanwhile."""

STEADY: Final = 30.0
"""Seconds that a worker has to serve until its slot's pauses begin anew."""

ATTEMPTS: Final = 5
"""Starts in a row without success after which the whole ends, if no other worker serves either."""


def supervise(listens: Sequence[Listen], workers: int, manager: ServiceManager) -> int:
    """Run *workers* processes on *listens* until told to stop; return the exit code. Raises `SetupError`.

    *manager* is told when they serve.
    """
    if sys.platform != "linux":
        raise SetupError("--workers needs Linux, whose kernel spreads connections over processes")
    shares = [share(listen, workers) for listen in listens]
    slots = [[each[slot] for each in shares] for slot in range(workers)]
    return asyncio.run(Supervisor(AGAIN, slots, manager=manager).run())


class Supervisor:
    """Keeps a process of *command* in each slot; *slots* has, for each, the sockets of every listener.

    *start_timeout*: seconds until a new process has to serve; *stop_timeout*: seconds until one that was told
    to end is killed.
    """

    def __init__(
        self,
        command: Sequence[str],
        slots: Sequence[list[list[socket.socket]]],
        *,
        start_timeout: float = 60.0,
        stop_timeout: float = 30.0,
        manager: ServiceManager | None = None,
    ) -> None:
        self.manager = manager or ServiceManager()
        self.children = Children(command, "workers")
        self.start_timeout = start_timeout
        self.stop_timeout = stop_timeout
        self._slots = [Slot(self, number, sockets) for number, sockets in enumerate(slots, 1)]
        self._reload = asyncio.Event()
        self.draining = False

    @property
    def serving(self) -> int:
        """How many slots have a process that serves."""
        return sum(slot.child is not None for slot in self._slots)

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT, reload at SIGHUP, drain at SIGUSR1; return the exit code."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        loop.add_signal_handler(signal.SIGUSR1, self._drain)
        return await self.children.until_told(self._work(), self.stop_timeout, self.manager.stopping)

    async def _work(self) -> int:
        """Start every worker and keep them; return an exit code when that can't be."""
        first, *others = self._slots
        # The first one alone, so that what is wrong with the app is told once.
        if not await first.begin():
            return first.code
        await asyncio.gather(*(slot.begin() for slot in others))
        for line in first.lines:
            click.echo(line)
        click.echo(
            f"{self.serving} of {len(self._slots)} workers serve; Ctrl-C stops them, SIGHUP reloads them"
        )
        self.manager.ready()
        self.manager.watch(asyncio.get_running_loop())
        tasks = [asyncio.ensure_future(slot.keep()) for slot in self._slots]
        reloads = asyncio.ensure_future(self._reload_when_asked())
        try:
            done, _ = await asyncio.wait((*tasks, reloads), return_when=asyncio.FIRST_COMPLETED)
            if self.draining:
                await asyncio.wait(tasks)
                log.info("workers = drained")
                return 0
            code = done.pop().result()
            log.error("workers ! no worker can be started any more")
            return code
        finally:
            await cancel(*tasks, reloads)

    def _drain(self) -> None:
        """Have no worker let anybody in any more, and start none; the whole ends with the last of them."""
        if not self.draining:
            self.draining = True
            self.manager.draining()
            log.info("workers = draining")
            for slot in self._slots:
                slot.drain()

    async def _reload_when_asked(self) -> int:
        while True:
            await self._reload.wait()
            self._reload.clear()
            log.info("workers = reloading one by one")
            self.manager.reloading()
            for slot in self._slots:
                if self.draining:
                    return 0
                if not await slot.replace():
                    log.error(
                        "workers ! worker %d and those after it are not reloaded; the old ones keep serving",
                        slot.number,
                    )
                    break
            else:
                log.info("workers = reloaded")
            self.manager.ready()


class Slot:
    """One worker's place: the sockets that it serves, which outlive it, and the process in it."""

    def __init__(self, supervisor: Supervisor, number: int, sockets: list[list[socket.socket]]) -> None:
        self.number = number
        self.child: Child | None = None
        self.lines: list[str] = []
        self.code = 1
        self._supervisor = supervisor
        self._sockets = sockets
        self._names = [[(sock.family, sock.type, sock.getsockname()) for sock in each] for each in sockets]
        self._addresses = [[address for _, _, address in each] for each in self._names]
        self._lock = asyncio.Lock()
        self._hurry = asyncio.Event()
        self._why = ""
        self._backoff = Backoff(FIRST_PAUSE, LONGEST_PAUSE, STEADY)
        self._failed = 0

    async def begin(self) -> bool:
        """Start the slot's first process; return whether it serves."""
        self._serve_with(await self._start())
        return self.child is not None

    async def keep(self) -> int:
        """Replace each process that dies; return an exit code when none comes up in any slot any more."""
        while not (self._supervisor.draining and self.child is None):
            child, lasted = self.child, 0.0
            if child is not None:
                self._why = how(await child.process.wait())
                if self.child is not child:  # a reload has replaced it
                    continue
                if self._supervisor.draining:
                    break
                self.child, self._failed = None, 0
                self._leave()
                lasted = time.monotonic() - child.started
            elif self._failed >= ATTEMPTS and not self._supervisor.serving:
                return self.code
            await self._pause(lasted)
            async with self._lock:
                if self.child is None and not self._supervisor.draining:
                    self._serve_with(await self._start())
        return 0

    def drain(self) -> None:
        """Let nobody in any more here; whoever is connected goes by and by."""
        for sockets in self._sockets:
            for sock in sockets:
                sock.close()
        self._hurry.set()
        if self.child is not None:
            self.child.drain()

    def _serve_with(self, child: Child | None) -> None:
        """Have *child* be the process of this slot; it drains where that was asked for meanwhile."""
        self.child = child
        if child is not None and self._supervisor.draining:
            child.drain()

    async def replace(self) -> bool:
        """Start another process, then end the one that serves; return whether it came to that."""
        if self.child is None:
            self._hurry.set()
            return True
        async with self._lock:
            new = await self._start()
            if new is None:
                log.error("worker %d ! its replacement %s; the old one keeps serving", self.number, self._why)
                return False
            old = self.child
            self._serve_with(new)
        if old is not None:
            await old.end(self._supervisor.stop_timeout)
        return True

    async def _pause(self, lasted: float) -> None:
        pause = self._backoff.wait(lasted)
        log.warning("worker %d ! %s; another starts in %.1f s", self.number, self._why, pause)
        self._hurry.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), pause)

    async def _start(self) -> Child | None:
        """Start a process; return it when it serves, or None where it ended before."""
        supervisor = self._supervisor
        self._join()
        child = await supervisor.children.start(self.number, self._sockets, names=self._addresses)
        try:
            lines = await asyncio.wait_for(child.ready(), supervisor.start_timeout)
        except asyncio.TimeoutError:
            child.kill()
            await child.process.wait()
            self._why = f"didn't serve within {supervisor.start_timeout:g} s and was killed"
            self.code = 1
            log.error("worker %d ! %s", self.number, self._why)  # noqa: TRY400 - its traceback is ours alone
        else:
            if lines is not None:
                self._failed, self.lines = 0, lines
                log.info("worker %d = serves, process %d", self.number, child.process.pid)
                return child
            code = await child.process.wait()
            self._why = f"{how(code)} before it served"
            self.code = max(code, 1)
            if code <= 0:  # else it has told why
                log.error("worker %d ! %s", self.number, self._why)
        self._failed += 1
        if self.child is None:
            self._leave()
        return None

    def _leave(self) -> None:
        """Close the sockets, if others serve what would come to them."""
        if not self._supervisor.serving:
            return
        for sockets in self._sockets:
            for sock in sockets:
                if sock.family != getattr(socket, "AF_UNIX", None):  # whose queue the others have too
                    sock.close()

    def _join(self) -> None:
        """Open the sockets that were closed."""
        for sockets, names in zip(self._sockets, self._names, strict=True):
            for number, sock in enumerate(sockets):
                if sock.fileno() < 0:
                    sockets[number] = share_again(*names[number])
