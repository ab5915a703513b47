"""What waits in small pieces: it counts for more than its bytes, and on a stream it is joined."""

from __future__ import annotations

from typing import Any

from exproto_app import App, Connection
from exproto_app.core.inbound import EVENT, EVENTS
from exproto_app.framing import Line

from .world import FakeWaiter, World


def slow(waiter: FakeWaiter, seen: list[bytes]) -> App[Any, Any]:
    app: App[Any, Any] = App(framing=Line())

    @app.on_received
    async def frame(conn: Connection[Any, Any], frame: bytes) -> None:
        if not seen:
            seen.append(frame)
            await waiter
        else:
            seen.append(frame)

    return app


def test_bytes_that_come_one_by_one_wait_together() -> None:
    waiter, seen = FakeWaiter(), list[bytes]()
    world = World(slow(waiter, seen))
    channel, _ = world.connect()
    channel.received(b"first\n")
    for number in range(20_000):
        channel.received(b"%d" % (number % 10) if number % 100 else b"\n")
    assert channel.inbound.events < 20
    assert channel.bytes_held < 21_000 + 20 * EVENT
    waiter.set_result(None)
    world.settle()
    assert len(seen) == 201
    assert seen[1] == b""
    assert seen[2] == b"123456789" + b"0123456789" * 9


def test_empty_datagrams_that_wait_are_bounded_and_count_as_memory() -> None:
    waiter, seen = FakeWaiter(), list[bytes]()
    world = World(slow(waiter, seen))
    channel, _ = world.connect(socktype="udp")
    channel.received(b"first\n")
    for _ in range(EVENTS + 10):
        channel.received(b"")
    assert channel.inbound.events == EVENTS
    assert channel.bytes_held >= EVENTS * EVENT
