"""Router: the options and the decorators of one protocol."""

from __future__ import annotations

import copy
import enum
from collections.abc import Callable, Hashable, Mapping
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, overload

from .codec import AnyCodec, functions_of
from .connection import Connection
from .errors import SetupError
from .framing import RAW, Framing
from .handlers import Handler, When, handler_of, only_form, short_form, with_info, with_reason, with_state
from .masking import Secret
from .models import ClientInfo, ConnectionInfo, Login, Message, Reason
from .names import NameRule, check_name, check_rule
from .options import RouterOptions, Sniff, check_framing, checked_rule, checked_secret, checked_sniff
from .routes import Routes
from .signatures import (
    Answer,
    B,
    BadFrameDecorator,
    BatchDecorator,
    ConnectDecorator,
    DeliverDecorator,
    ErrorDecorator,
    M,
    N,
    ReceivedDecorator,
    Reply,
    S,
    TerminatedDecorator,
    TimerDecorator,
)
from .topics import check_filter, matcher
from .views import ByClientid

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["DEFAULT", "ChildRouter", "Key", "Router"]

DEFAULT = "default"
"""The protocol that the app's own handlers serve."""

Key: TypeAlias = bytes | str | int | tuple[Any, ...] | enum.Enum | None


class Router(Generic[S, M]):
    """The handlers of one protocol, with its framing and the state of its connections.

    *name* is the protocol's name, in the command line and in the broker (`proto_name`). *framing* cuts what
    the device sends into frames and frames what is sent, `RAW` by default; *reply_framing* is for what is
    sent, where that differs. *key* is a function of a frame whose result picks the handler; without it the
    longest prefix does. *state* makes the `conn.state` of a new connection. *resume* carries on with
    connections that this process never saw begin, instead of closing them (for stateless protocols).
    *roaming*: a device on UDP may speak from several addresses; each that registers the clientid is one more
    connection of the client, instead of taking over from the one before.

    *codec* makes messages of frames: an object with `parse` and `build`, as construct has them, or two
    functions, `(parse, build)`; `(parse, None)` leaves what is sent bytes. Handlers, *key* and the `match` of
    a request get messages then, and what is sent is a message too; prefixes are still those of the frame. A
    frame that can't be parsed is bad: it is dropped, logged and counted (`frames_bad`), the next one goes on;
    `on_bad_frame` may answer it.

    *sniff* recognizes the protocol by a device's first bytes, where several share a listener: the bytes that
    it begins with, a tuple of such, or a function that gets all bytes so far (at least one) and returns True,
    False, or None while it can't decide; with more bytes it must not change its mind. The longest prefix
    wins, else the order given on the listener. One router without it may be among them and takes what no
    other takes. The connection, its `on_connect` and its state begin when the protocol is known, so a
    protocol in which the server speaks first can't share a listener, and *resume* has no effect there. A
    router that hasn't decided when `Limits.sniff_bytes` have arrived, `Limits.sniff_time` is over or the
    device hangs up is passed over; a datagram is decided by itself. What none takes is closed and counted
    (`connections_undecided`). On a listener of its own a router doesn't look at it.

    A clientid or username with a wildcard, an invisible character or a `/`, or one that begins with `$`, is
    refused by `register`: topics made of it would be somebody else's. *slash* allows `/`. *clientid* is a
    rule of one's own beside that: a regular expression for the whole clientid, or a function that takes it.

    *child_state* makes the `state` of a child, see `Connection.child`.

    *secret* says where secrets stand in what a device sends: a regular expression over its bytes (its groups,
    or without any the whole match), or a function that returns the bytes with what is secret replaced, of the
    same length. It is masked wherever bytes are shown. Without it, nothing that a device has said before it
    registered is shown in the log at warning or above: it is counted.

    *strict_order* has everything that is sent wait behind a `send(after=…)` that waits, for protocols that
    need each answer in its place; without it other sends pass.
    """

    if not TYPE_CHECKING:
        # At run time Router[Device] may leave out the message; only type checkers know its default.
        __class_getitem__ = classmethod(GenericAlias)

    @overload
    def __init__(
        self: Router[None, bytes],
        name: str,
        *,
        codec: None = ...,
        key: Callable[[bytes], Hashable] | None = ...,
        state: None = ...,
        **options: Unpack[RouterOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: Router[S, bytes],
        name: str,
        *,
        codec: None = ...,
        key: Callable[[bytes], Hashable] | None = ...,
        state: Callable[[], S],
        **options: Unpack[RouterOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: Router[None, M],
        name: str,
        *,
        codec: AnyCodec[M],
        key: Callable[[M], Hashable] | None = ...,
        state: None = ...,
        **options: Unpack[RouterOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        *,
        codec: AnyCodec[M],
        key: Callable[[M], Hashable] | None = ...,
        state: Callable[[], S],
        **options: Unpack[RouterOptions],
    ) -> None: ...
    def __init__(
        self,
        name: str,
        *,
        framing: Framing = RAW,
        reply_framing: Framing | None = None,
        codec: AnyCodec[Any] | None = None,
        key: Callable[[Any], Hashable] | None = None,
        state: Callable[[], Any] | None = None,
        resume: bool = False,
        roaming: bool = False,
        sniff: Sniff | None = None,
        clientid: NameRule | None = None,
        slash: bool = False,
        secret: Secret | None = None,
        child_state: Callable[[], Any] | None = None,
        strict_order: bool = False,
    ) -> None:
        if not isinstance(name, str) or not name or not name.isprintable() or set(name) & set("=,:/ "):
            raise SetupError(f"{name!r} can't name a protocol; use letters, digits, '-', '_' and '.'")
        self.name = name
        self.framing = framing
        self.reply_framing = framing if reply_framing is None else reply_framing
        self.codec = None if codec is None else functions_of(codec, repr(self))
        self.key = key
        self.state = state
        self.resume = resume
        self.roaming = roaming
        self.strict_order = strict_order
        self.sniff = None if sniff is None else checked_sniff(self, sniff)
        self.slash = slash
        self.clientid = None if clientid is None else checked_rule(self, clientid)
        self.secret = None if secret is None else checked_secret(self, secret)
        check_framing(self, framing, ("encode", "decode or split"))
        check_framing(self, self.reply_framing, ("encode",))
        for what, function in (("key", key), ("state", state), ("child_state", child_state)):
            if function is not None and not callable(function):
                raise SetupError(f"{self!r}: {what}={function!r} is not a function")
        self.child_state = child_state
        self.sealed = False
        self._child: ChildRouter | None = None
        self.live: dict[str, Connection[S, M]] = {}
        self.routes = Routes(key)

    def __repr__(self) -> str:
        return f"Router({self.name!r})"

    def check_client(self, client: ClientInfo) -> None:
        """Refuse the names of a device that this protocol doesn't take: raises `InvalidNameError`."""
        check_name(client.clientid, slash=self.slash)
        check_rule(client.clientid, self.clientid)
        if client.username and client.username != client.clientid:
            check_name(client.username, "username", slash=self.slash)

    @property
    def child(self) -> ChildRouter:
        """The handlers of children, `Connection.child`: `@app.child.on_deliver(…)` and the like."""
        if self._child is None:
            self._child = ChildRouter(self)
        return self._child

    @property
    def connections(self) -> Mapping[str, Connection[S, M]]:
        """The registered connections of this protocol in this process, by clientid."""
        return ByClientid(self.live)

    # --- the decorators; each returns the function untouched

    @overload
    def on_connect(
        self: Router[S, bytes], handler: Callable[[Connection[S]], B], /
    ) -> Callable[[Connection[S]], B]: ...
    @overload
    def on_connect(
        self: Router[S, bytes], handler: Callable[[Connection[S], ConnectionInfo], B], /
    ) -> Callable[[Connection[S], ConnectionInfo], B]: ...
    @overload
    def on_connect(
        self, handler: Callable[[Connection[S, M]], Reply[M]], /
    ) -> Callable[[Connection[S, M]], Reply[M]]: ...
    @overload
    def on_connect(
        self, handler: Callable[[Connection[S, M], ConnectionInfo], Reply[M]], /
    ) -> Callable[[Connection[S, M], ConnectionInfo], Reply[M]]: ...
    @overload
    def on_connect(self, /, *, blocking: bool = False) -> ConnectDecorator[S, M]: ...
    def on_connect(self, handler: Any = None, /, *, blocking: bool = False) -> Any:
        """Handle a new connection: `(conn)` or `(conn, info)`; what it returns is sent."""

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            where = self._free("on_connect", self.routes.connect)
            call = short_form(function, where, ("conn",)) or with_info(function)
            self.routes.connect = handler_of(call, function, where, blocking=blocking)
            return function

        return register if handler is None else register(handler)

    @overload
    def on_received(
        self: Router[S, bytes], handler: Callable[[Connection[S], bytes], B], /
    ) -> Callable[[Connection[S], bytes], B]: ...
    @overload
    def on_received(
        self: Router[S, bytes], handler: Callable[[Connection[S], bytes, S], B], /
    ) -> Callable[[Connection[S], bytes, S], B]: ...
    @overload
    def on_received(
        self, handler: Callable[[Connection[S, M], M], Reply[M]], /
    ) -> Callable[[Connection[S, M], M], Reply[M]]: ...
    @overload
    def on_received(
        self, handler: Callable[[Connection[S, M], M, S], Reply[M]], /
    ) -> Callable[[Connection[S, M], M, S], Reply[M]]: ...
    @overload
    def on_received(self, key: Key = None, /, *, blocking: bool = False) -> ReceivedDecorator[S, M]: ...
    def on_received(self, key: Any = None, /, *, blocking: bool = False) -> Any:
        """Handle frames: `(conn, frame)` or `(conn, data, state)`; what it returns is sent.

        With *key*: the frames that start with these bytes, the longest match first; or, where the router has
        a `key=` function, those for which it gives exactly this. Bare: the rest.
        """
        if callable(key) and not isinstance(key, enum.Enum):
            return self.on_received()(key)

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            if key is None:
                where = self._free("on_received", self.routes.rest)
            else:
                where = self._free(f"on_received({key!r})", self.routes.keyed.get(self._checked_key(key)))
            call = short_form(function, where, ("conn", "frame")) or with_state(function)
            handler = handler_of(call, function, where, blocking=blocking)
            if key is None:
                self.routes.rest = handler
            else:
                self.routes.add_key(key, handler)
            return function

        return register

    @overload
    def on_deliver(
        self: Router[S, bytes], handler: Callable[[Connection[S], Message], B], /
    ) -> Callable[[Connection[S], Message], B]: ...
    @overload
    def on_deliver(
        self, handler: Callable[[Connection[S, M], Message], Reply[M]], /
    ) -> Callable[[Connection[S, M], Message], Reply[M]]: ...
    @overload
    def on_deliver(
        self,
        topic: str | None = None,
        /,
        *,
        batch: Literal[False] = False,
        blocking: bool = False,
        reply: bool = False,
        when: When = "now",
    ) -> DeliverDecorator[S, M]: ...
    @overload
    def on_deliver(
        self, topic: str | None = None, /, *, batch: Literal[True], blocking: bool = False, when: When = "now"
    ) -> BatchDecorator[S, M]: ...
    def on_deliver(
        self,
        topic: Any = None,
        /,
        *,
        batch: bool = False,
        blocking: bool = False,
        reply: bool = False,
        when: When = "now",
    ) -> Any:
        """Handle messages for the device: `(conn, message)`; what it returns is sent.

        With *topic*, a filter: the messages that match; the first registered match wins, and the bare
        decorator takes the rest. With *batch* it gets the list that the broker delivered.

        With *reply* what it returns isn't sent to the device but published as the answer: to the message's
        response topic, with its correlation data and QoS. With *when* `"uplink"` messages wait until the
        device has spoken: they are handled behind its next frame.
        """
        if callable(topic):
            return self.on_deliver()(topic)
        if reply and batch:
            raise SetupError(
                f"{self!r}: on_deliver(batch=True) has no reply=; messages are answered one by one"
            )
        if when not in ("now", "uplink"):
            raise SetupError(f"{self!r}: on_deliver(when={when!r}) is invalid; use 'now' or 'uplink'")
        if topic is not None:
            try:
                check_filter(topic)
            except (TypeError, ValueError) as error:
                raise SetupError(f"{self!r} can't handle on_deliver({topic!r}): {error}") from None

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            if topic is None:
                where = self._free("on_deliver", self.routes.deliver_rest)
            else:
                same = next((handler for known, _, handler in self.routes.topics if known == topic), None)
                where = self._free(f"on_deliver({topic!r})", same)
            call = only_form(function, where, ("conn", "messages" if batch else "message"))
            handler = handler_of(call, function, where, blocking=blocking, batch=batch)
            handler.reply, handler.when = reply, when
            if topic is None:
                self.routes.deliver_rest = handler
            else:
                self.routes.topics.append((topic, matcher(topic), handler))
            return function

        return register

    @overload
    def on_timeout(
        self: Router[S, bytes], handler: Callable[[Connection[S]], B], /
    ) -> Callable[[Connection[S]], B]: ...
    @overload
    def on_timeout(
        self, handler: Callable[[Connection[S, M]], Reply[M]], /
    ) -> Callable[[Connection[S, M]], Reply[M]]: ...
    @overload
    def on_timeout(self, /, *, blocking: bool = False) -> TimerDecorator[S, M]: ...
    def on_timeout(self, handler: Any = None, /, *, blocking: bool = False) -> Any:
        """Handle the end of the `start_timer` time: `(conn)`. It closes unless the timer is started again."""

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            where = self._free("on_timeout", self.routes.timeout)
            self.routes.timeout = handler_of(
                only_form(function, where, ("conn",)), function, where, blocking=blocking
            )
            return function

        return register if handler is None else register(handler)

    @overload
    def on_terminated(
        self, handler: Callable[[Connection[S, M], Reason], N], /
    ) -> Callable[[Connection[S, M], Reason], N]: ...
    @overload
    def on_terminated(
        self, handler: Callable[[Connection[S, M], Reason, S], N], /
    ) -> Callable[[Connection[S, M], Reason, S], N]: ...
    @overload
    def on_terminated(self, /, *, blocking: bool = False) -> TerminatedDecorator[S, M]: ...
    def on_terminated(self, handler: Any = None, /, *, blocking: bool = False) -> Any:
        """Handle the end, last and once: `(conn, reason)` or `(conn, reason, state)`. It may publish."""

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            where = self._free("on_terminated", self.routes.terminated)
            call = short_form(function, where, ("conn", "reason")) or with_state(function)
            self.routes.terminated = handler_of(call, function, where, blocking=blocking)
            return function

        return register if handler is None else register(handler)

    @overload
    def on_error(
        self: Router[S, bytes], handler: Callable[[Connection[S], Exception], B], /
    ) -> Callable[[Connection[S], Exception], B]: ...
    @overload
    def on_error(
        self, handler: Callable[[Connection[S, M], Exception], Reply[M]], /
    ) -> Callable[[Connection[S, M], Exception], Reply[M]]: ...
    @overload
    def on_error(self, /, *, blocking: bool = False) -> ErrorDecorator[S, M]: ...
    def on_error(self, handler: Any = None, /, *, blocking: bool = False) -> Any:
        """Handle a handler's exception or a framing error: `(conn, error)`; what it returns is sent.

        The connection is closed afterwards unless it calls `conn.keep()`. A router without it uses the app's.
        """

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            where = self._free("on_error", self.routes.error)
            call = only_form(function, where, ("conn", "error"))
            self.routes.error = handler_of(call, function, where, blocking=blocking)
            return function

        return register if handler is None else register(handler)

    @overload
    def on_bad_frame(
        self: Router[S, bytes], handler: Callable[[Connection[S], bytes, str], B], /
    ) -> Callable[[Connection[S], bytes, str], B]: ...
    @overload
    def on_bad_frame(
        self, handler: Callable[[Connection[S, M], bytes, str], Reply[M]], /
    ) -> Callable[[Connection[S, M], bytes, str], Reply[M]]: ...
    @overload
    def on_bad_frame(self, /, *, blocking: bool = False) -> BadFrameDecorator[S, M]: ...
    def on_bad_frame(self, handler: Any = None, /, *, blocking: bool = False) -> Any:
        """Answer a frame that was dropped, for its checksum or since the codec can't parse it.

        `(conn, frame, reason)`: *frame* is as the framing has it, with its checksum; what the handler returns
        is sent. It has its turn between the frames before and behind; the connection stays.
        """

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            where = self._free("on_bad_frame", self.routes.bad_frame)
            call = with_reason(only_form(function, where, ("conn", "frame", "reason")))
            self.routes.bad_frame = handler_of(call, function, where, blocking=blocking)
            return function

        return register if handler is None else register(handler)

    @overload
    def on_login(self, handler: Callable[[Login], Answer], /) -> Callable[[Login], Answer]: ...
    @overload
    def on_login(
        self, /, *, blocking: bool = False
    ) -> Callable[[Callable[[Login], Answer]], Callable[[Login], Answer]]: ...
    def on_login(self, handler: Any = None, /, *, blocking: bool = False) -> Any:
        """Judge a login before the broker, or `--users`, is asked: `(login)`, a `Login`.

        It returns True to go on, False or a reason (a str) to refuse the device, or a `ClientInfo` to go on
        with those facts, such as a mountpoint. Whatever else it returns or raises refuses the device, and so
        does silence: it has `Limits.login_timeout` seconds. A router without it uses the app's.
        """

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            where = self._free("on_login", self.routes.login)
            call = only_form(function, where, ("login",))
            self.routes.login = handler_of(call, function, where, blocking=blocking)
            return function

        return register if handler is None else register(handler)

    def every(self, seconds: float, /, *, blocking: bool = False) -> TimerDecorator[S, M]:
        """Call `(conn)` each *seconds* for each connection; what it returns is sent.

        A call that is due while the one before still waits or runs is skipped.
        """
        if isinstance(seconds, str) or not seconds > 0:
            raise SetupError(f"{self!r} can't run every({seconds!r}); use a number of seconds above 0")

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            where = self._free(f"every({seconds})", None)
            call = only_form(function, where, ("conn",))
            self.routes.ticks.append((seconds, handler_of(call, function, where, blocking=blocking)))
            return function

        return register

    def seal(self, *, sealed: bool) -> None:
        """Refuse further handlers while the app runs."""
        self.sealed = sealed
        if self._child is not None:
            self._child.seal(sealed=sealed)

    def _free(self, where: str, taken: Handler | None) -> str:
        if self.sealed:
            raise SetupError(f"{self!r} is already running; register {where} before it starts")
        if taken is not None:
            raise SetupError(f"{self!r} already handles {where}, by {taken.name}")
        return where

    def _checked_key(self, key: Any) -> Any:
        if self.key is None and (not isinstance(key, bytes) or not key):
            remedy = "give bytes that the frame starts with, or the router a key="
            raise SetupError(f"{self!r} can't handle on_received({key!r}): {remedy}")
        try:
            hash(key)
        except TypeError:
            raise SetupError(f"{self!r} can't handle on_received({key!r}): a key must be hashable") from None
        return key


class ChildRouter(Router[Any, Any]):
    """The handlers of the children behind the connections of one router.

    What it has no handler for goes to those of the router itself, with the child as *conn*: `on_deliver`,
    `on_timeout`, `on_terminated`, `on_error`. `on_connect` and `every` are called for children only if they
    are registered here. It has no `on_received`: frames come to the line.
    """

    def __init__(self, line: Router[Any, Any]) -> None:
        super().__init__(
            line.name, framing=line.framing, reply_framing=line.reply_framing, state=line.child_state
        )
        self.codec, self.slash, self.clientid, self.secret = (
            line.codec,
            line.slash,
            line.clientid,
            line.secret,
        )
        self.sealed, self.live = line.sealed, line.live
        self._line = line

    def __repr__(self) -> str:
        return f"{self._line!r}.child"

    @property
    def child(self) -> ChildRouter:
        """Refuse: behind a child there is nobody."""
        raise SetupError(f"{self!r} has no children of its own")

    def on_received(self, key: Any = None, /, *, blocking: bool = False) -> Any:  # noqa: ARG002 - as `Router` has it
        """Refuse: frames come to the line's handlers, which know whose they are."""
        raise SetupError(f"{self!r} gets no frames; register on_received with {self._line!r}")

    def complete(self) -> ChildRouter:
        """Return it with the handlers of the line in the places of those that it doesn't have."""
        line, own, routes = self._line.routes, self.routes, Routes(None)
        delivers = bool(own.topics) or own.deliver_rest is not None
        routes.topics, routes.deliver_rest = (
            (own.topics, own.deliver_rest) if delivers else (line.topics, line.deliver_rest)
        )
        routes.connect, routes.ticks, routes.error = own.connect, own.ticks, own.error
        routes.timeout = own.timeout or line.timeout
        routes.login = own.login or line.login
        routes.terminated = own.terminated or line.terminated
        whole = copy.copy(self)
        whole.routes = routes
        return whole
