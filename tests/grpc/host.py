"""A broker's stand-in and our service, each on a loop of its own; the behaviour suite's host made of them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from exproto_app import Address, App
from exproto_app.hosts.grpc import AdapterMap, Service, events
from exproto_app.hosts.grpc.client import IN_FLIGHT
from tests.behaviour.hosts import PASSWORD, PATIENCE, Published, SocketDevice, listeners

from .standin import Node

__all__ = ["Behind", "Cable", "GrpcHost", "LoopThread", "broker_loop"]

T = TypeVar("T")


class LoopThread:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(PATIENCE)
        self.loop.close()


_broker_loop: list[LoopThread] = []


def broker_loop() -> LoopThread:
    """Return the one loop on which grpcio runs: it can't change loops in one process."""
    if not _broker_loop:
        _broker_loop.append(LoopThread())
    return _broker_loop[0]


class Behind:
    """An app behind stand-ins for EMQX."""

    def __init__(
        self,
        app: App[Any],
        stack: contextlib.ExitStack,
        *,
        nodes: int = 1,
        streaming: bool = False,
        ports: bool = False,
        cut: bool = False,
        in_flight: int = IN_FLIGHT,
        **options: Any,
    ) -> None:
        self.app = app
        self.stack = stack
        self.in_flight = in_flight
        self.cable: Cable | None = None
        self.messages = Published()
        self.broker = broker_loop()
        self.ours = LoopThread()
        stack.callback(self.ours.stop)
        protocols = listeners(app)
        self.nodes = [
            self.broker.run(self._node(streaming, len(protocols), options, f"127.0.0.{number}"))
            for number in range(1, nodes + 1)
        ]
        self.node = self.nodes[0]
        if cut:
            self.cable = Cable(self.node.host, self.node.adapter_port)
            self.broker.run(self.cable.lay())
            stack.callback(lambda: self.broker.run(self.cable.take_up()))  # type: ignore[union-attr] # just laid
        self.ports: dict[int, str] = {}
        if ports or len(protocols) > 1:
            self.ports = {
                port: name for node in self.nodes for port, name in zip(node.ports, protocols, strict=True)
            }
        self.service = self.ours.run(self.serve())
        self.bind = self.service.address
        for node in self.nodes:
            self.broker.run(self._connect(node))
        for node in self.nodes:
            stack.callback(self._stop_node, node)
        stack.callback(self.stop)

    async def _node(self, streaming: bool, protocols: int, options: dict[str, Any], host: str) -> Node:
        node = Node(
            streaming=streaming,
            passwords=lambda _, password: password in ("", PASSWORD),
            published=self.messages.put,
            host=host,
            **options,
        )
        await node.listen(tcp=protocols, udp=protocols)
        return node

    async def _connect(self, node: Node) -> None:
        await node.connect(str(self.bind) if node.host == self.bind.host else await self._proxy(node.host))

    def _stop_node(self, node: Node) -> None:
        self.broker.run(node.stop())

    async def _proxy(self, host: str) -> str:
        """Return where a node can call us so that it seems to call from *host*."""

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                to = await asyncio.open_connection(self.bind.host, self.bind.port, local_addr=(host, 0))
            except OSError:  # the service has stopped
                writer.close()
                return
            await asyncio.gather(_pipe(reader, to[1]), _pipe(to[0], writer))

        async def stop() -> None:
            server.close()
            await asyncio.gather(*tasks, return_exceptions=True)

        tasks: set[asyncio.Future[None]] = set()
        server = await asyncio.start_server(
            lambda reader, writer: tasks.add(asyncio.ensure_future(accept(reader, writer))), host, 0
        )
        self.stack.callback(lambda: self.broker.run(stop()))
        return f"{host}:{server.sockets[0].getsockname()[1]}"

    async def serve(self) -> Service:
        """Start a service."""
        adapters = [f"{node.host}=http://{node.host}:{node.adapter_port}" for node in self.nodes]
        if len(adapters) == 1:
            adapters = [adapters[0].partition("=")[2]]
        if self.cable is not None:
            adapters = [f"http://{self.cable.host}:{self.cable.port}"]
        bind = Address("127.0.0.1", 0)
        datagrams = self.node.ports if self.node.dtls else ()
        mapped = AdapterMap(adapters, in_flight=self.in_flight)
        service = Service(self.app, bind, mapped, ports=self.ports, datagrams=datagrams)
        await service.start()
        return service

    def stop(self) -> None:
        """Stop the service."""
        if self.service is not None:
            service, self.service = self.service, None  # type: ignore[assignment] # it is over
            self.ours.run(service.stop())

    def connect(self, number: int = 0, *, udp: bool = False, node: int = 0) -> SocketDevice:
        """Connect a device to a listener of a node."""
        it = self.nodes[node]
        device = SocketDevice((it.host, it.ports[number]), udp=udp)
        self.stack.callback(device.hang_up)
        return device

    def route(self, topic: str, payload: bytes, qos: int = 0) -> None:
        """Publish as another client of the broker."""

        async def publish() -> None:
            self.node.route(topic, payload, qos)

        self.broker.run(publish())

    def calls(self, name: str) -> list[Any]:
        """Return the adapter calls of this method so far."""
        return [request for method, request in self.node.calls if method == name]


class Cable:
    """The way from us to an adapter, which can be cut: then nothing passes, and nobody is told."""

    def __init__(self, host: str, to: int) -> None:
        self.host = host
        self.port = 0
        self._to = to
        self._tasks: set[asyncio.Future[None]] = set()

    async def lay(self) -> None:
        self._whole = asyncio.Event()
        self._whole.set()
        self._server = await asyncio.start_server(self._accept, self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        self._whole.clear()

    async def mend(self) -> None:
        self._whole.set()

    async def take_up(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._join(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._whole.wait()
            to = await asyncio.open_connection(self.host, self._to)
            await asyncio.gather(self._pass(reader, to[1]), self._pass(to[0], writer))
        finally:
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65_536):
                    await self._whole.wait()
                    writer.write(data)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


class GrpcHost:
    """An app behind EMQX, for the behaviour suite."""

    socktype = "tcp"
    abilities = frozenset({"address", "apart", "flow", "log", "kernel", "once", "stream", "udp", "unknown"})

    def __init__(self, app: App[Any], stack: contextlib.ExitStack, *, streaming: bool) -> None:
        if streaming:  # some cases wait for events whose connection nobody saw begin
            patch = pytest.MonkeyPatch()
            stack.callback(patch.undo)
            patch.setattr(events, "EARLY_WAIT", 0.3)
        self._behind = Behind(app, stack, streaming=streaming)
        self._protocols = listeners(app)
        self._connected = 0

    def connect(
        self, protocol: str | None = None, *, udp: bool = False, unknown: bool = False
    ) -> SocketDevice:
        number = 0 if protocol is None else self._protocols.index(protocol)
        node = self._behind.node
        if unknown:
            self._accepted()
            node.unseen = True
        device = self._behind.connect(number, udp=udp)
        self._connected += not udp
        if unknown:
            self._accepted()
            node.unseen = False
        return device

    def _accepted(self) -> None:
        """Wait until the broker has accepted all that have connected."""
        deadline = time.monotonic() + PATIENCE
        while self._behind.node.accepted < self._connected:
            assert time.monotonic() < deadline, "the broker never saw it"
            time.sleep(0.005)

    def publish(self, topic: str, payload: bytes, qos: int = 0) -> None:
        self._behind.route(topic, payload, qos)

    def published(self, topic: str) -> bytes:
        return self._behind.messages.get(topic)
