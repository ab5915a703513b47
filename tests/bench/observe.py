"""What it costs to be looked at: the echo rate with metrics and without.

Run it as `python -m tests.bench observe`. Rounds with and without alternate, as in `gateway`.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack

from .figures import show, spread
from .gateway import SECONDS, WARMUP, rounds
from .load import Round, load_generator
from .servers import LOOPS, Server

__all__ = ["main"]

ROUNDS = {"asyncio": 25, "uvloop": 9}

BAR = 0.95
"""Of the echo rate without metrics."""


def metrics() -> None:
    """Echo lines with metrics and without."""
    with load_generator(seconds=SECONDS, warmup=WARMUP) as load:
        if load is None:
            print("observe skipped: it needs a C compiler (cc) for its load generator")
            return
        for loop in LOOPS:
            with ExitStack() as stack:
                seen = stack.enter_context(Server("line_metrics", (loop,)))
                unseen = stack.enter_context(Server("line", (loop,)))
                for window in (1, 16):
                    pairs = rounds(load, seen, unseen, window, ROUNDS[loop])
                    tell(f"observe.metrics.{window}_outstanding.{loop}", pairs, loop, window)


def tell(name: str, pairs: list[tuple[Round, Round]], loop: str, window: int) -> None:
    """Show one figure. A handler's clock costs the same whatever it does, so idle handlers have no bar."""
    adds = statistics.median(with_.microseconds - without.microseconds for with_, without in pairs)
    rate = statistics.median(without.messages for _, without in pairs)
    ratios = [with_.messages / without.messages for with_, without in pairs]
    show(
        name,
        f"{statistics.median(with_.messages for with_, _ in pairs):.0f}",
        "messages/s",
        ratio=statistics.median(ratios),
        bar=BAR if loop == "asyncio" and window == 1 else None,
        note=f"{spread(ratios)} adds={adds:.2f}us without={rate:.0f}",
    )


def main() -> None:
    metrics()
