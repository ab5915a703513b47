"""Incidents: what failed is kept as a recording and a test that fails as long as the app does."""

from __future__ import annotations

import logging
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from exproto_app.ops.incidents import ALIKE, MOST, ROOM, Incidents, keep_incidents
from exproto_app.tap import Closed, Failed, Opened, Received, Tap
from exproto_app.target import load
from exproto_app.testing import TestClient, failures

from .test_cli import gateway, port_of
from .test_recording import INFO

APP = """
from exproto_app import App, Connection
from exproto_app.framing import Line

app = App(framing=Line(limit=100))


@app.on_received(b"login ")
def login(conn: Connection, frame: bytes) -> bytes:
    _, name, password = frame.split()
    conn.register(name.decode(), password=password.decode())
    return b"welcome"


@app.on_received
def number(conn: Connection, frame: bytes) -> bytes:
    return b"%d" % int(frame)


@app.on_terminated
def gone(conn: Connection, reason: str) -> None:
    if reason == "terminated":
        raise RuntimeError("it has gone")


@app.on_received(b"child ")
def child(conn: Connection, frame: bytes) -> None:
    conn.child(frame[6:].decode()).subscribe("commands")


@app.on_received(b"bye")
def bye(conn: Connection, frame: bytes) -> None:
    conn.terminate()


@app.child.on_deliver
def deliver(conn: Connection, message: object) -> bytes:
    raise LookupError("no such command")
"""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "numbers.py"
    path.write_text(APP)
    return path


class Folder:
    """An app whose incidents go to *path*."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.parent / "incidents"
        self.app = load(str(target))
        self.incidents = keep_incidents(self.app, self.path, str(target))

    def close(self) -> list[Path]:
        """Return the recordings that were written."""
        self.app.unwatch(self.incidents)
        self.incidents.close()
        return sorted(self.path.glob("*.jsonl"))

    def device(self) -> TestClient:
        return TestClient(self.app, raise_errors=False)


def failing(recording: Path, target: Path) -> list[str]:
    """Return what fails when *recording* is replayed."""
    return failures(load(str(target)), recording)


@pytest.mark.live
def test_a_handler_that_fails_leaves_a_recording_and_a_test_that_fails_until_it_is_mended(
    target: Path,
) -> None:
    folder = Folder(target)
    with folder.device() as device:
        device.send(b"login 42 s3cret\n1\n2\nthree\n")
    (recording,) = folder.close()
    (test,) = folder.path.glob("test_*.py")
    assert failing(recording, target) == [
        "number failed: ValueError: invalid literal for int() with base 10: b'three'"
    ]
    assert "1/default/42: number: ValueError: invalid literal" in test.read_text()
    assert b"s3cret".hex() not in recording.read_text()
    assert {stat.S_IMODE(path.stat().st_mode) for path in (recording, test)} == {0o600}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)]
    failed = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.path)
    assert failed.returncode == 1
    assert "number failed: ValueError" in failed.stdout
    target.write_text(APP.replace("int(frame)", "(int(frame) if frame.isdigit() else 0)"))
    passed = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.path)
    assert passed.returncode == 0, passed.stdout


def test_a_framing_that_fails_is_an_incident(target: Path) -> None:
    folder = Folder(target)
    with folder.device() as device:
        device.send(b"1\n" + b"x" * 200)
    (recording,) = folder.close()
    (failure,) = failing(recording, target)
    assert failure.startswith("framing failed: FramingError")


def test_what_fails_when_a_connection_has_ended_is_not_missed(target: Path) -> None:
    folder = Folder(target)
    with folder.device() as device:
        device.send(b"1\nbye\n")
    (recording,) = folder.close()
    assert failing(recording, target) == ["gone failed: RuntimeError: it has gone"]


def test_a_connection_that_goes_well_leaves_nothing(target: Path) -> None:
    folder = Folder(target)
    with folder.device() as device:
        device.send(b"1\n2\n")
        assert device.recv() == b"1\n2\n"
    assert folder.close() == []
    assert not folder.path.exists()


def test_a_connection_that_is_lost_is_an_incident(target: Path) -> None:
    folder = Folder(target)
    tap = Tap("1", "default", time=lambda: 1.0, masks=(), broken=lambda _: None)
    tap.add(folder.incidents, Opened(INFO))
    tap.show(Received(b"1\n"))
    tap.show(Closed("lost", "reset by peer"))
    (recording,) = folder.close()
    assert '"reason":"lost"' in recording.read_text()
    assert failing(recording, target) == []


def test_the_handler_of_a_child_fails_with_the_bytes_of_its_line(target: Path) -> None:
    folder = Folder(target)
    with folder.device() as device:
        device.send(b"login 1 x\nchild meter\n")
        device.publish("commands", b"on")
    (recording,) = folder.close()
    assert failing(recording, target) == ["deliver failed: LookupError: no such command"]


def test_a_busy_connection_is_remembered_in_bounded_bytes_and_replays_from_where_it_was_cut(
    target: Path,
) -> None:
    folder = Folder(target)
    with folder.device() as device:
        for number in range(5_000):
            device.send(b"%d\n" % number)
        device.send(b"three\n")
    (recording,) = folder.close()
    assert recording.stat().st_size < 4 * ROOM
    assert '"late":true' in recording.read_text()
    assert len(failing(recording, target)) == 1


def test_what_is_too_large_is_counted_not_remembered(target: Path) -> None:
    folder = Folder(target)
    tap = Tap("1", "default", time=lambda: 1.0, masks=(), broken=lambda _: None)
    tap.add(folder.incidents, Opened(INFO))
    tap.show(Received(b"1" * 10**6))
    tap.show(Failed("number", ValueError("too large")))
    (recording,) = folder.close()
    assert '"event":"dropped","what":"bytes","count":1000000' in recording.read_text()


def test_what_is_alike_is_written_three_times_then_counted(
    target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = Folder(target)
    for number in range(ALIKE + 4):
        with folder.device() as device:
            device.send(b"number %d\n" % number)
    assert len(folder.close()) == ALIKE
    assert "incidents = 4 like others weren't written" in caplog.messages


def test_a_folder_takes_a_hundred(target: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = Folder(target)
    folder.path.mkdir()
    for number in range(MOST):
        (folder.path / f"test_{number}.py").touch()
    with folder.device() as device:
        device.send(b"three\n")
    assert folder.close() == []
    (message,) = [text for text in caplog.messages if text.startswith("incidents !")]
    assert "it has 100 incidents; remove some and restart; nothing more is kept" in message


def test_a_folder_that_cant_be_made_is_one_line_in_the_log(
    target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = load(str(target))
    incidents = Incidents(target / "no folder", str(target))
    app.watch(incidents)
    with TestClient(app, raise_errors=False) as device:
        device.send(b"three\n")
    app.unwatch(incidents)
    incidents.close()
    (message,) = [text for text in caplog.messages if text.startswith("incidents !")]
    assert message.endswith("can't be written: not a directory; nothing more is kept")


@pytest.mark.live
def test_run_keeps_incidents(target: Path, tmp_path: Path) -> None:
    folder = tmp_path / "incidents"
    options = ("--listen", "tcp://127.0.0.1:0", "--incidents", folder)
    with (
        gateway(target, *options) as (process, lines),
        socket.create_connection(("127.0.0.1", port_of(lines)), timeout=20) as device,
    ):
        device.sendall(b"three\n")
        assert device.recv(100) == b""
        process.terminate()
        assert process.stdout is not None
        text = "".join(lines) + process.stdout.read()
        assert process.wait(20) == 0
    assert re.search(r"incidents = 1/default: number: ValueError: .*, in .*/incidents/test_", text)
    (recording,) = folder.glob("*.jsonl")
    assert len(failing(recording, target)) == 1
