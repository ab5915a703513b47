"""The kinds of event loops that the gateway runs on, for tests that are run in each."""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
from collections.abc import Awaitable, Callable
from typing import TypeAlias

__all__ = ["LOOPS", "PATIENCE", "Run", "run_in"]

LOOPS = ("asyncio", "uvloop") if importlib.util.find_spec("uvloop") else ("asyncio",)
PATIENCE = 60

Run: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]
"""Runs a test in a loop of its own."""


def run_in(kind: str, test: Callable[[], Awaitable[None]]) -> None:
    """Run *test* in a loop of that *kind*, for at most `PATIENCE` seconds."""
    loop: asyncio.AbstractEventLoop = importlib.import_module(kind).new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(test(), PATIENCE))
    finally:
        loop.close()
        gc.collect()  # what Python 3.10 complains of is this test's, not a later one's
