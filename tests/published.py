"""The table of published frames that the tests print at their end."""

from __future__ import annotations

import attrs

__all__ = ["TABLE", "Row", "lines"]


@attrs.frozen
class Row:
    """How the values that are stated of the published frames of a *protocol* are told; the rest is raw."""

    protocol: str
    frames: int
    stated: int
    right: int
    wrong: int

    @property
    def raw(self) -> int:
        """How many are told as they came, or not."""
        return self.stated - self.right - self.wrong


TABLE: list[Row] = []
"""Filled by `test_published_frames.py`."""


def lines() -> list[str]:
    """Return the table as text."""
    head = f"{'protocol':<12}{'frames':>8}{'stated':>8}{'right':>8}{'raw':>8}{'wrong':>8}"
    return [head] + [
        f"{row.protocol:<12}{row.frames:>8}{row.stated:>8}{row.right:>8}{row.raw:>8}{row.wrong:>8}"
        for row in TABLE
    ]
