"""Behind EMQX: our gRPC service beside a server in the shape of the official example, in turn.

The load is made as EMQX makes it, one call in flight a device, over several connections; it runs in this
process, each server in one of its own. What a message costs is the operating system's account of the server's
process. `python -m tests.bench.grpc SERVER MODE PORT ADAPTER` is a server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from exproto_app import Address, App, Connection, Limits
from exproto_app.commands import Outcome
from exproto_app.framing import Line
from exproto_app.hosts.grpc import AdapterMap, Service
from exproto_app.hosts.grpc import exproto_pb2 as pb
from exproto_app.hosts.grpc.caller import Caller, InboundCall, Take
from exproto_app.hosts.grpc.callers import Callers
from exproto_app.hosts.grpc.client import OK, AdapterClient, Method
from exproto_app.hosts.grpc.link import GrpcLink

from .figures import show

__all__ = ["main"]

HANDLER = "emqx.exproto.v1.ConnectionUnaryHandler"
ADAPTER = "emqx.exproto.v1.ConnectionAdapter"
SECONDS = 3.0
ROUNDS = 3
WIRES = 4
"""Connections to the handler: EMQX has one for each of its schedulers."""

PAYLOAD = b"x" * 63 + b"\n"
PAUSE = 0.1
"""Seconds between two messages of a device, where the server isn't to be kept busy."""

WAIT = 0.1
LINES = 16
CHURN = 100_000
CROWDS = (200, 1_000, 2_000, 5_000)
OPEN = 0.5e-6
"""Seconds of an adapter's time that each open call adds to each answer; so much was seen of EMQX 5.5.1's."""

PATIENCE = 30.0


# --- the servers


def serve_reference(mode: str, port: int, adapter: str) -> None:
    """Serve as EMQX's example does: grpcio with 10 threads, one Send a message."""
    channel = grpc.insecure_channel(adapter)
    send, publish, authenticate = (
        channel.unary_unary(
            f"/{ADAPTER}/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=pb.CodeResponse.FromString,
        )
        for name, request in (
            ("Send", pb.SendBytesRequest),
            ("Publish", pb.PublishRequest),
            ("Authenticate", pb.AuthenticateRequest),
        )
    )
    clients: set[str] = set()

    def received(request: Any, _: Any) -> Any:
        if mode == "crowd":
            if request.conn not in clients:
                clients.add(request.conn)
                info = pb.ClientInfo(proto_name="p", proto_ver="1", clientid=request.conn)
                authenticate(pb.AuthenticateRequest(conn=request.conn, clientinfo=info))
            publish(pb.PublishRequest(conn=request.conn, topic="up", payload=request.bytes))
        send(pb.SendBytesRequest(conn=request.conn, bytes=request.bytes))
        return pb.EmptySuccess()

    def other(_request: Any, _context: Any) -> Any:
        return pb.EmptySuccess()

    methods: dict[str, tuple[Any, Any]] = {
        "OnSocketCreated": (other, pb.SocketCreatedRequest),
        "OnSocketClosed": (other, pb.SocketClosedRequest),
        "OnReceivedBytes": (received, pb.ReceivedBytesRequest),
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            function, request.FromString, pb.EmptySuccess.SerializeToString
        )
        for name, (function, request) in methods.items()
    }
    server = grpc.server(futures.ThreadPoolExecutor(10))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(HANDLER, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


def app_of(mode: str) -> App[Any]:
    app: App[Any] = App(framing=Line(), limits=Limits(first_frame=3600))
    if mode == "wait":

        @app.on_received
        async def slow(conn: Connection[Any], frame: bytes) -> bytes:
            await asyncio.sleep(WAIT)
            return frame

    elif mode == "crowd":

        @app.on_received
        def login(conn: Connection[Any], frame: bytes) -> bytes:
            if conn.client is None:
                conn.register(conn.id)
            conn.publish("up", frame)
            return frame

    else:

        @app.on_received
        def echo(conn: Connection[Any], frame: bytes) -> bytes:
            return frame

    return app


async def serve_ours(mode: str, port: int, adapter: str) -> None:
    if mode == "single":  # as if nothing were coalesced

        def send(link: GrpcLink, chunks: list[bytes]) -> Outcome[None]:
            outcome: Outcome[None] = Outcome(link.broker.waiter)
            link._send_each(deque(chunks), outcome)
            return outcome

        GrpcLink.send = send  # type: ignore[assignment, method-assign] # to be compared with
    async with Service(app_of(mode), Address("127.0.0.1", port), AdapterMap([f"http://{adapter}"])):
        await asyncio.Event().wait()


# --- the load


class Device:
    """A device that sends again as soon as all of its answer is there."""

    __slots__ = ("answered", "bytes_left", "name", "request", "took")

    def __init__(self, number: int, payload: bytes) -> None:
        self.name = b"g1hkAA9lbXF4NUAxMjcuMC4wLjEAAAI+%012d" % number
        self.request = pb.ReceivedBytesRequest(conn=self.name.decode(), bytes=payload).SerializeToString()
        self.bytes_left = 0
        self.answered = asyncio.Event()
        self.took: list[float] = []


class Adapter:
    """What EMQX serves, as far as it is called here; the `Host` of its callers."""

    def __init__(self) -> None:
        self.adapters: Any = self
        self.callers = Callers()
        self.devices: dict[bytes, Device] = {}
        self.methods: Mapping[bytes, tuple[Take, bool]] = {
            f"/{ADAPTER}/Send".encode(): (self._send, False),
            f"/{ADAPTER}/Close".encode(): (self._close, False),
            f"/{ADAPTER}/Authenticate".encode(): (self._done, False),
            f"/{ADAPTER}/Publish".encode(): (self._done, False),
        }
        self.closes = 0

    def find(self, _: str) -> None:
        return None

    def say(self, what: object, text: str, /, *arguments: object) -> None:
        print(text % arguments, file=sys.stderr)

    def count(self, name: str, /) -> None:
        raise AssertionError(name)

    def _done(self, _caller: Caller, _call: InboundCall, _message: bytes) -> bool:
        return True

    def _close(self, _caller: Caller, _call: InboundCall, _message: bytes) -> bool:
        self.closes += 1
        return True

    def _send(self, _caller: Caller, _call: InboundCall, message: bytes) -> bool:
        end = 2 + message[1]
        device = self.devices[message[2:end]]
        # The second field is what is left but its tag and its length, which takes two bytes from 128 on.
        device.bytes_left -= len(message) - end - (2 if len(message) - end - 2 < 128 else 3)
        if device.bytes_left <= 0:
            device.answered.set()
        return True


class SlowAdapter(Adapter):
    """An adapter that answers one call after another, each the slower, the more are open."""

    def __init__(self) -> None:
        super().__init__()
        self._open: deque[tuple[Take, Caller, InboundCall, bytes]] = deque()
        self.methods = {path: (partial(self._take, take), False) for path, (take, _) in self.methods.items()}

    def _take(self, take: Take, caller: Caller, call: InboundCall, message: bytes) -> bool:
        self._open.append((take, caller, call, message))
        if len(self._open) == 1:
            asyncio.get_running_loop().call_soon(self._answer)
        return False

    def _answer(self) -> None:
        until = time.perf_counter() + OPEN * len(self._open)
        while time.perf_counter() < until:
            pass
        take, caller, call, message = self._open.popleft()
        take(caller, call, message)
        caller.answer(call.stream)
        if self._open:
            asyncio.get_running_loop().call_soon(self._answer)


class Load:
    """One server in a process of its own, and what EMQX would be to it."""

    def __init__(self, server: str, mode: str = "echo") -> None:
        self.server = server
        self.mode = mode
        self.adapter = SlowAdapter() if mode == "crowd" else Adapter()
        self.process: subprocess.Popen[bytes]
        self._listener: asyncio.Server
        self._clients: list[tuple[AdapterClient, dict[str, Method]]] = []
        self._numbers = iter(range(10**9))

    async def serve_adapter(self) -> str:
        """Serve the adapter; return where."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: Caller(self.adapter).protocol, "127.0.0.1", 0)
        return f"127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    def dial(self, port: int) -> None:
        """Connect to the service at *port*, as often as a broker does."""
        for _ in range(WIRES):
            client = AdapterClient("127.0.0.1", port)
            names = ("OnSocketCreated", "OnReceivedBytes", "OnSocketClosed")
            self._clients.append((client, {name: client.method(f"/{HANDLER}/{name}") for name in names}))

    async def close(self) -> None:
        """Let go of the service, and serve no adapter any more."""
        for client, _ in self._clients:
            await client.close()
        self._listener.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        where = await self.serve_adapter()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "tests.bench.grpc", self.server, self.mode, str(port), where]
        self.process = subprocess.Popen(command)  # noqa: ASYNC220 - nothing else runs yet
        try:
            await listening(port)
            self.dial(port)
            yield self
        finally:
            self.process.kill()
            self.process.wait()
            await self.close()

    async def call(self, number: int, name: str, message: bytes) -> None:
        client, methods = self._clients[number % WIRES]
        answered: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

        def done(status: int, words: bytes) -> None:
            if not answered.done():
                answered.set_result((status, words))

        client.call(methods[name], message, done)
        status, words = await answered
        assert status == OK, words

    async def connect(self, payload: bytes = PAYLOAD) -> tuple[int, Device]:
        number = next(self._numbers)
        device = Device(number, payload)
        self.adapter.devices[device.name] = device
        about = pb.ConnInfo(
            peername=pb.Address(host="127.0.0.1", port=number % 60_000 + 1),
            sockname=pb.Address(host="127.0.0.1", port=7993),
        )
        created = pb.SocketCreatedRequest(conn=device.name.decode(), conninfo=about)
        await self.call(number, "OnSocketCreated", created.SerializeToString())
        return number, device

    async def hang_up(self, number: int, device: Device) -> None:
        closed = pb.SocketClosedRequest(conn=device.name.decode(), reason="{shutdown,tcp_closed}")
        await self.call(number, "OnSocketClosed", closed.SerializeToString())
        del self.adapter.devices[device.name]

    async def talk(self, number: int, device: Device, size: int) -> None:
        begin = time.perf_counter()
        device.answered.clear()
        device.bytes_left += size
        await self.call(number, "OnReceivedBytes", device.request)
        await device.answered.wait()
        device.took.append(time.perf_counter() - begin)

    async def measure(
        self, count: int, *, lines: int = 1, seconds: float = SECONDS, pause: float = 0.0
    ) -> dict[str, float]:
        """Have *count* devices talk, with a *pause* between; return rate, CPU a message, and times."""
        payload = PAYLOAD * lines
        devices = [await self.connect(payload) for _ in range(count)]
        stop = False

        async def keep_talking(number: int, device: Device) -> None:
            while not stop:
                await self.talk(number, device, len(payload))
                if pause:
                    await asyncio.sleep(pause)

        tasks = [asyncio.ensure_future(keep_talking(*device)) for device in devices]
        await asyncio.sleep(seconds / 3)
        for _ in range(int(PATIENCE * 10)):
            if all(device.took for _, device in devices):
                break
            await asyncio.sleep(0.1)
        for _, device in devices:
            device.took.clear()
        cpu, begin = cpu_of(self.process.pid), time.perf_counter()
        await asyncio.sleep(seconds)
        cpu, took = cpu_of(self.process.pid) - cpu, time.perf_counter() - begin
        times = sorted(one for _, device in devices for one in device.took) or [seconds]
        stop = True
        _, stuck = await asyncio.wait(tasks, timeout=PATIENCE)
        for task in stuck:
            task.cancel()
        for number, device in devices:
            await self.hang_up(number, device)
        messages = len(times) * lines
        return {
            "rate": messages / took,
            "cpu": cpu / messages * 1e6,
            "p99": times[int(len(times) * 0.99)] * 1e3,
            "stuck": len(stuck),
        }


async def listening(port: int) -> None:
    """Wait until a server listens there."""
    deadline = time.monotonic() + PATIENCE
    with socket.socket() as probe:
        while probe.connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < deadline, "the server doesn't start"
            await asyncio.sleep(0.05)


def cpu_of(pid: int) -> float:
    """Return the seconds of CPU that a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def memory_of(pid: int) -> int:
    """Return the kilobytes of memory that a process has."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


async def beside_the_example() -> None:
    found: dict[str, list[dict[str, float]]] = {"reference": [], "ours": []}
    calm: dict[str, list[float]] = {"reference": [], "ours": []}
    async with Load("reference").running() as reference, Load("ours").running() as ours:
        for _ in range(ROUNDS):
            for load in (reference, ours):
                found[load.server].append(await load.measure(100))
                calm[load.server].append((await load.measure(100, pause=PAUSE))["cpu"])

    def median(server: str, name: str) -> float:
        return statistics.median(one[name] for one in found[server])

    note = "beside grpcio with 10 threads, 64-byte echo, 100 devices, one call in flight each"
    cpu, theirs = median("ours", "cpu"), median("reference", "cpu")
    bound = "bounded by HTTP/2 frames in Python, so past it: more processes, one a broker node"
    show(
        "grpc_cpu",
        f"{cpu:.0f}",
        "us/message",
        ratio=cpu / theirs,
        bar=1.0,
        good=cpu <= theirs,
        note=f"at most the bar; {note}; theirs {theirs:.0f}; {bound}",
    )
    cpu, theirs = statistics.median(calm["ours"]), statistics.median(calm["reference"])
    show(
        "grpc_cpu_calm",
        f"{cpu:.0f}",
        "us/message",
        ratio=cpu / theirs,
        bar=1.0,
        good=cpu <= theirs,
        note=f"at most the bar; below 1000 messages/s, so that nothing is read or written together; "
        f"theirs {theirs:.0f}",
    )
    rate, theirs = median("ours", "rate"), median("reference", "rate")
    show("grpc_rate", f"{rate:.0f}", "messages/s", ratio=rate / theirs, bar=1.0, note=f"theirs {theirs:.0f}")
    p99, theirs = median("ours", "p99"), median("reference", "p99")
    show(
        "grpc_p99",
        f"{p99:.1f}",
        "ms",
        ratio=p99 / theirs,
        bar=1.0,
        good=p99 <= theirs,
        note=f"at most the bar; theirs {theirs:.1f}",
    )


async def with_a_wait() -> None:
    rates: dict[str, list[float]] = {"echo": [], "wait": []}
    async with Load("ours").running() as plain, Load("ours", "wait").running() as waiting:
        for _ in range(ROUNDS):
            for load in (plain, waiting):
                rates[load.mode].append((await load.measure(200))["rate"])
    own, rate = statistics.median(rates["echo"]), statistics.median(rates["wait"])
    note = f"the handler awaits 100 ms, 200 devices; of the smaller of 2000 and {own:.0f} without the wait"
    show("grpc_wait", f"{rate:.0f}", "messages/s", ratio=rate / min(2000.0, own), bar=0.75, note=note)


async def outstanding() -> None:
    rates: dict[str, list[float]] = {"echo": [], "single": []}
    async with Load("ours").running() as joined, Load("ours", "single").running() as single:
        for _ in range(ROUNDS):
            for load in (joined, single):
                rates[load.mode].append((await load.measure(100, lines=LINES))["rate"])
    rate, without = statistics.median(rates["echo"]), statistics.median(rates["single"])
    note = f"16 lines outstanding at 100 devices; {without:.0f} with one Send a line"
    show("grpc_joined", f"{rate:.0f}", "lines/s", ratio=rate / without, bar=4, note=note)


async def many() -> None:
    async with Load("ours").running() as load:
        found = await load.measure(2000, seconds=2 * SECONDS)
    note = f"of 2000 devices; {found['rate']:.0f} messages/s, p99 {found['p99']:.0f} ms"
    show("grpc_stuck", f"{found['stuck']:.0f}", "devices", bar=0, good=not found["stuck"], note=note)


async def crowds() -> None:
    """Devices that register, publish and echo at once; the adapter is the slower, the more it is asked."""
    for count in CROWDS:
        found = {}
        lost = 0
        for server in ("reference", "ours"):
            load = Load(server, "crowd")
            async with load.running():
                found[server] = await load.measure(count)
                lost = load.adapter.closes
        ours, theirs = found["ours"], found["reference"]
        note = (
            f"register, publish, echo; grpcio with 10 threads {theirs['rate']:.0f}; p99 {ours['p99']:.0f} ms"
        )
        show(
            f"grpc_crowd_{count}",
            f"{ours['rate']:.0f}",
            "messages/s",
            ratio=ours["rate"] / theirs["rate"],
            bar=1.0,
            note=note,
        )
        gone = ours["stuck"] + lost
        note = f"of {count} devices lost or stuck; grpcio's are {theirs['stuck']:.0f}"
        show(f"grpc_crowd_{count}_lost", f"{gone:.0f}", "devices", bar=0, good=not gone, note=note)


async def churn() -> None:
    async with Load("ours").running() as load:

        async def come_and_go(times: int) -> None:
            for _ in range(times):
                number, device = await load.connect()
                await load.talk(number, device, len(PAYLOAD))
                await load.hang_up(number, device)

        async def all_of_them(times: int) -> int:
            await asyncio.gather(*[come_and_go(times // 200) for _ in range(200)])
            return memory_of(load.process.pid)

        before = await all_of_them(CHURN // 4)
        after = await all_of_them(CHURN)
    grown = after - before
    note = f"after {CHURN} more connects and disconnects; {before} kB before"
    show("grpc_churn", f"{grown}", "kB", bar=1000, good=grown <= 1000, note=f"at most the bar; {note}")


def main() -> None:
    for part in (beside_the_example, with_a_wait, outstanding, many, crowds, churn):
        asyncio.run(part())


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    elif sys.argv[1] == "reference":
        serve_reference(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        asyncio.run(serve_ours(sys.argv[2], int(sys.argv[3]), sys.argv[4]))
