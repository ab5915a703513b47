"""What an engine tells those who look, and connections in states that hosts seldom bring about."""

from __future__ import annotations

from typing import Any

import pytest

from exproto_app import App, Connection, Message, Router
from exproto_app.commands import Publish
from exproto_app.core import State
from exproto_app.core.channel import Channel
from exproto_app.core.scheduler import Scheduler
from exproto_app.core.sniffing import Sniffer
from exproto_app.errors import DeniedError
from exproto_app.framing import Line
from exproto_app.models import Address, ConnectionInfo, Limits, SockType
from exproto_app.tap import Closed, Dropped, Event, Failed, Opened, Tap

from .world import FakeLink, FakeRuntime, FakeWaiter, World


class Seen:
    """An observer and watcher that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.events: list[Event] = []

    def connected(self, one: Channel | Sniffer) -> None:
        self.told.append(("connected", one.id))

    def ended(self, one: Channel | Sniffer) -> None:
        self.told.append(("ended", one.id))

    def look(self, tap: Tap, now: float, event: Event) -> None:
        self.events.append(event)


def app_of(**limits: Any) -> App[Any, Any]:
    app: App[Any, Any] = App(framing=Line(limit=20), limits=Limits(**limits))

    @app.on_received
    def frame(conn: Connection[Any, Any], frame: bytes) -> bytes:
        return frame

    return app


def shared() -> tuple[App[Any, Any], list[Router[Any, Any]]]:
    """Return an app whose two protocols share a listener."""
    app: App[Any, Any] = App()
    routers = [Router("lines", framing=Line(), sniff=(b"L",)), Router("wise", framing=Line(), sniff=told)]
    for router in routers:
        app.include(router)
        router.on_received(echo)
    return app, routers


def told(data: bytes) -> bool | None:
    return data.startswith(b"wise") or None  # it may still become so


def echo(conn: Connection[Any, Any], frame: bytes) -> bytes:
    return frame


def sniff(
    world: World, routers: list[Router[Any, Any]], socktype: SockType = "tcp"
) -> tuple[Sniffer, FakeLink]:
    link = FakeLink()
    info = ConnectionInfo(socktype, Address("192.0.2.1", 5000), Address("192.0.2.2", 7993))
    sniffer = world.engine.connected(link, info, routers)
    assert isinstance(sniffer, Sniffer)
    return sniffer, link


# --- connections


def test_observers_are_told_of_each_connection_once() -> None:
    world, seen = World(app_of()), Seen()
    world.engine.observers = (seen,)
    world.engine.watch(seen.look)
    world.engine.watch(seen.look)  # once more, which changes nothing
    channel, _ = world.connect()
    channel.terminated()
    assert seen.told == [("connected", "1"), ("ended", "1")]
    assert [type(event) for event in seen.events] == [Opened, Closed]


def test_what_the_properties_of_a_connection_tell_in_its_life() -> None:
    app, waiter = app_of(), FakeWaiter()

    @app.on_received(b"wait")
    async def wait(conn: Connection[Any, Any], frame: bytes) -> None:
        await waiter

    world = World(app)
    channel, _ = world.connect()
    channel.received(b"wait\n")
    assert channel.turn is not None
    assert (channel.paused, channel.closing, channel.all_handled, channel.will_due) == (
        False,
        None,
        False,
        False,
    )
    waiter.set_result(None)
    world.settle()
    assert channel.turn is None
    channel.terminated()
    assert (channel.paused, channel.turn, channel.commands_waiting) == (False, None, 0)
    channel.watch(lambda *_: None)
    channel.unwatch(print)
    assert channel.tracer is None


def test_a_long_clientid_is_cut_in_the_log() -> None:
    world = World(app_of())
    channel, _ = world.connect()
    channel.conn.register("d" * 100)
    world.hub.unanswered.pop().settle(None)
    assert str(channel).endswith("/" + "d" * 64 + "…")


def test_a_device_that_has_gone_can_neither_be_lost_nor_wait_long_for_a_shutdown() -> None:
    app = app_of(handler_timeout=1000.0)

    @app.on_terminated
    async def gone(conn: Connection[Any, Any], reason: str) -> None:
        await FakeWaiter()

    world = World(app)
    channel, link = world.connect()
    channel.received(b"x\n")
    channel.terminated()
    channel.lose("too late")
    assert (channel.reason, link.told) == ("device closed", [])
    world.engine.shutdown()
    world.runtime.advance(20)
    assert channel.state is State.ENDED


def test_a_command_that_waited_for_an_answer_that_came_too_late_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(app_of())
    world.hub.ordered = world.hub.at_once = False
    channel, _ = world.connect()
    channel.conn.publish("a", b"")
    channel.conn.publish("b", b"")
    channel.conn.subscribe("c")
    channel.terminated()
    world.runtime.advance(6)
    assert channel.state is State.ENDED
    world.hub.unanswered[0].settle(None)
    assert world.hub.asked == [Publish("a", b"")]
    assert "publish to 'b' failed: the connection has ended in the meantime" in caplog.text
    assert world.app.stats["commands_failed"] == 1


def test_one_chunk_is_written_past_the_queue_where_nothing_more_is_to_be_known() -> None:
    world, link, written = World(app_of()), FakeLink(), list[bytes]()
    link.write = written.append
    channel, _ = world.connect(link)
    channel.received(b"a\n")
    world.runtime.advance(0)  # the first read of a device is followed by a look at the clock
    channel.received(b"b\n")
    channel.received(b"c\nd\n")
    assert (written, link.sent) == ([b"a\n", b"b\n"], b"c\nd\n")
    assert channel.bytes_sent == 8


def test_bytes_that_nobody_handles_any_more_are_dropped_and_shown() -> None:
    world, seen = World(app_of()), Seen()
    channel, _ = world.connect()
    channel.watch(seen.look)
    channel.end("kicked")
    channel.received(b"x\n")
    assert world.app.stats["bytes_dropped.closing"] == 2
    channel.terminated()
    assert Dropped("bytes", 2) in seen.events


def test_what_stands_in_a_framing_error_is_dropped_at_the_end() -> None:
    world = World(app_of())
    channel, _ = world.connect()
    channel.unwritable()
    channel.received(b"a\n" + b"x" * 30)
    channel.drained()
    channel.terminated()
    assert channel.state is State.ENDED
    other, _ = world.connect()
    other.received(b"a\n")
    other.congested()
    other.inbound.add(other.inbound.cut(b"x" * 30))
    other.end("kicked")
    world.settle()
    other.terminated()
    assert world.app.stats["bytes_dropped.closing"] >= 30


def test_a_datagram_that_is_no_frame_is_dropped_and_shown() -> None:
    world, seen = World(app_of()), Seen()
    channel, link = world.connect(socktype="udp")
    channel.watch(seen.look)
    channel.received(b"x" * 30)
    channel.received(b"a\n")
    world.settle()
    assert (world.app.stats["datagrams_dropped.framing"], link.sent) == (1, b"a\n")
    assert any(isinstance(event, Failed) for event in seen.events)


def test_a_frame_that_the_codec_cannot_parse_is_shown() -> None:
    def parse(frame: bytes) -> str:
        return frame.decode("ascii")

    app, seen = App[Any, Any](framing=Line(), codec=(parse, None)), Seen()
    app.on_received(lambda conn, message: None)
    world = World(app)
    channel, _ = world.connect()
    channel.watch(seen.look)
    channel.received(b"\xff\n")
    world.settle()
    assert app.stats["frames_bad"] == 1
    assert any(isinstance(event, Failed) for event in seen.events)


def test_frames_that_nobody_takes_are_counted_each_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    app: App[Any, Any] = App(framing=Line())

    @app.on_received(b"known")
    def known(conn: Connection[Any, Any], frame: bytes) -> None:
        """Take it."""

    channel, _ = World(app).connect()
    channel.received(b"x\ny\n")
    assert app.stats["frames_unhandled"] == 2
    assert caplog.text.count("no on_received of") == 1


def test_bytes_that_come_within_a_turn_wait_for_theirs() -> None:
    app, seen = App[Any, Any](framing=Line()), list[bytes]()

    @app.on_received
    def frame(conn: Connection[Any, Any], frame: bytes) -> None:
        seen.append(frame)
        if frame == b"first":
            channel.received(b"third\n")  # as a host may have it that runs handlers at once
            assert seen == [b"first"]

    world = World(app)
    channel, _ = world.connect()
    channel.received(b"first\nsecond\n")
    world.settle()
    assert seen == [b"first", b"second", b"third"]


# --- registrations


def test_a_newer_connection_waits_for_the_older_one_no_longer_than_allowed() -> None:
    app = app_of()

    @app.on_received(b"login")
    def login(conn: Connection[Any, Any], frame: bytes) -> None:
        conn.register("d1")

    world = World(app)
    older, _ = world.connect()
    older.received(b"login\n")
    world.hub.unanswered.pop().settle(None)
    newer, link = world.connect()
    newer.received(b"login\nx\n")
    world.hub.unanswered.pop().settle(None)
    world.settle()
    assert (older.closing, link.sent) == ("taken over", b"")
    world.runtime.advance(11)
    assert link.sent == b"x\n"
    older.terminated()
    world.settle()
    assert list(app.clients) == ["d1"]
    assert app.clients["d1"] is newer.conn


def test_the_answer_to_a_login_of_a_device_that_has_gone_is_nobodys() -> None:
    world = World(app_of())
    channel, _ = world.connect()
    channel.conn.register("d1", session_expiry=60, will=Message("gone", b""), mountpoint="m/")
    answer = world.hub.unanswered.pop()
    channel.terminated()
    answer.settle(None)
    world.settle()
    assert dict(world.app.clients) == {}


def test_a_second_login_stands_behind_the_first_and_counts() -> None:
    world = World(app_of())
    channel, _ = world.connect()
    first, second = channel.conn.register("d1"), channel.conn.register("d2")
    world.hub.unanswered.pop().fail(DeniedError("no"))
    world.hub.unanswered.pop().settle(None)
    world.settle()
    assert (str(first.error), second.error) == ("no", None)
    assert list(world.app.clients) == ["d2"]


# --- connections whose protocol isn't known yet


def test_a_sniffer_answers_what_drivers_ask_before_and_after_it_has_decided() -> None:
    app, routers = shared()
    world = World(app)
    sniffer, link = sniff(world, routers)
    assert (sniffer.paused, sniffer.busy, sniffer.turn, sniffer.closing) == (False, True, None, None)
    sniffer.unwritable()
    sniffer.drained()
    sniffer.delivered([Message("a", b"")])
    sniffer.received(b"L1\n")
    world.settle()
    assert (sniffer.paused, sniffer.busy, sniffer.turn, sniffer.closing) == (False, False, None, None)
    assert (link.sent, app.stats["deliveries_dropped"]) == (b"L1\n", 1)


@pytest.mark.parametrize(("data", "decided"), [(b"", False), (b"w", False), (b"wise", True)])
def test_what_has_come_decides_when_a_sniffer_drains(data: bytes, *, decided: bool) -> None:
    app, routers = shared()
    world, seen = World(app), Seen()
    world.engine.observers = (seen,)
    sniffer, link = sniff(world, routers)
    sniffer.data = data
    sniffer.end("kicked", drain=True)
    assert link.channel is not None
    link.channel.end("kicked", drain=True)
    world.settle()
    assert (sniffer.closing, link.told, sniffer.channel is not None) == ("kicked", ["close"], decided)
    link.channel.received(b"more")
    link.channel.terminated()
    link.channel.terminated()
    world.settle()
    assert app.stats["bytes_dropped"] == (len(data) if decided else 0) + 4
    assert seen.told == [("connected", "1"), ("ended", "1")]
    assert world.engine.open == 0


def test_watchers_of_a_sniffer_come_and_go() -> None:
    app, routers = shared()
    world, seen, other = World(app), Seen(), Seen()
    sniffer, _ = sniff(world, routers)
    sniffer.unwatch(seen.look)
    sniffer.watch(seen.look)
    sniffer.watch(other.look)
    sniffer.unwatch(other.look)
    assert sniffer.tap is not None
    sniffer.unwatch(seen.look)
    assert sniffer.tap is None
    assert [type(event) for event in seen.events] == [Opened]


def test_an_empty_datagram_tells_no_protocol() -> None:
    app, routers = shared()
    world = World(app)
    sniffer, link = sniff(world, routers, "udp")
    sniffer.received(b"")
    assert (sniffer.closing, link.told) == ("error", ["close"])
    world.runtime.advance(6)
    assert link.told == ["close", "abort"]


# --- the scheduler


def test_whoever_asks_twice_has_one_slice() -> None:
    class Busy:
        scheduled = newcomer = False
        advanced = 0

        def advance(self) -> None:
            self.advanced += 1
            scheduler.pace()

    runtime, one = FakeRuntime(), Busy()
    scheduler = Scheduler(runtime)
    scheduler.later(one)
    scheduler.later(one)
    scheduler.pace()
    scheduler.pace()
    runtime.settle()
    assert (one.advanced, scheduler.busy) == (1, False)


# --- what comes late for a connection whose protocol isn't known


def test_what_comes_behind_its_end_is_counted() -> None:
    app, routers = shared()
    world = World(app)
    sniffer, _ = sniff(world, routers)
    sniffer.received(b"w")
    sniffer.end("shutdown")
    sniffer.end("error", "again")
    before = app.stats["bytes_dropped"]
    sniffer.received(b"ise")
    assert app.stats["bytes_dropped"] == before + 3
    assert app.stats["bytes_dropped.closing"] >= 3
    sniffer.terminated("lost")
    sniffer.terminated("device closed")
    assert sniffer.reason == "shutdown"
    assert not world.engine.sniffers


def test_a_driver_may_go_on_feeding_what_it_knew_first() -> None:
    """Once the protocol is known, all goes to the connection that it has become."""
    app, routers = shared()
    world = World(app)
    sniffer, link = sniff(world, routers)
    sniffer.received(b"Lone\n")
    world.settle()
    assert sniffer.channel is not None
    sniffer.received(b"more\n")
    world.settle()
    assert link.sent == b"Lone\nmore\n"
    sniffer.end("terminated")
    world.settle()
    assert link.told == ["close"]
    sniffer.terminated()
    world.settle()
    assert sniffer.channel.state is State.ENDED
