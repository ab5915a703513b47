r"""Wialon IPS 1.1 and 2.0 trackers, over TCP and UDP; many trackers and phone apps can speak it.

A tracker logs in by its IMEI or another ID, and a password where it has one. What it says is JSON:

    devices/ID/position   time, lat, lon, speed, course, altitude, satellites; of long packets also
                          hdop, inputs, outputs, adc, ibutton, params
    devices/ID/message    text: what the driver wrote
    devices/ID/unread     packet: what isn't read here or can't be, as it came
    devices/ID/answer     command, and whether the tracker has taken it, or error

Times are UTC; speed is in km/h, altitude in m, course in degrees. What the tracker doesn't know is null; a
time that is null it leaves to whoever reads it. Parameters keep their names and types. Bytes that aren't
UTF-8 are told as Latin-1, so that none is lost.

A packet is acknowledged when the broker has what it says. A record that can't be read goes to unread; a
packet of its own is answered with the code of what is wrong with it, and in a black box it counts, or the
tracker would send it again forever.

    read      login (L), short and long data (SD, D), black box (B), message (M), ping (P)
    not read  photos and videos (I), tachograph files (T, IT), compressed packets

What is published to devices/ID/command is shown to the driver, over TCP.

Try it: exproto-app run examples/wialon.py --listen tcp://127.0.0.1:20332, and in another terminal:

    printf '#L#1001;NA\r\n#SD#270413;205601;5544.6025;N;03739.6834;E;1;2;3;4\r\n' | nc -q1 127.0.0.1 20332
"""

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

import attrs

from exproto_app import App, Connection, DeniedError, FramingError, Message, RequestTimeout, UnavailableError
from exproto_app.checksums import CRC16_ARC
from exproto_app.framing import Line

# --- what is on the wire: #kind#body, semicolons between fields, NA where there is none; in 2.0 a CRC is last

PACKET = re.compile(rb"(?:(\d\.\d);)?([^#;]*)#([A-Z]+)#(.*)", re.DOTALL)  # version, IMEI, kind, body
VERSION = re.compile(rb"(\d\.\d);")
NUMBER = re.compile(r"[+-]?[0-9]+([.,][0-9]*)?")
DEGREES = re.compile(r"([0-9]{1,3})([0-9]{2}(?:\.[0-9]*)?)")
CHECKSUM = re.compile(rb"(?:0x)?[0-9A-Fa-f]{1,4}")
WITHOUT_CHECKSUM = "1.1"

Values = dict[str, Any]


@attrs.frozen
class Packet:
    """A packet of a *kind*, such as SD; *imei* and *version* come with it on UDP alone."""

    kind: str
    body: bytes
    imei: str
    version: str


@attrs.define
class Tracker:
    version: str = WITHOUT_CHECKSUM


class UnreadError(ValueError):
    """A record that can't be read; *code* is what the tracker is answered."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


STRUCTURE, TIME, PLACE, MOTION, COUNT, SWITCHES, ADC, PARAMS = "-1", "0", "10", "11", "12", "13", "14", "15"
DAMAGED = {"L": "10", "SD": "13", "D": "16", "B": "", "M": "01"}  # the CRC is wrong


def parse(frame: bytes) -> Packet:
    """Return the packet of a line; what it raises has the line dropped, logged and counted."""
    match = PACKET.fullmatch(frame)
    if match is None:
        raise ValueError("it isn't #kind#body")
    version, imei, kind, body = match.groups()
    return Packet(kind.decode(), body, text(imei), version.decode() if version else WITHOUT_CHECKSUM)


def text(data: bytes) -> str:
    """Return UTF-8 as text; bytes that aren't any are told as Latin-1, so that none is lost."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def checked(body: bytes) -> bytes | None:
    """Return *body* without the CRC that is its last field; None if that is wrong."""
    end = max(body.rfind(b";"), body.rfind(b"|")) + 1
    stated = body[end:]
    if not CHECKSUM.fullmatch(stated) or int(stated, 16) != CRC16_ARC(body[:end]):
        return None
    return body[: max(end - 1, 0)]


def short(fields: list[str]) -> Values:
    date, clock, lat, north, lon, east, speed, course, altitude, satellites = fields
    return {
        "time": time(date, clock),
        "lat": field(PLACE, degrees, lat, north, "NS", 90),
        "lon": field(PLACE, degrees, lon, east, "EW", 180),
        "speed": field(MOTION, number, speed),
        "course": field(MOTION, number, course),
        "altitude": field(MOTION, number, altitude),
        "satellites": field(COUNT, whole, satellites),
    }


def long(fields: list[str]) -> Values:
    hdop, inputs, outputs, adc, ibutton, params = fields[10:]
    return {
        **short(fields[:10]),
        "hdop": field(COUNT, number, hdop),
        "inputs": field(SWITCHES, whole, inputs),
        "outputs": field(SWITCHES, whole, outputs),
        "adc": [field(ADC, number, value) for value in adc.split(",")] if adc not in ("", "NA") else [],
        "ibutton": None if ibutton in ("", "NA") else ibutton,
        "params": field(PARAMS, parameters, params) or {},
    }


def record(body: str) -> Values:
    """Return what a record says; raises UnreadError."""
    fields = body.split(";")
    if len(fields) not in (10, 16):
        raise UnreadError(STRUCTURE)
    return short(fields) if len(fields) == 10 else long(fields)


def field(code: str, read: Callable[..., Any], value: str, *more: Any) -> Any:
    """Return what *read* makes of *value*, None where there is none; raises UnreadError with *code*."""
    if value in ("", "NA"):
        return None
    try:
        return read(value, *more)
    except ValueError:
        raise UnreadError(code) from None


def time(date: str, clock: str) -> str | None:
    if date in ("", "NA") or clock in ("", "NA"):
        return None
    seconds, _, part = clock.partition(".")
    try:
        found = datetime.strptime(f"{date} {seconds}.{part[:6] or 0} +0000", "%d%m%y %H%M%S.%f %z")
    except ValueError:
        raise UnreadError(TIME) from None
    return found.isoformat()


def degrees(value: str, side: str, sides: str, most: int) -> float:
    """Return degrees for degrees and minutes without a point between them, 5544.6025 for 55° 44.6025'."""
    match = DEGREES.fullmatch(value)
    if match is None or side not in tuple(sides) or float(match[2]) >= 60:
        raise ValueError(value)
    found = int(match[1]) + float(match[2]) / 60
    if found > most:
        raise ValueError(value)
    return round(-found if side == sides[1] else found, max(6, len(value.partition(".")[2]) + 1))


def number(value: str) -> float:
    if not NUMBER.fullmatch(value):
        raise ValueError(value)
    return float(value.replace(",", "."))  # some write 1,6


def whole(value: str) -> int:
    match = NUMBER.fullmatch(value)
    if match is None or match[1]:
        raise ValueError(value)
    return int(value)


def parameters(value: str) -> Values:
    """Return the parameters of name:type:value, …; what isn't of its type stays text."""
    found: Values = {}
    for parameter in value.split(","):
        name, kind, content = parameter.split(":", 2)
        try:
            found[name] = TYPES.get(kind, str)(content)
        except ValueError:
            found[name] = content
    return found


TYPES: dict[str, Callable[[str], Any]] = {"1": whole, "2": number, "3": str}


# --- what is done with it

app = App()
tcp = app.protocol(
    "wialon",
    framing=Line(ending=b"\r\n"),
    codec=(parse, None),
    key=lambda packet: packet.kind,
    state=Tracker,
    sniff=b"#L#",
)
udp = app.protocol("wialon-udp", framing=Line(ending=b"\r\n"), codec=(parse, None), state=Tracker)
Conn = Connection[Tracker, Packet]


@tcp.on_received("L")
async def on_login(conn: Conn, packet: Packet) -> bytes | None:
    versioned = VERSION.match(packet.body)
    body = checked(packet.body) if versioned else packet.body
    if body is None:
        conn.terminate()
        return b"#AL#" + DAMAGED["L"].encode()
    if versioned:
        conn.state.version = versioned[1].decode()
        body = body[versioned.end() :]
    name, _, password = text(body).partition(";")
    try:
        await conn.register(name, password=None if password in ("", "NA") else password)
    except DeniedError:
        conn.terminate()
        return b"#AL#0"
    conn.subscribe(f"devices/{name}/command", qos=1)
    return b"#AL#1"


@tcp.on_received
def on_packet(conn: Conn, packet: Packet) -> None:
    if conn.client is None:
        conn.terminate()
    elif packet.kind == "P":
        conn.send(b"#AP#")
    else:
        tell(conn, packet)


@udp.on_received
async def on_datagram(conn: Conn, packet: Packet) -> None:
    conn.state.version = packet.version
    try:
        await conn.register(packet.imei)
    except DeniedError:
        conn.terminate()
        return
    tell(conn, packet)


def tell(conn: Conn, packet: Packet) -> None:
    """Publish what *packet* says, and acknowledge it once the broker has it."""
    kind = packet.kind
    body = packet.body if kind in DAMAGED else None
    if body is not None and conn.state.version != WITHOUT_CHECKSUM:
        body = checked(body)
    if body is None:
        publish(conn, ("unread", {"packet": f"#{kind}#{text(packet.body)}"}))
        if kind in DAMAGED:
            conn.send(f"#A{kind}#{DAMAGED[kind]}".encode())
        return
    if kind == "M":
        told, code = [("message", {"text": text(body)})], "1"
    elif kind == "B":
        told = [read(part)[0] for part in text(body).split("|") if part]
        code = str(len(told))
    else:
        one, code = read(text(body))
        told = [one]
    conn.send(f"#A{kind}#{code}".encode(), after=publish(conn, *told))


def read(body: str) -> tuple[tuple[str, Values], str]:
    """Return what to publish of a record, and the code that it is answered with."""
    try:
        return ("position", record(body)), "1"
    except UnreadError as error:
        return ("unread", {"packet": body}), error.code


@tcp.on_deliver("devices/+/command")
async def on_command(conn: Conn, message: Message) -> None:
    values: Values = {"command": text(message.payload)}
    request = b"#M#" + message.payload
    if conn.state.version != WITHOUT_CHECKSUM:
        body = message.payload + b";"
        request = b"#M#%b%04X" % (body, CRC16_ARC(body))
    try:
        reply = await conn.request(request, match=lambda packet: packet.kind == "AM", key="command")
        values["taken"] = reply.body == b"1"
    except (RequestTimeout, UnavailableError, FramingError) as error:
        values["error"] = str(error)
    publish(conn, ("answer", values))


def publish(conn: Conn, *told: tuple[str, Values]) -> Any:
    clientid = "" if conn.client is None else conn.client.clientid
    return conn.publish_many(
        [(f"devices/{clientid}/{what}", json.dumps(values).encode()) for what, values in told], qos=1
    )
