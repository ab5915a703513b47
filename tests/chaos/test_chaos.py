"""Twenty seconds of bad weather; `make chaos` has more of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.mqtt.broker import MISSING

pytestmark = [
    pytest.mark.live,
    pytest.mark.system,
    pytest.mark.timeout(240),
    pytest.mark.skipif(sys.platform != "linux", reason="--workers needs Linux"),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING}"),
]


def test_what_a_device_was_told_is_safe_has_arrived(tmp_path: Path) -> None:
    """Whatever happens to the broker, workers and lines; and nothing is left over."""
    pytest.importorskip("mqtt5", reason="the uplink needs Python 3.11 and mqtt5")
    pytest.importorskip("prometheus_client")
    from .run import run  # noqa: PLC0415 - it needs paho

    report = run(tmp_path, 20, count=30, seed=1)
    assert not report.wrong, "\n".join((report.figures, *report.wrong))
