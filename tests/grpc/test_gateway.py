"""What EMQX is made of, gun and cowboy, calls our service and is called by it.

Debian's package `rabbitmq-server` has both. It need not be installed: `apt-get download rabbitmq-server`,
`dpkg -x rabbitmq-server*.deb FOLDER`, and EXPROTO_PLUGINS=FOLDER tell the tests where to look.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exproto_app import Address, App, Connection
from exproto_app.framing import Line
from exproto_app.hosts.grpc import AdapterMap, Service
from tests.behaviour.hosts import PATIENCE, SocketDevice

from .host import LoopThread
from .test_service import wait

SOURCE = Path(__file__).with_name("gateway.erl")
PLUGINS = Path(os.environ.get("EXPROTO_PLUGINS") or "/usr/lib/rabbitmq")
BEAMS = [next(PLUGINS.rglob(f"{name}-*/ebin"), None) for name in ("gun", "cowboy", "cowlib", "ranch")]

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("erlc") is None, reason="the Erlang VM isn't installed"),
    pytest.mark.skipif(None in BEAMS, reason="no gun, cowboy, cowlib, ranch in EXPROTO_PLUGINS"),
]


@pytest.fixture(scope="module")
def beam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the compiled gateway."""
    folder = tmp_path_factory.mktemp("gateway")
    subprocess.run(["erlc", "-o", str(folder), str(SOURCE)], check=True, timeout=60)
    return folder


class Gateway:
    """The gateway in Erlang, and an app of ours behind it."""

    def __init__(self, app: App[Any], stack: contextlib.ExitStack, beam: Path, service: str) -> None:
        self.app = app
        self.stack = stack
        self.ours = LoopThread()
        stack.callback(self.ours.stop)
        self.errors: list[str] = []
        paths = [str(path) for path in (beam, *BEAMS)]
        options = ["-run", "gateway", "main", service, "300"]
        command = ["erl", "-noshell", "-pa", *paths, *options]
        env = {**os.environ, "ERL_CRASH_DUMP_BYTES": "0"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1, env=env)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout
        self._reader = threading.Thread(target=lambda: self.errors.extend(self._out))
        stack.callback(self._stop_gateway)
        words = self._out.readline().split()
        self._reader.start()
        assert words[:1] == ["ports"]
        self.port, adapter = int(words[1]), int(words[2])
        self.service = Service(app, Address("127.0.0.1", 0), AdapterMap([f"http://127.0.0.1:{adapter}"]))
        self.ours.run(self.service.start())
        self._running = True
        stack.callback(self.stop)
        self._in.write(f"{self.service.address.port}\n")

    def _stop_gateway(self) -> None:
        self._in.close()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
        if self._reader.ident:
            self._reader.join(PATIENCE)
        self._out.close()

    def stop(self) -> None:
        if self._running:
            self._running = False
            self.ours.run(self.service.stop())

    def connect(self) -> SocketDevice:
        device = SocketDevice(("127.0.0.1", self.port), udp=False)
        self.stack.callback(device.hang_up)
        return device


@pytest.fixture(params=["ConnectionUnaryHandler", "ConnectionHandler"])
def gateway(request: pytest.FixtureRequest, beam: Path) -> Iterator[Gateway]:
    app: App[Any] = App(framing=Line(limit=3_000_000))

    @app.on_received
    def echo(conn: Connection[Any], frame: bytes) -> bytes:
        return frame

    with contextlib.ExitStack() as stack:
        yield Gateway(app, stack, beam, request.param)


def test_a_hundred_devices_talk(gateway: Gateway) -> None:
    devices = [gateway.connect() for _ in range(100)]
    for turn in range(10):
        for number, device in enumerate(devices):
            device.send(b"%d of %d\n" % (turn, number))
        for number, device in enumerate(devices):
            device.expect(b"%d of %d\n" % (turn, number))
    for device in devices:
        device.hang_up()
    wait(lambda: gateway.app.stats["connections_closed"] == 100)
    assert "".join(gateway.errors) == ""


def test_more_than_any_window_goes_through(gateway: Gateway) -> None:
    devices = [gateway.connect() for _ in range(3)]
    line = b"x" * 1_500_000 + b"\n"
    senders = [threading.Thread(target=device.send, args=[line]) for device in devices]
    for sender in senders:
        sender.start()
    for sender, device in zip(senders, devices, strict=True):
        device.expect(line)
        sender.join(PATIENCE)
    assert "".join(gateway.errors) == ""


def test_an_idle_adapter_goes_away_and_nobody_notices(gateway: Gateway) -> None:
    device = gateway.connect()
    device.send(b"before\n")
    device.expect(b"before\n")
    (broker,) = gateway.service.adapters
    wait(lambda: not broker.client.open)
    device.send(b"after\n")
    device.expect(b"after\n")
    assert gateway.app.stats["sends_failed"] == 0
    assert "".join(gateway.errors) == ""


def test_stopping_ends_every_device_without_an_error(gateway: Gateway) -> None:
    devices = [gateway.connect() for _ in range(100)]
    for device in devices:
        device.send(b"hi\n")
    for device in devices:
        device.expect(b"hi\n")
    gateway.stop()
    for device in devices:
        device.expect_end()
    assert "".join(gateway.errors) == ""
