"""The hostile peers of `tests.bench.hostile`, and where their target listens.

A new attacker is one more function in one of the tables, in `CALLERS` for what brokers' callers reach: it
gets a `Target`, attacks until it is killed, and expects nothing of the answers.
"""

from __future__ import annotations

from typing import Final

from .base import Attacker, Target
from .callers import CALLERS
from .devices import DEVICES
from .http import HTTP
from .lines import LINES
from .mqtt import MQTT

__all__ = ["ATTACKERS", "SERVE_ATTACKERS", "Attacker", "Target"]

ATTACKERS: Final[dict[str, Attacker]] = {**DEVICES, **HTTP, **MQTT, **LINES}
"""Those of the gateway."""

SERVE_ATTACKERS: Final = CALLERS
"""Those of the service that brokers call."""
