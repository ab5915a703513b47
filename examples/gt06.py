"""GT06 trackers, by Concox and many others, over TCP.

A tracker logs in with its IMEI; one that reports anything before that is closed. What it says is JSON:

    devices/IMEI/position   time, lat, lon, speed, course, satellites, fix; cell, ignition, mileage, if told
    devices/IMEI/status     alarm, armed, ignition, charging, gps, cut; voltage, battery or volts; gsm
    devices/IMEI/alarm      what a position and a status have, or of the first cell alone
    devices/IMEI/cells      time, cells and wifi: what a tracker hears where it has no fix
    devices/IMEI/info       volts; imei, imsi, iccid; temperature, humidity; text; door; or type and content,
                            in hex
    devices/IMEI/serial     text that came from its serial port
    devices/IMEI/message    type and content, in hex: whatever has no reader here, or can't be read
    devices/IMEI/answer     command, and its answer or error

Times are UTC, null if the tracker has none; those of the types in LOCAL are local by the document, and are
shifted by the zone that the login tells. Speed is in km/h, mileage in m, temperature in °C; voltage goes
from 0 to 6, battery is in percent, volts and battery_volts in V; gsm is from 0 to 4, or what the model has.
Without a fix, lat and lon are the last known. An alarm that models number differently stays a number. Bytes
that are no text come in hex, as text_hex for text.

Models differ in what stands behind a position or in a status. TYPES below has the layouts that are known;
one fits if it takes every byte and makes sense, perhaps behind an IMEI. Behind what is sure, the remainder is
told as rest, in hex. Languages, reasons for a report and numbers of fences aren't told.

    read      01; 10 11 12 17 1a 1e 22 25 2d 31 32 33 34 36 37 38 61 8c (OBD) a0 a2 (positions);
              16 19 26 27 32 95 a3 a4 a5 (alarms); 13 23 36 (status); 18 24 28 2c 2e a1 a2 (cells);
              15 21 70 94 9b; 8a
    not read  40 (BMS), 35, 36 and 41 (pictures), 65 and 66 (OBD), a9 (Wi-Fi), f1 to f3, and all others: told
              as message. 17 and 69 of Wi-Fi that end without a checksum are skipped.

What is published to devices/IMEI/command, such as Relay,1#, is sent to the tracker.

Try it: exproto-app run examples/gt06.py, and in another terminal log in and tell a status:

    printf 78780d01012345678901234500018cdd0d0a78780a13c40604000201298f5b0d0a |
        xxd -r -p | nc -q1 127.0.0.1 7993 | xxd -p
"""

import itertools
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import attrs

from exproto_app import (
    App,
    Connection,
    DeniedError,
    FramingError,
    Message,
    Outcome,
    RequestTimeout,
    UnavailableError,
)
from exproto_app.checksums import CRC16_X25
from exproto_app.framing import Checked, FirstOf, LengthPrefix, Resync

# --- what is on the wire: 7878 and one byte of length, or 7979 and two; type, content, serial; CRC; 0D0A

SHORT = Checked(LengthPrefix(1, start=b"\x78\x78", end=b"\r\n"), CRC16_X25, start=-1)
LONG = Checked(LengthPrefix(2, start=b"\x79\x79", end=b"\r\n"), CRC16_X25, start=-2)
GPS = struct.Struct(">6BBIIBH")
ALARMS = dict(  # those that differ between models stay numbers
    enumerate(("none", "sos", "power cut", "vibration", "entered fence", "left fence", "speeding"))
) | {9: "moved", 0x0E: "low external battery", 0x13: "tampering", 0x14: "door", 0x19: "low battery"}
STATES = {0: 0, 1: 3, 2: 2, 3: 0x19, 4: 1}  # the alarm in the flags of a status
EVENTS = {  # of type 95, which has numbers of its own
    0x80: "vibration",
    0x87: "speeding",
    0x88: "power cut",
    0x90: "acceleration",
    0x91: "braking",
    0x92: "cornering",
    0x93: "crash",
}
LOCAL = {0x10, 0x11, 0x12, 0x16, 0x18, 0x1A, 0x1E}  # the document calls the times of 22, 26, A0 and so on UTC

Values = dict[str, Any]


@attrs.frozen
class Packet:
    """What a tracker says, the *answer* to it, and whether it *waits* for that; *local* if its time is."""

    kind: str
    values: Values
    answer: bytes
    waits: bool = False
    local: bool = False


def parse(frame: bytes) -> Packet:
    """Return what *frame* says; what it raises has the frame dropped, logged and counted."""
    if len(frame) < 3:
        raise ValueError("the frame is cut off")
    code, content = frame[0], frame[1:-2]
    kind, layouts = READERS.get(code, ("message", ()))
    found = read(content, layouts)
    if found is None and kind in ("position", "alarm"):
        found = read(behind_imei(content), layouts)
    kind, values = found or (kind, None)
    waits = kind in ("status", "alarm")
    if values is None and kind == "login":
        raise ValueError(f"{content[:8].hex()[1:]!r} is no IMEI")
    if values is None and kind != "time":
        kind, values = "message", {"type": f"{code:02x}", "content": content.hex()}
    return Packet(kind, values or {}, frame[:1] + frame[-2:], waits, code in LOCAL)


# --- how contents are read


@attrs.define
class Content:
    """What is left of a content; what it doesn't have, or what makes no sense, is a `ValueError`."""

    data: bytes
    place: int = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.place

    def take(self, size: int) -> bytes:
        start = self.place
        self.place = end = start + size
        if end > len(self.data):
            raise ValueError("the content is cut off")
        return self.data[start:end]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def rest(self) -> bytes:
        return self.take(self.left)


Part = Callable[[Content], Values]
Layout = tuple[str, Sequence[Part]]


def read(data: bytes, layouts: Sequence[Layout]) -> tuple[str, Values] | None:
    """Return what *data* is and says by the first of *layouts* that fits it exactly, None if none does."""
    for kind, layout in layouts:
        content, values = Content(data), {}
        try:
            for part in layout:
                values.update(part(content))
        except (ValueError, struct.error):
            continue
        if not content.left:
            return kind, values
    return None


def number(name: str, size: int, per_unit: int = 1, *, signed: bool = False, most: int = 1 << 32) -> Part:
    """Return the part that is a number of *size* bytes; above *most* it is something else."""

    def part(content: Content) -> Values:
        value = int.from_bytes(content.take(size), "big", signed=signed)
        if value > most * per_unit:
            raise ValueError(f"{name} is {value}")
        return {name: value if per_unit == 1 else round(value / per_unit, 3)}

    return part


def raw(name: str, size: int) -> Part:
    """Return the part that is *size* bytes, told in hex unless they are zeros."""

    def part(content: Content) -> Values:
        data = content.take(size)
        return {name: data.hex()} if any(data) else {}

    return part


def flag(name: str) -> Part:
    """Return the part that is a byte of 0 or 1."""

    def part(content: Content) -> Values:
        value = content.number(1)
        if value > 1:
            raise ValueError(f"{name} is {value}")
        return {name: value == 1}

    return part


def skip(size: int) -> Part:
    """Return the part that isn't told: the language, the reason for a report."""

    def part(content: Content) -> Values:
        content.take(size)
        return {}

    return part


def rest(content: Content) -> Values:
    data = content.rest()
    return {"rest": data.hex()} if data else {}


def gps(content: Content) -> Values:
    *when, satellites, lat, lon, speed, flags = GPS.unpack(content.take(GPS.size))
    values = dated(*when)
    values.update(placed(lat, lon, flags))
    values.update(moving(speed, satellites))
    return values


def dated(*clock: int) -> Values:
    year, month, day, hour, minute, second = clock
    if not any(clock):
        return {"time": None}  # before the first fix
    return {"time": datetime(2000 + year, month, day, hour, minute, second, tzinfo=timezone.utc).isoformat()}


def placed(lat: int, lon: int, flags: int) -> Values:
    if lat > 90 * 1_800_000 or lon > 180 * 1_800_000:
        raise ValueError("this is no place")
    return {
        "lat": round((lat if flags & 0x0400 else -lat) / 1_800_000, 6),
        "lon": round((-lon if flags & 0x0800 else lon) / 1_800_000, 6),
        "course": flags & 0x03FF,
        "fix": bool(flags & 0x1000),
    }


def clock(content: Content) -> Values:
    return dated(*content.take(6))


def cell(lac: int, cid: int, mnc: int = 1) -> Part:
    """Return the part that is a cell; a flag in its MCC makes its MNC longer."""
    place = f"{'H' if lac == 2 else 'I'}{cid}s"
    usual, flagged = (struct.Struct(f">H{code}{place}") for code in ("B" if mnc == 1 else "H", "H"))

    def part(content: Content) -> Values:
        layout = flagged if content.data[content.place : content.place + 1] >= b"\x80" else usual
        mcc, mnc, lac, cid = layout.unpack(content.take(layout.size))
        if mcc & 0x7FFF > 999:
            raise ValueError(f"there is no MCC {mcc & 0x7FFF}")
        found = {"mcc": mcc & 0x7FFF, "mnc": mnc, "lac": lac, "cid": int.from_bytes(cid, "big")}
        return {"cell": found} if mcc & 0x7FFF else {}

    return part


def sized(lac: int, cid: int, mnc: int = 1) -> Part:
    """Return the part that is a cell behind its size, which some count themselves and some don't."""
    inner = cell(lac, cid, mnc)

    def part(content: Content) -> Values:
        size, start = content.number(1), content.place
        values = inner(content)
        if size not in (content.place - start, content.place - start + 1):
            raise ValueError(f"a cell of {size} bytes")
        return values

    return part


def no_cell(content: Content) -> Values:
    """Skip a size of 0, and the room for cells that some leave, up to a status with a language."""
    if content.left < 6 or content.number(1) or any(content.take(content.left - 5)[8:]):
        raise ValueError("there is a cell")
    return {}


def flags(content: Content) -> Values:
    return state(content.number(1))


def state(flags: int) -> Values:
    alarm = flags >> 3 & 0x07
    return {
        "alarm": ALARMS[STATES[alarm]] if alarm in STATES else alarm,
        "armed": bool(flags & 0x01),
        "ignition": bool(flags & 0x02),
        "charging": bool(flags & 0x04),
        "gps": bool(flags & 0x40),
        "cut": bool(flags & 0x80),
    }


def level(content: Content) -> Values:
    """From 0 to 6, or in percent."""
    value = content.number(1)
    return {"voltage": value} if value <= 6 else {"battery": value} if value <= 100 else {}


def alarm(content: Content) -> Values:
    code = content.number(1)
    return {"alarm": ALARMS.get(code, code)} if code else {}  # else that of the flags


def heartbeat(content: Content) -> Values:
    """Status, level, signal, alarm and language; or, alike long, volts in two bytes, signal and a zero."""
    told, data = state(content.number(1)), content.rest()
    if not 2 <= len(data) <= 4:
        raise ValueError(f"a status of {len(data) + 1} bytes")
    volts = len(data) == 4 and 1 <= data[2] <= 4 and data[0] >= 3 and not data[3]
    if volts and data[1] > 6:
        return told | {"volts": int.from_bytes(data[:2], "big") / 100, "gsm": data[2]}
    if volts or data[1] > 100:
        return told | {"rest": data.hex()}  # it may be either, or something else
    return told | level(Content(data)) | {"gsm": data[1]}


def worn(content: Content) -> Values:
    """Read the status of trackers that live on a battery: temperature is told in working mode 4."""
    values = flags(content) | skip(2)(content) | alarm(content) | skip(1)(content)
    values |= {"battery": content.number(1)}
    mode, volts = content.number(1), content.number(2)
    values |= {"volts": volts / 100} if volts else {}
    skip(3)(content)
    temperature = content.number(2)
    return values | ({"temperature": temperature / 10} if mode == 4 and temperature < 0x8000 else {})


def card(content: Content) -> Values:
    """Read what was swiped, and leave two or four bytes behind it."""
    values = text("card", content.take(content.number(1)))
    if content.left not in (2, 4):
        raise ValueError("there is no card")
    return values | rest(content)


def behind_imei(content: bytes) -> bytes:
    """Return what stands behind an IMEI, which some models have in front, or nothing."""
    return content[8:] if content[:8].hex().isdigit() and content[:1] < b"\x10" else b""


def login(content: Content) -> Values:
    """Read IMEI, type, and zone: in the upper 12 bits 800 for 8:00, in bit 3 whether it is west."""
    imei = content.take(8).hex()[1:]
    if not imei.isdigit():
        raise ValueError(f"{imei!r} is no IMEI")
    values: Values = {"imei": imei}
    if content.left == 4:
        skip(2)(content)
        extension = content.number(2)
        minutes = extension // 16 // 100 * 60 + extension // 16 % 100
        if minutes <= 14 * 60 and extension // 16 % 100 < 60:
            values["zone"] = -minutes if extension & 0x08 else minutes
    content.rest()
    return values


def cells(lac: int, cid: int) -> Part:
    """Return the part that is up to seven cells of one network, each with its signal."""

    def part(content: Content) -> Values:
        mcc, found = content.number(2), []
        names = {"mcc": mcc & 0x7FFF, "mnc": content.number(2 if mcc & 0x8000 else 1)}
        for _ in range(7):
            place = {"lac": content.number(lac), "cid": content.number(cid)}
            found.append({**names, **place, "signal": content.number(1)})
        return {"cells": [each for each in found if each["lac"] or each["cid"]]}

    return part


def wifi(content: Content) -> Values:
    found = [(content.take(6).hex(":"), content.number(1)) for _ in range(content.number(1))]
    return {"wifi": [{"mac": mac, "signal": signal} for mac, signal in found]}


def modules(size: int, *, place: bool = False) -> Part:
    """Return the part that is numbers of two bytes, each with a length of *size*, and values."""

    def part(content: Content) -> Values:
        values: Values = {}
        while content.left:
            number, data = content.number(2), content.take(content.number(size))
            known = MODULES.get((number, len(data)))
            name = f"{number:04x}"
            while name in values:
                name += "_"  # some come again
            values.update(known(Content(data)) if known else {name: data.hex()})
        if place and "lat" not in values:
            raise ValueError("there is no place")
        return values

    return part


def module_gps(content: Content) -> Values:
    seconds, satellites, altitude, lat, lon, speed, flags = struct.unpack(">IBhIIBH", content.rest())
    time = datetime.fromtimestamp(seconds, timezone.utc).isoformat() if seconds else None
    return {"time": time, "altitude": altitude, **placed(lat, lon, flags), **moving(speed, satellites)}


def moving(speed: int, satellites: int) -> Values:
    return {"speed": speed, "satellites": satellites & 0x0F}  # above it: how long the GPS part is


def event(content: Content) -> Values:
    code = content.number(1)
    return {"alarm": EVENTS.get(code, code)}


def files(content: Content) -> Values:
    """Read the names of recordings of an event, behind two bytes of its own."""
    return {"event": content.take(2).hex(), **text("files", content.rest())} if content.left else {}


def camera(content: Content) -> Values:
    """Read where a camera was: without satellites and speed, or behind FFFF and a version with them."""
    if content.data[:2] == b"\xff\xff":
        skip(3)(content)
        when = clock(content)
        satellites, lat, lon, flags, speed = struct.unpack(">BIIHH", content.take(13))
        volts = content.number(2) / 10
        return when | placed(lat, lon, flags) | moving(speed, satellites) | {"volts": volts}
    when = clock(content)
    return when | placed(*struct.unpack(">IIH", content.take(10)))


def short_gps(data: bytes) -> Values:
    satellites, lat, lon, speed, flags = struct.unpack(">BIIBH", data)
    return placed(lat, lon, flags) | moving(speed, satellites)


def obd(content: Content) -> Values:
    """Read what the engine says, PID=value in hex, and a place behind it."""
    pairs = content.take(content.left - 12).decode("ascii").split(",")
    values = {name: value for name, mark, value in (pair.partition("=") for pair in pairs) if mark}
    return {"obd": values, **short_gps(content.rest())}


def sized_gps(content: Content) -> Values:
    size = content.number(1)
    if size != 12:
        raise ValueError(f"a place of {size} bytes")
    return short_gps(content.take(size))


def no_gps(content: Content) -> Values:
    if content.number(1):
        raise ValueError("there is a place")
    return {}


def heard_cell(content: Content) -> Values:
    """Read a size, and a cell with its signal, if there is one."""
    return cell(2, 3)(content) | {"gsm": content.number(1)} if content.number(1) else {}


def answer(content: Content) -> Values:
    size = content.number(1)
    values, data = {"flag": content.take(4).hex()}, content.rest()
    if size > len(data) + 4:
        raise ValueError(f"an answer of {size} bytes")
    return values | text("text", data[: size - 4] if size else data[:-2])  # some don't tell how long it is


def long_answer(content: Content) -> Values:
    values, encoding = {"flag": content.take(4).hex()}, content.number(1)
    return values | text("text", content.rest(), "utf-16-be" if encoding == 2 else "utf-8")


def short_info(content: Content) -> Values:
    """Read what short frames tell, volts, unless it may as well be of a long one: a door, a network."""
    data = content.rest()
    volts, most = int.from_bytes(data, "big"), {0x00: 0xFF, 0x05: 0x07, 0x0B: 0x01}
    if len(data) != 2 or data[1] <= most.get(data[0], -1):
        raise ValueError("this may be something else")
    return {"volts": volts / 100}


def info(content: Content) -> Values:
    kind, data = content.number(1), content.rest()
    unread = {"type": f"94{kind:02x}", "content": data.hex()}
    if kind in (0x00, 0x0B) and len(data) == 2:
        return {"volts": int.from_bytes(data, "big") / 100}
    if kind == 0x04:
        return text("text", data)
    if kind == 0x05 and len(data) == 7:  # behind a time
        return unread | {"door": bool(data[-1] & 0x01)}
    if kind == 0x0A and len(data) == 26:
        return {"imei": data[:8].hex()[1:], "imsi": data[8:16].hex()[1:], "iccid": data[16:].hex().strip("f")}
    if kind == 0x1E and len(data) == 8:
        temperature, humidity = struct.unpack(">iI", data)
        return {"temperature": temperature / 10, "humidity": humidity / 10}
    told = text("text", data) if kind in (0x0D, 0x1B) else {}
    return told if "text" in told else unread


def serial(content: Content) -> Values:
    skip(1)(content)
    return text("text", content.rest())


def text(name: str, data: bytes, encoding: str = "utf-8") -> Values:
    """Return *data* as a text, or in hex if it is none."""
    try:
        found = data.decode(encoding).strip("\0\r\n ")
    except UnicodeDecodeError:
        return {f"{name}_hex": data.hex()}
    plain = all(letter.isprintable() or letter in "\r\n\t" for letter in found)
    return {name: found} if plain else {f"{name}_hex": data.hex()}


MODULES: dict[tuple[int, int], Part] = {  # by number and size
    (0x0003, 10): raw("iccid", 10),
    (0x0009, 1): number("satellites", 1),
    (0x0018, 2): number("battery_volts", 2, 100),
    (0x0027, 2): number("volts", 2, 100),
    (0x0033, 18): module_gps,
    (0x006A, 1): number("battery", 1),
}
NAMED: list[Part] = [alarm, answer, camera, card, clock, event, files, flags, gps, heard_cell, heartbeat]
NAMED += [
    info,
    level,
    login,
    long_answer,
    no_cell,
    no_gps,
    obd,
    rest,
    serial,
    short_info,
    sized_gps,
    wifi,
    worn,
]
PARTS: dict[str, Part] = {
    "altitude": number("altitude", 2, signed=True),
    "battery10": number("battery_volts", 1, 10),
    "cell": cell(2, 3),
    "cell4": cell(2, 4),
    "cell+4": cell(2, 4, mnc=2),
    "wide": cell(4, 8),
    "sized-cell": sized(2, 3),
    "sized-cell4": sized(2, 4),
    "sized-cell+4": sized(2, 4, mnc=2),
    "sized-wide": sized(4, 8),
    "cells": cells(2, 3),
    "wide-cells": cells(4, 8),
    "driver": raw("driver", 8),
    "fuel": raw("fuel", 2),
    "gsm": number("gsm", 1, most=100),
    "head": raw("head", 4),
    "hours": number("hours", 3, 60),
    "ignition": flag("ignition"),
    "mileage": number("mileage", 4),
    "seconds": number("hours", 4, 3600),
    "modules": modules(1),
    "long-modules": modules(2),
    "placed-modules": modules(2, place=True),
    "temperature": number("temperature", 1, signed=True),
    "volts": number("volts", 2, 100, most=150),
    **{str(size): skip(size) for size in (1, 2, 3, 4, 6, 8)},  # languages, reasons, fences
    **{f"raw{size}": raw("rest", size) for size in (2, 3, 4, 6)},
    **{part.__name__.replace("_", "-"): part for part in NAMED},
}

# A source, an IMEI, a time of its own; then a position, a cell and a status.
NT = "1 8 6 gps {} flags volts battery10 gsm alarm 1 raw3 hours"
STATUS = "flags level gsm alarm"
ALARM = f"""gps sized-cell {STATUS} 1 | gps cell flags volts gsm alarm | gps sized-cell4 {STATUS} 1 |
    gps sized-cell {STATUS} 1 mileage | gps sized-cell {STATUS} 1 driver | gps no-cell {STATUS} 1 |
    gps sized-cell {STATUS} | gps sized-cell4 {STATUS} 1 mileage |
    gps sized-cell flags volts gsm alarm 1 | gps rest"""
CELLS = "clock cells 3 | clock cells 1"  # timing advance, language

# What each type says, and the layouts that its content may have: the first that fits exactly is taken.
TYPES = {
    0x01: ("login", "login"),
    0x10: ("position", "gps 2 | gps rest"),
    0x11: ("position", "gps cell+4 | gps cell | gps rest"),
    0x12: (
        "position",
        """gps cell | gps | gps cell mileage | gps cell flags volts gsm alarm |
        gps cell flags volts gsm alarm fuel temperature raw4 | gps cell mileage card | gps cell raw2 |
        gps cell4 | gps rest""",
    ),
    0x13: ("status", "heartbeat | worn | worn 2"),
    0x15: ("message", "answer"),
    0x16: ("alarm", ALARM),
    0x17: ("position", "gps cell driver 1"),
    0x18: ("cells", CELLS),
    0x19: ("alarm", f"cell {STATUS} 1"),
    0x1A: ("position", "gps rest"),
    0x1E: ("position", "gps rest"),
    0x21: ("message", "long-answer"),
    0x22: (
        "position",
        f"""gps cell ignition 2 | gps cell ignition 2 mileage | gps cell | {NT.format("sized-cell")} |
        gps cell4 ignition 2 mileage 4 raw4 | gps cell4 ignition 2 | gps cell4 ignition 2 mileage |
        gps rest""",
    ),
    0x23: ("status", "flags volts gsm 2 | flags volts gsm"),
    0x24: ("cells", CELLS),
    0x25: ("position", "1 8 6 gps rest"),
    0x26: ("alarm", ALARM),
    0x27: ("alarm", f"gps sized-cell {STATUS} 2 | gps sized-cell {STATUS} 2 mileage | {ALARM}"),
    0x28: ("cells", CELLS),
    0x2C: ("cells", "clock cells 1 wifi | clock cells 1 wifi 2"),
    0x2D: ("position", "gps cell ignition 2 | gps cell ignition 2 mileage | gps rest"),
    0x2E: ("cells", CELLS),
    0x31: ("position", "gps cell+4 ignition 2 mileage altitude | gps cell+4 ignition 2 altitude | gps rest"),
    0x32: (
        "alarm",
        f"""gps sized-cell+4 {STATUS} 1 | gps sized-cell+4 {STATUS} 1 altitude |
        position: gps cell4 ignition 2 mileage volts seconds 2 | position: clock sized-gps heard-cell rest |
        cells: clock no-gps heard-cell rest | gps rest""",
    ),
    0x33: ("position", "clock sized-gps heard-cell rest | cells: clock no-gps heard-cell rest"),
    0x34: ("position", "head gps rest"),
    0x36: (
        "status",
        f"{STATUS} 1 modules | position: gps cell4 ignition 2 raw4 volts battery10 hours driver",
    ),
    0x37: ("position", "gps cell ignition 2 modules | gps rest"),
    0x38: ("position", "gps rest"),
    0x61: ("position", "gps cell4 raw6 | gps rest"),
    0x70: ("info", "position: placed-modules | long-modules"),
    0x8A: ("time", ""),
    0x8C: ("position", "clock ignition obd"),
    0x94: ("info", "short-info | info"),
    0x95: ("alarm", "clock event | camera event files"),
    0x9B: ("serial", "serial"),
    0xA0: ("position", "gps wide ignition 2 | gps wide ignition 2 mileage | gps wide | gps rest"),
    0xA1: ("cells", "clock wide-cells 3 | clock wide-cells 1"),
    0xA2: ("cells", "clock wide-cells 1 wifi | clock wide-cells 1 wifi 2 | position: gps wide rest"),
    0xA3: ("alarm", f"gps sized-wide {STATUS} 1 | gps sized-wide {STATUS} 2 | gps rest"),
    0xA4: ("alarm", f"gps sized-wide {STATUS} 2 | gps sized-wide {STATUS} 1 | gps rest"),
    0xA5: ("alarm", f"wide {STATUS} 1"),
    0xA9: ("alarm", ""),  # answered, not read
}


def readers(types: dict[int, tuple[str, str]]) -> dict[int, tuple[str, list[Layout]]]:
    return {
        code: (kind, [layout_of(layout, kind) for layout in layouts.split("|") if layout])
        for code, (kind, layouts) in types.items()
    }


def layout_of(text: str, kind: str) -> Layout:
    *other, names = text.split(":")  # what some models have a type for
    return "".join(other).strip() or kind, [PARTS[name] for name in names.split()]


READERS = readers(TYPES)


# --- what is done with it


@attrs.define
class Tracker:
    commands: Iterator[int] = attrs.Factory(itertools.count)
    zone: int = 0  # minutes east of Greenwich


app = App()
gt06 = app.protocol(
    "gt06",
    framing=Resync(FirstOf(SHORT, LONG)),
    reply_framing=SHORT,
    codec=(parse, None),
    key=lambda packet: packet.kind,
    state=Tracker,
    sniff=(b"\x78\x78", b"\x79\x79"),
)
Conn = Connection[Tracker, Packet]


@gt06.on_received("login")
async def on_login(conn: Conn, packet: Packet) -> bytes | None:
    imei = packet.values["imei"]
    try:
        await conn.register(imei, keepalive=600)
    except DeniedError:
        conn.terminate()
        return None
    conn.state.zone = packet.values.get("zone", 0)
    conn.subscribe(f"devices/{imei}/command", qos=1)
    return packet.answer


@gt06.on_received("time")
def on_time(conn: Conn, packet: Packet) -> bytes:
    year, *others = conn.now().timetuple()[:6]
    return packet.answer[:1] + bytes([year - 2000, *others]) + packet.answer[1:]


@gt06.on_received
def on_report(conn: Conn, packet: Packet) -> None:
    values = packet.values
    if packet.local and conn.state.zone and values.get("time"):
        time = datetime.fromisoformat(values["time"]) - timedelta(minutes=conn.state.zone)
        values = values | {"time": time.isoformat()}
    stored = publish(conn, packet.kind, values)
    if stored is not None and packet.waits:
        conn.send(packet.answer, after=stored)


@gt06.on_deliver("devices/+/command")
async def on_command(conn: Conn, message: Message) -> None:
    flag = next(conn.state.commands).to_bytes(4, "big")  # the answer has it too
    size = min(len(flag + message.payload), 255)  # the framing refuses what is longer
    values = text("command", message.payload)
    try:
        request = b"\x80" + bytes([size]) + flag + message.payload + flag[-2:]
        reply = await conn.request(request, match=lambda packet: packet.values.get("flag") == flag.hex())
        values |= {
            name.replace("text", "answer"): told for name, told in reply.values.items() if name != "flag"
        }
    except (RequestTimeout, UnavailableError, FramingError) as error:
        values["error"] = str(error)
    publish(conn, "answer", values)


def publish(conn: Conn, what: str, values: Values) -> Outcome[None] | None:
    """Publish *values* of a tracker that has logged in, or close one that hasn't."""
    if conn.client is None:
        conn.terminate()
        return None
    return conn.publish(f"devices/{conn.client.clientid}/{what}", json.dumps(values).encode(), qos=1)
