"""MQTT packets as bytes, and back.

`decode` takes the body of one packet and raises `MqttError` with the reason code for whatever is wrong in it,
in time linear in its size. Section numbers are those of the MQTT 5 standard.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from .packets import (
    V4,
    V5,
    Ack,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Kind,
    Packet,
    Ping,
    Publish,
    SubAck,
    Subscribe,
    Subscription,
    UnsubAck,
    Unsubscribe,
    Will,
)
from .properties import (
    NONE,
    WILL,
    Properties,
    encode_properties,
    encode_varint,
    read_binary,
    read_properties,
    read_text,
)
from .reasons import MqttError, Reason

__all__ = ["FILTERS", "acknowledge", "decode", "encode", "head_of", "publish_head"]

FILTERS: Final = 1_000
"""Topic filters in one SUBSCRIBE or UNSUBSCRIBE."""

ACKS: Final = {
    Kind.PUBACK: b"\x40\x02",
    Kind.PUBREC: b"\x50\x02",
    Kind.PUBREL: b"\x62\x02",
    Kind.PUBCOMP: b"\x70\x02",
}

SHORT: Final = "a packet is shorter than its length field says"


def head_of(data: bytes, at: int, end: int) -> tuple[int, int] | None:
    """Read the fixed header at *at*: return where the body begins and ends; None if more bytes are needed."""
    size = shift = 0
    for place in range(at + 1, min(at + 5, end)):
        byte = data[place]
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            return place + 1, place + 1 + size
        shift += 7
    if end - at > 4:
        raise MqttError("the length of a packet has more than 4 bytes")
    return None


def decode(first: int, body: bytes, version: int) -> Packet:
    """Read the packet whose first byte is *first*. Raises `MqttError`."""
    kind = first >> 4
    if kind == Kind.PUBLISH:
        return _read_publish(first, body, version)
    if first & 0x0F != (2 if kind in (Kind.PUBREL, Kind.SUBSCRIBE, Kind.UNSUBSCRIBE) else 0):
        raise MqttError(f"packet type {kind} has wrong flags")
    read = READERS.get(kind)
    if read is None:
        raise MqttError(f"packet type {kind} does not exist")
    return read(kind, body, version)


def _read_publish(first: int, body: bytes, version: int) -> Publish:
    qos = first >> 1 & 3
    if qos == 3:
        raise MqttError("a PUBLISH has QoS 3")
    end = len(body)
    topic, at = read_text(body, 0, end)
    packet_id = 0
    if qos:
        packet_id, at = _read_id(body, at)
    elif first & 8:
        raise MqttError("a PUBLISH of QoS 0 is marked as a duplicate")
    properties = NONE
    if version == V5:
        properties, at = read_properties(body, at, end, Kind.PUBLISH)
    return Publish(topic, body[at:], qos, bool(first & 1), bool(first & 8), packet_id, properties)


def _read_id(body: bytes, at: int) -> tuple[int, int]:
    if at + 2 > len(body):
        raise MqttError(SHORT)
    packet_id = body[at] << 8 | body[at + 1]
    if not packet_id:
        raise MqttError("a packet identifier is 0", Reason.PROTOCOL_ERROR)
    return packet_id, at + 2


def _read_connect(_: int, body: bytes, __: int) -> Connect:
    end = len(body)
    name, at = read_binary(body, 0, end)
    if at + 4 > end:
        raise MqttError(SHORT)
    version, flags, keepalive = body[at], body[at + 1], body[at + 2] << 8 | body[at + 3]
    if name != b"MQTT" or version not in (V4, V5):
        if name not in (b"MQTT", b"MQIsdp"):
            raise MqttError("it speaks something else; MQTT 3.1.1 and 5 are understood")
        words = "MQTT 3.1" if version == 3 else f"version {version}"
        raise MqttError(f"it speaks {words}; MQTT 3.1.1 and 5 are understood", Reason.UNSUPPORTED_VERSION)
    will_qos = flags >> 3 & 3
    if flags & 1 or will_qos == 3 or (flags & 0x38 and not flags & 4):
        raise MqttError(f"the flags of CONNECT can't be 0x{flags:02x}")
    if version == V4 and flags & 0xC0 == 0x40:
        raise MqttError("CONNECT has a password without a username")
    properties, at = read_properties(body, at + 4, end, Kind.CONNECT) if version == V5 else (NONE, at + 4)
    connect = Connect("", version, bool(flags & 2), keepalive, properties=properties)
    connect.clientid, at = read_text(body, at, end)
    if flags & 4:
        will_properties, at = read_properties(body, at, end, WILL) if version == V5 else (NONE, at)
        topic, at = read_text(body, at, end)
        payload, at = read_binary(body, at, end)
        connect.will = Will(topic, payload, will_qos, bool(flags & 0x20), will_properties)
    if flags & 0x80:
        connect.username, at = read_text(body, at, end)
    if flags & 0x40:
        connect.password, at = read_binary(body, at, end)
    _check_end(at, end)
    return connect


def _read_connack(_: int, body: bytes, version: int) -> ConnAck:
    if len(body) < 2 or body[0] > 1:
        raise MqttError("a CONNACK is wrong")
    properties, at = _rest(body, 2, version, Kind.CONNACK)
    _check_end(at, len(body))
    return ConnAck(body[1], bool(body[0]), properties)


def _rest(body: bytes, at: int, version: int, kind: int) -> tuple[Properties, int]:
    return read_properties(body, at, len(body), kind) if version == V5 else (NONE, at)


def _read_ack(kind: int, body: bytes, version: int) -> Ack:
    packet_id, at = _read_id(body, 0)
    ack = Ack(kind, packet_id)
    end = len(body)
    if version == V5 and at < end:
        ack.code = body[at]
        at += 1
        if at < end:
            ack.properties, at = read_properties(body, at, end, kind)
    _check_end(at, end)
    return ack


def _read_subscribe(_: int, body: bytes, version: int) -> Subscribe:
    packet_id, at = _read_id(body, 0)
    properties, at = _rest(body, at, version, Kind.SUBSCRIBE)
    end = len(body)
    filters: list[Subscription] = []
    while at < end:
        topic, at = read_text(body, at, end)
        if at >= end:
            raise MqttError(SHORT)
        options = body[at]
        at += 1
        qos, handling = options & 3, options >> 4 & 3
        if qos == 3 or handling == 3 or options & (0xC0 if version == V5 else 0xFC):
            raise MqttError(f"the options of a subscription can't be 0x{options:02x}")
        filters.append(Subscription(topic, qos, bool(options & 4), bool(options & 8), handling))
        _check_count(len(filters))
    if not filters:
        raise MqttError("a SUBSCRIBE has no topic filter", Reason.PROTOCOL_ERROR)
    return Subscribe(packet_id, filters, properties)


def _read_unsubscribe(_: int, body: bytes, version: int) -> Unsubscribe:
    packet_id, at = _read_id(body, 0)
    properties, at = _rest(body, at, version, Kind.UNSUBSCRIBE)
    topics: list[str] = []
    while at < len(body):
        topic, at = read_text(body, at, len(body))
        topics.append(topic)
        _check_count(len(topics))
    if not topics:
        raise MqttError("an UNSUBSCRIBE has no topic filter", Reason.PROTOCOL_ERROR)
    return Unsubscribe(packet_id, topics, properties)


def _check_count(number: int) -> None:
    if number > FILTERS:
        raise MqttError(f"a packet has more than {FILTERS} topic filters", Reason.QUOTA)


def _read_codes(kind: int, body: bytes, version: int) -> SubAck | UnsubAck:
    packet_id, at = _read_id(body, 0)
    properties, at = _rest(body, at, version, kind)
    if kind == Kind.UNSUBACK and version < V5:
        _check_end(at, len(body))  # it has no codes before MQTT 5
    return (SubAck if kind == Kind.SUBACK else UnsubAck)(packet_id, list(body[at:]), properties)


def _read_ping(kind: int, body: bytes, _: int) -> Ping:
    _check_end(0, len(body))
    return Ping(kind)


def _read_last(kind: int, body: bytes, version: int) -> Disconnect | Auth:
    if version != V5 and (kind == Kind.AUTH or body):
        raise MqttError("MQTT 3.1.1 has no such packet")
    code, properties, at = 0, NONE, 0
    if body:
        code, at = body[0], 1
        if len(body) > 1:
            properties, at = read_properties(body, 1, len(body), kind)
    _check_end(at, len(body))
    return (Auth if kind == Kind.AUTH else Disconnect)(code, properties)


def _check_end(at: int, end: int) -> None:
    if at != end:
        raise MqttError(f"a packet has {end - at} bytes too many")


READERS: Final[dict[int, Callable[[int, bytes, int], Packet]]] = {
    Kind.CONNECT: _read_connect,
    Kind.CONNACK: _read_connack,
    **dict.fromkeys((Kind.PUBACK, Kind.PUBREC, Kind.PUBREL, Kind.PUBCOMP), _read_ack),
    Kind.SUBSCRIBE: _read_subscribe,
    Kind.SUBACK: _read_codes,
    Kind.UNSUBSCRIBE: _read_unsubscribe,
    Kind.UNSUBACK: _read_codes,
    Kind.PINGREQ: _read_ping,
    Kind.PINGRESP: _read_ping,
    Kind.DISCONNECT: _read_last,
    Kind.AUTH: _read_last,
}


def acknowledge(kind: int, packet_id: int) -> bytes:
    """Return the acknowledgement of a success, which is the same in both versions."""
    return ACKS[kind] + packet_id.to_bytes(2, "big")


def publish_head(
    topic: str, size: int, version: int, *, flags: int = 0, packet_id: int = 0, properties: Properties = NONE
) -> bytes:
    """Return what stands before a payload of *size* bytes; *flags* are duplicate, QoS and retain."""
    name = topic.encode()
    middle = len(name).to_bytes(2, "big") + name
    if packet_id:
        middle += packet_id.to_bytes(2, "big")
    if version == V5:
        middle += encode_properties(properties)
    return bytes((0x30 | flags,)) + encode_varint(len(middle) + size) + middle


def encode(packet: Packet, version: int) -> bytes:
    """Write *packet*."""
    if isinstance(packet, Publish):
        flags = packet.duplicate << 3 | packet.qos << 1 | packet.retain
        head = publish_head(
            packet.topic,
            len(packet.payload),
            version,
            flags=flags,
            packet_id=packet.packet_id,
            properties=packet.properties,
        )
        return head + packet.payload
    kind, body = _body_of(packet, version)
    flags = 2 if kind in (Kind.PUBREL, Kind.SUBSCRIBE, Kind.UNSUBSCRIBE) else 0
    return bytes((kind << 4 | flags,)) + encode_varint(len(body)) + body


def _body_of(packet: Any, version: int) -> tuple[int, bytes]:  # noqa: C901, PLR0911 - a case for each type
    rest = encode_properties(packet.properties) if version == V5 and not isinstance(packet, Ping) else b""
    match packet:
        case Connect():
            return Kind.CONNECT, _connect_body(packet)
        case ConnAck(code, present):
            return Kind.CONNACK, bytes((present, code)) + rest
        case Ack(kind, packet_id, code):
            number = packet_id.to_bytes(2, "big")
            if version != V5 or (not code and not packet.properties):
                return kind, number
            return kind, number + bytes((code,)) + rest
        case Subscribe(packet_id, filters):
            return Kind.SUBSCRIBE, packet_id.to_bytes(2, "big") + rest + b"".join(map(_one_filter, filters))
        case SubAck(packet_id, codes):
            return Kind.SUBACK, packet_id.to_bytes(2, "big") + rest + bytes(codes)
        case Unsubscribe(packet_id, topics):
            return Kind.UNSUBSCRIBE, packet_id.to_bytes(2, "big") + rest + b"".join(map(_text, topics))
        case UnsubAck(packet_id, codes):
            return Kind.UNSUBACK, packet_id.to_bytes(2, "big") + rest + bytes(codes if version == V5 else ())
        case Ping(kind):
            return kind, b""
        case _:
            kind = Kind.AUTH if isinstance(packet, Auth) else Kind.DISCONNECT
            if version != V5 or (not packet.code and not packet.properties):
                return kind, b""
            return kind, bytes((packet.code,)) + rest


def _text(text: str) -> bytes:
    raw = text.encode()
    return len(raw).to_bytes(2, "big") + raw


def _one_filter(one: Subscription) -> bytes:
    options = one.qos | one.no_local << 2 | one.as_published << 3 | one.handling << 4
    return _text(one.topic) + bytes((options,))


def _connect_body(packet: Connect) -> bytes:
    is_5, will = packet.version == V5, packet.will
    flags = packet.clean_start << 1 | (packet.username is not None) << 7 | (packet.password is not None) << 6
    if will is not None:
        flags |= 4 | will.qos << 3 | will.retain << 5
    parts = [b"\x00\x04MQTT", bytes((packet.version, flags)), packet.keepalive.to_bytes(2, "big")]
    if is_5:
        parts.append(encode_properties(packet.properties))
    parts.append(_text(packet.clientid))
    if will is not None:
        parts += [encode_properties(will.properties)] if is_5 else []
        parts += [_text(will.topic), len(will.payload).to_bytes(2, "big"), will.payload]
    if packet.username is not None:
        parts.append(_text(packet.username))
    if packet.password is not None:
        parts += [len(packet.password).to_bytes(2, "big"), packet.password]
    return b"".join(parts)
