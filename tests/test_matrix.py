"""The matrix: what it takes from this machine and from pyproject.toml, without running anything."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import pytest
import yaml

from .matrix import debian
from .matrix.__main__ import interpreter, rows, table
from .matrix.rows import ROOT, Result, Row, lowest
from .matrix.steps import Steps, UnavailableError


@pytest.mark.parametrize(
    ("name", "text", "mirror"),
    [
        (
            "sources.list",
            "# deb http://old/debian x main\ndeb http://near/debian/ bookworm main\n",
            "http://near/debian",
        ),
        (
            "sources.list",
            "deb [signed-by=/k.gpg] https://near/a/debian trixie main\n",
            "https://near/a/debian",
        ),
        (
            "sources.list.d/debian.sources",
            "Types: deb\nURIs: http://near/debian\nSuites: trixie\n",
            "http://near/debian",
        ),
        ("sources.list.d/other.list", "deb https://other/ubuntu noble main\n", debian.MIRROR),
        ("sources.list.d/security.sources", "URIs: http://near/debian-security\n", debian.MIRROR),
        ("sources.list.d/debian.list.save", "deb http://old/debian x main\n", debian.MIRROR),
    ],
)
def test_the_mirror_is_the_one_of_this_machine(tmp_path: Path, name: str, text: str, mirror: str) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / name).write_text(text)
    assert debian.mirror(tmp_path) == mirror


def test_the_lowest_versions_are_those_that_users_are_allowed() -> None:
    """Each bound outside of the dev extra is a constraint; tools that only we use are no part of it."""
    pinned = dict(line.split("==") for line in lowest().splitlines())
    assert {"attrs", "click", "emqx-erlport", "aiohttp", "mqtt5", "protobuf", "hpack"} <= pinned.keys()
    assert not {"pytest", "mypy", "hatchling"} & pinned.keys()
    assert all(re.fullmatch(r"\d+(\.\d+)*", version) for version in pinned.values())


@pytest.mark.live
def test_every_row_has_its_folder_or_a_reason(tmp_path: Path) -> None:
    made = rows(tmp_path)
    assert {"python3.10", "python3.14", "lowest3.10", "debian12", "debian13", "debian14"} <= made.keys()
    for name, row in made.items():
        if isinstance(row, Row):
            assert row.folder == tmp_path / name
        else:
            assert row


def test_a_python_that_is_not_here_is_none() -> None:
    assert interpreter("3.99") is None


def test_the_table_is_aligned() -> None:
    cells = ("debian14", "Debian", "3.14.1", "2.1.2", "29", "3200", "0", "33", "412")
    lines = table([Result(cells, (), failed=False)]).splitlines()
    assert [lines[0].index("Python"), lines[0].index("OTP")] == [lines[1].index("3.14"), lines[1].index("29")]


@pytest.mark.live
def test_what_takes_too_long_is_ended_with_all_it_started(tmp_path: Path) -> None:
    """Both hold the pipe, so it reads as ended when both are gone."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    command = ["sh", "-c", 'exec 3>"$0"; echo started >&3; sleep 600 & sleep 600', str(tmp_path / "pipe")]
    with pytest.raises(UnavailableError, match="out of time, ended: "):
        Steps(tmp_path / "log", time.monotonic() + 1).run(command)
    os.set_blocking(reader, True)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() in {b"started\n", b""}  # nothing where the machine is too busy to have begun


@pytest.mark.live
def test_a_step_that_must_succeed_says_what_it_printed(tmp_path: Path) -> None:
    steps = Steps(tmp_path / "log", None)
    with pytest.raises(UnavailableError, match=r"(?s)ended with 3.*no mirror"):
        steps.must([sys.executable, "-c", "print('no mirror'); raise SystemExit(3)"])


def test_the_hooks_run_what_make_check_runs() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook["entry"].removeprefix("make ") for hook in repo["hooks"]]
    found = re.search(r"^check: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found
    assert found[1].split() == hooks
