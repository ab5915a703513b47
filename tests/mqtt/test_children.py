"""Devices behind one line are clients of a real broker, each in its own right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .broker import Broker
from .client import Client
from .site import Site
from .test_clients import GATE, gate_at, guarded

pytestmark = pytest.mark.system

Start = Callable[..., Broker]


def test_each_has_its_own_password_and_rights(start: Start) -> None:
    acl = ("user d", "topic readwrite mine/#", "user o", "topic readwrite others/#")
    broker = start(users={**GATE, "d": "pass", "o": "word"}, acl=acl)
    with Site(gate_at(broker)) as site:
        line = site.device()
        assert line.ask("child d pass") == "ok"
        assert line.ask("child o word") == "ok"
        assert line.ask("child d2 wrong").startswith("DeniedError: ")
        assert line.ask("of d mine/x 1") == "ok"
        assert line.ask("of d others/x 1").endswith("not authorized (0x87)")
        assert line.ask("of o others/x 1") == "ok"


def test_one_that_is_kicked_harms_no_other(start: Start, tmp_path: Path) -> None:
    broker = guarded(start, tmp_path)
    with (
        Site(broker.url.replace("//", "//gate:g@")) as site,
        Client(broker.port, username="gate", password="g") as administrator,
    ):
        administrator.subscribe("end/#")
        line = site.device()
        assert [line.ask("child d d"), line.ask("child o o")] == ["ok", "ok"]
        command = {"commands": [{"command": "disableClient", "username": "d"}]}
        administrator.post("$CONTROL/dynamic-security/v1", json.dumps(command).encode())
        assert administrator.next("end/d").payload.startswith(b"kicked: ")
        assert line.ask("of o up still here") == "ok"


def test_one_that_is_taken_over_harms_no_other(start: Start) -> None:
    broker = start()
    with Client(broker.port, "watcher") as watcher, Site(broker.url) as site:
        watcher.subscribe("end/#")
        line = site.device()
        assert [line.ask("child d"), line.ask("child o")] == ["ok", "ok"]
        with Client(broker.port, "d"):
            assert watcher.next("end/d").payload.startswith(b"taken over")
            assert line.ask("of o up still here") == "ok"
