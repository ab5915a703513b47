"""The README's code is run as it stands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from exproto_app.recorder import Recorder
from exproto_app.target import load
from exproto_app.testing import TestClient

from .devices import GT06

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
WALK = re.findall(r"^## A device from a hex dump\n.*?(?=^## )", README, re.DOTALL | re.MULTILINE)[0]
REST = README.replace(WALK, "")
BLOCKS = re.findall(r"```python\n(.*?)```", REST, re.DOTALL)


def test_the_hello_world_is_the_echo_example() -> None:
    example = (ROOT / "examples" / "echo.py").read_text()
    code = example[example.index("from exproto_app") :]
    assert BLOCKS[0].split() == code.split()


def test_every_block_runs_on_what_stands_above_it() -> None:
    names: dict[str, object] = {"__name__": "readme"}
    hello, protocols, sniffing, framings, own_framing, codec, testing = BLOCKS
    exec(compile(hello, "README.md", "exec"), names)
    exec(compile(testing, "README.md", "exec"), names)
    test = names["test_echo"]
    assert callable(test)
    test()
    for block in (protocols, sniffing, framings, own_framing, codec):
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.live
def test_the_walk_from_a_hex_dump_to_a_device_is_true(tmp_path: Path) -> None:
    """Its files are written and its commands run in their order; they print what it says they print."""
    printed = ""
    script, test = tmp_path / "tracker.py", tmp_path / "test_tracker.py"
    for language, text in re.findall(r"```(\w*)\n(.*?)```", WALK, re.DOTALL):
        if language == "sh":
            printed = _run(tmp_path, *shlex.split(text))
        elif not language:
            assert printed == text
        elif "def test_" in text:
            test.write_text(text)
        else:
            added = script.read_text() + "\n\n" if text.startswith("@app") else ""
            script.write_text(added + text)
    _speak(script, tmp_path / "field.jsonl")
    assert "1 passed" in _run(tmp_path, "pytest", "-q", str(test))


def _run(folder: Path, program: str, *arguments: str) -> str:
    module = program.replace("-", "_")
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


def _speak(script: Path, recording: Path) -> None:
    """Have a tracker log in, send its status and answer a command, and record it."""
    app = load(str(script))
    recorder = Recorder(recording)
    app.watch(recorder)
    with TestClient(app) as client:
        for step in (GT06.login, GT06.steps[0], *GT06.commands):
            if step.command is not None:
                client.deliver(*step.command)
                assert client.recv() == step.asked
            client.send(step.sends)
            assert client.recv() == step.answer
        assert client.published[-1].payload == b"DYD=Success!"
    app.unwatch(recorder)
    recorder.close()
