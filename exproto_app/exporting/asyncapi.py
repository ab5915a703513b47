"""AsyncAPI 3.0: the topics of an app, and what is in their messages.

The specification is at https://www.asyncapi.com/docs/reference/specification/v3.0.0. What the app takes is
known from its handlers; what it publishes only from messages that it published.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

from ..app import App
from ..router import Router

__all__ = ["Seen", "asyncapi"]

CLIENTID: Final = "clientid"
USERNAME: Final = "username"
ENOUGH: Final = 1_000
"""Messages of a channel that are looked at."""

EXAMPLE: Final = 200
"""Characters of a payload that is shown as an example."""


@attrs.frozen
class Seen:
    """A message that the app published, for the client of that *clientid* and *username*, if for any."""

    topic: str
    payload: bytes
    protocol: str
    clientid: str = ""
    username: str = ""


def asyncapi(app: App[Any, Any], title: str, version: str, seen: Iterable[Seen] = ()) -> dict[str, Any]:
    """Return the document; *title* and *version* are the API's own, *seen* says what the app publishes."""
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for router in app.protocols.values():
        for topic, handler in _taken(router):
            address = _address(topic)
            name = _key(address)
            channels.setdefault(name, _channel(address, {"command": {"payload": {}}}))
            operations[f"{_key(router.name)}_receives_{name}"] = {
                "action": "receive",
                "channel": {"$ref": f"#/channels/{name}"},
                "title": f"{handler} of {router.name}",
            }
    for address, messages in _published(seen).items():
        name = _key(address)
        message = _message([message.payload for message in messages])
        channel = channels.setdefault(name, _channel(address, {}))
        channel["messages"]["told"] = message
        for protocol in sorted({message.protocol for message in messages if message.protocol}) or ["app"]:
            operations[f"{_key(protocol)}_sends_{name}"] = {
                "action": "send",
                "channel": {"$ref": f"#/channels/{name}"},
                "title": f"what {protocol} publishes",
            }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": title, "version": version},
        "channels": dict(sorted(channels.items())),
        "operations": dict(sorted(operations.items())),
    }


def _taken(router: Router[Any, Any]) -> Iterator[tuple[str, str]]:
    """Yield the filters of messages that *router* takes, each with its handler's name."""
    for topic, _, handler in router.routes.topics:
        yield topic, handler.name


def _published(seen: Iterable[Seen]) -> dict[str, list[Seen]]:
    """Return the messages by the address of their channel: a client's own names are parameters of it."""
    found: dict[str, list[Seen]] = {}
    for message in seen:
        levels = message.topic.split("/")
        names = {message.username: USERNAME, message.clientid: CLIENTID}
        address = "/".join(f"{{{names[level]}}}" if level and level in names else level for level in levels)
        messages = found.setdefault(address, [])
        if len(messages) < ENOUGH:
            messages.append(message)
    return found


def _address(topic: str) -> str:
    """Return a filter as the address of a channel: the first `+` of it is taken for the client's name."""
    numbers = iter(("", *map(str, range(2, 100))))
    return "/".join(
        f"{{{CLIENTID}{next(numbers)}}}" if level == "+" else "{rest}" if level == "#" else level
        for level in topic.split("/")
    )


def _channel(address: str, messages: Mapping[str, Any]) -> dict[str, Any]:
    channel: dict[str, Any] = {"address": address, "messages": dict(messages)}
    names = re.findall(r"\{(\w+)\}", address)
    if names:
        channel["parameters"] = {name: {} for name in names}
    return channel


def _message(payloads: Sequence[bytes]) -> dict[str, Any]:
    """Return what is common to *payloads*."""
    try:
        values = [json.loads(payload) for payload in payloads]
    except ValueError:  # bytes, or a text of their own
        return {"payload": {}, "examples": [{"summary": _shown(payloads[0])}]}
    return {"contentType": "application/json", "payload": _schema(values)}


def _schema(values: Sequence[Any]) -> dict[str, Any]:
    """Return a JSON schema that all of *values* have."""
    types = sorted({_type(value) for value in values})
    schema: dict[str, Any] = {"type": types[0] if len(types) == 1 else types}
    objects = [value for value in values if isinstance(value, dict)]
    if objects:
        names = list(dict.fromkeys(name for value in objects for name in value))
        schema["properties"] = {
            name: _schema([value[name] for value in objects if name in value]) for name in names
        }
        required = [name for name in names if all(name in value for value in objects)]
        if required:
            schema["required"] = required
    items = [item for value in values if isinstance(value, list) for item in value]
    if items:
        schema["items"] = _schema(items)
    return schema


def _type(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def _shown(payload: bytes) -> str:
    text = ascii(payload)
    return text if len(text) <= EXAMPLE else f"{text[:EXAMPLE]}…"


def _key(text: str) -> str:
    """Return *text* as a name in the document: letters, digits and underscores."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_") or "root"
