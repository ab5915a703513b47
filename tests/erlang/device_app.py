"""An app that does what its device asks for, and what tests do with it."""

from __future__ import annotations

from .broker import Broker, Device

__all__ = ["APP", "echoes", "registered"]

APP = """
import asyncio, logging, time
from exproto_app import App, CommandError, Connection, Message, Router
from exproto_app.framing import Line

app = App(framing=Line(limit=2_000_000))

async def outcome(verb) -> bytes:
    try:
        await verb
    except CommandError as error:
        return f"{type(error).__name__}: {error}".encode()
    return b"done"

@app.on_received(b"register ")
async def register(conn: Connection, frame: bytes) -> bytes:
    clientid, _, password = frame[9:].decode().partition(" ")
    return await outcome(conn.register(clientid, password=password or None))

@app.on_received(b"login ")
async def login(conn: Connection, frame: bytes) -> None:
    await conn.register(frame[6:].decode(), password="s3cret")
    await conn.publish("login/" + conn.client.clientid, b"1")
    await conn.publish("login/" + conn.client.clientid, b"2")

@app.on_received(b"busy ")
def busy(conn: Connection, frame: bytes) -> None:
    time.sleep(0.012)
    conn.register(frame[5:].decode(), password="s3cret")

@app.on_received(b"publish ")
def publish(conn: Connection, frame: bytes) -> None:
    conn.publish("up", frame[8:])

@app.on_received(b"ask ")
async def ask(conn: Connection, frame: bytes) -> bytes:
    return await outcome(conn.publish(frame[4:].decode(), b"x"))

@app.on_received(b"app ")
async def announce(conn: Connection, frame: bytes) -> bytes:
    return await outcome(app.publish(frame[4:].decode(), b"by the app"))

@app.on_received(b"subscribe ")
async def subscribe(conn: Connection, frame: bytes) -> bytes:
    return await outcome(conn.subscribe(frame[10:].decode()))

@app.on_received(b"bye")
def bye(conn: Connection, frame: bytes) -> bytes:
    conn.terminate()
    return b"so long"

@app.on_received(b"raise")
def fail(conn: Connection, frame: bytes) -> None:
    raise LookupError("out of luck")

@app.on_received(b"silence")
def silence(conn: Connection, frame: bytes) -> None:
    conn.start_timer(0.01)

@app.on_received(b"many ")
async def many(conn: Connection, frame: bytes) -> bytes:
    number = int(frame[5:])
    outcomes = [conn.publish("many", b"%2000d" % number) for number in range(number)]
    for one in outcomes:
        await one
    return b"all"

@app.on_received(b"sleep")
def sleep(conn: Connection, frame: bytes) -> None:
    time.sleep(0.1)

@app.on_received(b"large")
def large(conn: Connection, frame: bytes) -> None:
    conn.send(b"x" * 70_000)

@app.on_received(b"flood")
async def flood(conn: Connection, frame: bytes) -> None:
    for _ in range(100):
        await conn.send(b"x" * 100_000)

@app.on_received(b"print ")
def show(conn: Connection, frame: bytes) -> bytes:
    print(frame[6:].decode())
    logging.getLogger("mine").error("wrong")
    logging.getLogger("mine").info("right")
    return b"shown"

@app.on_received(b"much")
def much(conn: Connection, frame: bytes) -> bytes:
    print("\\n".join(f"line {number}" for number in range(20_000)))
    return b"printed"

@app.on_received(b"cert")
def cert(conn: Connection, frame: bytes) -> bytes:
    return repr(conn.info.peercert).encode()

@app.on_received
def echo(conn: Connection, frame: bytes) -> bytes:
    return frame

@app.on_deliver
def deliver(conn: Connection, message: Message) -> bytes:
    return message.payload

@app.on_terminated
def gone(conn: Connection, reason: str) -> None:
    who = conn.client.clientid if conn.client else "nobody"
    app.publish(f"gone/{who}", reason.encode())
"""


def echoes(device: Device) -> None:
    device.send(b"hello\n")
    device.expect(b"hello\n")


def registered(broker: Broker, name: str, socktype: str = "tcp") -> Device:
    device = broker.connect(socktype)
    device.send(b"register %s\n" % name.encode())
    device.expect(b"done\n")
    return device
