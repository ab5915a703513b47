"""A broker that answers what it doesn't allow by ending the connection: each verb gets its true outcome."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from exproto_app import App, Connection, Limits
from exproto_app.errors import CommandError
from exproto_app.framing import Line
from exproto_app.hosts.gateway import Gateway

from .fake import FakeBroker, fake
from .hasty import hasty
from .test_uplink import Device

pytestmark = pytest.mark.live

MODES = pytest.mark.parametrize("shared", [False, True], ids=["device", "shared"])
REMEMBERS = pytest.mark.parametrize("remembers", [False, True], ids=["forgets", "remembers"])


async def outcome(pending: Any) -> str:
    try:
        await pending
    except CommandError as error:
        return type(error).__name__
    return "ok"


def make_app() -> App[None]:
    """Return an app whose devices issue verbs, `sub FILTER`, `unsub FILTER` and `pub TOPIC QOS`, at once.

    The answer has the outcome of each.
    """
    app = App(framing=Line(), limits=Limits(end_timeout=1000))

    @app.on_received(b"login ")
    async def login(conn: Connection, frame: bytes) -> bytes:
        return (await outcome(conn.register(frame[6:].decode(), username="u"))).encode()

    @app.on_received
    async def verbs(conn: Connection, frame: bytes) -> bytes:
        outcomes: list[Any] = []
        for words in frame.decode().split(", "):
            match words.split():
                case ["sub", topic]:
                    outcomes.append(conn.subscribe(topic, 1))
                case ["unsub", topic]:
                    outcomes.append(conn.unsubscribe(topic))
                case ["pub", topic, qos]:
                    outcomes.append(conn.publish(topic, topic.encode(), int(qos)))
        return " ".join([await outcome(each) for each in outcomes]).encode()

    return app


@contextlib.asynccontextmanager
async def denying(
    shared: bool, remembers: bool = True, **options: Any
) -> AsyncIterator[tuple[FakeBroker, Device, App]]:
    """Run a broker that denies `no` by DISCONNECT, and a gateway with a device that has logged in."""
    app = make_app()
    async with fake() as broker:
        broker.denied.add("no")
        broker.disconnects, broker.remembers = True, remembers
        hub = broker.hub(shared=shared, client_id="gate", **options)
        async with Gateway(app, ["tcp://127.0.0.1:0"], hub=hub) as gateway:
            address = gateway.addresses[0][2]
            device = Device(*await asyncio.open_connection(address.host, address.port))
            try:
                assert await device.ask("login d") == "ok"
                yield broker, device, app
            finally:
                await device.hang_up()


@MODES
@REMEMBERS
@pytest.mark.parametrize(
    ("verbs", "answer"),
    [
        ("sub no", "DeniedError"),
        ("pub no 1", "DeniedError"),
        ("pub no 2", "DeniedError"),
        ("sub yes, sub no, sub other", "ok DeniedError ok"),
        ("pub a 1, sub no, pub b 1", "ok DeniedError ok"),
        ("sub no, pub a 2, unsub yes", "DeniedError ok ok"),
        ("pub a 0, pub no 1, pub b 2, sub yes", "ok DeniedError ok ok"),
        ("sub no, pub no 1, sub no, pub a 1", "DeniedError DeniedError DeniedError ok"),
    ],
)
def test_what_is_denied_fails_at_once_and_nothing_else_does(
    shared: bool, remembers: bool, verbs: str, answer: str
) -> None:
    async def test() -> None:
        async with denying(shared, remembers) as (_, device, _app):
            assert await asyncio.wait_for(device.ask(verbs), 4) == answer
            assert await device.ask("pub after 1, sub after") == "ok ok"

    hasty(test)


@MODES
def test_what_goes_out_behind_a_denied_message_of_qos_0_succeeds(shared: bool) -> None:
    async def test() -> None:
        async with denying(shared) as (broker, device, _):
            assert await device.ask("pub no 0, pub a 1, sub yes") == "ok ok ok"
            assert b"a" in broker.payloads()

    hasty(test)


@MODES
def test_a_subscription_that_is_no_longer_allowed_is_given_up(
    shared: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with denying(shared, remembers=False) as (broker, device, _):
            assert await device.ask("sub first, sub second, sub third") == "ok ok ok"
            broker.denied.add("second")
            broker.subscribed.clear()
            for writer in broker.clients.values():
                writer.close()
            assert await device.ask("pub a 1") == "ok"
            assert {topic for _, topic in broker.subscribed} == {"first", "third"}
            assert "lost its subscription to 'second'" in caplog.text

    hasty(test)


@pytest.mark.parametrize("disconnects", [False, True], ids=["told", "disconnected"])
@MODES
@pytest.mark.parametrize("verb", ["sub no", "pub no 1", "pub no 0"])
def test_each_refusal_leaves_a_line_though_it_was_awaited(
    disconnects: bool, shared: bool, verb: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with denying(shared) as (broker, device, _):
            broker.disconnects = disconnects
            await device.ask(f"{verb}, pub after 1")

    hasty(test)
    if verb.endswith("0") and not disconnects:
        return  # the broker says nothing then
    client, user = ("gate", "") if shared else ("d", "u")
    name = {"s": "subscribe", "p": "publish"}[verb[0]]
    words = f"{name} to 'no' refused for clientid {client!r}, username {user!r}: not authorized (0x87)"
    assert words in caplog.text


def test_a_refused_login_leaves_a_line_though_it_was_awaited(caplog: pytest.LogCaptureFixture) -> None:
    async def refused() -> None:
        async with fake() as broker:
            broker.refuse["x"] = 0x86
            async with Gateway(make_app(), ["tcp://127.0.0.1:0"], hub=broker.hub()) as gateway:
                address = gateway.addresses[0][2]
                device = Device(*await asyncio.open_connection(address.host, address.port))
                assert await device.ask("login x") == "DeniedError"
                await device.hang_up()

    hasty(refused)
    assert (
        ": clientid 'x', username 'u': the broker refused 'x': bad user name or password (0x86)"
        in caplog.text
    )


@pytest.mark.parametrize("code", [0x8A, 0x98])
def test_a_device_that_is_kicked_leaves_no_verb_waiting(code: int) -> None:
    async def test() -> None:
        async with denying(shared=False) as (broker, device, _):
            broker.silent = True
            before = broker.packets
            device.send("sub yes, pub a 1, unsub yes")
            await broker.until(lambda broker: broker.packets == before + 3)
            broker.kick("d", code)
            await asyncio.wait_for(device.read(), 4)

    hasty(test)
