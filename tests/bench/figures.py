"""How benchmarks tell what they found: one line a figure, made for grep."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

__all__ = ["BELOW", "show", "spread"]

BELOW: list[str] = []
"""The names of the figures that missed their bar."""


def show(
    name: str,
    value: str,
    unit: str,
    *,
    ratio: float | None = None,
    bar: float | None = None,
    good: bool | None = None,
    note: str = "",
) -> None:
    """Print one figure. *good* None: it is judged by *ratio*, which has to be *bar* at least."""
    words = [name, value, unit]
    if ratio is not None:
        words.append(f"ratio={ratio:.2f}")
    words.append("bar=none" if bar is None else f"bar={bar:g}")
    if bar is not None:
        reached = good if good is not None else ratio is not None and ratio >= bar
        words.append("ok" if reached else "BELOW")
        if not reached:
            BELOW.append(name)
    if note:
        words.append(note)
    print(*words, flush=True)


def spread(ratios: Sequence[float]) -> str:
    """Return between what the middle half of *ratios* lies."""
    low, _, high = statistics.quantiles(ratios, n=4)
    return f"spread={low:.2f}..{high:.2f}"
