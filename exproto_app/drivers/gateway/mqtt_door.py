"""The MQTT door of the embedded hub: ordinary MQTT 3.1.1 clients publish to it and subscribe from it.

amqtt speaks the protocol; the hub routes. So devices, which are members of the same hub, pay nothing for the
door, and what one side publishes reaches each subscriber of the other once. Sessions end with their
connection, even those without "clean session". An MQTT 5 client is told that this is MQTT 3.1.1.
"""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio import StreamReader, StreamWriter
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

from amqtt.adapters import ReaderAdapter, StreamWriterAdapter
from amqtt.contexts import BaseContext
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.plugins.manager import PluginManager
from amqtt.session import Session

from ...commands import Publish, Subscribe, Unsubscribe
from ...core import Engine
from ...hub import MemoryHub
from ...models import Address, ClientInfo, Message
from ...topics import check_filter, check_topic

__all__ = ["MqttDoor"]

log = logging.getLogger("exproto_app")

CLIENTS: Final = 1_000
"""MQTT clients at the same time."""

PACKET: Final = 1024 * 1024
"""Bytes of the longest packet that is taken."""

OUTGOING: Final = 1_000
"""Messages that may wait for a client; beyond it the newest are dropped."""

SUBSCRIPTIONS: Final = 1_000
"""Filters of one client."""

IN_FLIGHT: Final = 20
"""Messages to a client that it hasn't acknowledged; further ones wait."""

CONNECT_TIME: Final = 10.0
"""Seconds until a client has to have sent its CONNECT."""

STALL: Final = 30.0
"""Seconds that a client may leave unread what it is sent."""

KEEPALIVE_FACTOR: Final = 1.5
"""A client is silent for too long after this many keepalives (MQTT 3.1.1, 3.1.2.10)."""

CONNECT: Final = 0x10
PUBLISH: Final = 3
LONGEST_HEAD: Final = 5
NAMES: Final = (b"\x00\x04MQTT", b"\x00\x06MQIsdp")
VERSION: Final = 4
VERSIONS: Final = {3: "MQTT 3.1", 5: "MQTT 5"}
REFUSALS: Final = {3: b"\x20\x02\x00\x01", 5: b"\x20\x03\x00\x84\x00"}
"""What packets look like, and the CONNACK of each version that isn't taken."""

SWEEP: Final = 5.0
"""Seconds between two looks for silent and stalled clients."""

GOODBYE: Final = 2.0
"""Seconds that a client's end may take."""

REFUSED: Final = 0x80
"""The return code of a subscription that isn't granted (MQTT 3.1.1, 3.9.3)."""


class MqttDoor:
    """Takes MQTT clients to *hub* at *address*. `start` raises `OSError` where that can't be opened."""

    def __init__(self, hub: MemoryHub, address: Address) -> None:
        self.hub = hub
        self.address = address
        self.clients: dict[str, Client] = {}
        self.stopping = False
        self.engine: Engine
        self.plugins: Any
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], Client] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop

    async def start(self, engine: Engine) -> None:
        """Listen; what happens is counted in *engine*."""
        for name in ("amqtt", "transitions"):  # what they tell of clients is told here, in our words
            library = logging.getLogger(name)
            if library.level == logging.NOTSET:
                library.setLevel(logging.CRITICAL)
        self.engine = engine
        self._loop = asyncio.get_running_loop()
        context: Any = BaseContext()
        context.config = {"plugins": {}}
        self.plugins = PluginManager("amqtt.exproto_app", context, self._loop)
        self._server = await asyncio.start_server(
            self._take, self.address.host or None, self.address.port, reuse_address=True
        )
        self.address = Address(*self._server.sockets[0].getsockname()[:2])
        self._sweeping = self._loop.call_later(SWEEP, self._sweep)

    async def stop(self) -> None:
        """Let every client go; bounded in time."""
        self.stopping = True
        if self._server is not None:
            self._server.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
        for client in self._open.values():
            client.end("the gateway stops")
        if self._open:
            await asyncio.wait(tuple(self._open), timeout=2 * GOODBYE)

    def take_over(self, client: Client, clientid: str) -> None:
        """End an older client of this name: there is one of each (MQTT 3.1.1, 3.1.4-2)."""
        older = self.clients.get(clientid)
        if older is not None:
            older.end("another client has its clientid")
        self.clients[clientid] = client

    def gone(self, client: Client) -> None:
        """Forget *client*."""
        self.hub.gone(client)
        if client.client is not None and self.clients.get(client.client.clientid) is client:
            del self.clients[client.client.clientid]

    async def _take(self, reader: StreamReader, writer: StreamWriter) -> None:
        peername = writer.get_extra_info("peername")
        if self.stopping or not peername:
            writer.transport.abort()
            return
        peer = Address(*peername[:2])
        if len(self._open) >= CLIENTS:
            self.engine.count("door_clients_refused")
            log.warning("%s ! MQTT client refused: the door has %d, that is the limit", peer, CLIENTS)
            writer.transport.abort()
            return
        self.engine.count("door_clients_opened")
        client = Client(self, peer, reader, writer)
        task: asyncio.Task[None] | None = asyncio.current_task()
        if task is not None:
            self._open[task] = client
            task.add_done_callback(self._open.pop)
        await client.serve()

    def _sweep(self) -> None:
        now = time.monotonic()
        for client in tuple(self._open.values()):
            client.look(now)
        self._sweeping = self._loop.call_later(SWEEP, self._sweep)


class Reader(ReaderAdapter):
    """What amqtt reads a client's packets from: whole ones, and none while the client itself doesn't read.

    What amqtt would only skip, or wait for, ends the connection here; *trouble* tells why.
    """

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.heard = time.monotonic()
        self.open = asyncio.Event()
        self.open.set()
        self.trouble = ""
        self._reader = reader
        self._writer = writer
        self._packet = b""

    async def version(self) -> int:
        """Look ahead at what a client begins with; return the version of MQTT that it speaks, 0 for none."""
        first = await self._reader.readexactly(1)
        if first[0] != CONNECT:
            return 0
        self._packet = await self._next(first)
        for name in NAMES:
            at = self._packet.find(name, 2, LONGEST_HEAD + len(name) + 1)
            if at > 0:
                return self._packet[at + len(name)]
        return 0

    async def read(self, n: int = -1) -> bytes:
        """Return *n* bytes of the packet at hand."""
        try:
            return await self._take(n)
        except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
            if isinstance(error, ValueError):
                self.trouble = str(error)
            # amqtt cancels what it has just begun to handle; have it handled before.
            for _ in range(3):
                await asyncio.sleep(0)
            raise

    async def _take(self, n: int) -> bytes:
        if not self._packet:
            if not self.open.is_set():
                await self.open.wait()
            if self._writer.transport.get_write_buffer_size():
                await self._writer.drain()  # it may be full of answers to what was read before
            self._packet = await self._next(await self._reader.readexactly(1))
        if n > len(self._packet):
            raise ValueError("a packet is shorter than it says")
        data, self._packet = self._packet[:n], self._packet[n:]
        return data

    async def _next(self, first: bytes) -> bytes:
        """Return the packet that begins with *first*. Raises `ValueError` for one that can't be taken."""
        head, size = first, 0
        while len(head) == 1 or head[-1] & 0x80:
            if len(head) == LONGEST_HEAD:
                raise ValueError("the length of a packet has more than 4 bytes")
            head += await self._reader.readexactly(1)
            size |= (head[-1] & 0x7F) << 7 * (len(head) - 2)
        if size > PACKET:
            raise ValueError(f"a packet has {size} bytes, limit is {PACKET}")
        body = await self._reader.readexactly(size) if size else b""
        self.heard = time.monotonic()
        if head[0] >> 4 == PUBLISH:
            check_topic(body[2 : 2 + int.from_bytes(body[:2], "big")].decode())
        return head + body

    def feed_eof(self) -> None:
        """Do nothing: the end comes from the client."""


class Client:
    """One MQTT client, a member of the hub."""

    def __init__(self, door: MqttDoor, peer: Address, reader: StreamReader, writer: StreamWriter) -> None:
        self.client: ClientInfo | None = None
        self._door = door
        self._peer = peer
        self._reader = Reader(reader, writer)
        self._writer = writer
        self._keepalive = 0.0
        self._handler: Any = None
        self._session: Session | None = None
        self._subscribed: set[str] = set()
        self._queue: deque[Message] = deque()
        self._filled = asyncio.Event()
        self._window = asyncio.Semaphore(IN_FLIGHT)
        self._flights: set[asyncio.Task[None]] = set()
        self._moved = time.monotonic()
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def __str__(self) -> str:
        return f"mqtt:{self._peer}" if self.client is None else f"mqtt:{self.client.clientid!r}"

    def end(self, why: str) -> None:
        """End the connection."""
        if not self._ended.done():
            self._ended.set_result(why)

    def look(self, now: float) -> None:
        """End it if the client is silent, or reads nothing, for too long."""
        if self._keepalive and now - self._reader.heard > KEEPALIVE_FACTOR * self._keepalive:
            self.end(f"silent for {now - self._reader.heard:.0f} s")
        elif self._queue and now - self._moved > STALL:
            self.end(f"it has read nothing for {STALL:g} s")

    def delivered(self, messages: Sequence[Message]) -> None:
        """Take messages of the hub, as far as there is room."""
        room = OUTGOING - len(self._queue)
        if len(messages) > room:
            self._drop(len(messages) - room, f"{OUTGOING} wait, that is the limit")
        if not self._queue:
            self._moved = time.monotonic()
        self._queue.extend(messages[: max(room, 0)])
        self._filled.set()

    async def serve(self) -> None:
        """Talk to the client until it goes; whatever it does, it does to itself alone."""
        try:
            await self._talk()
        except (asyncio.TimeoutError, OSError) as error:
            log.debug("%s ! MQTT client lost: %s", self, error or "no CONNECT in time")
        except Exception as error:  # noqa: BLE001 - amqtt has many words for what is no MQTT 3.1.1
            words = self._reader.trouble or str(error) or repr(error)
            log.warning("%s ! MQTT client closed: %s", self._peer, words)
        finally:
            self._door.gone(self)
            if not self._writer.is_closing():
                self._writer.transport.abort()

    async def _connect(self, writer: StreamWriterAdapter) -> tuple[BrokerProtocolHandler, Session]:
        """Take the client's CONNECT. Raises `ValueError` for another version of MQTT, which is answered."""
        version = await self._reader.version()
        if version != VERSION:
            self._writer.write(REFUSALS.get(version, b""))
            await self._writer.drain()
            self._writer.close()
            words = VERSIONS.get(version, f"version {version}") if version else "something else"
            raise ValueError(f"it speaks {words}; the door takes MQTT 3.1.1 only")
        return await BrokerProtocolHandler.init_from_connect(self._reader, writer, self._door.plugins)

    async def _talk(self) -> None:
        writer = StreamWriterAdapter(self._writer)
        handler, session = await asyncio.wait_for(self._connect(writer), CONNECT_TIME)
        self._handler, self._session = handler, session
        client = ClientInfo(session.client_id or "", session.username or "")
        admitted = await self._admitted(client, session.password)
        # Keepalives are looked after here; amqtt ignores that they are over.
        self._keepalive, session.keep_alive = float(session.keep_alive), 0
        session.parent = 0
        handler.attach(session, self._reader, writer)
        if not admitted:
            await handler.mqtt_connack_authorize(False)
            self._writer.close()
            return
        self._door.take_over(self, client.clientid)
        self.client = client
        self._reader.open.clear()  # nothing is handled before amqtt can tell of the end
        await handler.mqtt_connack_authorize(True)
        await handler.start()
        self._reader.open.set()
        log.debug("%s = came in from %s", self, self._peer)
        clean = await self._until_the_end()
        while not session.delivered_message_queue.empty():
            self._publish(session.delivered_message_queue.get_nowait())
        if session.will_flag and not clean and session.will_topic:
            self._say(session.will_topic, session.will_message or b"", session.will_qos, session.will_retain)
        self._writer.transport.abort()  # else amqtt might wait for it to take all it is sent
        await asyncio.wait_for(handler.stop(), GOODBYE)

    async def _admitted(self, client: ClientInfo, password: str | None) -> bool:
        try:
            admitted = await self._door.hub.admits(client, password)
        except Exception as error:
            log.exception("%s ! the login rule failed: %r", self._peer, error)  # noqa: TRY401 - one grammar
            return False
        if not admitted:
            self._door.engine.count("door_clients_denied")
            words = "%s ! MQTT client %r denied: wrong clientid, username or password"
            log.warning(words, self._peer, client.clientid)
        return admitted

    async def _until_the_end(self) -> bool:
        """Serve until the connection ends; return whether the client said so."""
        handler = self._handler
        disconnected: asyncio.Task[Any] = asyncio.ensure_future(handler.wait_disconnect())
        tasks = [
            asyncio.ensure_future(self._forever(work))
            for work in (self._receive, self._subscribe, self._unsubscribe, self._send)
        ]
        try:
            await asyncio.wait((disconnected, self._ended, *tasks), return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()  # it raises why it ended
        finally:
            for task in (disconnected, *tasks, *self._flights):
                task.cancel()
            await asyncio.gather(disconnected, *tasks, *self._flights, return_exceptions=True)
        clean = disconnected.done() and not disconnected.cancelled() and disconnected.result() is not None
        if self._reader.trouble:
            raise ValueError(self._reader.trouble)
        why = self._ended.result() if self._ended.done() else "it said goodbye" if clean else "it is gone"
        log.debug("%s = went: %s", self, why)
        return clean

    @staticmethod
    async def _forever(work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await work()

    # --- from the client

    async def _receive(self) -> None:
        self._publish(await self._handler.session.delivered_message_queue.get())

    def _publish(self, message: Any) -> None:
        self._say(message.topic, message.data, message.qos, message.publish_packet.retain_flag)

    def _say(self, topic: str, data: Any, qos: int | None, retain: object) -> None:
        """Publish for the client."""
        command = Publish(topic, bytes(data), qos or 0, bool(retain))
        outcome = self._door.hub.serve(self, command)
        self._door.engine.count("door_messages_received")
        if outcome.error is not None:
            log.warning("%s ! publish failed: %s", self, outcome.error)

    async def _subscribe(self) -> None:
        asked = await self._handler.get_next_pending_subscription()
        codes = [self._granted(topic, qos) for topic, qos in asked.topics]
        await self._handler.mqtt_acknowledge_subscription(asked.packet_id, codes)

    def _granted(self, topic: str, qos: int) -> int:
        try:
            check_filter(topic)
        except ValueError as error:
            log.warning("%s ! subscribe refused: %s", self, error)
            return REFUSED
        if topic not in self._subscribed and len(self._subscribed) >= SUBSCRIPTIONS:
            log.warning("%s ! subscribe refused: it has %d, that is the limit", self, SUBSCRIPTIONS)
            return REFUSED
        self._subscribed.add(topic)
        self._door.hub.serve(self, Subscribe(topic, qos))
        return qos

    async def _unsubscribe(self) -> None:
        asked = await self._handler.get_next_pending_unsubscription()
        for topic in asked.topics:
            self._subscribed.discard(topic)
            self._door.hub.serve(self, Unsubscribe(topic))
        await self._handler.mqtt_acknowledge_unsubscription(asked.packet_id)

    # --- to the client

    async def _send(self) -> None:
        while not self._queue:
            self._filled.clear()
            await self._filled.wait()
        message = self._queue[0]
        if message.qos == 0:
            await self._give(message)
        else:
            await self._window.acquire()
            task = asyncio.ensure_future(self._give_surely(message))
            self._flights.add(task)
            task.add_done_callback(self._flights.discard)
            await asyncio.sleep(0)  # it writes now, so that the order is kept
        self._queue.popleft()
        self._moved = time.monotonic()
        self._door.engine.count("door_messages_sent")

    def _give(self, message: Message) -> Coroutine[Any, Any, Any]:
        sent: Coroutine[Any, Any, Any] = self._handler.mqtt_publish(
            message.topic, message.payload, message.qos, message.retain
        )
        return sent

    async def _give_surely(self, message: Message) -> None:
        try:
            await self._give(message)
        except (TimeoutError, asyncio.TimeoutError):
            self._drop(1, "the client didn't acknowledge it in time")
        except Exception as error:  # noqa: BLE001 - amqtt's own, as when the connection breaks meanwhile
            self.end(str(error))
        finally:
            self._window.release()

    def _drop(self, number: int, why: str) -> None:
        self._door.engine.count("door_messages_dropped", number)
        log.warning("%s ! %d messages dropped: %s", self, number, why)
