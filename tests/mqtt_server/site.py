"""A gateway that MQTT clients can reach, and the devices and clients at it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import attrs
import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from exproto_app import App, Connection, Message
from exproto_app.framing import Line
from exproto_app.hosts.gateway import Gateway, Options
from exproto_app.hosts.mqtt_server import Bounds, MqttServer
from exproto_app.hosts.mqtt_server.codec import decode, encode, head_of
from exproto_app.hosts.mqtt_server.packets import ConnAck, Connect, Packet
from exproto_app.hub import MemoryHub
from exproto_app.models import Address

__all__ = ["PATIENCE", "Client", "Device", "Raw", "Site", "at_a_site", "client"]

PATIENCE = 60.0


def echo() -> App:
    app = App(framing=Line())

    @app.on_received(b"subscribe ")
    def subscribe(conn: Connection, frame: bytes) -> bytes:
        conn.subscribe(frame[10:].decode(), qos=1)
        return b"ok"

    @app.on_received(b"send ")
    async def send(conn: Connection, frame: bytes) -> bytes:
        for number in range(int(frame[5:])):
            await conn.publish("t", b"%4d" % number * 256, qos=1)
        return b"safe"

    @app.on_received(b"login ")
    async def login(conn: Connection, frame: bytes) -> bytes:
        clientid, username = frame[6:].decode().split()
        await conn.register(clientid, username=username, password="right")
        return b"welcome"

    @app.on_received
    def up(conn: Connection, frame: bytes) -> None:
        conn.publish("up", frame, qos=1)

    @app.on_deliver
    def down(conn: Connection, message: Message) -> bytes:
        return b"%s qos %d" % (message.payload, message.qos)

    return app


@attrs.define
class Device:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, line: bytes) -> bytes:
        self.writer.write(line + b"\n")
        return await self.hear()

    async def hear(self) -> bytes:
        return (await asyncio.wait_for(self.reader.readline(), PATIENCE)).rstrip()


@attrs.define
class Raw:
    """A client that sends whatever a test wants it to."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    version: int = 5

    def send(self, *packets: Packet) -> None:
        self.writer.write(b"".join(encode(packet, self.version) for packet in packets))

    async def packet(self) -> Packet:
        """Return the next packet of the server."""
        head = await asyncio.wait_for(self.reader.readexactly(2), PATIENCE)
        while (found := head_of(head, 0, len(head))) is None:
            head += await self.reader.readexactly(1)
        begin, end = found
        body = head[begin:] + await asyncio.wait_for(self.reader.readexactly(end - len(head)), PATIENCE)
        return decode(head[0], body, self.version)

    async def rest(self) -> bytes:
        """Return what comes until the server closes the connection."""
        try:
            return await asyncio.wait_for(self.reader.read(), PATIENCE)
        except ConnectionError:
            return b""


@attrs.define
class Site:
    """A gateway with an MQTT server."""

    gateway: Gateway
    server: MqttServer

    @contextlib.asynccontextmanager
    async def device(self) -> AsyncIterator[Device]:
        address = self.gateway.addresses[0][2]
        reader, writer = await asyncio.open_connection(address.host, address.port)
        try:
            yield Device(reader, writer)
        finally:
            writer.close()
            await writer.wait_closed()

    @contextlib.asynccontextmanager
    async def raw(self, *packets: bytes, version: int = 5) -> AsyncIterator[Raw]:
        """Connect without a library, and send what is no MQTT or an odd kind of it."""
        reader, writer = await asyncio.open_connection(self.server.address.host, self.server.address.port)
        writer.write(b"".join(packets))
        try:
            yield Raw(reader, writer, version)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    @contextlib.asynccontextmanager
    async def mqtt(
        self, clientid: str, *, version: int = 5, code: int = 0, **options: Any
    ) -> AsyncIterator[Raw]:
        """Connect as *clientid* with packets of our own."""
        async with self.raw(encode(Connect(clientid, version, **options), version), version=version) as one:
            answer = await one.packet()
            assert isinstance(answer, ConnAck)
            assert answer.code == code
            yield one

    async def until(self, what: Callable[[], object]) -> None:
        """Let the loop run until *what* is true; nothing tells of it."""
        end = asyncio.get_running_loop().time() + PATIENCE
        while not what():
            assert asyncio.get_running_loop().time() < end
            await asyncio.sleep(0)

    def stat(self, name: str) -> int:
        return self.gateway.app.stats.get(name, 0)


def at_a_site(
    test: Callable[[Site], Awaitable[None]],
    login: Any = None,
    uvloop: bool = False,
    options: Options | None = None,
    **bounds: Any,
) -> None:
    """Run *test* at a site of its own; at the end nothing may be left over."""

    async def main() -> None:
        async with Gateway(echo(), ["tcp://127.0.0.1:0"], hub=MemoryHub(login), options=options) as host:
            assert isinstance(host.hub, MemoryHub)
            server = MqttServer(host.hub, Address("127.0.0.1", 0), Bounds(**bounds), host.guests)
            host.guests.end = server.end_clients
            await server.start(host.runner.engine)
            try:
                await test(Site(host, server))
            finally:
                await server.stop()
                assert not server.links
                assert not server.broker.sessions
                assert server.broker.budget.used == 0
                assert host.room.open_sockets == host.room.total

    if uvloop:
        library = pytest.importorskip("uvloop")
        loop = library.new_event_loop()
        try:
            loop.run_until_complete(main())
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
    else:
        asyncio.run(main())


class Client:
    """A paho client in a thread of its own, whose messages can be awaited."""

    def __init__(self, clientid: str = "", **options: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        # Who is refused would wait a second to try again, and its thread with it.
        options = {"reconnect_on_failure": False, **options}
        self.paho = paho.Client(CallbackAPIVersion.VERSION2, clientid, **options)
        self.paho.on_connect = lambda *arguments: self._put(("connect", arguments[3].is_failure))
        self.paho.on_subscribe = lambda *arguments: self._put(
            ("subscribe", [code.value for code in arguments[3]])
        )
        self.paho.on_publish = lambda *arguments: self._put(("publish", None))
        self.paho.on_message = lambda *arguments: self._put(("message", arguments[2]))
        self.paho.on_disconnect = lambda *arguments: self._put(("disconnect", None))

    def _put(self, event: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has gone
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def event(self, kind: str) -> Any:
        while True:
            found, value = await asyncio.wait_for(self._events.get(), PATIENCE)
            if found == kind:
                return value

    async def connect(self, site: Site, keepalive: int = 60) -> bool:
        self.paho.connect_async(site.server.address.host, site.server.address.port, keepalive)
        self.paho.loop_start()
        return not await self.event("connect")

    async def subscribe(self, topic: str, qos: int = 0) -> list[int]:
        self.paho.subscribe(topic, qos)
        return list(await self.event("subscribe"))

    async def message(self) -> tuple[str, bytes, int, bool]:
        message = await self.event("message")
        return message.topic, message.payload, message.qos, bool(message.retain)

    async def stop(self) -> None:
        self.paho.disconnect()
        await asyncio.to_thread(self.paho.loop_stop)


@contextlib.asynccontextmanager
async def client(site: Site, clientid: str = "", **options: Any) -> AsyncIterator[Client]:
    made = Client(clientid, **options)
    try:
        assert await made.connect(site)
        yield made
    finally:
        await made.stop()
