"""A connection leaves no cycles: the collector would hold everybody up while it finds them."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Iterator

import pytest

from exproto_app import App, Connection, Login
from exproto_app.framing import Line
from exproto_app.hosts.gateway import Gateway

from .loops import run_in
from .test_hostile import until

pytestmark = pytest.mark.live


@pytest.fixture(autouse=True)
def _no_log() -> Iterator[None]:
    """Have pytest keep no records, for these keep what their tracebacks hold."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def app() -> App:
    app = App(framing=Line())

    @app.on_received
    def echo(conn: Connection, frame: bytes) -> bytes:
        return frame

    @app.on_received(b"login ")
    async def login(conn: Connection, frame: bytes) -> bytes:
        name, password = frame.decode().split()[1:3]
        await conn.register(name, password=password)
        return b"welcome"

    @app.on_received(b"fail")
    def fail(conn: Connection, frame: bytes) -> None:
        raise ValueError(frame)

    @app.on_received(b"child ")
    async def child(conn: Connection, frame: bytes) -> bytes:
        await conn.child(frame[6:].decode(), password="right")
        return frame

    return app


def judge(login: Login) -> bool:
    return login.password == "right"


async def judge_later(login: Login) -> bool:
    await asyncio.sleep(0)
    return login.password == "right"


@pytest.mark.parametrize("line", [b"hi", b"login a right", b"login a wrong", b"fail", b"child b"])
@pytest.mark.parametrize("rule", ["none", "plain", "async", "blocking"])
def test_a_connection_that_has_ended_leaves_nothing_to_the_collector(rule: str, line: bytes) -> None:
    one = app()
    if rule == "async":
        one.on_login(judge_later)
    elif rule != "none":
        one.on_login(blocking=rule == "blocking")(judge)

    async def test() -> None:
        async with Gateway(one, ["tcp://127.0.0.1:0"]) as gateway:
            address = gateway.addresses[0][2]
            loop = asyncio.get_running_loop()

            async def talk() -> None:
                with socket.socket() as sock:
                    sock.setblocking(False)
                    await loop.sock_connect(sock, (address.host, address.port))
                    await loop.sock_sendall(sock, line + b"\n")
                    await loop.sock_recv(sock, 100)

            await talk()
            await until(lambda: gateway.open == 0)
            gc.collect()
            before = len(alive())
            gc.disable()
            try:
                for _ in range(5):
                    await talk()
                await until(lambda: gateway.open == 0)
                await asyncio.sleep(0)
                assert len(alive()) == before
            finally:
                gc.enable()

    run_in("asyncio", test)


def alive() -> list[Connection]:
    """Return the connections that are there still."""
    return [thing for thing in gc.get_objects() if isinstance(thing, Connection)]
