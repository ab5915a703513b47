"""The MQTT server without sockets and without a loop: packets go in, packets come out."""

from __future__ import annotations

from collections import Counter
from typing import Any

from exproto_app.commands import Outcome, Publish
from exproto_app.hosts.mqtt_server.bounds import Bounds
from exproto_app.hosts.mqtt_server.broker import MqttBroker
from exproto_app.hosts.mqtt_server.codec import decode, encode, head_of
from exproto_app.hosts.mqtt_server.connection import ClientConnection
from exproto_app.hosts.mqtt_server.packets import ConnAck, Connect, Packet, Subscribe, Subscription
from exproto_app.hub import Login, MemoryHub
from exproto_app.models import Address, ClientInfo

__all__ = ["Desk", "Peer"]


def no_waiter() -> Any:
    raise AssertionError("nobody awaits anything here")


class Desk:
    """A hub with its MQTT side. *now* is the time."""

    def __init__(self, login: Login | None = None, **bounds: Any) -> None:
        self.hub = MemoryHub(login)
        self.stats: Counter[str] = Counter()
        self.devices: dict[str, Any] = {}
        self.now = 1.0
        self.broker = MqttBroker(
            self.hub, Bounds(**bounds), waiter=no_waiter, count=self.count, devices=self.devices
        )
        self.broker.tick(self.now)

    def count(self, name: str, number: int = 1) -> None:
        self.stats[name] += number

    def publish(self, topic: str, payload: bytes, qos: int = 0, *, retain: bool = False) -> Outcome[None]:
        """Publish as the app does."""
        return self.hub.publish(Publish(topic, payload, qos, retain))

    def peer(self, version: int = 5) -> Peer:
        """Return somebody who has only just connected."""
        return Peer(self, version)

    def connect(self, clientid: str, version: int = 5, **fields: Any) -> Peer:
        """Return a client that is logged in."""
        peer = Peer(self, version)
        peer.send(Connect(clientid, version, **fields))
        (answer,) = peer.got()
        assert isinstance(answer, ConnAck)
        assert answer.code == 0
        peer.present = answer.session_present
        return peer

    def pass_time(self, seconds: float, *peers: Peer) -> None:
        """Let time go by for the server and for *peers*."""
        self.now += seconds
        for peer in peers:
            peer.connection.tick(self.now)
        self.broker.tick(self.now)


class Peer:
    """A client; the host of its connection as well."""

    def __init__(self, desk: Desk, version: int) -> None:
        self.version = version
        self.desk = desk
        self.closed = False
        self.present = False
        self.steps = 0
        self.connection = ClientConnection(desk.broker, Address("192.0.2.1", 1), self, desk.now)

    # --- what the connection wants of its host

    def wants_work(self) -> None:
        """Do nothing: `work` is called whenever it may matter."""

    def login(self, client: ClientInfo, password: str | None) -> None:
        admits = self.desk.hub.admits(client, password)
        try:
            admits.send(None)
        except StopIteration as stop:
            self.connection.admitted(bool(stop.value))
        else:
            raise AssertionError("the login rule of these tests doesn't wait")

    def denied(self) -> None:
        self.desk.stats["denied"] += 1

    def close(self) -> None:
        self.closed = True

    # --- what tests do

    def send(self, *packets: Packet) -> None:
        self.feed(b"".join(encode(packet, self.version) for packet in packets))

    def feed(self, data: bytes) -> None:
        """Have *data* arrive, and be handled in as many slices as that takes."""
        self.connection.feed(data)
        self.work()

    def work(self) -> None:
        self.steps += 1
        while self.connection.work(lambda: False):
            self.steps += 1

    def read(self, size: int = 1 << 30) -> bytes:
        """Read what the server has to send, *size* bytes at most."""
        out = b""
        while len(out) < size:
            self.work()
            data = self.connection.take(min(size - len(out), 32_768))
            if not data:
                break
            out += data
        return out

    def got(self) -> list[Packet]:
        """Return the packets that have come since the last call."""
        data, at, packets = self.read(), 0, []
        while at < len(data):
            found = head_of(data, at, len(data))
            assert found is not None
            begin, end = found
            packets.append(decode(data[at], data[begin:end], self.version))
            at = end
        return packets

    def subscribe(self, topic: str, qos: int = 0, **options: Any) -> None:
        self.send(Subscribe(1, [Subscription(topic, qos, **options)]))
        (answer,) = self.got()
        assert getattr(answer, "codes", None) == [qos]

    def hang_up(self) -> None:
        """Go without a word."""
        self.connection.hung_up()
        self.work()
        self.connection.lost()

    @property
    def held(self) -> int:
        """The bytes that the server holds for this client."""
        session = self.connection.session
        return self.connection.out_bytes + self.connection.inbound.size + (session.held if session else 0)
