"""Numbers on the command line."""

from __future__ import annotations

import math
from typing import Any, Final

import click

__all__ = ["POSITIVE"]


class _Positive(click.FloatRange):
    """A number above 0, which neither `nan` nor `inf` is: no clock could wait for those."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number; give seconds such as 2.5", param, ctx)
        return number


POSITIVE: Final = _Positive(0, min_open=True)
