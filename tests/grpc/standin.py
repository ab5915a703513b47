"""A stand-in for EMQX's ExProto gateway, which behaves as a real EMQX 5.5.1 was measured to, traps included.

It speaks gRPC by grpcio, so that somebody else's code has to understand ours. `Node` is one broker node: it
has listeners for devices, calls the handler, and serves the adapter.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from exproto_app.hosts.grpc import exproto_pb2 as pb
from exproto_app.topics import Filters

__all__ = ["Conn", "Node"]

PACKAGE = "emqx.exproto.v1"
BATCH = 0.02
"""Seconds for which a stream collects what it sends."""

MOST = 101
"""Messages in one call."""

EVENTS: dict[str, Any] = {
    "OnSocketCreated": pb.SocketCreatedRequest,
    "OnSocketClosed": pb.SocketClosedRequest,
    "OnReceivedBytes": pb.ReceivedBytesRequest,
    "OnTimerTimeout": pb.TimerTimeoutRequest,
    "OnReceivedMessages": pb.ReceivedMessagesRequest,
}
REQUESTS: dict[str, Any] = {
    "Send": pb.SendBytesRequest,
    "Close": pb.CloseSocketRequest,
    "Authenticate": pb.AuthenticateRequest,
    "StartTimer": pb.TimerRequest,
    "Publish": pb.PublishRequest,
    "Subscribe": pb.SubscribeRequest,
    "Unsubscribe": pb.UnsubscribeRequest,
    "RawPublish": pb.RawPublishRequest,
}

_numbers = itertools.count(1)


def answer(code: Any = 0, message: str = "") -> Any:
    return pb.CodeResponse(code=code, message=message)


NOT_ALIVE = answer(pb.CONN_PROCESS_NOT_ALIVE, '<<"Connection process is not alive">>')
UNEXPECTED = answer(pb.UNKNOWN, "{error,unexpected_call}")
BAD_TYPE = answer(pb.UNKNOWN, "{error,'PARAMS_TYPE_ERROR'}")
DENIED = answer(pb.PERMISSION_DENY)
HUNG_UP = answer(pb.PERMISSION_DENY, '<<"Client socket disconnected">>')
CRASHED = answer(pb.UNKNOWN, "{error,'UNKNOWN',<<\"Unknown crashes\">>}")


class Conn:
    """One connection process: a device's socket, and one call at a time to the handler."""

    def __init__(
        self, node: Node, socktype: Any, peer: Any, sock: Any, write: Callable[[bytes], object]
    ) -> None:
        self.node = node
        self.socktype = socktype
        self.write = write
        self.close_socket: Callable[[], object] = lambda: None
        pid = (
            b"\x83Xd\0\x0femqx@127.0.0.1" + next(_numbers).to_bytes(8, "big") + b"\0\0\3\xfe\xfbk\2"
        )  # has + and / in Base64
        self.name = base64.b64encode(pid).decode()
        self.clientid: str | None = None
        self.alive = True
        self.disconnected = ""  # the socket has gone, for this reason; what is queued is still called for
        self.in_flight = False
        self.events: deque[tuple[str, Any]] = deque()
        self.messages: deque[Any] = deque()
        self.subscriptions: dict[str, int] = {}
        self.heard = time.monotonic()
        self.timer: asyncio.TimerHandle | None = None
        self.streams: dict[str, tuple[asyncio.Queue[Any], asyncio.Future[Any]]] = {}
        node.conns[self.name] = self
        address = pb.Address
        about = pb.ConnInfo(
            socktype=socktype,
            peername=address(host=peer[0], port=peer[1]),
            sockname=address(host=sock[0], port=sock[1]),
        )
        if socktype == pb.UDP:
            self.timer = node.loop.call_later(node.idle_timeout, self.end, "{shutdown,idle_timeout}")
        if not node.unseen:
            self.event("OnSocketCreated", pb.SocketCreatedRequest(conn=self.name, conninfo=about))

    def event(self, name: str, request: Any) -> None:
        if self.node.streaming:
            self.node.stream(self, name, request)
            return
        self.events.append((name, request))
        self._next()

    def received(self, data: bytes) -> None:
        self.heard = time.monotonic()
        self.event("OnReceivedBytes", pb.ReceivedBytesRequest(conn=self.name, bytes=data))

    def deliver(self, message: Any) -> None:
        self.messages.append(message)
        if self.node.streaming:
            self.node.loop.call_soon(self._batch)
        else:
            self._next()

    def hang_up(self, reason: str) -> None:
        """Lose the socket; the process lives on until all that the device said has been called for."""
        if not self.alive or self.disconnected:
            return
        if self.in_flight or self.events:
            self.disconnected = reason
        else:
            self.end(reason)

    def end(self, reason: str, *, silently: bool = False) -> None:
        """End the process; EMQX doesn't always tell."""
        if not self.alive:
            return
        self.alive = False
        if self.timer is not None:
            self.timer.cancel()
        self.node.left(self)
        self.close_socket()
        if not silently:
            self.event("OnSocketClosed", pb.SocketClosedRequest(conn=self.name, reason=reason))

    def taken_over(self) -> None:
        # Measured: the end is told only if no call is in flight.
        self.end("{shutdown,discarded}", silently=self.in_flight)

    def start_timer(self, seconds: int) -> None:
        if self.timer is not None and self.socktype == pb.UDP:
            self.timer.cancel()
            self.timer = None
        if self.timer is None:  # a second one doesn't replace a running one
            self.timer = self.node.loop.call_later(seconds, self._late, seconds)

    def _late(self, seconds: int) -> None:
        left = self.heard + seconds - time.monotonic()
        if left > 0:
            self.timer = self.node.loop.call_later(left, self._late, seconds)
            return
        self.event("OnTimerTimeout", pb.TimerTimeoutRequest(conn=self.name))
        self.end("{shutdown,keepalive_timeout}")

    def _batch(self) -> None:
        if self.messages:
            some = [self.messages.popleft() for _ in range(min(MOST, len(self.messages)))]
            self.event("OnReceivedMessages", pb.ReceivedMessagesRequest(conn=self.name, messages=some))

    def _next(self) -> None:
        if self.in_flight:
            return
        if self.events:
            name, request = self.events.popleft()
        elif self.messages and self.alive:
            some = [self.messages.popleft() for _ in range(min(MOST, len(self.messages)))]
            name = "OnReceivedMessages"
            request = pb.ReceivedMessagesRequest(conn=self.name, messages=some)
        else:
            return
        self.in_flight = True
        self.node.spawn(self._call(name, request))

    async def _call(self, name: str, request: Any) -> None:
        try:
            await self.node.call(name, request)
        except grpc.aio.AioRpcError as error:
            self.node.errors.append(f"{name}: {error.code().name} {error.details()}")
            # Any error closes the device.
            self.end(f"{{shutdown,{{error,{{{name},failed}}}}}}", silently=name == "OnSocketClosed")
        await self.node.acknowledging.wait()
        self.in_flight = False
        if self.disconnected and not self.events:
            self.end(self.disconnected)
        self._next()


class TcpDevice(asyncio.Protocol):
    def __init__(self, node: Node) -> None:
        self.node = node

    def connection_made(self, transport: Any) -> None:
        self.node.accepted += 1
        self.conn = Conn(
            self.node,
            pb.TCP,
            transport.get_extra_info("peername"),
            transport.get_extra_info("sockname"),
            transport.write,
        )
        self.conn.close_socket = transport.close

    def data_received(self, data: bytes) -> None:
        if self.conn.alive:
            self.conn.received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.conn.hang_up("{shutdown,tcp_closed}")


class UdpDevices(asyncio.DatagramProtocol):
    def __init__(self, node: Node) -> None:
        self.node = node
        self.peers: dict[Any, Conn] = {}

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        conn = self.peers.get(addr)
        if conn is None or not conn.alive:
            sock = self.transport.get_extra_info("sockname")
            # DTLS looks like TLS.
            kind = pb.SSL if self.node.dtls else pb.UDP
            conn = Conn(self.node, kind, addr, sock, lambda data: self.transport.sendto(data, addr))
            self.peers[addr] = conn
        conn.received(data[:8192])


class Node:
    """One node of a broker, in the running event loop."""

    def __init__(
        self,
        *,
        streaming: bool = False,
        passwords: Callable[[str, str], bool] = lambda clientid, password: True,
        idle_timeout: float = 30.0,
        raw_publish: bool = True,
        published: Callable[[str, bytes], object] = lambda topic, payload: None,
        host: str = "127.0.0.1",
        dtls: bool = False,
        cost: float = 0.0,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.dtls = dtls
        self.cost = cost
        self.open = self.most_open = 0  # calls of the adapter that have no answer yet
        self._serving = asyncio.Lock()
        self.acknowledging = asyncio.Event()  # while it isn't set, no answer of the handler is worked off
        self.acknowledging.set()
        self.streaming = streaming
        self.passwords = passwords
        self.idle_timeout = idle_timeout
        self.raw_publish = raw_publish
        self.published = published
        self.host = host
        self.conns: dict[str, Conn] = {}
        self.clients: dict[str, Conn] = {}
        self.filters: Filters[Conn, int] = Filters()
        self.calls: list[tuple[str, Any]] = []
        self.record = True
        self.errors: list[str] = []
        self.hang: set[str] = set()
        self.mute: set[str] = set()  # methods that are carried out, but whose answers get lost
        self.gates: dict[str, asyncio.Event] = {}
        self.held = 0
        self.adapter_port = 0
        self.ports: list[int] = []
        self.denied = "denied/"
        self.crashes = False  # a process whose device has gone ends during the next call
        self.accepted = 0
        self.unseen = False  # as if those who connect now had done so before the handler started
        self.crashes_at_login = False
        self._pending: dict[tuple[str, str], list[Any]] = {}
        self._tasks: set[asyncio.Future[Any]] = set()
        self._servers: list[Any] = []
        self._adapter: grpc.aio.Server | None = None
        self._channels: list[grpc.aio.Channel] = []
        self._next_channel = itertools.count()
        self._methods: list[dict[str, Any]] = []

    async def listen(self, *, tcp: int = 1, udp: int = 1) -> None:
        """Serve the adapter, and wait for devices."""
        await self.start_adapter()
        for _ in range(tcp):
            server = await self.loop.create_server(lambda: TcpDevice(self), self.host, 0, backlog=4096)
            self._servers.append(server)
            self.ports.append(server.sockets[0].getsockname()[1])
        for number in range(udp):
            transport, _ = await self.loop.create_datagram_endpoint(
                lambda: UdpDevices(self), local_addr=(self.host, self.ports[number])
            )
            self._servers.append(transport)

    async def connect(self, handler: str, *, channels: int = 2) -> None:
        """Call *handler* from now on."""
        for _ in range(channels):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.aio.insecure_channel(handler, options=options)
            self._channels.append(channel)
            service = f"/{PACKAGE}.{'ConnectionHandler' if self.streaming else 'ConnectionUnaryHandler'}/"
            make = channel.stream_unary if self.streaming else channel.unary_unary
            self._methods.append(
                {
                    name: make(
                        service + name,
                        request_serializer=request.SerializeToString,
                        response_deserializer=pb.EmptySuccess.FromString,
                    )
                    for name, request in EVENTS.items()
                }
            )

    async def start_adapter(self) -> None:
        self._adapter = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._adapter_method(name),
                request_deserializer=request.FromString,
                response_serializer=pb.CodeResponse.SerializeToString,
            )
            for name, request in REQUESTS.items()
        }
        service = grpc.method_handlers_generic_handler(f"{PACKAGE}.ConnectionAdapter", handlers)
        self._adapter.add_generic_rpc_handlers((service,))
        self.adapter_port = self._adapter.add_insecure_port(f"{self.host}:{self.adapter_port}")
        await self._adapter.start()

    async def stop_adapter(self) -> None:
        """End the adapter, with a GOAWAY."""
        if self._adapter is not None:
            await self._adapter.stop(0)
            self._adapter = None

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        for conn in list(self.conns.values()):
            conn.close_socket()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self._channels:
            await channel.close()
        await self.stop_adapter()

    # --- to the handler

    def spawn(self, coroutine: Any) -> asyncio.Future[Any]:
        task: asyncio.Future[Any] = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def call(self, name: str, request: Any) -> None:
        methods = self._methods[next(self._next_channel) % len(self._methods)]
        # A handler that is away is waited for.
        await methods[name](request, wait_for_ready=True, timeout=25)

    def stream(self, conn: Conn, name: str, request: Any) -> None:
        """Send on the connection's stream of this kind, which collects for a while: there is no order."""
        queue, task = conn.streams.get(name, (None, None))
        if queue is None or task is None or task.done():  # one that the handler has answered is opened anew
            queue = asyncio.Queue()
            methods = self._methods[next(self._next_channel) % len(self._methods)]
            conn.streams[name] = queue, self.spawn(self._stream(methods[name], queue))
        self.loop.call_later(self._jitter(name), queue.put_nowait, request)

    def _jitter(self, name: str) -> float:
        # The begin is among the latest of what is sent in one go, so that other events overtake it.
        return {"OnSocketCreated": BATCH, "OnSocketClosed": BATCH / 4}.get(name, BATCH / 2)

    async def _stream(self, method: Any, queue: asyncio.Queue[Any]) -> None:
        # By write, since grpcio leaves the task behind that would read a generator of requests.
        call = method()
        answered = asyncio.ensure_future(call.code())
        try:
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                while True:  # EMQX never ends a stream
                    said = asyncio.ensure_future(queue.get())
                    await asyncio.wait((said, answered), return_when=asyncio.FIRST_COMPLETED)
                    if answered.done():
                        said.cancel()
                        return
                    await call.write(said.result())
        finally:
            answered.cancel()
            call.cancel()

    # --- the adapter

    def _adapter_method(self, name: str) -> Any:
        async def method(request: Any, context: Any) -> Any:
            if name == "RawPublish" and not self.raw_publish:
                await context.abort(grpc.StatusCode.NOT_FOUND, "Service Not Found")  # as grpc-erl says it
            if self.record:
                self.calls.append((name, request))
            if self.cost:
                await self._take_time()
            if name in self.hang:
                await asyncio.sleep(3600)
            if name in self.gates:
                self.held += 1
                await self.gates[name].wait()
            if name == "RawPublish":
                self.route(request.topic, request.payload, request.qos)
                return answer()
            conn = self.conns.get(request.conn)
            if conn is None or not conn.alive:
                return NOT_ALIVE
            response = getattr(self, f"_{name.lower()}")(conn, request)
            if name in self.mute:
                await asyncio.sleep(3600)
            return response

        return method

    async def _take_time(self) -> None:
        """Answer the slower, the more calls are open: the adapter keeps them in a list."""
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            async with self._serving:
                await asyncio.sleep(self.cost * self.open)
        finally:
            self.open -= 1

    def _send(self, conn: Conn, request: Any) -> Any:
        conn.write(request.bytes)
        return answer()

    def _close(self, conn: Conn, _: Any) -> Any:
        self.loop.call_soon(conn.end, "{shutdown,normal}")
        return answer()

    def _authenticate(self, conn: Conn, request: Any) -> Any:
        clientid = request.clientinfo.clientid
        if self.crashes_at_login:
            conn.end("", silently=True)
            return CRASHED
        if conn.disconnected and self.crashes:
            conn.end(conn.disconnected)  # in the middle of the call
            return CRASHED
        if conn.disconnected:
            return HUNG_UP
        if conn.clientid is not None:
            return answer(pb.PERMISSION_DENY, '<<"Duplicated authenticate command">>')
        if not self.passwords(clientid, request.password):
            return answer(pb.PERMISSION_DENY, '<<"bad_username_or_password">>')
        older = self.clients.get(clientid)
        if older is not None:
            older.taken_over()
        conn.clientid = clientid
        self.clients[clientid] = conn
        return answer()

    def _starttimer(self, conn: Conn, request: Any) -> Any:
        if request.interval == 0:
            return BAD_TYPE
        conn.start_timer(request.interval)
        return answer()

    def _publish(self, conn: Conn, request: Any) -> Any:
        if conn.disconnected and self.crashes:
            conn.end(conn.disconnected)  # in the middle of the call
            return CRASHED
        if conn.clientid is None or conn.disconnected:
            return UNEXPECTED
        if request.qos > 2:
            return BAD_TYPE
        if "#" in request.topic or "+" in request.topic:
            conn.end("", silently=True)  # the process crashes
            return CRASHED
        if request.topic.startswith(self.denied):
            return DENIED
        self.route(request.topic, request.payload, request.qos, conn.clientid)
        return answer()

    def _subscribe(self, conn: Conn, request: Any) -> Any:
        if conn.clientid is None or conn.disconnected:
            return UNEXPECTED
        if request.qos > 2:
            return BAD_TYPE
        if request.topic.startswith(self.denied):
            return DENIED
        if request.topic.startswith(("$share/", "$queue/")):
            conn.end("", silently=True)  # since 5.4 the process crashes
            return CRASHED
        conn.subscriptions[request.topic] = request.qos
        self.filters.add(request.topic, conn, request.qos)
        return answer()

    def _unsubscribe(self, conn: Conn, request: Any) -> Any:
        if conn.clientid is None or conn.disconnected:
            return UNEXPECTED
        if conn.subscriptions.pop(request.topic, None) is not None:
            self.filters.discard(request.topic, conn)
        return answer()

    # --- the broker

    def route(self, topic: str, payload: bytes, qos: int = 0, sender: str = "") -> None:
        self.published(topic, payload)
        key = f"{next(_numbers):032X}"
        # A connection gets a copy for each of its filters, all with one id.
        for conn, _ in self.filters.matching(topic):
            fields = {"from": sender}
            message = pb.Message(
                node="emqx@127.0.0.1",
                id=key,
                qos=qos,
                topic=topic,
                payload=payload,
                timestamp=int(time.time() * 1000),
                **fields,
            )
            conn.deliver(message)

    def left(self, conn: Conn) -> None:
        self.conns.pop(conn.name, None)
        for topic in conn.subscriptions:
            self.filters.discard(topic, conn)
        if conn.clientid is not None and self.clients.get(conn.clientid) is conn:
            del self.clients[conn.clientid]
