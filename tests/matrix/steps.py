"""The commands of one row, one after another, what they print in its log."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

__all__ = ["Steps", "UnavailableError"]


class UnavailableError(Exception):
    """A row can't run on this machine, or not now; the words say why."""


@attrs.frozen
class Steps:
    """Runs commands with their output in *log*, none beyond *end* on the monotonic clock."""

    log: Path
    end: float | None

    def run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
        """Run *command*, and return its exit code. Raises `UnavailableError` when time is out."""
        told = shlex.join(command[-8:])
        with self.log.open("a") as file:
            file.write(f"$ {told}\n")
            file.flush()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            try:
                return process.wait(None if self.end is None else max(self.end - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                raise UnavailableError(f"out of time, ended: {told}") from None
            finally:
                # Also what it started and left behind, on Ctrl-C too.
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def must(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Run *command*. Raises `UnavailableError` also when it fails."""
        code = self.run(command, environment)
        if code:
            lines = ["", *self.log.read_text(errors="replace").splitlines()[-8:]]
            raise UnavailableError(f"{shlex.join(command[-8:])} ended with {code}:" + "\n    ".join(lines))
