"""Tracing: what a connection shows its watchers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from .. import tap as events
from ..commands import Command, Publish, Subscribe, Unsubscribe
from ..errors import ClosedError, CommandError
from ..models import Message
from .naming import name_of, object_of
from .states import HANDLER, REGISTER, RUNNING

if TYPE_CHECKING:
    from ..models import ClientInfo
    from ..runtime import Runtime
    from ..tap import Tap, Watcher

__all__ = ["HOLD", "Traced", "Tracer"]

HOLD: Final = 1.0
"""Seconds that bytes of an unfinished frame are held back from watchers, so that no half password shows."""


class Traced(Protocol):
    """The connection that is watched."""

    client: ClientInfo | None
    waits: int


class Tracer:
    """One connection as its watchers see it; it has none while nobody looks.

    As long as the device isn't registered, events are held back to the end of the turn that they belong to:
    the turn may reveal a password.
    """

    __slots__ = ("_traced", "tap")

    def __init__(self, traced: Traced, tap: Tap) -> None:
        self._traced = traced
        self.tap = tap

    def add(self, watcher: Watcher, first: events.Opened | None) -> None:
        """Show *watcher* what happens, and *first* what it has missed."""
        self.tap.add(watcher, first)

    def remove(self, watcher: Watcher) -> bool:
        """Show *watcher* nothing more; return whether any is left."""
        self.tap.remove(watcher)
        return bool(self.tap.watchers)

    def show(self, event: events.Shown) -> None:
        """Show *event*, after the turn that it belongs to as long as that may reveal a password."""
        traced = self._traced
        in_turn = traced.waits & (RUNNING | HANDLER | REGISTER)
        self.tap.show(event, hold=bool(in_turn) and traced.client is None)

    def received(self, data: bytes) -> None:
        """Show bytes of the device."""
        self.tap.show(events.Received(data), hold=self._traced.client is None or self.tap.has_secrets)

    def sent(self, chunks: list[bytes]) -> None:
        """Show bytes on their way to the device."""
        self.show(events.Sent(chunks[0]) if len(chunks) == 1 else events.Burst(chunks[:]))

    def delivered(self, messages: Sequence[Message], routes: Any, mount: str) -> None:
        """Show messages for the device, and which handlers take them."""
        more = len(messages)
        for message in messages:
            more -= 1
            handler = routes.deliver(message.topic.removeprefix(mount))
            self.show(events.Delivered(message, None if handler is None else handler.name, more))

    def command(self, command: Command) -> None:
        """Show a command for the broker; a registration shows when it has succeeded."""
        match command:
            case Publish(topic, payload, qos, retain, properties):
                self.show(events.Published(Message(topic, payload, qos, retain, properties=properties)))
            case Subscribe(topic, qos):
                self.show(events.Subscribed(topic, qos))
            case Unsubscribe(topic):
                self.show(events.Unsubscribed(topic))

    def keep_secret(self, password: str) -> None:
        """Mask *password* from now on."""
        self.tap.keep_secret(password)

    def refused(self, command: object, error: CommandError | None) -> None:
        """Show that a verb has failed, unless the connection's end is the reason."""
        if error is not None and not isinstance(error, ClosedError):
            self.show(events.Refused(name_of(command), object_of(command), error))

    def dropped(self, what: str, count: int) -> None:
        """Show what is lost."""
        if count:
            self.show(events.Dropped(what, count))

    def release(self, runtime: Runtime, *, unfinished: bool) -> None:
        """Show what was held back, unless more of the turn, or of the *unfinished* frame, is to come."""
        traced = self._traced
        if traced.client is None and traced.waits & (HANDLER | REGISTER):
            return
        if unfinished and runtime.ticks and (traced.client is None or self.tap.has_secrets):
            self.tap.release_later(runtime.call_later, HOLD)
        else:
            self.tap.release()
