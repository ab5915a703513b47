"""`exproto-app new` and `exproto-app examples`: what a newcomer begins with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from exproto_app.cli import main

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_all_examples_are_listed_with_what_they_are() -> None:
    listed = [line.split(maxsplit=1) for line in run("examples").output.splitlines() if line[:2] == "  "]
    assert [name for name, _ in listed] == EXAMPLES
    assert all(len(words) > 20 for _, words in listed)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_copied_with_what_it_imports(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "a" / "b"
    assert run("examples", name, "--to", folder).exit_code == 0
    copied = {path.stem for path in folder.iterdir()}
    assert copied == ({"trackers", "gt06", "jt808", "teltonika"} if name == "trackers" else {name})
    assert (folder / f"{name}.py").read_bytes() == (ROOT / "examples" / f"{name}.py").read_bytes()


def test_an_example_may_be_named_by_its_file_and_several_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("examples", "examples/modbus_rtu.py", "modbus-rtu", "NMEA").exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"modbus_rtu.py", "nmea.py"}


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "jt808.py").write_text("mine")
    result = run("examples", "trackers", "--to", tmp_path)
    assert (result.exit_code, [path.name for path in tmp_path.iterdir()]) == (2, ["jt808.py"])
    assert result.output == f"exproto-app: {tmp_path}/jt808.py already exists; give another folder by --to\n"


def test_an_example_that_isnt_there_is_told_with_those_that_are() -> None:
    result = run("examples", "gt07")
    assert result.exit_code == 2
    assert result.output.startswith("exproto-app: there is no example 'gt07'; there are coban, dlt645, ")


@pytest.mark.live
def test_a_new_project_passes_its_tests_and_the_linters_checks(tmp_path: Path) -> None:
    folder = tmp_path / "Water-meters"
    assert run("new", folder).output.splitlines()[-1] == f"next: cd {folder}; README.md has the commands"
    for command in (
        ("pytest", "-q", "-p", "no:cacheprovider"),
        ("ruff", "check", "--isolated", "--no-cache", "--select", "E,F,I,B,UP", "--line-length", "100", "."),
        ("ruff", "format", "--isolated", "--no-cache", "--check", "."),
    ):
        done = subprocess.run(
            [sys.executable, "-m", *map(str, command)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("1st", "invalid name '1st': use letters, digits, - and _, and begin with a letter"),
        ("a b", "invalid name 'a b': use letters"),
        ("-", "invalid name '-': use letters"),
        ("json", "json.py would hide 'json', which Python needs; choose another name"),
        ("Class", "class.py would hide 'class', which Python needs"),
        ("exproto-app", "exproto_app.py would hide"),
        (".", "invalid name ''"),
    ],
)
def test_a_name_that_would_make_trouble_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("new", "--", name)
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert result.output.startswith(f"exproto-app: {why}")


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    result = run("new", tmp_path)
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "already exists; choose another name" in result.output
