"""What commands that serve have in common for whoever looks at them: the log, the metrics, the inspector."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from ..app import App
from ..errors import ExprotoError, SetupError
from ..models import Address, is_loopback
from ..ops.logs import FORMATS, LEVELS
from ..ops.metrics import MeasuredHost, Metrics
from .secrets import take_into

if TYPE_CHECKING:
    from ..inspector import Inspector
    from ..inspector.server import InspectedHost

__all__ = [
    "inspect_options",
    "inspected",
    "log_options",
    "metrics_option",
    "observed",
    "open_inspector",
    "open_metrics",
    "parse_address",
    "share_token",
]

TOKEN: Final = "EXPROTO_INSPECT_TOKEN"  # noqa: S105 - the name of a variable


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the log."""
    form = click.option(
        "--log-format",
        type=click.Choice(FORMATS),
        default="text",
        show_default=True,
        envvar="EXPROTO_LOG_FORMAT",
        help="json writes one object per line.",
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


def inspect_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the inspector."""
    where = click.option(
        "--inspect",
        metavar="HOST:PORT",
        help="Serve a page that shows connections and their traffic there, such as 127.0.0.1:8080; needs "
        "exproto-app[web]. With --workers each has its own port: PORT, PORT+1…",
    )
    token = click.option(
        "--inspect-token",
        metavar="TOKEN",
        envvar=TOKEN,
        help=f"The token that the page asks for; better set {TOKEN}. Generated and printed if the page can "
        "be reached from other machines.",
    )
    file = click.option(
        "--inspect-token-file",
        metavar="FILE",
        is_eager=True,  # the option before looks for it in the environment
        expose_value=False,
        callback=take_into(TOKEN),
        help="The same, in the first line of FILE; other users can read a command line.",
    )
    decorated: Callable[..., Any] = where(token(file(command)))
    return decorated


def parse_address(text: str, option: str, example: str) -> Address:
    """Read the `HOST:PORT` that was given to *option*. Raises `SetupError`."""
    host, colon, port = text.removeprefix("http://").rpartition(":")
    inner = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdecimal() or int(port) > 65_535 or host not in (inner, f"[{inner}]"):
        raise SetupError(f"{option} {text} is not an address; write HOST:PORT, such as {example}")
    return Address(inner, int(port))


def open_metrics(app: App[Any], text: str | None, *, worker: int | None = None) -> Metrics | None:
    """Take the port of `--metrics`; the second worker has the next one, and so on.

    Raises `SetupError`, `ExprotoError`.
    """
    if text is None:
        return None
    address, shared = _own(parse_address(text, "--metrics", "127.0.0.1:9090"), worker)
    return Metrics(app, address, shared=shared)


def _own(address: Address, worker: int | None) -> tuple[Address, bool]:
    """Return where *worker* serves, and whether two may at once."""
    if worker is None or not address.port:
        return address, False
    # A reload starts the new one before it ends the old one.
    return Address(address.host, address.port + worker - 1), True


@contextmanager
def observed(host: MeasuredHost, metrics: Metrics | None) -> Iterator[None]:
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


def share_token(text: str | None, token: str | None) -> None:
    """Have the processes that are begun from here all ask for the same token."""
    if text is None or token:
        return
    from ..inspector.access import new_token  # noqa: PLC0415 - no need of it without the option

    if not is_loopback(parse_address(text, "--inspect", "127.0.0.1:8080").host):
        os.environ[TOKEN] = new_token()


def open_inspector(
    app: App[Any], text: str | None, token: str | None, *, worker: int | None = None
) -> Inspector | None:
    """Take the port of `--inspect`, as `open_metrics` does. Raises `SetupError`, `ExprotoError`."""
    if text is None:
        return None
    address = parse_address(text, "--inspect", "127.0.0.1:8080")
    try:
        from ..inspector import Inspector  # noqa: PLC0415 - aiohttp is an extra
    except ImportError as error:
        raise ExprotoError(f"--inspect needs: pip install 'exproto-app[web]' ({error})") from None
    address, shared = _own(address, worker)
    return Inspector(app, address, token=token, shared=shared)


@asynccontextmanager
async def inspected(inspector: Inspector | None, host: InspectedHost) -> AsyncIterator[list[str]]:
    """Serve the page, if there is one, for the length of a block; give the line that tells the user of it."""
    if inspector is None:
        yield []
        return
    await inspector.start(host)
    try:
        yield [f"inspector on {inspector.url}"]
    finally:
        await inspector.stop()
