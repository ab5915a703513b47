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
from ..hosts.gateway import Gateway, Listen, Options
from ..hosts.gateway.listeners import DEFAULT_LISTEN
from ..hosts.gateway.users import Users
from ..hub import MemoryHub
from ..models import Address
from ..ops.logs import configure
from ..ops.metrics import Metrics
from ..target import load
from .addressing import address_options, take_address_limits
from .door import DoorChoice, choose_door, door_option, opened
from .limits import limit, limit_option, sniff_options
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
from .process import find_uvloop, loop_option, on_signals, report, run_loop, stats_option
from .reload import reload, reload_option
from .secrets import key_password_option
from .supervisor import supervise
from .uplink import make_hub, uplink_options
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
    help="tcp://HOST:PORT, tls://… or udp://…; may be repeated. Several protocols are told apart by what "
    f"a device sends first, see Router(sniff=). Default: {DEFAULT_LISTEN}.",
)
@click.option("--cert", metavar="FILE", help="Certificate (chain) of tls listeners, PEM.")
@click.option("--key", metavar="FILE", help="Its key, PEM; may be in the same file.")
@key_password_option
@click.option(
    "--client-ca", metavar="FILE", help="Require devices to present a certificate signed by this CA."
)
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
    default=10_000,
    show_default=True,
    help="Open connections at most, per worker.",
)
@click.option(
    "--handshake-timeout",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds that a TLS handshake, and a PROXY header, may take.",
)
@click.option(
    "--stop-timeout",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds that connections, and the broker, may take to end; what hasn't ended is cut, and logged.",
)
@address_options
@limit_option("inbox", int, "Bytes of a device waiting to be handled; beyond that reading pauses")
@limit_option("outbox", int, "Bytes waiting for a device; beyond that its frames wait")
@limit_option("outbox_max", int, "Bytes waiting for a device; beyond that it is closed")
@limit_option("deliveries", int, "Messages waiting for a device; beyond that the newest are dropped")
@limit_option("first_frame", float, "Seconds in which a device has to send something")
@limit_option("stall", float, "Seconds for which a device may not read what it is sent")
@limit_option("datagram_idle", float, "Seconds of silence that end a UDP connection")
@limit_option("handler_timeout", float, "Seconds that an async handler may take")
@sniff_options
@uplink_options
@door_option
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
    worker = Worker.take()
    number = worker.number if worker else None
    configure(log_level, log_format, worker=number)
    parsed = [
        Listen.parse(text, proxy_protocol=proxy_protocol, cert=cert, key=key, client_ca=client_ca)
        for text in listens or (DEFAULT_LISTEN,)
    ]
    if workers is not None and mqtt is None:
        raise SetupError(
            "--workers needs --mqtt URL: the embedded hub can't reach devices of another process"
        )
    if workers is not None and reloads:
        raise SetupError("--reload is for one process; SIGHUP reloads --workers, one by one")
    if workers is not None and worker is None:
        share_token(inspect, inspect_token)
        sys.exit(supervise(parsed, workers))
    addresses = take_address_limits(others)
    uplink = {name: others.pop(name) for name in tuple(others) if name.startswith("mqtt_")}
    if reloads and worker is None:
        files = [file for listen in parsed for file in (listen.cert, listen.key, listen.client_ca)]
        files += [users, *(uplink[f"mqtt_{name}"] for name in ("ca", "cert", "key"))]
        share_token(inspect, inspect_token)
        sys.exit(reload(target, parsed, files))
    uvloop = find_uvloop(loop)
    if number is not None and uplink["mqtt_client_id"]:  # a clientid is one connection's
        uplink["mqtt_client_id"] += f"-{number}"
    login = Users(users) if users else None
    hub = make_hub(mqtt, login, uplink)
    door = choose_door(mqtt_listen, hub)
    app = load(target)
    limit(app, others)
    each = 2 if mqtt is not None and uplink["mqtt_mode"] != "shared" else 1
    options = Options(
        max_connections=max_connections,
        handshake_timeout=handshake_timeout,
        addresses=addresses,
        files=each,
        stop_timeout=stop_timeout,
    )
    _allow_files(max_connections * each)
    gateway = Gateway(app, parsed, hub=hub, options=options, sockets=worker.sockets if worker else None)
    served = open_metrics(app, metrics, worker=number)
    page = open_inspector(app, inspect, inspect_token, worker=number)
    with watching(app, worker=number):
        main = _serve(gateway, door, served, page, stats=stats, with_uvloop=uvloop is not None, worker=worker)
        run_loop(main, uvloop)


async def _serve(
    gateway: Gateway,
    door: DoorChoice | None,
    metrics: Metrics | None,
    inspector: Inspector | None,
    *,
    stats: float | None,
    with_uvloop: bool,
    worker: Worker | None,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    if worker is None:
        on_signals(loop, stop, gateway.renew)
    else:
        worker.obey(loop, stop)
    with observed(gateway, metrics):
        async with gateway, opened(door, gateway) as at_door, inspected(inspector, gateway) as page:
            *listeners, how = _announcement(gateway, with_uvloop=with_uvloop)
            lines = [*listeners, *at_door, *page, how]
            if isinstance(gateway.hub, MemoryHub) and not gateway.hub.asks:
                log.warning("gateway ! no --users FILE: any password is accepted")
            if worker is None:
                click.echo("\n".join(lines) + "; Ctrl-C stops it")
            else:
                worker.ready(lines)
            reporter = asyncio.ensure_future(report(gateway.app.stats, stats)) if stats else None
            await stop.wait()
            log.info("gateway = stopping: %d connections", gateway.open)
            if reporter is not None:
                reporter.cancel()
    log.info("gateway = stopped")


def _announcement(gateway: Gateway, *, with_uvloop: bool) -> list[str]:
    lines = []
    for listen, routers, address in gateway.addresses:
        names = ",".join(router.name for router in routers)
        framing = _short(routers[0].framing) if len(routers) == 1 else "whichever sniff= finds"
        lines.append(f"{names} on {listen.scheme}://{address}  {framing}  try: {_try(listen, address)}")
    return [*lines, f"on {'uvloop' if with_uvloop else 'asyncio'}, messages through {gateway.hub}"]


def _short(framing: Framing) -> str:
    """Return what tells a *framing*, of those that are made of many no more than what holds them together."""
    text = repr(framing)
    return text if len(text) <= LONGEST else f"{type(framing).__name__}(…)"


def _try(listen: Listen, address: Address) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104 - compared, not bound
    if listen.scheme == "tls":
        return f"openssl s_client -quiet -connect {Address(host, address.port)}"
    return f"nc {'-u ' if listen.scheme == 'udp' else ''}{host} {address.port}"


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
