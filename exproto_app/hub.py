"""The embedded hub, by the name that hosts and tests import it by; it is `core.hub`."""

from __future__ import annotations

from .core.hub import Login, Member, MemoryHub, Watch

__all__ = ["Login", "Member", "MemoryHub", "Watch"]
