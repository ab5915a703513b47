"""Well-behaved devices beside hostile peers: 100 devices, one line a second each, beside each attacker.

Run it as `python -m tests.bench.hostile [ATTACKER…] [1|20] [asyncio|uvloop]`; the beginning of a name picks
all that begin so. The server is `exproto-app run`, or `serve`, as operators start it, in a process of its
own, anew for each attacker; attackers have processes of their own too. For each, by itself and twenty times
over, it tells the devices' p99 and maximum, the server's peak of memory, the slowest answer of `/healthz`,
and how long the server takes to end after SIGTERM while the attack goes on. `attackers` has them. With
HOSTILE_STDERR in the environment the server's log is shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import attrs

from exproto_app.hosts.gateway.users import hash_password
from tests.certificates import Authority

from .attackers import ATTACKERS, SERVE_ATTACKERS, Target
from .figures import show
from .servers import LOOPS, allow_files

__all__ = ["DEVICES", "SECONDS", "Seen", "main", "probe"]

DEVICES: Final = 100
SECONDS: Final = 5.0
MANY: Final = 20

LISTENERS: Final = {
    "tcp": "default=tcp",
    "udp": "default=udp",
    "tls": "default=tls",
    "jt808": "jt808=tcp",
    "gt06": "gt06=tcp",
    "nmea": "nmea=tcp",
    "modbus": "modbus=tcp",
    "kept": "kept=tcp",
    "gt06_udp": "gt06=udp",
    "json": "json=tcp",
    "skip": "skip=tcp",
    "several": "several=tcp",
    "behind": "behind=tcp",
    "counted": "counted=tcp",
    "judged": "judged=tcp",
    "lines": "lines=tcp",
    "errors": "errors=tcp",
    "fatal": "fatal=tcp",
    "deaf": "deaf=tcp",
    "after": "after=tcp",
    "ws": "default=ws",
    "proxied": "default=tcp",
    "proxied_tls": "default=tls",
    "slow": "slow=tcp",
    "slow_udp": "slow=udp",
    "dtls_udp": "default=dtls",
}
"""The gateway's listeners: each field of `Target`, and what is served there."""

MODEMS: Final = "default=mqtt-bytes://dev0:right@127.0.0.1:{}/dtu/{{id}}/up?down=dtu/{{id}}/down"
"""Modems, by way of the gateway's own MQTT listener."""

OPTIONS: Final = {"proxied": "?proxy-protocol=1", "proxied_tls": "?proxy-protocol=1"}
"""What a listener has behind its port."""

P99: Final = 50.0
MOST: Final = 250.0
MEMORY: Final = 150.0
STOP: Final = 2.0
HEALTH: Final = 1.0
"""The bars: milliseconds, milliseconds, MB, seconds, seconds."""

EXAMPLES: Final = Path(__file__).parents[2] / "examples"

APP: Final = f"""
import asyncio
import sys
import time

sys.path.insert(0, {str(EXAMPLES)!r})

import gt06
import jt808
import modbus_rtu
import nmea
from exproto_app import App, Connection, Message, checksums
from exproto_app.framing import (
    JT808, Checked, Delimiter, FirstOf, JsonObjects, LengthPrefix, Line, Resync, Skip, StartEnd,
)


class Counted:
    def encode(self, frame):
        return len(frame).to_bytes(2, "big") + frame

    def decode(self, reader):
        while True:
            size = yield from reader.exactly(2)
            yield (yield from reader.exactly(int.from_bytes(size, "big")))

app = App(framing=Line())
for name, framing in (
    ("jt808", jt808.FRAMING),
    ("gt06", Resync(FirstOf(gt06.SHORT, gt06.LONG))),
    ("nmea", nmea.LINES),
    ("modbus", modbus_rtu.Answers()),
    ("kept", JT808),
    ("json", JsonObjects()),
    ("skip", Skip(LengthPrefix(1, start=b"\\x68"), b"\\xfe")),
    ("several", Delimiter(b";", b"\\n", b"\\r")),
    ("behind", Checked(StartEnd(b"\\x02", b"\\x03"), checksums.XOR, at="behind")),
    ("counted", Counted()),
):
    @app.protocol(name, framing=framing).on_received
    def spoken(conn: Connection, frame: bytes) -> None:
        pass


@app.protocols["kept"].on_error
def keep(conn: Connection, error: BaseException) -> None:
    conn.keep()


@app.on_received
def received(conn: Connection, frame: bytes) -> bytes:
    return frame


@app.on_received(b"login ")
async def login(conn: Connection, frame: bytes) -> bytes:
    name, password = frame.decode().split()[1:3]
    await conn.register(name, password=password)
    return b"welcome"


judged = app.protocol("judged", framing=Line())
judged.on_received(login)


@judged.on_login(blocking=True)
def judge(login) -> bool:
    time.sleep(0.05)
    return login.password == "right"


@app.protocol("lines", framing=Line()).on_received
def named(conn: Connection, frame: bytes) -> bytes | None:
    if frame == b"end":
        return frame
    conn.child(frame.decode(), password="right")


@app.protocol("fatal", framing=Line()).on_received
def fail(conn: Connection, frame: bytes) -> None:
    raise ValueError(frame)


errors = app.protocol("errors", framing=Line())
errors.on_received(fail)
errors.on_error(keep)
deaf = app.protocol("deaf", framing=Line())


@deaf.on_received
def subscribe(conn: Connection, frame: bytes) -> None:
    conn.subscribe("deaf/x", qos=1)


@deaf.on_deliver
def deliver(conn: Connection, message: Message) -> bytes:
    return message.payload


@app.protocol("slow", framing=Line()).on_received
async def wait(conn: Connection, frame: bytes) -> None:
    await asyncio.sleep(1.5)


@app.protocol("after", framing=Line()).on_received
def acknowledge(conn: Connection, frame: bytes) -> None:
    conn.send(b"ok", after=conn.publish("after/x", frame, qos=1))
"""


# --- the server


@contextmanager
def server(folder: Path, loop: str, name: str, count: int) -> Iterator[tuple[subprocess.Popen[str], Target]]:
    """Run a gateway that *name* attacks, *count* times over."""
    others = ("health", "inspector", "mqtt", "unix", "dialled")
    ports = free_ports(*LISTENERS, *others)
    target = Target(**ports)
    command = [sys.executable, "-m", "exproto_app", "run", str(folder / "app.py"), "--loop", loop]
    options = ["--users", str(folder / "users"), "--cert", str(folder / "server.pem"), "--log-level", "error"]
    options += ["--metrics", f"127.0.0.1:{ports['health']}", "--inspect", f"127.0.0.1:{ports['inspector']}"]
    options += ["--mqtt-listen", f"127.0.0.1:{ports['mqtt']}"]
    for field, listen in LISTENERS.items():
        options += ["--listen", f"{listen}://127.0.0.1:{ports[field]}{OPTIONS.get(field, '')}"]
    options += ["--listen", f"default=unix://{target.unix_path}"]
    if name.startswith("modems"):
        options += ["--listen", MODEMS.format(target.mqtt)]
    if name.startswith("dialled"):
        for number in range(1, count + 1):
            options += ["--dial", f"default=tcp://127.0.0.{number}:{target.dialled}"]
    with running([*command, *options]) as process:
        yield process, target


def free_ports(*names: str) -> dict[str, int]:
    """Return a port that nobody has for each of *names*, of UDP where the name says so."""
    ports: dict[str, int] = {}
    with ExitStack() as stack:
        for name in names:
            kind = socket.SOCK_DGRAM if "udp" in name else socket.SOCK_STREAM
            sock = stack.enter_context(socket.socket(socket.AF_INET, kind))
            sock.bind(("127.0.0.1", 0))
            ports[name] = sock.getsockname()[1]
    return ports


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run *command* until it serves, and for the length of a block."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=None if "HOSTILE_STDERR" in os.environ else subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ctrl-C" in line:
                break
        else:
            raise ChildProcessError("the server didn't start; HOSTILE_STDERR=1 shows why")
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def peak(pid: int) -> float:
    """Return the most memory that the process has had, in MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


# --- the well-behaved


@attrs.define
class Seen:
    """What the devices, and a probe, have seen; milliseconds, and seconds."""

    waits: list[float] = attrs.field(factory=list)
    health: float = 0.0
    trouble: list[str] = attrs.field(factory=list)

    def add_wait(self, began: float) -> None:
        self.waits.append(1_000 * (time.perf_counter() - began))


async def device(target: Target, number: int, seen: Seen, began: asyncio.Event) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", target.tcp)
    writer.write(b"hello\n")
    await reader.readline()
    await began.wait()
    await asyncio.sleep(number / DEVICES)
    try:
        until = time.perf_counter() + SECONDS
        while time.perf_counter() < until:
            asked = time.perf_counter()
            writer.write(b"line of %d\n" % number)
            if await asyncio.wait_for(reader.readline(), 60) != b"line of %d\n" % number:
                seen.trouble.append(f"device {number} has lost its connection")
                return
            seen.add_wait(asked)
            await asyncio.sleep(1 - (time.perf_counter() - asked))
    except (OSError, asyncio.TimeoutError) as error:
        seen.trouble.append(repr(error))
    finally:
        writer.close()


async def login(target: Target, seen: Seen) -> None:
    """Log in as a device does that comes anew, again and again, each time another one."""
    number = 0
    while True:
        await asyncio.sleep(0.5)
        asked = time.perf_counter()
        port = target.judged if number % 2 else target.tcp
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"login good%d right\n" % (number % 10))
        number += 1
        if await reader.readline() != b"welcome\n":
            seen.trouble.append("a right login was refused")
        took = time.perf_counter() - asked
        if took > 1:
            seen.trouble.append(f"a right login took {took:.1f} s")
        writer.close()


async def probe(target: Target, seen: Seen) -> None:
    """Ask `/healthz` twice a second."""
    while True:
        asked = time.perf_counter()
        answer = b""
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", target.health)
            writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
            answer = await reader.read()
            writer.close()
        seen.health = max(seen.health, time.perf_counter() - asked)
        if b" 200 OK" not in answer:
            seen.trouble.append("/healthz didn't answer 200")
        await asyncio.sleep(0.5)


async def look(target: Target, attack: Callable[[], None], *, with_logins: bool) -> Seen:
    """Begin to *attack* when all devices are there; return what they see."""
    seen, began = Seen(), asyncio.Event()
    devices = [asyncio.ensure_future(device(target, number, seen, began)) for number in range(DEVICES)]
    await asyncio.sleep(1)
    attack()
    await asyncio.sleep(0.5)
    others = [asyncio.ensure_future(probe(target, seen))]
    if with_logins:
        others.append(asyncio.ensure_future(login(target, seen)))
    began.set()
    await asyncio.gather(*devices)
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    return seen


def attacking(stack: ExitStack, name: str, count: int, target: Target) -> Callable[[], None]:
    """Return what begins the attack, *count* times over; it ends with *stack*."""

    def attack() -> None:
        numbers = map(str, attrs.astuple(target))
        command = [sys.executable, "-m", "tests.bench.hostile", "attack", name, str(count), *numbers]
        attacker = subprocess.Popen(command)
        stack.callback(attacker.wait)
        stack.callback(attacker.kill)

    return attack


def end(process: subprocess.Popen[str], seen: Seen) -> float:
    """Have the server end; return how long that takes it."""
    asked = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        seen.trouble.append("SIGTERM didn't end it within 60 s")
    return time.perf_counter() - asked


def tell(what: str, seen: Seen, *, memory: float, stop: float) -> None:
    """Print the figures."""
    waits = sorted(seen.waits) or [float("inf")]
    p99 = waits[int(len(waits) * 0.99)]
    good = p99 < P99 and waits[-1] < MOST and memory < MEMORY and stop < STOP and seen.health < HEALTH
    words = [f"max={waits[-1]:.0f}ms", f"memory={memory:.0f}MB", f"stop={stop:.1f}s"]
    words += [f"health={seen.health:.2f}s", f"lines={len(seen.waits)}", *dict.fromkeys(seen.trouble)]
    show(
        f"hostile.{what}",
        f"{p99:.1f}",
        "ms-p99",
        bar=P99,
        good=good and not seen.trouble,
        note="at-most " + " ".join(words),
    )


def measure(folder: Path, name: str, count: int, loop: str) -> None:
    """Measure the gateway."""
    with ExitStack() as stack:
        process, target = stack.enter_context(server(folder, loop, name, count))
        attack = attacking(stack, name, count, target)
        seen = asyncio.run(look(target, attack, with_logins="logins" in name))
        memory = peak(process.pid)
        tell(f"{name}.{count}.{loop}", seen, memory=memory, stop=end(process, seen))


def measure_serve(folder: Path, name: str, count: int, loop: str) -> None:
    """Measure the service that brokers call."""
    from .hostile_serve import Broker, look_serve  # noqa: PLC0415 - grpcio is imported with it

    with ExitStack() as stack:
        target = Target(**free_ports("grpc", "health"))
        command = [sys.executable, "-m", "exproto_app", "serve", str(folder / "app.py"), "--loop", loop]
        command += ["--log-level", "error", "--protocol", "default=:7993"]
        command += ["--bind", f"127.0.0.1:{target.grpc}", "--metrics", f"127.0.0.1:{target.health}"]
        attack = attacking(stack, name, count, target)

        async def run() -> tuple[Seen, float, float]:
            broker = Broker(target.grpc)
            where = await broker.start()
            process = stack.enter_context(running([*command, "--adapter", f"http://{where}"]))
            seen = await look_serve(broker, target, attack)
            memory = peak(process.pid)
            stop = await asyncio.to_thread(end, process, seen)  # the adapter answers meanwhile
            await broker.stop()
            return seen, memory, stop

        seen, memory, stop = asyncio.run(run())
        tell(f"{name}.{count}.{loop}", seen, memory=memory, stop=stop)


def main(names: list[str] | None = None) -> None:
    allow_files()
    with tempfile.TemporaryDirectory(prefix="exproto-app-bench-") as text:
        folder = Path(text)
        (folder / "app.py").write_text(APP)
        Authority(folder).issue("server")
        hashed = hash_password("right")
        users = [f"{name}{number}:{hashed}\n" for name in ("dev", "good") for number in range(100)]
        (folder / "users").write_text("".join(users))
        for name, count, loop in picked(names or []):
            how = measure_serve if name in SERVE_ATTACKERS else measure
            try:
                how(folder, name, count, loop)
            except ChildProcessError:  # somebody else has taken one of the ports
                how(folder, name, count, loop)


def picked(words: list[str]) -> Iterator[tuple[str, int, str]]:
    """Yield what *words* pick: attackers by the beginnings of their names, how many, on which loop."""
    counts = [int(word) for word in words if word.isdecimal()] or [1, MANY]
    loops = [word for word in words if word in LOOPS] or LOOPS
    begins = tuple(word for word in words if not word.isdecimal() and word not in LOOPS) or ("",)
    for name in (*ATTACKERS, *SERVE_ATTACKERS):
        if name.startswith(begins):
            yield from ((name, count, loop) for count in counts for loop in loops)


async def attack(name: str, count: int, target: Target) -> None:
    attacker = {**ATTACKERS, **SERVE_ATTACKERS}[name]
    await asyncio.gather(*(attacker(target) for _ in range(count)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["attack"]:
        allow_files()
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(attack(sys.argv[2], int(sys.argv[3]), Target(*map(int, sys.argv[4:]))))
    else:
        main(sys.argv[1:])
