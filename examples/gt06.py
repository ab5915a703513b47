"""GT06 trackers, by Concox and many others, over TCP.

A tracker logs in with its IMEI; one that reports anything before that is closed. What it says is JSON:

    devices/IMEI/position   time, lat, lon, speed, course, satellites, fix, cell
    devices/IMEI/status     armed, ignition, charging, gps, cut, voltage, gsm
    devices/IMEI/alarm      alarm, with all of a position and of a status
    devices/IMEI/serial     text that came from its serial port
    devices/IMEI/message    type and content, in hex: whatever has no handler here
    devices/IMEI/answer     command, and its answer or error

Times are UTC, speed is in km/h; without a fix, lat and lon are the last known. What is published to
devices/IMEI/command, such as Relay,1#, is sent to the tracker.

Try it: exproto-app run examples/gt06.py, and in another terminal log in and tell a status:

    printf 78780d01012345678901234500018cdd0d0a78780a13c40604000201298f5b0d0a |
        xxd -r -p | nc -q1 127.0.0.1 7993 | xxd -p
"""

import itertools
import json
import struct
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import attrs

from exproto_app import (
    App,
    Connection,
    DeniedError,
    FramingError,
    Message,
    RequestTimeout,
    UnavailableError,
)
from exproto_app.checksums import CRC16_X25
from exproto_app.framing import Checked, FirstOf, LengthPrefix, Resync

# --- what is on the wire: 7878 and one byte of length, or 7979 and two; type, content, serial; CRC; 0D0A

SHORT = Checked(LengthPrefix(1, start=b"\x78\x78", end=b"\r\n"), CRC16_X25, start=-1)
LONG = Checked(LengthPrefix(2, start=b"\x79\x79", end=b"\r\n"), CRC16_X25, start=-2)
GPS = struct.Struct(">6BBIIBH")
CELL = struct.Struct(">HBHBH")
ALARMS = {0: "none", 1: "sos", 2: "power cut", 3: "vibration", 4: "entered fence", 5: "left fence"}

Values = dict[str, Any]


@attrs.frozen
class Packet:
    """What a tracker says, and the *answer* to it, where it waits for one."""

    values: Values
    answer: bytes


def parse(frame: bytes) -> Packet:
    """Return what *frame* says; what it raises has the frame dropped, logged and counted."""
    kind = frame[:1]
    content = frame[1:-2]
    read = READERS.get(kind)
    values = read(content) if read else {"type": kind.hex(), "content": content.hex()}
    return Packet(values, kind + frame[-2:])


def login(content: bytes) -> Values:
    imei = content[:8].hex()[1:]
    if len(imei) != 15 or not imei.isdigit():
        raise ValueError(f"{imei!r} is no IMEI")
    return {"imei": imei}


def position(content: bytes) -> Values:
    values = gps(content)
    mcc, mnc, lac, high, low = CELL.unpack_from(content, GPS.size)
    values["cell"] = {"mcc": mcc, "mnc": mnc, "lac": lac, "cid": high << 16 | low}
    return values


def gps(content: bytes) -> Values:
    year, month, day, hour, minute, second, satellites, lat, lon, speed, flags = GPS.unpack_from(content)
    return {
        "time": datetime(2000 + year, month, day, hour, minute, second, tzinfo=timezone.utc).isoformat(),
        "lat": round((lat if flags & 0x0400 else -lat) / 1_800_000, 6),
        "lon": round((-lon if flags & 0x0800 else lon) / 1_800_000, 6),
        "speed": speed,
        "course": flags & 0x03FF,
        "satellites": satellites & 0x0F,  # above it: how long the GPS part is
        "fix": bool(flags & 0x1000),
    }


def status(content: bytes) -> Values:
    flags, voltage, gsm = content[:3]
    return {
        "armed": bool(flags & 0x01),
        "ignition": bool(flags & 0x02),
        "charging": bool(flags & 0x04),
        "gps": bool(flags & 0x40),
        "cut": bool(flags & 0x80),
        "voltage": voltage,  # 0 to 6
        "gsm": gsm,  # 0 to 4
    }


def alarm(content: bytes) -> Values:
    # Between the position and the last five bytes stands the cell, which not all have.
    code = content[GPS.size :][-2]
    return {"alarm": ALARMS.get(code, code), **gps(content), **status(content[-5:])}


def answer(content: bytes) -> Values:
    return {"flag": content[1:5].hex(), "text": text(content[5 : 1 + content[0]])}


def long_answer(content: bytes) -> Values:
    return {"flag": content[:4].hex(), "text": text(content[5:], "utf-16-be" if content[4] == 2 else "utf-8")}


def serial(content: bytes) -> Values:
    return {"text": text(content[1:])}


def text(data: bytes, encoding: str = "utf-8") -> str:
    return data.decode(encoding, "replace").strip("\0\r\n ")


READERS: dict[bytes, Callable[[bytes], Values]] = {
    b"\x01": login,
    b"\x12": position,
    b"\x13": status,
    b"\x15": answer,
    b"\x16": alarm,
    b"\x21": long_answer,
    b"\x22": position,
    b"\x9b": serial,
}


# --- what is done with it


@attrs.define
class Tracker:
    commands: Iterator[int] = attrs.Factory(itertools.count)


app = App()
gt06 = app.protocol(
    "gt06",
    framing=Resync(FirstOf(SHORT, LONG)),
    reply_framing=SHORT,
    codec=(parse, None),
    state=Tracker,
    sniff=(b"\x78\x78", b"\x79\x79"),
)
Conn = Connection[Tracker, Packet]


@gt06.on_received(b"\x01")
async def on_login(conn: Conn, packet: Packet) -> bytes | None:
    imei = packet.values["imei"]
    try:
        await conn.register(imei, keepalive=600)
    except DeniedError:
        conn.terminate()
        return None
    conn.subscribe(f"devices/{imei}/command", qos=1)
    return packet.answer


@gt06.on_received(b"\x12")
@gt06.on_received(b"\x22")
def on_position(conn: Conn, packet: Packet) -> None:
    publish(conn, "position", packet.values)


@gt06.on_received(b"\x13")
def on_status(conn: Conn, packet: Packet) -> bytes | None:
    return packet.answer if publish(conn, "status", packet.values) else None


@gt06.on_received(b"\x16")
def on_alarm(conn: Conn, packet: Packet) -> bytes | None:
    return packet.answer if publish(conn, "alarm", packet.values) else None


@gt06.on_received(b"\x9b")
def on_serial(conn: Conn, packet: Packet) -> None:
    publish(conn, "serial", packet.values)


@gt06.on_received
def on_message(conn: Conn, packet: Packet) -> None:
    publish(conn, "message", packet.values)  # also an answer that comes too late


@gt06.on_deliver("devices/+/command")
async def on_command(conn: Conn, message: Message) -> None:
    flag = next(conn.state.commands).to_bytes(4, "big")  # the answer has it too
    size = min(len(flag + message.payload), 255)  # the framing refuses what is longer
    values: Values = {"command": text(message.payload)}
    try:
        request = b"\x80" + bytes([size]) + flag + message.payload + flag[-2:]
        reply = await conn.request(request, match=lambda packet: packet.values.get("flag") == flag.hex())
        values["answer"] = reply.values["text"]
    except (RequestTimeout, UnavailableError, FramingError) as error:
        values["error"] = str(error)
    publish(conn, "answer", values)


def publish(conn: Conn, what: str, values: Values) -> bool:
    """Publish *values* of a tracker that has logged in, or close one that hasn't."""
    if conn.client is None:
        conn.terminate()
        return False
    conn.publish(f"devices/{conn.client.clientid}/{what}", json.dumps(values).encode())
    return True
