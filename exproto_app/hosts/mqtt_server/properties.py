"""The properties of MQTT 5 packets: which there are, where they may stand, how they are written (2.2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from ... import models
from .reasons import MqttError, Reason

__all__ = [
    "ASSIGNED_CLIENTID",
    "AUTHENTICATION_METHOD",
    "CONTENT_TYPE",
    "CORRELATION_DATA",
    "EXPIRY",
    "MAXIMUM_PACKET",
    "NONE",
    "RECEIVE_MAXIMUM",
    "RESPONSE_TOPIC",
    "SESSION_EXPIRY",
    "SUBSCRIPTION_ID",
    "SUBSCRIPTION_IDS_AVAILABLE",
    "TOPIC_ALIAS",
    "USER",
    "UTF8",
    "WILL",
    "WILL_DELAY",
    "Properties",
    "encode_properties",
    "encode_varint",
    "for_message",
    "of_message",
    "read_binary",
    "read_properties",
    "read_text",
    "read_varint",
]

Properties = Mapping[int, Any]
"""Values by property identifier; of the user property a list of pairs, of the subscription identifier of
ints."""

NONE: Final[Properties] = MappingProxyType({})

LONGEST: Final = 32_768
"""Bytes of the properties of one packet: they are walked through in one go."""

UTF8: Final = 0x01
EXPIRY: Final = 0x02
CONTENT_TYPE: Final = 0x03
RESPONSE_TOPIC: Final = 0x08
CORRELATION_DATA: Final = 0x09
SESSION_EXPIRY: Final = 0x11
ASSIGNED_CLIENTID: Final = 0x12
AUTHENTICATION_METHOD: Final = 0x15
WILL_DELAY: Final = 0x18
RECEIVE_MAXIMUM: Final = 0x21
TOPIC_ALIAS: Final = 0x23
USER: Final = 0x26
MAXIMUM_PACKET: Final = 0x27
SUBSCRIPTION_ID: Final = 0x0B
SUBSCRIPTION_IDS_AVAILABLE: Final = 0x29

KINDS: Final = {
    0x01: "byte",
    0x02: "four",
    0x03: "text",
    0x08: "text",
    0x09: "binary",
    0x0B: "varint",
    0x11: "four",
    0x12: "text",
    0x13: "two",
    0x15: "text",
    0x16: "binary",
    0x17: "byte",
    0x18: "four",
    0x19: "byte",
    0x1A: "text",
    0x1C: "text",
    0x1F: "text",
    0x21: "two",
    0x22: "two",
    0x23: "two",
    0x24: "byte",
    0x25: "byte",
    0x26: "pair",
    0x27: "four",
    0x28: "byte",
    0x29: "byte",
    0x2A: "byte",
}
SIZES: Final = {"byte": 1, "two": 2, "four": 4}

FLAGS: Final = frozenset({0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2A})
"""Bytes that are 0 or 1."""

NEVER_ZERO: Final = frozenset({0x0B, 0x21, 0x23, 0x27})

WILL: Final = 0
"""Stands for the will in `ALLOWED`; it has properties of its own."""

ALLOWED: Final = {
    WILL: frozenset({0x01, 0x02, 0x03, 0x08, 0x09, 0x18, 0x26}),
    1: frozenset({0x11, 0x15, 0x16, 0x17, 0x19, 0x21, 0x22, 0x26, 0x27}),
    2: frozenset(
        {0x11, 0x12, 0x13, 0x15, 0x16, 0x1A, 0x1C, 0x1F, 0x21, 0x22, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2A}
    ),
    3: frozenset({0x01, 0x02, 0x03, 0x08, 0x09, 0x0B, 0x23, 0x26}),
    **dict.fromkeys((4, 5, 6, 7, 9, 11), frozenset({0x1F, 0x26})),
    8: frozenset({0x0B, 0x26}),
    10: frozenset({0x26}),
    14: frozenset({0x11, 0x1C, 0x1F, 0x26}),
    15: frozenset({0x15, 0x16, 0x1F, 0x26}),
}
"""Which identifiers a packet type may have."""


def of_message(properties: Properties) -> models.Properties:
    """Return those of a PUBLISH or a will that whoever gets the message gets too (3.3.2.3)."""
    if not properties:
        return models.PLAIN
    return models.Properties(
        properties.get(EXPIRY),
        properties.get(CONTENT_TYPE, ""),
        properties.get(RESPONSE_TOPIC, ""),
        properties.get(CORRELATION_DATA, b""),
        tuple(properties.get(USER, ())),
        bool(properties.get(UTF8)),
    )


def for_message(properties: models.Properties) -> Properties:
    """Return *properties* as a packet has them."""
    if properties is models.PLAIN:
        return NONE
    found = {
        UTF8: int(properties.utf8),
        CONTENT_TYPE: properties.content_type,
        RESPONSE_TOPIC: properties.response_topic,
        CORRELATION_DATA: properties.correlation_data,
        USER: list(properties.user_properties),
    }
    given = {name: value for name, value in found.items() if value}
    return given if properties.expiry is None else {EXPIRY: properties.expiry, **given}


def read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Read a variable byte integer at *at*; return it and where it ends."""
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            if shift and not byte:
                raise MqttError("a length takes more bytes than it needs")
            return value, at
        shift += 7
        if shift == 28:
            raise MqttError("a length has more than 4 bytes")
    raise MqttError("a packet is shorter than its length field says")


def read_binary(data: bytes, at: int, end: int) -> tuple[bytes, int]:
    """Read bytes behind their length of two bytes; return them and where they end."""
    begin = at + 2
    if begin > end:
        raise MqttError("a packet is shorter than its length field says")
    stop = begin + (data[at] << 8 | data[at + 1])
    if stop > end:
        raise MqttError("a packet is shorter than its length field says")
    return data[begin:stop], stop


def read_text(data: bytes, at: int, end: int) -> tuple[str, int]:
    """Read text behind its length of two bytes; return it and where it ends."""
    raw, at = read_binary(data, at, end)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise MqttError("text is not UTF-8") from None
    if "\0" in text:
        raise MqttError("text has a NUL character")
    return text, at


def read_properties(data: bytes, at: int, end: int, packet: int) -> tuple[Properties, int]:
    """Read the properties of a *packet* type; return them and where they end."""
    size, at = read_varint(data, at, end)
    if not size:
        return NONE, at
    stop = at + size
    if stop > end:
        raise MqttError("a packet is shorter than its length field says")
    if size > LONGEST:
        raise MqttError(f"properties have {size} bytes, limit is {LONGEST}", Reason.TOO_LARGE)
    found: dict[int, Any] = {}
    allowed = ALLOWED[packet]
    while at < stop:
        name = data[at]
        if name not in allowed:
            raise MqttError(f"property 0x{name:02x} is unknown or doesn't belong here")
        value, at = _read_value(KINDS[name], data, at + 1, stop)
        if (name in FLAGS and value > 1) or (name in NEVER_ZERO and not value):
            raise MqttError(f"property 0x{name:02x} can't be {value}", Reason.PROTOCOL_ERROR)
        if name == USER or (name == SUBSCRIPTION_ID and packet == 3):
            found.setdefault(name, []).append(value)
        elif name in found:
            raise MqttError(f"property 0x{name:02x} is there twice", Reason.PROTOCOL_ERROR)
        else:
            found[name] = value
    return found, at


def _read_value(kind: str, data: bytes, at: int, end: int) -> tuple[Any, int]:
    size = SIZES.get(kind)
    if size is not None:
        if at + size > end:
            raise MqttError("a packet is shorter than its length field says")
        return int.from_bytes(data[at : at + size], "big"), at + size
    if kind == "text":
        return read_text(data, at, end)
    if kind == "binary":
        return read_binary(data, at, end)
    if kind == "varint":
        return read_varint(data, at, end)
    key, at = read_text(data, at, end)
    value, at = read_text(data, at, end)
    return (key, value), at


def encode_varint(value: int) -> bytes:
    """Write a variable byte integer (1.5.5)."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_properties(properties: Properties) -> bytes:
    """Write *properties*, with their length."""
    if not properties:
        return b"\0"
    out = bytearray()
    for name, value in properties.items():
        for one in value if isinstance(value, list) else (value,):
            out.append(name)
            out += _encode_value(KINDS[name], one)
    return encode_varint(len(out)) + out


def _encode_value(kind: str, value: Any) -> bytes:
    if kind == "varint":
        return encode_varint(value)
    if kind == "pair":
        return b"".join(_encode_value("text", part) for part in value)
    if kind in SIZES:
        return int(value).to_bytes(SIZES[kind], "big")
    raw = value.encode() if kind == "text" else value
    return len(raw).to_bytes(2, "big") + bytes(raw)
