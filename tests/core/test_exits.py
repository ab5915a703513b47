"""What handlers raise, of every kind: errors of theirs, or the end of the whole host."""

from __future__ import annotations

from typing import Any

import pytest

from exproto_app import App, Connection, Message, Router
from exproto_app.core.states import ENDED
from exproto_app.framing import Line
from exproto_app.models import Address, ConnectionInfo

from .world import Cancelled, FakeLink, World

KINDS = (
    "state",
    "connect",
    "received",
    "async",
    "behind an await",
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
)


def app_of(kind: str, error: BaseException, seen: list[str]) -> App[Any, Any]:  # noqa: C901 - one app of all
    def fail(here: str) -> None:
        if here == kind:
            seen.append("raised")
            raise error

    def make_state() -> None:
        fail("state")

    def parse(frame: bytes) -> bytes:
        fail("codec")
        return frame

    def key(frame: bytes) -> bytes:
        fail("key")
        return frame

    app: App[Any, Any] = App(framing=Line(), state=make_state, codec=(parse, None), key=key)

    @app.on_connect
    def connect(conn: Connection[Any, Any]) -> None:
        fail("connect")

    @app.on_received
    def received(conn: Connection[Any, Any], frame: bytes) -> None:
        fail("received")
        if kind == "timeout":
            conn.start_timer(1)
        if kind == "error":
            raise ValueError(frame)
        if kind == "spawn":
            conn.spawn(spawned())
        if kind == "match":
            conn.request(b"?", match=lambda _: fail("match"))

    async def spawned() -> None:
        fail("spawn")

    @app.on_received(b"async")
    async def at_once(conn: Connection[Any, Any], frame: bytes) -> None:
        fail("async")

    @app.on_received(b"behind an await")
    async def later(conn: Connection[Any, Any], frame: bytes) -> None:
        await conn.register("d1")
        fail("behind an await")

    @app.on_received(b"blocking", blocking=True)
    def blocking(conn: Connection[Any, Any], frame: bytes) -> None:
        fail("blocking")

    @app.on_deliver
    def deliver(conn: Connection[Any, Any], message: Message) -> None:
        fail("deliver")

    @app.on_timeout
    def timeout(conn: Connection[Any, Any]) -> None:
        fail("timeout")

    @app.every(10)
    def tick(conn: Connection[Any, Any]) -> None:
        fail("every")

    @app.on_terminated
    def terminated(conn: Connection[Any, Any], reason: str) -> None:
        seen.append(f"gone: {reason}")
        fail("terminated")

    @app.on_error
    def wrong(conn: Connection[Any, Any], error: BaseException) -> None:
        fail("error")

    return app


def provoke(kind: str, world: World) -> None:
    """Have the handler of *kind* run, then the device hang up."""
    channel, _ = world.connect()
    channel.received(kind.encode() + b"\n")
    if kind == "match":
        channel.received(b"!\n")
    world.settle()
    for outcome in world.hub.unanswered:
        outcome.settle(None)
    for thread in world.runtime.threads:
        thread.run()
    channel.delivered([Message("t", b"")])
    world.runtime.advance(12)
    channel.terminated()
    world.runtime.advance(30)
    assert channel.state is ENDED


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_an_exit_ends_the_host_and_the_connection_ends_as_ever(kind: str, error: BaseException) -> None:
    seen: list[str] = []
    world = World(app_of(kind, error, seen))
    provoke(kind, world)
    assert world.runtime.exited[:1] == [error]
    assert seen.count("raised") >= 1
    assert sum(line.startswith("gone") for line in seen) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_inside_a_broker_an_exit_is_the_handlers_error(kind: str) -> None:
    seen: list[str] = []
    world = World(app_of(kind, SystemExit(3), seen))
    world.runtime.exits = ()
    provoke(kind, world)
    assert not world.runtime.exited
    assert world.app.stats["handler_errors"] >= 1
    assert sum(line.startswith("gone") for line in seen) == 1


@pytest.mark.parametrize("error", [GeneratorExit(), Cancelled(), BaseException("odd")], ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_other_base_exceptions_are_the_handlers_errors(kind: str, error: BaseException) -> None:
    seen: list[str] = []
    world = World(app_of(kind, error, seen))
    provoke(kind, world)
    assert not world.runtime.exited
    assert world.app.stats["handler_errors"] >= 1
    assert sum(line.startswith("gone") for line in seen) == 1


@pytest.mark.parametrize(("error", "exits"), [(SystemExit(3), 1), (GeneratorExit(), 0)], ids=repr)
def test_sniff_may_raise_as_well(error: BaseException, exits: int) -> None:
    def sniff(data: bytes) -> bool:
        raise error

    app: App[Any, Any] = App()
    routers = [Router("one", sniff=sniff), Router("two")]
    for router in routers:
        app.include(router)
    world, link = World(app), FakeLink()
    info = ConnectionInfo("tcp", Address("192.0.2.1", 5000), Address("192.0.2.2", 7993))
    sniffer = world.engine.connected(link, info, routers)
    sniffer.received(b"x")
    world.settle()
    assert link.told == ["close"]
    assert len(world.runtime.exited) == exits
