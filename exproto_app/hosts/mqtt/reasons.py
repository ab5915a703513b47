"""Reason codes, as MQTT 5 has them, in words and by what follows from them (2.4)."""

from __future__ import annotations

from typing import Final

__all__ = [
    "DENIED",
    "KICKED",
    "NOT_AUTHORIZED",
    "NO_MQTT5",
    "NO_MQTT311",
    "OLD_CODES",
    "SILENCE",
    "TAKEN_OVER",
    "TRIED",
    "UNSUPPORTED_VERSION",
    "WRONG_PACKET",
    "in_words",
]

WORDS: Final = {
    0x00: "normal disconnection",
    0x04: "disconnect with will message",
    0x10: "no matching subscribers",
    0x11: "no subscription existed",
    0x80: "unspecified error",
    0x81: "malformed packet",
    0x82: "protocol error",
    0x83: "implementation specific error",
    0x84: "unsupported protocol version",
    0x85: "client identifier not valid",
    0x86: "bad user name or password",
    0x87: "not authorized",
    0x88: "server unavailable",
    0x89: "server busy",
    0x8A: "banned",
    0x8B: "server shutting down",
    0x8C: "bad authentication method",
    0x8D: "keep alive timeout",
    0x8E: "session taken over",
    0x8F: "topic filter invalid",
    0x90: "topic name invalid",
    0x91: "packet identifier in use",
    0x92: "packet identifier not found",
    0x93: "receive maximum exceeded",
    0x94: "topic alias invalid",
    0x95: "packet too large",
    0x96: "message rate too high",
    0x97: "quota exceeded",
    0x98: "administrative action",
    0x99: "payload format invalid",
    0x9A: "retain not supported",
    0x9B: "QoS not supported",
    0x9C: "use another server",
    0x9D: "server moved",
    0x9E: "shared subscriptions not supported",
    0x9F: "connection rate exceeded",
    0xA0: "maximum connect time",
    0xA1: "subscription identifiers not supported",
    0xA2: "wildcard subscriptions not supported",
}

NOT_AUTHORIZED: Final = 0x87
"""In a DISCONNECT: of the client, or of one packet, as EMQX's `deny_action = disconnect` has it."""

TAKEN_OVER: Final = 0x8E
UNSUPPORTED_VERSION: Final = 0x84

TRIED: Final = 0x100
"""No code of a packet: what comes of a CONNECT that only tried a version of MQTT."""

SILENCE: Final = 0x83
"""Stands for the end of a connection that a broker of MQTT 3.1.1 can't give a reason for."""

OLD_CODES: Final = {1: 0x84, 2: 0x85, 3: 0x88, 4: 0x86, 5: 0x87}
"""What the codes of MQTT 3.1.1's CONNACK are in MQTT 5 (3.1.1: 3.2.2.3)."""

KICKED: Final = frozenset({0x87, 0x8A, 0x98})
"""Codes of a DISCONNECT by which the broker means this client, not this connection."""

DENIED: Final = frozenset({0x81, 0x82, 0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C, 0x90, 0x95, 0x99, 0x9A, 0x9B})
"""Codes of a CONNACK that will be the same the next time; the others are tried again."""

WRONG_PACKET: Final = frozenset(
    {0x81, 0x82, 0x83, 0x8F, 0x90, 0x93, 0x94, 0x95, 0x99, 0x9A, 0x9B, 0x9E, 0xA1, 0xA2}
)
"""Codes of a DISCONNECT by which the broker means a packet of ours."""

NO_MQTT5: Final = (
    "the broker doesn't speak MQTT 5; take one that does, such as Mosquitto 1.6 or EMQX 4, or newer, or "
    "allow MQTT 3.1.1 with --mqtt-version auto"
)
NO_MQTT311: Final = "the broker doesn't speak MQTT 3.1.1"


def in_words(code: int, text: str | None = None) -> str:
    """Return *code* in words, with the broker's own *text*."""
    words = f"{WORDS.get(code, 'unknown reason')} (0x{code:02X})"
    return f"{words}: {text}" if text else words
