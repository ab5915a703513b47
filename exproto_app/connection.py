"""The connection as a handler sees it: who the device is, its state, and its verbs."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Hashable, Iterable, Mapping, Sequence
from datetime import datetime
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Generic, Protocol, overload

from .commands import DONE, Command, Outcome, Publish, Register, Subscribe, Unsubscribe
from .models import PLAIN, ClientInfo, ConnectionInfo, Message, Reason
from .properties import Pairs, checked_properties
from .topics import check_filter, check_qos, check_topic
from .verb_arguments import check_bytes, check_payload, outcomes_of, publishes, registration
from .views import ByClientid

if TYPE_CHECKING:
    from typing_extensions import Self, TypeVar

    S = TypeVar("S", default=None)
    M = TypeVar("M", default=bytes)
else:
    from typing import TypeVar

    S = TypeVar("S")
    M = TypeVar("M")

__all__ = ["ChildConnection", "Connection", "M", "S", "Verbs"]


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

    def check_client(self, client: ClientInfo) -> None:
        """Refuse names that the protocol doesn't allow."""
        ...

    def hide(self, text: str) -> str:
        """Return *text* with what is secret in it masked."""
        ...

    def now(self) -> datetime:
        """Return the host's time of day, in UTC."""
        ...

    # Each is explained at the verb of the same name.
    def send(  # noqa: D102 - see above
        self, data: Any, *, raw: bool, after: Sequence[Outcome[Any]] | None = None
    ) -> Outcome[None]: ...
    def issue(self, command: Command) -> Outcome[Any]: ...  # noqa: D102 - see above
    def issue_many(self, commands: Sequence[Publish]) -> Outcome[int]: ...  # noqa: D102 - see above
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
    @property
    def child_connections(self) -> dict[str, ChildConnection[Any, Any]]: ...  # noqa: D102 - see above
    def add_child(self, command: Register) -> ChildConnection[Any, Any]: ...  # noqa: D102 - see above
    def spawn(self, coroutine: Coroutine[Any, Any, object]) -> None: ...  # noqa: D102 - see above
    def start_timer(self, seconds: float) -> None: ...  # noqa: D102 - see above
    def terminate(self) -> None: ...  # noqa: D102 - see above
    def keep(self) -> None: ...  # noqa: D102 - see above


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
        # At run time Connection[Device] may leave out the message; only type checkers know its default.
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
        """Who the device is to the broker; None until `register` has succeeded."""
        return self._verbs.client

    @property
    def closed(self) -> bool:
        """Whether the device is gone."""
        return self._verbs.gone

    @property
    def close_reason(self) -> Reason | None:
        """Why the connection is ending or has ended, one of the `Reason` words; None while it stays open."""
        return self._verbs.reason

    @property
    def close_detail(self) -> str:
        """The host's own description of the end, such as the text of a socket error."""
        return self._verbs.detail

    def hide(self, text: str) -> str:
        """Return *text* with the passwords given to `register` masked, as in the log."""
        return self._verbs.hide(text)

    def now(self) -> datetime:
        """Return the host's time of day, in UTC, to the millisecond.

        In a test and in a replay it is virtual, like all time there, so answers with a time in them can be
        tested and replayed.
        """
        return self._verbs.now()

    def send(
        self,
        data: M | bytes,
        *,
        raw: bool = False,
        after: Outcome[Any] | Iterable[Outcome[Any]] | None = None,
    ) -> Outcome[None]:
        """Send *data* to the device, framed by the router's framing, or unchanged if *raw*.

        With a codec that builds, *data* is a message, unless it is *raw*.

        With *after*, one outcome of a verb or several, it is sent once all of them have succeeded; no turn
        waits for that. Sends that wait keep their order among themselves; others pass them, unless the router
        has `strict_order=True`. If an outcome fails, this send and those waiting behind it are dropped, and
        the error goes to `on_error`, as if the handler had raised it.

        Awaited, it returns when fewer bytes than the limit wait for this device, or, where the host sends
        through a broker, when the broker has answered. Raises `FramingError` for what the framing can't
        carry.
        """
        if type(data) is not bytes and (raw or not self._verbs.builds):
            check_bytes("what is sent", data)
        if after is None:
            return self._verbs.send(data, raw=raw)
        return self._verbs.send(data, raw=raw, after=outcomes_of(after))

    def terminate(self) -> None:
        """Close the connection once everything sent and published before is out (at most 5 s later)."""
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
        """Make the device a client of the broker, by its *clientid* or a whole `ClientInfo`.

        With a *password* and no *username*, the clientid is the username too: brokers look passwords up by
        username. A name that could change the meaning of a topic raises `InvalidNameError`, which is both a
        `DeniedError` and a `ValueError`; see `Router`.

        *keepalive* is in seconds, 0 for none. The next frame is handled when the outcome is known. If the
        login is refused and nobody awaits it, the connection ends. Registering the same client again
        succeeds and changes nothing; a different one is denied.

        *will* is published when the connection has ended, unless the app itself ended it with `terminate`;
        the mountpoint is prefixed to its topic. *session_expiry*: for so many seconds after the connection
        has ended the broker keeps the client's session, in which messages of QoS 1 and 2 for its
        subscriptions wait until it registers again; ignored behind and inside EMQX (ExProto).
        """
        command = registration(self.protocol, clientid, password, will, session_expiry, fields)
        self._verbs.check_client(command.client)
        return self._verbs.issue(command)

    def publish(
        self,
        topic: str,
        payload: bytes,
        qos: int = 0,
        *,
        retain: bool = False,
        expiry: int | None = None,
        content_type: str = "",
        response_topic: str = "",
        correlation_data: bytes = b"",
        user_properties: Pairs = (),
    ) -> Outcome[None]:
        """Publish *payload* to *topic*. Awaited with *qos* 1 or 2, it returns when the broker has it.

        With MQTT 5: *expiry* is the number of seconds after which the message isn't delivered any more;
        *content_type* says what the payload is; *response_topic* is where an answer is to be published, with
        the same *correlation_data*; *user_properties*, a dict or pairs of text, are for anything else.
        """
        check_topic(topic)
        if type(payload) is not bytes:
            check_payload(payload)
        if type(qos) is not int or not 0 <= qos <= 2:
            check_qos(qos)
        properties = PLAIN
        if expiry is not None or content_type or response_topic or correlation_data or user_properties:
            properties = checked_properties(
                expiry, content_type, response_topic, correlation_data, user_properties
            )
        return self._verbs.issue(Publish(topic, payload, qos, retain, properties))

    def publish_many(
        self, messages: Iterable[Message | tuple[str, bytes]], qos: int = 0, *, retain: bool = False
    ) -> Outcome[int]:
        """Publish *messages*, each a `Message` or a topic and a payload, in order.

        *qos* and *retain* apply to pairs; a `Message` has its own. There is one outcome for all: the number
        of messages once the broker has every one of them, or the first error, which says how many failed.
        """
        return self._verbs.issue_many(publishes(messages, qos, retain=retain))

    def subscribe(self, topic: str, qos: int = 0) -> Outcome[int]:
        """Have messages that match the filter *topic* delivered; awaited, it returns the granted QoS."""
        check_filter(topic)
        check_qos(qos)
        return self._verbs.issue(Subscribe(topic, qos))

    def unsubscribe(self, topic: str) -> Outcome[None]:
        """Cancel the subscription to the filter *topic*."""
        check_filter(topic)
        return self._verbs.issue(Unsubscribe(topic))

    def start_timer(self, seconds: float) -> None:
        """Call `on_timeout` after *seconds* of silence, then close unless it starts the timer again.

        A new timer replaces the old one; bytes from the device restart it.
        """
        if isinstance(seconds, str) or not seconds > 0:
            raise ValueError(f"a timer of {seconds!r} seconds is invalid; give a number above 0")
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

        Awaited in a handler, it gives up the turn: other frames are handled meanwhile, and `state` may have
        changed when the handler resumes. *timeout* is in seconds from the sending; after each timeout the
        frame is sent again, up to *retries* times. Requests with the same *key* (other than None) wait for
        each other. With a codec, all these frames are messages. Raises `RequestTimeout`, `ClosedError`, or
        `UnavailableError` if too many requests are waiting.
        """
        if raw or not self._verbs.builds:
            check_bytes("what is sent", frame)
        if isinstance(timeout, str) or not timeout > 0:
            raise ValueError(f"a timeout of {timeout!r} seconds is invalid; give a number above 0")
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise ValueError(f"retries is {retries!r}; it must be a whole number, 0 or more")
        return self._verbs.request(frame, match=match, timeout=timeout, retries=retries, key=key, raw=raw)

    @property
    def line(self) -> Connection[Any, M] | None:
        """The connection that this one is a child of; None for a device with its own line."""
        return None

    @property
    def children(self) -> Mapping[str, ChildConnection[Any, M]]:
        """The devices behind this connection, by clientid."""
        return ByClientid(self._verbs.child_connections)

    def child(
        self,
        clientid: ClientInfo | str,
        *,
        password: str | None = None,
        will: Message | None = None,
        session_expiry: int = 0,
        **fields: Any,
    ) -> ChildConnection[Any, M]:
        """Return the device *clientid* behind this connection, which others share: a concentrator, a bus.

        The first call registers it, as `register` does, with the same arguments; later calls just return it.
        It is a connection of its own: with its own client, subscriptions and will, and the handlers of
        `Router.child`. Frames still come to the line's handlers, and what a child sends leaves by the line.
        `child.terminate()` ends the child alone; the end of the line ends all its children.

        Awaited, it returns the child once it is registered, or raises what `register` raises. If the login is
        refused and nobody awaits it, the child ends, and the line stays. Raises `UnavailableError` beyond
        `Limits.children`, `DeniedError` for the line's own clientid, and `ClosedError` after the connection
        has ended. Where a host has one client per connection (ExProto, EMQX 4.2), children use the line's,
        which has to register first: topics work; logins and wills of their own don't.
        """
        command = registration(self.protocol, clientid, password, will, session_expiry, fields)
        self._verbs.check_client(command.client)
        return self._verbs.add_child(command)

    def spawn(self, coroutine: Coroutine[Any, Any, object], /) -> None:
        """Run *coroutine* beside the turns, at most until the connection ends.

        An exception in it counts as a handler's. Raises `UnavailableError` if too many are running.
        """
        if not isinstance(coroutine, Coroutine):
            raise TypeError(f"spawn takes a coroutine, such as work(), not {type(coroutine).__name__}")
        self._verbs.spawn(coroutine)

    def keep(self) -> None:
        """In `on_error`: stay connected in spite of the error."""
        self._verbs.keep()


class ChildConnection(Connection[S, M]):
    """A device behind a *line* that it shares with others; `Connection.child` makes it. It may be awaited."""

    __slots__ = ("_line", "registered")

    if not TYPE_CHECKING:
        __class_getitem__ = classmethod(GenericAlias)

    def __init__(self, verbs: Verbs, line: Connection[Any, M], *, conn_id: str, protocol: str) -> None:
        super().__init__(verbs, conn_id=conn_id, protocol=protocol, info=line.info, state=None)  # type: ignore[arg-type] # the engine sets it
        self._line = line
        self.registered: Outcome[None] = DONE

    @property
    def line(self) -> Connection[Any, M]:
        """The connection that it shares."""
        return self._line

    def __await__(self) -> Generator[Any, None, Self]:
        """Wait for the login; return the child."""
        yield from self.registered.__await__()
        return self
