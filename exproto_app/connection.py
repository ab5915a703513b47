"""The connection as a handler sees it: facts, state and verbs."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Generic, Protocol, overload

import attrs

from .commands import Command, Outcome, Publish, Register, Subscribe, Unsubscribe
from .models import ClientInfo, ConnectionInfo, Message, Reason
from .topics import check_filter, check_qos, check_topic

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    S = TypeVar("S", default=None)
    M = TypeVar("M", default=bytes)
else:
    from typing import TypeVar

    S = TypeVar("S")
    M = TypeVar("M")

__all__ = ["Connection", "M", "S", "Verbs", "check_payload"]


class Verbs(Protocol):
    """The engine's half of a connection, which carries its verbs out; the methods are `Connection`'s."""

    client: ClientInfo | None
    reason: Reason | None
    detail: str

    @property
    def gone(self) -> bool:
        """Whether the device is gone."""
        ...

    @property
    def builds(self) -> bool:
        """Whether a codec makes frames of what is sent."""
        ...

    # Each is explained at the verb of the same name.
    def send(self, data: Any, *, raw: bool) -> Outcome[None]: ...  # noqa: D102 - see above
    def issue(self, command: Command) -> Outcome[Any]: ...  # noqa: D102 - see above
    def request(  # noqa: D102 - see above
        self,
        frame: Any,
        *,
        match: Callable[[Any], object] | None,
        timeout: float,
        retries: int,
        key: Hashable,
        raw: bool,
    ) -> Outcome[Any]: ...
    def spawn(self, coroutine: Coroutine[Any, Any, object]) -> None: ...  # noqa: D102 - see above
    def start_timer(self, seconds: float) -> None: ...  # noqa: D102 - see above
    def terminate(self) -> None: ...  # noqa: D102 - see above
    def keep(self) -> None: ...  # noqa: D102 - see above


def _check_bytes(what: str, value: object) -> None:
    if not isinstance(value, bytes):
        hint = "; encode it first" if isinstance(value, str) else "; make it bytes(…) first"
        raise TypeError(f"{what} is {type(value).__name__}, not bytes{hint}")


def check_payload(payload: object) -> None:
    """Refuse a payload that isn't bytes."""
    _check_bytes("the payload", payload)


class Connection(Generic[S, M]):
    """One device's connection. Made by the host; handlers get it as their first argument.

    *id* names it in the logs, *protocol* is the router's name, *info* how it is connected, *state* whatever
    the router's `state=` made (None without). Verbs never block; each may be awaited for what the host can
    prove. Awaited, they raise `DeniedError`, `UnavailableError` or `ClosedError`; a failure that nobody
    awaits is logged and counted. Wrong arguments raise `ValueError` or `TypeError` at once. Verbs may be
    called outside handlers too, from tasks and from threads.
    """

    __slots__ = ("__weakref__", "_verbs", "id", "info", "protocol", "state")

    if not TYPE_CHECKING:
        # At run time nobody looks: Connection[Device] has a default for the message, as type checkers know.
        __class_getitem__ = classmethod(GenericAlias)

    def __init__(self, verbs: Verbs, *, conn_id: str, protocol: str, info: ConnectionInfo, state: S) -> None:
        self._verbs = verbs
        self.id = conn_id
        self.protocol = protocol
        self.info = info
        self.state = state

    def __repr__(self) -> str:
        client = self._verbs.client
        name = f" {client.clientid!r}" if client else ""
        return f"<Connection {self.id}{name} {self.protocol} {self.info.peername}>"

    @property
    def client(self) -> ClientInfo | None:
        """Who the device is to the broker; None until a `register` succeeded."""
        return self._verbs.client

    @property
    def closed(self) -> bool:
        """Whether the device is gone."""
        return self._verbs.gone

    @property
    def close_reason(self) -> Reason | None:
        """Why the connection ends or ended, one of the `Reason` words; None while nothing ends it."""
        return self._verbs.reason

    @property
    def close_detail(self) -> str:
        """The host's own words about the end, such as the text of a socket error."""
        return self._verbs.detail

    def send(self, data: M | bytes, *, raw: bool = False) -> Outcome[None]:
        """Send *data* to the device, framed as the router's framing says, or as it is if *raw*.

        With a codec that builds, *data* is a message, unless it is *raw*.

        Awaited, it returns when the bytes waiting for this device are below the limit again, or when the
        broker has answered where the host sends through one. Raises `FramingError` for what the framing
        can't carry.
        """
        if type(data) is not bytes and (raw or not self._verbs.builds):
            _check_bytes("what is sent", data)
        return self._verbs.send(data, raw=raw)

    def terminate(self) -> None:
        """Close the connection once what was sent and published before is out (at most 5 s later)."""
        self._verbs.terminate()

    @overload
    def register(
        self,
        clientid: ClientInfo,
        *,
        password: str | None = None,
        will: Message | None = None,
        session_expiry: int = 0,
    ) -> Outcome[None]: ...
    @overload
    def register(
        self,
        clientid: str,
        *,
        username: str = "",
        password: str | None = None,
        keepalive: int = 0,
        proto_name: str = "",
        proto_ver: str = "",
        mountpoint: str = "",
        will: Message | None = None,
        session_expiry: int = 0,
    ) -> Outcome[None]: ...
    def register(
        self,
        clientid: ClientInfo | str,
        *,
        password: str | None = None,
        will: Message | None = None,
        session_expiry: int = 0,
        **fields: Any,
    ) -> Outcome[None]:
        """Make the device a client of the broker, under *clientid* or as a whole `ClientInfo` says.

        *username* is *clientid* where a *password* is given without one: brokers look passwords up by it.
        *keepalive* is in seconds, 0 for none. The next frame is handled when the outcome is known. Refused,
        and nobody awaits it: the connection ends. Once registered, the same client again is a success that
        changes nothing; another is denied.

        *will* is published when the connection has ended, unless the app itself ended it by `terminate`; its
        topic gets the mountpoint. *session_expiry* is for how many seconds after its end the broker keeps the
        client's session, where messages for its subscriptions of QoS 1 and 2 wait until it registers anew;
        hosts other than the MQTT uplink have no such sessions and ignore it.
        """
        if isinstance(clientid, ClientInfo):
            if fields:
                raise TypeError(f"a ClientInfo is given, so {', '.join(fields)} belongs into it")
            client = clientid
        else:
            client = ClientInfo(clientid, **fields)
        _check_client(client)
        if password is not None and not isinstance(password, str):
            raise TypeError(f"password is {type(password).__name__}, not str")
        if password is not None and not client.username:
            client = attrs.evolve(client, username=client.clientid)
        if not client.proto_name:
            client = attrs.evolve(client, proto_name=self.protocol)
        _check_will(will)
        _check_expiry(session_expiry)
        return self._verbs.issue(Register(client, password, will, session_expiry))

    def publish(self, topic: str, payload: bytes, qos: int = 0, *, retain: bool = False) -> Outcome[None]:
        """Publish *payload* to *topic*. Awaited with *qos* 1 or 2, it returns when the broker has it."""
        check_topic(topic)
        if type(payload) is not bytes:
            check_payload(payload)
        if qos:
            check_qos(qos)
        return self._verbs.issue(Publish(topic, payload, qos, retain))

    def subscribe(self, topic: str, qos: int = 0) -> Outcome[int]:
        """Have messages for the filter *topic* delivered; awaited, it gives the QoS granted."""
        check_filter(topic)
        check_qos(qos)
        return self._verbs.issue(Subscribe(topic, qos))

    def unsubscribe(self, topic: str) -> Outcome[None]:
        """Take the subscription to the filter *topic* back."""
        check_filter(topic)
        return self._verbs.issue(Unsubscribe(topic))

    def start_timer(self, seconds: float) -> None:
        """Call `on_timeout` after *seconds* of silence, then close unless it starts the timer again.

        A new timer replaces the old one; bytes from the device start it afresh.
        """
        if not seconds > 0:
            raise ValueError(f"a timer of {seconds} seconds never makes sense, it has to be above 0")
        self._verbs.start_timer(seconds)

    def request(
        self,
        frame: M | bytes,
        *,
        match: Callable[[M], object] | None = None,
        timeout: float = 10.0,
        retries: int = 0,
        key: Hashable = None,
        raw: bool = False,
    ) -> Outcome[M]:
        """Send *frame* and, awaited, return the first frame for which *match* is true (None: the next frame).

        Awaited in a handler it gives the turn up: other frames are handled meanwhile, and `state` may have
        changed when it goes on. *timeout* is in seconds, from the sending; after each it is sent again, up to
        *retries* times. Requests with one *key* (other than None) wait for each other. With a codec all of
        these frames are messages. Raises `RequestTimeout`, `ClosedError`, or `UnavailableError` with too many
        requests waiting.
        """
        if raw or not self._verbs.builds:
            _check_bytes("what is sent", frame)
        if not timeout > 0:
            raise ValueError(f"a timeout of {timeout} seconds never makes sense, it has to be above 0")
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise ValueError(f"retries is {retries!r}, it has to be a whole number, 0 or more")
        return self._verbs.request(frame, match=match, timeout=timeout, retries=retries, key=key, raw=raw)

    def spawn(self, coroutine: Coroutine[Any, Any, object], /) -> None:
        """Run *coroutine* beside the turns, at most until the connection ends.

        An exception in it counts as a handler's. Raises `UnavailableError` with too many of them running.
        """
        self._verbs.spawn(coroutine)

    def keep(self) -> None:
        """In `on_error`: stay connected in spite of the error."""
        self._verbs.keep()


def _check_client(client: ClientInfo) -> None:
    for field in ("clientid", "username", "proto_name", "proto_ver", "mountpoint"):
        text = getattr(client, field)
        if not isinstance(text, str):
            raise TypeError(f"{field} is {type(text).__name__}, not str")
        if "\0" in text or not _encodable(text):
            raise ValueError(f"{field} {text!r} can't be sent as UTF-8 text; escape it first")
        if len(text.encode()) > 65_535:
            raise ValueError(f"{field} has {len(text.encode())} bytes, limit is 65535")
    if not client.clientid:
        raise ValueError("clientid is empty; a device needs a name of its own")
    if client.mountpoint:
        check_topic(client.mountpoint)
    if isinstance(client.keepalive, bool) or not isinstance(client.keepalive, int):
        raise TypeError(f"keepalive is {type(client.keepalive).__name__}, not int")
    if not 0 <= client.keepalive <= 65_535:
        raise ValueError(f"keepalive is {client.keepalive}, it has to be from 0 to 65535 seconds")


def _check_will(will: object) -> None:
    if will is None:
        return
    if not isinstance(will, Message):
        raise TypeError(f"will is {type(will).__name__}, not Message; write Message(topic, payload)")
    check_topic(will.topic)
    check_payload(will.payload)
    check_qos(will.qos)


def _check_expiry(seconds: object) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, int):
        raise TypeError(f"session_expiry is {type(seconds).__name__}, not int")
    if not 0 <= seconds <= 0xFFFFFFFF:
        raise ValueError(f"session_expiry is {seconds}, it has to be from 0 to 4294967295 seconds")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
