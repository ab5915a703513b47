"""The load generator: `load.c`, compiled where it is needed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import attrs

__all__ = ["Load", "Measured", "Round", "load_generator"]

SOURCE = Path(__file__).with_name("load.c")


class Measured(Protocol):
    """A server: the port that it serves, and the process whose CPU counts."""

    @property
    def port(self) -> int: ...
    @property
    def pid(self) -> int: ...


@attrs.frozen
class Round:
    """What one round found: rates are a second, times are CPU."""

    messages: float
    cpu: float
    """The server's share of a core, 1 while it never rests."""
    load_cpu: float

    @property
    def microseconds(self) -> float:
        """The server's CPU time for a message."""
        return self.cpu / self.messages * 1e6


@attrs.frozen
class Load:
    """The compiled program; *seconds* measured after *warmup*."""

    program: Path
    connections: int = 100
    warmup: float = 0.2
    seconds: float = 1.0

    def run(self, server: Measured, window: int) -> Round:
        """Keep *window* lines outstanding on each connection to *server*."""
        numbers = (server.port, server.pid, self.connections, window, self.warmup, self.seconds)
        done = subprocess.run(
            [self.program, "127.0.0.1", *map(str, numbers)],
            check=False,
            capture_output=True,
            text=True,
            timeout=self.seconds + 30,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        count, took, server_cpu, own_cpu = map(float, done.stdout.split())
        return Round(count / took, server_cpu / took, own_cpu / took)


@contextmanager
def load_generator(**options: float) -> Iterator[Load | None]:
    """Compile the load generator for the length of a block; None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        yield None
        return
    with TemporaryDirectory(prefix="exproto-app-bench-") as folder:
        program = Path(folder, "load")
        subprocess.run([compiler, "-O2", "-Wall", "-o", program, SOURCE], check=True)
        yield Load(program, **options)  # type: ignore[arg-type] # each option is a number of Load's
