"""What a callback module of 0.1 imports; the loop itself is `hosts.emqx42.loop`."""

from __future__ import annotations

from ...hosts.emqx42.loop import Driver, main

__all__ = ["Driver", "main"]
