"""The watch over handlers that hold everybody up."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
from importlib.util import find_spec

import pytest

from exproto_app import App, Connection
from exproto_app.cli.process import find_uvloop, run_loop
from exproto_app.framing import Line
from exproto_app.hosts.gateway import Gateway
from exproto_app.testing import TestClient


class Told(logging.Handler):
    """Sets an event when something is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.event = threading.Event()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + (record.stack_info or "")
        self.event.set()


@pytest.mark.live
def test_a_handler_that_blocks_the_loop_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exproto_app.asyncio_host.runner.SLOW", 0.05)
    app, told = App(framing=Line()), Told()

    @app.on_received
    def calculate(conn: Connection, frame: bytes) -> bytes:
        return b"told" if told.event.wait(30) else b"not told"

    async def test() -> None:
        async with Gateway(app, ["tcp://127.0.0.1:0"]) as gateway:
            address = gateway.addresses[0][2]
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(b"hi\n")
            assert await reader.readline() == b"told\n"
            writer.close()
            await writer.wait_closed()

    logger = logging.getLogger("exproto_app")
    logger.addHandler(told)
    try:
        asyncio.run(test())
    finally:
        logger.removeHandler(told)
    assert "calculate has held everybody up" in told.text
    assert "blocking=True" in told.text
    assert "told.event.wait(30)" in told.text, "with its stack"


@pytest.mark.parametrize("wait", [False, True], ids=["at once", "after a wait"])
def test_a_handler_that_ends_the_program_ends_its_own_connection_too(*, wait: bool) -> None:
    app = App(framing=Line())
    reasons: list[str] = []

    @app.on_received
    async def leave(conn: Connection, frame: bytes) -> None:
        if wait:
            await asyncio.sleep(0)
        sys.exit(3)

    @app.on_terminated
    def gone(conn: Connection, reason: str) -> None:
        reasons.append(reason)

    with TestClient(app, raise_errors=False) as device:
        with pytest.raises(SystemExit, match="3"):
            device.send(b"hi\n")
        device.advance(0)
        assert reasons == ["error"]


LOOPS = ["asyncio", pytest.param("uvloop", marks=pytest.mark.skipif(not find_spec("uvloop"), reason="none"))]


@pytest.mark.live
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", ["connect", "plain", "async", "late", "blocking", "timeout", "terminated"])
def test_an_exit_in_a_handler_ends_the_gateway_with_all_farewells(kind: str, loop: str) -> None:  # noqa: C901 - one app of all
    app, seen = App(framing=Line()), list[str]()

    def leave(here: str) -> None:
        if here == kind:
            sys.exit(3)

    @app.on_connect
    def connect(conn: Connection) -> None:
        leave("connect")
        conn.start_timer(0.01 if kind == "timeout" else 60)

    @app.on_received(b"plain")
    def plain(conn: Connection, frame: bytes) -> None:
        leave("plain")

    @app.on_received(b"async")
    async def at_once(conn: Connection, frame: bytes) -> None:
        leave("async")

    @app.on_received(b"late")
    async def late(conn: Connection, frame: bytes) -> None:
        await asyncio.sleep(0)
        leave("late")

    @app.on_received(b"blocking", blocking=True)
    def blocking(conn: Connection, frame: bytes) -> None:
        leave("blocking")

    @app.on_received(b"terminated")
    def end(conn: Connection, frame: bytes) -> None:
        conn.terminate()

    @app.on_timeout
    def timeout(conn: Connection) -> None:
        leave("timeout")

    @app.on_terminated
    def gone(conn: Connection, reason: str) -> None:
        seen.append("gone")
        leave("terminated")

    @app.on_shutdown
    def down() -> None:
        seen.append("down")

    async def main() -> None:
        async with Gateway(app, ["tcp://127.0.0.1:0"]) as gateway:
            address = gateway.addresses[0][2]
            with socket.create_connection((address.host, address.port)) as device:
                if kind not in ("connect", "timeout"):
                    device.sendall(kind.encode() + b"\n")
                await asyncio.sleep(60)

    with pytest.raises(SystemExit, match="3"):
        run_loop(main(), find_uvloop(loop))
    assert seen == ["gone", "down"]


EXITS = [SystemExit(3), KeyboardInterrupt()]


@pytest.mark.parametrize("error", EXITS, ids=repr)
def test_an_exit_in_on_startup_ends_the_program_with_the_app_detached(error: BaseException) -> None:
    app, seen = App(), list[str]()

    @app.on_connect
    def connect(conn: Connection) -> None:
        seen.append("never")

    @app.on_startup
    def first() -> None:
        seen.append("first")
        raise error

    @app.on_startup
    def second() -> None:
        seen.append("second")

    for _ in range(2):
        with pytest.raises(type(error)), TestClient(app):
            seen.append("never")
    assert seen == ["first", "first"]


@pytest.mark.parametrize("error", EXITS, ids=repr)
def test_an_exit_in_on_shutdown_ends_the_program_behind_the_others(error: BaseException) -> None:
    app, seen = App(framing=Line()), list[str]()

    @app.on_terminated
    def gone(conn: Connection, reason: str) -> None:
        seen.append(f"gone: {reason}")

    @app.on_shutdown
    async def first() -> None:
        await asyncio.sleep(0)
        raise error

    @app.on_shutdown
    def second() -> None:
        seen.append("second")

    for _ in range(2):
        with pytest.raises(type(error)), TestClient(app) as device:
            assert not device.connection.closed
    assert seen == ["gone: device closed", "second"] * 2
