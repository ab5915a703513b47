"""What `exproto-app doctor` looks at.

A check is a function of the `Setup` that yields `Finding`s; `CHECKS` are all of them, in their order. A new
one goes into the module of what it is about, and into that list.
"""

from collections.abc import Callable, Iterator
from typing import Final

from .app import extras, python, target
from .broker import broker
from .dials import dials
from .driver import driver
from .emqx import emqx
from .finding import Finding
from .ports import ports
from .setup import EmqxGateway, Setup, Uplink

__all__ = ["CHECKS", "EmqxGateway", "Finding", "Setup", "Uplink"]

CHECKS: Final[tuple[Callable[[Setup], Iterator[Finding]], ...]] = (
    python,
    extras,
    target,
    ports,
    dials,
    broker,
    emqx,
    driver,
)
