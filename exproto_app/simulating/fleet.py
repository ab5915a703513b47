"""A fleet: scripts played by many devices, against any server, on asyncio."""

from __future__ import annotations

import asyncio
import errno
import math
import ssl
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal, TypeAlias

import attrs

from ..errors import SetupError
from ..masking import Mask
from .script import Script, Step

__all__ = ["Fleet", "Latencies", "Plan", "Summary", "play"]

Kind: TypeAlias = Literal["tcp", "tls", "udp"]

TICK: Final = 0.01
"""Seconds between the moments at which devices begin."""

SWEEP: Final = 0.2
"""Seconds between two looks for answers that are overdue."""

CONNECTING: Final = 500
"""Devices that may be connecting at once."""

EXAMPLES: Final = 10
"""Differences that are told."""

SHOWN: Final = 32
"""Bytes of a difference that are told."""

EXTRA: Final = 1 << 20
"""Bytes of a device's answers that are kept where not all of them are compared."""


@attrs.frozen(kw_only=True)
class Plan:
    """How a fleet is played.

    *kind*, *host* and *port* are the server's; *ssl* is for `tls`. *devices* begin evenly within *ramp*
    seconds, and are *speed* times as fast as recorded; None: each as fast as its answers come. *timeout*:
    seconds that an answer may take. What *ignore* masks may differ.
    """

    kind: Kind
    host: str
    port: int
    devices: int
    ramp: float
    speed: float | None = 1.0
    timeout: float = 10.0
    ssl: ssl.SSLContext | None = None
    ignore: Sequence[Mask] = ()


class Latencies:
    """How long answers took; percentiles are right within 2.5 %."""

    STEPS: Final = 28  # for each doubling or more: 2 ** (1 / 28) is 1.025

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.count = 0
        self.most = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.count += 1
        self.most = max(self.most, seconds)
        self._counts[int(math.log2(max(seconds, 1e-6) * 1e6) * self.STEPS)] += 1

    def percentile(self, percent: float) -> float:
        """Return the seconds within which *percent* of the answers came; 0.0 where there is none."""
        left = self.count * percent / 100
        for place, count in sorted(self._counts.items()):
            left -= count
            if left <= 0:
                return float(min(self.most, 2 ** ((place + 1) / self.STEPS) / 1e6))
        return self.most


@attrs.define
class Summary:
    """What came of it: counts of devices, frames and bytes, and *seconds* that it took.

    *differing* devices were answered otherwise than recorded, *examples* tell how, of some. *failed* counts
    those that couldn't connect, by the reason.
    """

    devices: int
    connected: int = 0
    finished: int = 0
    frames: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    seconds: float = 0.0
    differing: int = 0
    examples: list[str] = attrs.Factory(list)
    failed: Counter[str] = attrs.Factory(Counter)
    latencies: Latencies = attrs.Factory(Latencies)

    @property
    def good(self) -> bool:
        """Whether each device connected and was answered as recorded."""
        return not self.differing and not self.failed


class _Device(asyncio.Protocol, asyncio.DatagramProtocol):
    """Plays a script: sends each step at its time, and compares what comes with what was recorded."""

    def __init__(self, fleet: Fleet, script: Script, number: int) -> None:
        self.fleet = fleet
        self.script = script
        self.number = number
        self.over = False
        self.due = math.inf  # when the answer that it waits for is overdue
        self._expected = script.expected(number)
        self._got = 0
        self._kept: bytearray | None = bytearray() if fleet.plan.ignore else None
        self._next = 0
        self._sent: deque[tuple[int, float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._transport: Any = None  # a Transport or a DatagramTransport
        self._began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._began = self.fleet.loop.time()
        self.fleet.summary.connected += 1
        self._go_on()

    def data_received(self, data: bytes) -> None:
        self.fleet.summary.bytes_received += len(data)
        if self.over:
            return
        end = self._got + len(data)
        if self._kept is not None:
            self._kept += data[: EXTRA - len(self._kept)]
        elif data != self._expected[self._got : end]:
            self._differ(_otherwise(data, self._expected[self._got : end]))
            return
        self._got = end
        if self._sent and end >= self._sent[0][0]:
            now = self.fleet.loop.time()
            while self._sent and end >= self._sent[0][0]:
                self.fleet.summary.latencies.add(now - self._sent.popleft()[1])
        self._go_on()

    def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002 - asyncio's signature
        self.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over:
            missing = self._left()
            self._differ(f"closed by the server{f' ({exc})' if exc else ''}, {missing}")

    def error_received(self, exc: Exception) -> None:
        if not self.over:
            self._differ(f"error: {exc}")

    def _left(self) -> str:
        steps = len(self.script.steps) - self._next
        return f"{steps} steps and {max(0, self.script.size - self._got)} bytes of answers before its end"

    def overdue(self) -> None:
        """Give up: an answer hasn't come."""
        expected = self._expected[self._got : self._got + SHOWN].hex(" ")
        self._differ(f"not answered within {self.fleet.plan.timeout:g} s: {expected} is missing")

    def abort(self) -> None:
        """End without a judgement."""
        self.over = True
        if self._transport is not None:
            self._transport.abort()

    def _go_on(self) -> None:
        """Send what is to be sent by now, and know what to wait for."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        steps, speed = self.script.steps, self.fleet.plan.speed
        while self._next < len(steps):
            step = steps[self._next]
            if speed is None:
                if self._got < step.answered:
                    self._wait()
                    return
            else:
                ahead = self._began + step.at / speed - self.fleet.loop.time()
                if ahead > 0:
                    self._timer = self.fleet.loop.call_later(ahead, self._go_on)
                    self.due = math.inf
                    return
            self._send(step)
        if self._got < self.script.size:
            self._wait()
        else:
            self._finish()

    def _wait(self) -> None:
        self.due = self.fleet.loop.time() + self.fleet.plan.timeout

    def _send(self, step: Step) -> None:
        self._next += 1
        data = step.data(self.script.identities, self.number)
        summary, steps = self.fleet.summary, self.script.steps
        answered = steps[self._next].answered if self._next < len(steps) else self.script.size
        if answered > step.answered and answered > self._got:
            self._sent.append((answered, self.fleet.loop.time()))
        summary.frames += step.frames
        summary.bytes_sent += len(data)
        if self.script.datagrams:
            self._transport.sendto(data)
        else:
            self._transport.write(data)

    def _finish(self) -> None:
        if self._kept is not None:
            got, expected = bytes(self._kept), self._expected
            for mask in self.fleet.plan.ignore:
                got, expected = mask(got), mask(expected)
            if got != expected:
                self._differ(_otherwise(got, expected))
                return
        self.fleet.summary.finished += 1
        self._end()

    def _differ(self, words: str) -> None:
        summary = self.fleet.summary
        summary.differing += 1
        if len(summary.examples) < EXAMPLES:
            names = ", ".join(self.script.identities.named(self.number)[:1])
            who = f"device {self.number}{f' ({names})' if names else ''}, connection {self.script.conn}"
            summary.examples.append(f"{who}: {words}")
        self._end()

    def _end(self) -> None:
        self.over = True
        self.due = math.inf
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.close()
        self.fleet.ended(self)


class Fleet:
    """Plays *scripts* as *plan* says, one after another by as many devices."""

    def __init__(self, scripts: Sequence[Script], plan: Plan) -> None:
        self.plan = plan
        self.summary = Summary(plan.devices)
        self.loop: asyncio.AbstractEventLoop
        self._scripts = scripts
        self._devices: set[_Device] = set()
        self._left = plan.devices
        self._done: asyncio.Event

    async def run(self, tell: Callable[[Summary], object] | None = None) -> Summary:
        """Play until the last device has ended; *tell* is called each second."""
        self.loop = asyncio.get_running_loop()
        self._done = asyncio.Event()
        began = self.loop.time()
        tasks = [self.loop.create_task(self._sweep())]
        if tell is not None:
            tasks.append(self.loop.create_task(self._tell(tell)))
        try:
            await self._begin()
            await self._done.wait()
        finally:
            self.summary.seconds = self.loop.time() - began
            for task in tasks:
                task.cancel()
            for device in tuple(self._devices):
                device.abort()
        return self.summary

    def ended(self, device: _Device) -> None:
        """Count a device that plays no more."""
        self._devices.discard(device)
        self._count()

    def _count(self) -> None:
        self._left -= 1
        if not self._left:
            self._done.set()

    async def _begin(self) -> None:
        room = asyncio.Semaphore(CONNECTING)
        began = self.loop.time()
        connecting: set[asyncio.Task[None]] = set()
        for number in range(self.plan.devices):
            ahead = began + self.plan.ramp * number / self.plan.devices - self.loop.time()
            if ahead > TICK:
                await asyncio.sleep(ahead)
            await room.acquire()
            task = self.loop.create_task(self._connect(number, room))
            connecting.add(task)
            task.add_done_callback(connecting.discard)
        await asyncio.gather(*connecting)

    async def _connect(self, number: int, room: asyncio.Semaphore) -> None:
        device = _Device(self, self._scripts[number % len(self._scripts)], number)
        self._devices.add(device)
        plan = self.plan
        try:
            if plan.kind == "udp":
                await self.loop.create_datagram_endpoint(lambda: device, remote_addr=(plan.host, plan.port))
            else:
                making = self.loop.create_connection(lambda: device, plan.host, plan.port, ssl=plan.ssl)
                await asyncio.wait_for(making, plan.timeout)
        except (OSError, asyncio.TimeoutError) as error:
            self._devices.discard(device)
            self.summary.failed[_reason(error)] += 1
            self._count()
        finally:
            room.release()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            now = self.loop.time()
            for device in [device for device in self._devices if device.due <= now]:
                device.overdue()

    async def _tell(self, tell: Callable[[Summary], object]) -> None:
        while True:
            await asyncio.sleep(1)
            tell(self.summary)


def _otherwise(got: bytes, expected: bytes) -> str:
    place = next((at for at, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), 0)
    told, wanted = (data[place : place + SHOWN].hex(" ") or "nothing" for data in (got, expected))
    return f"answered {told} where {wanted} was recorded"


def _reason(error: Exception) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "timed out"
    if isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no more ports to that server"
    return (getattr(error, "strerror", None) or str(error)).lower()


async def play(
    scripts: Sequence[Script], plan: Plan, tell: Callable[[Summary], object] | None = None
) -> Summary:
    """Play *scripts* as *plan* says; return what came of it. Raises `SetupError` where they don't fit."""
    wrong = _others(scripts, plan)
    if wrong:
        kind = "datagrams" if plan.kind != "udp" else "a stream"
        raise SetupError(
            f"connection {wrong[0]} of the recording is {kind}; --to {plan.kind}:// can't play it"
        )
    return await Fleet(scripts, plan).run(tell)


def _others(scripts: Iterable[Script], plan: Plan) -> list[str]:
    return [script.conn for script in scripts if script.datagrams != (plan.kind == "udp")]
