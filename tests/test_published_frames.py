"""Frames that were published, each with what independent readers or the document say of it, told right."""

from __future__ import annotations

import collections
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exproto_app.checksums import CRC16_ARC
from exproto_app.target import load
from exproto_app.testing import TestClient

from .devices import EXAMPLES, GT06, TELTONIKA, jt808_login
from .published import TABLE, Row

DATA = Path(__file__).parent / "data"
ENOUGH = 0.98  # of the values that are stated

LINES = {"nmea": b"\r\n", "wialon": b"\r\n", "coban": b";"}  # what ends a frame that is text
WIALON_CHECKSUM = re.compile(r";(0x)?[0-9A-Fa-f]{3,4}$")

app_of = functools.cache(load)


def published(protocol: str) -> list[dict[str, Any]]:
    """Return the frames of *protocol* in the collection."""
    frames: list[dict[str, Any]] = json.loads((DATA / f"{protocol}.json").read_text())["frames"]
    return frames


def login_of(protocol: str, frame: dict[str, Any]) -> bytes:
    """Return what a device of *protocol* sends before *frame*."""
    match protocol:
        case "gt06":
            return GT06.login.sends
        case "teltonika":
            return TELTONIKA.login.sends
        case "wialon":
            version, end = ("2.0;", ";") if WIALON_CHECKSUM.search(frame["frame"]) else ("", "")
            body = f"{version}1001;NA{end}".encode()
            return b"#L#%b%b\r\n" % (body, b"%X" % CRC16_ARC(body) if version else b"")
        case "jt808" if frame["id"] not in ("0100", "0102"):
            return jt808_login(frame["phone"]).sends
    return b""


def told(protocol: str, frame: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return what the example publishes of *frame*."""
    text = frame["frame"]
    wire = text.encode() + LINES[protocol] if protocol in LINES else bytes.fromhex(text)
    with TestClient(app_of(str(EXAMPLES / f"{protocol}.py")), protocol) as client:
        client.send(login_of(protocol, frame))
        client.published.clear()
        client.send(wire)
        if protocol == "jt808" and frame["id"] == "0100":
            client.send(jt808_login(frame["phone"]).sends)  # what it registered with is told then
        return [
            (message.topic.rpartition("/")[2], json.loads(message.payload)) for message in client.published
        ]


def stated(frame: dict[str, Any]) -> Iterator[tuple[int, str, str, Any]]:
    """Yield each value that is stated of *frame*: of which message, of which kind, its name and itself."""
    for number, message in enumerate(frame.get("messages", [frame] if "values" in frame else [])):
        for name, value in message["values"].items():
            yield number, message["topic"], name, value


def same(one: Any, other: Any) -> bool:
    """Tell whether values are equal; a place may be rounded to 0.000001 degrees."""
    return one == other or (type(one) is type(other) is float and abs(one - other) < 1.1e-6)


@pytest.mark.parametrize("protocol", ["gt06", "jt808", "teltonika", "nmea", "wialon", "coban"])
def test_published_frames_are_told_right(protocol: str) -> None:
    """No value is wrong, and at least 98 % of those that are stated are told; the others are raw."""
    counts: collections.Counter[str] = collections.Counter()
    wrong = []
    for frame in published(protocol):
        counts["frames"] += 1
        messages = told(protocol, frame)
        for number, topic, name, value in stated(frame):
            counts["stated"] += 1
            where, values = messages[number] if number < len(messages) else ("nothing", {})
            if not same(values.get(name, value), value) or (where != topic and name in values):
                wrong.append(f"{frame['frame']}: {topic}.{name} is {value}, told {where}.{values.get(name)}")
            counts["right" if where == topic and name in values else "raw"] += 1
    TABLE.append(Row(protocol, counts["frames"], counts["stated"], counts["right"] - len(wrong), len(wrong)))
    assert wrong == []
    assert counts["right"] >= ENOUGH * counts["stated"]
