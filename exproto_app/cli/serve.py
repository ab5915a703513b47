"""`exproto-app serve`: the gRPC service behind the ExProto gateway of EMQX 4.3 to 6.2."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Any

import click

from ..errors import ExprotoError, SetupError
from ..hosts.gateway import Listen
from ..ops.logs import configure
from ..ops.metrics import Metrics
from ..ops.service_manager import ServiceManager
from ..target import load
from .emqx_config import configuration, handler
from .emqx_ports import (
    LISTENER_PORT,
    Listener,
    Version,
    choose_listeners,
    emqx_option,
    ports_of,
    protocol_option,
    takes_shares,
)
from .limits import limit, sniff_options
from .observe import (
    inspect_options,
    inspected,
    log_options,
    metrics_option,
    observed,
    open_inspector,
    open_metrics,
    parse_address,
    share_token,
)
from .process import find_uvloop, loop_option, on_signals, report, run_loop, stats_option
from .reload import reload, reload_option
from .secrets import key_password_option
from .watching import watching, watching_options
from .worker import Worker

if TYPE_CHECKING:
    from ..hosts.grpc import Service
    from ..inspector import Inspector

__all__ = ["command"]

log = logging.getLogger("exproto_app")


@click.command()
@click.argument("target")
@click.option(
    "--bind", default="127.0.0.1:9001", show_default=True, metavar="HOST:PORT", help="Where EMQX calls."
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="WHERE",
    help="Where EMQX is called: http://HOST:PORT; or auto:PORT, at the address that called; or "
    "ADDRESS=http://HOST:PORT for the one that calls from ADDRESS, repeatable. "
    "Default: http://127.0.0.1:9100. It has no TLS, so keep it on a private network.",
)
@click.option(
    "--adapter-calls",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="N",
    help="Open calls per adapter; the more are open, the slower EMQX answers.",
)
@protocol_option
@click.option(
    "--max-connections",
    type=click.IntRange(1),
    metavar="N",
    default=100_000,
    show_default=True,
    help="Connections of devices at most; EMQX is told to close what it announces beyond.",
)
@click.option("--cert", metavar="FILE", help="Certificate (chain) for TLS from EMQX to here, PEM.")
@click.option("--key", metavar="FILE", help="Its key, PEM; may be in the same file.")
@key_password_option
@click.option("--client-ca", metavar="FILE", help="Require EMQX to present a certificate signed by this CA.")
@click.option("--print-config", is_flag=True, help="Print what belongs in EMQX's configuration, and exit.")
@emqx_option
@reload_option
@sniff_options
@watching_options
@stats_option
@metrics_option
@inspect_options
@log_options
@loop_option
def command(
    target: str,
    *,
    bind: str,
    adapters: tuple[str, ...],
    adapter_calls: int,
    protocols: tuple[str, ...],
    max_connections: int,
    cert: str | None,
    key: str | None,
    client_ca: str | None,
    print_config: bool,
    emqx: Version,
    reloads: bool,
    stats: float | None,
    metrics: str | None,
    inspect: str | None,
    inspect_token: str | None,
    log_level: str,
    log_format: str,
    loop: str,
    **limits: Any,
) -> None:
    """Serve TARGET, a file or a module with an app, to the ExProto gateway of EMQX 4.3 to 6.2."""
    manager = ServiceManager.take()
    worker = Worker.take()
    configure(log_level, log_format)
    logging.getLogger("hpack").setLevel(logging.INFO)  # it tells of every field of every block
    try:
        from ..hosts.grpc import AdapterMap, Service, Tls  # noqa: PLC0415 - protobuf is an extra
    except ImportError as error:
        raise ExprotoError(f"serve needs: pip install 'exproto-app[grpc]' ({error})") from None
    address = parse_address(bind, "--bind", "127.0.0.1:9001")
    if reloads and worker is None and not print_config:
        listen = Listen(scheme="tcp", host=address.host, port=address.port)
        share_token(inspect, inspect_token)
        sys.exit(reload(target, [listen], (cert, key, client_ca), option="--bind"))
    app = load(target)
    limit(app, limits)
    listeners = choose_listeners(app, protocols)
    if cert is None and (key or client_ca):
        raise SetupError("--key and --client-ca need --cert")
    if print_config:
        called = handler(address, cert, emqx)
        adapter = (adapters or ("http://127.0.0.1:9100",))[0].rpartition(":")[2].strip("/")
        listeners = listeners or [Listener(LISTENER_PORT, "tcp", next(iter(app.protocols)))]
        click.echo(configuration(called, adapter, listeners, emqx, client_certificate=bool(client_ca)))
        for warning in called.warnings:
            click.echo(f"warning: {warning}", err=True)
        return
    adapter_map = AdapterMap(
        adapters or ("http://127.0.0.1:9100",), in_flight=adapter_calls, shares=takes_shares(emqx)
    )
    tls = Tls(cert, key, client_ca) if cert is not None else None
    service = Service(
        app,
        address,
        adapter_map,
        ports=ports_of(listeners),
        datagrams={listener.port for listener in listeners if listener.kind == "dtls"},
        tls=tls,
        sockets=worker.sockets[0] if worker else None,
        max_connections=max_connections,
    )
    served = open_metrics(app, metrics)
    page = open_inspector(app, inspect, inspect_token)
    with watching(app, target):
        run_loop(_serve(service, stats, served, page, worker, manager=manager), find_uvloop(loop))


async def _serve(
    service: Service,
    stats: float | None,
    metrics: Metrics | None,
    inspector: Inspector | None,
    worker: Worker | None,
    *,
    manager: ServiceManager,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    if worker is None:
        on_signals(loop, stop, service.renew if service.renewable else None)
    else:
        worker.obey(loop, stop)
    with observed(service, metrics):
        async with service, inspected(inspector, service) as page:
            lines = [*page, f"serving EMQX's ExProto gateway on {service.address}"]
            if worker is None:
                click.echo("\n".join(lines) + "; Ctrl-C stops it")
            else:
                worker.ready(lines)
            manager.ready()
            manager.watch(loop)
            reporter = asyncio.ensure_future(report(service.app.stats, stats)) if stats else None
            await stop.wait()
            manager.stopping()
            log.info("grpc = stopping: %d connections", service.runner.engine.open)
            if reporter is not None:
                reporter.cancel()
    log.info("grpc = stopped")
