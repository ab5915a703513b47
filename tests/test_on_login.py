"""`on_login` judges who may register, before the broker is asked."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
import pytest

from exproto_app import App, ClientInfo, Connection, Limits, Login
from exproto_app.addresses import Applicant
from exproto_app.core.login_queue import EACH, Judging
from exproto_app.core.login_queue import Login as Waiter
from exproto_app.errors import CommandError
from exproto_app.framing import Line
from exproto_app.testing import TestClient


def gate() -> App[None]:
    """Return an app whose devices log in by `NAME PASSWORD`, and are told what comes of it."""
    app: App[None] = App(framing=Line(), limits=Limits(login_timeout=3, handler_timeout=60))

    @app.on_received
    async def log_in(conn: Connection, frame: bytes) -> bytes:
        name, _, password = frame.decode().partition(" ")
        try:
            await conn.register(name, password=password or None)
        except CommandError as error:
            return f"{type(error).__name__}: {error}".encode()
        assert conn.client is not None
        await conn.publish("up", b"")
        return f"{conn.client.username}@{conn.client.mountpoint}".encode()

    return app


def answer(app: App[None], line: bytes, **options: Any) -> bytes:
    """Return what a device is told that logs in by *line*."""
    with TestClient(app, raise_errors=False, **options) as device:
        device.send(line)
        device.advance(5)
        return device.recv()


@pytest.mark.parametrize("kind", ["plain", "async", "blocking"])
def test_it_gets_who_asks_and_says_yes_or_no(kind: str) -> None:
    app, seen = gate(), list[Login]()

    def judge(login: Login) -> bool | str:
        seen.append(login)
        return login.password == "right" or f"{login.username} has another password"

    if kind == "async":

        @app.on_login
        async def judge_slowly(login: Login) -> bool | str:
            await asyncio.sleep(1)
            return judge(login)
    else:
        app.on_login(blocking=kind == "blocking")(judge)

    assert answer(app, b"d right\n") == b"d@\n"
    said = b"DeniedError: 'd' may not register: d has another password\n"
    assert answer(app, b"d wrong\n") == said
    assert seen[0].clientid == "d"
    assert seen[0].address.host == "127.0.0.1"
    assert seen[0].certificate is None
    assert seen[0].protocol == "default"
    assert "right" not in repr(seen[0])


def test_it_may_give_facts() -> None:
    app = gate()

    @app.on_login
    def place(login: Login) -> ClientInfo:
        return attrs.evolve(login.client, username="tenant", mountpoint="t/")

    with TestClient(app) as device:
        device.send(b"d x\n")
        assert device.recv() == b"tenant@t/\n"
        assert [message.topic for message in device.published] == ["t/up"]


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        (False, b"DeniedError: 'd' may not register: refused by the app\n"),
        (None, b"UnavailableError: "),
        (1, b"UnavailableError: "),
        (b"yes", b"UnavailableError: "),
        (ClientInfo("a/b"), b"InvalidNameError: "),
        (ValueError("the service is down"), b"UnavailableError: "),
    ],
)
def test_what_is_no_clear_yes_is_a_no(gives: object, said: bytes) -> None:
    app = gate()

    @app.on_login
    def judge(login: Login) -> Any:
        if isinstance(gives, Exception):
            raise gives
        return gives

    assert answer(app, b"d x\n").startswith(said)


def test_the_password_shows_in_no_error(caplog: pytest.LogCaptureFixture) -> None:
    app = gate()

    @app.on_login
    def judge(login: Login) -> bool:
        raise ValueError(f"no such user with {login.password}")

    assert b"geheim" not in answer(app, b"d geheim\n")
    assert "failed: ValueError" in caplog.text
    assert "geheim" not in caplog.text


def test_a_service_that_hangs_refuses_in_time_and_holds_nobody_else() -> None:
    app = gate()

    @app.on_login
    async def judge(login: Login) -> bool:
        if login.clientid == "slow":
            await asyncio.Event().wait()
        return True

    with TestClient(app, raise_errors=False) as device:
        other = device.another()
        device.send(b"slow x\n")
        other.send(b"d x\n")
        assert other.recv() == b"d@\n"
        device.advance(2.9)
        assert device.recv() == b""
        device.advance(0.2)
        assert device.recv().startswith(b"UnavailableError: ")


def test_the_broker_is_asked_after_it_and_only_then() -> None:
    app, asked = gate(), list[str]()

    @app.on_login
    def judge(login: Login) -> bool:
        return login.clientid != "never"

    def rule(client: ClientInfo, password: str | None) -> bool:
        asked.append(client.clientid)
        return client.clientid == "d"

    for name in (b"never", b"other", b"d"):
        answer(app, name + b" x\n", login=rule)
    assert asked == ["other", "d"]


def test_a_device_that_hangs_up_meanwhile_has_said_nothing() -> None:
    app, cancelled = App(framing=Line()), list[bool]()

    @app.on_received
    def log_in(conn: Connection, frame: bytes) -> None:
        conn.register("d")
        conn.publish("up", frame)

    @app.on_login
    async def judge(login: Login) -> bool:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return True

    with TestClient(app, raise_errors=False) as device:
        device.send(b"x\n")
        device.close()
        device.advance(10)
        assert cancelled == [True]
        assert device.published == []
        assert not app.connections


def test_a_router_has_its_own_and_children_are_judged_too() -> None:
    app, seen = App(), list[str]()
    bus = app.protocol("bus", framing=Line())

    @app.on_login
    def everybody(login: Login) -> bool:
        seen.append(f"app {login.clientid}")
        return True

    @bus.on_received
    def frame(conn: Connection, frame: bytes) -> None:
        conn.child(frame.decode())

    @bus.on_login
    def on_the_bus(login: Login) -> bool:
        seen.append(f"bus {login.clientid}")
        return login.clientid != "bad"

    with TestClient(app, "bus", raise_errors=False) as line:
        line.send(b"a\nbad\n")
        assert list(app.connections) == ["a"]
        assert not line.closed
    assert seen == ["bus a", "bus bad"]


def test_many_who_are_judged_slowly_keep_nobody_else_waiting() -> None:
    """Whoever has been refused least comes first, and so many are judged at a time."""
    judged, asked = Judging(2), list[str]()
    gone = Applicant("host", lambda: False)

    class Call:
        now = 0.0

        def __init__(self, name: str) -> None:
            self.name = name
            self.waiter: Any = Waiter(name, gone, self)

        def begin(self) -> None:
            asked.append(self.name)

        def turned_away(self, why: str) -> None:
            asked.append(f"not {self.name}")

    guesses = [Call("guessed") for _ in range(EACH + 4)]
    for guess in guesses:
        judged.enter(guess)
    assert asked == ["guessed", "guessed", "not guessed", "not guessed"]
    judged.enter(Call("other"))
    judged.left(guesses[0], refused=True)
    assert asked[-1] == "other"
    judged.stop()
    judged.enter(Call("late"))
    assert asked[5:] == [*["not guessed"] * EACH, "not late"]


def test_who_hangs_up_is_judged_no_more() -> None:
    app, judged = gate(), list[str]()

    @app.on_login
    async def judge(login: Login) -> bool:
        judged.append(login.clientid)
        await asyncio.sleep(1)
        judged.append("done")
        return True

    with TestClient(app, raise_errors=False) as device:
        device.send(b"d right\n")
        device.close()
        device.advance(5)
    assert judged == ["d"]
