"""`exproto-app run`: the gateway."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from typing import TYPE_CHECKING, Any

import click

from ..errors import SetupError
from ..framing import Framing
from ..hosts.gateway import Gateway, Listen, Options, Share
from ..hosts.gateway.draining import RATE, drain
from ..hosts.gateway.listeners import DEFAULT_LISTEN
from ..hosts.gateway.users import Users
from ..hub import MemoryHub
from ..models import Address
from ..ops.logs import configure
from ..ops.metrics import Metrics
from ..ops.service_manager import ServiceManager
from ..target import load
from .addressing import address_options, take_address_limits, take_lists
from .dialled import dial_options, shown_targets, take_dial_options, take_targets
from .limits import limit, limit_option, sniff_options
from .mqtt_listen import MqttListen, choose_mqtt_listen, mqtt_listen_option, opened
from .numbers import POSITIVE
from .observe import (
    inspect_options,
    inspected,
    log_options,
    metrics_option,
    observed,
    open_inspector,
    open_metrics,
    share_token,
)
from .process import find_uvloop, loop_option, on_drain, on_signals, report, run_loop, stats_option
from .reload import reload, reload_option
from .secrets import key_password_option
from .supervisor import supervise
from .tls import TLS, tls_options
from .uplink import hold_store, make_hub, take_uplink_options, uplink_options
from .watching import watching, watching_options
from .worker import Worker

if TYPE_CHECKING:
    from ..inspector import Inspector

__all__ = ["command"]

log = logging.getLogger("exproto_app")

SPARE_FILES = 100
"""Open files beside those of connections: libraries, logs, what the app itself opens."""

LONGEST = 72
"""Characters of a framing in the line that tells of its listener."""


@click.command()
@click.argument("target")
@click.option(
    "--listen",
    "listens",
    multiple=True,
    metavar="[PROTOCOL[,PROTOCOL…]=]URL",
    help="tcp://HOST:PORT, tls://…, udp://…, dtls://…, unix:///PATH, serial:///DEVICE, ws://HOST:PORT/PATH, "
    "wss://… or mqtt-bytes://HOST/TOPIC; may be repeated. Several "
    f"protocols are told apart by what a device sends first, see Router(sniff=). Default: {DEFAULT_LISTEN}.",
)
@dial_options
@click.option("--cert", metavar="FILE", help="Certificate (chain) of tls, dtls and wss listeners, PEM.")
@click.option("--key", metavar="FILE", help="Its key, PEM; may be in the same file.")
@key_password_option
@click.option(
    "--client-ca", metavar="FILE", help="Require devices to present a certificate signed by this CA."
)
@tls_options
@click.option(
    "--proxy-protocol",
    is_flag=True,
    help="Require a PROXY header, v1 or v2, on tcp and tls listeners, which only a load balancer may be "
    "able to reach. For one listener: ?proxy-protocol=1 at the end of its URL.",
)
@click.option("--users", metavar="FILE", help="Who may register; see hash-password.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="Serve with N processes that share the ports; needs --mqtt. SIGHUP reloads them one by one.",
)
@reload_option
@click.option(
    "--max-connections",
    type=click.IntRange(1),
    metavar="N",
    default=10_000,
    show_default=True,
    help="Maximum of open connections, per worker.",
)
@click.option(
    "--handshake-timeout",
    type=POSITIVE,
    metavar="SECONDS",
    default=10.0,
    show_default=True,
    help="Seconds that a TLS or DTLS handshake, and a PROXY header, may take.",
)
@click.option(
    "--stop-timeout",
    type=POSITIVE,
    metavar="SECONDS",
    default=5.0,
    show_default=True,
    help="Seconds that connections, and the broker, may take to end; what hasn't ended is cut, and logged.",
)
@click.option(
    "--drain-rate",
    type=POSITIVE,
    metavar="N",
    default=RATE,
    show_default=True,
    help="Connections closed per second, per worker, by SIGUSR1, which lets no new ones in and ends "
    "when none is left.",
)
@click.option(
    "--tcp-keepalive",
    type=POSITIVE,
    metavar="SECONDS",
    help="Seconds of silence after which the kernel asks a TCP device whether it is there (default: the "
    "system's, mostly two hours). Who doesn't answer within --stall is lost.",
)
@address_options
@limit_option("inbox", int, "Bytes of a device waiting to be handled; beyond that reading pauses")
@limit_option("outbox", int, "Bytes waiting for a device; beyond that its frames wait")
@limit_option("outbox_max", int, "Bytes waiting for a device; beyond that it is closed")
@limit_option("deliveries", int, "Messages waiting for a device; beyond that the newest are dropped")
@limit_option("memory", int, "Bytes that all connections hold; beyond that those that hold most are closed")
@limit_option("first_frame", float, "Seconds in which a device has to send something")
@limit_option("stall", float, "Seconds for which a device may not read, or acknowledge, what it is sent")
@limit_option("datagram_idle", float, "Seconds of silence that end a UDP connection")
@limit_option("handler_timeout", float, "Seconds that an async handler may take")
@sniff_options
@uplink_options
@mqtt_listen_option
@watching_options
@stats_option
@metrics_option
@inspect_options
@log_options
@loop_option
def command(
    target: str,
    *,
    listens: tuple[str, ...],
    cert: str | None,
    key: str | None,
    client_ca: str | None,
    proxy_protocol: bool,
    users: str | None,
    mqtt: str | None,
    mqtt_listen: str | None,
    workers: int | None,
    reloads: bool,
    max_connections: int,
    handshake_timeout: float,
    stop_timeout: float,
    drain_rate: float,
    tcp_keepalive: float | None,
    stats: float | None,
    metrics: str | None,
    inspect: str | None,
    inspect_token: str | None,
    log_level: str,
    log_format: str,
    loop: str,
    **others: Any,
) -> None:
    """Serve TARGET, a file or a module with an app, on listeners of its own."""
    manager = ServiceManager.take()
    worker = Worker.take()
    number = worker.number if worker else None
    configure(log_level, log_format, worker=number)
    tls = {name: others.pop(name) for name in TLS}
    parsed = [
        Listen.parse(text, proxy_protocol=proxy_protocol, cert=cert, key=key, client_ca=client_ca, **tls)
        for text in listens or (() if others["dials"] or others["dial_file"] else (DEFAULT_LISTEN,))
    ]
    targets, dial_file = take_targets(others)
    if workers is not None and mqtt is None:
        raise SetupError(
            "--workers needs --mqtt URL: the embedded hub can't reach devices of another process"
        )
    if workers is not None and reloads:
        raise SetupError("--reload is for one process; SIGHUP reloads --workers, one by one")
    uplink = take_uplink_options(others)
    held = None if worker else hold_store(mqtt, uplink["store"], shared=workers is not None)
    if workers is not None and worker is None:
        share_token(inspect, inspect_token)
        sys.exit(supervise(parsed, workers, manager))
    lists = take_lists(others)
    addresses, dial = take_address_limits(others), take_dial_options(others)
    if reloads and worker is None:
        files = [
            file for listen in parsed for file in (listen.cert, listen.key, listen.client_ca, listen.psk)
        ]
        files += [
            users,
            dial_file,
            lists.allow,
            lists.deny,
            *(uplink[f"mqtt_{name}"] for name in ("ca", "cert", "key")),
        ]
        share_token(inspect, inspect_token)
        sys.exit(reload(target, parsed, files))
    uvloop = find_uvloop(loop)
    if number is not None and uplink["mqtt_client_id"]:  # a clientid is one connection's
        uplink["mqtt_client_id"] += f"-{number}"
    login = Users(users) if users else None
    hub = make_hub(mqtt, login, uplink)
    mqtt_listener = choose_mqtt_listen(mqtt_listen, hub)
    app = load(target)
    limit(app, others)
    each = 2 if mqtt is not None and uplink["mqtt_mode"] != "shared" else 1
    options = Options(
        max_connections=max_connections,
        handshake_timeout=handshake_timeout,
        addresses=addresses,
        lists=lists,
        files=each,
        stop_timeout=stop_timeout,
        dial=dial,
        keepalive=tcp_keepalive,
    )
    _allow_files(max_connections * each)
    gateway = Gateway(
        app,
        parsed,
        hub=hub,
        options=options,
        dial=targets,
        dial_file=dial_file,
        share=None if number is None else Share(number, workers or 1),
        sockets=worker.open if worker else None,
    )
    if login is not None:
        gateway.renewal.add(login.follow())
    served = open_metrics(app, metrics, worker=number)
    page = open_inspector(app, inspect, inspect_token, worker=number)
    with watching(app, target, worker=number):
        main = _serve(
            gateway,
            mqtt_listener,
            served,
            page,
            stats=stats,
            drain_rate=drain_rate,
            with_uvloop=uvloop is not None,
            worker=worker,
            manager=manager,
        )
        run_loop(main, uvloop)
    if held is not None:
        held.release()


async def _serve(
    gateway: Gateway,
    mqtt_listener: MqttListen | None,
    metrics: Metrics | None,
    inspector: Inspector | None,
    *,
    stats: float | None,
    drain_rate: float,
    with_uvloop: bool,
    worker: Worker | None,
    manager: ServiceManager,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    draining: asyncio.Task[None] | None = None

    def begin_draining() -> None:
        nonlocal draining
        if draining is None and gateway.serving:
            manager.draining()
            draining = loop.create_task(drain(gateway, drain_rate))
            draining.add_done_callback(lambda _: stop.set())

    def renew() -> None:
        manager.reloading()
        gateway.renew()
        manager.ready()

    if worker is None:
        on_signals(loop, stop, renew, begin_draining)
    else:
        worker.obey(loop, stop)
        on_drain(loop, begin_draining)
    with observed(gateway, metrics):
        async with (
            gateway,
            opened(mqtt_listener, gateway) as mqtt_lines,
            inspected(inspector, gateway) as page,
        ):
            *listeners, how = _announcement(gateway, with_uvloop=with_uvloop)
            lines = [*listeners, *mqtt_lines, *page, how]
            if isinstance(gateway.hub, MemoryHub) and not gateway.hub.asks:
                log.warning("gateway ! no --users FILE: any password is accepted")
            if worker is None:
                click.echo("\n".join(lines) + "; Ctrl-C stops it")
            else:
                worker.ready(lines)
            manager.ready()
            manager.watch(loop)
            reporter = asyncio.ensure_future(report(gateway.app.stats, stats)) if stats else None
            await stop.wait()
            manager.stopping()
            if draining is not None:
                draining.cancel()
            log.info("gateway = stopping: %d connections", gateway.open)
            if reporter is not None:
                reporter.cancel()
    log.info("gateway = stopped")


def _announcement(gateway: Gateway, *, with_uvloop: bool) -> list[str]:
    lines = []
    for listen, routers, address in gateway.addresses:
        names = ",".join(router.name for router in routers)
        framing = _short(routers[0].framing) if len(routers) == 1 else "whichever sniff= finds"
        line = f"{names} on {listen.at(address)}  {framing}"
        lines.append(line + _try(listen, address))
    lines += shown_targets(gateway)
    return [*lines, f"on {'uvloop' if with_uvloop else 'asyncio'}, messages through {gateway.hub}"]


def _short(framing: Framing) -> str:
    """Return what tells a *framing*, of those that are made of many no more than what holds them together."""
    text = repr(framing)
    return text if len(text) <= LONGEST else f"{type(framing).__name__}(…)"


def _try(listen: Listen, address: Address) -> str:
    """Return how to be a device there, where there is a program for it that many have."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104 - compared, not bound
    match listen.scheme:
        case "tcp":
            command = f"nc {host} {address.port}"
        case "udp":
            command = f"nc -u {host} {address.port}"
        case "tls":
            command = f"openssl s_client -quiet -connect {Address(host, address.port)}"
        case "dtls":
            command = f"openssl s_client -dtls -quiet -connect {Address(host, address.port)}"
        case "unix":
            command = f"nc -U {listen.path}"
        case _:
            return ""
    return f"  try: {command}"


def _allow_files(files: int) -> None:
    """Have the kernel allow as many open files as connections need, as far as it may; the gateway tells."""
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # Windows has no such limit
        return
    needed = files + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
