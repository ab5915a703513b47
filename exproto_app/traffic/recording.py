"""The format of recordings: what happened on connections, as JSON lines.

The first line is `{"recording": 1, "part": N, "started": TIME, "by": PROGRAM}`: the format's version, which
file of the recording it is, when that began (RFC 3339) and what made it. Each line behind it is one event:

- `at`: seconds since this file began.
- `conn`, `protocol`: which connection, and its protocol; both empty for what the app itself publishes.
- `event`: what happened, and with it

  - `opened`: `socktype`, `peer` and `local` as `HOST:PORT`; and only if it is so: `cert` with `dn` and `cn`,
    `target` and `name` (of one that was dialled), `resumed`, `late` (it was open before this file began),
    `client` (who it was by then).
  - `in`: `hex`, bytes as they came; one datagram on UDP.
  - `frame`: `hex`, `handler` (null for nobody). Not in files, for frames follow from the bytes.
  - `out`: `hex`, bytes sent, one `send` or reply.
  - `published`: `topic`, `hex` (the payload), `qos`, `retain`, and `properties` if it has any.
  - `delivered`: the same, `handler`, and how many `more` messages came with it.
  - `registered`: `client`, those fields of a `ClientInfo` that are set.
  - `subscribed`, `unsubscribed`: `topic`, and `qos`.
  - `refused`: `what` (the verb that failed), `topic` (its topic or clientid), `error` (the class), `text`.
  - `failed`: `where` (the handler, or "framing"), `text`.
  - `dropped`: `what` ("bytes", "frames" or "messages"), `count`.
  - `closed`: `reason`, `detail`. What `on_terminated` does comes behind.
  - `gap`: `count` events were not recorded, because writing was too slow.

Passwords given to `register`, and what masks match, are asterisks (2a in hex). The lines of a connection are
in order; between connections `at` tells.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Final, cast, get_args

import attrs

from .. import errors
from ..errors import CommandError, SetupError
from ..models import (
    PLAIN,
    Address,
    Certificate,
    ClientInfo,
    ConnectionInfo,
    Message,
    Properties,
    Reason,
    SockType,
)
from ..tap import (
    Closed,
    Delivered,
    Dropped,
    Event,
    Failed,
    Frame,
    Opened,
    Published,
    Received,
    Refused,
    Registered,
    Sent,
    Subscribed,
    Unsubscribed,
)

__all__ = [
    "VERSION",
    "Entry",
    "Gap",
    "Recording",
    "bytes_line",
    "bytes_lines",
    "connections",
    "event_of",
    "facts_of",
    "header",
    "line",
    "parse",
]

LATEST: Final = 1e10
"""Seconds from the beginning of a file: more than three hundred years."""

VERSION: Final = 1
"""Of the format; a reader of another version refuses."""


@attrs.define
class Gap:
    """*count* events were not recorded."""

    count: int


class RecordedError(Exception):
    """What a recording says of an exception."""


@attrs.define
class Entry:
    """One event of a recording: *at* seconds after its beginning, in line *number* of its file."""

    at: float
    conn: str
    protocol: str
    event: Event | Gap
    number: int = 0


@attrs.define
class Recording:
    """What a file tells: its entries by time, and *notes*, what a reader should know beside them.

    *started* is in seconds since 1970, *part* counts the files of one recording. *broker* False: only bytes
    are known, nothing about messages (as in a capture of packets).
    """

    entries: list[Entry] = attrs.Factory(list)
    notes: list[str] = attrs.Factory(list)
    started: float = 0.0
    part: int = 1
    broker: bool = True

    def join(self, later: Recording) -> None:
        """Take over what the file behind this one tells."""
        known = set(connections(self.entries))
        ahead = later.started - self.started
        for entry in later.entries:
            event = entry.event
            if not (isinstance(event, Opened) and event.late and entry.conn in known):
                self.entries.append(attrs.evolve(entry, at=entry.at + ahead))
        self.sort()
        self.notes += later.notes

    def sort(self) -> None:
        """Put the entries in order of time, those of one connection as they are."""
        latest: dict[str, float] = {}
        for entry in self.entries:
            entry.at = latest[entry.conn] = max(entry.at, latest.get(entry.conn, entry.at))
        self.entries.sort(key=lambda entry: entry.at)


def header(started: str, by: str, part: int = 1) -> str:
    """Return the first line."""
    return _text({"recording": VERSION, "part": part, "started": started, "by": by})


def opening(began: float, part: int = 1) -> str:
    """Return the first line of what this program records from *began* on, in seconds since 1970."""
    started = datetime.fromtimestamp(began, timezone.utc).isoformat(timespec="microseconds")
    return header(started, f"exproto-app {version('exproto-app')}", part)


def line(entry: Entry) -> str:
    """Return the line for *entry*."""
    event = entry.event
    if type(event) is Received or type(event) is Sent:
        received = type(event) is Received
        return bytes_line(entry.at, entry.conn, entry.protocol, event.data, received)[:-1]
    return _text(
        {"at": round(entry.at, 6), "conn": entry.conn, "protocol": entry.protocol, **facts_of(event)}
    )


def bytes_lines(at: float, conn: str, protocol: str, chunks: Iterable[bytes], *, received: bool) -> str:
    """Return a line for each of *chunks*, which came or were sent together; most lines are of these."""
    head = f'{{"at":{at:.6f},{_who(conn, protocol, received)}'
    return head + ('"}\n' + head).join(map(bytes.hex, chunks)) + '"}\n'


def bytes_line(at: float, conn: str, protocol: str, data: bytes, received: bool) -> str:
    """Return a line for *data*, which came or was sent alone, as most is: the hot path of recordings."""
    # Six digits, always: as many as the number has take three times as long.
    return f'{{"at":{at:.6f},{_who(conn, protocol, received)}{data.hex()}"}}\n'


@lru_cache(maxsize=4_096)
def _who(conn: str, protocol: str, received: bool) -> str:
    word = "in" if received else "out"
    return f'"conn":{json.dumps(conn)},"protocol":{json.dumps(protocol)},"event":"{word}","hex":"'


def _text(facts: dict[str, Any]) -> str:
    return json.dumps(facts, separators=(",", ":"))


def facts_of(event: Event | Gap) -> dict[str, Any]:  # noqa: C901, PLR0911, PLR0912 - one case for each event
    """Return what a line says about *event*."""
    match event:
        case Received(data):
            return {"event": "in", "hex": data.hex()}
        case Sent(data):
            return {"event": "out", "hex": data.hex()}
        case Frame(frame, handler):
            return {"event": "frame", "hex": frame.hex(), "handler": handler}
        case Published(message):
            return {"event": "published", **_message_facts(message)}
        case Delivered(message, handler, more):
            return {"event": "delivered", **_message_facts(message), "handler": handler, "more": more}
        case Opened():
            return {"event": "opened", **_opened_facts(event)}
        case Registered(client):
            return {"event": "registered", "client": _client_facts(client)}
        case Subscribed(topic, qos):
            return {"event": "subscribed", "topic": topic, "qos": qos}
        case Unsubscribed(topic):
            return {"event": "unsubscribed", "topic": topic}
        case Refused(what, topic, error, text):
            name = type(error).__name__
            return {"event": "refused", "what": what, "topic": topic, "error": name, "text": text}
        case Failed(where, _, text):
            return {"event": "failed", "where": where, "text": text}
        case Dropped(what, count):
            return {"event": "dropped", "what": what, "count": count}
        case Closed(reason, detail):
            return {"event": "closed", "reason": reason, "detail": detail}
        case Gap(count):
            return {"event": "gap", "count": count}


def _message_facts(message: Message) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "topic": message.topic,
        "hex": message.payload.hex(),
        "qos": message.qos,
        "retain": message.retain,
    }
    given = message.properties.given()
    if given:
        facts["properties"] = {
            name: value.hex() if isinstance(value, bytes) else value for name, value in given.items()
        }
    return facts


def _client_facts(client: ClientInfo) -> dict[str, Any]:
    return {name: value for name, value in attrs.asdict(client).items() if value}


def _opened_facts(opened: Opened) -> dict[str, Any]:
    info = opened.info
    facts: dict[str, Any] = {
        "socktype": info.socktype,
        "peer": str(info.peername),
        "local": str(info.sockname),
    }
    if info.target:
        facts["target"], facts["name"] = info.target, info.name
    if info.peercert is not None:
        facts["cert"] = attrs.asdict(info.peercert)
    if opened.resumed:
        facts["resumed"] = True
    if opened.late:
        facts["late"] = True
    if opened.client is not None:
        facts["client"] = _client_facts(opened.client)
    return facts


# --- reading


def parse(lines: Iterable[str], name: str) -> Recording:
    """Return the recording in *lines*, those of the file *name*. Raises `SetupError` if it isn't one.

    A last line that was cut off, as by a crash, is left out, with a note.
    """
    numbered = enumerate(lines, 1)
    _, first = next(numbered, (0, ""))
    started, part = _start(first, name)
    recording = Recording(started=started, part=part)
    for number, text in numbered:
        if not text.strip():
            continue
        try:
            facts = json.loads(text)
            entry = Entry(
                _seconds(facts["at"]), _str(facts["conn"]), _str(facts["protocol"]), event_of(facts), number
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            if isinstance(error, json.JSONDecodeError) and not text.endswith("\n"):
                recording.notes.append(f"{name}, line {number} was cut off and is skipped")
                break
            raise SetupError(
                f"{name}, line {number} is not a recorded event ({_why(error)}): {_short(text)}"
            ) from None
        recording.entries.append(entry)
        if isinstance(entry.event, Gap):
            recording.notes.append(f"{name}, line {number}: {entry.event.count} events were not recorded")
    recording.sort()
    return recording


def _start(text: str, name: str) -> tuple[float, int]:
    """Check the first line; return when the file began, and which part it is."""
    try:
        facts = json.loads(text)
        version = facts["recording"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SetupError(f"{name} is not a recording; make one with run --record FILE") from None
    if version != VERSION:
        raise SetupError(
            f"{name} is a recording of version {version!r}, this exproto-app reads version {VERSION}; "
            "use the one that made it"
        )
    try:
        return datetime.fromisoformat(facts["started"]).timestamp(), _count(facts["part"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return 0.0, 1


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]!r}"
    return "no JSON" if isinstance(error, json.JSONDecodeError) else str(error)


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= 60 else text[:60] + "…"


def event_of(facts: dict[str, Any]) -> Event | Gap:
    """Return the event of a line. Raises `ValueError`, `KeyError` or `TypeError` if it isn't one."""
    kind = facts["event"]
    make = _MAKERS.get(kind) if isinstance(kind, str) else None
    if make is None:
        raise ValueError(f"unknown event {kind!r}")
    return make(facts)


def _opened(facts: dict[str, Any]) -> Opened:
    socktype = facts["socktype"]
    if socktype not in get_args(SockType):
        raise ValueError(f"unknown socktype {socktype!r}")
    cert = (
        Certificate(**{name: _str(value) for name, value in facts["cert"].items()})
        if "cert" in facts
        else None
    )
    info = ConnectionInfo(socktype, _address(facts["peer"]), _address(facts["local"]), cert)
    if "target" in facts:
        info = attrs.evolve(info, target=_str(facts["target"]), name=_str(facts["name"]))
    client = _client(facts["client"]) if "client" in facts else None
    return Opened(info, bool(facts.get("resumed")), bool(facts.get("late")), client)


def _address(text: object) -> Address:
    host, _, port = _str(text).rpartition(":")
    if not (port.isascii() and port.isdigit() and len(port) <= 10):
        raise ValueError(f"{port!r} is not a port")
    return Address(host.removeprefix("[").removesuffix("]"), int(port))


def _client(facts: dict[str, Any]) -> ClientInfo:
    for name, value in facts.items():
        _count(value) if name == "keepalive" else _str(value)
    return ClientInfo(**facts)


def _handler(value: object) -> str | None:
    return None if value is None else _str(value)


def _reason(value: object) -> Reason:
    if value not in get_args(Reason):
        raise ValueError(f"unknown reason {value!r}")
    return cast("Reason", value)


def _message(facts: dict[str, Any]) -> Message:
    topic, payload = _str(facts["topic"]), bytes.fromhex(facts["hex"])
    properties = _properties(facts["properties"]) if "properties" in facts else PLAIN
    return Message(topic, payload, _count(facts["qos"]), bool(facts["retain"]), properties=properties)


def _properties(facts: dict[str, Any]) -> Properties:
    return Properties(
        _count(facts["expiry"]) if "expiry" in facts else None,
        _str(facts.get("content_type", "")),
        _str(facts.get("response_topic", "")),
        bytes.fromhex(facts.get("correlation_data", "")),
        tuple((_str(key), _str(value)) for key, value in facts.get("user_properties", ())),
        bool(facts.get("utf8")),
    )


def _refused(facts: dict[str, Any]) -> Refused:
    kind = getattr(errors, _str(facts["error"]), None)
    make = kind if isinstance(kind, type) and issubclass(kind, CommandError) else CommandError
    text = _str(facts["text"])
    return Refused(_str(facts["what"]), _str(facts["topic"]), make(text.partition(": ")[2]), text)


def _failed(facts: dict[str, Any]) -> Failed:
    text = _str(facts["text"])
    return Failed(_str(facts["where"]), RecordedError(text), text)


def _str(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LATEST:
        raise TypeError(f"{_short(repr(value))} is not a time in seconds")
    return float(value)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is not a count")
    return value


_MAKERS: Final[dict[str, Callable[[dict[str, Any]], Event | Gap]]] = {
    "opened": _opened,
    "in": lambda facts: Received(bytes.fromhex(facts["hex"])),
    "out": lambda facts: Sent(bytes.fromhex(facts["hex"])),
    "frame": lambda facts: Frame(bytes.fromhex(facts["hex"]), _handler(facts["handler"])),
    "published": lambda facts: Published(_message(facts)),
    "delivered": lambda facts: Delivered(_message(facts), _handler(facts["handler"]), _count(facts["more"])),
    "registered": lambda facts: Registered(_client(facts["client"])),
    "subscribed": lambda facts: Subscribed(_str(facts["topic"]), _count(facts["qos"])),
    "unsubscribed": lambda facts: Unsubscribed(_str(facts["topic"])),
    "refused": _refused,
    "failed": _failed,
    "dropped": lambda facts: Dropped(_str(facts["what"]), _count(facts["count"])),
    "closed": lambda facts: Closed(_reason(facts["reason"]), _str(facts["detail"])),
    "gap": lambda facts: Gap(_count(facts["count"])),
}


def connections(entries: Iterable[Entry]) -> Iterator[str]:
    """Yield the names of the connections in *entries*, each once."""
    yield from dict.fromkeys(entry.conn for entry in entries if entry.conn)
