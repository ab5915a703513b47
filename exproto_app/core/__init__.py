"""The sans-IO core: events of devices and brokers in, calls of handlers, bytes and commands out.

A driver has the `Engine` make a `Channel` for each connection (`Engine.connected`) and feeds it: `received`,
`delivered`, `unwritable`, `drained`, `terminated`; where several protocols share a listener, it is a
`Sniffer` first. The channel runs the handlers, one turn after another, and drains into the driver's `Link`
(the device's side) and `Hub` (the broker's side). What it can't do itself, running a coroutine or telling
the time, it asks of the `Runtime`. The module `states` tells how a connection works.
"""

from __future__ import annotations

from .channel import Channel, Hub
from .engine import Engine, Observer
from .seams import CompiledRouter, Context, Intake, Link
from .sniffing import Rules, Sniffer
from .states import State

__all__ = [
    "Channel",
    "CompiledRouter",
    "Context",
    "Engine",
    "Hub",
    "Intake",
    "Link",
    "Observer",
    "Rules",
    "Sniffer",
    "State",
]
