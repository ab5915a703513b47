"""Run the fleet in bad weather, and judge what came of it."""

from __future__ import annotations

import asyncio
import random
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import attrs
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from tests.mqtt.broker import Broker, free_port
from tests.mqtt.process import PATIENCE, Process

from .fleet import Device
from .weather import Weather

__all__ = ["Report", "run"]

SETTLED = 60.0
"""Seconds, at most, until all is well again after the weather."""

MEMORY = 150.0
"""MB that a worker may have at its peak."""

SPARE = 8
"""Open files that a worker may have beside those of its devices: what it keeps for its next ones."""


class Subscriber:
    """Who gets the records; the broker keeps its session while either of them is away."""

    def __init__(self, port: int) -> None:
        self.got: dict[str, int] = {}
        self._news = threading.Condition()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, "subscriber", clean_session=False)
        self._client.reconnect_delay_set(1, 1)
        self._subscribed = threading.Event()
        self._client.on_connect = self._subscribe
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = lambda *arguments: self._take(arguments[2].payload.decode())
        self._client.connect_async("127.0.0.1", port, keepalive=5)
        self._client.loop_start()
        assert self._subscribed.wait(PATIENCE)

    def _subscribe(self, *_: Any) -> None:
        self._client.subscribe("records", 1)

    def _take(self, record: str) -> None:
        with self._news:
            self.got[record] = self.got.get(record, 0) + 1
            self._news.notify_all()

    def wait_for(self, records: set[str]) -> set[str]:
        """Wait until all *records* have come; return those that haven't."""
        with self._news:
            self._news.wait_for(lambda: records <= self.got.keys(), SETTLED)
            return records - self.got.keys()

    def stop(self) -> None:
        """Go."""
        self._client.disconnect()
        self._client.loop_stop()


@attrs.define
class Report:
    """What came of it: figures, and what is *wrong*, in sentences."""

    figures: str = ""
    wrong: list[str] = attrs.field(factory=list)


@attrs.define(eq=False)
class Gateway:
    """The gateway with its workers, as its operator sees it."""

    process: Process

    @property
    def port(self) -> int:
        """Where its devices connect."""
        found = re.search(r" on tcp://127\.0\.0\.1:(\d+)", "\n".join(self.process.lines))
        assert found is not None
        return int(found[1])

    def workers(self) -> list[int]:
        """Return the processes that serve."""
        serving: dict[str, int] = {}
        for line in tuple(self.process.lines):
            found = re.search(r"worker (\d+) = serves, process (\d+)", line)
            if found is not None:
                serving[found[1]] = int(found[2])
        return list(serving.values())

    def figures(self, port: int) -> dict[str, float]:
        """Return the metrics that a worker shows at *port*, those of one name summed up; none of one away."""
        try:
            with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:  # it has been killed, and the next one isn't there yet
            return {}
        sums: dict[str, float] = {}
        for line in lines:
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums


@contextmanager
def gateway(broker: Broker, metrics: int) -> Iterator[Gateway]:
    """Run a gateway; kill it if it doesn't end by itself."""
    command = [sys.executable, "-m", "exproto_app", "run", str(Path(__file__).with_name("app.py"))]
    options = ["--mqtt", broker.url, "--workers", "2", "--listen", "tcp://127.0.0.1:0"]
    process = Process([*command, *options, "--metrics", f"127.0.0.1:{metrics}"])
    try:
        process.wait_for("Ctrl-C stops them")
        yield Gateway(process)
    finally:
        if process.runs:
            process.end()


def look_at(pid: int) -> tuple[int, float]:
    """Return how many files a process has open, and its peak of memory in MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()), int(found[1]) / 1024 if found else 0.0


async def settle(site: Gateway, ports: tuple[int, int]) -> list[str]:
    """Wait until no connection is left; return what is wrong with the workers then."""
    wrong: list[str] = []
    until = asyncio.get_running_loop().time() + SETTLED
    for port in ports:
        while True:
            figures = await asyncio.to_thread(site.figures, port)
            if (
                figures and not figures.get("exproto_connections")
            ) or asyncio.get_running_loop().time() > until:
                break
            await asyncio.sleep(0.2)
        if left := figures.get("exproto_connections"):
            wrong.append(f"the worker at {port} has {left:g} connections left")
        opened = figures.get("exproto_connections_opened_total")
        closed = figures.get("exproto_connections_closed_total")
        if opened is None or opened != closed:
            wrong.append(f"the worker at {port} counted {opened} connections opened, {closed} closed")
    return wrong


async def live(
    site: Gateway, broker: Broker, seconds: float, count: int, seed: int
) -> tuple[Report, set[str]]:
    """Let *count* devices live through *seconds* of weather; return what they were told is safe."""
    devices = [Device(f"dev{number}", site.port) for number in range(count)]
    lives = [asyncio.ensure_future(device.live()) for device in devices]
    chance = random.Random(seed)
    weather = Weather(broker, site.workers, devices, site.port, chance)
    await weather.blow(seconds)
    for device in devices:
        device.leaving = True
    report = Report()
    stuck = (await asyncio.wait(lives, timeout=SETTLED))[1]
    if stuck:
        report.wrong.append(f"{len(stuck)} devices are stuck: not all of their records became safe")
        for one in stuck:
            one.cancel()
    safe = set().union(*(device.safe for device in devices))
    dials = sum(device.dialled for device in devices)
    report.figures = (
        f"{len(safe)} records safe, {count} devices dialled {dials} times, {dict(weather.happened)}"
    )
    return report, safe


def run(folder: Path, seconds: float, count: int = 100, seed: int = 0) -> Report:
    """Run it all for *seconds*; *seed* picks the weather."""
    options = ("max_queued_messages 0",)
    with (
        free_port() as port,
        free_port() as first,
        Broker(folder, port, persistent=True, options=options) as broker,
        gateway(broker, first) as site,
    ):
        subscriber = Subscriber(port)
        try:
            report, safe = asyncio.run(live(site, broker, seconds, count, seed))
            report.wrong += asyncio.run(settle(site, (first, first + 1)))
            if lost := subscriber.wait_for(safe):
                report.wrong.append(f"{len(lost)} records were acknowledged and are lost: {sorted(lost)[:5]}")
            twice = sum(number - 1 for number in subscriber.got.values())
            report.figures += f", {len(subscriber.got)} arrived, {twice} of them again"
        finally:
            subscriber.stop()
        for pid in site.workers():
            files, memory = look_at(pid)
            report.figures += f"; process {pid}: {files} files, {memory:.0f} MB"
            if memory > MEMORY:
                report.wrong.append(f"process {pid} had {memory:.0f} MB, limit is {MEMORY:.0f}")
        opened = [look_at(pid)[0] for pid in site.workers()]
        if max(opened) > min(opened) + SPARE:
            report.wrong.append(f"workers have {opened} files open without a device")
        code = site.process.end()
        text = "\n".join(site.process.lines)
        if code:
            report.wrong.append(f"the gateway ended with {code}")
        for words in ("Traceback", "never retrieved", "was never awaited", "was destroyed"):
            if words in text:
                report.wrong.append(
                    f"its log has {words!r}:\n{text[max(0, text.index(words) - 500) :][:3000]}"
                )
    return report
