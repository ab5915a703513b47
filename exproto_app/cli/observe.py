"""What commands that serve have in common for whoever looks at them: the log, the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from ..app import App
from ..errors import SetupError
from ..logs import FORMATS, LEVELS
from ..metrics import Host, Metrics
from ..models import Address

__all__ = ["log_options", "metrics_option", "observed", "open_metrics", "parse_address"]


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the log."""
    form = click.option(
        "--log-format",
        type=click.Choice(FORMATS),
        default="text",
        show_default=True,
        envvar="EXPROTO_LOG_FORMAT",
        help="json writes an object a line.",
    )
    level = click.option(
        "--log-level",
        type=click.Choice(LEVELS),
        default="info",
        show_default=True,
        envvar="EXPROTO_LOG_LEVEL",
    )
    decorated: Callable[..., Any] = level(form(command))
    return decorated


metrics_option: Callable[[Any], Any] = click.option(
    "--metrics",
    metavar="HOST:PORT",
    help="Serve /metrics for Prometheus, /healthz and /readyz there, such as 127.0.0.1:9090; "
    "needs exproto-app[metrics]. With --workers each has its own port: PORT, PORT+1…",
)


def parse_address(text: str, option: str, example: str) -> Address:
    """Read the `HOST:PORT` that was given to *option*. Raises `SetupError`."""
    host, colon, port = text.removeprefix("http://").rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535:
        raise SetupError(f"{option} {text} is no address; write HOST:PORT, such as {example}")
    return Address(host.strip("[]"), int(port))


def open_metrics(app: App[Any], text: str | None, *, worker: int | None = None) -> Metrics | None:
    """Take the port of `--metrics`; the second worker has the next one, and so on.

    Raises `SetupError`, `ExprotoError`.
    """
    if text is None:
        return None
    address = parse_address(text, "--metrics", "127.0.0.1:9090")
    if worker is None or not address.port:
        return Metrics(app, address)
    # A reload starts the new one before it ends the old one.
    return Metrics(app, Address(address.host, address.port + worker - 1), shared=True)


@contextmanager
def observed(host: Host, metrics: Metrics | None) -> Iterator[None]:
    """Serve *metrics*, if there are any, for the length of a block in which *host* serves."""
    if metrics is None:
        yield
        return
    metrics.start(host)
    click.echo(f"metrics on http://{metrics.address}/metrics, with /healthz and /readyz beside it")
    try:
        yield
    finally:
        metrics.stop()
