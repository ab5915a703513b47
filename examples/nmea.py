r"""NMEA 0183 receivers, such as a ship's GPS or AIS, over TCP or UDP.

The protocol has no login, so a receiver is named by its address; a newer connection from there replaces the
older one. What it says is JSON:

    devices/ADDRESS/position   of RMC: time, lat, lon, speed, course, fix; of GGA: altitude, satellites too
    devices/ADDRESS/sentence   sentence: whatever isn't read here, or can't be
    devices/ADDRESS/answer     command, and its answer or error

Times are UTC, that of GGA is without a date; speed is in km/h, altitude in m. What it doesn't know is null,
without a fix lat and lon mean nothing, and where there is no such place they are null and there is no fix. Of
lat and lon there are as many digits as the receiver tells, at least 6. Bytes that aren't ASCII are told as
Latin-1, so that none is lost.

A sentence needs no checksum, but one that it has must be right. Where one is cut off, the next begins with
its $ or ! on the same line.

    read      RMC and GGA of any talker
    not read  all others, such as GLL, VTG, GSA, GSV, and AIS (!AIVDM): published as they are

What is published to devices/ADDRESS/command, such as $PMTK220,1000, is sent with its checksum; the next
sentence of its maker's own, $P…, is the answer.

Try it: exproto-app run examples/nmea.py --listen tcp://127.0.0.1:10110, and in another terminal:

    printf '$GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W*6A\r\n' | nc -q1 127.0.0.1 10110
"""

import json
import logging
import math
import re
from datetime import datetime, timezone
from typing import Any

import attrs

from exproto_app import App, Connection, FramingError, Message, RequestTimeout, UnavailableError
from exproto_app.checksums import XOR
from exproto_app.framing import Checked, Line, Resync

# --- what is on the wire: $ or !, fields between commas; most add * and the XOR of all between in hex

LINES = Resync(Line(ending=b"\r\n"), (b"$", b"!"))
CHECKED = Resync(Checked(Line(ending=b"\r\n"), XOR, start=1, mark=b"*", text=True), (b"$", b"!"))
START = re.compile(r"(?=[$!][A-Z]{2})")
DEGREES = re.compile(r"(\d{1,3})(\d\d(?:\.\d*)?)")
KNOT = 1.852  # km/h

Values = dict[str, Any]
log = logging.getLogger("nmea")


@attrs.frozen
class Sentence:
    """A sentence: *kind* is RMC of $GPRMC, or PMTK001 of $PMTK001; *values* are what it says."""

    kind: str
    text: str
    values: Values


def parse(frame: bytes) -> tuple[Sentence, ...]:
    """Return the sentences of a line; what it raises has the line dropped, logged and counted."""
    line = frame.decode("latin-1")
    pieces = [line] if checked(line) else [piece for piece in START.split(line) if piece]
    *cut_off, last = pieces or [line]
    whole = [piece for piece in cut_off if checked(piece)]
    body, mark, checksum = last.partition("*")
    if not mark or checked(last):
        whole.append(last)
    elif not whole:
        raise ValueError(f"checksum is {checksum}, it has to be {XOR(body[1:].encode('latin-1')):02X}")
    if len(whole) < len(pieces):
        log.info("%d of %d sentences are cut off in %r", len(pieces) - len(whole), len(pieces), line)
    return tuple(map(sentence, whole))


def checked(text: str) -> bool:
    """Tell whether *text* has a checksum, and the right one."""
    body, mark, checksum = text.partition("*")
    try:
        return bool(mark) and int(checksum, 16) == XOR(body[1:].encode("latin-1"))
    except ValueError:
        return False


def sentence(piece: str) -> Sentence:
    text = piece.partition("*")[0]
    name, *fields = text[1:].split(",")
    kind = name if name.startswith("P") else name[2:]
    read = {"RMC": recommended, "GGA": fix}.get(kind)
    try:
        return Sentence(kind, text, read(fields) if read else {})
    except ValueError:
        return Sentence(kind, text, {})  # it is published as it is


def recommended(fields: list[str]) -> Values:
    clock, status, lat, north, lon, east, speed, course, date = fields[:9]
    place = placed(lat, north, lon, east)
    return {
        "time": time(f"{date} {clock}", "%d%m%y %H%M%S").isoformat() if date and clock else None,
        **place,
        "speed": number(speed, KNOT),
        "course": number(course),
        "fix": status == "A" and None not in place.values(),
    }


def fix(fields: list[str]) -> Values:
    clock, lat, north, lon, east, quality, satellites, _, altitude = fields[:9]
    place = placed(lat, north, lon, east)
    return {
        "time": time(clock, "%H%M%S").timetz().isoformat() if clock else None,
        **place,
        "altitude": number(altitude),
        "satellites": int(satellites or "0"),
        "fix": quality in set("123456789") and None not in place.values(),
    }


def time(text: str, form: str) -> datetime:
    whole, _, part = text.partition(".")
    return datetime.strptime(f"{whole}.{part[:6] or 0}", f"{form}.%f").replace(tzinfo=timezone.utc)


def placed(lat: str, north: str, lon: str, east: str) -> Values:
    return {"lat": degrees(lat, north, "NS", 90), "lon": degrees(lon, east, "EW", 180)}


def degrees(text: str, side: str, sides: str, most: int) -> float | None:
    """Return degrees for degrees and minutes without a point between them, 4807.038 for 48° 7.038'."""
    # Fewer digits before the point are degrees with decimals, by receivers that have the standard wrong.
    match = DEGREES.fullmatch(text)
    if match is None or side not in sides or not side or len(match[1]) < len(str(most)) - 1:
        return None
    whole, minutes, digits = int(match[1]), float(match[2]), len(text.partition(".")[2])
    found = whole + minutes / 60
    if minutes >= 60 or found > most:
        return None
    # Receivers with RTK tell 7 digits of a minute and more, each of which counts.
    return round(-found if side == sides[1] else found, max(6, digits + 1))


def number(text: str, unit: float = 1) -> float | None:
    value = float(text) * unit if text else None
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{text} is no number")
    return value if value is None else round(value, 9)


# --- what is done with it

app = App()
nmea = app.protocol(
    "nmea",
    framing=LINES,
    reply_framing=CHECKED,
    codec=(parse, None),
    sniff=(b"$", b"!"),
)
Conn = Connection[None, tuple[Sentence, ...]]


@nmea.on_connect
def on_connect(conn: Conn) -> None:
    address = conn.info.peername.host
    conn.register(address)
    conn.subscribe(f"devices/{address}/command", qos=1)


@nmea.on_received
def on_sentences(conn: Conn, sentences: tuple[Sentence, ...]) -> None:
    for sentence in sentences:
        if sentence.values:
            publish(conn, "position", sentence.values)
        else:
            publish(conn, "sentence", {"sentence": sentence.text})


@nmea.on_deliver("devices/+/command")
async def on_command(conn: Conn, message: Message) -> None:
    values: Values = {"command": message.payload.decode("latin-1")}
    try:
        reply = await conn.request(
            message.payload.partition(b"*")[0],
            match=lambda sentences: sentences[0].kind.startswith("P"),
            key="command",
        )
        values["answer"] = reply[0].text
    except (RequestTimeout, UnavailableError, FramingError) as error:
        values["error"] = str(error)
    publish(conn, "answer", values)


def publish(conn: Conn, what: str, values: Values) -> None:
    conn.publish(f"devices/{conn.info.peername.host}/{what}", json.dumps(values).encode())
