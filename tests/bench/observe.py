"""What it costs to be looked at: the echo rate with metrics and without; what the MQTT door takes.

Run it as `python -m tests.bench observe`. Rounds with and without alternate, as in `gateway`.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack

from .figures import show
from .gateway import rounds
from .load import load_generator
from .servers import LOOPS, Server

__all__ = ["main"]

ROUNDS = {"asyncio": 9, "uvloop": 5}

BAR = 0.95
"""Of the echo rate without metrics."""


def metrics() -> None:
    """Echo lines with metrics and without."""
    with load_generator() as load:
        if load is None:
            print("observe skipped: it needs a C compiler (cc) for its load generator")
            return
        for loop in LOOPS:
            with ExitStack() as stack:
                seen = stack.enter_context(Server("line_metrics", loop))
                unseen = stack.enter_context(Server("line", loop))
                for window in (1, 16):
                    pairs = rounds(load, seen, unseen, window, ROUNDS[loop])
                    ours = statistics.median(our.messages for our, _ in pairs)
                    show(
                        f"observe.metrics.{window}_outstanding.{loop}",
                        f"{ours:.0f}",
                        "messages/s",
                        ratio=statistics.median(our.messages / other.messages for our, other in pairs),
                        bar=BAR if loop == "asyncio" else None,
                        note="adds={:.2f}us without={:.0f}".format(
                            statistics.median(our.microseconds - other.microseconds for our, other in pairs),
                            statistics.median(other.messages for _, other in pairs),
                        ),
                    )


def main() -> None:
    metrics()
