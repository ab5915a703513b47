"""What `--metrics` serves, asked for over HTTP as Prometheus and an orchestrator ask."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from exproto_app import App, Connection
from exproto_app.errors import SetupError
from exproto_app.framing import Line
from exproto_app.hosts.gateway import Gateway
from exproto_app.hub import MemoryHub
from exproto_app.models import Address
from exproto_app.ops.metrics import Metrics
from exproto_app.ops.probes import CONNECTIONS
from exproto_app.ops.timing import Timing
from exproto_app.testing import TestClient

from .test_cli import ECHO, gateway, run

pytestmark = pytest.mark.live

DASHBOARD = Path(__file__).parent.parent / "examples" / "grafana-dashboard.json"
ANY_PORT = Address("127.0.0.1", 0)


def meter() -> App:
    app = App(framing=Line())

    @app.on_received(b"quick")
    def quick(conn: Connection, frame: bytes) -> bytes:
        return b"done"

    @app.on_received(b"wait")
    async def wait(conn: Connection, frame: bytes) -> bytes:
        await asyncio.sleep(0.01)
        return b"done"

    @app.on_received(b"thread", blocking=True)
    def thread(conn: Connection, frame: bytes) -> bytes:
        return b"done"

    @app.on_received(b"break")
    def broken(conn: Connection, frame: bytes) -> bytes:
        raise RuntimeError("broken")

    @app.on_error
    def stay(conn: Connection, error: Exception) -> bytes:
        conn.keep()
        return b"sorry"

    return app


def ask(address: Address, path: str, accept: str = "") -> tuple[int, str]:
    request = urllib.request.Request(f"http://{address}{path}", headers={"Accept": accept} if accept else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def fetch(metrics: Metrics, path: str, accept: str = "") -> tuple[int, str]:
    return await asyncio.to_thread(ask, metrics.address, path, accept)


def serve(
    app: App,
    test: Callable[[Gateway, Metrics], Awaitable[None]],
    hub: MemoryHub | None = None,
    listen: str = "tcp://127.0.0.1:0",
) -> None:
    """Run *test* while *app* is served with metrics."""

    async def main() -> None:
        host = Gateway(app, [listen], hub=hub)
        metrics = Metrics(app, ANY_PORT)
        metrics.start(host)
        try:
            async with host:
                await test(host, metrics)
        finally:
            metrics.stop()

    asyncio.run(main())


async def talk(host: Gateway, *lines: bytes) -> None:
    address = host.addresses[0][2]
    reader, writer = await asyncio.open_connection(address.host, address.port)
    for line in lines:
        writer.write(line + b"\n")
        await reader.readline()
    writer.write_eof()
    assert await reader.read() == b""  # closed, so the end of the connection is counted
    writer.close()
    await writer.wait_closed()


def value(text: str, name: str, **labels: str) -> float:
    found = [
        sample.value
        for family in parse(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def test_connections_whose_protocol_isnt_known_yet_are_counted() -> None:
    app = App()
    app.protocol("a", sniff=b"a").on_received(lambda conn, frame: frame)
    app.protocol("b", sniff=b"b").on_received(lambda conn, frame: frame)

    async def test(host: Gateway, metrics: Metrics) -> None:
        address = host.addresses[0][2]
        _, silent = await asyncio.open_connection(address.host, address.port)
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(b"b")
        assert await reader.read(1) == b"b"
        text = (await fetch(metrics, "/metrics"))[1]
        assert value(text, "exproto_connections_sniffing") == 1
        assert value(text, "exproto_connections", protocol="a") == 0
        assert value(text, "exproto_connections", protocol="b") == 1
        silent.close()
        writer.close()

    serve(app, test, listen="a,b=tcp://127.0.0.1:0")


def test_what_the_stats_count_is_in_the_metrics() -> None:
    async def test(host: Gateway, metrics: Metrics) -> None:
        await talk(host, b"quick", b"quick", b"wait", b"thread", b"break")
        status, text = await fetch(metrics, "/metrics")
        assert status == 200
        for name, count in host.app.stats.items():
            whole, _, reason = name.partition(".")
            unit, _, rest = whole.partition("_")
            metric = f"exproto_{rest}_bytes_total" if unit == "bytes" else f"exproto_{whole}_total"
            labels = {"reason": reason} if reason else {}
            if reason or not any(part.startswith(f"{name}.") for part in host.app.stats):
                assert value(text, metric, **labels) == count
        assert value(text, "exproto_frames_received_total") == 5

    serve(meter(), test)


def test_handlers_are_counted_and_timed_of_each_kind() -> None:
    async def test(host: Gateway, metrics: Metrics) -> None:
        await talk(host, b"quick", b"quick", b"wait", b"thread", b"break")
        _, text = await fetch(metrics, "/metrics")

        def of(handler: str, what: str = "seconds_count", **labels: str) -> float:
            full = f"meter.<locals>.{handler}"
            return value(text, f"exproto_handler_{what}", protocol="default", handler=full, **labels)

        assert [of(name) for name in ("quick", "wait", "thread", "broken", "stay")] == [2, 1, 1, 1, 1]
        assert of("wait", "seconds_sum") >= 0.01
        assert of("wait", "seconds_bucket", le="0.005") == 0
        assert of("quick", "seconds_bucket", le="+Inf") == 2
        assert of("quick", "seconds_count", event="on_received(b'quick')") == 2
        assert [of(name, "exceptions_total") for name in ("quick", "broken")] == [0, 1]

    serve(meter(), test)


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_prometheus_can_read_it_and_the_names_follow_its_conventions(accept: str) -> None:
    async def test(host: Gateway, metrics: Metrics) -> None:
        await talk(host, b"quick")
        _, text = await fetch(metrics, "/metrics", accept)
        families = [
            family for family in (openmetrics if accept else parse)(text) if family.name.startswith("exproto")
        ]
        assert len(families) > 20
        for family in families:
            assert re.fullmatch(r"exproto(_[a-z]+)*", family.name)
            assert family.documentation.endswith(".")
            assert not family.name.endswith(("_total", "_count", "_ms", "_milliseconds", "_kb"))

    serve(meter(), test)


def test_what_is_open_and_waits_is_told_by_protocol() -> None:
    async def test(host: Gateway, metrics: Metrics) -> None:
        address = host.addresses[0][2]
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(b"quick\n")
        await reader.readline()
        _, text = await fetch(metrics, "/metrics")
        assert value(text, "exproto_connections", protocol="default") == 1
        assert value(text, "exproto_clients", protocol="default") == 0
        assert value(text, "exproto_inbox_bytes", protocol="default") == 0
        writer.close()
        await writer.wait_closed()

    serve(meter(), test)


def test_health_and_readiness() -> None:
    class Away(MemoryHub):
        ready = True

    hub = Away()
    app = meter()

    async def main() -> None:
        host = Gateway(app, ["tcp://127.0.0.1:0"], hub=hub)
        metrics = Metrics(app, ANY_PORT)
        metrics.start(host)
        try:
            assert await fetch(metrics, "/healthz") == (200, "ok\n")
            assert await fetch(metrics, "/readyz") == (503, "the listeners aren't open\n")
            async with host:
                assert await fetch(metrics, "/readyz") == (200, "ready\n")
                hub.ready = False
                assert await fetch(metrics, "/readyz") == (503, "the broker isn't reachable\n")
                assert value((await fetch(metrics, "/metrics"))[1], "exproto_broker_up") == 0
            assert (await fetch(metrics, "/readyz"))[0] == 503
            assert (await fetch(metrics, "/"))[0] == 200
            assert (await fetch(metrics, "/else"))[0] == 404
        finally:
            metrics.stop()

    asyncio.run(main())


def test_a_loop_that_hangs_isnt_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exproto_app.ops.metrics.PATIENCE", 0.05)
    answers: list[tuple[int, str]] = []

    async def test(host: Gateway, metrics: Metrics) -> None:
        thread = threading.Thread(target=lambda: answers.append(ask(metrics.address, "/healthz")))
        thread.start()
        thread.join(20)  # holds the loop up until the answer has come

    serve(meter(), test)
    assert answers[0][0] == 503
    assert "the event loop didn't answer" in answers[0][1]


def test_metrics_of_the_app_itself_are_served_too() -> None:
    mine = Counter("meter_readings", "Readings.", registry=REGISTRY)

    async def test(host: Gateway, metrics: Metrics) -> None:
        mine.inc(7)
        assert value((await fetch(metrics, "/metrics"))[1], "meter_readings_total") == 7

    try:
        serve(meter(), test)
    finally:
        REGISTRY.unregister(mine)
    assert "exproto_info" not in {family.name for family in REGISTRY.collect()}


def test_slow_clients_keep_no_probe_out() -> None:
    async def test(host: Gateway, metrics: Metrics) -> None:
        with contextlib.ExitStack() as stack:
            where = (metrics.address.host, metrics.address.port)
            for _ in range(3 * CONNECTIONS):
                hanging = stack.enter_context(socket.create_connection(where, timeout=20))
                hanging.sendall(b"GET /metrics")
            for _ in range(20):
                assert (await fetch(metrics, "/healthz"))[0] == 200
            assert len(metrics._server.clients) <= CONNECTIONS

    serve(meter(), test)


def test_a_request_has_a_deadline_however_slowly_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exproto_app.ops.probes.DEADLINE", 0.2)

    async def test(host: Gateway, metrics: Metrics) -> None:
        reader, writer = await asyncio.open_connection(metrics.address.host, metrics.address.port)

        async def dribble() -> None:
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.01)

        dribbling = asyncio.ensure_future(dribble())
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 20) == b""
        dribbling.cancel()
        writer.close()

    serve(meter(), test)


def test_an_answer_has_a_deadline_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exproto_app.ops.probes.WRITING", 0.2)
    slow = threading.Event()

    class Slow:
        def collect(self) -> list[Any]:
            slow.wait(20)
            return []

    collector = Slow()
    slow.set()  # registering has it collect
    REGISTRY.register(collector)
    slow.clear()

    async def test(host: Gateway, metrics: Metrics) -> None:
        reader, writer = await asyncio.open_connection(metrics.address.host, metrics.address.port)
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 20) == b""
        assert (await fetch(metrics, "/healthz"))[0] == 200
        writer.close()
        slow.set()

    try:
        serve(meter(), test)
    finally:
        slow.set()
        REGISTRY.unregister(collector)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\r\n\r\n", 400),
        (b"GET /healthz\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 10_000, 431),
        (b"\xff\xfe\x00\r\n\r\n", 400),
        (b"POST /healthz HTTP/1.1\r\n\r\n", 405),
        (b"GET /healthz?x=1 HTTP/1.0\r\nno colon\r\n\r\n", 200),
        (b"HEAD /readyz HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    ],
)
def test_whatever_is_asked_has_one_answer(data: bytes, status: int) -> None:
    async def test(host: Gateway, metrics: Metrics) -> None:
        reader, writer = await asyncio.open_connection(metrics.address.host, metrics.address.port)
        writer.write(data)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert data.startswith(b"HEAD") is answer.endswith(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    serve(meter(), test)


def test_measured_handlers_behave_as_before_and_are_given_back() -> None:
    app = meter()
    calls = [handler.call for handler in app.routes]
    ticks = iter(range(10_000))
    timing = Timing(app, lambda: float(next(ticks)))
    timing.attach()
    with TestClient(app, raise_errors=False) as device:
        device.send(b"quick\nwait\nthread\nbreak\n")
        device.advance(1)
        assert device.recv() == b"done\ndone\ndone\nsorry\n"
    timing.detach()
    assert [handler.call for handler in app.routes] == calls
    assert {one.handler.rpartition(".")[2]: one.seconds for one in timing.times.values()} == {
        "quick": 1,
        "wait": 1,
        "thread": 1,
        "broken": 1,
        "stay": 1,
    }


def test_a_plain_def_that_gives_a_coroutine_is_timed_to_its_end() -> None:
    app = App()

    async def later() -> bytes:
        await asyncio.sleep(1)
        return b"done"

    @app.on_received
    def answer(conn: Connection, frame: bytes) -> Awaitable[bytes | None]:
        return later()

    with TestClient(app) as device:
        timing = Timing(app, lambda: asyncio.get_running_loop().time())
        timing.attach()
        device.send(b"x")
        device.advance(1)
        assert device.recv() == b"done"
        timing.detach()
    (times,) = timing.times.values()
    assert times.seconds == pytest.approx(1)


def test_a_port_that_is_taken_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address(*taken.getsockname()[:2])
        with pytest.raises(SetupError, match="another program has the port; stop it or choose another"):
            Metrics(meter(), address)
        code, _, err = run("run", ECHO, "--listen", "tcp://127.0.0.1:0", "--metrics", str(address))
    assert code == 2
    assert err.count("\n") == 1


@pytest.mark.parametrize("text", ["9090", "127.0.0.1:x", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_one_sentence(text: str) -> None:
    code, _, err = run("run", ECHO, "--listen", "tcp://127.0.0.1:0", "--metrics", text)
    assert code == 2
    assert "write HOST:PORT, such as 127.0.0.1:9090" in err


def test_the_command_serves_them() -> None:
    with gateway(ECHO, "--listen", "tcp://127.0.0.1:0", "--metrics", "127.0.0.1:0") as (_, lines):
        match = re.search(r"metrics on http://(127\.0\.0\.1):(\d+)/metrics", "".join(lines))
        assert match
        address = Address(match[1], int(match[2]))
        assert ask(address, "/readyz") == (200, "ready\n")
        assert "exproto_loop_lag_seconds" in ask(address, "/metrics")[1]


def test_each_metric_of_the_dashboard_exists() -> None:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    wanted = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\b(?:exproto|process)_\w+", target["expr"])
    }
    wanted |= set(re.findall(r"exproto_\w+", json.dumps(dashboard["templating"])))

    async def test(host: Gateway, metrics: Metrics) -> None:
        await talk(host, b"quick")
        _, text = await fetch(metrics, "/metrics")
        names = {sample.name for family in parse(text) for sample in family.samples}
        assert len(wanted) > 15
        assert wanted <= names

    serve(meter(), test)


def test_a_worker_that_replaces_another_serves_beside_it() -> None:
    old = Metrics(meter(), ANY_PORT, shared=True)
    with contextlib.closing(old._server.sock):
        new = Metrics(meter(), old.address, shared=True)
        new._server.stop()
