"""The examples of real protocols serve their devices alike on every host."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exproto_app.target import load
from exproto_app.testing import cases
from tests.devices import AMONG_OTHERS, DEVICES

from .conftest import Serve

NAMES = (
    "gt06",
    "teltonika",
    "teltonika-udp",
    "jt808",
    "jt808-2019",
    "nmea",
    "nmea-udp",
    "modbus",
    "wialon",
    "wialon-udp",
    "coban",
    "coban-udp",
)
REAL = {name: DEVICES[name] for name in NAMES}
REAL |= {f"{name}-among-others": AMONG_OTHERS[name] for name in ("gt06", "jt808", "teltonika")}


@pytest.mark.parametrize("name", REAL)
def test_a_real_device(serve: Serve, name: str, tmp_path: Path) -> None:
    """It logs in, says all it can say, gets a command and answers that; all of which replays in memory."""
    real, path = REAL[name], tmp_path / "field.jsonl"
    needs = [*(["udp"] if real.udp else []), *(["address"] if real.anonymous else [])]
    host = serve(real.example, *needs, record=path)
    device = host.connect(real.protocol, udp=real.udp)
    for step in (real.login, *real.steps, *real.commands):
        if step.command is not None:
            host.publish(*step.command, 1)
        device.expect(step.asked)
        if step.sends:
            device.send(step.sends)
        assert real.plain(device.read(len(step.answer))) == real.plain(step.answer)
        for topic, values in step.published:
            assert json.loads(host.published(topic)) == values
    device.hang_up()
    serve.stop()
    (case,) = cases(path)
    case.check(load(real.path))


@pytest.mark.parametrize("name", ["gt06", "jt808"])
def test_a_device_that_reports_before_its_login_is_closed(serve: Serve, name: str) -> None:
    real = DEVICES[name]
    device = serve(real.example).connect(real.protocol)
    device.send(real.steps[0].sends)
    device.expect_end()


def test_a_bad_frame_costs_itself_alone(serve: Serve) -> None:
    real = DEVICES["gt06"]
    device = serve(real.example).connect(real.protocol)
    status = real.steps[0]
    device.send(real.login.sends + real.bad[0] + real.garbage + status.sends)
    device.expect(real.login.answer + status.answer)
