"""TestClient: virtual time, errors, several devices, logins."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timezone

import pytest

from exproto_app import Address, App, Certificate, ClientInfo, Connection, ConnectionInfo, Message, Router
from exproto_app.errors import ClosedError, DeniedError, SetupError, UnavailableError
from exproto_app.framing import Line
from exproto_app.testing import TestClient


def test_time_is_virtual_for_asyncio_too() -> None:
    app = App(framing=Line())

    @app.on_received
    async def later(conn: Connection, frame: bytes) -> bytes:
        await asyncio.sleep(50)
        return frame

    started = time.monotonic()
    with TestClient(app) as device:
        device.send(b"a\n")
        device.advance(49.9)
        assert device.recv() == b""
        device.advance(0.1)
        assert device.recv() == b"a\n"
        device.advance(86_400)
    assert time.monotonic() - started < 20


def test_timeouts_of_the_app_pass_in_advance() -> None:
    app = App(framing=Line())

    @app.on_received
    async def wait(conn: Connection, frame: bytes) -> bytes:
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 5)
        except asyncio.TimeoutError:
            return b"too late"
        return b"never"

    with TestClient(app) as device:
        device.send(b"a\n")
        device.advance(5)
        assert device.recv() == b"too late\n"


class BrokenError(Exception):
    """What the app raises."""


def broken() -> App:
    app = App(framing=Line())

    @app.on_received
    def fail(conn: Connection, frame: bytes) -> None:
        raise BrokenError(frame)

    return app


def test_a_handlers_exception_fails_the_test() -> None:
    with TestClient(broken()) as device, pytest.raises(BrokenError, match="boom"):
        device.send(b"boom\n")


def test_unless_told_otherwise() -> None:
    with TestClient(broken(), raise_errors=False) as device:
        device.send(b"boom\n")
        assert [type(error) for error in device.errors] == [BrokenError]
        assert (device.closed, device.close_reason) == (True, "error")


def test_an_exception_while_it_closes_fails_the_test_too() -> None:
    app = App()

    @app.on_terminated
    def fail(conn: Connection, reason: str) -> None:
        raise BrokenError(reason)

    with pytest.raises(BrokenError, match="device closed"), TestClient(app):
        pass


def test_an_app_is_attached_to_one_host_at_a_time_and_detached_on_exit() -> None:
    app = broken()
    with TestClient(app), pytest.raises(SetupError, match="one host at a time"), TestClient(app):
        pass
    with TestClient(app):
        pass

    @app.on_connect
    def now(conn: Connection) -> bytes:
        return b"registered between two runs"

    with TestClient(app) as device:
        assert device.recv() == b"registered between two runs\n"


def test_no_handler_is_added_while_the_app_runs() -> None:
    app = broken()
    with TestClient(app), pytest.raises(SetupError, match="is already running"):
        app.on_connect(lambda conn: None)


def test_another_device_is_on_the_same_hub() -> None:
    app = App(framing=Line())

    @app.on_connect
    def subscribe(conn: Connection) -> None:
        conn.subscribe("all")

    @app.on_received
    def publish(conn: Connection, frame: bytes) -> None:
        conn.publish("all", frame)

    @app.on_deliver
    def deliver(conn: Connection, message: Message) -> bytes:
        return message.payload

    with TestClient(app) as one:
        two = one.another()
        one.send(b"hi\n")
        assert (one.recv(), two.recv()) == (b"hi\n", b"hi\n")
        two.close()
        assert two.closed
        assert not one.closed


def test_deliver_asserts_that_the_device_is_subscribed() -> None:
    with TestClient(broken()) as device, pytest.raises(AssertionError, match="isn't subscribed"):
        device.deliver("nothing", b"")


def test_login_rules_may_be_sync_or_async_and_may_fail() -> None:
    app = App(framing=Line())

    @app.on_received
    async def login(conn: Connection, frame: bytes) -> bytes:
        try:
            await conn.register("me", password=frame.decode())
        except (DeniedError, UnavailableError) as error:
            return type(error).__name__.encode()
        return b"in"

    async def slowly(client: ClientInfo, password: str | None) -> bool:
        await asyncio.sleep(3)
        return password == "right"

    def rule(client: ClientInfo, password: str | None) -> bool:
        if password == "break":
            raise BrokenError
        return password == "right"

    with TestClient(app, login=rule) as device:
        device.send(b"wrong\nbreak\nright\n")
        assert device.recv() == b"DeniedError\nUnavailableError\nin\n"
    with TestClient(app, login=slowly) as device:
        device.send(b"wrong\nright\n")
        device.advance(6)
        assert device.recv() == b"DeniedError\nin\n"


def test_the_connection_is_what_the_test_says() -> None:
    app = App()

    @app.on_connect
    def tell(conn: Connection, info: ConnectionInfo) -> bytes:
        return f"{info.socktype} {info.peername} {info.peercert.cn if info.peercert else '-'}".encode()

    info = ConnectionInfo("ssl", Address("::1", 4), Address("::1", 5), Certificate(cn="meter"))
    with TestClient(app, info=info) as device:
        assert device.recv() == b"ssl [::1]:4 meter"
    with TestClient(app, socktype="udp") as device:
        assert device.recv().startswith(b"udp 127.0.0.1:")


def test_sending_on_a_closed_connection_says_why() -> None:
    app = App()

    @app.on_connect
    def refuse(conn: Connection) -> None:
        conn.terminate()

    with TestClient(app) as device, pytest.raises(ConnectionError, match="terminated"):
        device.send(b"too late")


def test_outside_a_block_it_says_how_to_connect() -> None:
    with pytest.raises(RuntimeError, match="with TestClient"):
        TestClient(broken()).send(b"")


def test_the_sdks_longer_forms_and_batches() -> None:
    app = App(framing=Line(), state=list[str])

    @app.on_connect
    def connect(conn: Connection[list[str]], info: ConnectionInfo) -> None:
        conn.state.append(info.socktype)
        conn.subscribe("b/#")

    @app.on_received
    def received(conn: Connection[list[str]], data: bytes, state: list[str]) -> bytes:
        return ",".join(state).encode() + b" " + data

    @app.on_deliver(batch=True)
    def deliver(conn: Connection[list[str]], messages: list[Message]) -> bytes:
        return b"+".join(message.payload for message in messages)

    ends: list[tuple[str, list[str]]] = []

    @app.on_terminated
    def terminated(conn: Connection[list[str]], reason: str, state: list[str]) -> None:
        ends.append((reason, state))

    @app.every(10)
    def tick(conn: Connection[list[str]]) -> None:
        for number in range(3):
            app.publish("b/1", b"%d" % number)

    with TestClient(app) as device:
        device.send(b"x\n")
        device.advance(10)
        assert device.recv() == b"tcp x\n0+1+2\n"
    assert ends == [("device closed", ["tcp"])]


def test_a_mountpoint_is_added_and_stripped() -> None:
    app = App(framing=Line())

    @app.on_connect
    def connect(conn: Connection) -> None:
        conn.register("d", mountpoint="site/1/")
        conn.subscribe("in")
        conn.subscribe("$share/g/shared")
        conn.publish("out", b"!")

    @app.on_deliver
    def deliver(conn: Connection, message: Message) -> bytes:
        return message.topic.encode()

    with TestClient(app) as device:
        assert device.published == [Message("site/1/out", b"!")]
        device.publish("in", b"elsewhere")
        device.publish("site/1/in", b"")
        device.publish("site/1/shared", b"")
        assert device.recv() == b"in\nshared\n"


def test_startup_shutdown_and_what_runs_outside_of_handlers() -> None:
    app = App()
    log: list[str] = []

    @app.on_startup
    async def start() -> None:
        await asyncio.sleep(1)
        log.append("start")
        app.publish("status", b"on", retain=True)

    @app.on_shutdown
    def stop() -> None:
        log.append("stop")

    @app.on_connect
    def connect(conn: Connection) -> None:
        log.append("connect")

    with pytest.raises(SetupError, match="isn't running"):
        app.publish("status", b"off")
    with TestClient(app) as device:
        assert device.app_published == [Message("status", b"on", retain=True)]
        kept = device.connection
    assert log == ["start", "connect", "stop"]
    with pytest.raises(ClosedError):
        kept.send(b"").__await__().send(None)


def test_a_startup_that_fails_leaves_the_app_detached() -> None:
    app = App()

    @app.on_startup
    def start() -> None:
        raise BrokenError

    @app.on_connect
    def connect(conn: Connection) -> None: ...

    for _ in range(2):
        with pytest.raises(BrokenError), TestClient(app):
            pass


def test_several_protocols_need_a_name() -> None:
    app = App()
    for name in ("a", "b"):
        router: Router[None] = Router(name)
        router.on_connect(lambda conn: None)
        app.include(router)
    with pytest.raises(SetupError, match=r"several protocols \(a, b\)"):
        TestClient(app)
    with pytest.raises(SetupError, match="no protocol 'c'; it serves a, b"):
        TestClient(app, protocol="c")


def test_the_time_of_day_begins_where_the_test_says_and_moves_with_virtual_time() -> None:
    app = App(framing=Line())

    @app.on_received
    def tell(conn: Connection, frame: bytes) -> bytes:
        return conn.now().isoformat().encode()

    with TestClient(app, now=datetime(2026, 2, 28, 23, 59, 59, tzinfo=timezone.utc)) as device:
        device.send(b"now\n")
        device.advance(86_401.25)
        device.another().send(b"now\n")
        device.send(b"now\n")
        assert device.recv() == b"2026-02-28T23:59:59+00:00\n2026-03-02T00:00:00.250000+00:00\n"


def test_a_time_of_day_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="has no time zone"):
        TestClient(App(), now=datetime(2026, 1, 1))  # noqa: DTZ001 - the mistake that is tried
