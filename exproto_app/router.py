"""Router: the decorators, and which handler takes what."""

from __future__ import annotations

import enum
import functools
import inspect
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from types import GenericAlias, MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, overload

import attrs

from .codec import AnyCodec, functions_of
from .connection import Connection
from .errors import SetupError
from .framing import RAW, Framing
from .masking import Mask, Secret, mask_for
from .models import ClientInfo, ConnectionInfo, Message, Reason
from .names import NameRule, check_name, check_rule, name_rule
from .signatures import (
    B,
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

__all__ = ["DEFAULT", "Handler", "Key", "Router", "Routes", "Sniff", "only_form"]

DEFAULT = "default"
"""The protocol that the app's own handlers serve."""

Key: TypeAlias = bytes | str | int | tuple[Any, ...] | enum.Enum | None

Sniff: TypeAlias = bytes | tuple[bytes, ...] | Callable[[bytes], bool | None]
"""How a protocol is told by a device's first bytes: what they begin with, or a function of them."""


@attrs.define(eq=False)
class Handler:
    """A registered function: *call* takes the short form's arguments, *where* names it in errors.

    *call* is looked up each time, so that it may be replaced while somebody measures it.
    """

    call: Callable[..., Any]
    function: Callable[..., Any]
    where: str
    blocking: bool = False
    batch: bool = False

    @property
    def name(self) -> str:
        """The function's own name."""
        return getattr(self.function, "__qualname__", repr(self.function))


def _required(function: Callable[..., Any], where: str) -> tuple[int, float]:
    """Return how many positional arguments *function* needs and how many it can take."""
    if not callable(function):
        raise SetupError(f"{where} takes a function, not {function!r}")
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a builtin that tells nothing
        return 0, float("inf")
    needed, most = 0, 0.0
    for parameter in parameters:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            most += 1
            needed += parameter.default is parameter.empty
        elif parameter.kind is parameter.VAR_POSITIONAL:
            most = float("inf")
        elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            name = getattr(function, "__qualname__", repr(function))
            raise SetupError(f"{name} can't serve {where}: its argument {parameter.name!r} is never passed")
    return needed, most


def _short(function: Callable[..., Any], where: str, names: tuple[str, ...]) -> Callable[..., Any] | None:
    """Return *function* if it takes *names*, None if it takes one argument more."""
    needed, most = _required(function, where)
    if needed <= len(names) <= most:
        return function
    if needed == len(names) + 1:
        return None
    name = getattr(function, "__qualname__", repr(function))
    takes = f"{needed} arguments" if needed > len(names) else f"at most {most:g} arguments"
    raise SetupError(f"{name} takes {takes}, but {where} calls it with ({', '.join(names)})")


def _with_info(function: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(function)(lambda conn: function(conn, conn.info))


def _with_state(function: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(function)(lambda conn, what: function(conn, what, conn.state))


class Routes:
    """The handlers of one router, as the engine asks for them."""

    def __init__(self, key: Callable[[Any], Hashable] | None) -> None:
        self.connect: Handler | None = None
        self.keyed: dict[Any, Handler] = {}
        self.rest: Handler | None = None
        self.topics: list[tuple[str, Callable[[str], bool], Handler]] = []
        self.deliver_rest: Handler | None = None
        self.ticks: list[tuple[float, Handler]] = []
        self.timeout: Handler | None = None
        self.error: Handler | None = None
        self.terminated: Handler | None = None
        self._key = key
        self._lengths: list[int] = []

    def add_key(self, key: Any, handler: Handler) -> None:
        """Have *handler* take the frames of *key*, or with this prefix."""
        self.keyed[key] = handler
        if self._key is None:
            self._lengths = sorted({len(prefix) for prefix in self.keyed}, reverse=True)

    def received(self, frame: bytes, message: Any) -> Handler | None:
        """Return the handler that takes *message*, which is the *frame* itself without a codec."""
        if self._key is not None:
            return self.keyed.get(self._key(message), self.rest)
        for length in self._lengths:
            handler = self.keyed.get(frame[:length])
            if handler is not None:
                return handler
        return self.rest

    @property
    def catch_all(self) -> Handler | None:
        """The handler of every frame, where there is just the bare one and it doesn't block."""
        return None if self.keyed or self.rest is None or self.rest.blocking else self.rest

    def deliver(self, topic: str) -> Handler | None:
        """Return the handler that takes messages of *topic*."""
        for _, match, handler in self.topics:
            if match(topic):
                return handler
        return self.deliver_rest

    def __iter__(self) -> Iterator[Handler]:
        first = (self.connect, *self.keyed.values(), self.rest, *(handler for _, _, handler in self.topics))
        ticks = (handler for _, handler in self.ticks)
        last = (self.deliver_rest, *ticks, self.timeout, self.error, self.terminated)
        return filter(None, (*first, *last))


class Router(Generic[S, M]):
    """The handlers of one protocol, with its framing and the state of its connections.

    *name* is the protocol's name, in the command line and in the broker (`proto_name`). *framing* cuts what
    the device sends into frames and frames what is sent, `RAW` by default; *reply_framing* is for what is
    sent, where that differs. *key* is a function of a frame whose result picks the handler; without it the
    longest prefix does. *state* makes the `conn.state` of a new connection. *resume* carries on with
    connections that this process never saw begin, instead of closing them (for stateless protocols).

    *codec* makes messages of frames: an object with `parse` and `build`, as construct has them, or two
    functions, `(parse, build)`; `(parse, None)` leaves what is sent bytes. Handlers, *key* and the `match` of
    a request get messages then, and what is sent is a message too; prefixes are still those of the frame. A
    frame that can't be parsed is bad: it is dropped, logged and counted (`frames_bad`), the next one goes on.

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

    *secret* says where secrets stand in what a device sends: a regular expression over its bytes (its groups,
    or without any the whole match), or a function that returns the bytes with what is secret replaced, of the
    same length. It is masked wherever bytes are shown. Without it, nothing that a device has said before it
    registered is shown in the log at warning or above: it is counted.
    """

    if not TYPE_CHECKING:
        # At run time nobody looks: Router[Device] has a default for the message, as the type checker knows.
        __class_getitem__ = classmethod(GenericAlias)

    @overload
    def __init__(
        self: Router[None, bytes],
        name: str,
        *,
        framing: Framing = ...,
        reply_framing: Framing | None = ...,
        codec: None = ...,
        key: Callable[[bytes], Hashable] | None = ...,
        state: None = ...,
        resume: bool = ...,
        sniff: Sniff | None = ...,
        clientid: NameRule | None = ...,
        slash: bool = ...,
        secret: Secret | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: Router[S, bytes],
        name: str,
        *,
        framing: Framing = ...,
        reply_framing: Framing | None = ...,
        codec: None = ...,
        key: Callable[[bytes], Hashable] | None = ...,
        state: Callable[[], S],
        resume: bool = ...,
        sniff: Sniff | None = ...,
        clientid: NameRule | None = ...,
        slash: bool = ...,
        secret: Secret | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: Router[None, M],
        name: str,
        *,
        framing: Framing = ...,
        reply_framing: Framing | None = ...,
        codec: AnyCodec[M],
        key: Callable[[M], Hashable] | None = ...,
        state: None = ...,
        resume: bool = ...,
        sniff: Sniff | None = ...,
        clientid: NameRule | None = ...,
        slash: bool = ...,
        secret: Secret | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        *,
        framing: Framing = ...,
        reply_framing: Framing | None = ...,
        codec: AnyCodec[M],
        key: Callable[[M], Hashable] | None = ...,
        state: Callable[[], S],
        resume: bool = ...,
        sniff: Sniff | None = ...,
        clientid: NameRule | None = ...,
        slash: bool = ...,
        secret: Secret | None = ...,
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
        sniff: Sniff | None = None,
        clientid: NameRule | None = None,
        slash: bool = False,
        secret: Secret | None = None,
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
        self.sniff = None if sniff is None else _checked_sniff(self, sniff)
        self.slash = slash
        self.clientid = None if clientid is None else _checked_rule(self, clientid)
        self.secret = None if secret is None else _checked_secret(self, secret)
        _check_framing(self, framing, ("encode", "decode or split"))
        _check_framing(self, self.reply_framing, ("encode",))
        for what, function in (("key", key), ("state", state)):
            if function is not None and not callable(function):
                raise SetupError(f"{self!r}: {what}={function!r} is not a function")
        self.sealed = False
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
    def connections(self) -> Mapping[str, Connection[S, M]]:
        """The registered connections of this protocol in this process, by clientid."""
        return MappingProxyType(self.live)

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
            call = _short(function, where, ("conn",)) or _with_info(function)
            self.routes.connect = _handler(call, function, where, blocking=blocking)
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
            call = _short(function, where, ("conn", "frame")) or _with_state(function)
            handler = _handler(call, function, where, blocking=blocking)
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
        self, topic: str | None = None, /, *, batch: Literal[False] = False, blocking: bool = False
    ) -> DeliverDecorator[S, M]: ...
    @overload
    def on_deliver(
        self, topic: str | None = None, /, *, batch: Literal[True], blocking: bool = False
    ) -> BatchDecorator[S, M]: ...
    def on_deliver(self, topic: Any = None, /, *, batch: bool = False, blocking: bool = False) -> Any:
        """Handle messages for the device: `(conn, message)`; what it returns is sent.

        With *topic*, a filter: the messages that match; the first registered match wins, and the bare
        decorator takes the rest. With *batch* it gets the list that the broker delivered.
        """
        if callable(topic):
            return self.on_deliver()(topic)
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
            handler = _handler(call, function, where, blocking=blocking, batch=batch)
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
            self.routes.timeout = _handler(
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
            call = _short(function, where, ("conn", "reason")) or _with_state(function)
            self.routes.terminated = _handler(call, function, where, blocking=blocking)
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
            self.routes.error = _handler(call, function, where, blocking=blocking)
            return function

        return register if handler is None else register(handler)

    def every(self, seconds: float, /, *, blocking: bool = False) -> TimerDecorator[S, M]:
        """Call `(conn)` each *seconds* for each connection; what it returns is sent.

        A call that is due while the one before still waits or runs is left out.
        """
        if not seconds > 0:
            raise SetupError(f"{self!r} can't run every({seconds}); use a number of seconds above 0")

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            where = self._free(f"every({seconds})", None)
            call = only_form(function, where, ("conn",))
            self.routes.ticks.append((seconds, _handler(call, function, where, blocking=blocking)))
            return function

        return register

    def seal(self, *, sealed: bool) -> None:
        """Refuse further handlers while the app runs."""
        self.sealed = sealed

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
            raise SetupError(
                f"{self!r} can't handle on_received({key!r}): a key has to be hashable"
            ) from None
        return key


def only_form(function: Callable[..., Any], where: str, names: tuple[str, ...]) -> Callable[..., Any]:
    """Return *function*, which has no longer form."""
    call = _short(function, where, names)
    if call is None:
        name = getattr(function, "__qualname__", repr(function))
        raise SetupError(f"{name} takes too many arguments: {where} calls it with ({', '.join(names)})")
    return call


def _handler(
    call: Callable[..., Any],
    function: Callable[..., Any],
    where: str,
    *,
    blocking: bool = False,
    batch: bool = False,
) -> Handler:
    handler = Handler(call, function, where, blocking=blocking, batch=batch)
    if blocking and inspect.iscoroutinefunction(function):
        raise SetupError(f"{handler.name} is async, so it can't be blocking=True; leave one of them out")
    return handler


def _check_framing(router: Router[Any, Any], framing: object, needs: tuple[str, ...]) -> None:
    for need in needs:
        if not any(callable(getattr(framing, name, None)) for name in need.split(" or ")):
            hint = "; give an instance, such as Line()" if isinstance(framing, type) else ""
            raise SetupError(f"{router!r}: {framing!r} is not a framing: it has no {need}{hint}")
    if isinstance(framing, type):
        raise SetupError(
            f"{router!r}: {framing.__name__} is a class; give an instance, {framing.__name__}(…)"
        )


def _checked_rule(router: Router[Any, Any], rule: NameRule) -> Callable[[str], object]:
    try:
        return name_rule(rule)
    except (TypeError, re.error) as error:
        raise SetupError(f"{router!r}: clientid={rule!r} can't be a rule: {error}") from None


def _checked_secret(router: Router[Any, Any], secret: Secret) -> Mask:
    try:
        return mask_for(secret)
    except SetupError as error:
        raise SetupError(f"{router!r}: secret=: {error}") from None


def _checked_sniff(
    router: Router[Any, Any], sniff: Sniff
) -> tuple[bytes, ...] | Callable[[bytes], bool | None]:
    """Return the prefixes, or the function."""
    if callable(sniff):
        if inspect.iscoroutinefunction(sniff):
            raise SetupError(f"{router!r}: sniff={sniff!r} is async, but nothing awaits it; make it a def")
        only_form(sniff, f"{router!r}: sniff=", ("data",))
        return sniff
    prefixes = (sniff,) if isinstance(sniff, bytes) else sniff
    if not isinstance(prefixes, tuple) or not all(isinstance(prefix, bytes) for prefix in prefixes):
        raise SetupError(
            f"{router!r}: sniff={sniff!r} is neither bytes, nor a tuple of bytes, nor a function"
        )
    if not all((prefixes, *prefixes)):
        raise SetupError(f"{router!r}: sniff={sniff!r} matches everything; to match everything, leave it out")
    return prefixes
