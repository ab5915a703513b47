"""What goes wrong: the broker, workers, lines and strangers, one thing after another, by a seed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import attrs

from tests.mqtt.broker import Broker

from .fleet import Device

__all__ = ["Weather"]

Trouble = Callable[[], Coroutine[Any, Any, None]]


@attrs.define(eq=False)
class Weather:
    """Troubles for *broker*, for the workers that *workers* tells, and at the gateway's *port*."""

    broker: Broker
    workers: Callable[[], Sequence[int]]
    devices: Sequence[Device]
    port: int
    chance: random.Random
    happened: Counter[str] = attrs.field(factory=Counter)
    _held: list[socket.socket] = attrs.field(factory=list)

    async def blow(self, seconds: float) -> None:
        """Make trouble for so long; at the end everything runs again."""
        troubles: list[Trouble] = [
            self.broker_restarts,
            self.broker_stops,
            self.worker_stops,
            self.worker_dies,
            self.half_open,
            self.garbage,
            self.hang_ups,
        ]
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        waiting: list[Trouble] = []
        while loop.time() < until:
            if not waiting:  # each kind, in another order each time
                waiting = self.chance.sample(troubles, len(troubles))
            trouble = waiting.pop()
            self.happened[trouble.__name__] += 1
            await trouble()
            await asyncio.sleep(self.chance.uniform(0.1, 0.8))
        for sock in self._held:
            sock.close()

    async def broker_restarts(self) -> None:
        """It ends in good order, its sessions saved, and is away for a moment."""
        await asyncio.to_thread(self.broker.stop)
        await asyncio.sleep(self.chance.uniform(0, 1))
        await asyncio.to_thread(self.broker.start)

    async def broker_stops(self) -> None:
        """It says nothing for a while."""
        self.broker.pause()
        await asyncio.sleep(self.chance.uniform(0.5, 2))
        self.broker.resume()

    async def worker_stops(self) -> None:
        """A worker hangs for a while."""
        worker = self.chance.choice(self.workers())
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGSTOP)
            await asyncio.sleep(self.chance.uniform(0.5, 2))
            os.kill(worker, signal.SIGCONT)

    async def worker_dies(self) -> None:
        """A worker is killed; the supervisor starts another."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.chance.choice(self.workers()), signal.SIGKILL)

    async def half_open(self) -> None:
        """Strangers connect, say nothing or half a line, and stay."""
        for number in range(20):
            with contextlib.suppress(OSError):
                sock = socket.create_connection(("127.0.0.1", self.port), 5)
                self._held.append(sock)
                sock.sendall(b"reco" if number % 2 else b"")
        for sock in self._held[:-200]:
            sock.close()
        del self._held[:-200]

    async def garbage(self) -> None:
        """Strangers send anything, and hang up at once."""
        for _ in range(20):
            data = self.chance.randbytes(self.chance.choice((1, 100, 10_000)))
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5) as sock:
                sock.sendall(data + b"\nlogin a+b\nlogin \n")

    async def hang_ups(self) -> None:
        """Devices lose their connections in the middle of whatever it is."""
        for device in self.chance.sample(self.devices, len(self.devices) // 3):
            device.hang_up()
