"""Frames that end by silence: the framing says how long it is, the engine's timers end them."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from exproto_app import App, Connection, Router
from exproto_app.checksums import XOR
from exproto_app.framing import Checked, Decoder, Framing, Gap, Line
from exproto_app.testing import TestClient

from .world import FakeWaiter, World


def app_of(framing: Framing) -> tuple[App[Any, Any], list[bytes]]:
    app: App[Any, Any] = App(framing=framing)
    seen: list[bytes] = []

    @app.on_received
    def frame(conn: Connection, frame: bytes) -> bytes:
        seen.append(frame)
        return b"<" + frame + b">"

    return app, seen


def test_a_frame_ends_when_nothing_has_come_for_so_long() -> None:
    app, seen = app_of(Gap(0.02))
    with TestClient(app) as device:
        device.send(b"ab", chunk=1)
        device.advance(0.01)
        device.send(b"c")
        device.advance(0.019)
        assert seen == []
        device.advance(0.001)
        assert device.recv() == b"<abc>"
        device.send(b"d")
        device.advance(1)
        assert device.recv() == b"<d>"


def test_the_end_of_the_connection_ends_a_frame_too() -> None:
    app, seen = app_of(Checked(Gap(0.02), XOR))
    with TestClient(app) as device:
        device.send(b"ab\x03")
        device.close()
        assert seen == [b"ab"]
    assert "bytes_dropped.unfinished" not in app.stats


def test_each_datagram_is_a_frame() -> None:
    app, _ = app_of(Gap(10))
    with TestClient(app, socktype="udp") as device:
        device.send(b"a")
        device.send(b"b")
        assert device.recv() == b"<a><b>"


def test_a_frame_over_the_limit_is_an_error() -> None:
    app, seen = app_of(Gap(0.02, limit=3))
    with TestClient(app, raise_errors=False) as device:
        device.send(b"abcd")
        assert device.closed
        assert device.close_detail == "frame has 4 bytes, limit is 3"
    assert seen == []


def test_a_bad_checksum_is_found_by_silence() -> None:
    app, seen = app_of(Checked(Gap(0.02), XOR))
    with TestClient(app) as device:
        device.send(b"ab\x00")
        device.advance(0.02)
        device.send(b"ab\x03")
        device.advance(0.02)
    assert (seen, app.stats["frames_bad"]) == ([b"ab"], 1)


def test_frames_that_wait_for_a_handler_are_told_apart_by_when_they_came() -> None:
    app: App[Any, Any] = App(framing=Gap(0.5))
    waiter, seen = FakeWaiter(), []

    @app.on_received
    async def frame(conn: Connection, frame: bytes) -> None:
        seen.append(frame)
        await waiter

    world = World(app)
    channel, _ = world.connect()
    for data in (b"a", b"b", b"c"):
        channel.received(data)
        world.runtime.advance(0.25)
        channel.received(data)
        world.runtime.advance(0.5)
    assert seen == [b"aa"]
    waiter.set_result(None)
    world.settle()
    assert seen == [b"aa", b"bb", b"cc"]
    world.stop()


def test_while_the_device_isnt_read_it_isnt_silent() -> None:
    app, seen = app_of(Gap(0.5))
    world = World(app)
    channel, link = world.connect()
    channel.received(b"a")
    channel.congested()
    assert link.paused
    world.runtime.advance(10)
    assert seen == []
    channel.relieved()
    world.settle()
    channel.received(b"b")
    world.runtime.advance(0.5)
    assert seen == [b"ab"]
    world.stop()


def test_an_idle_connection_has_no_timer_for_it() -> None:
    app, _ = app_of(Gap(0.5))
    world = World(app)
    channel, _ = world.connect()
    channel.received(b"a")
    world.runtime.advance(0.5)
    before = len([timer for timer in world.runtime.timers if not timer.cancelled])
    world.runtime.advance(5)
    assert len([timer for timer in world.runtime.timers if not timer.cancelled]) == before
    channel.received(b"b")
    channel.terminated()
    world.runtime.advance(5)
    assert not [timer for timer in world.runtime.timers if not timer.cancelled]
    world.stop()


def test_where_no_time_passes_each_read_is_a_frame(caplog: pytest.LogCaptureFixture) -> None:
    app, seen = app_of(Gap(0.5))
    world = World(app)
    world.runtime.ticks = False
    channel, _ = world.connect()
    channel.received(b"a")
    channel.received(b"b")
    world.settle()
    assert seen == [b"a", b"b"]
    assert caplog.text.count("this host has no timers: each read ends a frame") == 1
    world.stop()


def test_a_users_framing_may_end_by_silence() -> None:
    """It has `gap`, and `finish`, which says what the silence ends."""

    @attrs.frozen
    class Own:
        gap: float = 0.1

        def encode(self, frame: bytes) -> bytes:
            return frame

        def split(self, buffer: bytearray) -> list[bytes]:
            return []

        def finish(self, buffer: bytearray) -> list[bytes]:
            frame = bytes(buffer)
            buffer.clear()
            return [frame]

    app, seen = app_of(Own())
    with TestClient(app) as device:
        device.send(b"a")
        device.advance(0.1)
        assert seen == [b"a"]
    assert Decoder(Own()).finish() == []


# --- frames that are bad


def answering(framing: Framing) -> tuple[App[Any, Any], list[str]]:
    app: App[Any, Any] = App(framing=framing)
    seen: list[str] = []

    @app.on_received
    def frame(conn: Connection, frame: bytes) -> bytes:
        seen.append(frame.decode())
        return frame

    @app.on_bad_frame
    def bad(conn: Connection, frame: bytes, reason: str) -> bytes:
        seen.append(f"{frame!r}: {reason}")
        return b"NAK"

    return app, seen


TEXT = Checked(Line(), XOR, text=True, mark=b"*")
GOOD = [TEXT.encode(name) for name in (b"a", b"b")]
BAD = "b'x*00': checksum is '*00'; it must be '*78'"


@pytest.mark.parametrize("chunk", [None, 1])
def test_a_bad_frame_is_answered_in_its_place(chunk: int | None) -> None:
    app, seen = answering(TEXT)
    with TestClient(app) as device:
        device.send(GOOD[0] + b"x*00\nx*00\n" + GOOD[1], chunk=chunk)
        nak = TEXT.encode(b"NAK")
        assert device.recv() == GOOD[0] + nak + nak + GOOD[1]
        assert not device.closed
    assert seen == ["a", BAD, BAD, "b"]
    assert app.stats["frames_bad"] == 2
    assert app.stats["bytes_dropped"] == 0


def test_in_a_datagram_too() -> None:
    app, seen = answering(TEXT)
    with TestClient(app, socktype="udp") as device:
        device.send(GOOD[0] + b"x*00\n")
        device.send(b"x*00")
        device.send(GOOD[1])
    assert seen == ["a", BAD, BAD, "b"]
    assert app.stats["datagrams_dropped"] == 0


def test_an_async_handler_has_the_turn() -> None:
    app: App[Any, Any] = App(framing=TEXT)
    waiter, seen = FakeWaiter(), []

    @app.on_received
    def frame(conn: Connection, frame: bytes) -> None:
        seen.append(frame)

    @app.on_bad_frame
    async def bad(conn: Connection, frame: bytes, reason: str) -> bytes:
        await waiter
        seen.append(frame)
        return b"NAK"

    world = World(app)
    channel, link = world.connect()
    channel.received(b"x*00\n" + GOOD[0])
    channel.received(GOOD[1])
    assert seen == []
    waiter.set_result(None)
    world.settle()
    assert seen == [b"x*00", b"a", b"b"]
    assert link.sent == TEXT.encode(b"NAK")
    world.stop()


def test_its_own_failure_is_a_handler_s() -> None:
    app: App[Any, Any] = App(framing=TEXT)

    @app.on_received
    def frame(conn: Connection, frame: bytes) -> bytes:
        return frame

    @app.on_bad_frame
    def bad(conn: Connection, frame: bytes, reason: str) -> bytes:
        raise ValueError(frame)

    @app.on_error
    def error(conn: Connection, error: Exception) -> bytes:
        conn.keep()
        return b"oops"

    with TestClient(app, raise_errors=False) as device:
        device.send(b"x*00\n" + GOOD[0])
        assert device.recv() == TEXT.encode(b"oops") + GOOD[0]


def test_a_frame_that_the_codec_cant_parse_is_one() -> None:
    app: App[Any, Any] = App(framing=Line(), codec=(int, lambda value: str(value).encode()))

    @app.on_received
    def frame(conn: Connection[None, Any], message: Any) -> Any:
        return message + 1

    @app.on_bad_frame
    def bad(conn: Connection[None, Any], frame: bytes, reason: str) -> Any:
        return len(frame)

    with TestClient(app) as device:
        device.send(b"1\nabc\n2\n")
        assert device.recv() == b"2\n3\n3\n"


def test_a_hang_up_behind_a_bad_frame() -> None:
    app, seen = answering(TEXT)
    with TestClient(app) as device:
        device.send(b"x*00\n" + GOOD[0])
        device.close()
    assert seen == [BAD, "a"]


def test_a_router_has_one_handler_for_them() -> None:
    router = Router("own", framing=TEXT)

    @router.on_bad_frame(blocking=True)
    def bad(conn: Connection, frame: bytes, reason: str) -> bytes:
        return reason.encode()

    app: App[Any, Any] = App()
    app.include(router)
    router.on_received(lambda conn, frame: None)
    with TestClient(app) as device:
        device.send(b"x*00\n")
        assert device.recv() == TEXT.encode(b"checksum is '*00'; it must be '*78'")
    assert [handler.where for handler in router.routes] == ["on_received", "on_bad_frame"]
