"""Tap: what happens on connections, for those who watch.

A watcher is a function `(tap, now, event)`: *tap* names the connection, *now* is the time on the runtime's
clock. `app.watch` attaches it to all connections, present and future, `channel.watch` to one. It gets an
`Opened` for each connection first, then events in the order in which they happened there. It must not block;
it may raise `Enough` to stop watching. A connection without a watcher pays nothing for this.

A password given to `register` is masked in all that watchers get, also in the bytes that brought it: until
the device is registered, events are held back to the end of the turn that they belong to, and half a frame
for a second. A secret in an earlier frame, or in another form, needs a mask of the user's.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import attrs

from .errors import CommandError
from .masking import Mask, hide_secrets, masking, password_forms
from .models import ClientInfo, ConnectionInfo, Message, Reason
from .runtime import Timer

__all__ = [
    "Burst",
    "Closed",
    "Delivered",
    "Dropped",
    "Enough",
    "Event",
    "Failed",
    "Frame",
    "Mask",
    "Opened",
    "Published",
    "Received",
    "Refused",
    "Registered",
    "Sent",
    "Subscribed",
    "Tap",
    "Unsubscribed",
    "Watcher",
    "masking",
]

log = logging.getLogger("exproto_app")

HELD: Final = 1_000
"""Events of one connection that may be held back."""

SECRETS: Final = 16
"""Passwords of one connection that are remembered, so that they can be masked."""


class Enough(Exception):  # noqa: N818 - like StopIteration, no error
    """Raised by a watcher that wants to see no more."""


@attrs.define
class Opened:
    """The connection begins. *late*: it was there before the watcher, who registered as *client*."""

    info: ConnectionInfo
    resumed: bool = False
    late: bool = False
    client: ClientInfo | None = None


@attrs.define
class Received:
    """Bytes as they came from the device; on a datagram socket, one datagram."""

    data: bytes


@attrs.define
class Frame:
    """A frame, and the name of the handler that takes it, None if none does."""

    frame: bytes
    handler: str | None


@attrs.define
class Sent:
    """Bytes on their way to the device, one `send` or reply."""

    data: bytes


@attrs.define
class Burst:
    """Several `Sent` that leave together."""

    chunks: list[bytes]


@attrs.define
class Published:
    """A message of the device, or of the app itself; the topic as the broker sees it."""

    message: Message


@attrs.define
class Delivered:
    """A message for the device, and the handler that takes it; *more* follow in the same delivery."""

    message: Message
    handler: str | None
    more: int = 0


@attrs.define
class Registered:
    """The device is a client of the broker now."""

    client: ClientInfo


@attrs.define
class Subscribed:
    """The device asks for the messages of a filter; the topic as the broker sees it."""

    topic: str
    qos: int


@attrs.define
class Unsubscribed:
    """The device takes a subscription back."""

    topic: str


def _text_of(event: Refused | Failed) -> str:
    try:
        return f"{type(event.error).__name__}: {event.error}"
    except Exception:  # noqa: BLE001 - a user's exception may not even have a text
        return type(event.error).__name__


@attrs.define
class Refused:
    """A verb failed: *what* is its name, *topic* its topic or clientid, if any, *text* the error's text."""

    what: str
    topic: str
    error: CommandError
    text: str = attrs.Factory(_text_of, takes_self=True)


@attrs.define
class Failed:
    """A handler raised, or a framing failed: *where* is its name, or "framing", *text* the error's text.

    The text of *error* itself may hold secrets; `tap.hide` masks it.
    """

    where: str
    error: BaseException
    text: str = attrs.Factory(_text_of, takes_self=True)


@attrs.define
class Dropped:
    """*count* of *what* ("bytes", "frames", "messages") were dropped, at a limit or at the end."""

    what: str
    count: int


@attrs.define
class Closed:
    """The device is gone; what `on_terminated` does follows."""

    reason: Reason
    detail: str


Event: TypeAlias = (
    Opened
    | Received
    | Frame
    | Sent
    | Published
    | Delivered
    | Registered
    | Subscribed
    | Unsubscribed
    | Refused
    | Failed
    | Dropped
    | Closed
)

Shown: TypeAlias = Event | Burst

Watcher: TypeAlias = "Callable[[Tap, float, Event], object]"
"""Gets the events of a connection, with the time in seconds on the runtime's clock."""


class Tap:
    """One connection as its watchers know it; *id* and *protocol* are empty for the app's own publishing.

    *time* returns the time, *masks* are applied to all bytes, *broken* gets a watcher that raised.
    """

    __slots__ = (
        "_broken",
        "_held",
        "_masks",
        "_secrets",
        "_time",
        "_timer",
        "_watchers",
        "frames",
        "id",
        "protocol",
    )

    def __init__(
        self,
        conn_id: str,
        protocol: str,
        *,
        time: Callable[[], float],
        masks: Sequence[Mask],
        broken: Callable[[Watcher], object],
    ) -> None:
        self.id = conn_id
        self.protocol = protocol
        self._time = time
        self._masks = masks
        self._broken = broken
        self._watchers: tuple[Watcher, ...] = ()
        self._secrets: deque[bytes] | None = None
        self._held: list[tuple[float, Shown]] = []
        self.frames = False
        self._timer: Timer | None = None

    def __repr__(self) -> str:
        return f"<Tap {self.id or 'app'} {self.protocol}>"

    @property
    def watchers(self) -> tuple[Watcher, ...]:
        """Those who watch."""
        return self._watchers

    @property
    def has_secrets(self) -> bool:
        """Whether there is a password to be masked."""
        return bool(self._secrets)

    def add(self, watcher: Watcher, opened: Opened | None) -> None:
        """Add *watcher*; *opened* describes a connection that exists already."""
        if watcher in self._watchers:
            return
        self._watchers = (*self._watchers, watcher)
        self._choose()
        if opened is not None:
            self._tell(watcher, self._time(), opened)

    def remove(self, watcher: Watcher) -> None:
        """Remove *watcher*."""
        self._watchers = tuple(other for other in self._watchers if other != watcher)
        self._choose()

    def _choose(self) -> None:
        self.frames = any(getattr(watcher, "frames", True) for watcher in self._watchers)

    def keep_secret(self, password: str | None, client: ClientInfo | None = None) -> None:
        """Mask *password* from now on, unless it isn't secret: the clientid or the username itself."""
        if not password or (client is not None and password in (client.clientid, client.username)):
            return
        forms = password_forms(password)
        if self._secrets is None:
            self._secrets = deque(maxlen=3 * SECRETS)
        self._secrets.extend(form for form in forms if form not in self._secrets)

    def mask_too(self, mask: Mask) -> None:
        """Apply *mask* too."""
        self._masks = (*self._masks, mask)

    def show(self, event: Shown, *, hold: bool = False) -> None:
        """Show *event*, or *hold* it back until `release`."""
        now = self._time()
        if hold and len(self._held) < HELD:
            self._held.append((now, event))
            return
        if self._held:
            self.release()
        if self._secrets or self._masks:
            event = self._masked(event)
        for watcher in self._watchers:
            self._tell(watcher, now, event)

    def release(self) -> None:
        """Show what was held back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._held:
            return
        held, self._held = self._held, []
        if self._secrets or self._masks:
            held = self._masked_together(held)
        for now, event in held:
            for watcher in self._watchers:
                self._tell(watcher, now, event)

    def release_later(self, call_later: Callable[..., Timer], seconds: float) -> None:
        """Show what was held back in *seconds*, unless that happens before."""
        if self._timer is None and self._held:
            self._timer = call_later(seconds, self.release)

    def hide(self, text: str) -> str:
        """Return *text* with what is secret in it masked."""
        if not self._secrets and not self._masks:
            return text
        text = hide_secrets(text, self._secrets or ())
        return self._hidden(text.encode(errors="backslashreplace")).decode(errors="replace")

    def _tell(self, watcher: Any, now: float, event: Shown) -> None:
        if type(event) is Burst and not getattr(watcher, "bursts", False):
            for chunk in event.chunks:
                self._tell(watcher, now, Sent(chunk))
            return
        try:
            watcher(self, now, event)
        except Exception as error:
            if not isinstance(error, Enough):
                log.exception("%s ! a watcher failed and is removed", self.id or "app")
            self.remove(watcher)
            self._broken(watcher)

    def _hidden(self, data: bytes) -> bytes:
        for secret in self._secrets or ():
            data = data.replace(secret, b"*" * len(secret))
        for mask in self._masks:
            data = mask(data)
        return data

    def _masked_together(self, held: list[tuple[float, Shown]]) -> list[tuple[float, Shown]]:
        """Mask what was held back; a secret may have come in several reads."""
        whole = self._hidden(b"".join(event.data for _, event in held if type(event) is Received))
        masked: list[tuple[float, Shown]] = []
        start = 0
        for now, event in held:
            if type(event) is Received:
                end = start + len(event.data)
                masked.append((now, Received(whole[start:end])))
                start = end
            else:
                masked.append((now, self._masked(event)))
        return masked

    def _masked(self, event: Shown) -> Shown:
        match event:
            case Received(data) | Sent(data):
                event = attrs.evolve(event, data=self._hidden(data))
            case Burst(chunks):
                event = Burst([self._hidden(chunk) for chunk in chunks])
            case Frame(frame):
                event = attrs.evolve(event, frame=self._hidden(frame))
            case Published(message) | Delivered(message):
                event = attrs.evolve(event, message=self._masked_message(message))
            case Refused() | Failed():
                event = attrs.evolve(event, text=self.hide(event.text))
            case Closed(_, detail):
                event = attrs.evolve(event, detail=self.hide(detail))
        return event

    def _masked_message(self, message: Message) -> Message:
        payload = self._hidden(message.payload)
        return message if payload == message.payload else attrs.evolve(message, payload=payload)
