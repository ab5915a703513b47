"""App: what a script exports, its own router and those that it includes."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from .codec import AnyCodec
from .commands import Outcome, Publish
from .connection import Connection, M, S
from .errors import SetupError
from .handlers import Handler, only_form
from .masking import Mask
from .models import Limits, Message
from .options import RouterOptions
from .properties import Pairs, checked_properties
from .router import DEFAULT, Router
from .tap import Watcher
from .topics import check_qos, check_topic
from .verb_arguments import check_payload, publishes
from .views import ByClientid

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")
U = TypeVar("U")
N = TypeVar("N", bound="Awaitable[None] | None")
D = TypeVar("D", bound="Iterable[str] | AsyncIterable[str] | Awaitable[Iterable[str]]")

__all__ = ["App", "RunningEngine"]


class RunningEngine(Protocol):
    """What an app that runs is attached to."""

    def publish(self, command: Publish, /) -> Outcome[None]:
        """Publish for the app itself."""
        ...

    def publish_many(self, commands: Sequence[Publish]) -> Outcome[int]:
        """Publish several for the app itself."""
        ...

    def watch(self, watcher: Watcher, /) -> None:
        """Show *watcher* what happens on all connections, also those to come, and what the app publishes."""
        ...

    def unwatch(self, watcher: Watcher, /) -> None:
        """Stop showing *watcher* anything."""
        ...


class App(Router[S, M]):
    """What a script exports as `app`: its own handlers serve the protocol `default`, its routers the others.

    The options are those of `Router`, except the name; *limits* bounds what each connection may use. An app
    runs on one host at a time.
    """

    @overload
    def __init__(
        self: App[None, bytes],
        *,
        codec: None = ...,
        key: Callable[[bytes], Hashable] | None = ...,
        state: None = ...,
        limits: Limits | None = ...,
        **options: Unpack[RouterOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: App[S, bytes],
        *,
        codec: None = ...,
        key: Callable[[bytes], Hashable] | None = ...,
        state: Callable[[], S],
        limits: Limits | None = ...,
        **options: Unpack[RouterOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: App[None, M],
        *,
        codec: AnyCodec[M],
        key: Callable[[M], Hashable] | None = ...,
        state: None = ...,
        limits: Limits | None = ...,
        **options: Unpack[RouterOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        *,
        codec: AnyCodec[M],
        key: Callable[[M], Hashable] | None = ...,
        state: Callable[[], S],
        limits: Limits | None = ...,
        **options: Unpack[RouterOptions],
    ) -> None: ...
    def __init__(self, *, limits: Limits | None = None, **options: Any) -> None:
        super().__init__(DEFAULT, **options)
        self.limits = limits or Limits()
        self.startup: list[Handler] = []
        self.shutdown: list[Handler] = []
        self.dialled: list[Handler] = []
        self.clients: dict[str, Connection[Any, Any]] = {}
        self.counters: dict[str, int] = {}
        self.watchers: list[Watcher] = []
        self.masks: list[Mask] = []
        self._routers: dict[str, Router[Any, Any]] = {}
        self._host: RunningEngine | None = None

    def __repr__(self) -> str:
        return "App()"

    @property
    def connections(self) -> Mapping[str, Connection[Any, Any]]:
        """The registered connections of this process, of every protocol, by clientid.

        With `run --workers` each worker is a process; a device is reached from anywhere through its topic.
        """
        return ByClientid(self.clients)

    @property
    def stats(self) -> Mapping[str, int]:
        """Everything that was counted since the app was started, by name."""
        return MappingProxyType(self.counters)

    @property
    def protocols(self) -> Mapping[str, Router[Any, Any]]:
        """The routers by name; the app's own handlers count as `default` where there are any."""
        own: dict[str, Router[Any, Any]] = {DEFAULT: self} if self._serves() else {}
        return {**own, **self._routers}

    def include(self, router: Router[Any, Any], /) -> None:
        """Serve the protocol of *router* too."""
        if not isinstance(router, Router) or isinstance(router, App):
            raise SetupError(f"include() takes a Router, not {router!r}")
        if router.name == DEFAULT:
            raise SetupError(f"the app's own handlers serve {DEFAULT!r}; give {router!r} another name")
        if router.name in self._routers:
            raise SetupError(f"{self!r} already includes a router named {router.name!r}")
        if self.sealed:
            raise SetupError(f"{self!r} is already running; include {router!r} before it starts")
        self._routers[router.name] = router

    @overload
    def protocol(
        self,
        name: str,
        *,
        codec: None = ...,
        key: Callable[[bytes], Hashable] | None = ...,
        state: None = ...,
        **options: Unpack[RouterOptions],
    ) -> Router[None, bytes]: ...
    @overload
    def protocol(
        self,
        name: str,
        *,
        codec: None = ...,
        key: Callable[[bytes], Hashable] | None = ...,
        state: Callable[[], T],
        **options: Unpack[RouterOptions],
    ) -> Router[T, bytes]: ...
    @overload
    def protocol(
        self,
        name: str,
        *,
        codec: AnyCodec[U],
        key: Callable[[U], Hashable] | None = ...,
        state: None = ...,
        **options: Unpack[RouterOptions],
    ) -> Router[None, U]: ...
    @overload
    def protocol(
        self,
        name: str,
        *,
        codec: AnyCodec[U],
        key: Callable[[U], Hashable] | None = ...,
        state: Callable[[], T],
        **options: Unpack[RouterOptions],
    ) -> Router[T, U]: ...
    def protocol(self, name: str, **options: Any) -> Router[Any, Any]:
        """Make a `Router` with these options and include it."""
        router: Router[Any, Any] = Router(name, **options)
        self.include(router)
        return router

    def on_startup(self, handler: Callable[[], N], /) -> Callable[[], N]:
        """Call *handler* when the host has started, before the first connection."""
        self.startup.append(self._own("on_startup", handler))
        return handler

    def on_shutdown(self, handler: Callable[[], N], /) -> Callable[[], N]:
        """Call *handler* when the last connection has ended."""
        self.shutdown.append(self._own("on_shutdown", handler))
        return handler

    def dial(self, function: Callable[[], D], /) -> Callable[[], D]:
        """Have the gateway connect to the targets that *function* yields: `modbus=tcp://192.0.2.7:502`.

        It returns a list or is a generator, async or not; a target is written as for `exproto-app run
        --dial`. It is called when the host has started, and again at SIGHUP: targets that it no longer yields
        are hung up then. Only the gateway dials.
        """
        self.dialled.append(self._own("dial", function))
        return function

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
        """Publish without a connection; the options are those of `Connection.publish`.

        Raises `SetupError` while the app isn't running.
        """
        check_topic(topic)
        check_payload(payload)
        check_qos(qos)
        properties = checked_properties(
            expiry, content_type, response_topic, correlation_data, user_properties
        )
        return self._running().publish(Publish(topic, payload, qos, retain, properties))

    def publish_many(
        self, messages: Iterable[Message | tuple[str, bytes]], qos: int = 0, *, retain: bool = False
    ) -> Outcome[int]:
        """Publish *messages* in order, without a connection; see `Connection.publish_many`."""
        return self._running().publish_many(publishes(messages, qos, retain=retain))

    def _running(self) -> RunningEngine:
        if self._host is None:
            raise SetupError(f"{self!r} isn't running, so it can't publish; publish from on_startup on")
        return self._host

    def watch(self, watcher: Watcher, /) -> None:
        """Show *watcher* what happens on all connections: it is called with `(tap, now, event)`.

        `exproto_app.tap` has the events. It works on every host, before the app runs and while it runs. A
        watcher is called on the event loop, so it must be fast. What `app.masks` (functions made by
        `tap.masking`) match shows as asterisks, and so do passwords given to `register`.
        """
        if watcher not in self.watchers:
            self.watchers.append(watcher)
            if self._host is not None:
                self._host.watch(watcher)

    def unwatch(self, watcher: Watcher, /) -> None:
        """Stop showing *watcher* anything."""
        if watcher in self.watchers:
            self.watchers.remove(watcher)
            if self._host is not None:
                self._host.unwatch(watcher)

    def find_protocol(self, name: str | None, *, how: str = "") -> Router[Any, Any]:
        """Return the router named *name*, or the only one where it is None.

        Raises `SetupError`; *how* ends its text where a name is needed.
        """
        protocols = self.protocols
        if not protocols:
            raise SetupError(f"{self!r} has no handlers; register one, such as @app.on_received")
        names = ", ".join(protocols)
        if name is None:
            if len(protocols) > 1:
                words = f"the app serves several protocols ({names}); name the one you mean"
                raise SetupError(words + how)
            return next(iter(protocols.values()))
        if name not in protocols:
            raise SetupError(f"the app serves no protocol {name!r}; it serves {names}")
        return protocols[name]

    def find_protocols(self, names: str | None, *, how: str = "") -> tuple[Router[Any, Any], ...]:
        """Return the routers that share a listener, as *names* has them: `gt06,jt808`.

        One name, or None, is as for `find_protocol`. Raises `SetupError` for names that can't be told apart.
        """
        if names is None or "," not in names:
            return (self.find_protocol(names, how=how),)
        routers = tuple(self.find_protocol(name.strip()) for name in names.split(","))
        if len(set(routers)) < len(routers):
            raise SetupError(f"{names!r} names a protocol twice; name each once")
        others = [router for router in routers if router.sniff is None]
        if len(others) > 1:
            words = " and ".join(repr(router.name) for router in others)
            raise SetupError(
                f"{names!r} share a listener, but {words} can't be told apart; give one a sniff="
            )
        most = self.limits.sniff_bytes
        for router in routers:
            for prefix in () if callable(router.sniff) else router.sniff or ():
                if len(prefix) > most:
                    words = f"its prefix has {len(prefix)} bytes, Limits.sniff_bytes is {most}"
                    raise SetupError(f"{router!r} can't be recognized by sniff=: {words}")
        return routers

    def attach(self, host: RunningEngine) -> None:
        """Run on *host* from now on; for hosts."""
        if self._host is not None:
            raise SetupError(f"{self!r} is already running; an app runs on one host at a time")
        routers = (self, *self._routers.values())
        for router in routers:
            if router.sealed:
                raise SetupError(f"{router!r} is already running, in another app")
        self._host = host
        self.counters.clear()
        for router in routers:
            router.seal(sealed=True)

    def detach(self) -> None:
        """Stop running; for hosts."""
        self._host = None
        for router in (self, *self._routers.values()):
            router.seal(sealed=False)

    def _serves(self) -> bool:
        shared = (self.routes.error, self.routes.login)
        return any(handler not in shared for handler in self.routes)

    def _own(self, where: str, handler: Callable[..., Any]) -> Handler:
        if self.sealed:
            raise SetupError(f"{self!r} is already running; register {where} before it starts")
        return Handler(only_form(handler, where, ()), handler, where)
