"""JT/T 808 terminals, by the documents of 2013 and of 2019, over TCP.

A terminal registers and is given a code, with which it then logs in; one that reports anything before that is
closed. PHONE is the number it has in each header, without leading zeros. What it says is JSON:

    devices/PHONE/terminal   maker, model, terminal, plate: what it registered with
    devices/PHONE/position   time, lat, lon, altitude, speed, course, fix, ignition, status, alarm, and what
                             it adds: by ADDITIONS below, the rest by its number, in hex
    devices/PHONE/message    id and body, in hex: whatever isn't read here, or can't be; encrypted, if it is
    devices/PHONE/answer     command, and its result, 0 for done, or its answer in hex, or an error

Times are UTC, null if the terminal has none; speed is in km/h, altitude in m, mileage in km, fuel in l.
Status and alarm are the document's flags as numbers: of status, bit 10 tells that fuel is cut, 11 power, 12
that the doors are locked, 13 to 17 which are open; 0 is no alarm. Without a fix, lat and lon are the last
known, null if there is no such place. Bytes that are no text come in hex, as plate_hex for plate. Long
messages may come in parts, between others and in any order.

    read      0001, 0002, 0004, 0100, 0102, 0200, 0201, 0500, 0704; of what 0200 adds 01, 02, 30, 31
    not read  all others, such as 0801 (pictures), 0900 and other messages of makers, those of JT/T 1078
              (video), and whatever is encrypted: published as they are, and acknowledged

What is published to devices/PHONE/command, a message's id and body in hex such as 8105f0, is sent to the
terminal.

Try it: exproto-app run examples/jt808.py, and in another terminal log in:

    printf 7e0102000e013511221122000661757468656e7469636174696f6e3f7e |
        xxd -r -p | nc -q1 127.0.0.1 7993 | xxd -p
"""

import itertools
import json
import logging
import struct
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import attrs

from exproto_app import App, Connection, DeniedError, Message, Outcome, RequestTimeout, UnavailableError
from exproto_app.checksums import XOR
from exproto_app.framing import JT808, Checked, Resync

# --- what is on the wire: between 7E, escaped, a header, a body, and the XOR of both

FRAMING = Resync(Checked(JT808, XOR))
LOCATION = struct.Struct(">IIIIhHH6s")
VERSION, PARTS, CIPHER, LENGTH = 0x4000, 0x2000, 0x1C00, 0x03FF  # in the header's properties
MOST_PARTS = 256
MOST_MESSAGES = 4  # in parts at once
MEDIA = 0x0801
ADDITIONS = {  # by number and size: name, and how many make one of its unit
    (0x01, 4): ("mileage", 10),
    (0x02, 2): ("fuel", 10),
    (0x30, 1): ("signal", 1),
    (0x31, 1): ("satellites", 1),
}
ANSWERS = {0x0001, 0x0104, 0x0201, 0x0302, 0x0500, 0x0700, 0x0802, 0x0805}  # with the serial of the question
PLAIN_ANSWERS = {0x0107, 0x0702}  # without

Values = dict[str, Any]
log = logging.getLogger("jt808")


@attrs.frozen
class Packet:
    """A message, or one *part*, counted from 1, of *parts*; *version* is empty in the header of 2013."""

    id: int
    version: bytes
    phone: bytes
    serial: bytes
    body: bytes
    part: int = 1
    parts: int = 1
    encrypted: bool = False
    values: Values = attrs.Factory(dict)

    @property
    def clientid(self) -> str:
        return self.phone.hex().lstrip("0")  # the header of 2013 has 12 digits, that of 2019 has 20


def parse(frame: bytes) -> Packet:
    """Return what *frame* says; what it raises has that dropped, logged and counted."""
    kind, properties = struct.unpack_from(">HH", frame)
    begin, size = (5, 10) if properties & VERSION else (4, 6)
    phone, serial, body = frame[begin : begin + size], frame[begin + size :][:2], frame[begin + size + 2 :]
    part = parts = 1
    if properties & PARTS:
        parts, part = struct.unpack_from(">HH", body)
        body = body[4:]
    if len(body) != properties & LENGTH:
        raise ValueError(f"by its header the body has {properties & LENGTH} bytes, it has {len(body)}")
    if not 1 <= part <= parts <= MOST_PARTS:
        raise ValueError(f"this is part {part} of {parts}")
    encrypted = bool(properties & CIPHER)
    packet = Packet(kind, frame[4:begin], phone, serial, body, part, parts, encrypted)
    return packet if parts > 1 else understood(packet)


def understood(packet: Packet) -> Packet:
    read = None if packet.encrypted else READERS.get(packet.id)
    try:
        return attrs.evolve(packet, values=read(packet.body, bool(packet.version))) if read else packet
    except (ValueError, LookupError, struct.error):
        return packet  # it is published as it is: without an answer it would come again for ever


def result(body: bytes, new: bool) -> Values:
    return {"result": body[4]}


def registration(body: bytes, new: bool) -> Values:
    # By the document of 2011, which some still follow, the model has 8 bytes; no plate is so long that a body
    # of 76 could be of 2013.
    new = new or len(body) >= 76
    layout = ">4x11s30s30sx" if new else ">4x5s20s7sx" if len(body) > 36 else ">4x5s8s7sx"
    maker, model, terminal = struct.unpack_from(layout, body)
    plate = text("plate", body[struct.calcsize(layout) :])
    return text("maker", maker) | text("model", model) | text("terminal", terminal) | plate


def authentication(body: bytes, new: bool) -> Values:
    return text("code", body[1 : 1 + body[0]] if new else body)


def position(body: bytes, new: bool) -> Values:
    return {"positions": [location(body)]}


def answered_position(body: bytes, new: bool) -> Values:
    return {"positions": [location(body[2:])]}  # behind the serial of the question


def positions(body: bytes, new: bool) -> Values:
    (count,) = struct.unpack_from(">Hx", body)
    found, place = [], 3
    while place < len(body):
        end = place + 2 + int.from_bytes(body[place : place + 2], "big")
        found.append(location(body[place + 2 : end]))
        place = end
    if len(found) != count:
        raise ValueError(f"there are {len(found)} positions, not {count}")
    return {"positions": found}


def location(body: bytes) -> Values:
    alarm, status, lat, lon, altitude, speed, course, clock = LOCATION.unpack_from(body)
    time = datetime.strptime(f"{clock.hex()}+0800", "%y%m%d%H%M%S%z") if any(clock) else None
    place = lat <= 90_000_000 and lon <= 180_000_000
    return {
        "time": time and time.astimezone(timezone.utc).isoformat(),
        "lat": (-lat if status & 4 else lat) / 1_000_000 if place else None,
        "lon": (-lon if status & 8 else lon) / 1_000_000 if place else None,
        "altitude": altitude,
        "speed": speed / 10,
        "course": course,
        "fix": bool(status & 2) and place,
        "ignition": bool(status & 1),
        "status": status,
        "alarm": alarm,
        **additions(body[LOCATION.size :]),
    }


def additions(data: bytes) -> Values:
    """Return what stands behind a position: numbers, lengths, values; what isn't known here in hex."""
    values: Values = {}
    while data:
        number, size = data[0], int.from_bytes(data[1:2], "big")
        value = data[2 : 2 + size]
        if len(value) < size or len(data) < 2 or not number:
            return values | {"rest": data.hex()}  # of a maker that adds something else
        name, scale = ADDITIONS.get((number, size), (f"{number:02x}", 0))
        if number == 0x02 and value[:1] >= b"\x80":
            name, scale = "02", 0  # some tell percent so
        while name in values:
            name += "_"  # some send a number again
        told = int.from_bytes(value, "big")
        values[name] = told / scale if scale > 1 else told if scale else value.hex()
        data = data[2 + size :]
    return values


def text(name: str, data: bytes, encoding: str = "gbk") -> Values:
    """Return *data* as a text, or in hex if it is none."""
    try:
        found = data.decode(encoding).strip("\0 ")
    except UnicodeDecodeError:
        return {f"{name}_hex": data.hex()}
    plain = all(letter.isprintable() or letter in "\r\n\t" for letter in found)
    return {name: found} if plain else {f"{name}_hex": data.hex()}


READERS: dict[int, Callable[[bytes, bool], Values]] = {
    0x0001: result,
    0x0100: registration,
    0x0102: authentication,
    0x0200: position,
    0x0201: answered_position,
    0x0500: answered_position,
    0x0704: positions,
}


# --- what is done with it


@attrs.define
class Terminal:
    login: Packet | None = None
    registration: Values = attrs.Factory(dict)
    serials: Iterator[int] = attrs.Factory(lambda: itertools.cycle(range(0x10000)))
    parts: dict[int, dict[int, Packet]] = attrs.Factory(dict)  # of messages that come, by their ids
    joined: dict[int, Packet] = attrs.Factory(dict)  # the parts of the last one that was whole


app = App()
jt808 = app.protocol(
    "jt808",
    framing=FRAMING,
    codec=(parse, None),
    key=lambda packet: packet.id if packet.parts == 1 and not packet.encrypted else "other",
    state=Terminal,
    sniff=b"\x7e",
)
Conn = Connection[Terminal, Packet]


@jt808.on_received(0x0100)
def on_registration(conn: Conn, packet: Packet) -> bytes:
    if not packet.clientid:
        conn.terminate()
        return answer(conn, packet, b"\x81\x00", packet.serial + b"\4")  # no such terminal
    conn.state.registration = packet.values
    return answer(conn, packet, b"\x81\x00", packet.serial + b"\0authentication")


@jt808.on_received(0x0102)
async def on_login(conn: Conn, packet: Packet) -> bytes:
    # Any code will do, as any terminal may register and some bring one from elsewhere for ever. Who knows
    # the terminals gives each its own above, and compares packet.values["code"] here.
    if not packet.clientid:
        conn.terminate()
        return general(conn, packet, 1)
    try:
        await conn.register(packet.clientid, keepalive=600)
    except DeniedError:
        conn.terminate()
        return general(conn, packet, 1)
    conn.state.login = packet
    conn.subscribe(f"devices/{packet.clientid}/command", qos=1)
    if conn.state.registration:
        publish(conn, "terminal", conn.state.registration)
    return general(conn, packet)


@jt808.on_received(0x0001)
def on_late_answer(conn: Conn, packet: Packet) -> None:
    known(conn, packet)  # nobody waits for it any more, and it has no answer itself


@jt808.on_received(0x0002)
def on_heartbeat(conn: Conn, packet: Packet) -> bytes | None:
    if not known(conn, packet):
        return None
    if not packet.body:
        return general(conn, packet)
    on_whole(conn, packet)  # some tell more
    return None


@jt808.on_received(0x0004)
def on_time(conn: Conn, packet: Packet) -> bytes:
    return answer(conn, packet, b"\x80\x04", bytes.fromhex(f"{conn.now():%y%m%d%H%M%S}"))


@jt808.on_received
def on_message(conn: Conn, packet: Packet) -> bytes | None:
    if not known(conn, packet):
        return None
    whole = joined(conn.state, packet) if packet.parts > 1 else packet
    if whole is None:
        return general(conn, packet)
    on_whole(conn, whole)
    return None


def on_whole(conn: Conn, packet: Packet) -> None:
    """Publish what *packet* holds; answer it when the broker has that, for the terminal may drop it then."""
    if packet.values:
        stored = publish(conn, "position", *packet.values.get("positions", ()))
    else:
        sure = {"encrypted": True} if packet.encrypted else {}
        stored = publish(conn, "message", {"id": f"{packet.id:04x}", "body": packet.body.hex(), **sure})
    if packet.id == MEDIA:
        reply = answer(conn, packet, b"\x88\x00", packet.body[:4])  # its number: all parts have come
    else:
        reply = general(conn, packet)
    conn.send(reply, after=stored)


@jt808.on_deliver("devices/+/command")
async def on_command(conn: Conn, message: Message) -> None:
    values = text("command", message.payload, "ascii")
    try:
        values |= await ask(conn, bytes.fromhex(values.get("command", "is no hex")))
    except (ValueError, RequestTimeout, UnavailableError) as error:
        values["error"] = str(error)
    publish(conn, "answer", values)


async def ask(conn: Conn, command: bytes) -> Values:
    """Send *command*, an id and a body, and return what the terminal says to it."""
    serial = next(conn.state.serials).to_bytes(2, "big")
    if conn.state.login is None or not 2 <= len(command) <= 2 + LENGTH:
        raise ValueError(f"a command has an id of 2 bytes and a body of {LENGTH} at most")
    kind = int.from_bytes(command[:2], "big") & 0x7FFF
    plain = kind if kind in PLAIN_ANSWERS else None
    reply = await conn.request(
        frame(conn.state.login, command[:2], serial, command[2:]),
        match=lambda packet: (
            packet.parts == 1 and (packet.body[:2] == serial if packet.id in ANSWERS else packet.id == plain)
        ),
    )
    for values in reply.values.get("positions", ()):
        publish(conn, "position", values)
    answered = reply.values and "positions" not in reply.values
    return reply.values if answered else {"answer": f"{reply.id:04x}{reply.body.hex()}"}


def known(conn: Conn, packet: Packet) -> bool:
    """Tell whether the terminal of *packet* has logged in; close it if not."""
    if conn.client is not None and conn.client.clientid == packet.clientid:
        return True
    conn.terminate()
    return False


def joined(terminal: Terminal, packet: Packet) -> Packet | None:
    """Return the whole message if *packet* was the last part that it lacked."""
    parts = terminal.parts.pop(packet.id, {})
    old = parts.get(packet.part, packet)
    if old.body != packet.body or any(part.parts != packet.parts for part in parts.values()):
        parts = begun_anew(packet, parts)
    parts[packet.part] = packet
    again = [number for number, part in parts.items() if terminal.joined.get(number) == part]
    if len(parts) == packet.parts and len(again) < len(parts):
        for number in again:  # parts of the message before, sent twice
            del parts[number]
    if len(parts) == packet.parts:
        terminal.joined = parts
        body = b"".join(parts[number].body for number in sorted(parts))
        return understood(attrs.evolve(packet, body=body, part=1, parts=1))
    if len(terminal.parts) == MOST_MESSAGES:
        forgotten(packet, len(terminal.parts.pop(next(iter(terminal.parts)))))
    terminal.parts[packet.id] = parts
    return None


def begun_anew(packet: Packet, parts: dict[int, Packet]) -> dict[int, Packet]:
    """Return those of *parts* that may be of the message of *packet*, which isn't that of the others."""
    kept = {}
    for number, part in parts.items():
        ahead = int.from_bytes(packet.serial, "big") - int.from_bytes(part.serial, "big")
        before = (ahead & 0xFFFF) < 0x8000
        if part.parts == packet.parts and number != packet.part and before == (number < packet.part):
            kept[number] = part
    forgotten(packet, len(parts) - len(kept))
    return kept


def forgotten(packet: Packet, count: int) -> None:
    log.warning("%s: %d parts of a message are dropped, the others never came", packet.clientid, count)


def general(conn: Conn, packet: Packet, result: int = 0) -> bytes:
    """Return the general answer: 0 for done, 1 for refused."""
    return answer(conn, packet, b"\x80\x01", packet.serial + packet.id.to_bytes(2, "big") + bytes([result]))


def answer(conn: Conn, packet: Packet, kind: bytes, body: bytes) -> bytes:
    return frame(packet, kind, next(conn.state.serials).to_bytes(2, "big"), body)


def frame(to: Packet, kind: bytes, serial: bytes, body: bytes) -> bytes:
    properties = len(body) | (VERSION if to.version else 0)
    return kind + properties.to_bytes(2, "big") + to.version + to.phone + serial + body


def publish(conn: Conn, what: str, *told: Values) -> Outcome[int]:
    clientid = "" if conn.client is None else conn.client.clientid
    topic = f"devices/{clientid}/{what}"
    return conn.publish_many([(topic, json.dumps(values).encode()) for values in told], qos=1)
