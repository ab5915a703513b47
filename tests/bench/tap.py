"""What a tap costs: lines echoed over 100 connections, beside a gateway on which nobody looks.

Run it as `python -m tests.bench tap`. `none` has each connection watched once and let go again, `one` has one
connection of a hundred watched, by a watcher that does nothing; `all` are recorded into a file. Rounds
alternate as in the gateway's. The ratio is that of the CPU times for a message: beside others on a machine,
rates differ by more than the bar.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack

from .figures import show
from .gateway import rounds
from .load import load_generator
from .servers import LOOPS, Server

__all__ = ["main"]

ROUNDS = 15
KINDS: dict[str, tuple[str, float | None]] = {
    "none_watched": ("line_watched_none", 0.98),
    "one_watched": ("line_watched_one", 0.9),
    "all_recorded": ("line_recorded", None),
}


def main() -> None:
    with load_generator(seconds=0.5) as load:
        if load is None:
            print("tap skipped: it needs a C compiler (cc) for its load generator")
            return
        loop = LOOPS[0]
        with ExitStack() as stack:
            plain = stack.enter_context(Server("line", (loop,)))
            for name, (kind, bar) in KINDS.items():
                server = stack.enter_context(Server(kind, (loop,)))
                for window in (1, 16):
                    pairs = rounds(load, server, plain, window, ROUNDS)
                    show(
                        f"tap.{name}.{window}_outstanding.{loop}",
                        f"{statistics.median(ours.messages for ours, _ in pairs):.0f}",
                        "messages/s",
                        ratio=statistics.median(
                            other.microseconds / ours.microseconds for ours, other in pairs
                        ),
                        bar=bar,
                        note=f"unwatched={statistics.median(other.messages for _, other in pairs):.0f}",
                    )


if __name__ == "__main__":
    main()
