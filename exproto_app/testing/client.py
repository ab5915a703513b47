"""TestClient: a device in memory, on a loop of its own with virtual time."""

from __future__ import annotations

import asyncio
import itertools
import selectors
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ..app import App
from ..asyncio_host.runner import Runner
from ..commands import Publish
from ..connection import Connection, check_payload
from ..core import Channel, Hub, Intake, Sniffer
from ..hub import Login, MemoryHub
from ..models import Address, ConnectionInfo, Message, Reason, SockType
from ..topics import check_qos, check_topic

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Link", "TestClient", "World"]

T = TypeVar("T")

PATIENCE = 30.0
"""Real seconds that a call waits for threads (`blocking=True`) before it gives up."""


class _Selector(selectors.DefaultSelector):
    """Asks the loop what to do where others would sleep."""

    loop: _Loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        if self.loop.threads:
            return self._wait_for_threads()
        self.loop.rest(timeout)
        return []

    def _wait_for_threads(self) -> list[tuple[selectors.SelectorKey, int]]:
        started = time.monotonic()
        while time.monotonic() - started < PATIENCE:
            events: list[tuple[selectors.SelectorKey, int]] = super().select(1.0)
            if events:
                return events
        raise TimeoutError(f"a thread still runs after {PATIENCE:g} s of real time")


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose time moves only when nothing else can: up to *target*, then it stops."""

    def __init__(self) -> None:
        self.now = self.target = 1000.0
        self.threads = 0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def rest(self, timeout: float | None) -> None:
        """Go on to the next timer if it is due by the target, else stop."""
        if timeout is not None and self.now + timeout <= self.target:
            self.now += timeout
        else:
            self.stop()

    def run_in_executor(self, executor: Executor | None, func: Any, *args: Any) -> asyncio.Future[Any]:  # type: ignore[override] # the stubs differ from version to version
        future: asyncio.Future[Any] = super().run_in_executor(executor, func, *args)
        self.threads += 1
        future.add_done_callback(self._thread_done)
        return future

    def _thread_done(self, _: object) -> None:
        self.threads -= 1

    def advance(self, seconds: float) -> None:
        """Run until nothing can go on before *seconds* have passed."""
        self.target = self.now + seconds
        self.run_forever()
        self.now = self.target

    def complete(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run *coroutine* to its end; time passes as it needs."""
        self.target = float("inf")
        try:
            return self.run_until_complete(coroutine)
        finally:
            self.target = self.now


class World:
    """What the devices of one test share: the loop, the hub, the app that runs."""

    def __init__(
        self,
        app: App[Any, Any],
        login: Login | None = None,
        *,
        hub: Hub | None = None,
        raise_errors: bool = False,
    ) -> None:
        self.app = app
        self.loop = _Loop()
        self.memory = MemoryHub(login, watch=self._published)
        self.hub = hub or self.memory
        self.raise_errors = raise_errors
        self.errors: list[BaseException] = []
        self.app_published: list[Message] = []
        self.published: dict[Channel, list[Message]] = {}
        self.ports = itertools.count(50_001)
        try:
            self.runner = self.loop.complete(self._start())
        except BaseException:
            self.loop.close()
            raise

    async def _start(self) -> Runner:
        runner = Runner(self.app, self.hub, limit_logs=False)
        runner.engine.when_failed = self.errors.append
        await runner.start()
        return runner

    def _published(self, channel: Channel | None, message: Message) -> None:
        messages = self.app_published if channel is None else self.published.setdefault(channel, [])
        messages.append(message)

    def run(self, seconds: float = 0.0) -> None:
        """Run until nothing can go on by itself; raise what a handler raised."""
        watchdog = self.runner.watchdog
        watchdog.awake = True
        try:
            self.loop.advance(seconds)
        finally:
            watchdog.awake = False
        self.raise_first()

    def raise_first(self) -> None:
        if self.raise_errors and self.errors:
            error = self.errors[0]
            self.errors.clear()
            raise error

    def close(self) -> None:
        try:
            self.loop.complete(self.runner.stop())
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            if tasks:
                self.loop.complete(_gather(tasks))
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()


async def _gather(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


class Link:
    """The wire between the device and the engine."""

    answers = False
    write = None
    fence = None

    def __init__(self, world: World) -> None:
        self.world = world
        self.channel: Intake | None = None
        self.inbox = bytearray()
        self.reading = True
        self.unread: list[bytes] = []
        self._waiting: list[bytes] = []
        self._closing = False
        self._paused = False

    def arrive(self, data: bytes) -> None:
        """Hand *data* of the device over, or keep it while the engine doesn't read."""
        if self._paused:
            self.unread.append(data)
        elif self.channel is not None and not self._closing:
            self.channel.received(data)

    def send(self, chunks: list[bytes]) -> None:
        if self.reading:
            self.inbox += b"".join(chunks)
            return
        self._waiting += chunks
        if self.channel is not None and sum(map(len, self._waiting)) > self.world.app.limits.outbox:
            self.channel.unwritable()

    def read(self, *, reading: bool) -> None:
        """Have the device read, or not."""
        self.reading = reading
        if not reading:
            return
        self.inbox += b"".join(self._waiting)
        self._waiting.clear()
        if self._closing:
            self._end("device closed")
        elif self.channel is not None:
            self.channel.drained()

    def close(self) -> None:
        self._closing = True
        if not self._waiting:
            self.world.loop.call_soon(self._end, "device closed")

    def abort(self) -> None:
        self._waiting.clear()
        self.world.loop.call_soon(self._end, "device closed")

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        unread, self.unread = self.unread, []
        for data in unread:
            self.world.loop.call_soon(self.arrive, data)

    def hang_up(self) -> None:
        """End the connection from the device's side; what it sent before still arrives."""
        self._paused = False
        for data in self.unread:
            self.arrive(data)
        self.unread.clear()
        self._end("device closed")

    def _end(self, reason: Reason) -> None:
        if self.channel is not None:
            self.channel.terminated(reason)


class TestClient:
    """A device, connected to *app* in memory; use it in a `with` block.

    *protocol* names the router where there are several, or those that share the device's listener, as in
    `gt06,jt808`: then what it sends first decides. *login* is the broker's rule: it gets the
    `ClientInfo` and the password, and tells whether the device may register; without it everybody may.
    *info* says how the device is connected, or just its *socktype*: on `udp` each `send` is a datagram.
    *restarted* begins with a connection that the app never saw begin, as after a restart of the process.

    Time is virtual: it moves only in `advance`, for the app's timers and for asyncio's own. Each call
    returns when nothing can go on by itself. A handler's exception is raised by the call in which it
    happened, unless *raise_errors* is False; then `errors` has it.
    """

    __test__ = False  # for pytest, which takes every class of such a name for a test

    def __init__(
        self,
        app: App[Any, Any],
        protocol: str | None = None,
        *,
        login: Callable[..., bool | Awaitable[bool]] | None = None,
        info: ConnectionInfo | None = None,
        socktype: SockType = "tcp",
        raise_errors: bool = True,
        restarted: bool = False,
    ) -> None:
        self.app = app
        self._routers = app.find_protocols(protocol)
        self._protocol = protocol
        self._login = login
        self._info = info
        self._socktype = socktype
        self._raise_errors = raise_errors
        self._restarted = restarted
        self._world: World | None = None
        self._owner = True
        self._link: Link | None = None
        self._intake: Channel | Sniffer | None = None
        self._connection: Connection[Any] | None = None

    # --- the device

    def send(self, data: bytes, *, chunk: int | None = None) -> None:
        """Send *data* as it is, in pieces of *chunk* bytes if given. Raises `ConnectionError` if closed."""
        world, link = self._connected()
        if self.closed:
            raise ConnectionError(f"the connection is closed: {self.close_reason}, {self.close_detail}")
        for start in range(0, len(data), chunk or max(len(data), 1)):
            piece = data[start : start + chunk] if chunk else data
            world.loop.call_soon(link.arrive, piece)
        world.run()

    def recv(self) -> bytes:
        """Return all bytes that the device was sent since the last call."""
        _, link = self._connected()
        data = bytes(link.inbox)
        link.inbox.clear()
        return data

    def close(self) -> None:
        """Hang up."""
        world, link = self._connected()
        world.loop.call_soon(link.hang_up)
        world.run()

    def stop_reading(self) -> None:
        """Leave what is sent unread, until `start_reading`."""
        self._connected()[1].read(reading=False)

    def start_reading(self) -> None:
        """Read again."""
        world, link = self._connected()
        world.loop.call_soon(lambda: link.read(reading=True))
        world.run()

    def another(
        self,
        protocol: str | None = None,
        *,
        info: ConnectionInfo | None = None,
        socktype: SockType | None = None,
        restarted: bool = False,
    ) -> TestClient:
        """Connect a second device to the same app and hub, of the same protocol unless told otherwise."""
        world, _ = self._connected()
        other = TestClient(
            self.app,
            protocol or self._protocol,
            info=info,
            socktype=socktype or self._socktype,
            restarted=restarted,
        )
        other._owner = False
        other._connect(world)
        return other

    # --- the broker

    def deliver(self, topic: str, payload: bytes, qos: int = 0) -> None:
        """Have the broker deliver a message. Raises `AssertionError` if the device isn't subscribed."""
        world, _ = self._connected()
        channel = self._channel
        if channel is None or not world.memory.subscribed(channel, topic):
            raise AssertionError(f"the device isn't subscribed to {topic!r}")
        world.loop.call_soon(channel.delivered, [Message(topic, payload, qos)])
        world.run()

    def publish(self, topic: str, payload: bytes, qos: int = 0, *, retain: bool = False) -> None:
        """Have somebody else publish a message, to whoever is subscribed."""
        world, _ = self._connected()
        check_topic(topic)
        check_payload(payload)
        check_qos(qos)
        world.loop.call_soon(world.memory.publish, Publish(topic, payload, qos, retain))
        world.run()

    @property
    def published(self) -> list[Message]:
        """All messages that the device has published."""
        world, _ = self._connected()
        channel = self._channel
        return [] if channel is None else world.published.setdefault(channel, [])

    @property
    def app_published(self) -> list[Message]:
        """All messages of `app.publish`."""
        return self._connected()[0].app_published

    # --- the rest

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass."""
        self._connected()[0].run(seconds)

    @property
    def connection(self) -> Connection[Any, Any]:
        """The connection as the handlers see it."""
        known = self._known
        if known is None:
            why = (
                "the app refused this connection" if self._intake is None else "its protocol isn't known yet"
            )
            raise RuntimeError(f"{why}, so there is none")
        return known

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        known = self._known
        if known is None:
            return self._intake is None or self._intake.gone
        return known.closed

    @property
    def close_reason(self) -> Reason | None:
        """Why it has ended."""
        known = self._known
        if known is None:
            return "restarted" if self._intake is None else self._intake.reason
        return known.close_reason

    @property
    def close_detail(self) -> str:
        """The words that go with the reason."""
        known = self._known
        if known is None:
            return "" if self._intake is None else self._intake.detail
        return known.close_detail

    @property
    def errors(self) -> list[BaseException]:
        """What handlers raised, with `raise_errors=False`."""
        return self._connected()[0].errors

    def __enter__(self) -> Self:
        if self._world is None:
            self._connect(World(self.app, self._login, raise_errors=self._raise_errors))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        world, link = self._connected()
        try:
            world.loop.call_soon(link.hang_up)
            if exc is None:
                world.run()
        finally:
            if self._owner:
                world.close()
                self._world = None
        if exc is None:
            world.raise_first()

    def _connected(self) -> tuple[World, Link]:
        if self._world is None or self._link is None:
            raise RuntimeError(
                "the device isn't connected; use it in a block: with TestClient(app) as device:"
            )
        return self._world, self._link

    @property
    def _channel(self) -> Channel | None:
        """The engine's half of the connection, once its protocol is known."""
        return self._intake.channel if isinstance(self._intake, Sniffer) else self._intake

    @property
    def _known(self) -> Connection[Any] | None:
        """The connection, once its protocol is known."""
        return self._intake.conn if isinstance(self._intake, Sniffer) else self._connection

    def _connect(self, world: World) -> None:
        self._world = world
        self._link = link = Link(world)
        info = self._info or ConnectionInfo(
            self._socktype, Address("127.0.0.1", next(world.ports)), Address("127.0.0.1", 7993)
        )

        def connect() -> None:
            engine = world.runner.engine
            if self._restarted and not engine.unknown(link, self._routers):
                return
            self._intake = engine.connected(link, info, self._routers, resumed=self._restarted)
            if isinstance(self._intake, Channel):
                self._connection = self._intake.conn

        world.loop.call_soon(connect)
        try:
            world.run()
        except BaseException:
            if self._owner:
                world.close()
                self._world = None
            raise
