"""Echo servers to be measured, ours and by hand, each in a process of its own.

`python -m tests.bench.servers KIND LOOP` prints its port. To each line on its standard input it answers how
many connections it has; at the end of the input it stops.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import importlib
import importlib.util
import itertools
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import attrs

from exproto_app import App, Connection
from exproto_app.core import Channel
from exproto_app.framing import RAW, Framing, Line
from exproto_app.hosts.gateway import Gateway
from exproto_app.models import Address
from exproto_app.ops.incidents import keep_incidents
from exproto_app.ops.metrics import Metrics
from exproto_app.ops.recorder import record
from exproto_app.tap import Event, Tap

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BACKLOG", "LOOPS", "ByHand", "Server", "allow_files", "answer_counts", "run_server"]

LOOPS = ("asyncio", "uvloop") if importlib.util.find_spec("uvloop") else ("asyncio",)

METRICS = "_metrics"
"""What the kind of a server with metrics ends with."""

INSPECTED = "_inspected"
"""Likewise, with an inspector; its port is the second number that it answers."""

BACKLOG = 4096
"""As the gateway's, so that both take a storm of connections alike."""


class ByHand(asyncio.Protocol):
    """What both servers by hand share: nothing is in the way of a read."""

    __slots__ = ("rest", "transport", "write")

    open = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        ByHand.open += 1
        self.transport = cast("asyncio.Transport", transport)
        self.write = self.transport.write
        self.rest = b""

    def connection_lost(self, exc: Exception | None) -> None:
        ByHand.open -= 1


class LineByHand(ByHand):
    """Splits lines and echoes each: the fastest of the ways that were tried to write it."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        lines = (self.rest + data).split(b"\n")
        self.rest = lines[-1]
        lines[-1] = b""
        self.write(b"\n".join(lines))


class RawByHand(ByHand):
    """Echoes each read."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        self.write(data)


def echo(framing: Framing) -> App:
    app = App(framing=framing)

    @app.on_received
    def answer(conn: Connection, frame: bytes) -> bytes:
        return frame

    return app


def look(tap: Tap, now: float, event: Event) -> None:
    """Watch, as cheaply as can be."""


def watched(kind: str) -> App:
    """Return an echo of lines: `none` of its connections is watched any more, or `one` in a hundred is."""
    app = echo(Line())
    numbers = itertools.count()

    @app.on_connect
    def begin(conn: Connection) -> None:
        channel = cast("Channel", conn._verbs)
        if kind == "none" or next(numbers) % 100 == 0:
            channel.watch(look)
        if kind == "none":
            channel.unwatch(look)

    return app


def recorded() -> App:
    """Return an echo of lines, all of which is recorded."""
    app = echo(Line())
    folder = tempfile.mkdtemp(prefix="exproto-app-bench-")
    atexit.register(shutil.rmtree, folder)  # behind the recorder's own farewell
    record(app, Path(folder, "recording"), keep=1)
    return app


def remembered() -> App:
    """Return an echo of lines, whose last events are remembered."""
    app = echo(Line())
    keep_incidents(app, "never-made", "never-loaded")
    return app


APPS: dict[str, Callable[[], App]] = {
    "line": lambda: echo(Line()),
    "raw": lambda: echo(RAW),
    "line_watched_none": lambda: watched("none"),
    "line_watched_one": lambda: watched("one"),
    "line_recorded": recorded,
    "line_incidents": remembered,
}
BY_HAND: dict[str, Callable[[], ByHand]] = {"line_by_hand": LineByHand, "raw_by_hand": RawByHand}


def allow_files() -> None:
    """Have this process open as many files as the system lets it, and its children too."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def serve(kind: str) -> None:
    if kind in BY_HAND:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(BY_HAND[kind], "127.0.0.1", 0, backlog=BACKLOG)
        print(server.sockets[0].getsockname()[1], flush=True)
        await answer_counts(lambda: ByHand.open)
        server.close()
        return
    app = APPS[kind.removesuffix(METRICS).removesuffix(INSPECTED)]()
    async with Gateway(app, ["tcp://127.0.0.1:0"]) as gateway:
        print(gateway.addresses[0][2].port, flush=True)
        metrics = Metrics(app, Address("127.0.0.1", 0)) if kind.endswith(METRICS) else None
        if metrics is not None:
            metrics.start(gateway)
        if kind.endswith(INSPECTED):
            from exproto_app.inspector import Inspector  # noqa: PLC0415 - aiohttp is an extra

            inspector = Inspector(app, Address("127.0.0.1", 0))
            await inspector.start(gateway)
            await answer_counts(lambda: gateway.open, inspector.address.port)
            await inspector.stop()
        else:
            await answer_counts(lambda: gateway.open)
        if metrics is not None:
            metrics.stop()


async def answer_counts(count: Callable[[], object], *others: int) -> None:
    ended = asyncio.Event()

    def asked() -> None:
        if not sys.stdin.readline():
            asyncio.get_running_loop().remove_reader(sys.stdin)
            ended.set()
            return
        gc.collect()  # garbage is no connection's memory
        print(count(), *others, flush=True)

    asyncio.get_running_loop().add_reader(sys.stdin, asked)
    await ended.wait()


@attrs.define(eq=False)
class Server:
    """A server in a process of its own; use it in a `with` block."""

    kind: str
    arguments: tuple[str, ...]
    module: str = __name__
    command: tuple[str, ...] = ()  # instead of Python and the module
    folder: str | None = None  # where it runs
    port: int = 0
    process: subprocess.Popen[str] = attrs.field(init=False)

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [*(self.command or (sys.executable, "-m", self.module, self.kind)), *self.arguments],
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self._line() or 0)
        if not self.port:
            raise RuntimeError(f"the server {self.kind} {' '.join(self.arguments)} didn't start")
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def connections(self) -> int:
        """Ask how many connections it has; what it no longer needs is collected first."""
        return self.ask()[0]

    def ask(self) -> list[int]:
        """Ask for all its numbers, the first of which is that of its connections."""
        if self.process.stdin is None:
            return [0]
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        return [int(word) for word in self._line().split()]

    def cpu(self) -> float:
        """Return the seconds of CPU that it has used, as the operating system counts them."""
        return time.clock_gettime(~self.pid << 3 | 2)  # clock_getcpuclockid(3) for another process

    def peak(self) -> int:
        """Return the bytes that it had in memory when these were most."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(dict(line.split(":", 1) for line in text.splitlines())["VmHWM"].split()[0]) * 1024

    def memory(self) -> int:
        """Return the bytes of memory that are its own alone."""
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        sizes = dict(line.split(":", 1) for line in text.splitlines()[1:])
        private: int = sum(int(sizes[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))
        return private * 1024

    def _line(self) -> str:
        return "" if self.process.stdout is None else self.process.stdout.readline()


def run_server(serve: Callable[[str], Coroutine[Any, Any, None]]) -> None:
    """Serve what the command line names, on the loop that it names."""
    kind, name = sys.argv[1:]
    make: Callable[[], Any] = importlib.import_module(name).new_event_loop
    loop = make()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(serve(kind))
    loop.close()


if __name__ == "__main__":
    run_server(serve)
