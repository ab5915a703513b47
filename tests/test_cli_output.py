"""Outputs that take nothing more, and standard files that are closed: a sentence, never a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from .test_cli import COMMAND, ECHO

pytestmark = pytest.mark.live

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("routes", ECHO),
        ("decode", ECHO, "6869 0a"),
        ("serve", ECHO, "--print-config"),
        ("run", ECHO, "--listen", "tcp://127.0.0.1:0", "--mqtt-listen", "off"),
    ],
    ids=str,
)
def test_an_output_that_is_full_is_one_sentence(arguments: tuple[object, ...]) -> None:
    with FULL.open("wb") as full:
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert "exproto-app: the output can't be written: no space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system doesn't tell what is open")
def test_no_socket_takes_the_place_of_a_closed_standard_output() -> None:
    options = ("--listen", "tcp://127.0.0.1:0", "--mqtt-listen", "off")
    command = " ".join([*COMMAND, "run", str(ECHO), *options, ">&-"])
    process = subprocess.Popen(["/bin/sh", "-c", f"exec {command}"], stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stderr is not None
        assert "any password is accepted" in process.stderr.readline()
        where = Path(f"/proc/{process.pid}/fd/1").readlink()
        process.send_signal(signal.SIGTERM)
        assert "Traceback" not in process.stderr.read()
        assert process.wait(20) == 0
    assert where == Path(os.devnull)


@pytest.mark.parametrize("arguments", [("decode", ECHO), ("hash-password", "42")], ids=str)
def test_no_standard_input_is_an_empty_one(arguments: tuple[object, ...]) -> None:
    command = " ".join([*COMMAND, *map(str, arguments), "<&-"])
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"), [(("decode", ECHO), "is not hex"), (("hash-password", "42"), "is not UTF-8 text")]
)
def test_bytes_that_are_no_text_are_told(arguments: tuple[object, ...], words: str) -> None:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=b"\xff\xfe\x8e\n",
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert words in done.stderr.decode()
    assert b"Traceback" not in done.stderr
