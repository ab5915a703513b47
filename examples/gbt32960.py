"""GB/T 32960-2016: electric vehicles, each on a line of its own or thousands behind a platform's line.

    exproto-app run examples/gbt32960.py --listen tcp://0.0.0.0:7993

Each vehicle is a device of its own, by its VIN: a child of the line that it comes by. A platform logs in with
a user name and a password, as which its line registers; vehicles that dial in themselves have no login but
their VIN. What is published is JSON:

    vehicles/VIN/login      time, iccid
    vehicles/VIN/data       time, late (sent again from memory), and what each item of the report holds
    vehicles/VIN/state      online or offline, retained; offline is the vehicle's will too

A report is acknowledged when the broker has it.

Read: vehicle, motors, engine, position, extreme values; other items come as hex, together with what stands
behind them, for their length isn't known. A value that the vehicle calls invalid or abnormal is null. Not
read: encrypted data (a report with it is answered "error"), commands to terminals (80 to 82).

Try it: exproto-app run examples/gbt32960.py, and in another terminal, a heartbeat:

    printf 232307fe314731424c353250375452313135353230010000d5 | xxd -r -p | nc -q1 127.0.0.1 7993 | xxd -p
"""

import json
import struct
from collections.abc import Callable
from datetime import timedelta, timezone
from typing import Any

import attrs

from exproto_app import App, Connection, DeniedError, Message
from exproto_app.checksums import XOR
from exproto_app.framing import Checked, LengthPrefix

# --- what is on the wire: ##, command, answer, VIN (17), encryption, length (2), data, XOR of all behind ##

LOGIN, REPORT, LATE, LOGOUT, PLATFORM_IN, PLATFORM_OUT, ALIVE, CLOCK = range(1, 9)
SUCCESS, ERROR, COMMAND = 0x01, 0x02, 0xFE
PLAIN = 0x01

Read = Callable[[int], Any]


def scaled(factor: float, offset: float = 0, size: int = 2) -> Read:
    """Return what reads a number of *size* bytes, None where it is abnormal (…FE) or invalid (…FF)."""
    highest = (1 << 8 * size) - 1
    return lambda raw: None if raw >= highest - 1 else round(raw * factor + offset, 6)


byte, word = scaled(1, size=1), scaled(1)
celsius = scaled(1, -40, size=1)


def gear(raw: int) -> str:
    names = {0: "N", 13: "R", 14: "D", 15: "P"}
    return names.get(raw & 0x0F, str(raw & 0x0F))


VEHICLE = (
    "BBBHIHHBBBHBB",
    {
        "state": byte,
        "charging": byte,
        "mode": byte,
        "speed": scaled(0.1),  # km/h
        "mileage": scaled(0.1, size=4),  # km
        "voltage": scaled(0.1),  # V
        "current": scaled(0.1, -1000),  # A
        "charge": byte,  # percent
        "dcdc": byte,
        "gear": gear,
        "resistance": word,  # kilohm
        "accelerator": byte,  # percent
        "brake": byte,
    },
)
MOTOR = (
    "BBBHHBHH",
    {
        "number": byte,
        "state": byte,
        "controller_temperature": celsius,
        "speed": scaled(1, -20_000),  # revolutions a minute
        "torque": scaled(0.1, -2_000),  # N m
        "temperature": celsius,
        "voltage": scaled(0.1),
        "current": scaled(0.1, -1000),
    },
)
ENGINE = "BHH", {"state": byte, "speed": word, "consumption": scaled(0.01)}  # l/100 km
EXTREMES = (
    "BBHBBHBBBBBB",
    {
        "highest_voltage_system": byte,
        "highest_voltage_cell": byte,
        "highest_voltage": scaled(0.001),
        "lowest_voltage_system": byte,
        "lowest_voltage_cell": byte,
        "lowest_voltage": scaled(0.001),
        "highest_temperature_system": byte,
        "highest_temperature_probe": byte,
        "highest_temperature": celsius,
        "lowest_temperature_system": byte,
        "lowest_temperature_probe": byte,
        "lowest_temperature": celsius,
    },
)


@attrs.define
class Line:
    """What a line knows: whether a platform has logged in by it."""

    platform: bool = False


app = App(
    framing=Checked(LengthPrefix(2, start=b"##", offset=22, strip=0, adjustment=1), XOR, start=2),
    key=lambda frame: frame[2],
    state=Line,
)

Conn = Connection[Any]


def time_of(data: bytes) -> str:
    """Return the time that *data* begins with, which is Beijing's."""
    year, month, day, hour, minute, second = data[:6]
    return f"20{year:02}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}+08:00"


def answer(frame: bytes, result: int = SUCCESS) -> bytes:
    """Return the answer to *frame*: itself, with a result, and of its data the time."""
    data = frame[24:30]
    return frame[:3] + bytes([result]) + frame[4:22] + len(data).to_bytes(2, "big") + data


def vehicle_of(conn: Conn, frame: bytes) -> Conn:
    """Return the vehicle that *frame* is about; it is registered with the first one."""
    vin = frame[4:21].decode("ascii").rstrip("\0 ")
    if vin in conn.children:
        return conn.children[vin]
    state = f"vehicles/{vin}/state"
    vehicle: Conn = conn.child(vin, will=Message(state, b"offline", retain=True))
    vehicle.publish(state, b"online", qos=1, retain=True)
    return vehicle


def table(data: bytes, at: int, layout: tuple[str, dict[str, Read]]) -> tuple[dict[str, Any], int]:
    """Read one item by its *layout*; return it, and where the next one begins."""
    form = ">" + layout[0]
    values = struct.unpack_from(form, data, at)
    read = {name: reader(raw) for (name, reader), raw in zip(layout[1].items(), values, strict=True)}
    return read, at + struct.calcsize(form)


def items_of(data: bytes) -> dict[str, Any]:
    """Return what a report holds; where an item isn't known, it and the rest as hex."""
    items: dict[str, Any] = {}
    at = 6
    while at < len(data):
        kind, begin = data[at], at
        at += 1
        try:
            if kind == 1:
                items["vehicle"], at = table(data, at, VEHICLE)
            elif kind == 2:
                motors = []
                number, at = data[at], at + 1
                for _ in range(number):
                    motor, at = table(data, at, MOTOR)
                    motors.append(motor)
                items["motors"] = motors
            elif kind == 4:
                items["engine"], at = table(data, at, ENGINE)
            elif kind == 5:
                state, longitude, latitude = struct.unpack_from(">BII", data, at)
                items["position"] = None if state & 1 else position(state, longitude, latitude)
                at += 9
            elif kind == 6:
                items["extremes"], at = table(data, at, EXTREMES)
            else:
                items["unread"] = data[begin:].hex()
                break
        except (LookupError, struct.error):
            items["unread"] = data[begin:].hex()
            break
    return items


def position(state: int, longitude: int, latitude: int) -> dict[str, float]:
    """Return degrees; bit 1 of *state* is south, bit 2 west."""
    south, west = state & 2, state & 4
    degrees = {"latitude": -latitude if south else latitude, "longitude": -longitude if west else longitude}
    return {name: value / 1e6 for name, value in degrees.items()}


def reported(frame: bytes) -> bytes | None:
    """Return the data of *frame*, None if it can't be read."""
    data = frame[24:]
    return data if frame[21] == PLAIN and len(data) >= 6 else None


@app.on_received(LOGIN)
def on_login(conn: Conn, frame: bytes) -> None:
    data = reported(frame)
    if data is None or len(data) < 28:
        conn.send(answer(frame, ERROR))
        return
    vehicle = vehicle_of(conn, frame)
    iccid = data[8:28].decode("ascii", "backslashreplace").rstrip("\0")
    publish(conn, vehicle, frame, "login", {"time": time_of(data), "iccid": iccid})


@app.on_received(REPORT)
@app.on_received(LATE)
def on_report(conn: Conn, frame: bytes) -> None:
    data = reported(frame)
    if data is None:
        conn.send(answer(frame, ERROR))
        return
    late = frame[2] == LATE
    publish(
        conn, vehicle_of(conn, frame), frame, "data", {"time": time_of(data), "late": late, **items_of(data)}
    )


def publish(conn: Conn, vehicle: Conn, frame: bytes, what: str, values: dict[str, Any]) -> None:
    """Publish, and acknowledge *frame* when the broker has it."""
    vin = frame[4:21].decode("ascii").rstrip("\0 ")
    stored = vehicle.publish(f"vehicles/{vin}/{what}", json.dumps(values).encode(), qos=1)
    conn.send(answer(frame), after=stored)


@app.on_received(LOGOUT)
def on_logout(conn: Conn, frame: bytes) -> bytes:
    vehicle = vehicle_of(conn, frame)
    vehicle.publish(f"vehicles/{frame[4:21].decode('ascii')}/state", b"offline", qos=1, retain=True)
    vehicle.terminate()
    return answer(frame)


@app.on_received(PLATFORM_IN)
async def on_platform(conn: Conn, frame: bytes) -> bytes:
    user, password = (text.decode("ascii").rstrip("\0") for text in (frame[32:44], frame[44:64]))
    try:
        await conn.register(user, username=user, password=password)
    except DeniedError:
        return answer(frame, ERROR)
    conn.state.platform = True
    return answer(frame)


@app.on_received(PLATFORM_OUT)
def on_platform_out(conn: Conn, frame: bytes) -> bytes:
    conn.terminate()
    return answer(frame)


@app.on_received(ALIVE)
def on_alive(conn: Conn, frame: bytes) -> bytes:
    return answer(frame)


@app.on_received(CLOCK)
def on_clock(conn: Conn, frame: bytes) -> bytes:
    now = conn.now().astimezone(timezone(timedelta(hours=8)))
    time = bytes([now.year % 100, now.month, now.day, now.hour, now.minute, now.second])
    return frame[:3] + bytes([SUCCESS]) + frame[4:22] + b"\0\6" + time
