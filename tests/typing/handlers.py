"""Checked by mypy --strict, never run: what the decorators take, keep and refuse.

A line marked `type: ignore` has to be an error: an unused ignore is one too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

import attrs
from typing_extensions import assert_type

from exproto_app import App, Connection, ConnectionInfo, Message, Router
from exproto_app.framing import Decoding, Line, Reader
from exproto_app.models import Reason
from exproto_app.testing import TestClient, replay


@attrs.define
class Device:
    imei: str = ""


@attrs.define
class Other:
    n: int = 0


app = App(framing=Line())
gt06 = Router("gt06", key=lambda frame: frame[1:2], state=Device)
jt808 = app.protocol("jt808", state=Other)
app.include(gt06)

assert_type(app, App[None])
assert_type(gt06, Router[Device])
assert_type(jt808, Router[Other])


@app.on_connect
def greet(conn: Connection) -> bytes:
    assert_type(conn.state, None)
    return b"hello"


@app.on_connect
def greet_with_info(conn: Connection, info: ConnectionInfo) -> None: ...


@app.on_received
def uplink(conn: Connection, frame: bytes) -> bytes:
    return frame


@app.on_received(b"LOGIN ", blocking=True)
def login(conn: Connection, frame: bytes) -> bytes | None:
    return None


@gt06.on_received(b"\x01")
async def hello(conn: Connection[Device], frame: bytes) -> bytes:
    assert_type(conn.state, Device)
    assert_type(await conn.request(b"?", timeout=1), bytes)
    assert_type(await conn.subscribe("down/#", 1), int)
    return conn.state.imei.encode()


@gt06.on_received
def with_state(conn: Connection[Device], data: bytes, state: Device) -> None:
    state.imei = "1"


@gt06.on_deliver("devices/+/command")
def command(conn: Connection[Device], message: Message) -> bytes:
    return message.payload


@gt06.on_deliver(batch=True)
def batch(conn: Connection[Device], messages: list[Message]) -> None: ...


@gt06.on_timeout
def late(conn: Connection[Device]) -> bytes:
    return b"?"


@gt06.every(10)
async def poll(conn: Connection[Device]) -> None: ...


@gt06.on_error
def oops(conn: Connection[Device], error: Exception) -> bytes:
    conn.keep()
    return b"ERR"


@gt06.on_terminated
def gone(conn: Connection[Device], reason: Reason) -> None: ...


@gt06.on_terminated
def gone_str(conn: Connection[Device], reason: str, state: Device) -> None: ...


@app.on_startup
async def start() -> None: ...


@app.on_shutdown
def stop() -> None: ...


# The function's own type is kept.
assert_type(greet, Callable[[Connection], bytes])
assert_type(uplink, Callable[[Connection, bytes], bytes])
assert_type(login, Callable[[Connection, bytes], bytes | None])
assert_type(hello, Callable[[Connection[Device], bytes], Coroutine[Any, Any, bytes]])
assert_type(command, Callable[[Connection[Device], Message], bytes])
assert_type(app.connections["x"], Connection[Any, Any])
assert_type(gt06.connections["x"], Connection[Device])


# A handler of the wrong state is refused.
@gt06.on_received(b"\x02")  # type: ignore[arg-type]
def wrong_state(conn: Connection[Other], frame: bytes) -> bytes:
    return frame


@gt06.on_connect  # type: ignore[arg-type]
def wrong_state_connect(conn: Connection[Other]) -> bytes:
    return b""


@gt06.on_deliver("a/#")  # type: ignore[arg-type]
def wrong_state_deliver(conn: Connection[Other], message: Message) -> bytes:
    return b""


@gt06.every(1)  # type: ignore[arg-type]
def wrong_state_every(conn: Connection) -> None: ...


# So is one of the wrong return type or arguments.
@app.on_received  # type: ignore[type-var]
def wrong_return(conn: Connection, frame: bytes) -> str:
    return "text"


@app.on_received(b"A")  # type: ignore[type-var]
async def wrong_async_return(conn: Connection, frame: bytes) -> str:
    return "text"


@app.on_terminated  # type: ignore[type-var]
def wrong_bytes(conn: Connection, reason: Reason) -> bytes:
    return b""


@app.on_deliver  # type: ignore[arg-type]
def wrong_argument(conn: Connection, message: bytes) -> bytes:
    return message


@app.on_deliver(batch=True)  # type: ignore[arg-type]
def wrong_batch(conn: Connection, message: Message) -> None: ...


class Counted:
    """A framing of a user's own."""

    def encode(self, frame: bytes) -> bytes:
        return len(frame).to_bytes(2, "big") + frame

    def decode(self, reader: Reader) -> Decoding:
        while True:
            size = yield from reader.exactly(2)
            yield (yield from reader.exactly(int.from_bytes(size, "big")))


Router("counted", framing=Counted())
Router("nothing", framing=object())  # type: ignore[call-overload]


# --- messages of a codec


@attrs.define
class Packet:
    kind: int = 0


class Packets:
    """A codec of a user's own."""

    def parse(self, data: bytes) -> Packet:
        return Packet(data[0])

    def build(self, message: Packet) -> bytes:
        return bytes([message.kind])


packets = Router("packets", codec=Packets(), state=Device, key=lambda packet: packet.kind)
texts = App(framing=Line(), codec=(bytes.decode, str.encode))
halves = app.protocol("halves", codec=(json.loads, None))
assert_type(packets, Router[Device, Packet])
assert_type(texts, App[None, str])
assert_type(halves, Router[None, Any])
assert_type(app.protocol("others", codec=Packets(), state=Other), Router[Other, Packet])
assert_type(packets.connections["x"], Connection[Device, Packet])


@packets.on_received(1)
async def packet(conn: Connection[Device, Packet], packet: Packet) -> Packet:
    assert_type(await conn.request(Packet(1), match=lambda answer: answer.kind == 2, retries=2), Packet)
    conn.send(Packet(3))
    conn.send(b"raw", raw=True)
    return packet


@packets.on_received
def packet_with_state(conn: Connection[Device, Packet], packet: Packet, state: Device) -> Packet | None:
    return None


@packets.on_connect
def packet_greeting(conn: Connection[Device, Packet]) -> Packet:
    return Packet()


@packets.on_deliver("x/#")
async def packet_command(conn: Connection[Device, Packet], message: Message) -> Packet | None:
    return None


@packets.every(1)
def packet_poll(conn: Connection[Device, Packet]) -> Packet:
    return Packet()


@packets.on_terminated
def packet_gone(conn: Connection[Device, Packet], reason: Reason) -> None: ...


@texts.on_received
def text(conn: Connection[None, str], text: str) -> str:
    return text


# A handler of other messages is refused, whether it takes or gives them.
@packets.on_received(2)  # type: ignore[arg-type]
def wrong_message(conn: Connection[Device, Packet], frame: bytes) -> None: ...


@packets.on_received(3)  # type: ignore[arg-type]
def wrong_answer(conn: Connection[Device, Packet], packet: Packet) -> str:
    return "text"


@texts.on_received  # type: ignore[arg-type]
def wrong_connection(conn: Connection, text: str) -> None: ...


def wrong_sends(conn: Connection[Device, Packet], bare: Connection) -> None:
    conn.send("text")  # type: ignore[arg-type]
    bare.send("text")  # type: ignore[arg-type]


Router("half", codec=3)  # type: ignore[call-overload]

# What tells a protocol by a device's first bytes.


def looks_right(data: bytes) -> bool | None:
    return None if len(data) < 4 else data[3] == 0


assert_type(app.protocol("sniffed", sniff=b"$GP"), Router[None])
assert_type(app.protocol("sniffed", state=Device, sniff=(b"$GP", b"$GN")), Router[Device])
assert_type(Router("sniffed", codec=(bytes.decode, str.encode), sniff=looks_right), Router[None, str])
App(sniff="$GP")  # type: ignore[call-overload]

# What takes an app takes one of messages too.
TestClient(texts)
replay(texts, "x.jsonl")
