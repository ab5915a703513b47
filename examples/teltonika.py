r"""Teltonika trackers, over TCP and UDP: codec 8, 8 extended and 16, texts of 12 to 15, commands by 12.

A tracker logs in with its IMEI, over UDP in each datagram; over TCP one that reports before that is closed.
It keeps its records until they are acknowledged, which they are when the broker has them. It says, in JSON:

    devices/IMEI/position   time, lat, lon, altitude, speed, course, satellites, fix, event, priority, io
    devices/IMEI/text       text: what nobody has asked for, such as what came from its serial port; bytes
                            that are no text, such as Modbus, come in hex, as text_hex
    devices/IMEI/message    codec and content, in hex: what isn't read here
    devices/IMEI/answer     command, and its answer or error

Times are UTC, speed is in km/h, altitude in m; without a fix, lat and lon are the last known or 0, null if
there is no such place. io has each element's value by its number, as it comes: those of up to 8 bytes are
numbers without a sign, longer ones are hex. What is published to devices/IMEI/command, such as getinfo, is
sent to a tracker on TCP.

    read      codecs 8, 8e and 10 (records), 0c to 0f (texts), FF, which keeps a connection open
    not read  what elements mean, which differs between models; other codecs, such as 7: told as message, and
              not acknowledged

Try it: exproto-app run examples/teltonika.py --listen teltonika=tcp://127.0.0.1:7001 \
    --listen teltonika-udp=udp://127.0.0.1:7001, and in another terminal have a record acknowledged:

    printf 003dcafe0105000f33353230393330383634303336353508010000016b4f815b3001000000000000\
0000000000000000000103021503010101425dbc000001 | xxd -r -p | nc -u -w1 127.0.0.1 7001 | xxd -p
"""

import json
import struct
from datetime import datetime, timezone
from io import BytesIO
from typing import Any, Literal

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
from exproto_app.checksums import CRC16_ARC
from exproto_app.framing import Checked, FirstOf, FixedSize, LengthPrefix

# --- what is on the wire

# TCP: 000F and the IMEI; then four zeros, four bytes of length, a packet, and its CRC in four bytes, which
# the length doesn't count; some trackers send FF to keep the connection open. UDP: a length, then all in one.
PACKETS = Checked(LengthPrefix(4, start=bytes(4), adjustment=4), CRC16_ARC, size=4)
TCP = FirstOf(PACKETS, (b"\x00\x0f", LengthPrefix(2)), (b"\xff", FixedSize(1)))
UDP = LengthPrefix(2)
GPS = struct.Struct(">QBiihHBH")
RECORDS = {0x08: (1, 1), 0x8E: (2, 2), 0x10: (2, 1)}  # bytes of an element's number, and of a count of them
# Where a text begins, by codec: 13 has a time before it, 14 an IMEI, 15 both.
TEXTS = {0x0C: 7, 0x0D: 11, 0x0E: 15, 0x0F: 19}

Values = dict[str, Any]


@attrs.frozen
class Packet:
    """What a tracker says: its *imei*, its *records*, or *text*, such as the answer to a command."""

    kind: Literal["login", "records", "text", "message", "ping"]
    imei: str = ""
    records: tuple[Values, ...] = ()
    text: Values = attrs.Factory(dict)
    number: bytes = b""  # of a datagram, for its acknowledgement


def parse(frame: bytes) -> Packet:
    """Return what *frame* says; what it raises has the frame dropped, logged and counted."""
    if frame[0] in RECORDS:
        return Packet("records", records=records(frame))
    if frame[0] in TEXTS:
        return Packet("text", text=text("text", frame[TEXTS[frame[0]] : -1]))
    if frame == b"\xff":
        return Packet("ping")
    if frame[:1].isdigit():
        return Packet("login", checked(frame))
    return Packet("message", text={"codec": frame[:1].hex(), "content": frame[1:].hex()})


def parse_datagram(frame: bytes) -> Packet:
    """Return what a datagram says: its number, its IMEI, and a packet."""
    end = 6 + int.from_bytes(frame[4:6], "big")
    return attrs.evolve(parse(frame[end:]), imei=checked(frame[6:end]), number=frame[:4])


def checked(imei: bytes) -> str:
    if len(imei) != 15 or not imei.isdigit():
        raise ValueError(f"{imei!r} is no IMEI")
    return imei.decode()


def records(packet: bytes) -> tuple[Values, ...]:
    codec, count, data = packet[0], packet[1], BytesIO(packet[2:-1])
    if codec not in RECORDS:
        raise ValueError(f"codec {codec:02x} is not known here")
    found = tuple(record(data, codec) for _ in range(count))
    if packet[-1] != count or data.read():
        raise ValueError(f"this is no packet of {count} records")
    return found


def record(data: BytesIO, codec: int) -> Values:
    milliseconds, priority, lon, lat, altitude, course, satellites, speed = GPS.unpack(data.read(GPS.size))
    wide, counts = RECORDS[codec]
    place = abs(lat) <= 900_000_000 and abs(lon) <= 1_800_000_000
    event = number(data, wide)
    exactly(data, 2 if codec == 0x10 else counts)  # why it was made, and how many elements it has
    elements: Values = {}
    for size in (1, 2, 4, 8):
        for _ in range(number(data, counts)):
            name, value = number(data, wide), number(data, size)
            elements[str(name)] = value
    if codec == 0x8E:
        for _ in range(number(data, 2)):
            name, size = number(data, 2), number(data, 2)
            elements[str(name)] = exactly(data, size).hex()
    return {
        "time": datetime.fromtimestamp(milliseconds / 1000, timezone.utc).isoformat(),
        "lat": lat / 10_000_000 if place else None,
        "lon": lon / 10_000_000 if place else None,
        "altitude": altitude,
        "speed": speed,
        "course": course,
        "satellites": satellites,
        "fix": satellites > 0 and place,
        "event": event,
        "priority": priority,
        "io": elements,
    }


def number(data: BytesIO, size: int) -> int:
    return int.from_bytes(exactly(data, size), "big")


def exactly(data: BytesIO, size: int) -> bytes:
    found = data.read(size)
    if len(found) < size:
        raise ValueError("a record is cut off")
    return found


def text(name: str, data: bytes) -> Values:
    """Return *data* as a text, or in hex if it is none."""
    try:
        found = data.decode().strip("\0\r\n ")
    except UnicodeDecodeError:
        return {f"{name}_hex": data.hex()}
    plain = all(letter.isprintable() or letter in "\r\n\t" for letter in found)
    return {name: found} if plain else {f"{name}_hex": data.hex()}


# --- what is done with it

app = App()
tcp = app.protocol(
    "teltonika",
    framing=TCP,
    codec=(parse, None),
    key=lambda packet: packet.kind,
    sniff=(b"\x00\x0f", b"\xff"),
)
udp = app.protocol("teltonika-udp", framing=UDP, codec=(parse_datagram, None))
Conn = Connection[None, Packet]


@tcp.on_received("login")
async def on_login(conn: Conn, packet: Packet) -> None:
    try:
        await conn.register(packet.imei, keepalive=3600)
    except DeniedError:
        conn.send(b"\x00", raw=True)
        conn.terminate()
        return
    conn.subscribe(f"devices/{packet.imei}/command", qos=1)
    conn.send(b"\x01", raw=True)


@tcp.on_received("ping")
def on_ping(conn: Conn, packet: Packet) -> None:
    pass  # it has kept the connection open


@tcp.on_received("records")
def on_records(conn: Conn, packet: Packet) -> None:
    if conn.client is None:
        conn.terminate()
    else:
        stored = publish(conn, "position", *packet.records)
        conn.send(len(packet.records).to_bytes(4, "big"), raw=True, after=stored)


@tcp.on_received("text")
@tcp.on_received("message")
def on_text(conn: Conn, packet: Packet) -> None:
    if conn.client is None:
        conn.terminate()
    else:
        publish(conn, packet.kind, packet.text)


@udp.on_received
async def on_datagram(conn: Conn, packet: Packet) -> None:
    try:
        await conn.register(packet.imei)
    except DeniedError:
        conn.terminate()
        return
    if packet.text:
        publish(conn, packet.kind, packet.text)
    else:
        stored = publish(conn, "position", *packet.records)
        conn.send(packet.number + bytes([len(packet.records)]), after=stored)


@tcp.on_deliver("devices/+/command")
async def on_command(conn: Conn, message: Message) -> None:
    size = len(message.payload).to_bytes(4, "big")
    request = b"\x0c\x01\x05" + size + message.payload + b"\x01"
    values = text("command", message.payload)
    try:
        reply = await conn.request(
            request, match=lambda packet: packet.kind == "text", timeout=30, key="command"
        )
        values |= {name.replace("text", "answer"): told for name, told in reply.text.items()}
    except (RequestTimeout, UnavailableError, FramingError) as error:
        values["error"] = str(error)
    publish(conn, "answer", values)


def publish(conn: Conn, what: str, *told: Values) -> Outcome[int]:
    clientid = "" if conn.client is None else conn.client.clientid
    topic = f"devices/{clientid}/{what}"
    return conn.publish_many([(topic, json.dumps(values).encode()) for values in told], qos=1)
