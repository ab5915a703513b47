"""A black box of 100,000 records, through the embedded hub and to Mosquitto: none lost, memory bounded.

Run it as `python -m tests.bench blackbox`. One device sends its records as fast as the socket takes them and
is acknowledged for each (`send(after=…)`); then it asks once, and one handler starts all publishes before it
awaits them. A subscriber of QoS 1 counts what arrives.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from tests.mqtt.broker import MISSING, Broker, free_port

from .figures import show

__all__ = ["main"]

RECORDS = 100_000
MOST = 100.0
"""MB that the gateway may take at its peak."""

PATIENCE = 180.0

APP = f"""
from exproto_app import App
from exproto_app.framing import Line

app = App(framing=Line())

@app.on_connect
def begin(conn):
    conn.register("black-box")

@app.on_received
def record(conn, frame):
    conn.send(b"ok", after=conn.publish("box", frame, qos=1))

@app.on_received(b"all")
async def everything(conn, frame):
    outcomes = [conn.publish("box", b"%064d" % number, qos=1) for number in range({RECORDS})]
    for outcome in outcomes:
        await outcome
    return b"ok"
"""


class Counter:
    """A subscriber of QoS 1 that counts messages, and those that it had before."""

    def __init__(self, port: int) -> None:
        self.seen: set[bytes] = set()
        self.count = 0
        ready = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, "counter")
        self._client.on_message = self._take
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.connect("127.0.0.1", port)
        self._client.subscribe("box", qos=1)
        self._client.loop_start()
        if not ready.wait(PATIENCE):
            raise RuntimeError("the subscriber isn't subscribed")

    def _take(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        self.seen.add(bytes(message.payload))
        self.count += 1

    def wait_for(self, number: int) -> None:
        """Wait until *number* different messages have come."""
        until = time.monotonic() + PATIENCE
        while len(self.seen) < number and time.monotonic() < until:
            time.sleep(0.05)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def peak(pid: int) -> float:
    """Return the most memory that a process has had, in MB."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


@contextlib.contextmanager
def gateway(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run the app with *options*; yield its process and its port."""
    target = folder / "box.py"
    target.write_text(APP)
    with free_port() as port:
        command = [sys.executable, "-m", "exproto_app", "run", str(target)]
        command += ["--listen", f"tcp://127.0.0.1:{port}", *options]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            await_listener(port)
            yield process, port
        finally:
            process.terminate()
            process.wait(PATIENCE)


def await_listener(port: int) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.05)
    raise RuntimeError("the gateway doesn't listen")


def records_by_line(port: int) -> int:
    """Send every record at once, and return how many acknowledgements came."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as device:
        data = b"".join(b"%064d\n" % number for number in range(RECORDS))
        sender = threading.Thread(target=device.sendall, args=(data,))
        sender.start()
        got = 0
        while got < 3 * RECORDS and (more := device.recv(65_536)):
            got += len(more)
        sender.join()
        return got // 3


def records_in_one_turn(port: int) -> int:
    """Have one handler publish all, and return how many records were acknowledged."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as device:
        device.sendall(b"all\n")
        return RECORDS if device.recv(3) == b"ok\n" else 0


def measure(name: str, folder: Path, mqtt_port: int, *options: str) -> None:
    for way, send in (("by_line", records_by_line), ("in_one_turn", records_in_one_turn)):
        with gateway(folder, *options) as (process, port):
            counter = Counter(mqtt_port)
            began = time.perf_counter()
            acknowledged = send(port)
            took = time.perf_counter() - began
            counter.wait_for(RECORDS)
            lost, again = RECORDS - len(counter.seen), counter.count - len(counter.seen)
            memory = peak(process.pid)
            counter.close()
        note = f"lost={lost} acknowledged={acknowledged} again={again} rate={RECORDS / took:,.0f}/s"
        good = lost == 0 and acknowledged == RECORDS and memory < MOST
        show(f"blackbox_{name}_{way}", f"{memory:.0f}", "MB", bar=MOST, good=good, note=note)


def main() -> None:
    with TemporaryDirectory() as folder, free_port() as port:
        measure("hub", Path(folder), port, "--mqtt-listen", f"127.0.0.1:{port}")
    if MISSING:
        print(f"# {MISSING} is missing: nothing about the uplink")
        return
    with (
        TemporaryDirectory() as folder,
        free_port() as port,
        Broker(Path(folder), port, anonymous=True, options=("max_queued_messages 1000000",)) as broker,
    ):
        measure("uplink", Path(folder), port, "--mqtt", broker.url)


if __name__ == "__main__":
    main()
