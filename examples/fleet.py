r"""Two protocols in one app: trackers that log in and take commands, meters that count.

A tracker speaks lines. It logs in with `login IMEI PASSWORD`, then reports `pos LAT LON`; commands for it are
published to `fleet/IMEI/command`, and its answer (`ok …` or `error …`) goes to `fleet/IMEI/answer`.
A meter speaks frames of a one-byte length: its number in four bytes once, then readings of four bytes each.

Try it: exproto-app run examples/fleet.py \
            --listen tracker=tcp://127.0.0.1:7001 --listen meter=tcp://127.0.0.1:7002
(or on one port, where their first bytes tell them apart: --listen meter,tracker=tcp://127.0.0.1:7001)
and in another terminal:
    nc 127.0.0.1 7001                                          then type: login 42 secret
    printf '\4\0\0\0\7\4\0\0\1\0' | nc -q1 127.0.0.1 7002    publishes 256 to meters/7
"""

import json

import attrs

from exproto_app import App, Connection, Message
from exproto_app.errors import DeniedError, RequestTimeout
from exproto_app.framing import LengthPrefix, Line

app = App()


# --- trackers


@attrs.define
class Tracker:
    imei: str = ""
    reports: int = 0


tracker = app.protocol("tracker", framing=Line(limit=256), state=Tracker)


@tracker.on_connect
def welcome(conn: Connection[Tracker]) -> None:
    conn.start_timer(600)  # silence for ten minutes ends the connection


@tracker.on_received(b"login ")
async def login(conn: Connection[Tracker], frame: bytes) -> bytes:
    imei, _, password = frame[6:].decode("ascii", "replace").partition(" ")
    if not imei.isdigit():
        return b"error: login IMEI PASSWORD"
    try:
        await conn.register(imei, password=password)
    except DeniedError:
        conn.terminate()
        return b"error: denied"
    conn.state.imei = imei
    conn.subscribe(f"fleet/{imei}/command", qos=1)
    return b"welcome"


@tracker.on_received(b"pos ")
def position(conn: Connection[Tracker], frame: bytes) -> bytes | None:
    if conn.client is None:
        return b"error: log in first"
    try:
        latitude, longitude = map(float, frame[4:].split())
    except ValueError:
        return b"error: pos LAT LON"
    conn.state.reports += 1
    where = {"lat": latitude, "lon": longitude, "report": conn.state.reports}
    stored = conn.publish(f"fleet/{conn.state.imei}/position", json.dumps(where).encode(), qos=1)
    conn.send(b"ok", after=stored)  # when the broker has it: the tracker may forget the position now
    return None


@tracker.on_received
def unknown(conn: Connection[Tracker], frame: bytes) -> bytes:
    return b"error: what is " + frame


@tracker.on_deliver("fleet/+/command")
async def command(conn: Connection[Tracker], message: Message) -> None:
    try:
        answer = await conn.request(b"do " + message.payload, match=is_answer, timeout=10, key="command")
    except RequestTimeout:
        answer = b"error: no answer"
    conn.publish(f"fleet/{conn.state.imei}/answer", answer)


def is_answer(frame: bytes) -> bool:
    return frame.startswith((b"ok", b"error"))


# --- meters


@attrs.define
class Meter:
    number: int | None = None


# Its first frame is its number, of four bytes: by that it is known on a listener that both share.
meter = app.protocol("meter", framing=LengthPrefix(1), state=Meter, sniff=b"\x04")


@meter.on_received
def reading(conn: Connection[Meter], frame: bytes) -> None:
    value = int.from_bytes(frame, "big")
    if conn.state.number is None:
        conn.state.number = value
        conn.register(f"meter-{value}")
    else:
        conn.publish(f"meters/{conn.state.number}", str(value).encode())


@meter.on_terminated
def gone(conn: Connection[Meter], reason: str) -> None:
    conn.publish(f"meters/{conn.state.number}/gone", reason.encode())
