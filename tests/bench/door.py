"""What the hub's MQTT server carries: one publisher to one subscriber, to a hundred; memory per idle client.

Run it as `python -m tests.bench door`. The clients write bytes that were made before and compare nothing, the
server has a process of its own, and what counts is the processor time that it takes for a message: so a busy
machine changes little. Where amqtt is installed its broker is measured beside ours: `ratio` compares.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

from .figures import show

__all__ = ["main"]

MESSAGES = 20_000
ROUNDS = 3
FAN_OUT = 100
IDLE = 500
WINDOW = 16
"""Messages of QoS 1 that are unacknowledged at once."""

PAYLOAD = bytes(64)
TOPIC = b"\x00\x01t"
QOS_0 = b"\x30\x43" + TOPIC + PAYLOAD
BAR = 5.0
"""Times the rate of amqtt."""

OURS = """
import asyncio, sys
from exproto_app import App
from exproto_app.hosts.mqtt_server import MqttServer
from exproto_app.hosts.gateway import Gateway
from exproto_app.hub import MemoryHub
from exproto_app.models import Address
async def main():
    app, hub = App(), MemoryHub()
    app.on_connect(lambda conn: None)
    async with Gateway(app, ["tcp://127.0.0.1:0"], hub=hub) as host:
        server = MqttServer(hub, Address("127.0.0.1", 0))
        await server.start(host.runner.engine)
        print(server.address.port, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await server.stop()
"""

THEIRS = """
import asyncio, sys, socket, logging
logging.disable(logging.CRITICAL)
from amqtt.broker import Broker
async def main():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    listeners = {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}}
    broker = Broker({"listeners": listeners, "plugins": plugins})
    await broker.start()
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await broker.shutdown()
"""

ASYNCIO = "asyncio.run(main())"
UVLOOP = "import uvloop; uvloop.run(main())"


class Server:
    """A server in a process of its own."""

    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    @property
    def memory(self) -> int:
        """Bytes that it takes of the machine's memory."""
        text = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii")
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def processor(self) -> float:
        """Seconds of processor time that it has taken."""
        text = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii")
        user, system = text.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(code: str) -> Iterator[Server]:
    server = Server(code)
    try:
        yield server
    finally:
        server.process.communicate("")


@contextlib.asynccontextmanager
async def client(
    server: Server, name: str, qos: int | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect; with *qos* subscribe to the topic too."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        text = name.encode()
        body = b"\x00\x04MQTT\x04\x02\x00\x00" + len(text).to_bytes(2, "big") + text
        writer.write(bytes((0x10, len(body))) + body)
        assert await reader.readexactly(4) == b"\x20\x02\x00\x00"
        if qos is not None:
            writer.write(b"\x82\x06\x00\x01" + TOPIC + bytes((qos,)))
            await reader.readexactly(5)
        yield reader, writer
    finally:
        writer.close()


async def flow_0(server: Server, subscribers: int, messages: int) -> int:
    """Send messages of QoS 0, in waves so that no queue overflows; return how many deliveries that were."""
    wave, size = max(400 // subscribers, 4), len(QOS_0)
    async with contextlib.AsyncExitStack() as stack:
        readers = [
            (await stack.enter_async_context(client(server, f"s{number}", 0)))[0]
            for number in range(subscribers)
        ]
        _, writer = await stack.enter_async_context(client(server, "p"))
        for _ in range(messages // wave):
            writer.write(QOS_0 * wave)
            for reader in readers:
                await reader.readexactly(size * wave)
        return messages // wave * wave * subscribers


async def flow_1(server: Server, messages: int) -> int:
    """Send messages of QoS 1 from one client to another, acknowledged by both; return how many."""
    async with client(server, "s", 1) as (there, answers), client(server, "p") as (acks, writer):
        for first in range(0, messages // WINDOW * WINDOW, WINDOW):
            ids = [(first + number) % 60_000 + 1 for number in range(WINDOW)]
            writer.write(
                b"".join(b"\x32\x45" + TOPIC + packet_id.to_bytes(2, "big") + PAYLOAD for packet_id in ids)
            )
            got = await there.readexactly(71 * WINDOW)
            answers.write(b"".join(b"\x40\x02" + got[at + 5 : at + 7] for at in range(0, len(got), 71)))
            await acks.readexactly(4 * WINDOW)
        return messages // WINDOW * WINDOW


async def idle(server: Server) -> float:
    """Return the bytes that a client takes which is connected and subscribed."""
    async with contextlib.AsyncExitStack() as stack:
        for number in range(10):
            await stack.enter_async_context(client(server, f"warm{number}", 1))
        before = server.memory
        for number in range(IDLE):
            await stack.enter_async_context(client(server, f"i{number}", 1))
        return (server.memory - before) / IDLE


def rates(code: str, messages: int) -> dict[str, float]:
    """Measure a server: messages a second of its processor time, the best of a few rounds of each figure."""
    with running(code) as server:
        kinds: dict[str, Callable[[], Awaitable[int]]] = {
            "qos_0": lambda: flow_0(server, 1, messages),
            "qos_1": lambda: flow_1(server, messages),
            f"fan_out_{FAN_OUT}": lambda: flow_0(server, FAN_OUT, messages // 20),
        }
        found = {name: max(measured(server, flow) for _ in range(ROUNDS)) for name, flow in kinds.items()}
    with running(code) as server:
        found["idle_client"] = asyncio.run(idle(server))
    return found


def measured(server: Server, flow: Callable[[], Awaitable[int]]) -> float:
    """Return the messages a second of the server's processor time."""

    async def run() -> int:
        return await flow()

    before = server.processor
    number = asyncio.run(run())
    return number / (server.processor - before)


def main() -> None:
    """Print what each loop carries, and beside it amqtt."""
    theirs = rates(THEIRS + ASYNCIO, MESSAGES // 10) if importlib.util.find_spec("amqtt") else {}
    loops = {"asyncio": ASYNCIO}
    if importlib.util.find_spec("uvloop"):
        loops["uvloop"] = UVLOOP
    for loop, how in loops.items():
        for name, value in rates(OURS + how, MESSAGES).items():
            other = theirs.get(name)
            note = "amqtt=not_installed" if other is None else f"amqtt={other:.0f}"
            if name == "idle_client":
                ratio = None if other is None else other / value
                show(f"door.{name}.{loop}", f"{value:.0f}", "bytes", ratio=ratio, note=note)
                continue
            ratio = None if other is None else value / other
            bar = None if other is None else BAR
            show(f"door.{name}.{loop}", f"{value:.0f}", "messages/cpu_s", ratio=ratio, bar=bar, note=note)
