"""The asyncio half that every host shares: tasks, threads, the clock, the watchdog."""

from __future__ import annotations

from .runner import Runner

__all__ = ["Runner"]
