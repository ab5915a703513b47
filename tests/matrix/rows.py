"""One row of the matrix: its environment is made, the suite runs in it, and its results are read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs

from . import debian
from .steps import Steps

__all__ = ["ROOT", "Result", "Row", "run"]

ROOT: Final = Path(__file__).parents[2]

PACKAGES: Final = (
    *("python3", "python3-venv", "make", "gcc", "libc6-dev", "openssl"),
    *("erlang-base", "erlang-crypto", "mosquitto", "mosquitto-clients"),
)
"""What the suite needs of a Debian; without Chromium, which is larger than all the rest."""

LEFT_OUT: Final = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "dist"
)

FACTS: Final = r"""
. /etc/os-release; echo "$PRETTY_NAME"
"$0" -c 'import platform; print(platform.python_version())'
PATH=$PATH:/usr/local/sbin:/usr/sbin
(mosquitto -h 2>/dev/null || true) | sed -n '1s/.*version //p' | grep . || echo -
erl -noshell -eval 'io:format("~s~n", [erlang:system_info(otp_release)]), halt().' 2>/dev/null || echo -
"""

PASSED_ON: Final = re.compile(r"CI|TERM|LANG|PYTEST_\w+|\w+_proxy|\w+_PROXY|SSL_CERT_FILE|REQUESTS_CA_BUNDLE")
"""Variables of this machine that a Debian in a folder needs too."""


@attrs.frozen
class Row:
    """A system or a Python to run the suite on; *suite*: the Debian, *lowest*: with the oldest packages."""

    name: str
    folder: Path
    python: str
    suite: str = ""
    lowest: bool = False

    @property
    def tree(self) -> Path:
        """The copy of the sources, as this machine sees it."""
        return self.folder / "root/srv/tree" if self.suite else self.folder / "tree"

    def command(self, *command: str, folders: Sequence[Path] = ()) -> list[str]:
        """Return the command that runs *command* in the row's system, in the copy of the sources."""
        if not self.suite:
            return ["env", "-C", str(self.tree), *command]
        return debian.enter(self.folder / "root", ["env", "-C", "/srv/tree", *command], folders=folders)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that its programs get."""
        if self.suite:
            kept = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
            path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            more = {"PATH": path, "HOME": "/root", "EXPROTO_PLUGINS": "/srv/tree/.venv/rabbitmq"}
        else:
            kept = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
            more = {"EXPROTO_PLUGINS": os.environ.get("EXPROTO_PLUGINS", str(ROOT / ".venv/rabbitmq"))}
        if self.lowest:
            more["PIP_CONSTRAINT"] = str(self.folder / "lowest.txt")
        return {**kept, **more}


@attrs.frozen
class Result:
    """What came out of a row: its cells in the table, and the last lines of its log."""

    cells: tuple[str, ...]
    closing: tuple[str, ...]
    failed: bool


def lowest() -> str:
    """Return the lowest versions that pyproject.toml allows users, as pip's constraints."""
    text = (ROOT / "pyproject.toml").read_text()
    users = text[text.index("\ndependencies") : text.index("\ndev = [")]
    return "".join(f"{name}=={version}\n" for name, version in re.findall(r'"([\w.-]+)>=([\w.]+)', users))


def run(row: Row, end: float | None, *, fresh: bool, arguments: Sequence[str]) -> Result:
    """Run the suite on *row*, until *end* on the monotonic clock. Raises `UnavailableError` if it can't."""
    started = time.monotonic()
    if fresh:
        shutil.rmtree(row.folder, ignore_errors=True)
    row.folder.mkdir(parents=True, exist_ok=True)
    log = row.folder / "log"
    log.unlink(missing_ok=True)
    steps = Steps(log, end)
    folders = []
    if row.suite:
        debian.build(row.suite, row.folder / "root", PACKAGES, steps)
        folders = debian.pip_settings(row.folder / "root")
    copy_tree(row.tree)
    (row.folder / "lowest.txt").write_text(lowest())
    steps.must(row.command("make", ".venv/dev", f"PYTHON={row.python}", folders=folders), row.environment)
    if row.suite:
        steps.must(row.command("bash", ".ci/plugins", ".venv/rabbitmq"), row.environment)
    junit = row.tree / ".venv" / "junit.xml"
    junit.unlink(missing_ok=True)
    spread = ["-n", "auto", "--dist", "worksteal"]  # as `make test` has it; -n 0 in *arguments* goes before
    junit_option = f"--junitxml={Path('.venv', 'junit.xml')}"
    options = ["-q", *spread, "-p", "no:cacheprovider", junit_option, *arguments]
    code = steps.run(row.command(".venv/bin/python", "-m", "pytest", *options), row.environment)
    return read(row, junit, log, code, time.monotonic() - started)


def copy_tree(tree: Path) -> None:
    """Make *tree* a copy of the sources as they are; its environment stays."""
    if tree.exists():
        for path in tree.iterdir():
            if path.name == ".venv":
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    shutil.copytree(ROOT, tree, symlinks=True, ignore=LEFT_OUT, dirs_exist_ok=True)


def read(row: Row, junit: Path, log: Path, code: int, seconds: float) -> Result:
    """Return what the run that ended with *code* left behind."""
    facts = subprocess.run(
        row.command("sh", "-c", FACTS, row.python),
        env=row.environment,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()
    facts = [*facts, *["?"] * 4][:4]
    counts = ["-", "-", "-"]
    if junit.is_file():
        suite = ET.parse(junit).getroot().find("testsuite")
        assert suite is not None
        total, failed, errors, skipped = (
            int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")
        )
        counts = [str(total - failed - errors - skipped), str(failed + errors), str(skipped)]
    lines = log.read_text(errors="replace").splitlines()
    told = (
        [line for line in lines if line.startswith(("FAILED ", "ERROR "))] if junit.is_file() else lines[-20:]
    )
    cells = (row.name, *facts, *counts, f"{seconds:.0f}")
    return Result(cells, (*told, *lines[-1:]), bool(code))
