"""Codecs: messages instead of bytes, made by a library or by two functions."""

from __future__ import annotations

import json
import logging
from typing import Any, cast

import construct
import pytest

from exproto_app import App, Connection, RequestTimeout, Router, SetupError, tap
from exproto_app.checksums import CRC16_X25, XOR
from exproto_app.framing import Checked, FixedSize, LengthPrefix, Line, Resync
from exproto_app.testing import TestClient

Packet = construct.Struct(
    "kind" / construct.Enum(construct.Int8ub, login=1, position=2, ack=3),
    "serial" / construct.Int16ub,
    "body"
    / construct.Switch(
        construct.this.kind,
        {
            "login": construct.Struct("imei" / construct.Bytes(8)),
            "position": construct.Struct("lat" / construct.Int32sb, "lon" / construct.Int32sb),
        },
    ),
)


def tracker() -> App[Any, Any]:
    """Return an app whose packets are structs of construct."""
    app: App[Any, Any] = App(
        framing=Checked(LengthPrefix(1), CRC16_X25), codec=Packet, key=lambda packet: str(packet.kind)
    )

    @app.on_received("login")
    def login(conn: Connection[None, Any], packet: Any) -> Any:
        conn.register(packet.body.imei.hex())
        return {"kind": "ack", "serial": packet.serial, "body": None}

    @app.on_received("position")
    async def position(conn: Connection[None, Any], packet: Any) -> None:
        conn.publish("positions", f"{packet.body.lat / 1e6} {packet.body.lon / 1e6}".encode())

    return app


def packet(**fields: Any) -> bytes:
    """Return what a device sends for a packet."""
    return Checked(LengthPrefix(1), CRC16_X25).encode(cast("bytes", Packet.build(fields)))


def test_a_struct_of_construct() -> None:
    """Its parse makes what handlers get, its build what is sent."""
    login = packet(kind="login", serial=7, body={"imei": bytes(8)})
    position = packet(kind="position", serial=8, body={"lat": 54_945_347, "lon": 24_017_622})
    with TestClient(tracker()) as device:
        device.send(login + position, chunk=1)
        assert device.recv() == packet(kind="ack", serial=7, body=None)
        assert [message.payload for message in device.published] == [b"54.945347 24.017622"]


def test_what_it_cannot_parse_is_a_bad_frame(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged with its size, counted and dropped; the next frame is handled."""
    app = tracker()
    cut_short = Checked(LengthPrefix(1), CRC16_X25).encode(b"\x01\x00")
    with TestClient(app) as device:
        device.send(cut_short + packet(kind="login", serial=7, body={"imei": bytes(8)}))
        assert device.recv() == packet(kind="ack", serial=7, body=None)
        assert app.stats["frames_bad"] == 1
        assert not device.closed
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert " ! 1 bad frames dropped, 0 bytes skipped: the codec can't parse it: StreamError(" in line
    assert line.endswith(": [2 bytes]")


def test_what_it_cannot_build_is_the_handlers_error() -> None:
    """Whatever build raises comes out of `send`, and out of the turn that returned it."""
    app = App(framing=Line(), codec=(bytes.decode, str.encode))
    raised: list[str] = []

    @app.on_received
    def wrong(conn: Connection[None, str], text: str) -> str:
        for what in (3, b"x"):
            with pytest.raises(TypeError) as info:
                conn.send(cast("str", what))
            raised.append(str(info.value))
        conn.send(b"raw\n", raw=True)
        return cast("str", 3)

    with TestClient(app, raise_errors=False) as device:
        device.send(b"a\n")
        assert device.recv() == b"raw\n"
        assert device.close_reason == "error"
        assert len(raised) == 2
        assert [type(error) for error in device.errors] == [TypeError]


def test_a_build_that_gives_no_bytes_is_told() -> None:
    """A frame is bytes."""
    app: App[None, str] = App(framing=Line(), codec=(bytes.decode, lambda text: cast("bytes", text)))

    @app.on_received
    def echo(conn: Connection[None, str], text: str) -> str:
        return text

    with TestClient(app, raise_errors=False) as device:
        device.send(b"a\n")
        assert "built a frame as str, not bytes" in device.close_detail


def test_no_handler_for_a_message(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and counted, as a frame would be."""
    app = App(framing=Line(), codec=(bytes.decode, str.encode), key=lambda text: text[0])

    @app.on_received("a")
    def a(conn: Connection[None, str], text: str) -> str:
        return text

    with TestClient(app) as device:
        device.send(b"abc\nxyz\n")
        assert device.recv() == b"abc\n"
        assert app.stats["frames_unhandled"] == 1
    assert "no on_received of 'default' takes [5 characters]" in caplog.text


@pytest.mark.parametrize("codec", [3, (1, 2), (bytes.decode,), (None, str.encode), object()])
def test_what_is_no_codec_is_refused(codec: Any) -> None:
    """In one sentence, when the router is made."""
    with pytest.raises(SetupError) as info:
        Router("x", codec=codec)
    assert str(info.value).startswith(
        f"Router('x'): codec={codec!r} is not a codec; give an object with parse and build"
    )


def test_bad_frames_and_garbage_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """What one read dropped is one line, with the first reason and its size; all of it is counted."""
    app = App(framing=Resync(Checked(LengthPrefix(1, start=b"xx"), CRC16_X25)))

    @app.on_received
    def echo(conn: Connection, frame: bytes) -> bytes:
        return frame

    with TestClient(app) as device:
        device.send(b"junk" + b"xx\x04ab\x00\x00" * 2 + b"x")
        assert (app.stats["frames_bad"], app.stats["bytes_skipped"], app.stats["frames_received"]) == (
            2,
            4,
            0,
        )
        assert not device.closed
        device.advance(60)
        assert (device.close_reason, device.recv()) == ("timeout", b"")
    reason = "frame starts with 6a75, not with 7878: [4 bytes]"
    assert f"1/default ! 2 bad frames dropped, 4 bytes skipped: {reason}" in caplog.text


def test_a_frame_alone_with_a_bad_one(caplog: pytest.LogCaptureFixture) -> None:
    """Also a device that has spoken before has its bad frames told."""
    app = App(framing=Checked(FixedSize(3), CRC16_X25))

    @app.on_received
    def echo(conn: Connection, frame: bytes) -> bytes:
        return frame

    good = app.framing.encode(b"a")
    with TestClient(app) as device:
        device.send(good)
        device.send(good + b"abc")
        device.send(b"abc")
        assert device.recv() == good * 2
        assert app.stats["frames_bad"] == 2


def test_a_request_is_sent_again_after_each_timeout() -> None:
    """retries= counts what comes after the first try; the error tells how often it was sent."""
    app = App(framing=Line())

    @app.on_received
    async def ask(conn: Connection, frame: bytes) -> bytes:
        try:
            return b"got " + await conn.request(
                b"?", timeout=10, retries=2, match=lambda frame: frame == b"!"
            )
        except RequestTimeout as error:
            return str(error).encode()

    with TestClient(app) as device:
        device.send(b"ask\n")
        device.advance(9)
        assert device.recv() == b"?\n"
        device.advance(2)
        assert device.recv() == b"?\n"
        device.send(b"!\n")
        device.advance(60)
        assert device.recv() == b"got !\n"
        device.send(b"ask\n")
        device.advance(60)
        assert device.recv() == b"?\n" * 3 + b"no answer within 10 s, sent 3 times\n"
        assert (app.stats["requests_retried"], app.stats["requests_timed_out"]) == (3, 1)


def test_a_retry_of_a_request_whose_device_has_gone() -> None:
    """It ends with the connection, and nothing is sent any more."""
    app = App(framing=Line())

    @app.on_received
    async def ask(conn: Connection, frame: bytes) -> None:
        await conn.request(b"?", timeout=1, retries=5)

    with TestClient(app) as device:
        device.send(b"ask\n")
        device.advance(2.5)
        assert device.recv() == b"?\n" * 3
        device.close()
        device.advance(60)
        assert (app.stats["requests_retried"], app.stats["handler_errors"]) == (2, 0)


@pytest.mark.parametrize("retries", [-1, 1.5, True, None])
def test_wrong_retries_are_refused(retries: Any) -> None:
    """At the call, not after a timeout."""
    app = App(framing=Line())

    @app.on_received
    async def ask(conn: Connection, frame: bytes) -> None:
        await conn.request(b"?", retries=retries)

    with TestClient(app, raise_errors=False) as device:
        device.send(b"ask\n")
        assert device.close_detail == f"retries is {retries!r}; it must be a whole number, 0 or more"


def test_watchers_see_frames_and_what_was_dropped() -> None:
    """Frames as bytes, whatever messages are made of them; bad ones as failures of the framing."""
    app = App(framing=Checked(Line(), XOR, text=True), codec=(bytes.decode, str.encode))
    seen: list[object] = []
    app.watch(lambda tap, now, event: seen.append(event))

    @app.on_received
    async def ask(conn: Connection[None, str], text: str) -> str:
        return await conn.request("?")

    with TestClient(app) as device:
        device.send(b"a61\nb62\nc00\n\xffFF\n")
    frames = [(event.frame, event.handler) for event in seen if isinstance(event, tap.Frame)]
    assert [frame for frame, _ in frames] == [b"a", b"b", b"\xff"]
    assert [handler for _, handler in frames][1:] == ["request", None]
    failed = [(event.where, event.text) for event in seen if isinstance(event, tap.Failed)]
    assert failed[0] == ("framing", "FramingError: checksum is '00'; it must be '63': 633030")
    assert failed[1][0] == "framing"
    assert failed[1][1].startswith("FramingError: the codec can't parse it: UnicodeDecodeError(")
    assert app.stats["frames_bad"] == 2


def test_a_message_may_be_none() -> None:
    """What parse returns is the message, whatever it is; a key that fails at it is named."""
    app = App(
        framing=Line(), codec=(json.loads, None), key=lambda message: message["type"] if message else "none"
    )

    @app.on_received("none")
    def none(conn: Connection[None, Any], message: Any) -> bytes:
        return repr(message).encode()

    @app.on_received
    def rest(conn: Connection[None, Any], message: Any) -> bytes:
        return b"rest"

    with TestClient(app, raise_errors=False) as device:
        device.send(b'null\n{"type": 1}\n{"kind": 1}\n')
        assert device.recv() == b"None\nrest\n"
        assert (device.close_reason, device.close_detail) == ("error", "'type'")
        assert [type(error) for error in device.errors] == [KeyError]
