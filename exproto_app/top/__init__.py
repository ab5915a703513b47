"""`exproto-app top`: what a running gateway does, in a terminal.

`source` asks the inspectors and the metrics of its processes, `rates` makes of two answers what happens in
a second, `screen` draws that.
"""

from __future__ import annotations

from .rates import Look, Rates
from .screen import Screen
from .source import Inspected, Measured, SourceError

__all__ = ["Inspected", "Look", "Measured", "Rates", "Screen", "SourceError"]
