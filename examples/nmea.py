r"""NMEA 0183 receivers, such as a ship's GPS or AIS, over TCP or UDP.

The protocol has no login, so a receiver is named by its address; a newer connection from there replaces the
older one. What it says is JSON:

    devices/ADDRESS/position   of RMC: time, lat, lon, speed, course, fix; of GGA: altitude, satellites too
    devices/ADDRESS/sentence   sentence: whatever has no handler here
    devices/ADDRESS/answer     command, and its answer or error

Times are UTC, that of GGA is without a date; speed is in km/h, altitude in m. What it doesn't know is null,
without a fix lat and lon mean nothing. A sentence needs no checksum, but one that it has must be right.

What is published to devices/ADDRESS/command, such as $PMTK220,1000, is sent with its checksum; the next
sentence of its maker's own, $P…, is the answer.

Try it: exproto-app run examples/nmea.py --listen tcp://127.0.0.1:10110, and in another terminal:

    printf '$GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W*6A\r\n' | nc -q1 127.0.0.1 10110
"""

import json
import math
from datetime import datetime, timezone
from typing import Any

import attrs

from exproto_app import App, Connection, FramingError, Message, RequestTimeout, UnavailableError
from exproto_app.checksums import XOR
from exproto_app.framing import Checked, Line, Resync

# --- what is on the wire: $ or !, fields between commas; most add * and the XOR of all between in hex

LINES = Resync(Line(ending=b"\r\n"), (b"$", b"!"))
CHECKED = Resync(Checked(Line(ending=b"\r\n"), XOR, start=1, mark=b"*", text=True), (b"$", b"!"))
KNOT = 1.852  # km/h

Values = dict[str, Any]


@attrs.frozen
class Sentence:
    """A sentence: *kind* is RMC of $GPRMC, or PMTK001 of $PMTK001; *values* are what it says."""

    kind: str
    text: str
    values: Values


def parse(frame: bytes) -> Sentence:
    """Return what *frame* says; what it raises has the frame dropped, logged and counted."""
    text, mark, checksum = frame.decode("ascii").partition("*")
    if mark and int(checksum, 16) != XOR(frame[1 : len(text)]):
        raise ValueError(f"checksum is {checksum}, it has to be {XOR(frame[1 : len(text)]):02X}")
    name, *fields = text[1:].split(",")
    kind = name if name.startswith("P") else name[2:]
    read = {"RMC": recommended, "GGA": fix}.get(kind)
    return Sentence(kind, text, read(fields) if read else {})


def recommended(fields: list[str]) -> Values:
    clock, status, lat, north, lon, east, speed, course, date = fields[:9]
    return {
        "time": time(f"{date} {clock}", "%d%m%y %H%M%S").isoformat() if date and clock else None,
        "lat": degrees(lat, north, "NS"),
        "lon": degrees(lon, east, "EW"),
        "speed": number(speed, KNOT),
        "course": number(course),
        "fix": status == "A",
    }


def fix(fields: list[str]) -> Values:
    clock, lat, north, lon, east, quality, satellites, _, altitude = fields[:9]
    return {
        "time": time(clock, "%H%M%S").timetz().isoformat() if clock else None,
        "lat": degrees(lat, north, "NS"),
        "lon": degrees(lon, east, "EW"),
        "altitude": number(altitude),
        "satellites": int(satellites or "0"),
        "fix": quality not in ("", "0"),
    }


def time(text: str, form: str) -> datetime:
    return datetime.strptime(text if "." in text else f"{text}.0", f"{form}.%f").replace(tzinfo=timezone.utc)


def degrees(text: str, side: str, sides: str) -> float | None:
    """Return degrees for degrees and minutes without a point between them, 4807.038 for 48° 7.038'."""
    value = number(text)
    if value is None:
        return None
    if side not in sides or not 0 <= value <= 18000:
        raise ValueError(f"{text} {side} is no place")
    whole, minutes = divmod(value, 100)
    return round((whole + minutes / 60) * (-1 if side == sides[1] else 1), 6)


def number(text: str, unit: float = 1) -> float | None:
    value = float(text) * unit if text else None
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{text} is no number")
    return value if value is None else round(value, 6)


# --- what is done with it

app = App()
nmea = app.protocol(
    "nmea",
    framing=LINES,
    reply_framing=CHECKED,
    codec=(parse, None),
    key=lambda sentence: sentence.kind,
    sniff=(b"$", b"!"),
)
Conn = Connection[None, Sentence]


@nmea.on_connect
def on_connect(conn: Conn) -> None:
    address = conn.info.peername.host
    conn.register(address)
    conn.subscribe(f"devices/{address}/command", qos=1)


@nmea.on_received("RMC")
@nmea.on_received("GGA")
def on_position(conn: Conn, sentence: Sentence) -> None:
    publish(conn, "position", sentence.values)


@nmea.on_received
def on_sentence(conn: Conn, sentence: Sentence) -> None:
    publish(conn, "sentence", {"sentence": sentence.text})


@nmea.on_deliver("devices/+/command")
async def on_command(conn: Conn, message: Message) -> None:
    values: Values = {"command": message.payload.decode("ascii", "replace")}
    try:
        reply = await conn.request(
            message.payload.partition(b"*")[0],
            match=lambda sentence: sentence.kind.startswith("P"),
            key="command",
        )
        values["answer"] = reply.text
    except (RequestTimeout, UnavailableError, FramingError) as error:
        values["error"] = str(error)
    publish(conn, "answer", values)


def publish(conn: Conn, what: str, values: Values) -> None:
    conn.publish(f"devices/{conn.info.peername.host}/{what}", json.dumps(values).encode())
