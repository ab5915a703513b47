"""MQTT 5 packets as sessions need them, around the codec."""

from __future__ import annotations

import logging
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
from .reasons import in_words

__all__ = [
    "CONNACK",
    "DISCONNECT",
    "IDS",
    "PING",
    "PINGRESP",
    "PUBACK",
    "PUBCOMP",
    "PUBREC",
    "PUBREL",
    "QOS",
    "ProtocolError",
    "body_of",
    "parsed",
    "publish_packet",
    "reason_of",
    "subscribe_packet",
]

log = logging.getLogger("exproto_app")

QOS: Final = (QoS.AT_MOST_ONCE, QoS.AT_LEAST_ONCE, QoS.EXACTLY_ONCE)
CONNACK, PUBACK, PUBREC, PUBREL, PUBCOMP, PINGRESP, DISCONNECT = 2, 4, 5, 6, 7, 13, 14
IDS: Final = 65_535
PING: Final = bytes(PingReqPacket().write())


class ProtocolError(Exception):
    """The broker sent what MQTT 5 doesn't allow; *code* is what it is told."""

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
        words = f"it sent {bytes(packet[:32])!r}, which is no packet: {error}"
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


def publish_packet(command: Publish, packet_id: int, *, duplicate: bool) -> bytes:
    """Return *command* as a packet; *packet_id* counts with QoS 1 and 2 only."""
    return PublishPacket(
        command.topic,
        command.payload,
        qos=QOS[command.qos],
        retain=command.retain,
        packet_id=packet_id if command.qos else None,
        duplicate=duplicate,
    ).write()


def subscribe_packet(command: Subscribe, packet_id: int, identifier: int, *, retained: bool) -> bytes:
    """Return *command* as a packet, with the subscription's *identifier* unless it is 0."""
    wanted = TopicFilter(
        command.topic,
        max_qos=QOS[command.qos],
        retain_as_published=False,
        retain_handling=RetainHandling.SEND_ALWAYS if retained else RetainHandling.SEND_NEVER,
    )
    return SubscribePacket(packet_id, [wanted], subscription_id=identifier or None).write()
