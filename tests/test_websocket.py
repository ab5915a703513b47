"""Devices on WebSocket: what opens a connection, what ends it, and what they can't do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Message,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.extensions import PerMessageDeflate

from exproto_app import App, Connection, Limits, SetupError
from exproto_app.hosts.gateway import Gateway, Listen, Options
from exproto_app.hosts.gateway.websocket_line import WebSocketLine

from .certificates import Authority, trusting
from .test_dialling import run

# --- what a listener says


def test_a_websocket_is_set_up_by_its_url() -> None:
    listen = Listen.parse("meter=ws://:7080/devices?subprotocol=a,b&ping=0&max-message=10&text=1")
    assert listen.settings == WebSocketLine(
        path="/devices", subprotocols=("a", "b"), max_message=10, ping=0, text=True
    )
    assert str(listen) == "ws://:7080/devices"
    assert Listen.parse("ws://:7080/").settings == WebSocketLine()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ws://127.0.0.1/x", "has no port"),
        ("ws://:7080/x#y", "has extra text after its port"),
        ("ws://:7080?subprotocol=a b", "subprotocol 'a b' has characters that aren't allowed"),
        ("ws://:7080?ping=soon", "ping is 'soon'; it must be a time"),
        ("ws://:7080?max-message=0", "max-message is '0'; it must be a number above 0"),
        ("ws://:7080?cert=x", "unknown option 'cert'"),
    ],
)
def test_a_websocket_that_is_none_is_refused_in_a_sentence(text: str, words: str) -> None:
    with pytest.raises(SetupError, match=re.escape(words)):
        Listen.parse(text)


# --- on the line


def echo(**options: Any) -> App:
    """An app without framing: each read is a frame."""
    app = App(**options)

    @app.on_received
    def received(conn: Connection, frame: bytes) -> bytes | None:
        if frame == b"leave":
            conn.terminate()
            return b"left"
        return conn.info.socktype.encode() + b" " + frame[:100]

    return app


class Client:
    """A device on WebSocket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.protocol = WSConnection(ConnectionType.CLIENT)

    async def ask(self, target: str = "/", **request: Any) -> Any:
        """Ask for a connection; return how that is answered."""
        self.say(Request(host="test", target=target, **request))
        return await self.next()

    def say(self, event: Any) -> None:
        self.writer.write(self.protocol.send(event))

    async def next(self) -> Any:
        """Return the next event, a whole message as its bytes, None at the end."""
        parts = b""
        while True:
            for event in self.protocol.events():
                if not isinstance(event, Message):
                    return event
                parts += event.data if isinstance(event, BytesMessage) else event.data.encode()
                if event.message_finished:
                    return parts
            data = await self.reader.read(65_536)
            if not data:
                return None
            self.protocol.receive_data(data)


@contextlib.asynccontextmanager
async def connected(gateway: Gateway, **options: Any) -> AsyncIterator[Client]:
    address = gateway.addresses[0][2]
    reader, writer = await asyncio.open_connection(address.host, address.port, **options)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(query: str = "", app: App | None = None, **options: Any) -> AsyncIterator[Gateway]:
    async with Gateway(app or echo(), [f"ws://127.0.0.1:0{query}"], options=Options(**options)) as gateway:
        yield gateway


async def until_counted(gateway: Gateway, name: str, least: int = 1) -> None:
    while gateway.app.stats.get(name, 0) < least:  # noqa: ASYNC110 - counters wake nobody
        await asyncio.sleep(0.005)


@pytest.mark.live
def test_each_message_is_a_read_however_it_is_cut() -> None:
    async def test() -> None:
        async with serving() as gateway, connected(gateway) as device:
            assert isinstance(await device.ask(), AcceptConnection)
            device.say(BytesMessage(b"one"))
            device.say(TextMessage("zwö"))
            assert await device.next() == b"ws one"
            assert await device.next() == b"ws zw\xc3\xb6"
            device.say(BytesMessage(b"in ", message_finished=False))
            device.say(Ping(b"there?"))
            device.say(BytesMessage(b"", message_finished=False))
            device.say(BytesMessage(b"parts"))
            assert await device.next() == Pong(b"there?")
            assert await device.next() == b"ws in parts"
            for byte in device.protocol.send(BytesMessage(b"byte by byte")):
                device.writer.write(bytes([byte]))
                await device.writer.drain()
            assert await device.next() == b"ws byte by byte"
            assert gateway.app.stats["frames_received"] == 4

    run(test)


@pytest.mark.live
def test_what_comes_with_the_request_is_read_too() -> None:
    async def test() -> None:
        async with serving() as gateway, connected(gateway) as device:
            device.say(Request(host="test", target="/"))
            frame = b"\x82\x82\0\0\0\0hi"
            device.writer.write(frame)
            assert isinstance(await device.next(), AcceptConnection)
            assert await device.next() == b"ws hi"

    run(test)


@pytest.mark.live
def test_what_came_before_a_hang_up_is_handled_however_much_it_is() -> None:
    async def test() -> None:
        async with serving() as gateway, connected(gateway) as device:
            assert isinstance(await device.ask(), AcceptConnection)
            device.writer.write(b"\x82\x81\0\0\0\0x" * 20_000)
            await device.writer.drain()
            device.writer.write_eof()
            await until_counted(gateway, "connections_closed")
            assert gateway.app.stats["frames_received"] == 20_000

    run(test)


@pytest.mark.live
def test_of_many_pings_the_last_is_answered_and_messages_are_in_between() -> None:
    async def test() -> None:
        async with serving() as gateway, connected(gateway) as device:
            assert isinstance(await device.ask(), AcceptConnection)
            pings = b"".join(device.protocol.send(Ping(b"%d" % number)) for number in range(500))
            device.writer.write(pings + device.protocol.send(BytesMessage(b"hi")))
            said = [await device.next()]
            while said[-1] != b"ws hi":
                said.append(await device.next())
            assert said[-2] == Pong(b"499")
            assert len(said) < 100

    run(test)


@pytest.mark.live
def test_both_sides_say_goodbye() -> None:
    async def test() -> None:
        async with serving() as gateway:
            async with connected(gateway) as device:
                await device.ask()
                device.say(BytesMessage(b"leave"))
                assert await device.next() == b"left"
                closing = await device.next()
                assert closing.code == 1000
                device.say(closing.response())
                assert await device.next() is None
            async with connected(gateway) as device:
                await device.ask()
                device.say(BytesMessage(b"last"))
                device.say(CloseConnection(1000))
                assert await device.next() == b"ws last"
                assert (await device.next()).code == 1000
                assert await device.next() is None
            await until_counted(gateway, "connections_closed.device_closed")
            assert gateway.app.stats["connections_closed.terminated"] == 1
            assert gateway.open == 0

    run(test)


@pytest.mark.live
def test_a_path_and_a_subprotocol_may_be_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving("/devices?subprotocol=meter.v2,meter.v1&text=1") as gateway:
            async with connected(gateway) as device:
                accepted = await device.ask("/devices?x=1", subprotocols=["other", "meter.v1"])
                assert accepted.subprotocol == "meter.v1"
                device.say(TextMessage("hi"))
                assert await device.next() == b"ws hi"
            async with connected(gateway) as device:
                refused = await device.ask("/elsewhere", subprotocols=["meter.v1"])
                assert (type(refused), refused.status_code) == (RejectConnection, 404)
            async with connected(gateway) as device:
                refused = await device.ask("/devices", subprotocols=["other"])
                assert (type(refused), refused.status_code) == (RejectConnection, 400)
            await until_counted(gateway, "websocket_handshakes_failed", 2)

    run(test)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "its path is '/elsewhere', not '/devices'" in said
    assert "it doesn't speak meter.v2 or meter.v1" in said


UPGRADE = (
    b"GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n\r\n"
)


@pytest.mark.live
@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS by mistake\r\n\r\n",
        UPGRADE % (b"/", b"\xff\xfe"),
        UPGRADE % (b"/\xff", b"x"),
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000,
        b"GET /" + b"x" * 100_000,
    ],
    ids=["plain", "post", "tls", "host", "target", "headers", "long"],
)
def test_a_request_that_is_none_costs_its_connection_alone(request_: bytes) -> None:
    async def test() -> None:
        async with serving() as gateway:
            async with connected(gateway) as device:
                device.writer.write(request_)
                with contextlib.suppress(OSError):
                    await device.reader.read()
                await until_counted(gateway, "websocket_handshakes_failed")
            async with connected(gateway) as device:
                assert isinstance(await device.ask(), AcceptConnection)
            assert gateway.app.stats["connections_opened"] == 1

    run(test)


@pytest.mark.live
def test_a_request_that_trickles_in_is_ended_in_time() -> None:
    async def test() -> None:
        async with serving(handshake_timeout=0.1) as gateway, connected(gateway) as device:
            device.writer.write(b"GET / HTTP/1.1\r\nX: ")
            with contextlib.suppress(OSError):
                assert await device.reader.read() == b""
            assert gateway.app.stats["websocket_handshakes_failed"] == 1
            async with connected(gateway) as other:
                other.writer.close()
                await until_counted(gateway, "connections_probed")
            assert gateway.open == 0

    run(test)


@pytest.mark.live
def test_half_open_connections_make_room() -> None:
    async def test() -> None:
        async with serving(max_connections=2) as gateway, contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                device = await stack.enter_async_context(connected(gateway))
                device.writer.write(b"GET / HTTP/1.1\r\n")
            while gateway.open < 2:  # noqa: ASYNC110 - a connection wakes nobody
                await asyncio.sleep(0.005)
            await asyncio.sleep(1.1)  # the patience with half-open ones
            device = await stack.enter_async_context(connected(gateway))
            assert isinstance(await device.ask(), AcceptConnection)

    run(test)


@pytest.mark.live
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x82\x02hi", 1002),  # not masked
        (b"\xc2\x82\0\0\0\0hi", 1002),  # compressed, which nobody has agreed to
        (b"\x83\x82\0\0\0\0hi", 1002),  # no such opcode
        (b"\x80\x82\0\0\0\0hi", 1002),  # goes on with nothing
        (b"\x89\xfe\x00\x7e\0\0\0\0" + bytes(126), 1002),  # a ping that is too long
        (b"\x81\x82\0\0\0\0\xff\xfe", 1007),  # text that isn't UTF-8
        (b"\x82\xff\x00\x00\x00\x01\x00\x00\x00\x00\0\0\0\0" + bytes(2_000), 1009),  # 4 GiB
        ((b"\x02\xfe\x03\xe8\0\0\0\0" + bytes(1_000)) + (b"\x00\xfe\x03\xe8\0\0\0\0" + bytes(1_000)), 1009),
    ],
    ids=["unmasked", "compressed", "opcode", "continued", "ping", "text", "size", "sum"],
)
def test_what_breaks_the_rules_costs_its_connection_alone(data: bytes, code: int) -> None:
    async def test() -> None:
        async with serving("?max-message=1500") as gateway:
            async with connected(gateway) as device:
                await device.ask()
                device.writer.write(data)
                closing = await device.next()
                assert isinstance(closing, CloseConnection)
                assert closing.code == code
            await until_counted(gateway, "connections_closed.error")
            async with connected(gateway) as device:
                await device.ask()
                device.say(BytesMessage(b"hi"))
                assert await device.next() == b"ws hi"
            assert gateway.app.stats["ws_errors"] == 1

    run(test)


@pytest.mark.live
def test_compression_is_not_agreed_to() -> None:
    """So nobody can send a megabyte in a kilobyte."""

    async def test() -> None:
        async with serving() as gateway, connected(gateway) as device:
            accepted = await device.ask(extensions=[PerMessageDeflate()])
            assert accepted.extensions == []
            bomb = zlib.compress(bytes(50_000_000))[2:-4]
            device.writer.write(b"\xc2\xff" + len(bomb).to_bytes(8, "big") + bytes(4) + bomb)
            assert (await device.next()).code == 1002

    run(test)


@pytest.mark.live
def test_a_flood_of_tiny_messages_lets_others_have_their_turn() -> None:
    """All arrive, and the loop is never held for longer than a slice."""

    async def test() -> None:
        app = echo(limits=Limits(inbox=1_000))
        async with serving(app=app) as gateway, connected(gateway) as device:
            await device.ask()
            device.writer.write(b"\x82\x81\0\0\0\0x" * 20_000)
            for _ in range(20_000):
                assert await device.next() == b"ws x"

    run(test)


@pytest.mark.live
def test_a_device_that_does_not_answer_pings_is_lost() -> None:
    async def test() -> None:
        async with serving("?ping=50ms") as gateway, connected(gateway) as device:
            await device.ask()
            for _ in range(3):
                ping = await device.next()
                assert isinstance(ping, Ping)
                device.say(ping.response())
            await until_counted(gateway, "connections_closed.lost")

    run(test)


@pytest.mark.live
def test_wss(tmp_path: Any) -> None:
    authority = Authority(tmp_path)
    listen = Listen.parse(
        f"wss://127.0.0.1:0?client-ca={authority.file}", cert=str(authority.issue("server"))
    )
    ours: ssl.SSLContext = trusting(authority, authority.issue("meter-7"))

    async def test() -> None:
        async with Gateway(echo(), [listen]) as gateway, connected(gateway, ssl=ours) as device:
            assert isinstance(await device.ask(), AcceptConnection)
            device.say(BytesMessage(b"hi"))
            assert await device.next() == b"wss hi"
            assert gateway.listening[0][1].startswith("wss://127.0.0.1:")

    run(test)


@pytest.mark.live
def test_noise_never_breaks_more_than_its_connection() -> None:
    async def test() -> None:
        async with serving() as gateway:
            for _ in range(50):
                async with connected(gateway) as device:
                    await device.ask()
                    device.writer.write(os.urandom(500))
                    device.writer.write_eof()
                    with contextlib.suppress(OSError):
                        await device.reader.read()
            async with connected(gateway) as device:
                assert isinstance(await device.ask(), AcceptConnection)
            assert gateway.app.stats["connections_opened"] == 51

    run(test)
