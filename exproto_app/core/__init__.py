"""The sans-IO core: events of devices and brokers in, calls of handlers, bytes and commands out.

A driver has the `Engine` make a `Channel` for each connection (`Engine.connected`) and feeds it: `received`,
`delivered`, `unwritable`, `drained`, `terminated`; where several protocols share a listener, it is a
`Sniffer` first. The channel runs the handlers, one turn after another, and drains into the driver's `Link`
(the device's side) and into a `BrokerSide`, the link's own or that of the `Hub`. What it can't do itself,
such as running a coroutine or reading the clock, it asks of the `Runtime`. The module `states` explains how a
connection works.
"""

from __future__ import annotations

from .channel import Channel, Hub
from .engine import Engine, Observer
from .seams import BrokerSide, CompiledRouter, Context, Intake, Link
from .sniffing import Rules, Sniffer
from .states import State

__all__ = [
    "BrokerSide",
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
