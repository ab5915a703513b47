"""MQTT 5 packets as sessions need them, around the codec."""

from __future__ import annotations

import logging
import struct
from typing import Any, Final

from mqtt5 import (
    DisconnectReasonCode,
    PingReqPacket,
    PublishPacket,
    QoS,
    RetainHandling,
    SubscribePacket,
    TopicFilter,
    read,
)

from ...commands import Publish, Subscribe
from ...models import PLAIN, Message, Properties
from .reasons import in_words

__all__ = [
    "CONNACK",
    "DISCONNECT",
    "IDS",
    "PING",
    "PINGRESP",
    "PUBACK",
    "PUBCOMP",
    "PUBLISH",
    "PUBREC",
    "PUBREL",
    "QOS",
    "ProtocolError",
    "arguments",
    "body_of",
    "message_of",
    "parsed",
    "plain_publish",
    "prefixed",
    "publish_packet",
    "reason_of",
    "subscribe_packet",
]

log = logging.getLogger("exproto_app")

QOS: Final = (QoS.AT_MOST_ONCE, QoS.AT_LEAST_ONCE, QoS.EXACTLY_ONCE)
CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, PINGRESP, DISCONNECT = 2, 3, 4, 5, 6, 7, 13, 14
IDS: Final = 65_535
PING: Final = bytes(PingReqPacket().write())

_HEAD: Final = struct.Struct(">BB").pack
_SIZE: Final = struct.Struct(">H").pack
_BEHIND_TOPIC: Final = struct.Struct(">HB").pack


class ProtocolError(Exception):
    """The broker sent what MQTT doesn't allow; *code* is what it is told."""

    def __init__(self, words: str, code: DisconnectReasonCode = DisconnectReasonCode.PROTOCOL_ERROR) -> None:
        super().__init__(words)
        self.code = code


def body_of(data: bytes, at: int) -> tuple[int, int]:
    """Return where the body of a packet begins and how long it is (1.5.5); 0 while that can't be told.

    *at* is where its length stands in *data*. Raises `ProtocolError`.
    """
    length = shift = 0
    for position, byte in enumerate(data[at : at + 4], at + 1):
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return position, length
        shift += 7
    if shift == 28:
        raise ProtocolError("it sent a packet without an end", DisconnectReasonCode.MALFORMED_PACKET)
    return 0, 0


def parsed(packet: memoryview) -> Any:
    """Return what the codec makes of a whole *packet*. Raises `ProtocolError`."""
    try:
        return read(packet)[0]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - the codec panics at text that isn't UTF-8
        words = f"it sent {bytes(packet[:32])!r}, which is not a packet: {error}"
        raise ProtocolError(words, DisconnectReasonCode.MALFORMED_PACKET) from None


def reason_of(packet: memoryview, body: memoryview, at: int) -> tuple[int, str]:
    """Return the reason code at *at* in *body*, and it in words; brokers use codes that the codec refuses."""
    if len(body) <= at:
        return 0, ""
    code = body[at]
    text = None
    if len(body) > at + 1:
        try:
            text = read(packet)[0].reason_str  # type: ignore[union-attr] # each packet with a reason has it
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - its text is lost then, the code is what counts
            log.debug("mqtt ! unreadable reason in %r", bytes(packet))
    return code, in_words(code, text)


def prefixed(text: str) -> bytes:
    """Return *text* with its length in front (1.5.4). Raises `struct.error` where it is too long."""
    data = text.encode()
    return _SIZE(len(data)) + data


def plain_publish(topic: bytes, payload: bytes, flags: int, packet_id: int) -> bytes:
    """Return a PUBLISH without properties (3.3): the codec takes several times as long for these, the most.

    *topic* is `prefixed`; *flags* are its QoS and whether it is to be retained, as bits of the first byte.
    """
    behind = _BEHIND_TOPIC(packet_id, 0) if packet_id else b"\0"
    size = len(topic) + len(behind) + len(payload)
    if size < 128:
        return b"".join((_HEAD(0x30 | flags, size), topic, behind, payload))
    head = bytearray((0x30 | flags,))
    while size > 127:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return b"".join((head, topic, behind, payload))


def publish_packet(command: Publish, packet_id: int, *, duplicate: bool) -> bytes:
    """Return *command* as a packet; *packet_id* counts with QoS 1 and 2 only."""
    properties = command.properties
    return PublishPacket(
        command.topic,
        command.payload,
        qos=QOS[command.qos],
        retain=command.retain,
        packet_id=packet_id if command.qos else None,
        duplicate=duplicate,
        **({} if properties is PLAIN else arguments(properties)),
    ).write()


def arguments(properties: Properties) -> dict[str, Any]:
    """Return *properties* as the codec takes them, those of a PUBLISH or a will."""
    return {
        "payload_format_indicator": int(properties.utf8),
        "message_expiry_interval": properties.expiry,
        "content_type": properties.content_type or None,
        "response_topic": properties.response_topic or None,
        "correlation_data": properties.correlation_data or None,
        "user_properties": list(properties.user_properties),
    }


def message_of(packet: PublishPacket, qos: int) -> Message:
    """Return the message that came in *packet*."""
    if (
        packet.message_expiry_interval is None
        and not packet.user_properties
        and packet.response_topic is None
        and packet.correlation_data is None
        and packet.content_type is None
        and not packet.payload_format_indicator
    ):
        return Message(packet.topic, packet.payload, qos, packet.retain)
    properties = Properties(
        packet.message_expiry_interval,
        packet.content_type or "",
        packet.response_topic or "",
        packet.correlation_data or b"",
        tuple(packet.user_properties),
        bool(packet.payload_format_indicator),
    )
    return Message(packet.topic, packet.payload, qos, packet.retain, properties=properties)


def subscribe_packet(command: Subscribe, packet_id: int, identifier: int, *, retained: bool) -> bytes:
    """Return *command* as a packet, with the subscription's *identifier* unless it is 0."""
    wanted = TopicFilter(
        command.topic,
        max_qos=QOS[command.qos],
        retain_as_published=False,
        retain_handling=RetainHandling.SEND_ALWAYS if retained else RetainHandling.SEND_NEVER,
    )
    return SubscribePacket(packet_id, [wanted], subscription_id=identifier or None).write()
