"""The store: records a second that are safe on the disk, and what a gateway that is killed loses.

Run it as `python -m tests.bench store`. 200 clients keep 16 records each on their way to the disk. Beside it
stands the least that is safe: a loop that writes as many bytes at a time, and waits for the disk each time;
and SQLite in WAL mode, which commits as many rows at a time in a thread. Rounds alternate.

Then 200 devices say numbered lines, each after the last one's acknowledgement, while their gateway is killed
again and again, and the broker in between; what was acknowledged has to arrive, once at least.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from signal import SIGKILL
from tempfile import TemporaryDirectory

import attrs

from exproto_app.commands import Publish
from exproto_app.store import Log, Segment
from exproto_app.store.disk import Disk
from tests.mqtt.broker import MISSING, Broker, free_port
from tests.mqtt.client import Client
from tests.mqtt.process import Process

from .figures import show, spread

__all__ = ["main"]

CLIENTS = 200
WINDOW = 16
SECONDS = 2.0
ROUNDS = 5
PAYLOAD = bytes(64)
RATE = 50_000

KILLS = 10
LINES = 100
PACE = 0.2
PATIENCE = 20.0
UNLIMITED = ("max_queued_messages 1000000", "max_connections -1", "queue_qos0_messages true")
BAR = 0.5


@attrs.define(eq=False)
class Entry:
    """A record of client *number*."""

    number: int
    id: int = 0
    segment: Segment | None = None
    offset: int = 0
    size: int = 0


class Load:
    """Keeps records on their way to a log; each that is safe is done, and another takes its place."""

    def __init__(self, folder: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.log: Log[Entry] = Log(folder, 1, 1 << 30, self, loop, time.time)
        self.safe_records = self.commits = self.bytes = 0
        self.stopped = False
        self._names = [b"device-%06d" % number for number in range(CLIENTS)]

    def begin(self) -> None:
        for number in range(CLIENTS * WINDOW):
            self.append(number % CLIENTS)

    def append(self, number: int) -> None:
        entry = Entry(number, self.log.new_id())
        if not self.log.append(entry, self._names[number], Publish("bench/000001", PAYLOAD, 1)):
            raise RuntimeError(f"the log takes no more: {self.log.trouble or 'it is full'}")

    def safe(self, entries: Sequence[Entry]) -> None:
        self.commits += 1
        self.safe_records += len(entries)
        for entry in entries:
            self.bytes += entry.size
            self.log.done(entry)
            if not self.stopped:
                self.append(entry.number)

    def unsafe(self, entries: Sequence[Entry]) -> None:
        raise RuntimeError(f"the log can't be written: {self.log.trouble}")

    def room(self) -> None:
        """Do nothing: there is always room."""


async def through_log(folder: Path) -> tuple[float, float, float]:
    """Return records a second, and the records and the bytes of a commit."""
    load = Load(folder, asyncio.get_running_loop())
    began = time.perf_counter()
    load.begin()
    await asyncio.sleep(SECONDS)
    load.stopped = True
    took, count, commits, size = time.perf_counter() - began, load.safe_records, load.commits, load.bytes
    await load.log.close()
    return count / took, count / commits, size / commits


async def through_sqlite(folder: Path) -> float:
    """Return records a second; the rows of a commit are what came together meanwhile."""
    disk = Disk(asyncio.get_running_loop())
    path = folder / "records.db"

    def connect() -> sqlite3.Connection:
        base = sqlite3.connect(path)
        base.execute("PRAGMA journal_mode=WAL")
        base.execute("PRAGMA synchronous=FULL")
        base.execute("CREATE TABLE records (id INTEGER PRIMARY KEY, client TEXT, topic TEXT, payload BLOB)")
        return base

    base = await disk.run(connect)
    rows = [(f"device-{number % CLIENTS:06}", "bench/000001", PAYLOAD) for number in range(CLIENTS * WINDOW)]
    ids = range(0)

    def commit(ids: range) -> None:
        with base:
            base.executemany("DELETE FROM records WHERE id = ?", [(number,) for number in ids])
            base.executemany("INSERT INTO records (client, topic, payload) VALUES (?, ?, ?)", rows)

    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        await disk.run(partial(commit, ids))
        ids = range(count + 1, count + len(rows) + 1)
        count += len(rows)
    took = time.perf_counter() - began
    await disk.run(base.close)
    disk.close()
    return count / took


def bare(folder: Path, size: int) -> float:
    """Return how often a second *size* bytes are written, and safe."""
    data = os.urandom(size)
    with (folder / "bare").open("wb", buffering=0) as file:
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < SECONDS:
            file.write(data)
            os.fdatasync(file.fileno())
            count += 1
        return count / (time.perf_counter() - began)


def tell_rates() -> None:
    """Tell how many records are safe a second."""
    rates, ratios, beside = [], [], []
    for _ in range(ROUNDS):
        with TemporaryDirectory(prefix="exproto-app-bench-", dir=Path.cwd()) as name:
            folder = Path(name)
            rate, records, size = asyncio.run(through_log(folder))
            loops = bare(folder, int(size))
            beside.append(asyncio.run(through_sqlite(folder)))
            rates.append(rate)
            ratios.append(rate / (loops * records))
    rate, ratio = statistics.median(rates), statistics.median(ratios)
    show(
        "store.safe_records",
        f"{rate:.0f}",
        "records/s",
        bar=RATE,
        good=rate >= RATE,
        note=f"sqlite={statistics.median(beside):.0f}",
    )
    show(
        "store.safe_records_beside_write_and_fsync",
        f"{rate:.0f}",
        "records/s",
        ratio=ratio,
        bar=BAR,
        note=f"{spread(ratios)} commit={records:.0f}records,{size:.0f}B",
    )


# --- killed


class Fleet:
    """Devices that come back whenever they are cut off, and say again what wasn't acknowledged."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.acknowledged: set[bytes] = set()

    async def talk(self, number: int) -> None:
        """Have all lines of device *number* acknowledged."""
        lines = [b"%06d %06d\n" % (number, line) for line in range(LINES)]
        while lines:
            with suppress(OSError, TimeoutError, asyncio.TimeoutError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    await self._converse(number, lines, reader, writer)
                finally:
                    writer.close()
            await asyncio.sleep(random.uniform(0.1, 0.5))

    async def _converse(
        self, number: int, lines: list[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"login d%d\n" % number)
        await self._expect(reader, b"ok\n")
        while lines:
            writer.write(lines[0])
            await self._expect(reader, lines[0])
            self.acknowledged.add(lines.pop(0).rstrip())
            await asyncio.sleep(PACE)

    async def _expect(self, reader: asyncio.StreamReader, answer: bytes) -> None:
        if await asyncio.wait_for(reader.readline(), PATIENCE) != answer:
            raise ConnectionError("it was cut off")


def start(port: int, broker: Broker, options: Sequence[str]) -> Process:
    """Start a gateway, and wait until it serves."""
    app = str(Path(__file__).with_name("store_app.py"))
    command = ["run", app, "--listen", f"tcp://127.0.0.1:{port}", "--mqtt", broker.url, *options]
    process = Process([sys.executable, "-m", "exproto_app", *command])
    process.wait_for("Ctrl-C stops it")
    return process


async def weather(port: int, broker: Broker, options: Sequence[str]) -> Process:
    """Kill the gateway, and now and then the broker; return the gateway that serves in the end."""
    gateway = await asyncio.to_thread(start, port, broker, options)
    for number in range(KILLS):
        await asyncio.sleep(random.uniform(0.5, 2.0))
        if number % 3 == 1:
            broker.kill()
            await asyncio.sleep(random.uniform(0.1, 1.0))
        gateway.signal(SIGKILL)
        gateway.wait()
        if number % 3 == 1:
            broker.start()
        gateway = await asyncio.to_thread(start, port, broker, options)
    return gateway


async def through_weather(port: int, broker: Broker, options: Sequence[str]) -> tuple[Process, set[bytes]]:
    fleet = Fleet(port)
    killing = asyncio.ensure_future(weather(port, broker, options))
    await asyncio.gather(killing, *(fleet.talk(number) for number in range(CLIENTS)))
    gateway = await killing
    return gateway, fleet.acknowledged


def tell_kills(*, stored: bool) -> None:
    """Tell what 200 devices were told is safe, and never arrived."""
    with (
        TemporaryDirectory(prefix="exproto-app-bench-") as name,
        free_port() as broker_port,
        free_port() as port,
        Broker(Path(name, "broker"), broker_port, persistent=True, options=UNLIMITED) as broker,
        Client(broker_port, "the-bench", session_expiry=3600, reconnects=True) as subscriber,
    ):
        # What waits for acknowledgements of a subscriber, Mosquitto forgets when it is killed.
        subscriber.subscribe("bench/#")
        broker.save()
        options = ("--store", str(Path(name, "store"))) if stored else ()
        gateway, acknowledged = asyncio.run(through_weather(port, broker, options))
        arrived: set[bytes] = set()
        count = 0
        with suppress(AssertionError):
            while not acknowledged <= arrived:
                arrived.add(subscriber.next().payload)
                count += 1
        gateway.end(SIGKILL)
    lost = len(acknowledged - arrived)
    show(
        f"store.lost_{'with' if stored else 'without'}_store",
        f"{lost}",
        "records",
        bar=0,
        good=not lost,
        note=f"at-most acknowledged={len(acknowledged)} devices={CLIENTS} kills={KILLS} "
        f"twice={count - len(arrived)}",
    )


def main() -> None:
    tell_rates()
    if MISSING:
        print(f"store.lost skipped: no {MISSING}")
        return
    random.seed(1)
    for stored in (True, False):
        tell_kills(stored=stored)


if __name__ == "__main__":
    main()
