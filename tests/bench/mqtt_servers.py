"""Servers that bring lines to MQTT, each in a process of its own: ours, one by hand, one on gmqtt.

`python -m tests.bench.mqtt_servers KIND QOS BROKERPORT` prints its port. All run on uvloop where it is there;
each device has a session of its own at the broker, and a line is echoed when it is published (QoS 0) or
acknowledged by the broker (QoS 1). To each line on its standard input a server answers with three numbers:
connections, devices that the broker has let in, lines handled.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
import itertools
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias, cast

from exproto_app import App, Connection, Limits
from exproto_app.cli.process import COLLECT
from exproto_app.errors import CommandError
from exproto_app.framing import Line
from exproto_app.hosts.gateway import Gateway

from .servers import BACKLOG

__all__ = ["GMQTT", "LOOP", "PAYLOAD", "PUBLISHED", "topic_of"]

LOOP = "uvloop" if importlib.util.find_spec("uvloop") else "asyncio"
GMQTT = importlib.util.find_spec("gmqtt") is not None

PAYLOAD = 63
"""Bytes of a line that the load generator sends, without its end."""


def topic_of(number: int) -> str:
    """Return the topic of a device, of the same length for all."""
    return f"bench/{number:06}"


PUBLISHED = 2 + 2 + len(topic_of(0)) + 1 + PAYLOAD
"""Bytes of such a line as a PUBLISH of QoS 0 without properties."""


Started: TypeAlias = Callable[..., Awaitable[None]]
"""Is told the port, and how to bring `Counts` up to date where that has to be done."""


class Counts:
    """What a server tells about itself."""

    connections = 0
    registered = 0
    lines = 0


_tasks: set[asyncio.Task[Any]] = set()


def keep(coroutine: Coroutine[Any, Any, object]) -> None:
    """Run *coroutine*, though nobody waits for it."""
    task = asyncio.get_running_loop().create_task(coroutine)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


# --- by hand


def encoded_publish(topic: bytes, payload: bytes, packet_id: int) -> bytes:
    """Encode a PUBLISH of QoS 1, or of QoS 0 where *packet_id* is 0; *topic* has its length in front."""
    size = len(topic) + len(payload) + (3 if packet_id else 1)
    if size < 128:
        head = bytes((0x32 if packet_id else 0x30, size))
    else:
        head = bytes((0x32 if packet_id else 0x30, size & 0x7F | 0x80, size >> 7))
    if packet_id:
        return b"%b%b%b\0%b" % (head, topic, packet_id.to_bytes(2, "big"), payload)
    return b"%b%b\0%b" % (head, topic, payload)


class HandSession(asyncio.Protocol):
    """The least that is a session: CONNECT, PUBLISH, and PUBACKs of four bytes in order."""

    __slots__ = ("device", "number", "rest", "topic", "waiting", "write")

    def __init__(self, device: HandDevice, number: int) -> None:
        self.device = device
        self.number = number
        topic = topic_of(number).encode()
        self.topic = len(topic).to_bytes(2, "big") + topic
        self.waiting: deque[bytes] = deque()
        self.rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.write = cast("asyncio.Transport", transport).write
        name = f"hand{self.number}".encode()
        body = b"\0\4MQTT\5\2\0\0\0" + len(name).to_bytes(2, "big") + name
        self.write(bytes((0x10, len(body))) + body)

    def data_received(self, data: bytes) -> None:
        if data[0] == 0x20:
            Counts.registered += 1
            self.device.session_ready(self)
            data = data[2 + data[1] :]
        # With subscribers a PUBACK is of four bytes.
        data = self.rest + data
        acknowledged = len(data) // 4
        self.rest = data[acknowledged * 4 :]
        if acknowledged:
            waiting = self.waiting
            lines = b"".join([waiting.popleft() for _ in range(acknowledged)])
            if not self.device.transport.is_closing():
                self.device.write(lines)


class HandDevice(asyncio.Protocol):
    """A device: its lines are published, and echoed."""

    __slots__ = ("ids", "port", "qos", "rest", "session", "transport", "write")

    numbers = itertools.count()

    def __init__(self, qos: int, port: int) -> None:
        self.qos = qos
        self.port = port
        self.rest = b""
        self.session: HandSession | None = None
        self.ids = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        Counts.connections += 1
        self.transport = cast("asyncio.Transport", transport)
        self.write = self.transport.write
        loop = asyncio.get_running_loop()
        number = next(self.numbers)
        keep(loop.create_connection(lambda: HandSession(self, number), "127.0.0.1", self.port))

    def session_ready(self, session: HandSession) -> None:
        self.session = session
        if b"\n" in self.rest:
            self.data_received(b"")

    def data_received(self, data: bytes) -> None:
        session = self.session
        if session is None:
            self.rest += data
            return
        lines = (self.rest + data).split(b"\n")
        self.rest = lines.pop()
        Counts.lines += len(lines)
        topic = session.topic
        if not self.qos:
            session.write(b"".join([encoded_publish(topic, line, 0) for line in lines]))
            lines.append(b"")
            self.write(b"\n".join(lines))
            return
        for line in lines:
            self.ids = self.ids % 65_535 + 1
            session.waiting.append(line + b"\n")
            session.write(encoded_publish(topic, line, self.ids))

    def connection_lost(self, exc: Exception | None) -> None:
        Counts.connections -= 1
        if self.session is not None:
            self.session.write(b"\xe0\0")


async def serve_by_hand(qos: int, port: int, started: Started) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: HandDevice(qos, port), "127.0.0.1", 0, backlog=BACKLOG)
    await started(server.sockets[0].getsockname()[1])
    server.close()


# --- gmqtt


async def serve_gmqtt(qos: int, port: int, started: Started) -> None:  # noqa: C901 - one script, as its user would write it
    import gmqtt  # noqa: PLC0415 - where it is not there, nothing else needs it

    class Client(gmqtt.Client):  # type: ignore[misc] # it has no types
        """Tells when a message is acknowledged, which gmqtt itself tells nobody."""

        def __init__(self, name: str) -> None:
            super().__init__(name)
            self.waiting: dict[int, asyncio.Future[None]] = {}

        def _remove_message_from_queue(self, mid: int) -> None:
            super()._remove_message_from_queue(mid)
            waiter = self.waiting.pop(mid, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

        def publish_acknowledged(self, topic: str, payload: bytes) -> asyncio.Future[None]:
            mid, package = self._connection.publish(gmqtt.Message(topic, payload, qos=1))
            self._persistent_storage.push_message(mid, package)
            waiter = self.waiting[mid] = asyncio.get_running_loop().create_future()
            return waiter

    class Device(asyncio.Protocol):
        def __init__(self) -> None:
            number = next(numbers)
            self.topic = topic_of(number)
            self.client = Client(f"gmqtt{number}")
            self.ready = False
            self.rest = b""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            Counts.connections += 1
            self.transport = cast("asyncio.Transport", transport)
            keep(self.connect())

        async def connect(self) -> None:
            await self.client.connect("127.0.0.1", port)
            Counts.registered += 1
            self.ready = True
            self.data_received(b"")

        def data_received(self, data: bytes) -> None:
            if not self.ready:
                self.rest += data
                return
            lines = (self.rest + data).split(b"\n")
            self.rest = lines.pop()
            Counts.lines += len(lines)
            for line in lines:
                if qos:
                    keep(self.acknowledge(line))
                else:
                    self.client.publish(self.topic, line)
                    self.transport.write(line + b"\n")

        async def acknowledge(self, line: bytes) -> None:
            await self.client.publish_acknowledged(self.topic, line)
            if not self.transport.is_closing():
                self.transport.write(line + b"\n")

        def connection_lost(self, exc: Exception | None) -> None:
            Counts.connections -= 1
            for waiter in self.client.waiting.values():
                waiter.cancel()
            keep(self.client.disconnect())

    numbers = itertools.count()
    server = await asyncio.get_running_loop().create_server(Device, "127.0.0.1", 0, backlog=BACKLOG)
    await started(server.sockets[0].getsockname()[1])
    server.close()


# --- ours


def app_of(qos: int) -> App[str]:
    """Return the app: a device registers when it connects, and its lines are published."""
    app: App[str] = App(framing=Line(), state=str, limits=Limits(first_frame=3600))
    numbers = itertools.count()

    @app.on_connect
    async def login(conn: Connection[str]) -> None:
        number = next(numbers)
        conn.state = topic_of(number)
        try:
            await conn.register(f"ours{number}")
        except CommandError as error:
            print(f"not registered: {error}", file=sys.stderr)
            conn.terminate()
        else:
            Counts.registered += 1

    if qos:

        @app.on_received
        def acknowledged(conn: Connection[str], frame: bytes) -> None:
            conn.send(frame, after=conn.publish(conn.state, frame, qos=1))

    else:

        @app.on_received
        def published(conn: Connection[str], frame: bytes) -> bytes:
            conn.publish(conn.state, frame)
            return frame

    return app


async def serve_ours(qos: int, port: int, started: Started) -> None:
    from exproto_app.hosts.mqtt import MqttHub  # noqa: PLC0415 - of an extra

    app = app_of(qos)
    hub = MqttHub(f"mqtt://127.0.0.1:{port}")
    async with Gateway(app, ["tcp://127.0.0.1:0"], hub=hub) as gateway:

        def count() -> None:
            # A connection counts until all that it has received is handled.
            Counts.connections = app.stats["connections_opened"] - app.stats["connections_closed"]
            Counts.lines = app.stats["frames_received"]

        await started(gateway.addresses[0][2].port, count)


SERVERS = {"by_hand": serve_by_hand, "gmqtt": serve_gmqtt, "ours": serve_ours}


async def answer(port: int, count: Callable[[], None] = lambda: None) -> None:
    """Tell the *port*, then answer until the input ends; *count* brings `Counts` up to date."""
    print(port, flush=True)
    ended = asyncio.Event()

    def asked() -> None:
        if not sys.stdin.readline():
            asyncio.get_running_loop().remove_reader(sys.stdin)
            ended.set()
            return
        gc.collect()  # garbage is nobody's memory
        count()
        print(Counts.connections, Counts.registered, Counts.lines, flush=True)

    asyncio.get_running_loop().add_reader(sys.stdin, asked)
    await ended.wait()


def main() -> None:
    kind, qos, port = sys.argv[1:]
    gc.collect()
    gc.freeze()  # as `exproto-app run` does it, for each server
    gc.set_threshold(*COLLECT)
    loop = importlib.import_module(LOOP).new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(SERVERS[kind](int(qos), int(port), answer))
    loop.close()


if __name__ == "__main__":
    main()
