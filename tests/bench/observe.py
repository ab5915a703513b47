"""What it costs to be looked at: the echo rate with metrics and without; what the MQTT door takes.

Run it as `python -m tests.bench observe`. Rounds with and without alternate, as in `gateway`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
import time
from contextlib import ExitStack

from exproto_app import App
from exproto_app.drivers.gateway import Gateway
from exproto_app.hub import MemoryHub
from exproto_app.models import Address

from .figures import show
from .gateway import rounds
from .load import Round, load_generator
from .servers import LOOPS, Server

__all__ = ["main"]

ROUNDS = {"asyncio": 9, "uvloop": 5}

BAR = 0.95
"""Of the echo rate without metrics."""


def metrics() -> None:
    """Echo lines with metrics and without."""
    with load_generator() as load:
        if load is None:
            print("observe skipped: it needs a C compiler (cc) for its load generator")
            return
        for loop in LOOPS:
            with ExitStack() as stack:
                seen = stack.enter_context(Server("line_metrics", (loop,)))
                unseen = stack.enter_context(Server("line", (loop,)))
                for window in (1, 16):
                    pairs = rounds(load, seen, unseen, window, ROUNDS[loop])
                    tell(f"observe.metrics.{window}_outstanding.{loop}", pairs, loop, window)


def tell(name: str, pairs: list[tuple[Round, Round]], loop: str, window: int) -> None:
    """Show one figure. A handler's clock costs the same whatever it does, so idle handlers have no bar."""
    adds = statistics.median(with_.microseconds - without.microseconds for with_, without in pairs)
    rate = statistics.median(without.messages for _, without in pairs)
    show(
        name,
        f"{statistics.median(with_.messages for with_, _ in pairs):.0f}",
        "messages/s",
        ratio=statistics.median(with_.messages / without.messages for with_, without in pairs),
        bar=BAR if loop == "asyncio" and window == 1 else None,
        note=f"adds={adds:.2f}us without={rate:.0f}",
    )


MESSAGES = 5_000
CONNECT = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01x"
SUBSCRIBE = b"\x82\x06\x00\x01\x00\x01t\x00"
PUBLISH = b"\x30\x43\x00\x01t" + bytes(64)
WAVE = 500
"""Messages to a client that are on their way at once: fewer than its queue takes."""


async def through_the_door() -> tuple[float, float]:
    """Return the rates of messages from and to one MQTT client, QoS 0."""
    from exproto_app.drivers.gateway.mqtt_door import MqttDoor  # noqa: PLC0415 - amqtt is an extra

    app, hub = App(), MemoryHub()
    app.on_connect(lambda conn: None)
    async with Gateway(app, ["tcp://127.0.0.1:0"], hub=hub) as host:
        door = MqttDoor(hub, Address("127.0.0.1", 0))
        await door.start(host.runner.engine)
        reader, writer = await asyncio.open_connection(door.address.host, door.address.port)
        writer.write(CONNECT)
        await reader.readexactly(4)
        started = time.perf_counter()
        writer.write(PUBLISH * MESSAGES)
        while app.stats.get("door_messages_received", 0) < MESSAGES:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)
        there = time.perf_counter() - started
        writer.write(SUBSCRIBE)
        await reader.readexactly(5)
        started = time.perf_counter()
        for _ in range(MESSAGES // WAVE):
            for _ in range(WAVE):
                app.publish("t", bytes(64))
            await reader.readexactly(len(PUBLISH) * WAVE)
        back = time.perf_counter() - started
        writer.close()
        await door.stop()
    return MESSAGES / there, MESSAGES / back


def door() -> None:
    """Publish to the hub through the door, and be published to."""
    if importlib.util.find_spec("amqtt") is None:
        print("observe.door skipped: it needs amqtt")
        return
    rates = [asyncio.run(through_the_door()) for _ in range(3)]
    for name, column in zip(("from_client", "to_client"), zip(*rates, strict=True), strict=True):
        show(f"observe.door.{name}", f"{statistics.median(column):.0f}", "messages/s")


def main() -> None:
    metrics()
    door()
