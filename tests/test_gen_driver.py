"""`exproto-app gen-driver`: what it writes, what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .test_cli import ECHO, FLEET, run

pytestmark = pytest.mark.live


def texts(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.suffix == ".py"
    }


def test_it_writes_a_module_a_protocol_and_the_brokers_configuration(tmp_path: Path) -> None:
    code, out, err = run("gen-driver", FLEET, "--out", tmp_path)
    assert code == 0, err
    assert set(texts(tmp_path)) == {
        "exproto_tracker.py",
        "exproto_meter.py",
        "sitecustomize.py",
        "exproto_app_loop/erlport/__init__.py",
        "exproto_app_loop/erlport/cli.py",
    }
    assert out.splitlines() == [
        "exproto.listener.tracker = tcp://0.0.0.0:7993",
        "exproto.listener.tracker.driver = python3",
        f"exproto.listener.tracker.driver_search_path = {tmp_path}",
        "exproto.listener.tracker.driver_callback_module = exproto_tracker",
        "exproto.listener.meter = tcp://0.0.0.0:7994",
        "exproto.listener.meter.driver = python3",
        f"exproto.listener.meter.driver_search_path = {tmp_path}",
        "exproto.listener.meter.driver_callback_module = exproto_meter",
    ]


def test_protocols_that_share_a_listener_are_one_module(tmp_path: Path) -> None:
    options = ("--protocol", "meter,tracker", "--record", tmp_path / "field.jsonl")
    code, out, err = run("gen-driver", FLEET, "--out", tmp_path, *options)
    assert code == 0, err
    assert "exproto.listener.meter_tracker = tcp://0.0.0.0:7993" in out
    assert "driver_callback_module = exproto_meter_tracker" in out
    assert "protocol='meter,tracker'" in texts(tmp_path)["exproto_meter_tracker.py"]


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    run("gen-driver", ECHO, "--out", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.py")}
    code, _, err = run("gen-driver", ECHO, "--out", tmp_path)
    assert code == 0
    assert err.count("unchanged: ") == len(before)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.py")} == before


def test_names(tmp_path: Path) -> None:
    code, out, _ = run("gen-driver", FLEET, "--out", tmp_path, "--protocol", "meter", "--module", "my_meter")
    assert code == 0
    assert "driver_callback_module = my_meter" in out
    assert "exproto_tracker.py" not in texts(tmp_path)


def test_files_of_others_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("mine = True\n")
    code, _, err = run("gen-driver", ECHO, "--out", tmp_path)
    assert code == 2
    assert "sitecustomize.py was not written by gen-driver; choose another --out, or say --force" in err
    assert set(texts(tmp_path)) == {"sitecustomize.py"}
    assert run("gen-driver", ECHO, "--out", tmp_path, "--force")[0] == 0


STOCK = "from exproto_app import App\napp = App()\n"


@pytest.mark.parametrize(
    ("app", "words"),
    [
        ("@app.on_received\nasync def f(conn, frame): ...", "runs no async handler such as f"),
        ("@app.on_received(blocking=True)\ndef f(conn, frame): ...", "no threads for f"),
        ("@app.every(1)\ndef f(conn): ...", "no timers for f"),
        ("@app.on_timeout\ndef f(conn): ...", "no timers for f"),
        (
            "@app.on_connect\ndef g(conn): ...\n@app.on_startup\nasync def f(): ...",
            "no async handler such as f",
        ),
    ],
)
def test_stock_refuses_what_the_brokers_loop_cant_do(tmp_path: Path, app: str, words: str) -> None:
    (tmp_path / "t.py").write_text(STOCK + app + "\n")
    code, _, err = run("gen-driver", tmp_path / "t.py", "--out", tmp_path / "out", "--stock")
    assert code == 2
    assert words in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--protocol", "nope"), "serves no protocol 'nope'; it serves default"),
        (("--protocol", "default,default"), "'default,default' has a protocol twice"),
        (("--module", "With-Dash"), "can't be an Erlang atom and a Python module"),
        (("--module", "os"), "'os' is a Python module already; choose another name"),
        (("--python", "no-such-python"), "no-such-python can't be started as a Python"),
        (("--stock", "--acl"), "leave one of them out"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    code, _, err = run("gen-driver", ECHO, "--out", tmp_path, *arguments)
    assert code == 2
    assert words in err
    assert "Traceback" not in err


def test_a_folder_that_cant_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = run("gen-driver", ECHO, "--out", tmp_path / "file" / "drivers")
    assert code == 2
    assert "can't be written: not a directory; choose another --out" in err
    assert err.count("\n") == 1


def test_a_python_of_another_version_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "python3"
    other.write_text("#!/bin/sh\necho '[3, 8, \"/usr/bin/python3\"]'\n")
    other.chmod(0o755)
    code, _, err = run("gen-driver", ECHO, "--out", tmp_path / "out", "--python", other)
    assert code == 2
    assert "is Python 3.8, but exproto-app is installed for 3." in err


def test_check(tmp_path: Path) -> None:
    code, out, _ = run("gen-driver", ECHO, "--out", tmp_path, "--check")
    assert code == 1
    assert "exproto_default.py: missing; run gen-driver again" in out
    run("gen-driver", ECHO, "--out", tmp_path)
    code, out, err = run("gen-driver", ECHO, "--out", tmp_path, "--check", "--python", sys.executable)
    assert (code, err) == (0, "")
    assert "import exproto_default" in out
    (tmp_path / "exproto_default.py").write_text("broken")
    code, out, err = run("gen-driver", ECHO, "--out", tmp_path, "--check", "--python", sys.executable)
    assert code == 1
    assert "differs from what would be written now" in out
    assert "2 of the checks failed" in err


def test_check_of_the_brokers_own_loop(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text(STOCK + "@app.on_received\ndef f(conn, frame): ...\n")
    out = ("--out", tmp_path / "out", "--stock", "--python", sys.executable)
    assert run("gen-driver", tmp_path / "t.py", *out)[0] == 0
    code, text, _ = run("gen-driver", tmp_path / "t.py", *out, "--check")
    assert code == 0
    assert "import exproto_default: only the broker can" in text


def start(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(folder), **more},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        input="",
    )


def test_the_sitecustomize_leaves_other_processes_and_others_of_its_kind_alone(tmp_path: Path) -> None:
    run("gen-driver", ECHO, "--out", tmp_path / "driver")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sitecustomize.py").write_text("import sys; sys.other = 'ran'\n")
    path = f"{tmp_path / 'driver'}{os.pathsep}{tmp_path / 'other'}"
    done = start(
        tmp_path, "-c", "import sys; print(sys.other, 'exproto_app' in sys.modules)", PYTHONPATH=path
    )
    assert done.stdout == "ran False\n", done.stderr
    # In the broker's process it puts our loop in front, which ends with its standard input.
    done = start(tmp_path, "-u", "-m", "erlport.cli", "--packet=4", "--use_stdio", PYTHONPATH=path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
