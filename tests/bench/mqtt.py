"""From device lines to a real Mosquitto, beside servers by hand, on gmqtt and on Node's mqtt.js, in turn.

Run it as `python -m tests.bench mqtt`. Every device has a session of its own at the broker; a
subscriber counts what arrives. What a message costs is the operating system's account of the server's
process; figures are medians of rounds that alternate. Broker, load and subscriber share what the server
leaves of the machine, so the rates say less than the CPU times.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.mqtt.broker import MISSING, Broker, free_port

from .figures import show
from .idle import say
from .load import Load, Round, load_generator
from .mqtt_servers import GMQTT, LOOP, PUBLISHED
from .servers import Server, allow_files

__all__ = ["main"]

MODULE = "tests.bench.mqtt_servers"
SCRIPT = Path(__file__).with_name("mqtt_js.js")
ROUNDS = 7
BARS = {(1, 1): 1.35, (1, 16): 1.6, (0, 1): 1.2, (0, 16): 2.0}
"""How many times the CPU of the server by hand a message may cost, by QoS and lines outstanding."""
PATIENCE = 30.0

WARM = 200
DEVICES = 5_000
REST = 5.0

ROUND_TRIP = 0.02
RECORDS = 20_000

OUTAGE = 10.0
OUTAGE_DEVICES = 200
OUTAGE_LINES = 75
PACE = 0.2
"""Seconds between two lines of a device, so that the outage falls into the midst of them."""


class Subscriber:
    """Counts what arrives at the broker under `bench/#`: PUBLISH packets of QoS 0, all of one size."""

    def __init__(self, port: int, size: int = PUBLISHED) -> None:
        self._size = size
        self._bytes = 0
        self._news = threading.Condition()
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._socket.sendall(b"\x10\x16\0\4MQTT\5\2\0\0\0\0\x09the-bench" + b"\x82\x0d\0\1\0\0\7bench/#\0")
        answers = b""
        while len(answers) < 2 or len(answers) < (connack := 2 + answers[1]) + 6:
            answers += self._socket.recv(1024)
        if answers[3] or answers[connack] != 0x90 or answers[-1]:
            raise RuntimeError(f"the broker refused the subscriber: {answers.hex()}")
        self._socket.settimeout(None)
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def count(self) -> int:
        """Messages until now."""
        return self._bytes // self._size

    def wait_for(self, count: int) -> int:
        """Wait until *count* have come; return how many there are when they have, or none come any more."""
        with self._news:
            while self.count < count:
                before = self._bytes
                self._news.wait_for(lambda: self.count >= count, timeout=5)
                if self._bytes == before:
                    break
        return self.count

    def close(self) -> None:
        """Disconnect."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self) -> None:
        with suppress(OSError):
            while data := self._socket.recv(262_144):
                with self._news:
                    self._bytes += len(data)
                    self._news.notify_all()


@contextmanager
def broker(*options: str, persistent: bool = False) -> Iterator[Broker]:
    """Run a Mosquitto that keeps whatever it is given."""
    options = ("max_queued_messages 1000000", "max_connections -1", *options)
    with (
        TemporaryDirectory(prefix="exproto-app-bench-") as folder,
        free_port() as port,
        Broker(Path(folder), port, persistent=persistent, options=options) as running,
    ):
        yield running


def server(kind: str, qos: int, port: int, node: str = "") -> Server:
    arguments = (str(qos), str(port))
    if kind == "mqtt_js":
        return Server(kind, arguments, command=("node", str(Path(node, SCRIPT.name))), folder=node)
    return Server(kind, arguments, MODULE)


@contextmanager
def mqtt_js() -> Iterator[str]:
    """Install mqtt.js for the length of a block; yield its folder, empty where that can't be."""
    if not (shutil.which("node") and shutil.which("npm")):
        yield ""
        return
    with TemporaryDirectory(prefix="exproto-app-bench-") as folder:
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, "mqtt"]
        done = subprocess.run(command, capture_output=True, check=False, timeout=300)
        shutil.copy(SCRIPT, folder)
        yield folder if done.returncode == 0 else ""


# --- what a message costs


def costs(load: Load, qos: int, window: int, node: str) -> dict[str, list[Round]]:
    """Return rounds of each server, which take turns; everything that they handled has arrived."""
    kinds = ["by_hand", "ours", *(["gmqtt"] if GMQTT else []), *(["mqtt_js"] if node else [])]
    rounds: dict[str, list[Round]] = {kind: [] for kind in kinds}
    with broker() as running, ExitStack() as stack:
        servers = {kind: stack.enter_context(server(kind, qos, running.port, node)) for kind in kinds}
        subscriber = Subscriber(running.port)
        stack.callback(subscriber.close)
        lost = 0
        for number in range(ROUNDS):
            for kind in kinds[number % len(kinds) :] + kinds[: number % len(kinds)]:
                rounds[kind].append(load.run(servers[kind], window))
                handled = settled(list(servers.values())) - lost
                missing = handled - subscriber.wait_for(handled)
                if missing and kind == "ours":
                    raise RuntimeError(f"{kind}: {missing} lines handled and not arrived")
                lost += missing  # by gmqtt, when its devices hang up
    return rounds


def settled(servers: list[Server]) -> int:
    """Wait until all devices have gone; return the lines that the *servers* have handled."""
    while any(each.connections() for each in servers):
        time.sleep(0.01)
    return sum(each.ask()[2] for each in servers)


def tell_costs(load: Load, qos: int, window: int, node: str, bars: dict[str, float]) -> None:
    """Tell what a message of *qos* costs beside each peer, and whether the ratio is below its bar.

    *window* lines of each device are outstanding.
    """
    rounds = costs(load, qos, window, node)
    for peer, bar in bars.items():
        if peer not in rounds:
            print(f"mqtt.qos{qos}_{window}_outstanding_beside_{peer} skipped: {peer} isn't installed")
            continue
        pairs = list(zip(rounds["ours"], rounds[peer], strict=True))
        ratio = statistics.median(our.microseconds / theirs.microseconds for our, theirs in pairs)
        theirs = statistics.median(each.microseconds for each in rounds[peer])
        ours, rate, cpu, load_cpu = (
            statistics.median(getattr(each, name) for each in rounds["ours"])
            for name in ("microseconds", "messages", "cpu", "load_cpu")
        )
        show(
            f"mqtt.qos{qos}_{window}_outstanding_beside_{peer}",
            f"{ours:.1f}",
            "us/message",
            ratio=ratio,
            bar=bar,
            good=ratio <= bar,
            note=f"at-most {peer}={theirs:.1f}us rate={rate:.0f}/s cpu={cpu:.0%} "
            f"load_cpu={load_cpu:.0%} loop={LOOP}",
        )


# --- a broker that is slower than the devices


def tell_overload(load: Load) -> None:
    for qos in (0, 1):
        with broker() as running, server("ours", qos, running.port) as ours, ExitStack() as stack:
            subscriber = Subscriber(running.port)
            stack.callback(subscriber.close)
            with braked(running):
                round_ = Load(load.program, load.connections, 1.0, 6.0).run(ours, 16)
            handled = settled([ours])
            arrived = subscriber.wait_for(handled)
            peak = ours.peak() / 1e6
            show(
                f"mqtt.overload_qos{qos}_memory",
                f"{peak:.0f}",
                "MB",
                bar=100,
                good=peak < 100 and arrived == handled,
                note=f"at-most lines={handled} arrived={arrived} rate={round_.messages:.0f}/s",
            )


@contextmanager
def braked(running: Broker) -> Iterator[None]:
    """Have the broker rest for most of the time."""
    released = threading.Event()

    def brake() -> None:
        while not released.wait(0.03):
            running.pause()
            released.wait(0.07)
            running.resume()

    thread = threading.Thread(target=brake)
    thread.start()
    try:
        yield
    finally:
        released.set()
        thread.join()


# --- a broker that is far away


class Delay:
    """A proxy that holds everything back for *seconds*, both ways, in a thread of its own."""

    def __init__(self, port: int, seconds: float) -> None:
        self._loop = asyncio.new_event_loop()
        self._target = port
        self._seconds = seconds
        self._tasks: set[asyncio.Task[None]] = set()
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Pass nothing more on."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._target)
        for source, target in ((reader, other_writer), (other_reader, writer)):
            task = self._loop.create_task(self._pass_on(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(262_144):
                self._loop.call_later(self._seconds, target.write, data)
        self._loop.call_later(self._seconds, target.close)


def tell_round_trips() -> None:
    """One device with a long memory, 20 ms from the broker: each record is acknowledged by it.

    Mosquitto takes 20 unacknowledged messages by default, which is 1,000 a second then, whoever sends them.
    """
    with broker("max_inflight_messages 1000") as running, ExitStack() as stack:
        delay = Delay(running.port, ROUND_TRIP / 2)
        stack.callback(delay.stop)
        ours = stack.enter_context(server("ours", 1, delay.port))
        device = stack.enter_context(socket.create_connection(("127.0.0.1", ours.port), timeout=PATIENCE))
        say([device])
        lines = b"%062d\n" % 0 * RECORDS
        sender = threading.Thread(target=device.sendall, args=(lines,))
        began, left = time.perf_counter(), len(lines)
        sender.start()
        while left:
            left -= len(device.recv(262_144))
        rate = RECORDS / (time.perf_counter() - began)
        sender.join()
    show(
        "mqtt.records_of_one_device",
        f"{rate:.0f}",
        "records/s",
        bar=5_000,
        good=rate >= 5_000,
        note=f"round_trip={ROUND_TRIP * 1e3:g}ms records={RECORDS}",
    )


# --- very many devices


def tell_fleet() -> None:
    """5,000 devices connect and register at once, then rest."""
    allow_files()
    with broker() as running, server("ours", 0, running.port) as ours, ExitStack() as stack:
        storm(ours, WARM, stack)
        ours.connections()  # collects its garbage
        before = ours.memory()
        started, used = time.perf_counter(), ours.cpu()
        storm(ours, DEVICES, stack)
        seconds, cpu = time.perf_counter() - started, ours.cpu() - used
        _, registered, lines = ours.ask()
        failures = WARM + DEVICES - registered
        kib = (ours.memory() - before) / DEVICES / 1024
        used = ours.cpu()
        time.sleep(REST)
        rest = (ours.cpu() - used) / REST
    show(
        "mqtt.device_memory",
        f"{kib:.2f}",
        "KiB/device",
        bar=10,
        good=kib <= 10,
        note=f"at-most devices={DEVICES}",
    )
    show("mqtt.device_rest", f"{rest:.2%}", "of a core", bar=0.01, good=rest <= 0.01, note="at-most")
    show(
        "mqtt.storm_failures",
        f"{failures}",
        "devices",
        bar=0,
        good=not failures and lines == WARM + DEVICES,
        note=f"at-most devices={DEVICES} seconds={seconds:.2f} cpu={cpu / DEVICES * 1e6:.0f}us/device",
    )


def storm(ours: Server, count: int, stack: ExitStack) -> list[socket.socket]:
    """Connect *count* devices at once; each says a line, which is echoed when it has registered."""
    devices = [
        stack.enter_context(socket.create_connection(("127.0.0.1", ours.port), timeout=PATIENCE))
        for _ in range(count)
    ]
    say(devices)
    return devices


# --- a broker that is killed


async def devices_through_outage(ours: Server, running: Broker) -> None:
    """Have devices say numbered lines, each after the last one's echo, and kill the broker meanwhile."""

    async def device(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", ours.port)
        for line in range(OUTAGE_LINES):
            said = b"%06d %06d\n" % (number, line)
            writer.write(said)
            heard = await asyncio.wait_for(reader.readline(), OUTAGE + PATIENCE)
            if heard != said:
                raise RuntimeError(f"device {number} said {said!r} and heard {heard!r}")
            await asyncio.sleep(PACE)
        writer.close()
        await writer.wait_closed()

    async def outage() -> None:
        await asyncio.sleep(OUTAGE_LINES * PACE / 3)
        running.kill()
        await asyncio.sleep(OUTAGE)
        running.start()

    await asyncio.gather(outage(), *(device(number) for number in range(OUTAGE_DEVICES)))


def tell_outage() -> None:
    """Kill the broker for 10 s in the midst of QoS 1 traffic: everything arrives, nobody is stuck."""
    from tests.mqtt.client import Client  # noqa: PLC0415 - needed here alone

    # The session of the subscriber is on the disk, so it is there before any device is back.
    with broker("queue_qos0_messages true", persistent=True) as running:
        arrived: set[bytes] = set()
        with Client(running.port, "the-bench", session_expiry=3600, reconnects=True) as subscriber:
            subscriber.subscribe("bench/#")
            running.save()
            with server("ours", 1, running.port) as ours:
                asyncio.run(devices_through_outage(ours, running))
                sent = OUTAGE_DEVICES * OUTAGE_LINES
                count = 0
                with suppress(AssertionError):
                    while len(arrived) < sent:
                        arrived.add(subscriber.next().payload)
                        count += 1
    show(
        "mqtt.outage_lost",
        f"{sent - len(arrived)}",
        "messages",
        bar=0,
        good=len(arrived) == sent,
        note=f"at-most sent={sent} devices={OUTAGE_DEVICES} outage={OUTAGE:g}s twice={count - len(arrived)}",
    )


def main() -> None:
    if MISSING:
        print(f"mqtt skipped: no {MISSING}")
        return
    with load_generator(warmup=0.5) as load:
        if load is None:
            print("mqtt costs and overload skipped: they need a C compiler (cc) for the load generator")
        else:
            with mqtt_js() as node:
                for (qos, window), by_hand in BARS.items():
                    bars = {"by_hand": by_hand, "gmqtt": 1.0, "mqtt_js": 1.0}
                    tell_costs(load, qos, window, node, bars)
            tell_overload(load)
    tell_round_trips()
    tell_fleet()
    tell_outage()


if __name__ == "__main__":
    main()
