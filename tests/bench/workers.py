"""`--workers 2` beside one worker: lines over 100 TCP connections, whose handler works as a parser would.

Run it as `python -m tests.bench workers`. The load generator needs cores too: where the machine has no more
than the workers use, it is the limit, and the line tells the CPU of both. Rounds alternate. The handler
publishes nothing, so that no broker takes part.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING

import attrs

from .figures import show
from .load import Load, Round, load_generator
from .servers import LOOPS

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["main"]

ROUNDS = 5
WINDOW = 4
BAR = 1.6

SATURATED = 1.9
"""Cores that two workers and the load have to have, or something else had them."""

APP = """
import json

from exproto_app import App, Connection
from exproto_app.framing import Line

app = App(framing=Line())


@app.on_received
def parse(conn: Connection, frame: bytes) -> bytes:
    report = {str(place): value for place, value in enumerate(frame)}
    json.loads(json.dumps(report))
    return frame
"""


@attrs.define(eq=False)
class Workers:
    """A gateway with workers; use it in a `with` block."""

    app: Path
    count: int
    port: int = 0
    pids: list[int] = attrs.field(factory=list)
    process: subprocess.Popen[str] = attrs.field(init=False)

    @property
    def pid(self) -> int:
        """The supervisor, whose CPU the load generator may read; that of the workers is `cpu`."""
        return self.process.pid

    def cpu(self) -> float:
        """Return the CPU seconds of all workers."""
        return sum(time.clock_gettime(clock_of(pid)) for pid in self.pids)

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "exproto_app", "run", str(self.app), "--listen", "tcp://127.0.0.1:0"]
        command += ["--workers", str(self.count), "--mqtt", "mqtt://127.0.0.1:9", "--loop", LOOPS[-1]]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lines: list[str] = []
        for line in self.process.stdout or ():
            lines.append(line)
            if "Ctrl-C stops them" in line:
                break
        text = "".join(lines)
        port = re.search(r"tcp://127\.0\.0\.1:(\d+)", text)
        self.pids = [int(pid) for pid in re.findall(r"serves, process (\d+)", text)]
        if port is None or len(self.pids) != self.count:
            raise RuntimeError(text)
        self.port = int(port[1])
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.terminate()
        self.process.communicate(timeout=60)


def clock_of(pid: int) -> int:
    """Return the clock of a process's CPU time, as clock_getcpuclockid(3) makes it on Linux."""
    return (~pid << 3) | 2


@attrs.frozen
class Measured:
    messages: float
    cpu: float
    """The workers' share of one core, together."""
    load_cpu: float


def measure(load: Load, workers: Workers) -> Measured:
    before, start = workers.cpu(), time.monotonic()
    found: Round = load.run(workers, WINDOW)
    return Measured(found.messages, (workers.cpu() - before) / (time.monotonic() - start), found.load_cpu)


def main() -> None:
    if sys.platform != "linux":
        print("workers skipped: they need Linux")
        return
    with (
        load_generator() as load,
        TemporaryDirectory(prefix="exproto-app-bench-") as folder,
        ExitStack() as stack,
    ):
        if load is None:
            print("workers skipped: it needs a C compiler (cc) for its load generator")
            return
        app = Path(folder, "parse.py")
        app.write_text(APP)
        one, two = (stack.enter_context(Workers(app, count)) for count in (1, 2))
        pairs = []
        for number in range(ROUNDS):
            order = (one, two) if number % 2 else (two, one)
            found = {workers.count: measure(load, workers) for workers in order}
            pairs.append((found[1], found[2]))
        tell(pairs)


def tell(pairs: list[tuple[Measured, Measured]]) -> None:
    ratio = statistics.median(double.messages / single.messages for single, double in pairs)
    cost = statistics.median(
        (double.messages / double.cpu) / (single.messages / single.cpu) for single, double in pairs
    )
    cpu = [statistics.median(each.cpu for each in side) for side in zip(*pairs, strict=True)]
    load_cpu = statistics.median(double.load_cpu for _, double in pairs)
    show(
        f"workers.two.{LOOPS[-1]}",
        f"{statistics.median(double.messages for _, double in pairs):.0f}",
        "messages/s",
        ratio=ratio,
        bar=BAR,
        note=f"one={statistics.median(single.messages for single, _ in pairs):.0f} cpu_one={cpu[0]:.0%} "
        f"cpu_two={cpu[1]:.0%} messages_per_cpu={cost:.2f} load_cpu={load_cpu:.0%}"
        + (" NOT-SATURATED" if cpu[1] + load_cpu < SATURATED else ""),
    )


if __name__ == "__main__":
    main()
