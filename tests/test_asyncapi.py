"""AsyncAPI: the topics that an app takes and, as recordings show, publishes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from exproto_app import App, Connection, Message
from exproto_app.cli import main
from exproto_app.exporting import Seen, asyncapi

from .devices import DEVICES, EXAMPLES
from .test_simulate import recorded


def document(*seen: Seen) -> dict[str, Any]:
    app = App()
    meters = app.protocol("meters")

    @meters.on_deliver("devices/+/command")
    def on_command(conn: Connection, message: Message) -> None:
        """Do nothing."""

    @meters.on_deliver("groups/+/+/#")
    def on_group(conn: Connection, message: Message) -> None:
        """Do nothing."""

    return asyncapi(app, "Meters", "2.1", seen)


def test_the_topics_that_handlers_take_are_channels() -> None:
    found = document()
    assert (found["asyncapi"], found["info"]) == ("3.0.0", {"title": "Meters", "version": "2.1"})
    addresses = {name: channel["address"] for name, channel in found["channels"].items()}
    assert addresses == {
        "devices_clientid_command": "devices/{clientid}/command",
        "groups_clientid_clientid2_rest": "groups/{clientid}/{clientid2}/{rest}",
    }
    assert set(found["channels"]["groups_clientid_clientid2_rest"]["parameters"]) == {
        "clientid",
        "clientid2",
        "rest",
    }
    operation = found["operations"]["meters_receives_devices_clientid_command"]
    assert operation["action"] == "receive"
    assert operation["channel"] == {"$ref": "#/channels/devices_clientid_command"}


def test_what_was_published_for_a_client_is_one_channel_of_them_all() -> None:
    found = document(
        Seen("devices/7/position", b'{"lat": 1.5, "fix": true, "cells": [{"id": 1}]}', "meters", "7"),
        Seen("devices/8/position", b'{"lat": null, "fix": true, "cells": [], "alarm": "sos"}', "meters", "8"),
    )
    channel = found["channels"]["devices_clientid_position"]
    assert channel["address"] == "devices/{clientid}/position"
    assert channel["messages"]["told"] == {
        "contentType": "application/json",
        "payload": {
            "type": "object",
            "properties": {
                "lat": {"type": ["null", "number"]},
                "fix": {"type": "boolean"},
                "cells": {
                    "type": "array",
                    "items": {"type": "object", "properties": {"id": {"type": "number"}}, "required": ["id"]},
                },
                "alarm": {"type": "string"},
            },
            "required": ["lat", "fix", "cells"],
        },
    }
    assert found["operations"]["meters_sends_devices_clientid_position"]["action"] == "send"


def test_payloads_that_are_no_json_are_shown() -> None:
    found = document(Seen("up/7/raw", b"\x00\xff" + b"x" * 1_000, "meters", "7"))
    (example,) = found["channels"]["up_clientid_raw"]["messages"]["told"]["examples"]
    assert example["summary"].startswith("b'\\x00\\xffxxx")
    assert len(example["summary"]) < 250


def test_the_command_reads_recordings(tmp_path: Path) -> None:
    path = recorded(DEVICES["gt06"], tmp_path / "it.jsonl")
    out = tmp_path / "api.json"
    arguments = [
        "export",
        "asyncapi",
        str(EXAMPLES / "gt06.py"),
        str(path),
        "--title",
        "GT06",
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.output) == (0, f"wrote {out}\n")
    found = json.loads(out.read_text())
    addresses = {channel["address"] for channel in found["channels"].values()}
    assert {
        "devices/{clientid}/position",
        "devices/{clientid}/status",
        "devices/{clientid}/command",
    } <= addresses
    references = {
        operation["channel"]["$ref"].rpartition("/")[2] for operation in found["operations"].values()
    }
    assert references == set(found["channels"])


def test_without_recordings_it_is_printed_and_tells_what_is_taken() -> None:
    result = CliRunner().invoke(main, ["export", "asyncapi", str(EXAMPLES / "gt06.py")])
    assert [channel["address"] for channel in json.loads(result.output)["channels"].values()] == [
        "devices/{clientid}/command"
    ]
