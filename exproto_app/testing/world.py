"""World: the host of a test, an app on a loop with virtual time; MemoryLink: a device's line to it."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

from ..app import App
from ..asyncio_host.runner import Runner
from ..core import Channel, Hub, Intake
from ..hub import Login, MemoryHub
from ..models import Message, Reason
from .broker import Broker
from .virtual_time import VirtualLoop

__all__ = ["MemoryLink", "World"]


class World:
    """What the devices of one test share: the loop, the hub, the app that runs.

    *began*: the time of day at which it begins, in seconds since 1970, if not the real one.
    """

    def __init__(
        self,
        app: App[Any, Any],
        login: Login | None = None,
        *,
        hub: Hub | None = None,
        broker: Broker | None = None,
        raise_errors: bool = False,
        began: float | None = None,
    ) -> None:
        self.app = app
        self.broker = broker or Broker()
        self.broker.join(self)
        self.loop = VirtualLoop()
        self._epoch = (time.time() if began is None else began) - self.loop.now
        self.memory = MemoryHub(login, watch=self._published)
        self.hub = hub or self.broker
        self.raise_errors = raise_errors
        self.errors: list[BaseException] = []
        self.app_published: list[Message] = []
        self.published: dict[Channel, list[Message]] = {}
        self.ports = itertools.count(50_001)
        try:
            self.loop.complete(self._start())
        except BaseException:
            self.loop.close()
            raise

    async def _start(self) -> None:
        self.runner = Runner(self.app, self.hub, limit_logs=False, dials=True, wall=self._wall)
        self.runner.engine.when_failed = self.errors.append
        await self.runner.start()

    def _wall(self) -> int:
        """Return the virtual time of day, in milliseconds since 1970."""
        return round((self._epoch + self.loop.now) * 1000)

    def _published(self, channel: Channel | None, message: Message) -> None:
        device = channel if channel is None or channel.line is None else channel.line
        messages = self.app_published if device is None else self.published.setdefault(device, [])
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


class MemoryLink:
    """The wire between the device and the engine."""

    answers = False
    write = None
    broker_side = None
    confirm = None
    buffered = 0

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
