"""`exproto-app run`: the gateway."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Callable
from typing import Any

import attrs
import click

from ..app import App
from ..drivers.gateway import Gateway, Listen, Options
from ..drivers.gateway.listeners import DEFAULT_LISTEN
from ..drivers.gateway.users import Users
from ..hub import Login, MemoryHub
from ..models import Address, Limits
from ..target import load
from .process import find_uvloop, loop_option, on_signals, report, run_loop, stats_option, verbosity_option
from .watching import watching, watching_options

__all__ = ["command"]

log = logging.getLogger("exproto_app")

SPARE_FILES = 100
"""Open files beside those of connections: libraries, logs, what the app itself opens."""


def _limit(name: str, kind: type, meaning: str) -> Callable[[Any], Any]:
    """Declare the option for one of the app's `Limits`; without it the app decides."""
    default = getattr(Limits(), name)
    text = f"{meaning} (default: the app's own, else {default:g})."
    flag = f"--{name.replace('_', '-')}"
    return click.option(flag, name, type=kind, help=text)


@click.command()
@click.argument("target")
@click.option(
    "--listen",
    "listens",
    multiple=True,
    metavar="[PROTOCOL=]URL",
    help=f"tcp://HOST:PORT, tls://… or udp://…; may be repeated. Default: {DEFAULT_LISTEN}.",
)
@click.option("--cert", metavar="FILE", help="Certificate (chain) of tls listeners, PEM.")
@click.option("--key", metavar="FILE", help="Its key, PEM; may be in the same file.")
@click.option("--client-ca", metavar="FILE", help="Demand certificates of devices, signed by this CA.")
@click.option("--users", metavar="FILE", help="Who may register; see hash-password.")
@click.option("--max-connections", type=click.IntRange(1), default=10_000, show_default=True)
@click.option(
    "--handshake-timeout", type=float, default=10.0, show_default=True, help="Seconds of a TLS handshake."
)
@_limit("inbox", int, "Bytes of a device that may wait to be handled; then reading pauses")
@_limit("outbox", int, "Bytes that may wait for a device; then its frames wait")
@_limit("outbox_max", int, "Bytes that may wait for a device; then it is closed")
@_limit("deliveries", int, "Messages that may wait for a device; then the newest are dropped")
@_limit("first_frame", float, "Seconds until a device has to have said something")
@_limit("stall", float, "Seconds that a device may leave unread what it is sent")
@_limit("datagram_idle", float, "Seconds of silence that end a UDP connection")
@_limit("handler_timeout", float, "Seconds that an async handler may take")
@watching_options
@stats_option
@verbosity_option
@loop_option
def command(
    target: str,
    *,
    listens: tuple[str, ...],
    cert: str | None,
    key: str | None,
    client_ca: str | None,
    users: str | None,
    max_connections: int,
    handshake_timeout: float,
    stats: float | None,
    log_level: str,
    loop: str,
    **limits: float | None,
) -> None:
    """Serve TARGET, a file or a module with an app, on listeners of its own."""
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    uvloop = find_uvloop(loop)
    app = load(target)
    given: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
    app.limits = attrs.evolve(app.limits, **given)
    files = {"cert": cert, "key": key, "client_ca": client_ca}
    parsed = [Listen.parse(text, **files) for text in listens or (DEFAULT_LISTEN,)]
    login = Users(users) if users else None
    options = Options(max_connections=max_connections, handshake_timeout=handshake_timeout)
    _allow_files(max_connections)
    with watching(app):
        run_loop(_serve(app, parsed, login, options, stats=stats, with_uvloop=uvloop is not None), uvloop)


async def _serve(
    app: App[Any],
    listens: list[Listen],
    login: Login | None,
    options: Options,
    *,
    stats: float | None,
    with_uvloop: bool,
) -> None:
    gateway = Gateway(app, listens, hub=MemoryHub(login), options=options)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    on_signals(loop, stop)
    async with gateway:
        _announce(gateway, with_login=login is not None, with_uvloop=with_uvloop)
        reporter = asyncio.ensure_future(report(app.stats, stats)) if stats else None
        await stop.wait()
        log.info("gateway = stopping: %d connections", gateway.open)
        if reporter is not None:
            reporter.cancel()
    log.info("gateway = stopped")


def _announce(gateway: Gateway, *, with_login: bool, with_uvloop: bool) -> None:
    for listen, router, address in gateway.addresses:
        click.echo(
            f"{router.name} on {listen.scheme}://{address}  {router.framing!r}  try: {_try(listen, address)}"
        )
    click.echo(
        f"on {'uvloop' if with_uvloop else 'asyncio'}, messages through the embedded hub; Ctrl-C ends it"
    )
    if not with_login:
        log.warning("gateway ! no --users FILE: any password is taken")


def _try(listen: Listen, address: Address) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104 - compared, not bound
    if listen.scheme == "tls":
        return f"openssl s_client -quiet -connect {Address(host, address.port)}"
    return f"nc {'-u ' if listen.scheme == 'udp' else ''}{host} {address.port}"


def _allow_files(connections: int) -> None:
    """Have the kernel allow as many open files as connections need, or say that it doesn't."""
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # Windows has no such limit
        return
    needed = connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < needed:
            text = "gateway ! the system allows %d open files, %d connections need more; see ulimit -n"
            log.warning(text, allowed, connections)
