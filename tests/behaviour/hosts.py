"""The hosts that the behaviour suite runs on, all spoken to in the same way: as devices and as a broker.

A host serves one app of `apps.py`, or an example. A test never looks inside: it sends bytes as a device,
waits for bytes, and waits for what the app has published. Every wait is bounded by `PATIENCE`, and over at
once when what it waits for has come; where a host has virtual time, waiting lets it pass.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import itertools
import os
import queue
import select
import socket
import tempfile
import threading
import time
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from OpenSSL import SSL
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Request

from exproto_app import App, ClientInfo, Message, SetupError
from exproto_app.commands import Publish
from exproto_app.core import Channel, Hub
from exproto_app.hosts.gateway import DialOptions, Gateway, Listen, Options
from exproto_app.hosts.gateway.faults import info_of
from exproto_app.hub import MemoryHub
from exproto_app.ops.recorder import Recorder
from exproto_app.target import load
from exproto_app.testing import TestClient
from tests.certificates import Authority
from tests.dtls_client import DtlsClient

from . import apps

__all__ = ["HOSTS", "PASSWORD", "PATIENCE", "Device", "Host", "listeners", "login", "target_of"]

PATIENCE = 60.0
"""Seconds until a test gives up; real ones, where time isn't virtual."""

STEP = 0.02
"""Virtual seconds that pass at a time while a test waits."""

DATAGRAM = 8_000
"""Bytes of a datagram at most."""

PASSWORD = "s3cret"
"""The one that every host's broker takes; a device that shows none is let in too."""


class Device(abc.ABC):
    """A device, connected to the app."""

    @abc.abstractmethod
    def send(self, data: bytes) -> None:
        """Send *data*; on UDP, as one datagram."""

    @abc.abstractmethod
    def read(self, count: int) -> bytes:
        """Return the next *count* bytes as soon as they have come, fewer if the connection ends before."""

    @abc.abstractmethod
    def hang_up(self) -> None:
        """Close the connection."""

    def stop_reading(self) -> None:  # noqa: B027 - most devices read only when they expect something
        """Leave unread what is sent; for hosts that would read by themselves."""

    def expect(self, data: bytes) -> None:
        """Wait for the next bytes, and assert that they are *data*."""
        assert self.read(len(data)) == data

    def read_line(self) -> bytes:
        """Return the bytes up to the next newline as soon as they have come."""
        line = b""
        while not line.endswith(b"\n"):
            more = self.read(1)
            assert more, f"the connection ended behind {line!r}"
            line += more
        return line

    def expect_unordered(self, *parts: bytes) -> None:
        """Wait for *parts*, in any order."""
        got = self.read(len(b"".join(parts)))
        assert got in {b"".join(order) for order in itertools.permutations(parts)}

    def expect_end(self) -> None:
        """Wait until the host closes the connection; assert that nothing more was sent."""
        assert self.read(1) == b""


class Host(Protocol):
    """One app, served; a test begins with a fresh one, or with names of its own (`unique`)."""

    abilities: frozenset[str]
    """What not every host has: `stream` (bytes may be cut anywhere), `udp`, `unknown` (connections that the
    process never saw begin), `pressure` (it has the device's socket, so it sees a device that doesn't read),
    `retain` (it retains messages), `address` (devices have an IP address), `kernel` (its buffers hold what
    one side sends while the other doesn't read, and what was sent before a hang-up), `flow` (who sends too
    fast is held back), `sessions` (they outlive a connection), `properties` (messages have those of MQTT 5),
    `roaming`, `log` (it is this process that logs), `once` (a message that several filters of a client match
    comes once, which MQTT leaves to the broker), `apart` (what others have subscribed to brings a client no
    more copies, which one client at the broker for all devices needs MQTT 5 for)."""

    socktype: str
    """What a stream's connection says that it is."""

    def connect(self, protocol: str | None = None, *, udp: bool = False, unknown: bool = False) -> Device:
        """Connect a device to the listener of *protocol*, or of all that the app has (`listeners`)."""
        ...

    def publish(self, topic: str, payload: bytes, qos: int = 0) -> None:
        """Have somebody else publish through the broker."""
        ...

    def published(self, topic: str) -> bytes:
        """Wait for the next message that the app published to *topic*; return its payload."""
        ...


def listeners(app: App[Any]) -> list[str]:
    """Return what *app* is served as: each protocol, and all together where sniffing tells them apart."""
    names = list(app.protocols)
    together = ",".join(names)
    with contextlib.suppress(SetupError):
        if len(app.find_protocols(together)) > 1:
            names.append(together)
    return names


async def login(client: ClientInfo, password: str | None) -> bool:
    """Take the password, or none at all, as a broker does: after a while."""
    await asyncio.sleep(0.001)
    return password in (None, PASSWORD)


# --- in memory


class MemoryDevice(Device):
    """A `TestClient` that lets time pass while it waits."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.seen = b""

    def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # closed already: what is expected next will tell
            self.client.send(data)

    def read(self, count: int) -> bytes:
        self.seen += self.client.recv()
        for _ in range(int(PATIENCE / STEP)):
            if len(self.seen) >= count or self.client.closed:
                break
            self.client.advance(STEP)
            self.seen += self.client.recv()
        else:
            raise AssertionError(f"nothing came within {PATIENCE:g} s; before: {self.seen!r}")
        data, self.seen = self.seen[:count], self.seen[count:]
        return data

    def stop_reading(self) -> None:
        self.client.stop_reading()

    def hang_up(self) -> None:
        self.client.close()


class MemoryHost:
    """An app in memory."""

    socktype = "tcp"

    abilities = frozenset(
        {
            "log",
            "address",
            "flow",
            "kernel",
            "stream",
            "udp",
            "unknown",
            "pressure",
            "retain",
            "sessions",
            "properties",
            "roaming",
            "once",
            "apart",
            "children",
        }
    )

    def __init__(self, app: App[Any], stack: contextlib.ExitStack) -> None:
        self._app = app
        self._stack = stack
        self._clients: list[TestClient] = []
        self._taken: dict[tuple[int, str], int] = {}

    def connect(
        self, protocol: str | None = None, *, udp: bool = False, unknown: bool = False
    ) -> MemoryDevice:
        socktype: Any = "udp" if udp else "tcp"
        if self._clients:
            client = self._clients[0].another(protocol, socktype=socktype, restarted=unknown)
        else:
            client = TestClient(
                self._app, protocol, login=login, socktype=socktype, raise_errors=False, restarted=unknown
            )
            self._stack.enter_context(client)
        self._clients.append(client)
        return MemoryDevice(client)

    def publish(self, topic: str, payload: bytes, qos: int = 0) -> None:
        self._clients[0].publish(topic, payload, qos)

    def published(self, topic: str) -> bytes:
        for _ in range(int(PATIENCE / STEP)):
            sources = [client.published for client in self._clients] + [self._clients[0].app_published]
            for number, messages in enumerate(sources):
                found = [message.payload for message in messages if message.topic == topic]
                key = (-1 if number == len(self._clients) else number), topic
                taken = self._taken.get(key, 0)
                if len(found) > taken:
                    self._taken[key] = taken + 1
                    return found[taken]
            self._clients[0].advance(STEP)
        raise AssertionError(f"nothing was published to {topic!r}")


# --- over real sockets


class Published:
    """What was published, by topic, for whoever waits for it."""

    def __init__(self) -> None:
        self._topics: dict[str, queue.Queue[bytes]] = {}
        self._lock = threading.Lock()

    def put(self, topic: str, payload: bytes) -> None:
        """Take note of a message."""
        self._of(topic).put(payload)

    def get(self, topic: str) -> bytes:
        """Wait for the next message to *topic*."""
        try:
            return self._of(topic).get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError(f"nothing was published to {topic!r}") from None

    def _of(self, topic: str) -> queue.Queue[bytes]:
        with self._lock:
            return self._topics.setdefault(topic, queue.Queue())


class SocketDevice(Device):
    """A device on a real socket."""

    def __init__(self, address: tuple[str, int] | str, *, udp: bool = False) -> None:
        if isinstance(address, str):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(address)
        elif udp:
            self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.sock.connect(address)
        else:
            self.sock = socket.create_connection(address, timeout=PATIENCE)
        self.sock.settimeout(PATIENCE)
        self.seen = b""

    def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # closed meanwhile: what is expected next will tell
            self.sock.sendall(data)

    def read(self, count: int) -> bytes:
        while len(self.seen) < count:
            try:
                more = self.receive()
            except ConnectionError:
                more = b""
            except TimeoutError:
                raise AssertionError(f"nothing came within {PATIENCE:g} s; before: {self.seen!r}") from None
            if not more:
                break
            self.seen += more
        data, self.seen = self.seen[:count], self.seen[count:]
        return data

    def receive(self) -> bytes:
        """Wait for more bytes; none are the end."""
        return self.sock.recv(65_536)

    def hang_up(self) -> None:
        self.sock.close()


class GatewayHost:
    """An app on its own gateway, in a thread of its own."""

    socktype = "tcp"

    abilities = frozenset(
        {
            "log",
            "address",
            "flow",
            "kernel",
            "stream",
            "udp",
            "pressure",
            "retain",
            "sessions",
            "properties",
            "roaming",
            "once",
            "apart",
            "children",
        }
    )

    def __init__(self, app: App[Any], stack: contextlib.ExitStack, hub: Hub | None = None) -> None:
        self._app = app
        self._stack = stack
        self._published = Published()
        self._loop = asyncio.new_event_loop()
        self._hub = hub or MemoryHub(login, watch=self._watch)
        self._gateway = self._make()
        started = threading.Event()
        self._stop = asyncio.Event()
        thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(started),))
        thread.start()
        stack.callback(self._loop.close)
        stack.callback(thread.join, PATIENCE)
        stack.callback(self._loop.call_soon_threadsafe, self._stop.set)
        assert started.wait(PATIENCE)

    def _make(self) -> Gateway:
        listens = [f"{name}={kind}://127.0.0.1:0" for name in listeners(self._app) for kind in ("tcp", "udp")]
        return Gateway(self._app, listens, hub=self._hub)

    async def _serve(self, started: threading.Event) -> None:
        async with self._gateway:
            started.set()
            await self._stop.wait()

    def _watch(self, _: Channel | None, message: Message) -> None:
        self._published.put(message.topic, message.payload)

    def connect(self, protocol: str | None = None, *, udp: bool = False, unknown: bool = False) -> Device:
        served = self._app.find_protocols(protocol)
        scheme = "udp" if udp else "tcp"
        for listen, routers, address in self._gateway.addresses:
            if routers == served and listen.scheme == scheme:
                device = SocketDevice((address.host, address.port), udp=udp)
                self._stack.callback(device.hang_up)
                return device
        raise AssertionError(f"no listener for {protocol} on {scheme}")

    def publish(self, topic: str, payload: bytes, qos: int = 0) -> None:
        self._loop.call_soon_threadsafe(self._hub.publish, Publish(topic, payload, qos))

    def published(self, topic: str) -> bytes:
        return self._published.get(topic)


class DialledDevice(SocketDevice):
    """A device that waits to be called."""

    def __init__(self) -> None:
        self.seen = b""
        self._waiting = socket.create_server(("127.0.0.1", 0))
        self._waiting.settimeout(PATIENCE)
        self.port: int = self._waiting.getsockname()[1]

    def answer(self) -> None:
        """Take the call."""
        self.sock, _ = self._waiting.accept()
        self.sock.settimeout(PATIENCE)

    def hang_up(self) -> None:
        self._waiting.close()
        super().hang_up()


class DialHost(GatewayHost):
    """An app whose gateway dials every device, as soon as a test wants it to connect."""

    abilities = GatewayHost.abilities - {"udp"}

    def _make(self) -> Gateway:
        self._calls: asyncio.Queue[str] = asyncio.Queue()
        self._app.dial(self._targets)
        self._stack.callback(self._app.dialled.clear)
        options = Options(dial=DialOptions(rate=10_000))
        return Gateway(self._app, [], hub=self._hub, options=options)

    async def _targets(self) -> AsyncIterator[str]:
        while True:
            yield await self._calls.get()

    def connect(self, protocol: str | None = None, *, udp: bool = False, unknown: bool = False) -> Device:
        device = DialledDevice()
        name = protocol or next(iter(self._app.protocols))
        self._loop.call_soon_threadsafe(self._calls.put_nowait, f"{name}=tcp://127.0.0.1:{device.port}")
        device.answer()
        self._stack.callback(device.hang_up)
        return device


class UnixHost(GatewayHost):
    """An app on Unix sockets."""

    abilities = GatewayHost.abilities - {"address", "udp"}
    socktype = "unix"

    def _make(self) -> Gateway:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="exproto"))
        listens = [f"{name}=unix://{folder}/{at}" for at, name in enumerate(listeners(self._app))]
        return Gateway(self._app, listens, hub=self._hub)

    def connect(self, protocol: str | None = None, *, udp: bool = False, unknown: bool = False) -> Device:
        served = self._app.find_protocols(protocol)
        path = next(listen.path for listen, routers, _ in self._gateway.addresses if routers == served)
        device = SocketDevice(path)
        self._stack.callback(device.hang_up)
        return device


class WebSocketDevice(SocketDevice):
    """A device that sends each piece as a message."""

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address)
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self.sock.sendall(self._protocol.send(Request(host="test", target="/")))
        while self._protocol.state is not ConnectionState.OPEN:
            self._protocol.receive_data(self.sock.recv(1))
            list(self._protocol.events())

    def send(self, data: bytes) -> None:
        super().send(self._protocol.send(BytesMessage(data)))

    def receive(self) -> bytes:
        while data := super().receive():
            self._protocol.receive_data(data)
            got = b""
            for event in self._protocol.events():
                if isinstance(event, BytesMessage):
                    got += event.data
                elif isinstance(event, CloseConnection):
                    super().send(self._protocol.send(event.response()))
            if got:
                return got
        return b""


class WebSocketHost(GatewayHost):
    """An app on WebSocket listeners."""

    abilities = GatewayHost.abilities - {"udp"}
    socktype = "ws"

    def _make(self) -> Gateway:
        listens = [f"{name}=ws://127.0.0.1:0" for name in listeners(self._app)]
        return Gateway(self._app, listens, hub=self._hub)

    def connect(self, protocol: str | None = None, *, udp: bool = False, unknown: bool = False) -> Device:
        served = self._app.find_protocols(protocol)
        address = next(address for _, routers, address in self._gateway.addresses if routers == served)
        device = WebSocketDevice((address.host, address.port))
        self._stack.callback(device.hang_up)
        return device


class DtlsDevice(SocketDevice):
    """A device that sends lines in datagrams, which are encrypted."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.seen = b""
        self._client = DtlsClient(address)
        self._client.shake()

    def send(self, data: bytes) -> None:
        with contextlib.suppress(OSError, SSL.Error):
            for piece in pieces_of(data):
                self._client.send(piece)

    def receive(self) -> bytes:
        return self._client.receive()

    def hang_up(self) -> None:
        self._client.close()


def pieces_of(data: bytes) -> Iterator[bytes]:
    """Yield *data* in pieces that datagrams can carry, cut behind lines."""
    while len(data) > DATAGRAM:
        at = data.rfind(b"\n", 0, DATAGRAM) + 1 or DATAGRAM
        yield data[:at]
        data = data[at:]
    yield data


class DtlsHost(GatewayHost):
    """An app on DTLS listeners."""

    abilities = GatewayHost.abilities - {"flow", "kernel", "pressure", "stream"}
    socktype = "dtls"

    def _make(self) -> Gateway:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="exproto")))
        cert = str(Authority(folder).issue("server"))
        listens = [Listen.parse(f"{name}=dtls://127.0.0.1:0", cert=cert) for name in listeners(self._app)]
        return Gateway(self._app, listens, hub=self._hub)

    def connect(self, protocol: str | None = None, *, udp: bool = False, unknown: bool = False) -> Device:
        served = self._app.find_protocols(protocol)
        address = next(address for _, routers, address in self._gateway.addresses if routers == served)
        device = DtlsDevice((address.host, address.port))
        self._stack.callback(device.hang_up)
        return device


class SerialDevice(SocketDevice):
    """A device on a serial line: a pseudo-terminal."""

    def __init__(self) -> None:
        self.seen = b""
        self._fd, self.theirs = os.openpty()
        os.set_blocking(self._fd, False)
        tty.setraw(self.theirs)
        self.path = os.ttyname(self.theirs)

    def send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            while data:
                select.select([], [self._fd], [], PATIENCE)
                data = data[os.write(self._fd, data) :]

    def receive(self) -> bytes:
        if not select.select([self._fd], [], [], PATIENCE)[0]:
            raise TimeoutError
        try:
            return os.read(self._fd, 65_536)
        except OSError:  # nobody has the port open any more
            return b""

    def hang_up(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class SerialHost(DialHost):
    """An app whose gateway opens a serial port for every device."""

    abilities = DialHost.abilities - {"address", "flow", "kernel", "pressure"}
    socktype = "serial"

    def connect(self, protocol: str | None = None, *, udp: bool = False, unknown: bool = False) -> Device:
        device = SerialDevice()
        name = protocol or next(iter(self._app.protocols))
        self._loop.call_soon_threadsafe(self._calls.put_nowait, f"{name}=serial://{device.path}")
        while not self._open(device.path):  # opening wakes nobody, and what was sent before would be lost
            time.sleep(0.001)
        os.close(device.theirs)
        self._stack.callback(device.hang_up)
        return device

    def _open(self, path: str) -> bool:
        future = asyncio.run_coroutine_threadsafe(self._paths(), self._loop)
        return path in future.result(PATIENCE)

    async def _paths(self) -> set[str]:
        return {info_of(one).peername.host for one in self._gateway.runner.engine.connections()}


def target_of(name: str) -> str:
    """Return where the app of this name is: in `apps.py`, or, as `gt06.py`, among the examples."""
    here = Path(__file__)
    if name.endswith(".py"):
        return str(here.parents[2] / "examples" / name)
    return f"{here.with_name('apps.py')}:{name}"


def app_of(name: str, stack: contextlib.ExitStack, record: Path | None) -> App[Any]:
    """Return the app of this name; it is recorded if *record* says where."""
    app: App[Any] = load(target_of(name)) if name.endswith(".py") else getattr(apps, name)
    if record is not None:
        recorder = Recorder(record)
        app.watch(recorder)
        stack.callback(recorder.close)
        stack.callback(app.unwatch, recorder)
    return app


def memory(
    app: str, stack: contextlib.ExitStack, _: pytest.FixtureRequest, record: Path | None = None
) -> Host:
    """Serve the app of this name in memory."""
    return MemoryHost(app_of(app, stack, record), stack)


def gateway(
    app: str, stack: contextlib.ExitStack, _: pytest.FixtureRequest, record: Path | None = None
) -> Host:
    """Serve the app of this name on real sockets."""
    return GatewayHost(app_of(app, stack, record), stack)


def dial(app: str, stack: contextlib.ExitStack, _: pytest.FixtureRequest, record: Path | None = None) -> Host:
    """Serve the app of this name to devices that are dialled."""
    return DialHost(app_of(app, stack, record), stack)


def unix(app: str, stack: contextlib.ExitStack, _: pytest.FixtureRequest, record: Path | None = None) -> Host:
    """Serve the app of this name on Unix sockets."""
    return UnixHost(app_of(app, stack, record), stack)


def websocket(
    app: str, stack: contextlib.ExitStack, _: pytest.FixtureRequest, record: Path | None = None
) -> Host:
    """Serve the app of this name on WebSocket."""
    return WebSocketHost(app_of(app, stack, record), stack)


def dtls(app: str, stack: contextlib.ExitStack, _: pytest.FixtureRequest, record: Path | None = None) -> Host:
    """Serve the app of this name on DTLS."""
    return DtlsHost(app_of(app, stack, record), stack)


def serial(
    app: str, stack: contextlib.ExitStack, _: pytest.FixtureRequest, record: Path | None = None
) -> Host:
    """Serve the app of this name on serial ports."""
    return SerialHost(app_of(app, stack, record), stack)


def erlport(
    app: str, stack: contextlib.ExitStack, request: pytest.FixtureRequest, record: Path | None = None
) -> Host:
    """Serve the app of this name inside the broker, on a real Erlang VM."""
    from tests.erlang.host import ErlangHost  # noqa: PLC0415 - it is made of what stands above

    return ErlangHost(request.getfixturevalue("vm"), app, stack, record)


def mqtt(
    app: str, stack: contextlib.ExitStack, request: pytest.FixtureRequest, record: Path | None = None
) -> Host:
    """Serve the app of this name on real sockets, each device a client of a real broker."""
    broker = request.getfixturevalue("mosquitto")  # skips the test where the uplink can't run
    from tests.mqtt.host import MqttHost  # noqa: PLC0415 - it is made of what stands above

    return MqttHost(app_of(app, stack, record), stack, broker)


def mqtt_shared(
    app: str, stack: contextlib.ExitStack, request: pytest.FixtureRequest, record: Path | None = None
) -> Host:
    """Likewise, but all devices share one client of the broker."""
    broker = request.getfixturevalue("mosquitto")  # skips the test where the uplink can't run
    from tests.mqtt.host import MqttHost  # noqa: PLC0415 - as above

    return MqttHost(app_of(app, stack, record), stack, broker, shared=True)


def mqtt_311(
    app: str, stack: contextlib.ExitStack, request: pytest.FixtureRequest, record: Path | None = None
) -> Host:
    """Likewise, each device a client of its own, with MQTT 3.1.1."""
    broker = request.getfixturevalue("mosquitto")  # skips the test where the uplink can't run
    from tests.mqtt.host import MqttHost  # noqa: PLC0415 - as above

    return MqttHost(app_of(app, stack, record), stack, broker, version="3.1.1")


def mqtt_311_shared(
    app: str, stack: contextlib.ExitStack, request: pytest.FixtureRequest, record: Path | None = None
) -> Host:
    """Likewise, but all devices share one client of the broker, with MQTT 3.1.1."""
    broker = request.getfixturevalue("mosquitto")  # skips the test where the uplink can't run
    from tests.mqtt.host import MqttHost  # noqa: PLC0415 - as above

    return MqttHost(app_of(app, stack, record), stack, broker, shared=True, version="3.1.1")


def modems(
    app: str, stack: contextlib.ExitStack, request: pytest.FixtureRequest, record: Path | None = None
) -> Host:
    """Serve the app of this name to devices behind modems, which speak to a broker."""
    broker = request.getfixturevalue("mosquitto")  # skips the test where it can't run
    from tests.mqtt.host import ModemHost  # noqa: PLC0415 - as above

    return ModemHost(app_of(app, stack, record), stack, broker)


def unary(
    app: str, stack: contextlib.ExitStack, _: pytest.FixtureRequest, record: Path | None = None
) -> Host:
    """Serve the app of this name behind a stand-in for EMQX 5."""
    from tests.grpc.host import GrpcHost  # noqa: PLC0415 - it is made of what stands above

    return GrpcHost(app_of(app, stack, record), stack, streaming=False)


def streams(
    app: str, stack: contextlib.ExitStack, _: pytest.FixtureRequest, record: Path | None = None
) -> Host:
    """Serve the app of this name behind a stand-in for EMQX 4.3, which has the streaming service only."""
    from tests.grpc.host import GrpcHost  # noqa: PLC0415 - as above

    return GrpcHost(app_of(app, stack, record), stack, streaming=True)


HOSTS: dict[str, Callable[[str, contextlib.ExitStack, pytest.FixtureRequest, Path | None], Host]] = {
    "memory": memory,
    "gateway": gateway,
    "dial": dial,
    "unix": unix,
    "dtls": dtls,
    "serial": serial,
    "ws": websocket,
    "modems": modems,
    "mqtt": mqtt,
    "mqtt-shared": mqtt_shared,
    "mqtt-311": mqtt_311,
    "mqtt-311-shared": mqtt_311_shared,
    "erlport": erlport,
    "grpc": unary,
    "grpc-streams": streams,
}
"""How to serve an app of `apps.py`, by the host's name; what it opens is closed by the stack."""
