"""What `tests.bench.hostile` needs for `serve`: a broker with well-behaved devices."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from .attackers import Target
from .grpc import Device, Load, listening
from .hostile import DEVICES, SECONDS, Seen, probe

__all__ = ["Broker", "look_serve"]

LINE = b"line of a device\n"


class Broker(Load):
    """A broker whose service is at *port*."""

    def __init__(self, port: int) -> None:
        super().__init__("ours")
        self.port = port

    async def start(self) -> str:
        """Serve the adapter; return where."""
        return await self.serve_adapter()

    async def stop(self) -> None:
        await self.close()


async def device(broker: Broker, number: int, one: Device, place: int, seen: Seen) -> None:
    await asyncio.sleep(place / DEVICES)
    until = time.perf_counter() + SECONDS
    try:
        while time.perf_counter() < until:
            asked = time.perf_counter()
            await asyncio.wait_for(broker.talk(number, one, len(LINE)), 60)
            seen.add_wait(asked)
            await asyncio.sleep(max(0.0, 1 - (time.perf_counter() - asked)))
    except (AssertionError, asyncio.TimeoutError) as error:
        seen.trouble.append(f"a device failed: {error!r}")


async def look_serve(broker: Broker, target: Target, attack: Callable[[], None]) -> Seen:
    """Begin to *attack* when all devices are there; return what they see."""
    await listening(broker.port)
    broker.dial(broker.port)
    seen = Seen()
    devices = [await broker.connect(LINE) for _ in range(DEVICES)]
    for number, one in devices:
        await broker.talk(number, one, len(LINE))
    attack()
    await asyncio.sleep(0.5)
    probing = asyncio.ensure_future(probe(target, seen))
    await asyncio.gather(*(device(broker, *one, place, seen) for place, one in enumerate(devices)))
    probing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await probing
    return seen
