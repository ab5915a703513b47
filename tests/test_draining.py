"""A gateway that drains: nobody comes in, devices go one after another, and then it has nothing left."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import sys
from pathlib import Path

import pytest

from exproto_app import App, Connection
from exproto_app.framing import Line
from exproto_app.hosts.gateway import Gateway
from exproto_app.hosts.gateway.draining import drain

from .test_cli import gateway, port_of
from .test_gateway import connected, run
from .test_hostile import until
from .test_workers import APP, gang, spread

pytestmark = pytest.mark.live


def app_of(ends: list[str]) -> App:
    app = App(framing=Line())

    @app.on_received
    def echo(conn: Connection, frame: bytes) -> bytes:
        return frame

    @app.on_received(b"slow")
    async def slow(conn: Connection, frame: bytes) -> bytes:
        conn.send(b"wait")
        await asyncio.sleep(0.3)
        return b"done"

    @app.on_terminated
    def gone(conn: Connection, reason: str) -> None:
        ends.append(reason)

    return app


def test_the_oldest_go_first_at_a_pace_and_what_they_sent_is_answered() -> None:
    ends: list[str] = []

    async def test() -> None:
        async with (
            Gateway(app_of(ends), ["tcp://127.0.0.1:0"]) as here,
            connected(here) as (first, first_writer),
            connected(here) as (second, second_writer),
        ):
            for reader, writer in ((first, first_writer), (second, second_writer)):
                writer.write(b"hi\n")
                assert await reader.readline() == b"hi\n"
            first_writer.write(b"slow\n")
            assert await first.readline() == b"wait\n"
            assert here.serving
            draining = asyncio.ensure_future(drain(here, rate=0.5))
            await until(lambda: not here.serving)
            assert await first.read() == b"done\n"
            second_writer.write(b"still here\n")
            assert await second.readline() == b"still here\n"
            assert not draining.done()
            assert await second.read() == b""
            await draining
            assert (ends, here.open) == (["shutdown", "shutdown"], 0)

    run(test)


def test_new_devices_find_nobody() -> None:
    async def test() -> None:
        async with Gateway(app_of([]), ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"]) as here:
            tcp, udp = (address for _, _, address in here.addresses)
            with socket.socket(type=socket.SOCK_DGRAM) as old, socket.socket(type=socket.SOCK_DGRAM) as new:
                loop = asyncio.get_running_loop()
                for sock in (old, new):
                    sock.setblocking(False)
                    await loop.sock_connect(sock, (udp.host, udp.port))
                old.send(b"hi\n")
                assert await loop.sock_recv(old, 100) == b"hi\n"
                draining = asyncio.ensure_future(drain(here, rate=0.2))
                await until(lambda: not here.serving)
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.open_connection(tcp.host, tcp.port)
                new.send(b"hi\n")
                await until(lambda: here.app.stats.get("connections_refused.draining") == 1)
                await draining
                assert here.open == 0

    run(test)


def test_without_devices_it_is_done_at_once() -> None:
    async def test() -> None:
        async with Gateway(app_of([]), ["tcp://127.0.0.1:0"]) as here:
            await asyncio.wait_for(drain(here), 5)

    run(test)


needs_signal = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no SIGUSR1")


@needs_signal
def test_a_signal_drains_and_ends_it(tmp_path: Path) -> None:
    script = tmp_path / "app.py"
    script.write_text(APP)
    options = ("--listen", "tcp://127.0.0.1:0", "--drain-rate", "1000")
    with gateway(script, *options) as (process, lines):
        where = ("127.0.0.1", port_of(lines))
        with socket.create_connection(where, timeout=20) as device, device.makefile("rb") as stream:
            device.sendall(b"slow\n")
            assert stream.readline() == b"wait\n"
            for _ in range(2):  # the second one changes nothing
                process.send_signal(signal.SIGUSR1)
            assert stream.read() == b"done\n"
        assert process.wait(20) == 0
        assert process.stdout is not None
        text = process.stdout.read()
    assert re.search(r"gateway = draining: 1 connections, 1000 a second", text)
    assert "gone: shutdown" in text
    assert "gateway = drained" in text


@needs_signal
def test_a_stop_doesnt_wait_for_it(tmp_path: Path) -> None:
    script = tmp_path / "app.py"
    script.write_text(APP)
    with gateway(script, "--listen", "tcp://127.0.0.1:0", "--drain-rate", "0.01") as (process, lines):
        where = ("127.0.0.1", port_of(lines))
        with socket.create_connection(where, timeout=20) as one, socket.create_connection(where) as other:
            for device in (one, other):
                device.sendall(b"who\n")
                assert device.recv(100)
            process.send_signal(signal.SIGUSR1)
            assert one.recv(100) == b""
            process.terminate()
            assert other.recv(100) == b""
        assert process.wait(20) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="--workers needs Linux")
def test_workers_drain_together_and_none_is_replaced(tmp_path: Path) -> None:
    script = tmp_path / "app.py"
    script.write_text(APP)
    pytest.importorskip("mqtt5", reason="the uplink needs Python 3.11 and mqtt5")
    with contextlib.ExitStack() as stack, gang(script, "--drain-rate", "1000") as here:
        devices = spread(here.port(), stack)
        assert len(devices) == 2
        here.process.send_signal(signal.SIGUSR1)
        for device in devices.values():
            device.sock.settimeout(20)
            assert device.sock.recv(100) == b""
        text = here.rest()
        assert here.process.wait(20) == 0
    assert "workers = draining" in text
    assert "workers = drained" in text
    assert "another starts" not in text
