"""The callback module on the loop that EMQX published: `gen-driver --stock`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from exproto_app.hosts.emqx42 import generate
from exproto_app.ops.recorder import KEEP, SIZE
from exproto_app.target import load
from exproto_app.testing import replay

from .broker import Broker, Vm
from .conftest import begin

pytestmark = pytest.mark.system

APP = """
import threading
from exproto_app import App, Connection, Message
from exproto_app.errors import UnsupportedError
from exproto_app.framing import Line

app = App(framing=Line(limit=100))

@app.on_connect
def connect(conn: Connection) -> bytes:
    return f"hello {conn.info.socktype}".encode()

@app.on_received(b"register ")
def register(conn: Connection, frame: bytes) -> None:
    clientid, _, password = frame[9:].decode().partition(" ")
    conn.register(clientid, password=password or None)

@app.on_received(b"who")
def who(conn: Connection, frame: bytes) -> bytes:
    return conn.client.clientid.encode() if conn.client else b"nobody"

@app.on_received(b"subscribe ")
def subscribe(conn: Connection, frame: bytes) -> None:
    conn.subscribe(frame[10:].decode(), qos=1)

@app.on_received(b"publish ")
def publish(conn: Connection, frame: bytes) -> None:
    conn.publish(frame[8:].decode(), b"published")

@app.on_received(b"raise")
def fail(conn: Connection, frame: bytes) -> None:
    conn.send(b"before")
    raise LookupError("out of luck")

@app.on_received(b"bye")
def bye(conn: Connection, frame: bytes) -> bytes:
    conn.terminate()
    return b"so long"

@app.on_received(b"timer")
def timer(conn: Connection, frame: bytes) -> bytes:
    try:
        conn.start_timer(1)
    except UnsupportedError as error:
        return str(error).encode()

@app.on_received(b"thread")
def thread(conn: Connection, frame: bytes) -> None:
    threading.Thread(target=conn.send, args=(b"from a thread",)).start()

@app.on_received(b"spawn")
def spawn(conn: Connection, frame: bytes) -> None:
    async def never() -> None: ...
    conn.spawn(never())

@app.on_received
def echo(conn: Connection, frame: bytes) -> bytes:
    return frame

@app.on_deliver
def deliver(conn: Connection, message: Message) -> bytes:
    return message.payload

@app.on_terminated
def gone(conn: Connection, reason: str) -> None:
    print("gone", reason)
    conn.publish("end", b"")
"""


@pytest.fixture
def serve(vm: Vm, tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    with contextlib.ExitStack() as stack:

        def start(text: str = APP, **options: Any) -> Broker:
            target = tmp_path / "device.py"
            target.write_text(text)
            return begin(vm, stack, tmp_path, str(target), stock=True, python=sys.executable, **options)

        yield start


def test_verbs_and_messages(serve: Callable[..., Broker]) -> None:
    broker = serve()
    device = broker.connect()
    device.expect(b"hello tcp\n")
    device.send(b"who\nregister d1\nwho\nsubscribe up/+\npublish up/1\nhalf a")
    device.expect(b"nobody\nd1\npublished\n")
    device.send(b" line\n")
    device.expect(b"half a line\n")
    broker.publish("up/2", b"\xff")
    device.expect(b"\xff\n")
    assert device.registered is not None
    device.send(b"bye\n")
    device.expect(b"so long\n")
    device.expect_end()
    broker.expect_log("gone terminated", "with --stock a connection that has ended can't publish")


SHARED = """
from exproto_app import App, Connection
from exproto_app.framing import Line

app = App()
for name, sniff in (("a", b"a"), ("ab", b"ab"), ("rest", None)):
    router = app.protocol(name, framing=Line(), sniff=sniff)

    @router.on_received
    def received(conn: Connection, frame: bytes) -> bytes:
        return conn.protocol.encode() + b" " + frame
"""


def test_the_first_bytes_tell_the_protocol(serve: Callable[..., Broker]) -> None:
    broker = serve(SHARED, protocol="a,ab,rest")
    for data, protocol in ((b"abc\n", b"ab"), (b"acc\n", b"a"), (b"bcc\n", b"rest")):
        device = broker.connect()
        device.send(data[:1])
        device.send(data[1:])
        device.expect(protocol + b" " + data)


def test_failures_cost_one_device(serve: Callable[..., Broker]) -> None:
    broker = serve()
    failing, refused, other = broker.connect(), broker.connect(), broker.connect()
    for device in (failing, refused, other):
        device.expect(b"hello tcp\n")
    failing.send(b"raise\n")
    failing.expect(b"before\n")
    failing.expect_end()
    broker.expect_log("LookupError", "out of luck")
    refused.send(b"register d1 secret\n")
    refused.expect_end()
    broker.expect_log("a password proves nothing")
    other.send(b"spawn\n")
    other.expect_end()
    broker.expect_log("runs no coroutines")


def test_the_end_of_a_udp_peer_costs_the_others_nothing(serve: Callable[..., Broker]) -> None:
    broker = serve()
    device, failing, other = (broker.connect("udp") for _ in range(3))
    for each in (device, failing, other):
        each.expect(b"hello udp\n")
    device.send(b"bye\n")
    failing.send(b"raise\n")
    for each in (device, failing):
        each.wait(lambda device: device.closed)
    broker.expect_log("gone terminated", "gone error")
    other.send(b"still here\n")
    other.expect(b"still here\n")
    assert not broker.socket_closed


def test_what_it_lacks_is_told(serve: Callable[..., Broker]) -> None:
    device = serve().connect()
    device.send(b"timer\nthread\n")
    device.expect(b"hello tcp\nthis host has no timers\nfrom a thread\n")


def test_three_hundred_at_once(serve: Callable[..., Broker]) -> None:
    broker = serve()
    devices = [broker.connect() for _ in range(300)]
    for number, device in enumerate(devices):
        device.send(b"%d\n" % number)
    for number, device in enumerate(devices):
        device.expect(b"hello tcp\n%d\n" % number)


def test_a_restarted_process_closes_what_it_never_saw(serve: Callable[..., Broker]) -> None:
    broker = serve()
    broker.connect().expect(b"hello tcp\n")
    device = broker.connect(unknown=True)
    device.send(b"hello\n")
    device.expect_end()
    broker.expect_log("restarted")


def test_an_app_that_cant_be_imported_is_in_the_log(serve: Callable[..., Broker]) -> None:
    broker = serve("import no_such_thing\n")
    broker.connect().expect_end()


def test_it_records_and_the_recording_replays(vm: Vm, tmp_path: Path) -> None:
    target, path = tmp_path / "device.py", tmp_path / "field.jsonl"
    target.write_text(APP)
    record = generate.Record(path, SIZE, KEEP)
    with contextlib.ExitStack() as stack:
        broker = begin(vm, stack, tmp_path, str(target), stock=True, python=sys.executable, record=record)
        device = broker.connect()
        device.send(b"register d1\nwho\nsubscribe up/+\npublish up/1\n")
        device.expect(b"hello tcp\nd1\npublished\n")
        device.send(b"bye\n")
        device.expect(b"so long\n")
        device.expect_end()
    assert replay(load(str(target)), path) == []
