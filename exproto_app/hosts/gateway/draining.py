"""Draining: a gateway that lets nobody in any more, and its devices go one after another.

They connect again at once, elsewhere: all at the same time would be a storm for whoever takes them.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .gateway import Gateway

__all__ = ["RATE", "drain"]

log = logging.getLogger("exproto_app")

RATE: Final = 100.0
"""Connections that are ended in a second, unless somebody says otherwise."""

STEP: Final = 0.1
"""Seconds from one few to the next."""


async def drain(gateway: Gateway, rate: float = RATE) -> None:
    """Let nobody in any more and end *rate* connections a second, the oldest first; return when none is left.

    Each ends as at a stop: what it has sent is handled, and answered.
    """
    engine = gateway.runner.engine
    log.info("gateway = draining: %d connections, %g a second", gateway.open, rate)
    gateway.close_doors()
    loop = asyncio.get_running_loop()
    due = loop.time()
    while gateway.open:
        lines = (one for one in engine.connections() if one.line is None and one.closing is None)
        waiting = sorted(lines, key=lambda one: one.since)
        for one in waiting:
            if due > loop.time():
                break
            one.end("shutdown", "the gateway drains", drain=True)
            due += 1 / rate
        await asyncio.sleep(STEP)
    log.info("gateway = drained")
