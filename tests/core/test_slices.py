"""No connection holds the loop: work is done in slices, and others have their turns in between."""

from __future__ import annotations

import pytest

from exproto_app import App, Connection, Message
from exproto_app.core.states import ENDED, ROUND, SLICE
from exproto_app.framing import RAW, Line

from .world import World


def app_of(seen: list[tuple[str, bytes]], *, raw: bool = False) -> App:
    app = App(framing=RAW if raw else Line())

    @app.on_received
    def frame(conn: Connection, frame: bytes) -> None:
        seen.append((conn.id, frame))

    @app.on_deliver
    def message(conn: Connection, message: Message) -> None:
        seen.append((conn.id, message.payload))

    return app


def longest_callback(world: World) -> float:
    """Do what is to be done soon; return how long the longest callback took."""
    longest = 0.0
    while world.runtime.soon:
        before = world.runtime.now
        world.runtime.soon.popleft()()
        longest = max(longest, world.runtime.now - before)
    return longest


def test_a_flood_is_worked_off_in_slices_and_read_no_further() -> None:
    seen: list[tuple[str, bytes]] = []
    world = World(app_of(seen))
    channel, link = world.connect()
    channel.received(b"x\n")
    world.runtime.tick = 0.0005  # what a look at the clock costs, and so a few frames
    before = world.runtime.now
    channel.received(b"x\n" * 500_000)
    assert world.runtime.now - before <= SLICE + 0.001
    assert link.paused
    assert longest_callback(world) <= ROUND + 0.003
    assert len(seen) == 500_001
    assert not link.paused


def test_the_slices_of_many_go_round() -> None:
    seen: list[tuple[str, bytes]] = []
    world = World(app_of(seen))
    channels = [world.connect()[0] for _ in range(20)]
    world.runtime.tick = 0.0005
    for channel in channels:
        channel.received(b"x\n" * 20_000)
    quiet, _ = world.connect()
    quiet.received(b"hi\n")
    before = world.runtime.now
    while (quiet.id, b"hi") not in seen:
        world.runtime.soon.popleft()()
    assert world.runtime.now - before <= 22 * (SLICE + 0.001)
    world.settle()
    assert len(seen) == 400_001


def test_a_hang_up_with_much_queued_holds_nobody() -> None:
    seen: list[tuple[str, bytes]] = []
    world = World(app_of(seen))
    channel, _ = world.connect()
    world.runtime.tick = 0.0005
    channel.received(b"0123456789\n" * 50_000)
    before = world.runtime.now
    channel.terminated()
    assert world.runtime.now - before <= SLICE + 0.001
    assert longest_callback(world) <= ROUND + 0.003
    assert (len(seen), channel.state) == (50_000, ENDED)


def test_deliveries_are_sliced_too() -> None:
    seen: list[tuple[str, bytes]] = []
    world = World(app_of(seen))
    channel, _ = world.connect()
    world.runtime.tick = 0.0005
    channel.delivered([Message("t", b"%d" % number) for number in range(1_000)])
    assert longest_callback(world) <= ROUND + 0.003
    assert [payload for _, payload in seen] == [b"%d" % number for number in range(1_000)]


@pytest.mark.parametrize("size", [100, 8_192, 65_536])
def test_raw_reads_stay_whole(size: int) -> None:
    seen: list[tuple[str, bytes]] = []
    world = World(app_of(seen, raw=True))
    channel, _ = world.connect()
    for _ in range(3):
        channel.received(b"x" * size)
        world.settle()
    assert [len(frame) for _, frame in seen] == [size] * 3


def test_what_is_handled_on_the_spot_is_paced() -> None:
    """Many small reads in one turn of the loop, each with an expensive handler: soon they wait too."""
    seen: list[tuple[str, bytes]] = []
    app = App(framing=Line())

    @app.on_received
    def slow(conn: Connection, frame: bytes) -> None:
        world.runtime.now += 0.002
        seen.append((conn.id, frame))

    world = World(app)
    channels = [world.connect()[0] for _ in range(50)]
    for channel in channels:
        channel.received(b"hi\n")
    world.settle()
    before = world.runtime.now
    for channel in channels:
        channel.received(b"hi\n" * 15)
    assert world.runtime.now - before <= 0.1
    world.settle()
    assert len(seen) == 50 + 50 * 15
