"""`exproto-app top`: what a running gateway does, in a terminal."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import click

from ..errors import ExprotoError
from .numbers import POSITIVE
from .observe import TOKEN, parse_address
from .secrets import take_into

__all__ = ["command"]

HERE: Final = "127.0.0.1:8080"
SORTS: Final = ("rate", "bytes", "queue", "since", "last")


@click.command()
@click.option(
    "--inspect",
    "inspectors",
    multiple=True,
    default=(HERE,),
    show_default=True,
    metavar="HOST:PORT",
    help="Where run --inspect or serve --inspect serves; repeatable: with --workers each has its own.",
)
@click.option(
    "--metrics",
    "metrics",
    multiple=True,
    metavar="HOST:PORT",
    help="Where --metrics serves, to see the slowest handlers; repeatable.",
)
@click.option("--inspect-token", "token", envvar=TOKEN, metavar="TOKEN", help=f"Better set {TOKEN}.")
@click.option(
    "--inspect-token-file",
    metavar="FILE",
    is_eager=True,  # the option before looks for it in the environment
    expose_value=False,
    callback=take_into(TOKEN),
    help="The same, in the first line of FILE.",
)
@click.option(
    "--sort", type=click.Choice(SORTS), default="rate", show_default=True, help="Which connections."
)
@click.option("--search", default="", metavar="WORDS", help="Only connections that have these words.")
@click.option("--rows", type=click.IntRange(1, 500), metavar="N", help="Connections; default: what fits.")
@click.option("--every", type=POSITIVE, default=2.0, show_default=True, metavar="SECONDS", help="Look again.")
@click.option("--once", is_flag=True, help="Print what happens in that time, and end.")
def command(
    *,
    inspectors: tuple[str, ...],
    metrics: tuple[str, ...],
    token: str | None,
    sort: str,
    search: str,
    rows: int | None,
    every: float,
    once: bool,
) -> None:
    """Show what a running gateway does: connections, rates, queues, what goes wrong, the slowest handlers.

    It asks the gateway's inspector, so the gateway runs with --inspect.
    """
    try:
        import prometheus_client.parser  # noqa: F401, PLC0415 - an extra
        from rich.console import Console  # noqa: PLC0415
        from rich.live import Live  # noqa: PLC0415
    except ImportError:
        raise ExprotoError("top needs: pip install 'exproto-app[top]'") from None
    from ..top import Inspected, Look, Measured, Rates, Screen, SourceError  # noqa: PLC0415 - they need it

    inspected = [Inspected(parse_address(one, "--inspect", HERE), token) for one in inspectors]
    measured = [Measured(parse_address(one, "--metrics", "127.0.0.1:9090")) for one in metrics]
    screen = Screen(Console(), rows=rows)

    def look() -> Look:
        return Look.take(
            time.monotonic(), inspected, measured, search=search, sort=sort, limit=min(screen.rows, 500)
        )

    last = look()
    rates = Rates({}, [])
    if once or not screen.console.is_terminal:
        time.sleep(every)
        now = look()
        screen.console.print(screen.draw(now, Rates.between(last, now), sort=sort))
        return
    note = ""
    with (
        suppress(KeyboardInterrupt),
        _keys() as keys,
        Live(console=screen.console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            shown = screen.draw(last, rates, sort=sort, keys=True, note=note)
            live.update(shown, refresh=True)
            key = keys.wait(every)
            if key == "q":
                return
            sort = next((one for one in SORTS if key == one[0]), sort)
            try:
                now = look()
            except SourceError as error:
                note = str(error)
                continue
            rates, last, note = Rates.between(last, now), now, ""


class _Keys:
    """Single keys of a terminal."""

    def wait(self, seconds: float) -> str:
        """Return the key that is pressed within *seconds*, else an empty text."""
        try:
            ready, _, _ = select.select([sys.stdin], [], [], seconds)
        except (OSError, ValueError):  # there is no such file
            time.sleep(seconds)
            return ""
        return os.read(sys.stdin.fileno(), 1).decode(errors="replace") or "q" if ready else ""


@contextmanager
def _keys() -> Iterator[_Keys]:
    """Have the terminal give keys as they are pressed, and not show them, for the length of a block."""
    try:
        import termios  # noqa: PLC0415 - not on Windows
        import tty  # noqa: PLC0415
    except ImportError:
        yield _Keys()
        return
    try:
        before: Any = termios.tcgetattr(sys.stdin)
    except (OSError, ValueError, termios.error):  # it is no terminal
        yield _Keys()
        return
    try:
        tty.setcbreak(sys.stdin)
        yield _Keys()
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
