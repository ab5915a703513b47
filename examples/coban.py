r"""Coban and TK103-like trackers (GPS102, GPS103, TK303…), over TCP and UDP; cheap, and cloned everywhere.

A tracker logs in by its IMEI, or just begins to report. What it says is JSON:

    devices/IMEI/report   keyword ("tracker", or what happened: "help me", "acc on", "low battery"…), fix,
                          time, local, lat, lon, speed, course, altitude, acc, door, fuel, temperature, phone,
                          card; without a fix lac and cell; more, which has what isn't read
    devices/IMEI/obd      local, odometer, fuel_now, fuel_average, hours, speed, load, coolant, throttle, rpm,
                          voltage, faults
    devices/IMEI/unread   packet: what isn't read here or can't be, as it came

What the tracker doesn't know is null. It sends a UTC time without a date, and a local time with one: time is
null where both together leave the day open, and local is as it came. So is speed, for which some documents
say km/h and others knots. A latitude or longitude without its hemisphere is left in more. Bytes that aren't
UTF-8 are told as Latin-1, so that none is lost.

"LOAD" answers a login, "ON" a heartbeat, and a call for help is switched off when the broker has it; nothing
else has an answer.

    read      reports with and without a fix, alarms, OBD, logins, heartbeats
    not read  photos (vt, vr), the reports of clones that end with *

What is published to devices/IMEI/command is sent as a command, such as B for a position, C,30s for one every
30 seconds, J and K to cut the engine off and on.

Try it: exproto-app run examples/coban.py --listen tcp://127.0.0.1:5001, and in another terminal:

    printf '##,imei:359586015829802,A;' | nc -q1 127.0.0.1 5001
"""

import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import attrs

from exproto_app import App, Connection, DeniedError, Message
from exproto_app.framing import Delimiter

# --- what is on the wire: fields between commas, a semicolon at the end

LOGIN = re.compile(r"##,imei:([0-9]{10,17}),A")
HEARTBEAT = re.compile(r"([0-9]{10,17})(imei:.*)?", re.DOTALL)  # some send a report right behind it
REPORT = re.compile(r"imei:([0-9]{10,17}),(.*)", re.DOTALL)
LOCAL = re.compile(r"([0-9]{2})/?([0-9]{2})/?([0-9]{2}) ?([0-9]{2}):?([0-9]{2})([0-9]{2})?")
UTC = re.compile(r"([0-9]{2})([0-9]{2})([0-9]{2})(?:\.([0-9]{1,6}))?")
DEGREES = re.compile(r"([0-9]{1,3})([0-9]{2}\.[0-9]+)")
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
PERCENT = re.compile(r"[0-9]+(\.[0-9]*)?%")
PHONE = re.compile(r"\+?[0-9]{6,}")
CELL = re.compile(r"[0-9A-Fa-f]{1,8}")

WESTMOST, EASTMOST = timedelta(hours=-12, minutes=-15), timedelta(hours=14, minutes=15)
"""How far a local time is behind and before UTC at most, with a quarter of an hour for bad clocks."""

Values = dict[str, Any]


@attrs.frozen
class Packet:
    """A packet of a *kind*: login, heartbeat or report; *text* is all of it."""

    kind: str
    imei: str
    text: str
    fields: list[str] = attrs.Factory(list)


def parse(frame: bytes) -> Packet:
    """Return the packet in front of a semicolon; what it raises has it dropped, logged and counted."""
    try:
        text = frame.decode()
    except UnicodeDecodeError:
        text = frame.decode("latin-1")
    if match := LOGIN.fullmatch(text):
        return Packet("login", match[1], text)
    if (match := HEARTBEAT.fullmatch(text)) and not match[2]:
        return Packet("heartbeat", match[1], text)
    if match := REPORT.fullmatch((match and match[2]) or text):
        return Packet("report", match[1], text, match[2].split(","))
    raise ValueError("it is no packet")


def report(fields: list[str]) -> Values:
    """Return what a report says; raises ValueError if it is none."""
    keyword, local, phone, signal, *rest = fields
    values: Values = {"keyword": keyword, "fix": signal == "F", "time": None, "local": local or None}
    more = ["", "", phone, ""]
    if keyword == "rfid" or PHONE.fullmatch(phone):
        values["card" if keyword == "rfid" else "phone"], more[2] = phone, ""
    if signal == "F":
        more += place(values, rest)
        values["time"] = moment(local, rest[0])
    elif signal == "L":
        more += cell(values, rest)
    else:
        raise ValueError(f"{signal!r} is neither F nor L")
    if keyword.startswith("T:"):
        values["temperature"] = number(keyword[2:])
    if any(more):
        values["more"] = ",".join(more).rstrip(",")
    return values


def place(values: Values, rest: list[str]) -> list[str]:
    """Read what follows F into *values*; return the fields with those that are read empty."""
    _, valid, lat, north, lon, east, *state = rest
    if valid not in ("A", "V"):
        raise ValueError(f"{valid!r} is neither A nor V")
    values["fix"] = valid == "A"
    if lat in ("N", "S"):  # some put it in front
        lat, north, lon, east = north, lat, east, lon
    values["lat"], values["lon"] = degrees(lat, north, "NS", 90), degrees(lon, east, "EW", 180)
    more = ["", "", *(["", ""] if values["lat"] is not None else [lat, north])]
    more += ["", ""] if values["lon"] is not None else [lon, east]
    fuel: list[float | None] = [None, None]
    for name, read, text in zip(NAMES, READ, state, strict=False):
        value = read(text)
        more.append(text if value is None else "")
        if name.startswith("fuel"):
            fuel[int(name[4])] = value
        else:
            values[name] = value
    more += state[len(NAMES) :]
    if fuel != [None, None]:
        values["fuel"] = fuel
    return more


def cell(values: Values, rest: list[str]) -> list[str]:
    """Read what follows L into *values*; return the fields with those that are read empty."""
    more = list(rest)
    if len(rest) > 4 and CELL.fullmatch(rest[2]) and CELL.fullmatch(rest[4]):
        values["lac"], values["cell"] = int(rest[2], 16), int(rest[4], 16)
        more[2] = more[4] = ""
    return more


def moment(local: str, utc: str) -> str | None:
    """Return when it was: the time *utc* on the day that *local* leaves; None if that isn't one day."""
    here, there = LOCAL.fullmatch(local), UTC.fullmatch(utc)
    if here is None or there is None:
        return None
    year, month, day, hour, minute = map(int, here.groups()[:5])
    try:
        clock = datetime(2000 + year, month, day, hour, minute, int(here[6] or 0), tzinfo=timezone.utc)
        of_day = clock.replace(
            hour=int(there[1]),
            minute=int(there[2]),
            second=int(there[3]),
            microsecond=int((there[4] or "").ljust(6, "0")),
        )
    except ValueError:
        return None
    found = [of_day + timedelta(days=days) for days in (-1, 0, 1)]
    found = [one for one in found if WESTMOST <= clock - one <= EASTMOST]
    return found[0].isoformat() if len(found) == 1 else None


def degrees(value: str, side: str, sides: str, most: int) -> float | None:
    """Return degrees for degrees and minutes without a point between them, 2234.4669 for 22° 34.4669'."""
    match = DEGREES.fullmatch(value)
    if match is None or side not in tuple(sides) or float(match[2]) >= 60:
        return None
    found = int(match[1]) + float(match[2]) / 60
    return None if found > most else round(-found if side == sides[1] else found, 6)


def number(text: str) -> float | None:
    return float(text) if NUMBER.fullmatch(text) else None


def course(text: str) -> float | None:
    found = number(text)
    return None if text == "1" or found is None or found >= 360 else found  # a 1 asks for an address


def switch(text: str) -> bool | None:
    return {"0": False, "1": True}.get(text)


def percent(text: str) -> float | None:
    return float(text[:-1]) if PERCENT.fullmatch(text) else None


NAMES = ("speed", "course", "altitude", "acc", "door", "fuel0", "fuel1", "temperature")
READ: tuple[Callable[[str], Any], ...] = (number, course, number, switch, switch, percent, percent, number)

# What OBD tells behind the keyword and the local time: km, l/h, l/100 km, h, km/h, %, °C, %, rpm, V.
OBD: dict[str, Callable[[str], float | None]] = {
    "odometer": number,
    "fuel_now": number,
    "fuel_average": number,
    "hours": number,
    "speed": number,
    "load": percent,
    "coolant": number,
    "throttle": percent,
    "rpm": number,
    "voltage": number,
}


def obd(fields: list[str]) -> Values:
    """Return what the car says; raises ValueError if too little is there."""
    _, local, *rest = fields
    if len(rest) < len(OBD):
        raise ValueError("a field is missing")
    values = {name: read(text) for (name, read), text in zip(OBD.items(), rest, strict=False)}
    return {"local": local, **values, "faults": [fault for fault in rest[len(OBD) :] if fault]}


# --- what is done with it

app = App()
coban = app.protocol(
    "coban",
    framing=Delimiter(b";", b"\r\n", b"\n", b"*"),
    codec=(parse, None),
    key=lambda packet: packet.kind,
    sniff=(b"##,imei:", b"imei:"),
)
Conn = Connection[None, Packet]


async def known(conn: Conn, packet: Packet) -> bool:
    """Register the tracker if it isn't yet; return whether *packet* is its own."""
    if conn.client is None:
        try:
            await conn.register(packet.imei)
        except DeniedError:
            conn.terminate()
            return False
        conn.subscribe(f"devices/{packet.imei}/command", qos=1)
    elif conn.client.clientid != packet.imei:
        publish(conn, "unread", {"packet": packet.text})
        return False
    return True


@coban.on_received("login")
async def on_login(conn: Conn, packet: Packet) -> None:
    if await known(conn, packet):
        conn.send(b"LOAD", raw=True)


@coban.on_received("heartbeat")
async def on_heartbeat(conn: Conn, packet: Packet) -> None:
    if await known(conn, packet):
        conn.send(b"ON", raw=True)


@coban.on_received("report")
async def on_report(conn: Conn, packet: Packet) -> None:
    if not await known(conn, packet):
        return
    if not packet.text.startswith("imei:"):  # behind a heartbeat
        conn.send(b"ON", raw=True)
    what, values = "unread", {"packet": packet.text}
    try:
        if packet.fields[0] == "OBD":
            what, values = "obd", obd(packet.fields)
        elif not packet.fields[0].startswith(("vt", "vr")):
            what, values = "report", report(packet.fields)
    except ValueError:
        pass
    stored = publish(conn, what, values)
    if packet.fields[0] == "help me":
        conn.send(f"**,imei:{packet.imei},E;".encode(), raw=True, after=stored)


@coban.on_deliver("devices/+/command")
def on_command(conn: Conn, message: Message) -> None:
    if conn.client is not None:
        conn.send(b"**,imei:%b,%b" % (conn.client.clientid.encode(), message.payload), raw=True)


def publish(conn: Conn, what: str, values: Values) -> Any:
    clientid = "" if conn.client is None else conn.client.clientid
    return conn.publish(f"devices/{clientid}/{what}", json.dumps(values).encode(), qos=1)
