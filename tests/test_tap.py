"""The tap: what watchers are shown, and what they never are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from exproto_app import Address, App, ClientInfo, Connection, ConnectionInfo, DeniedError, Message, SetupError
from exproto_app.core import Channel, Engine
from exproto_app.framing import Line
from exproto_app.tap import (
    Closed,
    Delivered,
    Dropped,
    Event,
    Failed,
    Frame,
    Opened,
    Published,
    Received,
    Refused,
    Registered,
    Sent,
    Subscribed,
    Tap,
    Unsubscribed,
    masking,
)
from exproto_app.testing import TestClient

app = App(framing=Line(limit=50))


@app.on_received(b"login ")
def login(conn: Connection, frame: bytes) -> bytes:
    clientid, _, password = frame[6:].decode().partition(" ")
    conn.register(clientid, password=password)
    return b"welcome " + frame[6:]


@app.on_received(b"slow login ")
async def slow_login(conn: Connection, frame: bytes) -> bytes:
    await asyncio.sleep(5)
    await conn.register("slow", password=frame[11:].decode())
    return b"at last"


@app.on_received(b"up")
def up(conn: Connection, frame: bytes) -> None:
    conn.subscribe("down/+", qos=1)
    conn.publish("up", frame, qos=1)
    conn.unsubscribe("down/+")
    conn.subscribe("down/+")


@app.on_received(b"ask")
async def ask(conn: Connection, frame: bytes) -> bytes:
    return await conn.request(b"?")


@app.on_received(b"fail")
def fail(conn: Connection, frame: bytes) -> None:
    raise ValueError(frame)


@app.on_deliver
def down(conn: Connection, message: Message) -> bytes:
    return message.payload


class Seen:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.all: list[tuple[str, float, Event]] = []

    def __call__(self, tap: Tap, now: float, event: Event) -> None:
        self.all.append((tap.id, now, event))

    def take(self) -> list[Event]:
        """Return the events since the last call."""
        events = [event for _, _, event in self.all]
        self.all.clear()
        return events


@pytest.fixture
def first() -> Iterator[TestClient]:
    with TestClient(app, login=lambda client, password: password != "wrong", raise_errors=False) as client:
        yield client


def channel_of(device: TestClient) -> Channel:
    channel = device.connection._verbs
    assert isinstance(channel, Channel)
    return channel


def engine_of(device: TestClient) -> Engine:
    engine = channel_of(device).engine
    assert isinstance(engine, Engine)
    return engine


def info(port: int) -> ConnectionInfo:
    return ConnectionInfo("tcp", Address("127.0.0.1", port), Address("127.0.0.1", 7993))


def client(name: str, username: str = "") -> ClientInfo:
    return ClientInfo(name, username, proto_name="default")


def test_a_watcher_sees_a_connection_from_its_beginning_to_its_end(first: TestClient) -> None:
    seen = Seen()
    engine_of(first).watch(seen)
    assert seen.take() == [Opened(first.connection.info, late=True)]
    device = first.another()
    device.send(b"up\n")
    device.deliver("down/1", b"work")
    device.close()
    assert seen.take() == [
        Opened(device.connection.info),
        Received(b"up\n"),
        Frame(b"up", "up"),
        Subscribed("down/+", 1),
        Published(Message("up", b"up", 1)),
        Unsubscribed("down/+"),
        Subscribed("down/+", 0),
        Delivered(Message("down/1", b"work"), "down"),
        Sent(b"work\n"),
        Closed("device closed", ""),
    ]


def test_frames_that_answer_a_request_and_those_that_nobody_takes(first: TestClient) -> None:
    seen = Seen()
    channel_of(first).watch(seen)
    first.send(b"ask\nanswer\nwhat\n")
    assert seen.take() == [
        Opened(first.connection.info, late=True),
        Received(b"ask\nanswer\nwhat\n"),
        Frame(b"ask", "ask"),
        Sent(b"?\n"),
        Frame(b"answer", "request"),
        Sent(b"answer\n"),
        Frame(b"what", None),
    ]


def test_errors_come_with_their_exception(first: TestClient) -> None:
    seen = Seen()
    channel_of(first).watch(seen)
    first.send(b"fail\n")
    *_, failed, closed = seen.take()
    assert isinstance(failed, Failed)
    assert (failed.where, repr(failed.error)) == ("fail", "ValueError(b'fail')")
    assert closed == Closed("error", "b'fail'")


def test_bytes_that_are_no_frame_are_an_error_of_the_framing(first: TestClient) -> None:
    seen = Seen()
    channel_of(first).watch(seen)
    first.send(b"x" * 60)
    assert [event.where for event in seen.take() if isinstance(event, Failed)] == ["framing"]


def test_what_is_given_up_is_shown(first: TestClient) -> None:
    seen = Seen()
    channel_of(first).watch(seen)
    first.send(b"fail\nup\nup\n")
    assert Dropped("frames", 2) in seen.take()


def test_a_refused_verb_is_shown_with_its_error(first: TestClient) -> None:
    seen = Seen()
    channel_of(first).watch(seen)
    first.send(b"login 7 wrong\n")
    (refused,) = (event for event in seen.take() if isinstance(event, Refused))
    assert (refused.what, refused.topic, type(refused.error)) == ("register", "7", DeniedError)


def test_what_the_app_publishes_has_no_connection(first: TestClient) -> None:
    seen = Seen()
    engine_of(first).watch(seen)
    seen.take()
    app.publish("news", b"1")
    assert [(name, event) for name, _, event in seen.all] == [("", Published(Message("news", b"1")))]


def test_the_password_is_masked_in_what_brought_it_and_in_what_follows(first: TestClient) -> None:
    seen = Seen()
    device = first.another()
    channel_of(device).watch(seen)
    device.send(b"login 42 s3cret\nup s3cret\n", chunk=3)
    assert b"s3cret" in device.recv()
    events = seen.take()
    assert b"".join(event.data for event in events if isinstance(event, Received)) == (
        b"login 42 ******\nup ******\n"
    )
    assert [event for event in events if not isinstance(event, Received)] == [
        Opened(device.connection.info, late=True),
        Frame(b"login 42 ******", "login"),
        Registered(client("42", username="42")),
        Sent(b"welcome 42 ******\n"),
        Frame(b"up ******", "up"),
        Subscribed("down/+", 1),
        Published(Message("up", b"up ******", 1)),
        Unsubscribed("down/+"),
        Subscribed("down/+", 0),
    ]


@pytest.mark.parametrize("binary", [b"\xde\xad\xbe\xef", b"\xe9t\xe9"])
def test_a_password_made_of_binary_is_masked_where_it_came_from(binary: bytes) -> None:
    made = App()

    @made.on_received
    def take(conn: Connection, frame: bytes) -> None:
        conn.register("x", password=frame.hex() if len(frame) == 4 else frame.decode("latin-1"))

    seen = Seen()
    with TestClient(made) as device:
        channel_of(device).watch(seen)
        device.send(binary)
    assert Received(b"*" * len(binary)) in seen.take()


def test_a_turn_that_takes_longer_holds_its_events_back_until_the_password_is_known(
    first: TestClient,
) -> None:
    seen = Seen()
    channel_of(first).watch(seen)
    seen.take()
    first.send(b"slow login s3cret\n")
    assert seen.take() == []
    first.advance(10)
    received, frame, *_ = seen.all
    assert received[2] == Received(b"slow login ******\n")
    assert frame[2] == Frame(b"slow login ******", "slow_login")
    assert seen.all[-1][1] - received[1] == pytest.approx(5), "events keep the time at which they happened"


def test_an_unfinished_frame_is_shown_after_a_second(first: TestClient) -> None:
    seen = Seen()
    channel_of(first).watch(seen)
    seen.take()
    first.send(b"lo")
    assert seen.take() == []
    first.advance(1)
    assert seen.take() == [Received(b"lo")]


def test_a_password_that_is_the_clientid_is_no_secret(first: TestClient) -> None:
    seen = Seen()
    channel_of(first).watch(seen)
    first.send(b"login 42 42\n")
    assert Received(b"login 42 42\n") in seen.take()


def test_masks_hide_what_they_match(first: TestClient) -> None:
    seen = Seen()
    engine_of(first).masks.append(masking(r"pin=(\d+)"))
    engine_of(first).watch(seen)
    first.send(b"up pin=1234\n")
    assert Received(b"up pin=****\n") in seen.all[1]
    assert Published(Message("up", b"up pin=****", 1)) in [event for _, _, event in seen.all]


def test_a_mask_that_is_no_expression_is_a_mistake_of_the_user() -> None:
    with pytest.raises(SetupError, match="isn't a valid regular expression"):
        masking("(")


def test_watchers_come_and_go(first: TestClient) -> None:
    one, other = Seen(), Seen()
    engine, channel = engine_of(first), channel_of(first)
    engine.watch(one)
    channel.watch(other)
    first.send(b"up\n")
    assert one.take() == other.take()
    engine.unwatch(one)
    channel.unwatch(other)
    first.send(b"up\n")
    assert one.take() == other.take() == []
    assert channel.tracer is None


def test_a_watcher_that_fails_looks_no_more_and_harms_nobody(
    first: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(tap: Tap, now: float, event: Event) -> None:
        raise RuntimeError("broken")

    engine = engine_of(first)
    engine.watch(broken)
    first.send(b"login 1 x\n")
    assert first.recv() == b"welcome 1 x\n"
    assert engine.watchers == ()
    assert [record.getMessage() for record in caplog.records] == ["1 ! a watcher failed and is removed"]


@pytest.mark.parametrize("socktype", ["tcp", "udp"])
def test_a_watched_connection_behaves_like_any_other(socktype: Any) -> None:
    echo = App(framing=Line())

    @echo.on_received
    def answer(conn: Connection, frame: bytes) -> bytes:
        return frame

    with TestClient(echo, socktype=socktype) as device:
        plain = device.another()
        channel_of(device).watch(Seen())
        for data in (b"a\n", b"b\nc\n", b"", b"d\ne"):
            device.send(data)
            plain.send(data)
            assert device.recv() == plain.recv()


def test_a_watcher_that_comes_late_never_sees_the_password(first: TestClient) -> None:
    seen = Seen()
    device = first.another()
    device.send(b"login 42 s3cret\n")
    channel_of(device).watch(seen)
    device.send(b"up s3cret\n")
    device.recv()
    assert Published(Message("up", b"up ******", 1)) in seen.take()


def test_a_router_says_where_secrets_stand() -> None:
    """They are masked for watchers as those are that the user masks."""
    seen = Seen()
    app = App(framing=Line(), secret=r"key=(\w+)")
    app.on_received(lambda conn, frame: frame)
    app.watch(seen)
    with TestClient(app) as device:
        device.send(b"key=1234 a\n")
        assert device.recv() == b"key=1234 a\n"
        assert Received(b"key=**** a\n") in seen.take()
