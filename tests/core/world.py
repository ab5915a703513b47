"""An engine between a device and a broker made of plain data: no loop, no sockets, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import attrs

from exproto_app import App
from exproto_app.commands import DONE, GRANTED, Command, Outcome, Publish, Register, Subscribe
from exproto_app.core import Channel, Context, Engine, Intake, State
from exproto_app.models import Address, ConnectionInfo, SockType

__all__ = ["FakeHub", "FakeLink", "FakeRuntime", "World"]


@attrs.define(eq=False)
class FakeTimer:
    """A call that is due at some time, or never any more."""

    due: float
    call: Callable[[], object]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeWaiter:
    """What a coroutine waits for."""

    def __init__(self) -> None:
        self._done = False
        self.wake: Callable[[], object] | None = None

    def done(self) -> bool:
        return self._done

    def set_result(self, _: None) -> None:
        self._done = True
        if self.wake is not None:
            self.wake()

    def __await__(self) -> Generator[Any, None, None]:
        if not self._done:
            yield self


class Cancelled(BaseException):
    """What a task that is cancelled gets."""


class FakeTask:
    """A coroutine that runs as far as it can whenever what it waits for is there."""

    def __init__(self, runtime: FakeRuntime, coroutine: Any, done: Callable[[Any, Any], None]) -> None:
        self._runtime = runtime
        self._steps = coroutine.__await__()
        self._done: Callable[[Any, Any], None] | None = done
        self._waits: FakeWaiter | None = None

    def step(self, error: BaseException | None = None) -> None:
        if self._done is None:
            return
        try:
            self._waits = self._steps.send(None) if error is None else self._steps.throw(error)
        except StopIteration as stop:
            self._end(stop.value, None)
        except BaseException as wrong:  # noqa: BLE001 - as a loop does it
            self._end(None, wrong)
        else:
            assert self._waits is not None
            self._waits.wake = partial(self._runtime.call_soon, self.step)

    def cancel(self) -> None:
        if self._waits is not None:
            self._waits.wake = None
        self._runtime.call_soon(self.step, Cancelled())

    def _end(self, result: object, error: BaseException | None) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(result, error)


class FakeThread:
    """A function that runs when the test says so."""

    def __init__(self, function: Callable[[], Any], done: Callable[[Any, Any], None]) -> None:
        self._function = function
        self._done = done

    def cancel(self) -> None:
        """Do nothing: threads can't be stopped."""

    def run(self) -> None:
        try:
            result = self._function()
        except BaseException as error:  # noqa: BLE001 - as an executor does it
            self._done(None, error)
        else:
            self._done(result, None)


class FakeRuntime:
    """The engine's `Runtime`; time passes when the test says so, and *tick* seconds at each look."""

    ticks = True

    def __init__(self) -> None:
        self.exits: tuple[type[BaseException], ...] = (KeyboardInterrupt, SystemExit)
        self.exited: list[BaseException] = []
        self.now = 1000.0
        self.tick = 0.0
        self.soon: deque[Callable[[], object]] = deque()
        self.timers: list[FakeTimer] = []
        self.threads: list[FakeThread] = []
        self.started = 0  # threads, in all
        self.other_thread = False
        self.mutex: AbstractContextManager[Any] = nullcontext()

    def time(self) -> float:
        self.now += self.tick
        return self.now

    def wall(self) -> int:
        return int(self.now * 1000)

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        assert not self.other_thread, "a loop is told so by its own thread only"
        self.soon.append(partial(callback, *args))

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> FakeTimer:
        assert not self.other_thread, "a loop is told so by its own thread only"
        timer = FakeTimer(self.now + delay, partial(callback, *args))
        self.timers.append(timer)
        return timer

    def exit(self, error: BaseException) -> None:
        self.exited.append(error)

    def in_other_thread(self) -> bool:
        return self.other_thread

    def call_from_thread(self, callback: Callable[..., object], *args: Any) -> None:
        def call() -> None:
            self.other_thread = False
            callback(*args)

        self.soon.append(call)

    def waiter(self) -> FakeWaiter:
        return FakeWaiter()

    def run_task(
        self, awaitable: Any, done: Callable[[Any, BaseException | None], None], *, now: bool = False
    ) -> FakeTask:
        task = FakeTask(self, awaitable, done)
        if now:
            task.step()
        else:
            self.call_soon(task.step)
        return task

    def run_thread(
        self, function: Callable[[], Any], done: Callable[[Any, BaseException | None], None]
    ) -> FakeThread:
        thread = FakeThread(function, done)
        self.started += 1
        self.threads.append(thread)
        return thread

    # --- for the test

    def settle(self, rounds: int = 10_000) -> None:
        """Do what was to be done soon, and what that leads to."""
        for _ in range(rounds):
            if not self.soon:
                return
            self.soon.popleft()()
        raise AssertionError("it never comes to rest")

    def advance(self, seconds: float) -> None:
        """Let time pass, timer by timer."""
        end = self.now + seconds
        while True:
            self.settle()
            due = [timer for timer in self.timers if not timer.cancelled and timer.due <= end]
            if not due:
                break
            timer = min(due, key=lambda one: one.due)
            self.timers.remove(timer)
            self.now = max(self.now, timer.due)
            timer.call()
        self.now = end

    def fire_late(self, number: int) -> None:
        """Have some timer fire, not the one that is due first, even if it was cancelled just now."""
        if self.timers:
            timer = self.timers.pop(number % len(self.timers))
            self.now = max(self.now, timer.due)
            timer.call()


class FakeLink:
    """The device's side, which remembers what it was told."""

    answers = False
    buffered = 0
    broker_side = None
    confirm: Callable[[], Outcome[None]] | None = None
    write: Callable[[bytes], object] | None = None

    def __init__(self) -> None:
        self.channel: Intake | None = None
        self.sent = b""
        self.told: list[str] = []
        self.outcomes: list[Outcome[None]] = []
        self.paused = False

    def send(self, chunks: list[bytes]) -> Outcome[None] | None:
        self.sent += b"".join(chunks)
        if not self.answers:
            return None
        outcome: Outcome[None] = Outcome(FakeWaiter)
        self.outcomes.append(outcome)
        return outcome

    def close(self) -> None:
        self.told.append("close")

    def abort(self) -> None:
        self.told.append("abort")

    def pause(self) -> None:
        assert not self.paused
        self.paused = True

    def resume(self) -> None:
        assert self.paused
        self.paused = False


class FakeHub:
    """The broker's side, which answers when the test says so, or at once."""

    ordered = True
    keeps_wills = False
    many_clients = True
    keeps_sessions = False
    has_properties = True
    roams = True

    def __init__(self) -> None:
        self.asked: list[Command] = []
        self.unanswered: list[Outcome[Any]] = []
        self.forgotten: list[Channel] = []
        self.registrations: list[tuple[Channel, Channel | None]] = []
        self.moved: list[tuple[Channel, Channel]] = []
        self.at_once = True

    @property
    def broker_side(self) -> FakeHub:
        """Carries out what devices ask: this."""
        return self

    def attach(self, context: Context) -> None:
        """Do nothing."""

    def judges(self, channel: Channel, command: Register) -> bool:
        """Tell whether a login may be refused."""
        return True

    def execute(self, channel: Channel, command: Command) -> Outcome[Any]:
        assert channel.state is not State.ENDED
        self.asked.append(command)
        if self.at_once and not isinstance(command, Register):
            return GRANTED[command.qos] if isinstance(command, Subscribe) else DONE
        outcome: Outcome[Any] = Outcome(FakeWaiter)
        self.unanswered.append(outcome)
        return outcome

    def publish(self, command: Publish) -> Outcome[None]:
        self.asked.append(command)
        return DONE

    def registered(self, channel: Channel, command: Register, older: Channel | None) -> None:
        self.registrations.append((channel, older))

    def move(self, older: Channel, heir: Channel) -> None:
        self.moved.append((older, heir))

    def gone(self, channel: Channel) -> None:
        self.forgotten.append(channel)

    def topics(self) -> list[str]:
        """Return where was published to, in order."""
        return [command.topic for command in self.asked if isinstance(command, Publish)]


class World:
    """One app on one engine, with as many devices as the test connects."""

    def __init__(self, app: App[Any, Any]) -> None:
        self.app = app
        self.runtime = FakeRuntime()
        self.hub = FakeHub()
        self.engine = Engine(app, self.runtime, self.hub)
        self.engine.start()

    def connect(self, link: FakeLink | None = None, socktype: SockType = "tcp") -> tuple[Channel, FakeLink]:
        """Connect a device."""
        link = link or FakeLink()
        info = ConnectionInfo(socktype, Address("192.0.2.1", 5000), Address("192.0.2.2", 7993))
        self.engine.connected(link, info, (self.app,))
        self.settle()
        assert isinstance(link.channel, Channel)
        return link.channel, link

    def settle(self) -> None:
        """Come to rest."""
        self.runtime.settle()

    def stop(self) -> None:
        """Let go of the app."""
        self.engine.stop()
