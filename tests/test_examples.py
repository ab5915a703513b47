"""The examples do what their comments promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exproto_app import App, ClientInfo, Message
from exproto_app.target import load
from exproto_app.testing import TestClient

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str) -> App:
    return load(str(EXAMPLES / name))


def test_echo(capsys: pytest.CaptureFixture[str]) -> None:
    with TestClient(example("echo.py")) as device:
        assert device.recv() == b"hello\n"
        device.send(b"21.5\n")
        assert device.recv() == b"got 21.5\n"
        assert device.published == [Message("hello/up", b"21.5")]
        device.deliver("hello/down", b"reboot")
        assert device.recv() == b"reboot\n"
    assert capsys.readouterr().out == "bye 127.0.0.1:50001 device closed\n"


def secret(client: ClientInfo, password: str | None) -> bool:
    return password == "secret"


def test_a_tracker_logs_in_reports_and_takes_commands() -> None:
    with TestClient(example("fleet.py"), protocol="tracker", login=secret) as tracker:
        tracker.send(b"pos 1 2\n")
        assert tracker.recv() == b"error: log in first\n"
        tracker.send(b"login 42 secret\npos 52.5 13.4\npos north\nhello\n")
        assert tracker.recv() == b"welcome\nok\nerror: pos LAT LON\nerror: what is hello\n"
        (report,) = tracker.published
        assert report.topic == "fleet/42/position"
        assert json.loads(report.payload) == {"lat": 52.5, "lon": 13.4, "report": 1}

        tracker.deliver("fleet/42/command", b"reboot")
        tracker.deliver("fleet/42/command", b"sleep")
        assert tracker.recv() == b"do reboot\n"
        tracker.send(b"pos 1 2\nok rebooting\n")
        assert tracker.recv() == b"ok\ndo sleep\n"
        tracker.advance(10)
        answers = [message.payload for message in tracker.published if message.topic == "fleet/42/answer"]
        assert answers == [b"ok rebooting", b"error: no answer"]


def test_a_tracker_with_a_wrong_password_is_closed() -> None:
    with TestClient(example("fleet.py"), protocol="tracker", login=secret) as tracker:
        tracker.send(b"login 42 guess\n")
        assert tracker.recv() == b"error: denied\n"
        assert tracker.closed


def test_a_silent_tracker_is_closed() -> None:
    with TestClient(example("fleet.py"), protocol="tracker", login=secret) as tracker:
        tracker.send(b"login 42 secret\n")
        tracker.advance(599)
        assert not tracker.closed
        tracker.advance(1)
        assert tracker.close_reason == "timeout"


def test_a_meter_counts() -> None:
    with TestClient(example("fleet.py"), protocol="meter") as meter:
        meter.send(b"\x04\0\0\0\x07\x04\0\0\x01\0", chunk=1)
        assert meter.published == [Message("meters/7", b"256")]
        meter.close()
        assert meter.published[-1] == Message("meters/7/gone", b"device closed")
