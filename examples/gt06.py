"""GT06 trackers, by Concox and many others, over TCP.

A tracker logs in with its IMEI; one that reports anything before that is closed. What it says is JSON:

    devices/IMEI/position   time, lat, lon, speed, course, satellites, fix; cell and ignition, if told
    devices/IMEI/status     alarm, armed, ignition, charging, gps, cut, gsm; voltage from 0 to 6, or volts
    devices/IMEI/alarm      what a position and a status have, or of the first cell alone
    devices/IMEI/info       volts; imei, imsi, iccid; text; or type and content, in hex
    devices/IMEI/serial     text that came from its serial port
    devices/IMEI/message    type and content, in hex: whatever has no handler here
    devices/IMEI/answer     command, and its answer or error

Times are UTC, null if the tracker has none; speed is in km/h; without a fix, lat and lon are the last known.
What is published to devices/IMEI/command, such as Relay,1#, is sent to the tracker.

Try it: exproto-app run examples/gt06.py, and in another terminal log in and tell a status:

    printf 78780d01012345678901234500018cdd0d0a78780a13c40604000201298f5b0d0a |
        xxd -r -p | nc -q1 127.0.0.1 7993 | xxd -p
"""

import itertools
import json
import struct
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
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
ALARMS = dict(  # those that differ between models stay numbers
    enumerate(("none", "sos", "power cut", "vibration", "entered fence", "left fence", "speeding"))
) | {9: "moved", 0x0E: "low external battery", 0x13: "tampering", 0x14: "door", 0x19: "low battery"}
STATES = {0: 0, 1: 3, 2: 2, 3: 0x19, 4: 1}  # the alarm in the flags of a status

Values = dict[str, Any]


@attrs.frozen
class Packet:
    """What a tracker says, by *kind*, and the *answer* to it, where it waits for one."""

    kind: str
    values: Values
    answer: bytes


def parse(frame: bytes) -> Packet:
    """Return what *frame* says; what it raises has the frame dropped, logged and counted."""
    content = frame[1:-2]
    kind, read = READERS.get(frame[0], ("message", None))
    values = read(content) if read else {"type": frame[:1].hex(), "content": content.hex()}
    return Packet(kind, values, frame[:1] + frame[-2:])


def login(content: bytes) -> Values:
    imei = content[:8].hex()[1:]
    if len(imei) != 15 or not imei.isdigit():
        raise ValueError(f"{imei!r} is no IMEI")
    return {"imei": imei}


def position(content: bytes, *, wide: bool = False, more: bool = False) -> Values:
    values, rest = gps(content), content[GPS.size :]
    if rest:
        values["cell"], rest = cell(rest, wide=wide)
    if rest and more:
        values["ignition"] = rest[0] == 1
    return values


def gps(content: bytes) -> Values:
    *clock, satellites, lat, lon, speed, flags = GPS.unpack_from(content)
    year, month, day, hour, minute, second = clock
    known = any(clock)  # zeros before the first fix
    time = datetime(2000 + year, month, day, hour, minute, second, tzinfo=timezone.utc) if known else None
    return {
        "time": time and time.isoformat(),
        "lat": round((lat if flags & 0x0400 else -lat) / 1_800_000, 6),
        "lon": round((-lon if flags & 0x0800 else lon) / 1_800_000, 6),
        "speed": speed,
        "course": flags & 0x03FF,
        "satellites": satellites & 0x0F,  # above it: how long the GPS part is
        "fix": bool(flags & 0x1000),
    }


def cell(data: bytes, *, wide: bool) -> tuple[Values, bytes]:
    """Return the cell that *data* begins with, and what is behind it; trackers of 4G have *wide* ones."""
    layout = f">H{'H' if data[0] & 0x80 else 'B'}{'I8s' if wide else 'H3s'}"
    mcc, mnc, lac, cid = struct.unpack_from(layout, data)
    values = {"mcc": mcc & 0x7FFF, "mnc": mnc, "lac": lac, "cid": int.from_bytes(cid, "big")}
    return values, data[struct.calcsize(layout) :]


def status(content: bytes) -> Values:
    flags, voltage, gsm = content[:3]
    return {**state(flags), "voltage": voltage, "gsm": gsm}  # 0 to 6, 0 to 4


def heartbeat(content: bytes) -> Values:
    flags, volts, gsm = struct.unpack_from(">BHB", content)
    return {**state(flags), "volts": volts / 100, "gsm": gsm}


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


def alarm(content: bytes, *, wide: bool = False) -> Values:
    values, rest = gps(content), content[GPS.size :]
    size = rest[0] if len(rest) > 8 else 0  # of the cell with this byte; not all have it
    if size > 8:
        values["cell"], _ = cell(rest[1:], wide=wide)
    return {**values, **alarming(rest[size:] if size > 8 else rest[-5:])}


def cell_alarm(content: bytes, *, wide: bool = False) -> Values:
    place, rest = cell(content, wide=wide)
    return {"cell": place, **alarming(rest)}


def alarming(content: bytes) -> Values:
    values, code = status(content), content[3]
    return {**values, "alarm": ALARMS.get(code, code)} if code else values


def info(content: bytes) -> Values:
    kind, data = content[0], content[1:]
    if kind == 0x00:
        return {"volts": int.from_bytes(data, "big") / 100}
    if kind == 0x04:
        return {"text": text(data)}
    if kind == 0x0A:
        return {"imei": data[:8].hex()[1:], "imsi": data[8:16].hex()[1:], "iccid": data[16:].hex().strip("f")}
    return {"type": f"94{kind:02x}", "content": data.hex()}


def answer(content: bytes) -> Values:
    end = 1 + content[0] if content[0] else -2  # some don't tell how long it is
    return {"flag": content[1:5].hex(), "text": text(content[5:end])}


def long_answer(content: bytes) -> Values:
    return {"flag": content[:4].hex(), "text": text(content[5:], "utf-16-be" if content[4] == 2 else "utf-8")}


def serial(content: bytes) -> Values:
    return {"text": text(content[1:])}


def text(data: bytes, encoding: str = "utf-8") -> str:
    return data.decode(encoding, "replace").strip("\0\r\n ")


READERS: dict[int, tuple[str, Callable[[bytes], Values] | None]] = {
    0x01: ("login", login),
    0x10: ("position", gps),
    0x12: ("position", position),
    0x13: ("status", status),
    0x15: ("message", answer),
    0x16: ("alarm", alarm),
    0x19: ("alarm", cell_alarm),
    0x21: ("message", long_answer),
    0x22: ("position", partial(position, more=True)),
    0x23: ("status", heartbeat),
    0x26: ("alarm", alarm),
    0x27: ("alarm", alarm),
    0x8A: ("time", None),
    0x94: ("info", info),
    0x9B: ("serial", serial),
    0xA0: ("position", partial(position, wide=True, more=True)),
    0xA4: ("alarm", partial(alarm, wide=True)),
    0xA5: ("alarm", partial(cell_alarm, wide=True)),
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
    conn.subscribe(f"devices/{imei}/command", qos=1)
    return packet.answer


@gt06.on_received("time")
def on_time(conn: Conn, packet: Packet) -> bytes:
    year, *others = datetime.now(timezone.utc).timetuple()[:6]
    return packet.answer[:1] + bytes([year - 2000, *others]) + packet.answer[1:]


@gt06.on_received("status")
@gt06.on_received("alarm")
def on_report(conn: Conn, packet: Packet) -> bytes | None:
    return packet.answer if publish(conn, packet.kind, packet.values) else None


@gt06.on_received
def on_rest(conn: Conn, packet: Packet) -> None:
    publish(conn, packet.kind, packet.values)  # also an answer that comes too late


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
