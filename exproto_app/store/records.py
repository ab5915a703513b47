"""The format of a store's files: messages that wait, and notes of those that are done. Sans-IO.

A file begins with `MAGIC` and a marker of four random bytes. Behind it stand records, one after another:

    marker (4)  CRC-32 of the body (4)  length of the body (4)  body

The body's first byte tells what it is, all numbers are little-endian:

    1  id (8)  flags (1)  lengths of clientid and topic (2, 2)  clientid  topic  [properties]  payload
    2  ids (8 each) of messages that are done

Flags are the QoS (bits 0 and 1), retain (bit 2), and whether there are properties of MQTT 5 (bit 3): their
length (4), and a JSON object, with correlation data in hex. An id is a time, in microseconds since 1970,
times 256, plus the number of the part that it was written to: ids of one process grow, those of two differ.

What doesn't agree with its CRC is skipped up to the next marker. No device knows the marker, so none can
write bytes that look like a record, and the search takes linear time.
"""

from __future__ import annotations

import json
import os
import struct
from array import array
from collections.abc import Iterable, Iterator
from typing import Any, Final
from zlib import crc32

import attrs

from ..commands import Publish
from ..models import PLAIN, Properties

__all__ = [
    "HEADER",
    "Damage",
    "Done",
    "Stored",
    "done",
    "header",
    "message",
    "new_marker",
    "read_one",
    "scan",
]

MAGIC: Final = b"exproto-app store 1\n"
HEADER: Final = len(MAGIC) + 4
"""Bytes before the first record."""

MESSAGE: Final = 1
WITH_PROPERTIES: Final = 8

_FRAME: Final = struct.Struct("<4sII")
_MESSAGE: Final = struct.Struct("<BQBHH")
_SIZE: Final = struct.Struct("<I")
_pack_frame: Final = _FRAME.pack
_pack_message: Final = _MESSAGE.pack
_FRAME_SIZE: Final = _FRAME.size
_MESSAGE_SIZE: Final = _MESSAGE.size


@attrs.frozen
class Stored:
    """A message in a file: it has *size* bytes there, from *offset* on."""

    offset: int
    size: int
    id: int
    clientid: str
    command: Publish


@attrs.frozen
class Done:
    """The *ids* of messages that are done."""

    ids: array[int]


@attrs.frozen
class Damage:
    """*size* bytes from *offset* on aren't readable; *torn*: nothing readable stands behind them."""

    offset: int
    size: int
    torn: bool


def new_marker() -> bytes:
    """Return a marker that nobody can guess."""
    return os.urandom(4)


def header(marker: bytes) -> bytes:
    """Return the beginning of a file."""
    return MAGIC + marker


def message(marker: bytes, number: int, clientid: bytes, command: Publish) -> bytes:
    """Return the record of a message, whose id is *number*."""
    topic = command.topic.encode()
    flags = command.qos | (command.retain << 2)
    properties = b""
    if command.properties is not PLAIN:
        flags |= WITH_PROPERTIES
        properties = _encoded(command.properties)
    head = _pack_message(MESSAGE, number, flags, len(clientid), len(topic))
    body = b"".join((head, clientid, topic, properties, command.payload))
    return _pack_frame(marker, crc32(body), len(body)) + body


def done(marker: bytes, numbers: Iterable[int]) -> bytes:
    """Return the record of messages that are done."""
    body = b"\2" + _swapped(array("Q", numbers)).tobytes()
    return _pack_frame(marker, crc32(body), len(body)) + body


def scan(data: bytes) -> Iterator[Stored | Done | Damage]:
    """Yield what stands in a file, which *data* is all of."""
    marker = _marker_of(data)
    at, size = HEADER, len(data)
    if not data.startswith(MAGIC[:size]):
        yield Damage(0, min(size, HEADER), torn=False)
    while at < size:
        body = _body(data, at, marker)
        found = None if body is None else _read(at, body)
        if found is None:
            after = _next(data, at + 1, marker)
            yield Damage(at, after - at, torn=after == size)
            at = after
            continue
        yield found
        at += _FRAME_SIZE + len(body or b"")


def read_one(data: bytes, at: int, start: int) -> Stored | int | None:
    """Return the message at *at* in *data*, which are bytes of a file from *start* on.

    An int is how many bytes it takes, where *data* has fewer; None: there is no message.
    """
    if len(data) - at < _FRAME_SIZE:
        return _FRAME_SIZE
    _, check, length = _FRAME.unpack_from(data, at)
    end = at + _FRAME_SIZE + length
    if len(data) < end:
        return _FRAME_SIZE + int(length)
    body = data[at + _FRAME_SIZE : end]
    found = _read(start + at, body) if crc32(body) == check else None
    return found if isinstance(found, Stored) else None


def _marker_of(data: bytes) -> bytes:
    """Return the marker; where the header's finds nothing, what the first record begins with."""
    marker, other = data[HEADER - 4 : HEADER], data[HEADER : HEADER + 4]
    if _next(data, HEADER, marker) == len(data) and _body(data, HEADER, other) is not None:
        return other
    return marker


def _body(data: bytes, at: int, marker: bytes) -> bytes | None:
    """Return the body of the record at *at*; None if there is none."""
    start = at + _FRAME_SIZE
    if start > len(data):
        return None
    found, check, length = _FRAME.unpack_from(data, at)
    if found != marker or start + length > len(data):
        return None
    body = data[start : start + length]
    return body if crc32(body) == check else None


def _next(data: bytes, at: int, marker: bytes) -> int:
    """Return where the next record begins, the end of *data* if there is none."""
    while len(marker) == 4:
        at = data.find(marker, at)
        if at < 0:
            break
        if _body(data, at, marker) is not None:
            return at
        at += 1
    return len(data)


def _read(offset: int, body: bytes) -> Stored | Done | None:
    kind = body[:1]
    if kind == b"\1" and len(body) >= _MESSAGE_SIZE:
        _, number, flags, name_size, topic_size = _MESSAGE.unpack_from(body)
        topic_at = _MESSAGE_SIZE + name_size
        payload_at = topic_at + topic_size
        qos, properties = flags & 3, PLAIN
        if payload_at > len(body) or qos > 2:
            return None
        try:
            clientid = body[_MESSAGE_SIZE:topic_at].decode()
            topic = body[topic_at:payload_at].decode()
            if flags & WITH_PROPERTIES:
                properties, payload_at = _decoded(body, payload_at)
        except (ValueError, TypeError, AttributeError, struct.error):  # written by another version
            return None
        command = Publish(topic, body[payload_at:], qos, bool(flags & 4), properties)
        return Stored(offset, _FRAME_SIZE + len(body), number, clientid, command)
    if kind == b"\2" and len(body) % 8 == 1:
        numbers = array("Q", body[1:])
        return Done(_swapped(numbers))
    return None


def _swapped(numbers: array[int]) -> array[int]:
    """Return *numbers* in the order of bytes that files have, or back."""
    if struct.pack("=H", 1) != struct.pack("<H", 1):
        numbers.byteswap()
    return numbers


def _encoded(properties: Properties) -> bytes:
    facts: dict[str, Any] = properties.given()
    if properties.correlation_data:
        facts["correlation_data"] = properties.correlation_data.hex()
    text = json.dumps(facts, separators=(",", ":")).encode()
    return _SIZE.pack(len(text)) + text


def _decoded(body: bytes, at: int) -> tuple[Properties, int]:
    """Return the properties at *at*, and where they end."""
    start = at + _SIZE.size
    end = start + _SIZE.unpack_from(body, at)[0]
    facts = json.loads(body[start:end])
    pairs = tuple((str(name), str(value)) for name, value in facts.pop("user_properties", ()))
    correlation = bytes.fromhex(facts.pop("correlation_data", ""))
    return Properties(**facts, correlation_data=correlation, user_properties=pairs), end
