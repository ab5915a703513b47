"""The other side of the broker, for tests: a plain MQTT 5 client that waits for what is to come."""

from __future__ import annotations

import queue
import threading
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from paho.mqtt.client import Client as PahoClient
from paho.mqtt.client import MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from exproto_app import Message

from .process import PATIENCE

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Client"]

T = TypeVar("T")


class Client:
    """A client of the broker on *port*, connected in a `with` block.

    *session_expiry*: seconds that the broker keeps the session, which is then gone on with. *reconnects*:
    it comes back after the broker was away.
    """

    def __init__(
        self,
        port: int,
        clientid: str = "",
        *,
        username: str = "",
        password: str | None = None,
        session_expiry: int = 0,
        reconnects: bool = False,
    ) -> None:
        self._port = port
        self._session_expiry = session_expiry
        self._reconnects = reconnects
        self.ended: queue.Queue[str] = queue.Queue()
        """Why the broker, or the network, ended the connection, in paho's words."""
        self._answers: dict[tuple[str, int], queue.Queue[Any]] = {}
        self._lock = threading.Lock()
        self._messages: dict[str, queue.Queue[Message]] = {}
        self._all: queue.Queue[Message] = queue.Queue()
        self._connected: queue.Queue[ReasonCode] = queue.Queue()
        self._paho = PahoClient(CallbackAPIVersion.VERSION2, clientid, protocol=MQTTv5)
        if username or password is not None:
            self._paho.username_pw_set(username, password)
        self._paho.reconnect_delay_set(1, 1)
        self._paho.max_queued_messages_set(0)
        self._paho.on_connect = lambda _c, _u, _f, code, _p: self._connected.put(code)
        self._paho.on_disconnect = self._on_disconnect
        self._paho.on_message = self._on_message
        self._paho.on_subscribe = lambda _c, _u, mid, codes, _p: self._answer("subscribe", mid, codes)
        self._paho.on_unsubscribe = lambda _c, _u, mid, codes, _p: self._answer("unsubscribe", mid, codes)
        self._paho.on_publish = lambda _c, _u, mid, code, _p: self._answer("publish", mid, code)

    def __enter__(self) -> Self:
        code = self.connect()
        assert code.value == 0, f"the broker refused the test's own client: {code}"
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def connect(self) -> ReasonCode:
        """Connect, and return what the broker said of it."""
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # its library's gap
        properties.SessionExpiryInterval = self._session_expiry
        clean = self._session_expiry == 0
        self._paho.connect("127.0.0.1", self._port, 60, clean_start=clean, properties=properties)
        self._paho.loop_start()
        return _next(self._connected, "CONNACK")

    def close(self) -> None:
        """Disconnect; without a session's expiry, the broker forgets it."""
        self._reconnects = False
        self._paho.disconnect()
        self._paho.loop_stop()
        # paho leaves the pair of sockets that wakes its thread to the garbage collector.
        self._paho._reset_sockets()

    def subscribe(self, topic: str, qos: int = 0, *, no_local: bool = False) -> int:
        """Subscribe; return the broker's reason code, which is the QoS that it granted."""
        options = SubscribeOptions(qos=qos, noLocal=no_local)
        _, mid = self._paho.subscribe(topic, options=options)
        codes: list[ReasonCode] = self._wait("subscribe", mid)
        return int(codes[0].value)

    def unsubscribe(self, topic: str) -> None:
        """Unsubscribe."""
        _, mid = self._paho.unsubscribe(topic)
        self._wait("unsubscribe", mid)

    def publish(self, topic: str, payload: bytes, qos: int = 0, *, retain: bool = False) -> int:
        """Publish, wait until it is out, and return the broker's reason code."""
        info = self._paho.publish(topic, payload, qos, retain)
        code: ReasonCode = self._wait("publish", info.mid)
        return int(code.value)

    def post(self, topic: str, payload: bytes, qos: int = 0, **properties: Any) -> None:
        """Publish without waiting; *properties* are by paho's names."""
        given = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # its library's gap
        for name, value in properties.items():
            setattr(given, name, value)
        self._paho.publish(topic, payload, qos, properties=given)

    def next(self, topic: str | None = None) -> Message:
        """Wait for the next message, of any topic or to *topic*; those that are taken so are taken once.

        A client reads either by topic or all in one order.
        """
        if topic is None:
            return _next(self._all, "a message")
        return _next(self._of(topic), f"a message to {topic!r}")

    def take(self, topic: str, seconds: float) -> Message:
        """Wait for so many *seconds* for the next message to *topic*. Raises `queue.Empty`."""
        return self._of(topic).get(timeout=seconds)

    def none(self, topic: str | None = None) -> bool:
        """Tell whether no message waits to be read."""
        return self._all.empty() if topic is None else self._of(topic).empty()

    def _of(self, topic: str) -> queue.Queue[Message]:
        with self._lock:
            return self._messages.setdefault(topic, queue.Queue())

    def _on_message(self, _: PahoClient, __: Any, message: MQTTMessage) -> None:
        taken = Message(
            message.topic,
            bytes(message.payload),
            message.qos,
            message.retain,
            expiry=getattr(message.properties, "MessageExpiryInterval", None),
            content_type=getattr(message.properties, "ContentType", ""),
            response_topic=getattr(message.properties, "ResponseTopic", ""),
            correlation_data=getattr(message.properties, "CorrelationData", b""),
            user_properties=getattr(message.properties, "UserProperty", ()),
        )
        self._of(taken.topic).put(taken)
        self._all.put(taken)

    def _on_disconnect(self, _: PahoClient, __: Any, ___: Any, code: ReasonCode, ____: Any) -> None:
        self.ended.put(str(code))
        if not self._reconnects:
            self._paho.disconnect()  # without it, paho would connect again

    def _answer(self, kind: str, mid: int, value: Any) -> None:
        with self._lock:
            answers = self._answers.setdefault((kind, mid), queue.Queue())
        answers.put(value)

    def _wait(self, kind: str, mid: int | None) -> Any:
        assert mid is not None, "the client isn't connected"
        with self._lock:
            answers = self._answers.setdefault((kind, mid), queue.Queue())
        try:
            return _next(answers, f"an answer to {kind}")
        finally:
            with self._lock, suppress(KeyError):
                del self._answers[kind, mid]


def _next(source: queue.Queue[T], what: str) -> T:
    try:
        return source.get(timeout=PATIENCE)
    except queue.Empty:
        raise AssertionError(f"{what} didn't come within {PATIENCE:g} s") from None
