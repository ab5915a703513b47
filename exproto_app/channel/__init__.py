"""One connection: its turns, its two lanes, and what it asks of the host on either side."""

from __future__ import annotations

from .channel import Channel
from .sides import Hub, Intake, Link, Served, Shared

__all__ = ["Channel", "Hub", "Intake", "Link", "Served", "Shared"]
