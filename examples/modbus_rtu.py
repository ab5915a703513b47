"""Modbus RTU over TCP: serial device servers with one or more Modbus units behind each.

Those that dial in are listened for, those that wait to be called are dialled:

    exproto-app run examples/modbus_rtu.py --listen tcp://0.0.0.0:7993
    exproto-app run examples/modbus_rtu.py --dial 'tcp://192.0.2.7:502?name=pump'

The protocol has no login and its units never speak by themselves: we ask, when the line is up and every
10 seconds. A line is named by the server's address, or by what `--dial` calls it. What is published is JSON:

    devices/NAME/registers   unit, first, and values, or an error
    devices/NAME/answer      command, and its answer or error

What is published to devices/NAME/command, such as {"unit": 1, "register": 1, "value": 3}, is written into
that holding register.

Try it: exproto-app run examples/modbus_rtu.py, and in another terminal answer the first question, in time:

    printf 01030400060005da31 | xxd -r -p | nc -q1 127.0.0.1 7993 | xxd -p
"""

import asyncio
import json
import struct
from contextlib import suppress
from typing import Any

import attrs

from exproto_app import App, Connection, Message, RequestTimeout, UnavailableError
from exproto_app.checksums import CRC16_MODBUS
from exproto_app.framing import Decoding, Reader

POLLED = [(1, 0, 2)]
"""What is read: a unit, its first holding register, and how many."""

SECONDS = 10.0
TIMEOUT = 1.0

# --- what is on the wire: a unit, a function, its data, CRC; the function tells how long that is

READ, WRITE, FAILED = 0x03, 0x06, 0x80
LONGEST = max(2 * count for _, _, count in POLLED)  # bytes of values; what says more is noise, not waited for
ERRORS = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "server device failure",
    5: "acknowledge",
    6: "server device busy",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "gateway target device failed to respond",
}

Values = dict[str, Any]


class Answers:
    """The framing of what units answer. In TCP no silence tells frames apart as on a line: the CRC has to."""

    def encode(self, frame: bytes) -> bytes:
        return frame + CRC16_MODBUS(frame).to_bytes(2, "little")

    def decode(self, reader: Reader) -> Decoding:
        while True:
            _, function, count = yield from reader.peek(3)
            if function & FAILED:
                size = 5
            elif function in (1, 2, 3, 4) and count <= LONGEST:
                size = 5 + count
            elif function in (5, 6, 15, 16):
                size = 8
            else:
                yield from reader.skip(1, f"nothing of function {function} was asked that has {count} bytes")
                continue
            frame = yield from reader.peek(size)
            if self.encode(frame[:-2]) == frame:
                yield (yield from reader.exactly(size))[:-2]
            else:
                yield from reader.skip(1, "no answer with a right CRC begins here")


# --- what is done with it


@attrs.define
class Bus:
    quiet: float = 0.0
    """When a late answer can come no more; nothing in one tells which question it belongs to."""


app = App()
modbus = app.protocol("modbus", framing=Answers(), state=Bus)
Conn = Connection[Bus]


@modbus.on_connect
async def on_connect(conn: Conn) -> None:
    conn.register(conn.info.name)
    conn.subscribe(f"devices/{conn.info.name}/command", qos=1)
    await poll(conn)


@modbus.every(SECONDS)
async def poll(conn: Conn) -> None:
    for unit, first, count in POLLED:
        values: Values = {"unit": unit, "first": first}
        try:
            data = await ask(conn, unit, READ, first, count)
            values["values"] = struct.unpack(f">{count}H", data[1:])
        except (RequestTimeout, UnavailableError, ModbusError, struct.error) as error:
            values["error"] = str(error)
        publish(conn, "registers", values)


@modbus.on_deliver("devices/+/command")
async def on_command(conn: Conn, message: Message) -> None:
    values: Values = {"command": message.payload.decode("utf-8", "replace")}
    try:
        command = json.loads(message.payload)
        await ask(conn, command["unit"], WRITE, command["register"], command["value"])
        values["answer"] = "written"
    except (LookupError, TypeError, ValueError, struct.error):
        values["error"] = 'a command is {"unit": …, "register": …, "value": …}'
    except (RequestTimeout, UnavailableError, ModbusError) as error:
        values["error"] = str(error)
    publish(conn, "answer", values)


class ModbusError(Exception):
    """What a unit says that it can't do."""


async def ask(conn: Conn, unit: int, function: int, register: int, value: int) -> bytes:
    """Return the data that *unit* answers with, asked up to three times; one question at a time."""
    request = struct.pack(">BBHH", unit, function, register, value)
    # What was written comes back as it is, what was read with its size.
    good = request if function == WRITE else bytes([unit, function, 2 * value])
    failed = bytes([unit, function | FAILED])
    clock = asyncio.get_running_loop().time
    if (left := conn.state.quiet - clock()) > 0:
        with suppress(RequestTimeout):  # answers that are late go by
            await conn.request(b"", raw=True, match=lambda _: False, timeout=left)
    begin = clock()
    try:
        reply = await conn.request(
            request,
            match=lambda frame: frame.startswith((good, failed)),
            timeout=TIMEOUT,
            retries=2,
            key="bus",
        )
    finally:
        if clock() - begin >= TIMEOUT:
            conn.state.quiet = clock() + TIMEOUT
    if reply.startswith(failed):
        raise ModbusError(ERRORS.get(reply[2], f"exception {reply[2]}"))
    return reply[2:]


@modbus.on_received
def on_late_answer(conn: Conn, frame: bytes) -> None:
    pass  # or of a unit that was not asked


def publish(conn: Conn, what: str, values: Values) -> None:
    conn.publish(f"devices/{conn.info.name}/{what}", json.dumps(values).encode())
