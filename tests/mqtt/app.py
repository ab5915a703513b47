"""The app that the black-box tests talk to through `exproto-app run`; a line is a command and its words."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from exproto_app import App, Connection, Limits, Message
from exproto_app.errors import CommandError
from exproto_app.framing import Line

app = App(framing=Line(limit=1_000_000), limits=Limits(end_timeout=0.3))
gate = asyncio.Event()


async def words(outcome: Any) -> bytes:
    """Return what a verb comes to."""
    try:
        value = await outcome
    except CommandError as error:
        return f"{type(error).__name__}: {error}".encode()
    return b"ok" if value is None else b"ok %d" % value


@app.on_received(b"login ")
async def login(conn: Connection, frame: bytes) -> bytes:
    clientid, _, password = frame[6:].decode().partition(" ")
    return await words(conn.register(clientid, username=clientid, password=password or None))


@app.on_received(b"stay ")
async def stay(conn: Connection, frame: bytes) -> bytes:
    return await words(conn.register(frame[5:].decode(), session_expiry=60))


@app.on_received(b"will ")
async def will(conn: Connection, frame: bytes) -> bytes:
    clientid = frame[5:].decode()
    return await words(conn.register(clientid, will=Message(f"will/{clientid}", b"gone", 1)))


@app.on_received(b"say ")
def say(conn: Connection, frame: bytes) -> None:
    topic, payload = frame[4:].split(b" ", 1)
    conn.publish(topic.decode(), payload, qos=1)


@app.on_received(b"ask ")
async def ask(conn: Connection, frame: bytes) -> bytes:
    topic, qos, payload = frame[4:].split(b" ", 2)
    return await words(conn.publish(topic.decode(), payload, qos=int(qos)))


@app.on_received(b"keep ")
async def keep(conn: Connection, frame: bytes) -> bytes:
    topic, payload = frame[5:].split(b" ", 1)
    return await words(conn.publish(topic.decode(), payload, qos=1, retain=True))


@app.on_received(b"fill ")
async def fill(conn: Connection, frame: bytes) -> bytes:
    topic, qos, size = frame[5:].split()
    return await words(conn.publish(topic.decode(), bytes(int(size)), qos=int(qos)))


@app.on_received(b"app ")
async def announce(conn: Connection, frame: bytes) -> bytes:
    topic, payload = frame[4:].split(b" ", 1)
    return await words(app.publish(topic.decode(), payload, qos=1))


@app.on_received(b"rich ")
async def rich(conn: Connection, frame: bytes) -> bytes:
    topic, qos, payload = frame[5:].split(b" ", 2)
    outcome = conn.publish(
        topic.decode(),
        payload,
        qos=int(qos),
        expiry=60,
        content_type="text/plain",
        response_topic="answers",
        correlation_data=b"\0\1",
        user_properties={"unit": "C"},
    )
    return await words(outcome)


@app.on_received(b"sub ")
async def subscribe(conn: Connection, frame: bytes) -> bytes:
    topic, qos = frame[4:].split()
    return await words(conn.subscribe(topic.decode(), qos=int(qos)))


@app.on_received(b"count ")
def count(conn: Connection, frame: bytes) -> bytes:
    return b"%d" % app.stats.get(frame[6:].decode(), 0)


@app.on_received(b"pid")
def process(conn: Connection, frame: bytes) -> bytes:
    return b"%d" % os.getpid()


@app.on_received(b"open")
def open_gate(conn: Connection, frame: bytes) -> bytes:
    gate.set()
    return b"opened"


@app.on_received(b"end")
def end(conn: Connection, frame: bytes) -> None:
    conn.terminate()


@app.on_deliver("questions/+", reply=True)
async def question(conn: Connection, message: Message) -> bytes:
    return await conn.request(message.payload, match=lambda frame: frame.startswith(b"="), timeout=10)


@app.on_deliver("rich/+")
def show_properties(conn: Connection, message: Message) -> bytes:
    return repr(message.properties).encode()


@app.on_deliver
async def deliver(conn: Connection, message: Message) -> bytes:
    if message.payload == b"hold":
        conn.send(b"holding")
        await gate.wait()
    kept = " retained" if message.retain else ""
    return f"{message.topic} qos {message.qos}{kept}: ".encode() + message.payload


@app.on_terminated
def gone(conn: Connection, reason: str) -> None:
    if conn.client is not None:
        conn.publish(f"end/{conn.client.clientid}", f"{reason}: {conn.close_detail}".encode(), qos=1)


@app.on_received(b"child ")
async def child(conn: Connection, frame: bytes) -> bytes:
    clientid, _, password = frame[6:].decode().partition(" ")
    return await words(register_child(conn, clientid, password or None))


async def register_child(conn: Connection, clientid: str, password: str | None) -> None:
    await conn.child(clientid, username=clientid, password=password)


@app.on_received(b"of ")
async def of_child(conn: Connection, frame: bytes) -> bytes:
    """Publish for a child, which `of NAME TOPIC PAYLOAD` is."""
    clientid, topic, payload = frame[3:].split(b" ", 2)
    return await words(conn.children[clientid.decode()].publish(topic.decode(), payload, qos=1))
