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
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from importlib.metadata import version
from itertools import accumulate
from socketserver import ThreadingMixIn
from typing import Any, Final, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import attrs

from .app import App
from .core import Channel
from .core.states import WRITE_BLOCKED
from .errors import ExprotoError
from .listening import listen
from .models import Address
from .runner import Runner
from .timing import BOUNDS, Times, Timing

__all__ = ["Metrics"]

log = logging.getLogger("exproto_app")

PATIENCE: Final = 2.0
"""Seconds in which the event loop has to answer."""

REQUESTS: Final = 16
"""Requests that are answered at the same time; more are refused."""

REQUEST_TIME: Final = 10.0
"""Seconds that a request may take to come."""

HELP: Final = {
    "bytes_dropped": "Bytes that were lost.",
    "bytes_received": "Bytes from devices.",
    "bytes_sent": "Bytes to devices.",
    "bytes_skipped": "Bytes from devices that belong to no frame.",
    "commands_failed": "Verbs that failed and that nobody awaited.",
    "connections_closed": "Connections that have ended, by reason.",
    "connections_opened": "Connections that have begun.",
    "connections_refused": "Connections beyond a limit.",
    "connections_restarted": "Connections that this process never saw begin.",
    "connections_undecided": "Connections that ended before their protocol was known.",
    "datagrams_dropped": "Datagrams that were lost.",
    "deliveries_dropped": "Messages for devices that were lost.",
    "frames_bad": "Frames with a wrong checksum, or that the codec can't parse.",
    "frames_dropped": "Frames that were not handled, for their connection was to be closed.",
    "frames_received": "Frames from devices.",
    "frames_unhandled": "Frames that no handler takes.",
    "handler_errors": "Exceptions of handlers, and framing errors.",
    "messages_delivered": "Messages for devices.",
    "messages_published": "Messages from devices and from the app.",
    "messages_unhandled": "Messages that no handler takes.",
    "requests_retried": "Requests that were sent again.",
    "requests_timed_out": "Requests without an answer.",
    "sends_failed": "Sends that the broker didn't take.",
    "ticks_skipped": "Calls of every() left out, for the one before still ran.",
}

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

Start = Callable[..., object]
Environ = dict[str, Any]


class Host(Protocol):
    """What runs the app: a `Gateway` or a `Service`."""

    runner: Runner

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
        self._host: Host | None = None
        self._loop: asyncio.AbstractEventLoop
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._exposition: Any = prometheus_client.make_wsgi_app()
        sock = listen("--metrics", address, shared=shared, backlog=REQUESTS)
        self._server = _Server(sock, self._answer)
        self.address = Address(*self._server.socket.getsockname()[:2])

    def start(self, host: Host) -> None:
        """Begin to serve; *host* is going to start, or has started, in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._host = host
        self._timing.attach()
        self._library.REGISTRY.register(self)
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="exproto-app metrics")
        thread.daemon = True
        thread.start()

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._library.REGISTRY.unregister(self)
        self._timing.detach()

    # --- requests, in threads

    def _answer(self, environ: Environ, start: Start) -> Iterable[bytes]:
        path = environ.get("PATH_INFO") or "/"
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            return _text(start, "405 Method Not Allowed", "only GET and HEAD are answered")
        if path not in ("/metrics", "/healthz", "/readyz"):
            status = "200 OK" if path == "/" else "404 Not Found"
            return _text(start, status, "exproto-app: /metrics /healthz /readyz")
        try:
            snapshot = self._ask()
        except (Late, RuntimeError):
            words = f"the event loop didn't answer within {PATIENCE:g} s"
            return _text(start, "503 Service Unavailable", words)
        if path == "/healthz":
            return _text(start, "200 OK", "ok")
        if path == "/readyz":
            why = self._unready(snapshot)
            return _text(start, "503 Service Unavailable" if why else "200 OK", why or "ready")
        with self._lock:
            self._snapshot = snapshot
            answer: Iterable[bytes] = self._exposition(environ, start)
        return answer

    def _unready(self, snapshot: Snapshot) -> str:
        if self._host is None or not self._host.serving:
            return "the listeners aren't open"
        return "the broker isn't reachable" if snapshot.ready is False else ""

    def _ask(self) -> Snapshot:
        """Have the loop tell how things are. Raises `Late` if it doesn't, `RuntimeError` if it is closed."""
        future: Future[Snapshot] = Future()
        asked = time.monotonic()

        def tell() -> None:
            try:
                future.set_result(self._look(time.monotonic() - asked))
            except Exception as error:  # noqa: BLE001 - whoever asked raises it
                future.set_exception(error)

        self._loop.call_soon_threadsafe(tell)
        return future.result(PATIENCE)

    # --- in the loop

    def _look(self, lag: float) -> Snapshot:
        looks = {name: [0] * len(LOOK) for name in self._app.protocols}
        hub: Any = None
        sniffing = 0
        runner: Runner | None = getattr(self._host, "runner", None)  # not there before the start
        if runner is not None:
            hub = runner.engine.hub
            sniffing = len(runner.engine.sniffers)
            for channel in runner.engine.channels:
                sums = looks[channel.protocol.router.name]
                for index, (_, _, of) in enumerate(LOOK):
                    sums[index] += of(channel)
        times = [(one, one.counts[:], one.seconds, one.failed) for one in self._timing.times.values()]
        gauges: Callable[[], dict[str, float]] = getattr(hub, "gauges", dict)
        ready: bool | None = getattr(hub, "ready", None)
        return Snapshot(dict(self._app.counters), looks, sniffing, times, gauges(), ready, lag)

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
        text = "What the event loop took to answer."
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
            yield core.GaugeMetricFamily(f"exproto_{name}", f"The hub's {name.replace('_', ' ')}.", value)
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
        text = "What calls of handlers took; async ones with all that they awaited."
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


def _text(start: Start, status: str, words: str) -> list[bytes]:
    start(status, [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")])
    return [f"{words}\n".encode()]


class _Requests(WSGIRequestHandler):
    timeout = REQUEST_TIME

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's signature
        log.debug("metrics < %s", format % args)


class _Server(ThreadingMixIn, WSGIServer):
    """The WSGI server of the standard library, with a bound."""

    daemon_threads = True

    def __init__(self, sock: socket.socket, application: Any) -> None:
        self._free = threading.BoundedSemaphore(REQUESTS)
        self.address_family = sock.family
        super().__init__(sock.getsockname(), _Requests, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        # As in the standard library, without asking the DNS for our name.
        self.server_name, self.server_port = "exproto-app", sock.getsockname()[1]
        self.setup_environ()
        self.set_app(application)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        log.debug("metrics ! a request of %s failed: %r", client_address[0], sys.exc_info()[1])
