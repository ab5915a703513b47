"""Metrics for Prometheus, and whether the process is alive and ready, at an address of their own.

`/metrics` gives what `app.stats` counts, each as `exproto_NAME_total`, with its unit last (`bytes_sent` is
`exproto_sent_bytes_total`); beside it what is open and waiting, by
protocol, how long handlers took, and whatever the app itself registers with `prometheus_client`. `/healthz`
answers 200 while the event loop answers, `/readyz` while the listeners are open and the broker, where there
is one, is reachable; else 503 and why. The server runs in threads of its own, so that it can tell of a loop
that hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from typing import Any, Final, Protocol

import attrs

from ..app import App
from ..core import Channel, Engine, State
from ..core.states import WRITE_BLOCKED
from ..errors import ExprotoError
from ..models import Address
from .listening import listen
from .probes import CONNECTIONS, Answer, Probes, Request
from .timing import BOUNDS, Times, Timing

__all__ = ["Metrics"]

PATIENCE: Final = 2.0
"""Seconds in which the event loop has to answer."""

REQUESTS: Final = 16
"""Requests for `/metrics` that are answered at the same time; more are refused. Probes need no thread."""

HELP: Final = {
    "bytes_dropped": "Bytes that were lost.",
    "bytes_received": "Bytes from devices.",
    "bytes_sent": "Bytes to devices.",
    "bytes_skipped": "Bytes from devices that belong to no frame.",
    "commands_failed": "Verbs that failed and that nobody awaited.",
    "connections_closed": "Connections that have ended, by reason.",
    "connections_opened": "Connections that have begun.",
    "accepts_paused": "Pauses in accepting, because the system had no more open files.",
    "addresses_banned": "Bans of an address.",
    "connections_evicted": "Connections closed to make room for others.",
    "connections_probed": "Connections that ended without a byte, as probes of load balancers do.",
    "connections_refused": "Connections that were refused, by limit or address.",
    "logins_failed": "Logins that were refused.",
    "proxy_headers_refused": "Connections without a valid PROXY header.",
    "tls_handshakes_failed": "TLS handshakes that failed.",
    "dtls_handshakes_failed": "DTLS handshakes that failed.",
    "websocket_handshakes_failed": "WebSocket handshakes that failed.",
    "ws_errors": "WebSocket connections that broke the rules.",
    "connections_restarted": "Connections that this process never saw begin.",
    "connections_undecided": "Connections that ended before their protocol was known.",
    "dial_targets": "Devices that are to be dialled.",
    "dial_targets_up": "Devices that are dialled and connected.",
    "dials": "Attempts to connect to a device.",
    "dials_failed": "Attempts that failed, by reason.",
    "datagrams_dropped": "Datagrams that were lost.",
    "deliveries_dropped": "Messages for devices that were lost.",
    "frames_bad": "Frames with a wrong checksum, or that the codec can't parse.",
    "frames_dropped": "Frames that were not handled, because their connection was closing.",
    "frames_received": "Frames from devices.",
    "frames_unhandled": "Frames that no handler takes.",
    "handler_errors": "Exceptions of handlers, and framing errors.",
    "modem_messages_dropped": "Messages of modems that were too large, or that didn't fit.",
    "messages_delivered": "Messages for devices.",
    "messages_stored": "Messages that were written to the store.",
    "messages_published": "Messages from devices and from the app.",
    "messages_unhandled": "Messages that no handler takes.",
    "store_refusals": "Messages that the store couldn't take, because it was full or its disk failed.",
    "requests_retried": "Requests that were sent again.",
    "requests_timed_out": "Requests without an answer.",
    "sends_dropped": "Sends that waited for an outcome that failed, and those behind them.",
    "sends_failed": "Sends that the broker didn't take.",
    "targets_refused": "Targets of the app that can't be dialled.",
    "ticks_skipped": "Calls of every() that were skipped because the one before still ran.",
}

SLICE: Final = 500
"""Connections that are looked at before others have their turn."""

LOOK: Final[tuple[tuple[str, str, Callable[[Channel], int]], ...]] = (
    ("connections", "Open connections.", lambda _: 1),
    ("clients", "Connections that are registered.", lambda channel: channel.client is not None),
    ("inbox_bytes", "Bytes that wait to be handled.", lambda channel: channel.inbound.size),
    ("outbox_bytes", "Bytes for devices, in front of their sockets.", lambda channel: channel.outbound.size),
    (
        "deliveries_waiting",
        "Messages that wait for on_deliver.",
        lambda channel: 0 if channel.deliveries is None else channel.deliveries.waiting,
    ),
    (
        "commands_waiting",
        "Verbs that wait for the broker.",
        lambda channel: channel.commands_waiting,
    ),
    (
        "requests_waiting",
        "Requests without an answer yet.",
        lambda channel: 0 if channel.requests is None else len(channel.requests.waiting),
    ),
    ("connections_paused", "Connections that aren't read: too much waits.", lambda channel: channel.paused),
    (
        "connections_stalled",
        "Devices that read too slowly.",
        lambda channel: channel.waits & WRITE_BLOCKED != 0,
    ),
)
"""What is summed up over the connections of each protocol: name, meaning, of one connection."""


class Running(Protocol):
    """An app that runs."""

    @property
    def engine(self) -> Engine:
        """Its connections."""
        ...


class MeasuredHost(Protocol):
    """What runs the app: a `Gateway` or a `Service`."""

    @property
    def runner(self) -> Running:
        """The app; there is none before the start."""
        ...

    @property
    def serving(self) -> bool:
        """Whether devices, or brokers, may connect."""
        ...


@attrs.frozen
class Snapshot:
    """What the loop told at one moment."""

    stats: dict[str, int]
    looks: dict[str, list[int]]
    """By protocol, in the order of `LOOK`."""
    sniffing: int
    times: list[tuple[Times, list[int], float, int]]
    hub: dict[str, float]
    ready: bool | None
    lag: float


class Metrics:
    """Serves the metrics of *app* at *address*, from `start` until `stop`.

    *shared*: for a while another process may serve there too. Raises `SetupError` for an address that can't
    be opened, `ExprotoError` without prometheus-client.
    """

    def __init__(self, app: App[Any, Any], address: Address, *, shared: bool = False) -> None:
        try:
            import prometheus_client  # noqa: PLC0415 - an extra
        except ImportError:
            raise ExprotoError("--metrics needs: pip install 'exproto-app[metrics]'") from None
        self._library: Any = prometheus_client
        self._app = app
        self._timing = Timing(app, time.perf_counter)
        self._host: MeasuredHost | None = None
        self._loop: asyncio.AbstractEventLoop
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._exposition: Any = prometheus_client.make_wsgi_app()
        self._exposing = 0
        sock = listen("--metrics", address, shared=shared, backlog=CONNECTIONS)
        sock.setblocking(False)
        self._server = Probes(sock, self._answer, name="metrics")
        self.address = Address(*sock.getsockname()[:2])

    def start(self, host: MeasuredHost) -> None:
        """Begin to serve; *host* is going to start, or has started, in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._host = host
        self._timing.attach()
        self._library.REGISTRY.register(self)
        self._server.start()

    def stop(self) -> None:
        """End it."""
        self._server.stop()
        self._library.REGISTRY.unregister(self)
        self._timing.detach()

    # --- requests, in the loop of a thread of its own

    async def _answer(self, request: Request) -> Answer:
        path = request.path
        if request.method not in ("GET", "HEAD"):
            return _text("405 Method Not Allowed", "only GET and HEAD are answered")
        if path not in ("/metrics", "/healthz", "/readyz"):
            status = "200 OK" if path == "/" else "404 Not Found"
            return _text(status, "exproto-app: /metrics /healthz /readyz")
        try:
            asked = self._ask(connections=path == "/metrics")
            snapshot = await asyncio.wait_for(asyncio.wrap_future(asked), PATIENCE)
        except (asyncio.TimeoutError, RuntimeError):
            words = f"the event loop didn't answer within {PATIENCE:g} s"
            return _text("503 Service Unavailable", words)
        if path == "/healthz":
            return _text("200 OK", "ok")
        if path == "/readyz":
            why = self._unready(snapshot)
            return _text("503 Service Unavailable" if why else "200 OK", why or "ready")
        return await self._expose(snapshot, request)

    async def _expose(self, snapshot: Snapshot, request: Request) -> Answer:
        """Have a thread write the metrics: the app's own collectors may be slow, which probes aren't."""
        if self._exposing >= REQUESTS:
            return _text(
                "503 Service Unavailable", f"{REQUESTS} others are asking already, which is the limit"
            )
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": request.path,
            "QUERY_STRING": request.query,
            "HTTP_ACCEPT": request.headers.get("accept", ""),
            "HTTP_ACCEPT_ENCODING": request.headers.get("accept-encoding", ""),
        }

        def work() -> None:
            head: list[Any] = []
            try:
                with self._lock:
                    self._snapshot = snapshot
                    body = b"".join(self._exposition(environ, lambda *given: head.extend(given)))
                result = partial(_settle, answer, Answer(head[0], body, tuple(head[1])))
            except Exception as error:  # noqa: BLE001 - whoever asked raises it
                result = partial(_settle, answer, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(result)

        self._exposing += 1
        try:
            threading.Thread(target=work, name="exproto-app scrape", daemon=True).start()
            return await answer
        finally:
            self._exposing -= 1

    def _unready(self, snapshot: Snapshot) -> str:
        if self._host is None or not self._host.serving:
            return "the listeners aren't open"
        return "the broker isn't reachable" if snapshot.ready is False else ""

    def _ask(self, *, connections: bool) -> Future[Snapshot]:
        """Have the loop tell how things are, *connections* too. Raises `RuntimeError` if it is closed.

        Devices come in between where there are many of them.
        """
        future: Future[Snapshot] = Future()
        asked = time.monotonic()

        def begin() -> None:
            if future.set_running_or_notify_cancel():  # else nobody waits any more
                looking = self._looking(time.monotonic() - asked, connections=connections)
                go_on(looking)

        def go_on(looking: Iterator[Snapshot | None]) -> None:
            try:
                snapshot = next(looking)
            except Exception as error:  # noqa: BLE001 - whoever asked raises it
                future.set_exception(error)
                return
            if snapshot is None:
                self._loop.call_soon(go_on, looking)
            else:
                future.set_result(snapshot)

        self._loop.call_soon_threadsafe(begin)
        return future

    # --- in the loop

    def _looking(self, lag: float, *, connections: bool) -> Iterator[Snapshot | None]:
        """Yield the snapshot, and before it None where others should have their turn."""
        looks = {name: [0] * len(LOOK) for name in self._app.protocols}
        hub: Any = None
        sniffing = 0
        runner: Running | None = getattr(self._host, "runner", None)  # not there before the start
        if runner is not None:
            hub = runner.engine.hub
            sniffing = len(runner.engine.sniffers)
            for number, channel in enumerate(tuple(runner.engine.channels) if connections else (), 1):
                if channel.state is not State.ENDED:
                    sums = looks[channel.protocol.router.name]
                    for index, (_, _, of) in enumerate(LOOK):
                        sums[index] += of(channel)
                if number % SLICE == 0:
                    yield None
        times = [(one, one.counts[:], one.seconds, one.failed) for one in self._timing.times.values()]
        gauges: Callable[[], dict[str, float]] = getattr(hub, "gauges", dict)
        own: Callable[[], dict[str, float]] = getattr(self._host, "gauges", dict)
        ready: bool | None = getattr(hub, "ready", None)
        yield Snapshot(dict(self._app.counters), looks, sniffing, times, {**gauges(), **own()}, ready, lag)

    # --- for prometheus_client

    def describe(self) -> list[Any]:
        """Return nothing: what there is depends on the app."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield the families."""
        snapshot, core = self._snapshot, self._library.metrics_core
        if snapshot is None:
            return
        info = core.InfoMetricFamily("exproto", "What runs.")
        info.add_metric([], {"version": version("exproto-app")})
        yield info
        text = "How long the event loop took to answer."
        yield core.GaugeMetricFamily("exproto_loop_lag_seconds", text, snapshot.lag)
        if snapshot.ready is not None:
            up = int(snapshot.ready)
            yield core.GaugeMetricFamily("exproto_broker_up", "1 while the broker is reachable.", up)
        for index, (name, text, _) in enumerate(LOOK):
            gauge = core.GaugeMetricFamily(f"exproto_{name}", text, labels=["protocol"])
            for protocol, sums in snapshot.looks.items():
                gauge.add_metric([protocol], sums[index])
            yield gauge
        text = "Open connections whose protocol isn't known yet."
        yield core.GaugeMetricFamily("exproto_connections_sniffing", text, snapshot.sniffing)
        for name, value in snapshot.hub.items():
            text = HELP.get(name, f"The hub's {name.replace('_', ' ')}.")
            yield core.GaugeMetricFamily(f"exproto_{name}", text, value)
        yield from self._counters(snapshot.stats)
        yield from self._handlers(snapshot.times)

    def _counters(self, stats: dict[str, int]) -> Iterator[Any]:
        """Yield a counter for each name; those with parts (`NAME.REASON`) by their reason."""
        parts: dict[str, dict[str, int]] = {}
        for name, value in stats.items():
            whole, _, reason = name.partition(".")
            if reason:
                parts.setdefault(whole, {})[reason] = value
        for name, value in stats.items():
            if "." in name:
                continue
            text = HELP.get(name, f"What app.stats counts as {name}.")
            reasons = parts.get(name)
            if reasons is None and not name.endswith(("_dropped", "_closed")):
                yield self._library.metrics_core.CounterMetricFamily(_metric(name), text, value)
                continue
            family = self._library.metrics_core.CounterMetricFamily(_metric(name), text, labels=["reason"])
            parted = reasons or {}
            other = value - sum(parted.values())
            for reason, part in ({**parted, "other": other} if other or not parted else parted).items():
                family.add_metric([reason], part)
            yield family

    def _handlers(self, times: list[tuple[Times, list[int], float, int]]) -> Iterator[Any]:
        labels = ["protocol", "event", "handler"]
        core = self._library.metrics_core
        text = "How long handler calls took; async ones including what they awaited."
        took = core.HistogramMetricFamily("exproto_handler_seconds", text, labels=labels)
        raised = core.CounterMetricFamily("exproto_handler_exceptions", "Calls that raised.", labels=labels)
        for one, counts, seconds, failed in times:
            values = [one.protocol, one.event, one.handler]
            bounds = [*map(str, BOUNDS), "+Inf"]
            buckets = list(zip(bounds, map(float, accumulate(counts)), strict=True))
            took.add_metric(values, buckets, seconds)
            raised.add_metric(values, failed)
        yield took
        yield raised


def _metric(name: str) -> str:
    """Return Prometheus's form of a counter's name: the unit comes last, before `_total`."""
    unit, _, rest = name.partition("_")
    return f"exproto_{rest}_bytes" if unit == "bytes" else f"exproto_{name}"


def _settle(future: asyncio.Future[Answer], result: Answer | Exception) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def _text(status: str, words: str) -> Answer:
    headers = (("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store"))
    return Answer(status, f"{words}\n".encode(), headers)
