"""A broker that does what no real one does on demand: refuses, kicks, keeps silent, goes and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import mqtt5

from exproto_app.hosts.mqtt import MqttHub, Options
from exproto_app.hosts.mqtt_server import codec
from exproto_app.hosts.mqtt_server.packets import (
    V4,
    Ack,
    Connect,
    Disconnect,
    Kind,
    Packet,
    Publish,
    Subscribe,
    Unsubscribe,
)

__all__ = ["FakeBroker", "fake"]


class FakeBroker:
    """MQTT on a port of loopback, in the test's own loop.

    *versions*: those that it speaks, of 4 (which is 3.1.1) and 5; others are refused with *refusal*: these
    bytes, or, where there are none, by closing without a word, with a reset where it *resets*.
    *refuse*: reason codes by clientid. *denied*: topics and filters that nobody may publish or subscribe to;
    it answers with *denial*: an acknowledgement with that code, or, if *disconnects*, a DISCONNECT, as EMQX
    does with `deny_action = disconnect`. *remembers*: sessions outlive the network connection. *holding*:
    messages aren't acknowledged. *answers*: what it answers to a message instead. *silent*: nothing is
    answered at all. *slams*: connections are closed at once. *answer*: the bytes that it answers to CONNECT,
    instead of a CONNACK.
    *delay*: seconds that a CONNACK takes; *crowds* has then, for each CONNECT, how many were answered before
    and how many wait.
    """

    def __init__(self) -> None:
        self.port = 0
        self.versions = {5}
        self.refusal = b""
        self.resets = False
        self.spoken: list[int] = []
        self._old: set[asyncio.StreamWriter] = set()
        self.refuse: dict[str, int] = {}
        self.denied: set[str] = set()
        self.denial = 0x87
        self.disconnects = self.remembers = False
        self.holding = self.silent = self.slams = False
        self.answer: bytes | None = None
        self.answers: Callable[[mqtt5.PublishPacket, asyncio.StreamWriter], None] | None = None
        self.delay = 0.0
        self.asking = self.answered = 0
        self.crowds: list[tuple[int, int]] = []
        self.published: list[tuple[str, bytes]] = []
        self.connects = self.packets = 0
        self.subscribed: list[tuple[str, str]] = []
        self.unsubscribed: list[tuple[str, str]] = []
        self.acknowledged: list[tuple[str, int]] = []
        self.goodbyes: list[tuple[str, int]] = []
        self.clients: dict[str, asyncio.StreamWriter] = {}
        self.news = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def hub(self, **options: Any) -> MqttHub:
        """Return a hub with this broker."""
        return MqttHub(self.url, Options(**options))

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Go, and leave everybody without a word."""
        assert self._server is not None
        # A connection that is accepted, but hasn't begun when asyncio's server closes, would never be closed.
        for sock in self._server.sockets:
            asyncio.get_running_loop().remove_reader(sock.fileno())
        for _ in range(10):
            await asyncio.sleep(0)
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def until(self, what: Any) -> None:
        """Wait until *what* is true of this."""
        async with self.news:
            await self.news.wait_for(lambda: what(self))

    def kick(self, clientid: str, code: int) -> None:
        """End a client's session for a reason, which MQTT 3.1.1 has none for."""
        if self.clients[clientid] in self._old:
            self.clients[clientid].close()
            return
        self.clients[clientid].write(bytes([0xE0, 1, code]))

    def deliver(self, clientid: str, packet: mqtt5.PublishPacket) -> None:
        """Send a message to a client."""
        writer = self.clients[clientid]
        if writer not in self._old:
            writer.write(packet.write())
            return
        number = packet.packet_id or 0
        old = Publish(packet.topic, packet.payload, int(packet.qos), packet.retain, packet_id=number)
        writer.write(codec.encode(old, V4))

    def payloads(self, clientid: str | None = None) -> list[bytes]:
        """Return what came, of a client or of all."""
        return [payload for name, payload in self.published if clientid in (None, name)]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connects += 1
        try:
            if not self.slams:
                await self._converse(reader, writer)
        except ConnectionError:
            pass
        except asyncio.CancelledError:
            writer.transport.abort()  # what a client doesn't read keeps nobody waiting
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()
            self._tasks.discard(task)
            self._old.discard(writer)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        buffer, clientid = b"", ""
        while data := await reader.read(65_536):
            buffer += data
            while buffer:
                found = read(buffer, V4 if writer in self._old else None)
                if found is None:
                    break
                packet, size, version = found
                buffer = buffer[size:]
                self.packets += 1
                if version is not None and not self._speaks(version, writer):
                    return
                if isinstance(packet, mqtt5.ConnectPacket):
                    clientid = packet.client_id
                if not self.silent:
                    self._take(clientid, packet, writer)
                async with self.news:
                    self.news.notify_all()
                if writer.is_closing():
                    return

    def _speaks(self, version: int, writer: asyncio.StreamWriter) -> bool:
        """Take note of what a client speaks; send it away if that is not what we speak."""
        self.spoken.append(version)
        if version == V4:
            self._old.add(writer)
        if version in self.versions:
            return True
        writer.write(self.refusal)
        if self.resets:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return False

    def _ask(self, clientid: str, writer: asyncio.StreamWriter) -> None:
        """Answer to CONNECT after *delay*."""
        if not self.delay:
            writer.write(self._connect(clientid, writer))
            return
        self.asking += 1
        self.crowds.append((self.answered, self.asking))

        def answer() -> None:
            self.asking -= 1
            self.answered += 1
            writer.write(self._connect(clientid, writer))

        asyncio.get_running_loop().call_later(self.delay, answer)

    def _connect(self, clientid: str, writer: asyncio.StreamWriter) -> bytes:
        if self.answer is not None:
            return self.answer
        old = writer in self._old
        if clientid in self.refuse:
            if old:
                return bytes([0x20, 2, 0, self.refuse[clientid]])
            return bytes([0x20, 3, 0, self.refuse[clientid], 0])
        older = self.clients.get(clientid)
        if older is not None and not older.is_closing():
            if older in self._old:
                older.close()
            else:
                older.write(b"\xe0\x01\x8e")
        present = self.remembers and clientid in self.clients
        self.clients[clientid] = writer
        if old:
            return bytes([0x20, 2, present, 0])
        return mqtt5.ConnAckPacket(session_present=present).write()

    def _deny(
        self, packet: mqtt5.PublishPacket | mqtt5.SubscribePacket, writer: asyncio.StreamWriter
    ) -> None:
        """Answer what isn't allowed."""
        old = writer in self._old
        if self.disconnects:
            writer.write(b"" if old else bytes([0xE0, 1, self.denial]))
            writer.close()
        elif old and isinstance(packet, mqtt5.SubscribePacket):
            writer.write(b"\x90\x03" + packet.packet_id.to_bytes(2, "big") + b"\x80")
        elif packet.packet_id is not None:
            kind, rest = (0x90, b"\0") if isinstance(packet, mqtt5.SubscribePacket) else (0x40, b"")
            body = packet.packet_id.to_bytes(2, "big") + rest + bytes([self.denial])
            writer.write(bytes([kind, len(body)]) + body)

    def _take(self, clientid: str, packet: Any, writer: asyncio.StreamWriter) -> None:  # noqa: C901, PLR0912 - one case for each packet
        match packet:
            case mqtt5.ConnectPacket():
                self._ask(clientid, writer)
            case mqtt5.PublishPacket() if packet.topic in self.denied:
                self._deny(packet, writer)
            case mqtt5.PublishPacket():
                self.published.append((clientid, packet.payload))
                if self.answers is not None and packet.packet_id:
                    self.answers(packet, writer)
                elif packet.packet_id and not self.holding:
                    kind = mqtt5.PubRecPacket if int(packet.qos) == 2 else mqtt5.PubAckPacket
                    writer.write(kind(packet.packet_id).write())
            case mqtt5.PubRelPacket():
                writer.write(mqtt5.PubCompPacket(packet.packet_id).write())
            case mqtt5.SubscribePacket() if packet.topic_filters[0].pattern in self.denied:
                self._deny(packet, writer)
            case mqtt5.SubscribePacket():
                self.subscribed.append((clientid, packet.topic_filters[0].pattern))
                granted = mqtt5.SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE
                answer = mqtt5.SubAckPacket(packet.packet_id, [granted]).write()
                if writer in self._old:
                    answer = b"\x90\x03" + packet.packet_id.to_bytes(2, "big") + b"\x01"
                writer.write(answer)
            case mqtt5.UnsubscribePacket():
                self.unsubscribed.append((clientid, packet.patterns[0]))
                success = mqtt5.UnsubAckReasonCode.SUCCESS
                answer = mqtt5.UnsubAckPacket(packet.packet_id, [success]).write()
                if writer in self._old:
                    answer = b"\xb0\x02" + packet.packet_id.to_bytes(2, "big")
                writer.write(answer)
            case mqtt5.PubAckPacket():
                self.acknowledged.append((clientid, packet.packet_id))
            case mqtt5.PingReqPacket():
                writer.write(mqtt5.PingRespPacket().write())
            case mqtt5.DisconnectPacket():
                self.goodbyes.append((clientid, int(packet.reason_code)))


def read(buffer: bytes, version: int | None) -> tuple[Any, int, int | None] | None:
    """Return a packet as MQTT 5 has it, its size, and a CONNECT's version; None if it isn't whole yet."""
    head = codec.head_of(buffer, 0, len(buffer))
    if head is None or head[1] > len(buffer):
        return None
    begin, end = head
    told = buffer[begin + 6] if buffer[0] >> 4 == Kind.CONNECT else None
    if V4 in (version, told):
        return translated(codec.decode(buffer[0], buffer[begin:end], V4)), end, told
    return mqtt5.read(memoryview(buffer))[0], end, told


def translated(packet: Packet) -> Any:  # noqa: PLR0911 - one for each packet
    """Return a packet of MQTT 3.1.1 as MQTT 5 has it."""
    match packet:
        case Connect(clientid):
            return mqtt5.ConnectPacket(clientid, clean_start=packet.clean_start)
        case Publish(topic, payload, qos, retain, _, number):
            return mqtt5.PublishPacket(
                topic, payload, qos=mqtt5.QoS(qos), retain=retain, packet_id=number or None
            )
        case Subscribe(number, filters):
            return mqtt5.SubscribePacket(number, [mqtt5.TopicFilter(filters[0].topic)])
        case Unsubscribe(number, topics):
            return mqtt5.UnsubscribePacket(number, list(topics))
        case Ack(kind, number):
            made: dict[int, Any] = {
                Kind.PUBACK: mqtt5.PubAckPacket,
                Kind.PUBREC: mqtt5.PubRecPacket,
                Kind.PUBREL: mqtt5.PubRelPacket,
                Kind.PUBCOMP: mqtt5.PubCompPacket,
            }
            return made[kind](number)
        case Disconnect():
            return mqtt5.DisconnectPacket()
    return mqtt5.PingReqPacket()


@contextlib.asynccontextmanager
async def fake() -> AsyncIterator[FakeBroker]:
    """Run such a broker."""
    broker = FakeBroker()
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()
