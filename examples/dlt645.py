"""DL/T 645-2007: a bus of electricity meters behind a serial server, a serial port, or a modem.

The serial server dials in, or is dialled, or the bus is a serial port of this machine:

    exproto-app run examples/dlt645.py --listen tcp://0.0.0.0:7993
    exproto-app run examples/dlt645.py --dial 'tcp://192.0.2.7:4001?name=cellar'
    exproto-app run examples/dlt645.py --listen 'serial:///dev/ttyUSB0?baud=2400&parity=E'

Meters never speak by themselves. Which ones are on a line is said by a retained message to lines/NAME/meters,
a JSON list of addresses of 12 digits; NAME is the server's address, or what `--dial` calls it. Without one,
the line is asked for the one meter that it has. Each meter is a device of its own, a child of the line:

    meters/ADDRESS/values    every 60 seconds, JSON: energy in kWh, voltage in V, current in A, power in kW
    meters/ADDRESS/answer    to a command

What is published to meters/ADDRESS/command, such as {"read": "00010000"}, reads that data item.

Read: the items of `ITEMS`, of which the standard has hundreds; others come as hex. Not read: frames of 1997,
following frames (control code B1), values of clocks and tariffs. Nothing is written.

Try it: exproto-app run examples/dlt645.py, and in another terminal answer as the meter 000000000161:

    (sleep 1; printf 686101000000006893069434333333335f16 | xxd -r -p; sleep 9) | nc 127.0.0.1 7993 | xxd -p
"""

import json
import logging
from typing import Any

import attrs

from exproto_app import App, Connection, Message, RequestTimeout, UnavailableError
from exproto_app.checksums import SUM8
from exproto_app.framing import Checked, LengthPrefix, Resync, Skip

# --- what is on the wire: FE…, 68, address (BCD, low byte first), 68, control, length, data + 33, sum, 16

READ, READ_ADDRESS, ANSWER, FAILED = 0x11, 0x13, 0x80, 0x40
ANYBODY = "AAAAAAAAAAAA"
SHIFT = 0x33

ITEMS = {
    # identifier: name, digits behind the point, signed
    0x00010000: ("energy", 2, False),
    0x02010100: ("voltage", 1, False),
    0x02020100: ("current", 3, True),
    0x02030000: ("power", 4, True),
}
ERRORS = ("other error", "no such data", "wrong password", "baud rate can't change")

log = logging.getLogger("dlt645")

SECONDS = 60.0
TIMEOUT = 1.0


@attrs.define
class Line:
    """What a line knows: the addresses of its meters."""

    meters: list[str] = attrs.Factory(list)


app = App(
    framing=Resync(
        Skip(
            Checked(LengthPrefix(1, start=b"\x68", offset=9, adjustment=1, end=b"\x16"), SUM8),
            b"\xfe",
            send=4,
        )
    ),
    state=Line,
)

Conn = Connection[Any]


def frame_of(address: str, control: int, data: bytes = b"") -> bytes:
    """Return a frame, without the checksum and what is behind it."""
    shifted = bytes((byte + SHIFT) & 0xFF for byte in data)
    return b"\x68%b\x68%c%c%b" % (bytes.fromhex(address)[::-1], control, len(data), shifted)


def data_of(frame: bytes) -> bytes:
    return bytes((byte - SHIFT) & 0xFF for byte in frame[10:])


def address_of(frame: bytes) -> str:
    return frame[6:0:-1].hex()


def value_of(identifier: int, data: bytes) -> Any:
    """Return the value that *data* holds: BCD, low byte first; hex if it isn't known how to read it."""
    if identifier not in ITEMS or not data:
        return data.hex()
    _, digits, signed = ITEMS[identifier]
    high, rest = data[-1], data[-2::-1]
    sign = -1 if signed and high & 0x80 else 1
    text = bytes([high & 0x7F if signed else high]).hex() + rest.hex()
    return sign * int(text) / 10**digits if text.isdecimal() else data.hex()


class MeterError(Exception):
    """What a meter says that it can't do."""


async def ask(conn: Conn, address: str, control: int, data: bytes = b"") -> bytes:
    """Return what the meter *address* answers, asked up to twice; a line has one question at a time."""
    whose = b"\x68" if address == ANYBODY else frame_of(address, 0)[:8]
    answers = control | ANSWER, control | ANSWER | FAILED

    def match(frame: bytes) -> bool:
        return frame.startswith(whose) and frame[8] in answers

    frame = await conn.request(
        frame_of(address, control, data), match=match, timeout=TIMEOUT, retries=1, key="bus"
    )
    got = data_of(frame)
    if frame[8] == answers[1]:
        number = got[0].bit_length() - 1 if got else 0
        raise MeterError(ERRORS[number] if 0 <= number < len(ERRORS) else f"error {got.hex()}")
    if control == READ_ADDRESS:
        return frame[1:7]
    if got[:4] != data[:4]:
        raise MeterError("the answer is to another question")
    return got[4:]


@app.on_connect
async def on_connect(conn: Conn) -> None:
    conn.register(conn.info.name)
    conn.subscribe(f"lines/{conn.info.name}/meters", qos=1)
    await read_all(conn)


@app.on_deliver("lines/+/meters")
def on_meters(conn: Conn, message: Message) -> None:
    try:
        meters = [str(address) for address in json.loads(message.payload)]
        wrong = [address for address in meters if not (address.isdecimal() and len(address) == 12)]
    except (TypeError, ValueError):
        wrong = [message.payload.decode("utf-8", "backslashreplace")]
    if wrong:
        log.warning("%s: %r is not the address of a meter; the list stays as it was", message.topic, wrong[0])
        return
    for address in set(conn.children) - set(meters):
        conn.children[address].terminate()
    conn.state.meters = meters


@app.every(SECONDS)
async def read_all(conn: Conn) -> None:
    if not conn.state.meters:
        try:
            conn.state.meters = [(await ask(conn, ANYBODY, READ_ADDRESS))[::-1].hex()]
        except (RequestTimeout, UnavailableError, MeterError):
            return
    for address in conn.state.meters:
        meter = conn.child(address)
        meter.subscribe(f"meters/{address}/command", qos=1)
        values: dict[str, Any] = {}
        try:
            for identifier, (name, _, _) in ITEMS.items():
                values[name] = await read_item(conn, address, identifier)
        except (RequestTimeout, UnavailableError) as error:
            values["error"] = str(error)
        meter.publish(f"meters/{address}/values", json.dumps(values).encode(), qos=1)


async def read_item(conn: Conn, address: str, identifier: int) -> Any:
    try:
        return value_of(identifier, await read(conn, address, identifier))
    except MeterError:  # single-phase meters haven't all of them
        return None


async def read(conn: Conn, address: str, identifier: int) -> bytes:
    return await ask(conn, address, READ, identifier.to_bytes(4, "little"))


@app.child.on_deliver("meters/+/command")
async def on_command(meter: Conn, message: Message) -> None:
    address = meter.client.clientid if meter.client else ""
    answer: dict[str, Any] = {"command": message.payload.decode("utf-8", "backslashreplace")}
    try:
        identifier = int(json.loads(message.payload)["read"], 16)
        answer["value"] = value_of(identifier, await read(meter, address, identifier))
    except (LookupError, TypeError, ValueError, OverflowError):
        answer["error"] = 'a command is {"read": "00010000"}'
    except (RequestTimeout, UnavailableError, MeterError) as error:
        answer["error"] = str(error)
    meter.publish(f"meters/{address}/answer", json.dumps(answer).encode(), qos=1)


@app.on_received
def on_late_answer(conn: Conn, frame: bytes) -> None:
    pass  # or what a meter says to another master
