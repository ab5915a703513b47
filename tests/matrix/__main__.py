"""Run the suite on several systems and Pythons, and print a table of what came out: `make matrix`.

A row is a Python of this machine, the same with the lowest versions that pyproject.toml allows, or a Debian
in a folder of its own (root and debootstrap needed). Each row has a copy of the tree, an environment and a
log in the cache, and is built once. What can't run here is named with the reason, and doesn't fail the
command; tests that fail do, and so does a Python's environment that can't be installed.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from . import debian
from .rows import ROOT, Result, Row, run
from .steps import UnavailableError

PYTHONS: Final = tuple(f"3.{minor}" for minor in range(10, 15))
LOWEST: Final = ("3.10", "3.11")
"""Where the lowest versions are tried: on the oldest Python, and on the oldest that the uplink runs on."""


def interpreter(version: str) -> str | None:
    """Return the path of this machine's Python of *version*, pyenv's too; None if there is none."""
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(":") if folder]
    for path in [folder / name for folder in folders] + sorted(pyenv.glob(f"{version}*/bin/{name}")):
        # A shim of pyenv is a program too; it runs only what was chosen.
        if path.is_file() and "shims" not in path.parts:
            return str(path)
    return None


def rows(cache: Path) -> dict[str, Row | str]:
    """Return every row by name, or the reason why it can't run on this machine."""
    made: dict[str, Row | str] = {}
    for version in PYTHONS:
        path = interpreter(version)
        names = [f"python{version}", *([f"lowest{version}"] if version in LOWEST else [])]
        for name in names:
            made[name] = (
                Row(name, cache / name, path, lowest=name.startswith("lowest"))
                if path
                else f"no Python {version} on this machine"
            )
    lacking = debian.missing()
    for name, suite in debian.SUITES.items():
        made[name] = lacking or Row(name, cache / name, "python3", suite=suite)
    return made


def cached() -> Path:
    """Return the folder that keeps environments and Debians from one run to the next."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("EXPROTO_MATRIX") or Path(base) / "exproto-app" / "matrix")


def table(results: list[Result]) -> str:
    """Return the results as lines, aligned."""
    head = ("row", "system", "Python", "Mosquitto", "OTP", "passed", "failed", "skipped", "seconds")
    lines = [head, *(result.cells for result in results)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def main() -> int:
    """Run the rows that were asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="all where none is given; --list names them")
    parser.add_argument("--list", action="store_true", help="print the rows and what keeps one from running")
    parser.add_argument("--fresh", action="store_true", help="build environments and Debians anew")
    parser.add_argument("--within", type=float, metavar="SECONDS", help="end what isn't done by then")
    parser.add_argument("--tests", default="", metavar="ARGUMENTS", help="for pytest, e.g. 'tests/mqtt -x'")
    given = parser.parse_args()
    cache = cached()
    known = rows(cache)
    unknown = [name for name in given.rows if name not in known]
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(known)}")
    if given.list:
        for name, row in known.items():
            print(f"{name}: {row}" if isinstance(row, str) else name)
        return 0
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        claim(lock.fileno(), cache)
        chosen = {name: known[name] for name in given.rows or known}
        return work_off(
            chosen,
            lambda row, end: run(row, end, fresh=given.fresh, arguments=shlex.split(given.tests)),
            given.within,
        )


def claim(lock: int, cache: Path) -> None:
    """Wait until no other run uses the *cache*."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another run in {cache}", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def work_off(
    chosen: dict[str, Row | str], run_one: Callable[[Row, float | None], Result], within: float | None
) -> int:
    """Run the rows one after another, print what came out; return the exit code."""
    end = None if within is None else time.monotonic() + within
    results, skipped, broken = [], {}, False
    for name, row in chosen.items():
        if isinstance(row, str):
            skipped[name] = row
            continue
        print(f"--- {name}: log in {row.folder / 'log'}", flush=True)
        try:
            result = run_one(row, end)
        except UnavailableError as error:
            skipped[name] = str(error)
            broken = broken or not row.suite  # a mirror that is away is no fault of ours
            print(f"NOT RUN: {error}", flush=True)
            continue
        results.append(result)
        print(*result.closing, sep="\n", flush=True)
    print(f"\n{table(results)}")
    for name, reason in skipped.items():
        print(f"NOT RUN: {name}: {reason}")
    return int(broken or any(result.failed for result in results))


if __name__ == "__main__":
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended with it
    sys.exit(main())
