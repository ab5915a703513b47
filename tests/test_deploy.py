"""The examples of deployment: what can be checked of them without a container or a service manager."""

from __future__ import annotations

import configparser
import inspect
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from exproto_app.cli.run import command
from exproto_app.cli.supervisor import Supervisor
from exproto_app.hosts.gateway import Listen
from exproto_app.target import load

DEPLOY = Path(__file__).parent.parent / "examples" / "deploy"
SERVICE = DEPLOY / "exproto-app.service"
STOP_TIMEOUT = inspect.signature(Supervisor).parameters["stop_timeout"].default


def options(arguments: list[str]) -> dict[str, Any]:
    """What our command line makes of *arguments*; raises for what it doesn't take."""
    name, *rest = arguments
    assert name == "run"
    parameters = command.make_context("run", rest).params
    for listen in parameters["listens"]:
        Listen.parse(listen)
    return parameters


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # as the standard library says to
    parser.read_string(SERVICE.read_text())
    return parser


def test_the_compose_file_runs_the_gateway_with_workers_behind_a_broker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    gateway, broker = services["gateway"], services["broker"]
    assert broker["image"].endswith(":6.3.0")
    monkeypatch.setenv("EXPROTO_MQTT", gateway["environment"]["EXPROTO_MQTT"])
    parsed = options(gateway["command"])
    assert parsed["workers"] == 2
    assert parsed["mqtt"] == "mqtt://broker:1883"
    assert int(gateway["stop_grace_period"].removesuffix("s")) > STOP_TIMEOUT
    (port,) = (Listen.parse(listen).port for listen in parsed["listens"])
    assert gateway["ports"] == [f"{port}:{port}"]


def test_what_the_compose_file_mounts_and_builds_is_there() -> None:
    gateway = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["gateway"]
    source, target, _ = gateway["volumes"][0].split(":")
    load(str(DEPLOY / source))
    assert target == f"/app/{gateway['command'][1]}"
    context = (DEPLOY / gateway["build"]["context"]).resolve()
    dockerfile = context / gateway["build"]["dockerfile"]
    lines = [line.split() for line in dockerfile.read_text().splitlines()]
    copied = [name for words in lines if words[:1] == ["COPY"] for name in words[1:-1]]
    assert copied
    assert all((context / name).exists() for name in copied)
    assert ["WORKDIR", "/app"] in lines


def test_the_unit_runs_what_our_command_line_takes_and_ends_as_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = unit()["Service"]
    monkeypatch.setenv("EXPROTO_MQTT", "mqtt://broker")
    program, *arguments = shlex.split(service["ExecStart"])
    assert program.endswith("/exproto-app")
    assert options(arguments)["workers"] == 2
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert service["KillMode"] == "mixed", "else the workers get SIGTERM twice"
    assert int(service["TimeoutStopSec"]) > STOP_TIMEOUT


@pytest.mark.system
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze isn't installed")
    copy = tmp_path / SERVICE.name
    text = SERVICE.read_text()
    start = unit()["Service"]["ExecStart"].split()[0]
    copy.write_text(text.replace(start, "/bin/true"))
    done = subprocess.run([program, "verify", copy], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
