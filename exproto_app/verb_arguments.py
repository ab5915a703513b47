"""What verbs are given: checked, and made into commands for the broker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from .commands import Outcome, Publish, Register
from .errors import InvalidNameError
from .models import ClientInfo, Message
from .names import HARMFUL, INVISIBLE, LONGEST, shortened
from .properties import check_properties
from .topics import check_qos, check_topic

__all__ = ["check_bytes", "check_payload", "outcomes_of", "publishes", "registration"]


def check_bytes(what: str, value: object) -> None:
    """Refuse *value*, which *what* names, unless it is bytes."""
    if not isinstance(value, bytes):
        hint = "; encode it first" if isinstance(value, str) else "; make it bytes first"
        if isinstance(value, int | float):
            hint = "; make it bytes first, as in str(…).encode()"
        raise TypeError(f"{what} is {type(value).__name__}, not bytes{hint}")


def check_payload(payload: object) -> None:
    """Refuse a payload that isn't bytes."""
    check_bytes("the payload", payload)


def publishes(
    messages: Iterable[Message | tuple[str, bytes]], qos: int, *, retain: bool
) -> Sequence[Publish]:
    """Return what publishes *messages*, all of which are checked."""
    check_qos(qos)
    commands: list[Publish] = []
    for message in messages:
        match message:
            case Message():
                check_properties(message.properties)
                check_qos(message.qos)
                command = Publish(
                    message.topic, message.payload, message.qos, message.retain, message.properties
                )
            case (topic, payload):
                command = Publish(topic, payload, qos, retain)
            case _:
                words = f"publish_many takes Messages, or pairs of topic and payload, not {message!r}"
                raise TypeError(words)
        check_topic(command.topic)
        check_payload(command.payload)
        commands.append(command)
    return commands


def outcomes_of(after: object) -> Sequence[Outcome[Any]]:
    """Return the outcomes that a send is to wait for."""
    if isinstance(after, Outcome):
        return (after,)
    outcomes = tuple(after) if isinstance(after, Iterable) else (after,)
    for outcome in outcomes:
        if not isinstance(outcome, Outcome):
            words = "after= takes what a verb returned, such as conn.publish(…), not awaited"
            raise TypeError(f"{words}; this is {type(outcome).__name__}")
    return outcomes


def registration(  # noqa: PLR0917 - as `register` has them, and the protocol
    protocol: str,
    clientid: ClientInfo | str,
    password: str | None,
    will: Message | None,
    session_expiry: int,
    fields: dict[str, Any],
) -> Register:
    """Return the command that registers a client with these facts, once they are checked."""
    if isinstance(clientid, ClientInfo):
        if fields:
            raise TypeError(f"a ClientInfo is given, so {', '.join(fields)} belong in it")
        client = clientid
    else:
        client = ClientInfo(clientid, **fields)
    _check_client(client)
    if password is not None and not isinstance(password, str):
        raise TypeError(f"password is {type(password).__name__}, not str")
    if password is not None and not client.username:
        client = attrs.evolve(client, username=client.clientid)
    if not client.proto_name:
        client = attrs.evolve(client, proto_name=protocol)
    _check_will(will)
    _check_expiry(session_expiry)
    return Register(client, password, will, session_expiry)


def _check_client(client: ClientInfo) -> None:
    for field in ("clientid", "username", "proto_name", "proto_ver", "mountpoint"):
        text = getattr(client, field)
        if not isinstance(text, str):
            raise TypeError(f"{field} is {type(text).__name__}, not str")
        if HARMFUL.search(text):
            raise InvalidNameError(f"{field} {shortened(text)} {INVISIBLE}")
        if len(text.encode()) > LONGEST:
            raise InvalidNameError(f"{field} has {len(text.encode())} bytes, limit is {LONGEST}")
    if not client.clientid:
        raise InvalidNameError("clientid is empty; a device needs a name of its own")
    if client.mountpoint:
        check_topic(client.mountpoint)
    if isinstance(client.keepalive, bool) or not isinstance(client.keepalive, int):
        raise TypeError(f"keepalive is {type(client.keepalive).__name__}, not int")
    if not 0 <= client.keepalive <= 65_535:
        raise ValueError(f"keepalive is {client.keepalive}; it must be from 0 to 65535 seconds")


def _check_will(will: object) -> None:
    if will is None:
        return
    if not isinstance(will, Message):
        raise TypeError(f"will is {type(will).__name__}, not Message; write Message(topic, payload)")
    check_topic(will.topic)
    check_payload(will.payload)
    check_qos(will.qos)
    check_properties(will.properties)


def _check_expiry(seconds: object) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, int):
        raise TypeError(f"session_expiry is {type(seconds).__name__}, not int")
    if not 0 <= seconds <= 0xFFFFFFFF:
        raise ValueError(f"session_expiry is {seconds}; it must be from 0 to 4294967295 seconds")
