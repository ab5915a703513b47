"""Replays: a recording fed to the app in memory, and every difference shown."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from exproto_app import App, Connection, Message, SetupError
from exproto_app.framing import Line
from exproto_app.models import Reason
from exproto_app.ops.recorder import Recorder
from exproto_app.testing import TestClient, cases, replay


def app_of(  # noqa: C901 - many small handlers
    greeting: bytes = b"hello", topic: str = "up", pause: float = 2.0
) -> App:
    """Return an app with a bit of everything; the parameters are what a later version of it may change."""
    app = App(framing=Line(limit=100))

    @app.on_connect
    def greet(conn: Connection) -> bytes:
        return greeting + b" " + str(conn.info.peername).encode()

    @app.on_received(b"login ")
    async def login(conn: Connection, frame: bytes) -> bytes:
        name, _, password = frame[6:].decode().partition(" ")
        try:
            await conn.register(name, password=password)
        except Exception:  # noqa: BLE001 - the app says so to the device
            return b"denied"
        await conn.subscribe(f"down/{name}")
        return b"welcome"

    @app.on_received(b"later")
    async def later(conn: Connection, frame: bytes) -> bytes:
        await asyncio.sleep(pause)
        return b"later"

    @app.on_received(b"timer")
    def timer(conn: Connection, frame: bytes) -> None:
        conn.start_timer(5)

    @app.on_received(b"quit")
    def stop(conn: Connection, frame: bytes) -> bytes:
        conn.terminate()
        return b"bye"

    @app.on_received(b"raise")
    def fail(conn: Connection, frame: bytes) -> None:
        raise ValueError(frame)

    @app.on_received
    def uplink(conn: Connection, frame: bytes) -> bytes:
        conn.publish(topic, frame)
        app.publish("all", frame)
        return b"got " + frame

    @app.on_deliver(batch=True)
    def down(conn: Connection, messages: list[Message]) -> bytes:
        return b"%d: " % len(messages) + b" ".join(message.payload for message in messages)

    @app.on_terminated
    def gone(conn: Connection, reason: Reason) -> None:
        conn.publish("gone", reason.encode())

    return app


Story = Callable[[TestClient], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "field.jsonl"


def record(path: Path, *stories: Story) -> None:
    """Have devices live through *stories*, each after the other, and record it."""
    app = app_of()
    recorder = Recorder(path)
    app.watch(recorder)
    login = lambda client, password: password != "wrong"  # noqa: E731 - a rule in a word
    with TestClient(app, login=login, raise_errors=False) as first:
        for story in stories:
            story(first)
            first.advance(0.25)
    recorder.close()
    app.unwatch(recorder)


def everything(first: TestClient) -> None:
    other = first.another()
    first.send(b"login 1 s3cret\nlater\nfirst\n")
    other.send(b"log")
    first.advance(0.5)
    other.send(b"in 2 wrong\nlogin 2 right\n")
    first.advance(2)
    first.deliver("down/1", b"work")
    other.send(b"timer\nraise\n")
    first.send(b"again\n")
    third = first.another()
    third.send(b"timer\n")
    third.advance(10)
    fourth = first.another()
    fourth.send(b"login 1 s3cret\nquit\n")


def test_a_recording_replays_without_a_difference(path: Path) -> None:
    record(path, everything)
    assert replay(app_of(), path) == []
    assert "s3cret" not in path.read_text()
    assert b"s3cret".hex() not in path.read_text()


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_however_received_bytes_are_cut(path: Path, chunk: int) -> None:
    record(path, everything)
    assert replay(app_of(), path, chunk=chunk) == []


def test_a_difference_in_what_is_sent(path: Path) -> None:
    record(path, lambda device: device.send(b"one\n"))
    (difference,) = replay(app_of(greeting=b"hi"), path)
    assert repr(difference) == (
        "connection 1 (default, 127.0.0.1:50001) differs (- recorded, + replayed):\n"
        "  …\n"
        "  - > 68 65 6c 6c 6f 20 31 32 37 2e 30 2e 30 2e 31 3a 35 30 30 30 31 0a  |hello 127.0.0.1:50001.|\n"
        "  + > 68 69 20 31 32 37 2e 30 2e 30 2e 31 3a 35 30 30 30 31 0a  |hi 127.0.0.1:50001.|\n"
        "    > 67 6f 74 20 6f 6e 65 0a  |got one.|"
    )


def test_an_answer_that_tells_the_time_is_the_recorded_one(tmp_path: Path) -> None:
    app = App(framing=Line())

    @app.on_received
    def tell(conn: Connection, frame: bytes) -> bytes:
        return f"{conn.now():%Y-%m-%d %H:%M}".encode()

    path = tmp_path / "time.jsonl"
    path.write_text(
        '{"recording": 1, "part": 1, "started": "2001-02-03T04:05:00+00:00", "by": "test"}\n'
        '{"at": 1, "conn": "1", "protocol": "default", "event": "opened", "socktype": "tcp",'
        ' "peer": "127.0.0.1:1", "local": "127.0.0.1:2"}\n'
        + "".join(
            f'{{"at": {at}, "conn": "1", "protocol": "default", "event": "{event}", "hex": "{data.hex()}"}}\n'
            for at, event, data in (
                (2, "in", b"?\n"),
                (2, "out", b"2001-02-03 04:05\n"),
                (70, "in", b"?\n"),
                (70, "out", b"2001-02-03 04:06\n"),
            )
        )
    )
    assert replay(app, path) == []


def test_a_difference_in_what_is_published(path: Path) -> None:
    record(path, lambda device: device.send(b"one\n"))
    (difference,) = replay(app_of(topic="data"), path)
    assert list(difference.broker) == [
        "…",
        "- ^ up qos 0 'one'",
        "+ ^ data qos 0 'one'",
        "  = closed: device closed",
        "  ^ gone qos 0 'device closed'",
    ]
    assert difference.sent == []


def test_what_failed_in_the_replay_is_told(path: Path) -> None:
    record(path, lambda device: device.send(b"one\n"))
    app = app_of()

    @app.on_received(b"one")
    def broken(conn: Connection, frame: bytes) -> None:
        raise ValueError("broken")

    device, _ = replay(app, path)
    assert [text.split("<locals>.")[-1] for text in device.errors] == ["broken failed: ValueError: broken"]
    assert "+ = closed: error" in device.broker


def test_an_answer_that_comes_too_late_is_a_difference(path: Path) -> None:
    record(path, lambda device: device.send(b"later\n"), lambda device: device.advance(3))
    assert replay(app_of(pause=1.0), path) == []
    (difference,) = replay(app_of(pause=100.0), path)
    assert "- > 6c 61 74 65 72 0a  |later.|" in difference.sent


def test_what_the_app_itself_publishes_counts(path: Path) -> None:
    record(path, lambda device: device.send(b"one\n"))
    app = app_of()
    app.on_startup(lambda: app.publish("started", b"") and None)
    (difference,) = replay(app, path)
    assert repr(difference).splitlines()[0] == "the app itself differs (- recorded, + replayed):"
    assert "+ ^ started qos 0 ''" in difference.broker


def test_what_is_ignored_may_differ(path: Path) -> None:
    record(path, lambda device: device.send(b"one\n"))
    assert replay(app_of(greeting=b"good morning"), path, ignore=[r"^(hello|good morning)"]) == []
    assert replay(app_of(greeting=b"good morning"), path, ignore=[r"hello (\d+)"]) != []


def test_several_messages_of_one_delivery_are_delivered_together(path: Path) -> None:
    def deliver(device: TestClient) -> None:
        device.send(b"login 1 x\n")
        channel = device.connection._verbs
        channel.delivered([Message("down/1", b"a"), Message("down/1", b"b")])  # type: ignore[attr-defined]
        device.advance(0)
        assert device.recv().endswith(b"2: a b\n")

    record(path, deliver)
    assert replay(app_of(), path) == []


def test_time_passes_as_fast_as_it_did_or_as_told(path: Path) -> None:
    record(path, lambda device: device.advance(0.2), lambda device: device.send(b"one\n"))
    started = time.monotonic()
    assert replay(app_of(), path, speed=2) == []
    assert time.monotonic() - started >= 0.45 / 2


def test_a_connection_that_was_open_before_goes_on(path: Path) -> None:
    app = app_of()
    recorder = Recorder(path)
    with TestClient(app, raise_errors=False) as device:
        device.send(b"login 1 s3cret\n")
        app.watch(recorder)
        device.send(b"one\n")
        device.deliver("down/1", b"work")
        app.unwatch(recorder)
    recorder.close()
    assert replay(app_of(), path) == []


def test_a_protocol_that_the_app_hasnt_got(path: Path) -> None:
    record(path, lambda device: device.send(b"one\n"))
    app = App()
    app.protocol("gt06").on_received(lambda conn, frame: None)
    app.protocol("jt808").on_received(lambda conn, frame: None)
    with pytest.raises(SetupError, match="the app serves no protocol 'default'; it serves gt06, jt808"):
        replay(app, path)
    assert len(replay(app, path, protocol="gt06")) == 2


def test_cases_are_one_for_each_connection_with_readable_names(path: Path) -> None:
    record(path, everything)
    made = cases(path)
    assert [str(case) for case in made] == ["default-1-1", "default-2-2", "default-3", "default-4-1"]
    for case in made[1:3]:
        case.check(app_of())
    with pytest.raises(AssertionError, match=r"connection 2 .* differs"):
        made[1].check(app_of(greeting=b"hi"))


def test_datagrams_are_compared_one_by_one(path: Path) -> None:
    def make(cut: int) -> App:
        app = App()

        @app.on_received
        def answer(conn: Connection, frame: bytes) -> None:
            conn.send(frame[:cut])
            conn.send(frame[cut:])

        return app

    app = make(1)
    recorder = Recorder(path)
    app.watch(recorder)
    with TestClient(app, socktype="udp") as device:
        device.send(b"abc")
    recorder.close()
    assert replay(make(1), path) == []
    assert len(replay(make(2), path)) == 1
