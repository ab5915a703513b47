"""What systemd is told, by a real datagram socket in its place."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from exproto_app.ops.service_manager import ServiceManager

from .test_workers import APP

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's"),
]


class Manager:
    """A service manager that hears what it is told."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        self.sock = sock
        self.environment = {"NOTIFY_SOCKET": address}

    def until(self, line: str) -> list[str]:
        """Hear until *line* comes; return all lines up to it."""
        heard: list[str] = []
        while line not in heard:
            heard += self.sock.recv(4096).decode().split("\n")
        return heard


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = f"@{tmp_path.name}-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        sock.settimeout(30)
        yield Manager(sock, address)


@contextlib.contextmanager
def started(tmp_path: Path, manager: Manager, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    script = tmp_path / "app.py"
    script.write_text(APP)
    command = [sys.executable, "-m", "exproto_app", *arguments]
    environment = {**os.environ, **manager.environment, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [part.replace("APP", str(script)) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


RUN = ("run", "APP", "--listen", "tcp://127.0.0.1:0", "--mqtt-listen", "off")


def test_a_gateway_tells_its_life(tmp_path: Path, manager: Manager) -> None:
    manager.environment["WATCHDOG_USEC"] = "300000"
    with started(tmp_path, manager, *RUN) as process:
        manager.until("READY=1")
        for _ in range(3):
            manager.until("WATCHDOG=1")
        process.send_signal(signal.SIGHUP)
        heard = manager.until("RELOADING=1") + manager.until("READY=1")
        assert any(line.startswith("MONOTONIC_USEC=") for line in heard)
        process.send_signal(signal.SIGUSR1)
        heard = manager.until("STATUS=draining")
        assert "STOPPING=1" not in heard
        manager.until("STOPPING=1")
        assert process.wait(20) == 0


def test_workers_are_one_service(tmp_path: Path, manager: Manager) -> None:
    pytest.importorskip("mqtt5", reason="the uplink needs Python 3.11 and mqtt5")
    options = ("--workers", "2", "--mqtt", "mqtt://127.0.0.1:9")
    with started(tmp_path, manager, *RUN, *options) as process:
        assert manager.until("READY=1").count("READY=1") == 1
        process.send_signal(signal.SIGHUP)
        manager.until("RELOADING=1")
        manager.until("READY=1")
        process.terminate()
        manager.until("STOPPING=1")
        assert process.wait(60) == 0


def test_a_service_behind_emqx_tells_it_too(tmp_path: Path, manager: Manager) -> None:
    with started(tmp_path, manager, "serve", "APP", "--bind", "127.0.0.1:0") as process:
        manager.until("READY=1")
        process.terminate()
        manager.until("STOPPING=1")
        assert process.wait(20) == 0


def test_one_that_doesnt_listen_keeps_nobody_waiting(tmp_path: Path) -> None:
    manager = ServiceManager(str(tmp_path / "nobody"), 1.0)
    manager.ready()
    manager.stopping()


def test_programs_that_are_started_know_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert ServiceManager.take() == ServiceManager("/run/notify", 30.0)
    assert ServiceManager.take() == ServiceManager(None, 0.0)


@pytest.mark.parametrize(("pid", "usec"), [("1", "30000000"), ("", "soon"), ("", "")])
def test_a_watchdog_for_another_process_or_without_a_time_is_none(
    monkeypatch: pytest.MonkeyPatch, pid: str, usec: str
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert not ServiceManager.take().patience
