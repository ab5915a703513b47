"""How the log names what a connection deals with."""

from __future__ import annotations

from ..commands import Publish, Register, Subscribe, Unsubscribe

__all__ = ["described", "name_of", "object_of", "one_word", "shown"]

LONGEST = 64
"""Characters of a clientid in the log."""

SHOWN = 256
"""Bytes of a bad frame that the log shows."""


def one_word(text: str) -> str:
    """Return *text* so that it can neither end a line of the log nor fill it."""
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}…"
    if text.isprintable() and " " not in text:
        return text
    return text.encode("unicode_escape").decode().replace(" ", "\\x20")


def shown(data: bytes) -> str:
    """Return *data* as hex, cut where it is long."""
    return data.hex() if len(data) <= SHOWN else f"{data[:SHOWN].hex()}…"


def name_of(command: object) -> str:
    """Return the verb that issued *command*."""
    return command if isinstance(command, str) else type(command).__name__.lower()


def object_of(command: object) -> str:
    """Return what *command* is about."""
    return command.client.clientid if isinstance(command, Register) else getattr(command, "topic", "")


def described(command: object) -> str:
    """Return *command* with what it is about: `publish to 'a/b'`."""
    match command:
        case Publish(topic) | Subscribe(topic):
            return f"{name_of(command)} to {topic!r}"
        case Unsubscribe(topic):
            return f"unsubscribe from {topic!r}"
        case Register(client):
            return f"register as {client.clientid!r}"
    return name_of(command)
