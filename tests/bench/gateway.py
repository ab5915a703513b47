"""The gateway's speed: 64-byte lines echoed over 100 TCP connections, beside asyncio protocols by hand.

Run it as `python -m tests.bench gateway`. Short rounds of ours and of the one by hand alternate, and a ratio
is the median of those of neighbours, so that a busy machine does little harm; the middle half of them lies
in the `spread`. `adds` is the CPU time that the framework takes for a message above the server by hand, `cpu`
the server's share of a core: near 100 % the load saturates it.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from typing import Protocol

import attrs

from .figures import show, spread
from .load import Round, load_generator
from .servers import LOOPS, Server

__all__ = ["ROUNDS", "SECONDS", "WARMUP", "main", "rounds", "tell"]

ROUNDS = {"asyncio": 25, "uvloop": 9}
"""The standard loop decides."""

SECONDS = 0.3
WARMUP = 0.1
"""Of a round."""

SATURATED = 0.9
"""Share of a core from which a server counts as the bottleneck; the rest is the machine's noise."""


@attrs.frozen
class Case:
    name: str
    kind: str
    window: int
    bar: float


CASES = (
    Case("line.1_outstanding", "line", 1, 0.9),
    Case("line.16_outstanding", "line", 16, 0.3),
    Case("raw.1_outstanding", "raw", 1, 0.9),
)


class Loading(Protocol):
    """What keeps servers busy: the C program, or another."""

    def run(self, server: Server, window: int, /) -> Round: ...


def rounds(
    load: Loading, ours: Server, by_hand: Server, window: int, count: int
) -> list[tuple[Round, Round]]:
    """Return pairs of rounds; who begins alternates too."""
    pairs: list[tuple[Round, Round]] = []
    for number in range(count):
        if number % 2:
            first = load.run(ours, window)
            pairs.append((first, load.run(by_hand, window)))
        else:
            first = load.run(by_hand, window)
            pairs.append((load.run(ours, window), first))
    return pairs


def tell(name: str, unit: str, bar: float | None, pairs: list[tuple[Round, Round]]) -> None:
    """Print what *pairs* of rounds, ours and by hand, come to."""
    ours, by_hand = zip(*pairs, strict=True)
    ratios = [our.messages / hand.messages for our, hand in pairs]
    adds = statistics.median(our.microseconds - hand.microseconds for our, hand in pairs)
    cpu = statistics.median(our.cpu for our in ours)
    hand_cpu = statistics.median(hand.cpu for hand in by_hand)
    words = [
        spread(ratios),
        f"adds={adds:.2f}us",
        f"cpu={cpu:.0%}",
        f"by_hand={statistics.median(hand.messages for hand in by_hand):.0f}",
        f"by_hand_cpu={hand_cpu:.0%}",
        f"load_cpu={statistics.median(our.load_cpu for our in ours):.0%}",
    ]
    if min(cpu, hand_cpu) < SATURATED:
        words.append("NOT-SATURATED")
    show(
        name,
        f"{statistics.median(our.messages for our in ours):.0f}",
        unit,
        ratio=statistics.median(ratios),
        bar=bar,
        note=" ".join(words),
    )


def main() -> None:
    with load_generator(seconds=SECONDS, warmup=WARMUP) as load:
        if load is None:
            print("gateway skipped: it needs a C compiler (cc) for its load generator")
            return
        for loop in LOOPS:
            with ExitStack() as stack:
                kinds = [kind for case in CASES for kind in (case.kind, f"{case.kind}_by_hand")]
                servers = {kind: stack.enter_context(Server(kind, (loop,))) for kind in dict.fromkeys(kinds)}
                for case in CASES:
                    ours, by_hand = servers[case.kind], servers[f"{case.kind}_by_hand"]
                    pairs = rounds(load, ours, by_hand, case.window, ROUNDS[loop])
                    bar = case.bar if loop == "asyncio" else None
                    tell(f"gateway.{case.name}.{loop}", "messages/s", bar, pairs)


if __name__ == "__main__":
    main()
