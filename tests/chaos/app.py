"""The app that is under chaos: a record is acknowledged to the device when the broker has it."""

from __future__ import annotations

from exproto_app import App, Connection
from exproto_app.errors import CommandError
from exproto_app.framing import Line

app = App(framing=Line(limit=256))


@app.on_received(b"login ")
async def login(conn: Connection, frame: bytes) -> bytes | None:
    try:
        await conn.register(frame[6:].decode())
    except (CommandError, ValueError):  # the broker is away, or a stranger has sent garbage
        conn.terminate()
        return None
    return b"welcome"


@app.on_received(b"record ")
async def record(conn: Connection, frame: bytes) -> bytes | None:
    try:
        await conn.publish("records", frame[7:], qos=1)
    except CommandError:  # the device will send it again
        conn.terminate()
        return None
    return b"safe " + frame[7:]


@app.on_received
def anything(conn: Connection, frame: bytes) -> None:
    conn.terminate()
