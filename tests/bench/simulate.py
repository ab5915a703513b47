"""How much `exproto-app simulate` plays: from one process, against an echo of lines written by hand.

Run it as `python -m tests.bench simulate`. `frames` has a thousand devices that send sixteen lines at a time,
`one` one line, each when the last was answered; `devices` has ten thousand, each with an identity of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from exproto_app.models import Address, ClientInfo, ConnectionInfo
from exproto_app.tap import Opened, Received, Registered, Sent
from exproto_app.traffic.recording import Entry, line, opening

from .figures import show
from .servers import LOOPS, Server, allow_files

__all__ = ["main"]

FRAMES = 50_000
"""Frames a second that there have to be, where the server gives them."""

INFO = ConnectionInfo("tcp", Address("127.0.0.1", 5000), Address("127.0.0.1", 7993))


def recording(path: Path, reads: int, lines: int) -> Path:
    """Write what a device said in *reads* of so many *lines*, each of which came back."""
    events: list[Any] = [Opened(INFO), Registered(ClientInfo("meter-000000"))]
    for number in range(reads):
        data = b"".join(b"meter-000000 %04d\n" % (number * lines + count) for count in range(lines))
        events += [Received(data), Sent(data)]
    text = [line(Entry(0.001 * at, "1", "default", event)) for at, event in enumerate(events)]
    path.write_text("\n".join([opening(1.8e9), *text, ""]))
    return path


def play(path: Path, port: int, devices: int, ramp: float) -> dict[str, Any]:
    """Return the summary of a run."""
    command = [sys.executable, "-m", "exproto_app", "simulate", str(path), "--to", f"tcp://127.0.0.1:{port}"]
    options = ["--devices", str(devices), "--ramp", str(ramp), "--speed", "max", "--timeout", "60", "--json"]
    result = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stdout + result.stderr)
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


def main() -> None:
    allow_files()
    with tempfile.TemporaryDirectory() as folder, Server("line_by_hand", (LOOPS[-1],)) as server:
        for name, lines, bar in (("frames", 16, FRAMES), ("one", 1, None)):
            path = recording(Path(folder, f"{name}.jsonl"), 200, lines)
            summary = play(path, server.port, 1_000, 1.0)
            # A read of several lines is one step without a framing, so lines are counted here.
            rate = summary["frames"] * lines / summary["seconds"]
            note = f"p99={summary['latency_ms']['p99']}ms devices=1000"
            good = None if bar is None else rate >= bar
            show(f"simulate.{name}", f"{rate:.0f}", "frames/s", bar=bar, good=good, note=note)
        path = recording(Path(folder, "devices.jsonl"), 3, 1)
        summary = play(path, server.port, 10_000, 5.0)
        good = summary["finished"] == 10_000
        note = f"p99={summary['latency_ms']['p99']}ms in {summary['seconds']:.1f} s"
        show("simulate.devices", str(summary["finished"]), "devices", bar=10_000, good=good, note=note)


if __name__ == "__main__":
    main()
