"""No connection holds the loop: work is done in slices, and others have their turns in between."""

from __future__ import annotations

import pytest

from exproto_app import App, Connection, Message
from exproto_app.core.states import ENDED, ROUND, SLICE
from exproto_app.framing import RAW, Decoding, Line, Reader

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
    assert world.runtime.now - before <= SLICE + 0.002
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
    assert world.runtime.now - before <= 2 * ROUND
    world.settle()
    assert len(seen) == 400_001


def test_who_has_worked_least_comes_first() -> None:
    """However many flood: a device with a line now and then waits for no more than the slice that runs."""
    seen: list[tuple[str, bytes]] = []
    world = World(app_of(seen))
    floods = [world.connect()[0] for _ in range(50)]
    quiet = [world.connect()[0] for _ in range(5)]
    world.runtime.tick = 0.0005
    for flood in floods:
        flood.received(b"x\n" * 30_000)
    for _ in range(20):
        world.runtime.soon.popleft()()
    for number in range(20):
        for channel in quiet:
            channel.received(b"%d\n" % number)
        before = world.runtime.now
        for _ in range(2):
            world.runtime.soon.popleft()()
        assert {(channel.id, b"%d" % number) for channel in quiet} <= set(seen)
        assert world.runtime.now - before <= 2 * (ROUND + 0.003)
    world.settle()
    assert len(seen) == 50 * 30_000 + 5 * 20


def test_newcomers_come_behind_those_who_have_said_something() -> None:
    """However fast they come: and when too many of them wait, no more should."""
    seen: list[tuple[str, bytes]] = []
    world = World(app_of(seen))
    known = world.connect()[0]
    known.received(b"hello\n")
    world.settle()
    flood = world.connect()[0]
    strangers = [world.connect()[0] for _ in range(200)]
    world.runtime.tick = 0.0005
    flood.received(b"x\n" * 120_000)
    for _ in range(2):
        world.runtime.soon.popleft()()
    assert not world.engine.scheduler.crowded
    for stranger in strangers:
        stranger.received(b"x\n" * 300)
    assert world.engine.scheduler.crowded
    known.received(b"me\n")
    for _ in range(2):
        world.runtime.soon.popleft()()
    assert (known.id, b"me") in seen
    world.settle()
    assert not world.engine.scheduler.crowded
    assert len(seen) == 120_000 + 200 * 300 + 2


def test_those_who_flood_have_equal_shares() -> None:
    seen: list[tuple[str, bytes]] = []
    world = World(app_of(seen))
    floods = [world.connect()[0] for _ in range(3)]
    world.runtime.tick = 0.0005
    for number, flood in enumerate(floods):
        flood.received(b"x\n" * 50_000 * (number + 1))
    for _ in range(60):
        world.runtime.soon.popleft()()
    shares = [sum(who == flood.id for who, _ in seen) for flood in floods]
    assert min(shares) > 0.7 * max(shares)
    world.settle()
    assert len(seen) == 300_000


def test_many_hang_ups_at_once_hold_nobody() -> None:
    """Each of them has frames left, which are handled in slices too."""
    seen: list[tuple[str, bytes]] = []
    world = World(app_of(seen))
    channels = [world.connect()[0] for _ in range(50)]
    world.runtime.tick = 0.0005
    for channel in channels:
        channel.received(b"0123456789\n" * 5_000)
    before = world.runtime.now
    for channel in channels:
        channel.terminated()
    assert world.runtime.now - before <= 50 * 0.003 + ROUND
    assert longest_callback(world) <= ROUND + 0.003
    assert len(seen) == 50 * 5_000
    assert {channel.state for channel in channels} == {ENDED}


def test_a_large_datagram_is_cut_in_slices_and_counts_as_a_whole() -> None:
    world: World

    class Slow:
        limit = 8

        def encode(self, frame: bytes) -> bytes:
            return frame

        def decode(self, reader: Reader) -> Decoding:
            while True:
                line = yield from reader.until(b"\n")
                world.runtime.now += 0.00005
                yield line

    app = App(framing=Slow())
    seen: list[bytes] = []

    @app.on_received
    def frame(conn: Connection, frame: bytes) -> None:
        seen.append(frame)

    world = World(app)
    channel, _ = world.connect(socktype="udp")
    channel.received(b"x\n" * 30_000 + b"end")
    assert seen == []
    channel.received(b"next\n")
    assert longest_callback(world) <= ROUND + 0.003
    assert seen == [b"x"] * 30_000 + [b"end", b"next"]
    seen.clear()
    channel.received(b"y\n" * 20_000 + b"longer than the limit\n" + b"z\n" * 5_000)
    channel.received(b"next\n")
    world.settle()
    assert seen == [b"next"]
    assert app.stats["datagrams_dropped"] == 1
    assert channel.inbound.size == 0


def test_a_hang_up_with_much_queued_holds_nobody() -> None:
    seen: list[tuple[str, bytes]] = []
    world = World(app_of(seen))
    channel, _ = world.connect()
    world.runtime.tick = 0.0005
    channel.received(b"0123456789\n" * 50_000)
    before = world.runtime.now
    channel.terminated()
    assert world.runtime.now - before <= SLICE + 0.002
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


def test_a_framing_that_is_slow_is_fed_in_smaller_pieces() -> None:
    """What a byte costs is up to the framing; how long a slice takes is not."""
    world: World

    class Slow:
        def encode(self, frame: bytes) -> bytes:
            return frame

        def decode(self, reader: Reader) -> Decoding:
            while True:
                byte = yield from reader.exactly(1)
                world.runtime.now += 0.00001
                if byte == b"!":
                    yield byte

    app = App(framing=Slow())
    seen: list[bytes] = []

    @app.on_received
    def frame(conn: Connection, frame: bytes) -> None:
        seen.append(frame)

    world = World(app)
    channels = [world.connect()[0] for _ in range(5)]
    before = world.runtime.now
    for channel in channels:
        channel.received(b"x" * 20_000 + b"!")
    assert world.runtime.now - before <= 5 * (SLICE + 0.006)
    assert longest_callback(world) <= ROUND + 0.003
    assert seen == [b"!"] * 5


def test_small_reads_of_many_that_bring_no_frame_are_paced_too() -> None:
    seen: list[tuple[str, bytes]] = []
    world = World(app_of(seen))
    channels = [world.connect()[0] for _ in range(200)]
    world.runtime.tick = 0.0005
    before = world.runtime.now
    for channel in channels:
        channel.received(b"x")
    assert world.runtime.now - before <= 2 * ROUND
    for channel in channels:
        channel.received(b"\n")
    world.settle()
    assert len(seen) == 200


def test_busy_connections_make_nobody_wait_while_the_loop_comes_round() -> None:
    seen: list[tuple[str, bytes]] = []
    world = World(app_of(seen))
    channels = [world.connect()[0] for _ in range(32)]
    for _ in range(40):  # passes of the loop, of several rounds' time in all
        before = len(seen)
        for channel in channels:
            channel.received(b"x\n")
            world.runtime.now += ROUND / 100
        assert len(seen) == before + 32
        for _ in range(len(world.runtime.soon)):
            world.runtime.soon.popleft()()


def test_what_comes_late_in_a_pass_that_takes_long_waits_for_the_next() -> None:
    seen: list[tuple[str, bytes]] = []
    world = World(app_of(seen))
    channels = [world.connect()[0] for _ in range(64)]
    world.runtime.now += 1
    for channel in channels:
        channel.received(b"x\n")
        world.runtime.now += ROUND / 20
    assert 0 < len(seen) < 64
    world.settle()
    assert len(seen) == 64
