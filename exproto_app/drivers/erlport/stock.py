"""What a callback module of 0.1 for the broker's own loop imports; it is `hosts.emqx42.stock`."""

from __future__ import annotations

from ...hosts.emqx42.stock import Driver

__all__ = ["Driver"]
