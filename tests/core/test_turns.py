"""What has turns of its own: messages, silence, regular calls, and handlers that take longer."""

from __future__ import annotations

from typing import Any

import pytest

from exproto_app import App, Connection, Message
from exproto_app.core import State
from exproto_app.framing import Line
from exproto_app.models import Limits
from exproto_app.tap import Dropped, Event, Failed

from .world import FakeWaiter, World


def app_of(**limits: Any) -> App[Any, Any]:
    app: App[Any, Any] = App(framing=Line(), limits=Limits(**limits))

    @app.on_received
    def frame(conn: Connection[Any, Any], frame: bytes) -> None:
        """Take every frame."""

    return app


# --- messages


def test_each_message_is_acknowledged_behind_its_handler() -> None:
    app, seen = app_of(), list[str]()

    @app.on_deliver("one")
    def one(conn: Connection[Any, Any], message: Message) -> None:
        seen.append("one")

    channel, _ = World(app).connect()
    channel.delivered([Message("one", b"")], lambda: seen.append("acknowledged"))
    channel.delivered([Message("none", b"")], lambda: seen.append("acknowledged, though nobody takes it"))
    channel.advance()
    assert seen == ["one", "acknowledged", "acknowledged, though nobody takes it"]
    assert app.stats["messages_unhandled"] == 1


def test_a_batch_holds_what_one_handler_takes_and_is_acknowledged_as_a_whole() -> None:
    app, seen = app_of(), list[Any]()

    @app.on_deliver("many/#", batch=True)
    def many(conn: Connection[Any, Any], messages: list[Message]) -> None:
        seen.append([message.topic for message in messages])

    @app.on_deliver
    def rest(conn: Connection[Any, Any], message: Message) -> None:
        seen.append(message.topic)

    channel, _ = World(app).connect()
    channel.delivered([Message("many/1", b""), Message("many/2", b"")], lambda: seen.append("first"))
    channel.delivered([Message("many/3", b""), Message("x", b"")], lambda: seen.append("second"))
    channel.advance()
    assert seen == [["many/1", "many/2", "many/3"], "first", "x", "second"]


@pytest.mark.parametrize("reason", ["device closed", "kicked"])
def test_a_message_whose_handler_the_device_leaves_is_not_acknowledged(reason: Any) -> None:
    app, seen, waiter = app_of(), list[str](), FakeWaiter()

    @app.on_deliver
    async def deliver(conn: Connection[Any, Any], message: Message) -> None:
        await waiter
        seen.append("handled")

    world = World(app)
    channel, _ = world.connect()
    channel.delivered([Message("a", b"")], lambda: seen.append("acknowledged"))
    channel.advance()
    if reason == "kicked":
        channel.end(reason)
    else:
        channel.terminated(reason)
    waiter.set_result(None)
    world.settle()
    assert seen == ["handled"]


def test_messages_beyond_the_limit_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    app, events = app_of(deliveries=2), list[Event]()

    @app.on_deliver
    def deliver(conn: Connection[Any, Any], message: Message) -> None:
        """Take it."""

    world = World(app)
    world.engine.watch(lambda tap, now, event: events.append(event))
    channel, _ = world.connect()
    channel.delivered([Message("a", b"")] * 5)
    channel.delivered([Message("a", b"")] * 1)
    channel.delivered([Message("a", b"")] * 2)
    assert app.stats["deliveries_dropped.queue_full"] == 6
    assert caplog.text.count("2 wait, limit is 2") == 1, "a flood of them isn't one of lines"
    world.settle()
    assert app.stats["messages_delivered"] == 2
    assert Dropped("messages", 3) in events
    channel.end("kicked")
    channel.delivered([Message("a", b"")] * 8)
    assert app.stats["deliveries_dropped.closing"] == 8
    assert "14 messages dropped: the connection ends" in caplog.text


def test_what_waits_when_the_connection_ends_is_dropped_and_counted() -> None:
    app = app_of()
    world = World(app)
    channel, _ = world.connect()
    channel.delivered([Message("a", b"")] * 3)
    channel.conn.spawn(nothing())
    channel.end("kicked")
    world.settle()
    assert app.stats["deliveries_dropped.closing"] == 3


async def nothing() -> None:
    """End at once."""


# --- silence


def test_bytes_of_the_device_start_its_timer_afresh() -> None:
    world = World(app_of())
    channel, _ = world.connect()
    channel.conn.start_timer(100)
    channel.conn.start_timer(10)  # in its place
    world.runtime.advance(6)
    channel.received(b"x\n")
    world.runtime.advance(6)
    assert not channel.busy
    world.runtime.advance(6)
    assert (channel.reason, channel.detail) == ("timeout", "silent for 10 s")


def test_a_device_that_is_not_read_is_not_silent() -> None:
    world = World(app_of())
    channel, _ = world.connect()
    channel.received(b"x\n")
    channel.conn.start_timer(10)
    channel.congested()
    world.runtime.advance(35)
    channel.relieved()
    assert not channel.closing
    world.runtime.advance(15)
    assert channel.closing == "timeout"


def test_on_timeout_may_start_the_timer_again() -> None:
    app, seen = app_of(), list[int]()

    @app.on_timeout
    def timeout(conn: Connection[Any, Any]) -> None:
        seen.append(len(seen))
        if len(seen) < 3:
            conn.start_timer(10)

    world = World(app)
    channel, _ = world.connect()
    channel.received(b"x\n")
    channel.conn.start_timer(10)
    world.runtime.advance(45)
    assert (seen, channel.closing) == ([0, 1, 2], "timeout")


def test_a_silent_datagram_peer_has_gone_unless_a_timer_of_the_apps_runs() -> None:
    world = World(app_of(datagram_idle=20.0))
    channel, _ = world.connect(socktype="udp")
    world.runtime.advance(15)
    channel.received(b"x\n")
    world.runtime.advance(15)
    assert not channel.closing
    channel.conn.start_timer(50)
    world.runtime.advance(45)
    assert not channel.closing
    world.runtime.advance(10)
    assert channel.detail == "silent for 50 s"
    other, _ = world.connect(socktype="udp")
    other.received(b"x\n")
    world.runtime.advance(21)
    assert other.detail == "no datagram for 20 s"


def test_timers_that_fire_although_they_were_cancelled_do_nothing() -> None:
    app, ticks = app_of(datagram_idle=20.0), list[int]()

    @app.every(7)
    def tick(conn: Connection[Any, Any]) -> None:
        ticks.append(1)

    world = World(app)
    channel, _ = world.connect(socktype="udp")
    channel.received(b"x\n")
    channel.conn.start_timer(5)
    channel.terminated()
    while world.runtime.timers:
        world.runtime.fire_late(0)
        world.settle()
    assert (channel.state, channel.reason, ticks) == (State.ENDED, "device closed", [])


# --- regular calls, and handlers that take longer


def test_a_regular_call_is_skipped_while_the_last_one_runs() -> None:
    app, waiter = app_of(), FakeWaiter()

    @app.every(10)
    async def tick(conn: Connection[Any, Any]) -> None:
        await waiter

    world = World(app)
    channel, _ = world.connect()
    channel.received(b"x\n")
    world.runtime.advance(35)
    assert app.stats["ticks_skipped"] == 2
    waiter.set_result(None)
    world.runtime.advance(10)
    assert app.stats["ticks_skipped"] == 2


def test_a_handler_that_goes_on_although_it_was_cancelled_is_left_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = app_of(handler_timeout=10.0)

    @app.on_received(b"stubborn", blocking=True)
    def stubborn(conn: Connection[Any, Any], frame: bytes) -> bytes:
        return b"too late"

    world = World(app)
    channel, link = world.connect()
    channel.received(b"stubborn\nx\n")
    world.runtime.advance(16)
    assert "stubborn keeps running although it was cancelled" in caplog.text
    assert channel.detail.endswith("ran longer than 10 s")
    world.runtime.threads[0].run()
    assert link.sent == b""


@pytest.mark.parametrize("reply", ["text", 5])
def test_a_reply_that_cannot_be_sent_is_the_handlers_error(reply: object) -> None:
    app, waiter = app_of(), FakeWaiter()

    @app.on_received(b"late")
    async def late(conn: Connection[Any, Any], frame: bytes) -> Any:
        await waiter
        return reply

    @app.on_received(b"coroutine")
    async def coroutine(conn: Connection[Any, Any], frame: bytes) -> Any:
        return FakeWaiter()

    world = World(app)
    channel, _ = world.connect()
    channel.received(b"late\n")
    waiter.set_result(None)
    world.settle()
    assert f"returned {type(reply).__name__}, not bytes or None" in channel.detail
    other, _ = world.connect()
    other.received(b"coroutine\n")
    world.settle()
    assert "returned FakeWaiter, not bytes or None" in other.detail


def test_a_subclass_of_bytes_is_a_reply_like_bytes() -> None:
    class Packet(bytes):
        """One of a user's own."""

    app: App[Any, Any] = App(framing=Line())

    @app.on_received
    def frame(conn: Connection[Any, Any], frame: bytes) -> bytes:
        return Packet(frame)

    channel, link = World(app).connect()
    channel.received(b"x\n")
    assert link.sent == b"x\n"


def test_a_task_that_is_dropped_behind_the_end_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    app = app_of()

    @app.on_received(b"thread", blocking=True)
    def thread(conn: Connection[Any, Any], frame: bytes) -> None:
        raise ValueError(frame)

    world = World(app)
    channel, _ = world.connect()
    channel.received(b"thread\n")
    channel.terminated()
    world.runtime.advance(30)
    assert channel.state is State.ENDED
    world.runtime.threads[0].run()
    channel.failed("late", None, ValueError("late"))
    assert "late failed after the end" in caplog.text


def test_handlers_in_threads_have_turns_like_others() -> None:
    app, seen = app_of(), list[str]()

    @app.on_deliver(blocking=True)
    def deliver(conn: Connection[Any, Any], message: Message) -> None:
        seen.append(message.topic)

    @app.on_timeout(blocking=True)
    def timeout(conn: Connection[Any, Any]) -> None:
        seen.append("timeout")

    world = World(app)
    channel, _ = world.connect()
    channel.delivered([Message("a", b"")], lambda: seen.append("acknowledged"))
    channel.advance()
    world.runtime.threads.pop().run()
    channel.conn.start_timer(5)
    world.runtime.advance(6)
    world.runtime.threads.pop().run()
    assert seen == ["a", "acknowledged", "timeout"]
    assert channel.reason == "timeout"


def test_a_handler_that_the_end_interrupts_has_not_failed() -> None:
    app, waiter = app_of(), FakeWaiter()

    @app.on_received(b"slow")
    async def slow(conn: Connection[Any, Any], frame: bytes) -> None:
        await waiter
        await conn.subscribe("a")

    world = World(app)
    channel, _ = world.connect()
    channel.received(b"slow\n")
    channel.terminated()
    waiter.set_result(None)
    world.settle()
    assert (channel.state, app.stats["handler_errors"]) == (State.ENDED, 0)


def test_an_on_error_that_fails_is_logged_and_shown(caplog: pytest.LogCaptureFixture) -> None:
    app, events = app_of(), list[Event]()

    @app.on_received(b"bad")
    def bad(conn: Connection[Any, Any], frame: bytes) -> None:
        raise ValueError(frame)

    @app.on_error
    def wrong(conn: Connection[Any, Any], error: BaseException) -> None:
        raise KeyError("wrong")

    world = World(app)
    channel, _ = world.connect()
    channel.watch(lambda tap, now, event: events.append(event))
    channel.received(b"bad\n")
    world.settle()
    assert channel.reason == "error"
    assert "wrong failed: KeyError('wrong')" in caplog.text
    assert len([event for event in events if isinstance(event, Failed)]) == 2


def test_a_limit_of_the_end_that_fires_late_does_nothing() -> None:
    app = app_of()
    world = World(app)
    world.hub.at_once = False
    channel, link = world.connect()
    channel.conn.publish("a", b"")
    channel.end("kicked")
    world.settle()
    limit = world.runtime.timers[-1]
    channel.terminated()
    assert channel.state is State.ENDED
    limit.call()
    assert link.told == []


def test_a_last_message_is_waited_for_once() -> None:
    app = app_of()

    @app.on_terminated
    def gone(conn: Connection[Any, Any], reason: str) -> None:
        conn.publish("last", b"")

    world = World(app)
    world.hub.at_once = False
    channel, _ = world.connect()
    channel.terminated()
    limit = world.runtime.timers[-1]
    world.hub.unanswered[0].settle(None)
    assert channel.state is State.ENDED
    limit.call()
    assert world.hub.forgotten == [channel]
