"""What commands that serve have in common: the loop, the signals, the counters in the log."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from types import ModuleType
from typing import Any, Final

import click

from ..errors import ExprotoError
from .numbers import POSITIVE

__all__ = [
    "find_uvloop",
    "loop_option",
    "on_drain",
    "on_signals",
    "report",
    "run_loop",
    "stats_option",
]

log = logging.getLogger("exproto_app")

COLLECT: Final = (1_000, 4, 2_500)
"""Objects, and collections, until the next generation is collected.

The middle one takes what the first has left of so many collections, in one go: thousands of objects are some
milliseconds. A dead transport of asyncio is a cycle of seven.
"""

stats_option: Callable[[Any], Any] = click.option(
    "--stats", type=POSITIVE, metavar="SECONDS", help="Log the counters."
)
loop_option: Callable[[Any], Any] = click.option(
    "--loop",
    type=click.Choice(["auto", "asyncio", "uvloop"]),
    default="auto",
    show_default=True,
    help="The event loop; auto uses uvloop if it is installed.",
)


def run_loop(main: Coroutine[Any, Any, None], uvloop: ModuleType | None) -> None:
    """Run *main* in a loop of its own."""
    # What was imported stays: the collector needn't look at it time and again while devices wait. Nor at all
    # connections whenever a few hundred come: they leave no cycles.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT)
    if sys.version_info >= (3, 11):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop if uvloop else None) as runner:
            runner.run(main)
    elif uvloop is None:
        asyncio.run(main)
    else:
        uvloop.install()
        asyncio.run(main)


def find_uvloop(choice: str) -> ModuleType | None:
    """Return uvloop if *choice* asks for it and it is there. Raises `ExprotoError` if it has to be."""
    if choice == "asyncio":
        return None
    try:
        return importlib.import_module("uvloop")
    except ImportError:
        if choice == "auto":
            return None
        raise ExprotoError("--loop uvloop needs: pip install 'exproto-app[uvloop]'") from None


def on_signals(
    loop: asyncio.AbstractEventLoop,
    stop: asyncio.Event,
    renew: Callable[[], object] | None = None,
    drain: Callable[[], object] | None = None,
) -> None:
    """Set *stop* at Ctrl-C or SIGTERM; the second time, end at once. SIGUSR1 asks to *drain*.

    SIGHUP never just kills: where this runs in a terminal, that has gone, and *stop* is set; else it asks to
    *renew* what can be renewed, and sets *stop* where there is nothing. `nohup` has it ignored.
    """

    def asked() -> None:
        if stop.is_set():
            os._exit(1)  # asked twice: at once
        stop.set()

    for name in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows has Ctrl-C as an exception only
            loop.add_signal_handler(name, asked)
    on_drain(loop, drain)
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    if hang_up is None or signal.getsignal(hang_up) is signal.SIG_IGN:
        return
    in_terminal = sys.stdin is not None and sys.stdin.isatty()
    loop.add_signal_handler(hang_up, stop.set if renew is None or in_terminal else renew)


def on_drain(loop: asyncio.AbstractEventLoop, drain: Callable[[], object] | None) -> None:
    """Have SIGUSR1 ask to *drain*, where that can be."""
    number = getattr(signal, "SIGUSR1", None)  # Windows has none
    if number is not None and drain is not None:
        loop.add_signal_handler(number, drain)


async def report(stats: Mapping[str, int], seconds: float) -> None:
    """Log what was counted, with what has been added since the last time."""
    before: dict[str, int] = {}
    while True:
        await asyncio.sleep(seconds)
        now = dict(stats)
        words = [
            f"{name}={value}(+{value - before.get(name, 0)})" for name, value in sorted(now.items()) if value
        ]
        log.info("stats = %s", " ".join(words) or "nothing yet")
        before = now
