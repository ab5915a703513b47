"""`exproto-app serve`: the gRPC service behind the ExProto gateway of EMQX 4.3 to 6.2."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Any

import click

from ..app import App
from ..drivers.gateway import Listen
from ..errors import ExprotoError, SetupError
from ..logs import configure
from ..metrics import Metrics
from ..models import Address
from ..target import load
from .emqx_ports import LISTENER_PORT, choose_ports, protocol_option
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
    from ..drivers.grpc import Service
    from ..inspector import Inspector

__all__ = ["command"]

log = logging.getLogger("exproto_app")

# Where EMQX has these files by default: the CA of our certificate, and what EMQX shows to --client-ca.
_CA = (("cacertfile", "etc/certs/cacert.pem"),)
_OWN = (("certfile", "etc/certs/cert.pem"), ("keyfile", "etc/certs/key.pem"))


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
    "Default: http://127.0.0.1:9100. It has no TLS, so keep it on a private net.",
)
@protocol_option
@click.option("--cert", metavar="FILE", help="Certificate (chain) for TLS from EMQX to here, PEM.")
@click.option("--key", metavar="FILE", help="Its key, PEM; may be in the same file.")
@key_password_option
@click.option("--client-ca", metavar="FILE", help="Demand a certificate of EMQX, signed by this CA.")
@click.option("--print-config", is_flag=True, help="Print what belongs into EMQX's configuration, and end.")
@click.option(
    "--emqx", type=click.Choice(["4", "5", "6"]), default="5", show_default=True, help="For --print-config."
)
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
    protocols: tuple[str, ...],
    cert: str | None,
    key: str | None,
    client_ca: str | None,
    print_config: bool,
    emqx: str,
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
    worker = Worker.take()
    configure(log_level, log_format)
    logging.getLogger("hpack").setLevel(logging.INFO)  # it tells of every field of every block
    try:
        from ..drivers.grpc import AdapterMap, Service, Tls  # noqa: PLC0415 - protobuf is an extra
    except ImportError as error:
        raise ExprotoError(f"serve needs: pip install 'exproto-app[grpc]' ({error})") from None
    address = parse_address(bind, "--bind", "127.0.0.1:9001")
    if reloads and worker is None and not print_config:
        listen = Listen(scheme="tcp", host=address.host, port=address.port)
        share_token(inspect, inspect_token)
        sys.exit(reload(target, [listen], (cert, key, client_ca), option="--bind"))
    app = load(target)
    limit(app, limits)
    ports = choose_ports(app, protocols)
    if cert is None and (key or client_ca):
        raise SetupError("--key and --client-ca need --cert")
    if print_config:
        tls_files = () if cert is None else _CA if client_ca is None else (*_CA, *_OWN)
        click.echo(_config(app, address, adapters, ports, emqx=emqx, files=tls_files))
        return
    adapter_map = AdapterMap(adapters or ("http://127.0.0.1:9100",))
    tls = Tls(cert, key, client_ca) if cert is not None else None
    service = Service(
        app, address, adapter_map, ports=ports, tls=tls, sockets=worker.sockets[0] if worker else None
    )
    served = open_metrics(app, metrics)
    page = open_inspector(app, inspect, inspect_token)
    with watching(app):
        run_loop(_serve(service, stats, served, page, worker), find_uvloop(loop))


async def _serve(
    service: Service,
    stats: float | None,
    metrics: Metrics | None,
    inspector: Inspector | None,
    worker: Worker | None,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    if worker is None:
        on_signals(loop, stop)
    else:
        worker.obey(loop, stop)
    with observed(service, metrics):
        async with service, inspected(inspector, service) as page:
            lines = [*page, f"serving EMQX's ExProto gateway on {service.address}"]
            if worker is None:
                click.echo("\n".join(lines) + "; Ctrl-C ends it")
            else:
                worker.ready(lines)
            reporter = asyncio.ensure_future(report(service.app.stats, stats)) if stats else None
            await stop.wait()
            log.info("grpc = stopping: %d connections", service.runner.engine.open)
            if reporter is not None:
                reporter.cancel()
    log.info("grpc = stopped")


def _config(
    app: App[Any],
    bind: Address,
    adapters: tuple[str, ...],
    ports: dict[int, str],
    *,
    emqx: str,
    files: tuple[tuple[str, str], ...],
) -> str:
    """Return what EMQX has to know: where we are, where its adapter is, and its listeners."""
    first = adapters[0] if adapters else "http://127.0.0.1:9100"
    adapter = first.rpartition(":")[2].strip("/")
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind.host, bind.host)  # noqa: S104 - compared, not bound
    url = f"{'https' if files else 'http'}://{Address(host, bind.port)}"
    listeners = ports or {LISTENER_PORT: next(iter(app.protocols))}
    names = _listener_names(listeners)
    if emqx == "4":
        lines = [
            "# etc/plugins/emqx_exproto.conf of EMQX 4.3 and 4.4",
            f"exproto.server.http.port = {adapter}",
        ]
        for port, name in names.items():
            lines += [
                f"exproto.listener.{name} = tcp://0.0.0.0:{port}",
                f"exproto.listener.{name}.connection_handler_url = {url}",
                *(f"exproto.listener.{name}.connection_handler_{key} = {path}" for key, path in files),
            ]
        return "\n".join(lines)
    options = ", ".join(f'{key} = "{path}"' for key, path in files)
    tls = f", ssl_options {{ enable = true, verify = verify_peer, {options} }}" if files else ""
    lines = [
        f"# EMQX {emqx}, in emqx.conf or etc/base.hocon",
        "gateway.exproto {",
        f"  server {{ bind = {adapter} }}",
        f'  handler {{ address = "{url}", service_name = "ConnectionUnaryHandler"{tls} }}',
    ]
    lines += [f'  listeners.tcp.{name} {{ bind = "0.0.0.0:{port}" }}' for port, name in names.items()]
    return "\n".join([*lines, "}"])


def _listener_names(listeners: dict[int, str]) -> dict[int, str]:
    """Return a name for each listener that both forms of the configuration take."""
    names: dict[int, str] = {}
    for port, protocol in listeners.items():
        plain = "".join(char if char.isascii() and char.isalnum() else "_" for char in protocol) or "listener"
        names[port] = f"{plain}_{port}" if plain in names.values() or plain[0].isdigit() else plain
    return names
