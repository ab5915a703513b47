"""The reason codes that the MQTT server sends, and the error that carries one (MQTT 5, 2.4)."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

__all__ = ["MqttError", "Reason", "connack_code"]


class Reason(IntEnum):
    """What a packet was answered with, or why a connection was ended."""

    SUCCESS = 0x00
    NO_SUBSCRIPTION = 0x11
    WITH_WILL = 0x04
    MALFORMED = 0x81
    PROTOCOL_ERROR = 0x82
    UNSUPPORTED_VERSION = 0x84
    CLIENTID_INVALID = 0x85
    BAD_LOGIN = 0x86
    NOT_AUTHORIZED = 0x87
    BUSY = 0x89
    SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION = 0x8C
    SILENT = 0x8D
    TAKEN_OVER = 0x8E
    FILTER_INVALID = 0x8F
    TOPIC_INVALID = 0x90
    UNKNOWN_ID = 0x92
    RECEIVE_MAXIMUM = 0x93
    ALIAS_INVALID = 0x94
    TOO_LARGE = 0x95
    QUOTA = 0x97
    NO_SUBSCRIPTION_IDS = 0xA1


class MqttError(Exception):
    """A client broke the rules or exceeded a limit: *code* is what it is told, the text is for the log."""

    def __init__(self, words: str, code: Reason = Reason.MALFORMED) -> None:
        super().__init__(words)
        self.code = code


OLD_CODES: Final = {
    Reason.SUCCESS: 0,
    Reason.UNSUPPORTED_VERSION: 1,
    Reason.CLIENTID_INVALID: 2,
    Reason.BUSY: 3,
    Reason.QUOTA: 3,
    Reason.SHUTTING_DOWN: 3,
    Reason.BAD_LOGIN: 4,
    Reason.NOT_AUTHORIZED: 5,
}


def connack_code(reason: Reason) -> int | None:
    """Return the CONNACK code of MQTT 3.1.1 for *reason*; None where it closes without a CONNACK."""
    return OLD_CODES.get(reason)
