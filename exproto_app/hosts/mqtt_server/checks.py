"""What names and topics of MQTT clients have to be like; `MqttError` where they aren't."""

from __future__ import annotations

from typing import Final

from ...topics import check_topic
from .bounds import LEVELS
from .reasons import MqttError, Reason

__all__ = ["check_levels", "check_message_topic", "check_name", "shortened"]

LONGEST: Final = 1_024
"""Bytes of a clientid, and of a username."""

SHOWN: Final = 200
"""Characters of an error that a client has caused: a topic in it may be long."""


def check_message_topic(topic: str) -> None:
    """Have the rules of `Connection.publish` count for clients too. Raises `MqttError`."""
    try:
        check_levels(topic)
        check_topic(topic)
    except ValueError as error:
        raise MqttError(shortened(error), Reason.TOPIC_INVALID) from None


def shortened(error: Exception) -> str:
    """Return the text of *error*, not more than fits into a line of the log."""
    text = str(error)
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}…{text[-SHOWN // 2 :]}"


def check_levels(topic: str) -> None:
    """Refuse a topic or filter of too many levels: each costs a node of a tree. Raises `ValueError`."""
    levels = topic.count("/") + 1
    if levels > LEVELS:
        raise ValueError(f"a topic has {levels} levels, limit is {LEVELS}")


def check_name(what: str, name: str) -> None:
    """Refuse names that would forge log lines or widen topics that are made of them. Raises `MqttError`."""
    size = len(name.encode())
    if size > LONGEST:
        raise MqttError(f"{what} has {size} bytes, limit is {LONGEST}", Reason.CLIENTID_INVALID)
    if not name.isprintable() or "+" in name or "#" in name or name.startswith("$"):
        words = "it may not have '+', '#' or control characters, nor begin with '$'"
        shown = name if len(name) <= SHOWN else f"{name[:SHOWN]}…"
        raise MqttError(f"{what} {shown!r} is invalid: {words}", Reason.CLIENTID_INVALID)
