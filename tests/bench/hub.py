"""The embedded hub: one publish to many connections, and publishes through many filters.

Run it as `python -m tests.bench hub`. Times go from the publish to the bytes on their way to the device, on a
hub and devices in memory. The ratio of the filters' figures is the rate with many filters to the rate with
few, where each publish matches as many: it would be near 0 if the cost grew with the filters.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from exproto_app import App, Connection, Message
from exproto_app.testing import TestClient

from .figures import show

__all__ = ["main"]

DEVICES = 1_000
FILTERS = 10_000
FEW = 10
PUBLISHES = 1_000
ROUNDS = 7

BAR = 0.5
"""Many filters cost cache misses; beyond that nothing."""

Filters = Callable[[int], list[str]]
"""The filters of one device, by its number."""


@contextmanager
def devices(count: int, filters: Filters) -> Iterator[tuple[App, list[TestClient]]]:
    """Connect *count* devices, each with its filters, that are sent what is published."""
    app = App()
    numbers = iter(range(count))

    @app.on_connect
    def subscribe(conn: Connection) -> None:
        for topic in filters(next(numbers)):
            conn.subscribe(topic)

    @app.on_deliver
    def deliver(conn: Connection, message: Message) -> bytes:
        return message.payload

    with TestClient(app) as first:
        yield app, [first, *(first.another() for _ in range(count - 1))]


def publish(app: App, clients: list[TestClient], topics: list[str], matches: int) -> float:
    """Publish to each of *topics* and return the seconds until all has been sent to the devices."""
    started = time.perf_counter()
    for topic in topics:
        app.publish(topic, b"reboot")
        if matches > 1:
            clients[0].advance(0)
    clients[0].advance(0)
    seconds = time.perf_counter() - started
    sent = sum(len(client.recv()) for client in clients)
    if sent != len(b"reboot") * len(topics) * matches:
        raise AssertionError(
            f"{sent} bytes were sent for {len(topics)} publishes with {matches} matches each"
        )
    return seconds


def by_matches() -> None:
    """Publish to 1, 10, 100 and 1,000 of 1,000 subscribed connections."""

    def filters(number: int) -> list[str]:
        return [f"to/{size}/all" for size in (1, 10, 100, DEVICES) if number < size]

    with devices(DEVICES, filters) as (app, clients):
        for size in (1, 10, 100, DEVICES):
            topics = [f"to/{size}/all"] * max(1, DEVICES // size)
            seconds = statistics.median(publish(app, clients, topics, size) for _ in range(ROUNDS))
            microseconds = seconds / len(topics) * 1e6
            show(
                f"hub.publish_to_{size}",
                f"{len(topics) * size / seconds:.0f}",
                "deliveries/s",
                note=f"a publish takes {microseconds:.0f}us, a delivery {microseconds / size:.2f}us",
            )


def by_filters(kind: str, topic_filter: str) -> None:
    """Publish through 10,000 different filters and through 10; each publish matches one."""
    held = FILTERS // DEVICES

    def many(number: int) -> list[str]:
        return [topic_filter.format(number * held + index) for index in range(held)]

    def few(number: int) -> list[str]:
        return [topic_filter.format(number)] if number < FEW else []

    source = random.Random(7)
    pairs: list[tuple[float, float]] = []
    with devices(DEVICES, many) as (app, clients), devices(DEVICES, few) as (other_app, other_clients):
        topic = topic_filter.replace("+", "gps")
        for _ in range(ROUNDS):
            topics = [topic.format(source.randrange(FILTERS)) for _ in range(PUBLISHES)]
            seconds = publish(app, clients, topics, 1)
            topics = [topic.format(source.randrange(FEW)) for _ in range(PUBLISHES)]
            pairs.append((seconds, publish(other_app, other_clients, topics, 1)))
    by_many, by_few = (PUBLISHES / statistics.median(column) for column in zip(*pairs, strict=True))
    show(
        f"hub.{kind}_filters",
        f"{by_many:.0f}",
        "publishes/s",
        ratio=statistics.median(few / many for many, few in pairs),
        bar=BAR,
        note=f"filters={FILTERS} with_{FEW}_filters={by_few:.0f}",
    )


def main() -> None:
    by_matches()
    by_filters("exact", "fleet/{}/command")
    by_filters("wildcard", "fleet/{}/+/command")


if __name__ == "__main__":
    main()
