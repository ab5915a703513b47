"""A program that a test runs, with its log: waiting for a line of it is how tests wait for what it does."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Sequence
from signal import SIGCONT, SIGKILL, SIGTERM, Signals
from typing import IO, Final

__all__ = ["PATIENCE", "Process"]

PATIENCE: Final = 60.0
"""Seconds until a wait is given up."""


class Process:
    """A program that runs; what it writes, to either output, is its log."""

    def __init__(self, command: Sequence[str]) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The number that the system knows it by."""
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether it hasn't ended."""
        return self._process.poll() is None

    def signal(self, number: Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def wait_for(self, text: str) -> str:
        """Wait for a line of the log that has *text* in it, and return the line."""

        def found() -> str | None:
            return next((line for line in self.lines if text in line), None)

        with self._news:
            self._news.wait_for(lambda: found() or self._ended, PATIENCE)
            line = found()
        assert line is not None, "\n".join((f"nothing was said of {text!r}:", *self.lines))
        return line

    def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        code = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def end(self, number: Signals = SIGTERM) -> int:
        """Have it end, paused or not, and return its exit code."""
        self.signal(number)
        if number is not SIGKILL:
            self.signal(SIGCONT)
        return self.wait()

    def _read(self, output: IO[str]) -> None:
        with output:
            for line in output:
                with self._news:
                    self.lines.append(line.rstrip())
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()
