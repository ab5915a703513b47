"""The watch over handlers that hold everybody up."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
from importlib.util import find_spec
from typing import Any

import pytest

from exproto_app import App, Connection, Message, Router
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
    assert "calculate has blocked all connections" in told.text
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


EXITS = [SystemExit(3), KeyboardInterrupt()]

KINDS = (
    "state",
    "connect",
    "received",
    "async",
    "late",
    "blocking",
    "deliver",
    "timeout",
    "every",
    "terminated",
    "error",
    "spawn",
    "codec",
    "key",
    "match",
    "sniff",
)
"""Whatever of an app's may raise, named by what a device sends to have it run."""


def leaving(kind: str, error: BaseException, seen: list[str]) -> App[Any, Any]:  # noqa: C901, PLR0915 - one app of all
    """Return an app in which the handler of *kind* raises *error*."""

    def leave(here: str) -> None:
        if here == kind:
            raise error

    def make_state() -> None:
        leave("state")

    def parse(frame: bytes) -> bytes:
        leave("codec")
        return frame

    def key(frame: bytes) -> bytes:
        leave("key")
        return frame

    def sniff(data: bytes) -> bool:
        leave("sniff")
        return True

    app: App[Any, Any] = App(framing=Line(), state=make_state, codec=(parse, None), key=key, sniff=sniff)
    app.include(Router("other"))

    @app.on_connect
    def connect(conn: Connection[Any, Any]) -> None:
        leave("connect")
        conn.start_timer(0.01 if kind == "timeout" else 60)

    @app.on_received
    def received(conn: Connection[Any, Any], frame: bytes) -> None:
        leave("received")
        if kind == "deliver":
            conn.subscribe("t")
            conn.publish("t", b"")
        if kind == "terminated":
            conn.terminate()
        if kind == "error":
            raise ValueError(frame)
        if kind == "spawn":
            conn.spawn(spawned())

    async def spawned() -> None:
        await asyncio.sleep(0)
        leave("spawn")

    @app.on_received(b"async")
    async def at_once(conn: Connection[Any, Any], frame: bytes) -> None:
        leave("async")

    @app.on_received(b"late")
    async def late(conn: Connection[Any, Any], frame: bytes) -> None:
        await asyncio.sleep(0)
        leave("late")

    @app.on_received(b"blocking", blocking=True)
    def blocking(conn: Connection[Any, Any], frame: bytes) -> None:
        leave("blocking")

    @app.on_received(b"match")
    async def match(conn: Connection[Any, Any], frame: bytes) -> None:
        await conn.request(b"?", match=lambda _: leave("match"))

    @app.on_deliver
    def deliver(conn: Connection[Any, Any], message: Message) -> None:
        leave("deliver")

    @app.on_timeout
    def timeout(conn: Connection[Any, Any]) -> None:
        leave("timeout")

    @app.every(0.01 if kind == "every" else 60)
    def tick(conn: Connection[Any, Any]) -> None:
        leave("every")

    @app.on_error
    def wrong(conn: Connection[Any, Any], error: Exception) -> None:
        leave("error")

    @app.on_terminated
    def gone(conn: Connection[Any, Any], reason: str) -> None:
        seen.append("gone")
        leave("terminated")

    @app.on_shutdown
    def down() -> None:
        seen.append("down")

    return app


@pytest.mark.live
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("error", EXITS, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_an_exit_in_a_handler_ends_the_gateway_with_all_farewells(
    kind: str, error: BaseException, loop: str
) -> None:
    seen: list[str] = []
    listener = "default,other=tcp://127.0.0.1:0" if kind == "sniff" else "default=tcp://127.0.0.1:0"

    async def main() -> None:
        async with Gateway(leaving(kind, error, seen), [listener]) as gateway:
            address = gateway.addresses[0][2]
            with socket.create_connection((address.host, address.port)) as device:
                if kind not in ("state", "connect", "timeout", "every"):
                    device.sendall(kind.encode() + b"\n" + b"answer\n" * (kind == "match"))
                await asyncio.sleep(60)

    with pytest.raises(type(error)):
        run_loop(main(), find_uvloop(loop))
    assert seen == (["down"] if kind == "sniff" else ["gone", "down"])


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
