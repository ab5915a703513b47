"""Well-behaved devices beside hostile peers: 100 devices, one line a second each, beside each attacker.

Run it as `python -m tests.bench hostile [ATTACKER…]`. The server is `exproto-app run` as operators start it,
in a process of its own, anew for each attacker; attackers have processes of their own too. For each, by
itself and twenty times over, it tells the devices' p99 and maximum, the server's peak of memory, the slowest
answer of `/healthz`, and how long the server takes to end after SIGTERM while the attack goes on.

A new attacker is one more function in `ATTACKERS`: it gets a `Target`, attacks until it is killed, and
expects nothing of the answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import attrs

from exproto_app.hosts.gateway.users import hash_password
from tests.certificates import Authority

from .figures import show
from .servers import LOOPS, allow_files

__all__ = ["ATTACKERS", "Target", "main"]

DEVICES: Final = 100
SECONDS: Final = 5.0
MANY: Final = 20

P99: Final = 50.0
MOST: Final = 250.0
MEMORY: Final = 150.0
STOP: Final = 2.0
HEALTH: Final = 1.0
"""The bars: milliseconds, milliseconds, MB, seconds, seconds."""

APP: Final = """
from exproto_app import App, Connection
from exproto_app.framing import Line

app = App(framing=Line())


@app.on_received
def received(conn: Connection, frame: bytes) -> bytes:
    return frame


@app.on_received(b"login ")
async def login(conn: Connection, frame: bytes) -> bytes:
    name, password = frame.decode().split()[1:3]
    await conn.register(name, password=password)
    return b"welcome"
"""


@attrs.frozen
class Target:
    """Where a server listens."""

    tcp: int
    udp: int
    tls: int
    health: int


Attacker = Callable[[Target], Coroutine[Any, Any, None]]


# --- the attackers


async def connect(port: int) -> socket.socket | None:
    """Return a connection to *port*; None where there is none, or no file left for it."""
    try:
        sock = socket.socket()
    except OSError:
        await asyncio.sleep(0.01)
        return None
    sock.setblocking(False)
    try:
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port)), 5)
    except (OSError, asyncio.TimeoutError):
        sock.close()
        return None
    return sock


async def nobody(target: Target) -> None:
    """Attack nobody: what the machine itself costs."""
    await asyncio.sleep(3_600)


async def logins(target: Target) -> None:
    """Try wrong passwords of a name that is there, 370 a second, and hang up."""
    while True:
        sock = await connect(target.tcp)
        if sock is not None:
            with sock, contextlib.suppress(OSError):
                sock.send(b"login dev0 wrong%d\n" % random.getrandbits(64))
        await asyncio.sleep(1 / 370)


async def logins_held(target: Target) -> None:
    """The same, of many names, waiting for each answer."""

    async def one() -> None:
        while True:
            sock = await connect(target.tcp)
            if sock is None:
                await asyncio.sleep(0.1)
                continue
            line = b"login dev%d wrong%d\n" % (random.randrange(100), random.getrandbits(64))
            with sock, contextlib.suppress(OSError, asyncio.TimeoutError):
                sock.send(line)
                await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 100), 10)

    await asyncio.gather(*(one() for _ in range(50)))


async def udp_peers(target: Target) -> None:
    """Send a datagram each from ever new ports."""
    while True:
        for _ in range(50):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
                sock.sendto(b"x\n", ("127.0.0.1", target.udp))
        await asyncio.sleep(0.01)


async def half_open(target: Target) -> None:
    """Hold 3,000 connections: TCP without a word, TLS without and with the start of a handshake."""
    held = []
    for number in range(3_000):
        port = target.tls if number % 3 else target.tcp
        sock = await connect(port)
        if sock is not None:
            held.append(sock)
            if number % 3 == 1:
                with contextlib.suppress(OSError):
                    sock.send(b"\x16\x03\x01\x02\x00")
        if number % 20 == 0:
            await asyncio.sleep(0.005)
    await asyncio.sleep(3_600)


async def slow_health(target: Target) -> None:
    """Ask `/healthz`, a byte a second, from 16 connections; come back at once where they are closed."""

    async def one() -> None:
        while True:
            sock = await connect(target.health)
            if sock is None:
                await asyncio.sleep(0.1)
                continue
            with sock, contextlib.suppress(OSError):
                for byte in b"GET /healthz HTTP/1.1\r\n" + b"x" * 1_000:
                    sock.send(bytes([byte]))
                    await asyncio.sleep(1)

    await asyncio.gather(*(one() for _ in range(16)))


async def connects(target: Target) -> None:
    """Connect and hang up, as fast as it goes."""
    while True:
        sock = await connect(target.tcp)
        if sock is not None:
            sock.close()


ATTACKERS: Final[dict[str, Attacker]] = {
    "nobody": nobody,
    "logins": logins,
    "logins_held": logins_held,
    "udp_peers": udp_peers,
    "half_open": half_open,
    "slow_health": slow_health,
    "connects": connects,
}


# --- the server


@contextmanager
def server(folder: Path, loop: str) -> Iterator[tuple[subprocess.Popen[str], Target]]:
    """Run a gateway."""
    listens = [f"{scheme}://127.0.0.1:0" for scheme in ("tcp", "udp", "tls")]
    command = [sys.executable, "-m", "exproto_app", "run", str(folder / "app.py"), "--loop", loop]
    options = ["--users", str(folder / "users"), "--cert", str(folder / "server.pem")]
    options += ["--metrics", "127.0.0.1:0", "--mqtt-listen", "off", "--log-level", "error"]
    process = subprocess.Popen(
        [*command, *options, *(word for listen in listens for word in ("--listen", listen))],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        text = ""
        assert process.stdout is not None
        for line in process.stdout:
            text += line
            if "Ctrl-C" in line:
                break
        ports = dict(re.findall(r"(tcp|udp|tls|http)://127\.0\.0\.1:(\d+)", text))
        yield process, Target(*(int(ports[name]) for name in ("tcp", "udp", "tls", "http")))
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
        reader, writer = await asyncio.open_connection("127.0.0.1", target.tcp)
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


def measure(folder: Path, name: str, count: int, loop: str) -> None:
    """Measure, and print the figures."""
    with ExitStack() as stack:
        process, target = stack.enter_context(server(folder, loop))

        def attack() -> None:
            numbers = map(str, attrs.astuple(target))
            command = [sys.executable, "-m", __spec__.name, "attack", name, str(count), *numbers]
            attacker = subprocess.Popen(command)
            stack.callback(attacker.wait)
            stack.callback(attacker.kill)

        seen = asyncio.run(look(target, attack, with_logins=name.startswith("logins")))
        memory = peak(process.pid)
        asked = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            seen.trouble.append("SIGTERM didn't end it within 60 s")
        stop = time.perf_counter() - asked
    waits = sorted(seen.waits) or [float("inf")]
    p99 = waits[int(len(waits) * 0.99)]
    good = p99 < P99 and waits[-1] < MOST and memory < MEMORY and stop < STOP and seen.health < HEALTH
    words = [f"max={waits[-1]:.0f}ms", f"memory={memory:.0f}MB", f"stop={stop:.1f}s"]
    words += [f"health={seen.health:.2f}s", f"lines={len(seen.waits)}", *dict.fromkeys(seen.trouble)]
    show(
        f"hostile.{name}.{count}.{loop}",
        f"{p99:.1f}",
        "ms-p99",
        bar=P99,
        good=good and not seen.trouble,
        note="at-most " + " ".join(words),
    )


def main(names: list[str] | None = None) -> None:
    allow_files()
    with tempfile.TemporaryDirectory(prefix="exproto-app-bench-") as text:
        folder = Path(text)
        (folder / "app.py").write_text(APP)
        Authority(folder).issue("server")
        hashed = hash_password("right")
        users = [f"{name}{number}:{hashed}\n" for name in ("dev", "good") for number in range(100)]
        (folder / "users").write_text("".join(users))
        for name in names or ATTACKERS:
            for count in (1, MANY):
                for loop in LOOPS:
                    measure(folder, name, count, loop)


async def attack(name: str, count: int, target: Target) -> None:
    await asyncio.gather(*(ATTACKERS[name](target) for _ in range(count)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["attack"]:
        allow_files()
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(attack(sys.argv[2], int(sys.argv[3]), Target(*map(int, sys.argv[4:]))))
    else:
        main(sys.argv[1:])
