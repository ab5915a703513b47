"""Many devices behind one line, each with a session of its own at a real Mosquitto.

Run it as `python -m tests.bench children`. What a child takes in memory, what a message of one costs beside
one of a device on a line of its own, and whether a delivery costs more where a line has many children.
"""

from __future__ import annotations

import importlib
import itertools
import socket
import statistics
import sys
import time
from contextlib import ExitStack

from exproto_app import App, Connection, Limits, Message
from exproto_app.framing import Line
from exproto_app.hosts.gateway import Gateway
from exproto_app.testing import TestClient
from tests.mqtt.broker import MISSING

from .figures import show
from .load import Load, Round, load_generator
from .mqtt import Subscriber, broker, settled
from .mqtt_servers import LOOP, Counts, Started, answer, topic_of
from .servers import Server, allow_files

__all__ = ["main"]

LINES = 10
CHILDREN = 1_000
FEW = 10
"""Children of a line, beside which one with many is measured."""

REST = 5.0
ROUNDS = 7
DELIVERIES = 2_000
PATIENCE = 120.0


# --- the server


class Bus:
    """What a line knows: its children, in turn."""

    def __init__(self) -> None:
        self.children: itertools.cycle[Connection[str]] | None = None


def app_of() -> App[Bus]:
    """Return the app: `join N` makes children, and any other line is published by the next of them."""
    app: App[Bus] = App(framing=Line(), state=Bus, child_state=str, limits=Limits(first_frame=3600))
    numbers = itertools.count()

    async def join(conn: Connection[Bus], count: int) -> None:
        children = []
        for _ in range(count):
            number = next(numbers)
            child = conn.child(f"ours{number}")
            child.state = topic_of(number)
            children.append(child)
        for child in children:
            await child
            Counts.registered += 1
        conn.state.children = itertools.cycle(children)

    @app.on_received(b"join ")
    async def many(conn: Connection[Bus], frame: bytes) -> bytes:
        await join(conn, int(frame[5:]))
        return frame

    @app.on_connect
    async def one(conn: Connection[Bus]) -> None:
        if app.limits.children == 1:
            await join(conn, 1)

    @app.on_received
    def published(conn: Connection[Bus], frame: bytes) -> bytes:
        assert conn.state.children is not None
        child = next(conn.state.children)
        child.publish(child.state, frame)
        return frame

    return app


async def serve(kind: str, port: int, started: Started) -> None:
    from exproto_app.hosts.mqtt import MqttHub, Options  # noqa: PLC0415 - of an extra

    app = app_of()
    if kind == "one":
        app.limits = Limits(first_frame=3600, children=1)
    hub = MqttHub(f"mqtt://127.0.0.1:{port}", Options(connects_per_second=10_000))
    async with Gateway(app, ["tcp://127.0.0.1:0"], hub=hub) as gateway:

        def count() -> None:
            Counts.connections = app.stats["connections_opened"] - app.stats["connections_closed"]
            Counts.lines = app.stats["frames_received"]

        await started(gateway.addresses[0][2].port, count)


def server(kind: str, port: int) -> Server:
    return Server(kind, (str(port),), __name__)


# --- the figures


def tell_memory() -> None:
    """Tell what a child takes, and what all of them cost at rest."""
    allow_files()
    with broker() as running, server("many", running.port) as ours, ExitStack() as stack:
        lines = [stack.enter_context(_dial(ours.port)) for _ in range(LINES)]
        lines[0].sendall(b"join 1\n")
        lines[0].recv(100)
        ours.connections()  # collects its garbage
        before = ours.memory()
        for line in lines:
            line.sendall(b"join %d\n" % CHILDREN)
        for line in lines:
            line.recv(100)
        ours.connections()
        registered = ours.ask()[1] - 1
        kib = (ours.memory() - before) / (LINES * CHILDREN) / 1024
        used = ours.cpu()
        time.sleep(REST)
        rest = (ours.cpu() - used) / REST
    show(
        "children.memory",
        f"{kib:.2f}",
        "KiB/child",
        bar=7,
        good=kib <= 7 and registered == LINES * CHILDREN,
        note=f"at-most children={registered} lines={LINES}, an MQTT session each",
    )
    show("children.rest", f"{rest:.2%}", "of a core", bar=0.02, good=rest <= 0.02, note="at-most")


def tell_costs(load: Load) -> None:
    """Tell what a message of a child costs beside one of a device on a line of its own."""
    with broker() as running, ExitStack() as stack:
        servers = {
            "child": stack.enter_context(server("one", running.port)),
            "device": stack.enter_context(
                Server("ours", ("0", str(running.port)), "tests.bench.mqtt_servers")
            ),
        }
        subscriber = Subscriber(running.port)
        stack.callback(subscriber.close)
        rounds: dict[str, list[Round]] = {kind: [] for kind in servers}
        for number in range(ROUNDS):
            for kind in list(servers)[:: 1 if number % 2 else -1]:
                rounds[kind].append(load.run(servers[kind], 1))
                handled = settled(list(servers.values()))
                if subscriber.wait_for(handled) != handled:
                    raise RuntimeError(f"{kind}: {handled} lines handled, {subscriber.count} arrived")
    pairs = zip(rounds["child"], rounds["device"], strict=True)
    ratio = statistics.median(child.microseconds / device.microseconds for child, device in pairs)
    child, device = (statistics.median(each.microseconds for each in rounds[kind]) for kind in servers)
    show(
        "children.message_cpu",
        f"{child:.1f}",
        "us/message",
        ratio=ratio,
        bar=1.1,
        good=ratio <= 1.1,
        note=f"at-most device={device:.1f}us loop={LOOP}",
    )


def tell_deliveries() -> None:
    """Tell what a delivery costs to a child of a line with a thousand, beside one of a line with ten."""
    app: App[None] = App(framing=Line(), limits=Limits(first_frame=3600))

    @app.on_received
    def join(conn: Connection, frame: bytes) -> None:
        for number in range(int(frame)):
            conn.child(f"{conn.id}-{number}").subscribe(f"to/{conn.id}/{number}")

    @app.child.on_deliver
    def deliver(child: Connection, message: Message) -> None:
        """Take it."""

    with TestClient(app) as few:
        few.send(b"%d\n" % FEW)
        many = few.another()
        many.send(b"%d\n" % CHILDREN)
        times: dict[int, list[float]] = {1: [], 2: []}
        for number in range(2 * ROUNDS):
            line = number % 2 + 1
            started = time.perf_counter()
            for delivery in range(DELIVERIES):
                few.publish(f"to/{line}/{delivery % FEW}", b"")
            times[line].append((time.perf_counter() - started) / DELIVERIES)
    ratio = statistics.median(two / one for one, two in zip(times[1], times[2], strict=True))
    show(
        "children.delivery",
        f"{statistics.median(times[2]) * 1e6:.1f}",
        "us",
        ratio=ratio,
        bar=1.1,
        good=ratio <= 1.1,
        note=f"at-most children={CHILDREN} beside {FEW}, in memory",
    )


def _dial(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def main() -> None:
    tell_deliveries()
    if MISSING:
        print(f"children skipped: {MISSING}")
        return
    tell_memory()
    with load_generator() as load:
        if load is None:
            print("children.message_cpu skipped: there is no C compiler")
        else:
            tell_costs(load)


def run_server() -> None:
    kind, port = sys.argv[1:]
    loop = importlib.import_module(LOOP).new_event_loop()
    loop.run_until_complete(serve(kind, int(port), answer))
    loop.close()


if __name__ == "__main__":
    run_server()
