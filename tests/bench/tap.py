"""What a tap costs: lines echoed over 100 connections, beside a gateway on which nobody looks.

Run it as `python -m tests.bench tap`. `none` has each connection watched once and let go again, `one` has one
connection of a hundred watched, by a watcher that does nothing; `all` are recorded into a file, or remembered
in case that something fails. Rounds alternate as in the gateway's. The ratio is that of the CPU times for a
message: beside others on a machine, rates differ by more than the bar.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack

from .figures import show, spread
from .gateway import SECONDS, WARMUP, rounds
from .load import load_generator
from .servers import LOOPS, Server

__all__ = ["main"]

ROUNDS = 25
KINDS: dict[str, tuple[str, dict[int, float]]] = {
    "none_watched": ("line_watched_none", {1: 0.98, 16: 0.98}),
    "one_watched": ("line_watched_one", {1: 0.9, 16: 0.9}),
    "all_recorded": ("line_recorded", {1: 0.7, 16: 0.4}),
    "all_remembered": ("line_incidents", {1: 0.95, 16: 0.85}),
}
"""What is served, and the bars by how many lines are outstanding."""


def main() -> None:
    with load_generator(seconds=SECONDS, warmup=WARMUP) as load:
        if load is None:
            print("tap skipped: it needs a C compiler (cc) for its load generator")
            return
        loop = LOOPS[0]
        with ExitStack() as stack:
            plain = stack.enter_context(Server("line", (loop,)))
            for name, (kind, bars) in KINDS.items():
                server = stack.enter_context(Server(kind, (loop,)))
                for window in (1, 16):
                    pairs = rounds(load, server, plain, window, ROUNDS)
                    ratios = [other.microseconds / ours.microseconds for ours, other in pairs]
                    unwatched = statistics.median(other.messages for _, other in pairs)
                    show(
                        f"tap.{name}.{window}_outstanding.{loop}",
                        f"{statistics.median(ours.messages for ours, _ in pairs):.0f}",
                        "messages/s",
                        ratio=statistics.median(ratios),
                        bar=bars[window],
                        note=f"{spread(ratios)} unwatched={unwatched:.0f}",
                    )


if __name__ == "__main__":
    main()
