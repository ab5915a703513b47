"""AdapterHub: the adapters as the engine's hub."""

from __future__ import annotations

from typing import Final

from ...commands import Outcome, Publish, Register, refused
from ...core import Channel, Context
from ...errors import UnavailableError
from .broker import AdapterMap
from .broker_side import RETAINS, raw_publish

__all__ = ["AdapterHub"]

RAW: Final = 10_000
"""Messages of the app itself that are on their way to one broker at a time; what is more waits."""


class AdapterHub:
    """The adapters as the engine's `Hub`; each link brings a `BrokerSide` of its own."""

    broker_side = None
    # Calls of one connection may overtake each other.
    ordered = False
    keeps_wills = False
    keeps_sessions = False
    many_clients = False
    has_properties = False
    roams = False

    def __init__(self, adapters: AdapterMap) -> None:
        self.adapters = adapters
        self._engine: Context | None = None

    @property
    def ready(self) -> bool:
        """Whether no adapter is known to be away; they are called when there is something to say."""
        return not any(broker.client.away for broker in self.adapters)

    def attach(self, context: Context) -> None:
        """Serve *context*, which is told when the app publishes too much; the clock is the broker's."""
        self._engine = context

    def publish(self, command: Publish) -> Outcome[None]:
        """Publish for the app itself."""
        broker, engine = self.adapters.any(), self._engine
        if broker is None or engine is None:
            return refused(UnavailableError("no broker has called yet, so nobody knows where its adapter is"))
        if command.retain:
            engine.once("retain", RETAINS)
        request, outcome, done = raw_publish(command, broker)

        def answered(status: int, answer: bytes) -> None:
            broker.raw -= 1
            if broker.raw == RAW // 2:
                engine.relieved()
            done(status, answer)

        broker.raw += 1
        if broker.raw >= RAW:
            engine.congested()
        broker.call("RawPublish", request, answered)
        return outcome

    def registered(self, channel: Channel, command: Register, older: Channel | None) -> None:
        """Do nothing: the broker has a session for each connection."""

    def move(self, older: Channel, heir: Channel) -> None:
        """Do nothing: it isn't asked to."""

    def gone(self, channel: Channel) -> None:
        """Do nothing: the broker's process is gone too."""
