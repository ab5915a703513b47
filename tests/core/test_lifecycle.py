"""Every transition of the lifecycle, fed to a connection by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from exproto_app import App, Connection
from exproto_app.core import State
from exproto_app.core.states import CLOSED, CLOSING, DRAINING, ENDED, OPEN, OPENING
from exproto_app.errors import ClosedError, UnavailableError
from exproto_app.framing import Delimiter, Line
from exproto_app.models import Limits, Message

from .world import FakeLink, World


class Life:
    """An app that notes what happens, and its world."""

    def __init__(self, framing: Any = None) -> None:
        self.seen: list[str] = []
        self.app: App[Any, Any] = App(framing=framing or Line(), limits=Limits())
        self.conns: list[Connection[Any, Any]] = []

        @self.app.on_connect
        def connect(conn: Connection) -> None:
            self.conns.append(conn)
            self.seen.append("connect")

        @self.app.on_received
        def frame(conn: Connection, frame: bytes) -> bytes:
            self.seen.append(frame.decode())
            if frame == b"bye":
                conn.terminate()
            if frame == b"bad":
                raise ValueError(frame)
            return frame

        @self.app.on_terminated
        def gone(conn: Connection, reason: str) -> None:
            self.seen.append(f"gone: {reason}")
            conn.publish("last", b"")

        self.world = World(self.app)


@pytest.fixture
def life() -> Iterator[Life]:
    life = Life()
    yield life
    life.world.stop()


def test_a_frame_opens(life: Life) -> None:
    channel, link = life.world.connect()
    assert (channel.state,) == (OPENING,)
    channel.received(b"hi\n")
    assert (channel.state,) == (OPEN,)
    assert link.sent == b"hi\n"


def test_silence_at_the_start_closes(life: Life) -> None:
    channel, link = life.world.connect()
    life.world.runtime.advance(61)
    assert (channel.state, channel.reason, link.told) == (CLOSED, "timeout", ["close"])


def test_terminate_closes_behind_what_was_sent_and_drops_what_was_received(life: Life) -> None:
    channel, link = life.world.connect()
    channel.received(b"a\nbye\nb\nc\n")
    life.world.settle()
    assert (channel.state, link.sent, link.told) == (CLOSED, b"a\nbye\n", ["close"])
    assert life.app.stats["frames_dropped.closing"] == 2
    channel.terminated()
    assert life.seen == ["connect", "a", "bye", "gone: terminated"]
    assert life.world.hub.forgotten == [channel]


def test_draining_handles_all_first(life: Life) -> None:
    channel, link = life.world.connect()
    channel.unwritable()
    channel.received(b"a\nb\n")
    channel.end("device closed", drain=True)
    life.world.settle()
    assert channel.state is DRAINING
    channel.drained()
    assert (channel.state, link.sent) == (CLOSED, b"a\nb\n")


def test_what_came_before_a_hang_up_is_handled(life: Life) -> None:
    channel, _ = life.world.connect()
    channel.unwritable()
    channel.received(b"a\nb\n")
    channel.terminated()
    assert life.seen == ["connect", "a", "b", "gone: device closed"]
    assert (channel.state, life.world.hub.topics()) == (ENDED, ["last"])


def test_leaving_waits_for_what_was_published_last_and_no_longer_than_allowed(life: Life) -> None:
    channel, _ = life.world.connect()
    life.world.hub.at_once = False
    channel.terminated()
    assert (channel.state,) == (State.LEAVING,)
    life.world.runtime.advance(6)
    assert channel.state is ENDED


def test_whoever_awaits_what_was_published_last_learns_of_the_end(life: Life) -> None:
    """The broker never answers: nobody may wait for that for ever."""
    channel, _ = life.world.connect()
    life.world.hub.at_once = False
    channel.terminated()
    outcome = life.conns[0].publish("very last", b"", qos=1)
    assert not outcome.done
    life.world.runtime.advance(6)
    assert channel.state is ENDED
    assert isinstance(outcome.error, ClosedError)
    assert life.world.hub.topics() == ["last", "very last"]


def test_states_never_go_back(life: Life) -> None:
    channel, _ = life.world.connect()
    channel.end("error")
    assert channel.state is CLOSING
    channel.end("device closed", drain=True)
    channel.move_on(OPEN)
    assert (channel.state, channel.reason) == (CLOSING, "error")


def test_a_link_that_never_closes_is_aborted(life: Life) -> None:
    channel, link = life.world.connect()
    channel.received(b"bye\n")
    life.world.runtime.advance(11)
    assert link.told == ["close", "abort"]


def test_a_failure_ends_the_connection(life: Life) -> None:
    channel, _ = life.world.connect()
    channel.received(b"bad\nnever\n")
    life.world.settle()
    assert (channel.state, channel.reason) == (CLOSED, "error")
    assert "never" not in life.seen


def test_a_device_that_never_reads_is_lost(life: Life) -> None:
    channel, link = life.world.connect()
    channel.unwritable()
    life.world.runtime.advance(31)
    assert (channel.reason, link.told) == ("lost", ["abort"])


def test_a_stream_with_a_hole_is_lost_and_a_datagram_is_not(life: Life) -> None:
    for socktype, reason in (("tcp", "lost"), ("udp", None)):
        link = FakeLink()
        link.answers = True
        channel, _ = life.world.connect(link, socktype)  # type: ignore[arg-type] # one of both
        channel.received(b"a\n")
        life.world.settle()
        link.outcomes[0].fail(UnavailableError("no room"))
        channel.conn.send(b"more")
        life.world.runtime.advance(2)
        assert (b"more" in link.sent) == (socktype == "udp")
        assert channel.reason == reason


def test_verbs_behind_the_end_fail_and_harm_nobody(life: Life) -> None:
    channel, _ = life.world.connect()
    conn = life.conns[0]
    channel.terminated()
    assert channel.state is ENDED
    for outcome in (conn.send(b"x"), conn.publish("a", b""), conn.subscribe("a"), conn.request(b"x")):
        assert isinstance(outcome.error, ClosedError)
    conn.terminate()
    conn.start_timer(1)
    channel.received(b"x\n")
    channel.delivered([Message("a", b"")])
    channel.end("kicked")
    channel.terminated()
    life.world.runtime.advance(100)
    assert life.seen[-1] == "gone: device closed"


def test_a_shutdown_is_prompt_whatever_is_queued(life: Life) -> None:
    channel, link = life.world.connect()
    channel.unwritable()
    channel.received(b"a\n" * 10_000)
    life.world.engine.shutdown()
    life.world.runtime.advance(1)
    assert (channel.state, link.told) == (CLOSED, ["abort"])
    channel.terminated()
    assert life.seen == ["connect", "gone: shutdown"]
    assert life.app.stats["bytes_dropped.closing"] == 20_000


def test_a_shutdown_gives_what_is_queued_a_second(life: Life) -> None:
    """What isn't handled by then is dropped and counted."""
    channel, link = life.world.connect()
    runtime = life.world.runtime
    runtime.tick = 0.01
    channel.received(b"a\n" * 10_000)
    life.world.engine.shutdown()
    began = runtime.now
    while not link.told:
        runtime.soon.popleft()()
        for timer in [one for one in runtime.timers if one.due <= runtime.now and not one.cancelled]:
            runtime.timers.remove(timer)
            timer.call()
    assert runtime.now - began < 1.5
    assert link.told == ["close"]
    handled = life.seen.count("a")
    assert 0 < handled < 10_000
    dropped = life.app.stats["frames_dropped.closing"] + life.app.stats["bytes_dropped.closing"] // 2
    assert handled + dropped == 10_000


def test_a_shutdown_waits_for_what_a_device_published(life: Life) -> None:
    """Though it reads nothing: the broker has `end_timeout`, as ever."""
    life.world.hub.at_once = False
    channel, link = life.world.connect()
    channel.received(b"x\n")
    life.conns[0].publish("t", b"", qos=1)
    channel.unwritable()
    life.world.engine.shutdown()
    life.world.runtime.advance(1.5)
    assert link.told == []
    life.world.runtime.advance(4)
    assert link.told == ["close"]


def test_bytes_of_an_unfinished_frame_are_told(life: Life, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "exproto_app")
    channel, _ = life.world.connect()
    channel.received(b"a\nb")
    channel.terminated()
    assert life.app.stats["bytes_dropped.unfinished"] == 1
    assert "1 bytes dropped: the stream ended within a frame" in caplog.text


@pytest.mark.parametrize("framing", [Line(last=True), Delimiter(b"\n", last=True)])
@pytest.mark.parametrize("drain", [False, True])
def test_the_end_of_the_stream_may_end_a_frame(framing: Any, *, drain: bool) -> None:
    life = Life(framing)
    channel, link = life.world.connect()
    channel.received(b"a\nb")
    if drain:
        channel.end("device closed", drain=True)
        life.world.settle()
        assert link.sent == b"a\nb\n"
    channel.terminated()
    assert life.seen == ["connect", "a", "b", "gone: device closed"]


def test_nothing_is_left_that_points_to_an_ended_channel(life: Life) -> None:
    channel, _ = life.world.connect()
    channel.received(b"hi\n")
    channel.terminated()
    assert channel.state is ENDED
    assert not any(hasattr(channel, name) for name in ("conn", "calls", "inbound", "outbound"))
