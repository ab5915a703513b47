"""What the gateways serve that the store's benchmark kills: lines that are acknowledged."""

from __future__ import annotations

from exproto_app import App, Connection
from exproto_app.framing import Line

app = App(framing=Line())


@app.on_received(b"login ")
def login(conn: Connection, frame: bytes) -> None:
    conn.send(b"ok", after=conn.register(frame[6:].decode()))


@app.on_received
def record(conn: Connection, frame: bytes) -> None:
    conn.send(frame, after=conn.publish("bench/records", frame, qos=1))
