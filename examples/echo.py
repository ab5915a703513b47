"""The hello-world: greets a device, publishes its lines, and sends it what is published to hello/down.

Try it: exproto-app run examples/echo.py, and in another terminal: nc 127.0.0.1 7993
"""

from exproto_app import App, Connection, Message
from exproto_app.framing import Line

app = App(framing=Line())


@app.on_connect
def greet(conn: Connection) -> bytes:
    conn.register(f"hello-{conn.info.peername}")
    conn.subscribe("hello/down", qos=1)
    return b"hello"


@app.on_received
def uplink(conn: Connection, frame: bytes) -> bytes:
    conn.publish("hello/up", frame)
    return b"got " + frame


@app.on_deliver
def downlink(conn: Connection, message: Message) -> bytes:
    return message.payload


@app.on_terminated
def gone(conn: Connection, reason: str) -> None:
    print("bye", conn.info.peername, reason)
