"""Sessions that the hub keeps for devices: subscriptions, and messages that wait for an absent one.

A device has one if it registers with `session_expiry=`. It outlives the connection for that long, and the
next connection of the clientid continues it, whether that comes behind the end of the older one or takes its
place::

    attached ── the connection has gone ──> absent ── time is up, or too many are absent ──> ended
        ^                                     │
        ╰──────────── registers anew ─────────╯

Messages of QoS 1 and 2 are kept until their handler has ended, so one that a connection took with it comes
again. Messages of QoS 0 are for who is there.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs

from ..commands import Outcome, refused
from ..errors import UnavailableError
from ..models import ClientInfo, Message

if TYPE_CHECKING:
    from ..runtime import Timer
    from .channel import Channel
    from .seams import Context

__all__ = ["DeviceSession", "SessionBounds", "Sessions"]

log = logging.getLogger("exproto_app")

ROUNDING: Final = 1e-6
"""Seconds that sums of times may be off."""

OVERHEAD: Final = 100
"""Bytes that a message counts beside its topic and payload."""


@attrs.frozen(kw_only=True)
class SessionBounds:
    """What sessions may hold.

    Counts: *messages* of one session, *absent* sessions. Bytes: *queue* of one session, *total* of all.
    """

    messages: int = 1_000
    absent: int = 10_000
    queue: int = 1_048_576
    total: int = 67_108_864


@attrs.frozen(eq=False)
class _Kept:
    """A message that isn't handled yet."""

    message: Message
    size: int
    deadline: float | None


class DeviceSession:
    """The session of one device, a member of the hub like any other."""

    __slots__ = (
        "_dropped",
        "_kept",
        "_next",
        "_ready",
        "_room",
        "_sessions",
        "channel",
        "client",
        "expiry",
        "left",
        "mount",
        "size",
    )

    def __init__(self, sessions: Sessions, client: ClientInfo) -> None:
        self.client = client
        self.mount = client.mountpoint
        self.expiry = 0
        self.channel: Channel | None = None
        self.size = 0
        self.left = 0.0  # when its connection ended
        self._sessions = sessions
        self._ready = False
        self._kept: dict[int, _Kept] = {}  # in the order in which they came
        self._next = 0
        self._room: list[Outcome[None]] | None = None
        self._dropped = 0

    def __str__(self) -> str:
        return f"session:{self.client.clientid!r}" if self.channel is None else str(self.channel)

    def delivered(self, messages: Sequence[Message]) -> Outcome[None] | None:
        """Take messages; an outcome succeeds when there is room again, or fails if they are lost."""
        outcome = None
        for message in messages:
            outcome = self._take(message) or outcome
        return outcome

    def _take(self, message: Message) -> Outcome[None] | None:
        channel, sessions = self.channel, self._sessions
        if not message.qos:
            if channel is not None:
                channel.delivered((message,))
            return None
        size = len(message.topic) + len(message.payload) + message.properties.size + OVERHEAD
        full = self._full(size)
        if full and self.drop_expired():
            full = self._full(size)
        if full:
            self._drop(1, "queue_full", full)
            return refused(UnavailableError(f"{self.client.clientid!r} can't take it: {full}"))
        deadline = None if message.expiry is None else sessions.now + message.expiry
        number = self._next = self._next + 1
        kept = self._kept[number] = _Kept(message, size, deadline)
        self._hold(size)
        if channel is None:
            return None
        if self._ready:
            self._hand_over(channel, number, kept)
        return self._wait_for_room(channel)

    def _full(self, size: int) -> str:
        bounds = self._sessions.bounds
        if len(self._kept) >= bounds.messages or self.size + size > bounds.queue:
            words = f"{len(self._kept)} messages ({self.size} bytes) wait for it"
            return f"{words}, limits are {bounds.messages} and {bounds.queue}"
        if self._sessions.size + size > bounds.total:
            return f"{self._sessions.size} bytes wait for all devices, limit is {bounds.total}"
        return ""

    def _wait_for_room(self, channel: Channel) -> Outcome[None] | None:
        """Return what a publisher may wait for while much waits here."""
        if self._roomy:
            return None
        outcome: Outcome[None] = Outcome(channel.engine.runtime.waiter)
        if self._room is None:
            self._room = []
        self._room.append(outcome)
        return outcome

    def attach(self, channel: Channel, expiry: int) -> None:
        """Continue with *channel*; messages for it wait until `begin`."""
        self.channel, self.expiry = channel, expiry
        self._ready = False

    def begin(self, channel: Channel) -> None:
        """Hand over what isn't handled yet: whoever was at it before has ended."""
        if self.channel is not channel or self._ready:
            return
        self.drop_expired()
        self._ready = True
        for number, kept in tuple(self._kept.items()):
            self._hand_over(channel, number, kept)

    def detach(self) -> None:
        """Go on without a connection."""
        self.channel = None
        self._ready = False
        self._tell_room()

    def drop_expired(self) -> bool:
        """Drop what has waited too long; return whether there was any."""
        now = self._sessions.now
        expired = [
            number
            for number, kept in self._kept.items()
            if kept.deadline is not None and kept.deadline <= now
        ]
        if not expired or self._ready:  # the connection that has them sees to it
            return False
        for number in expired:
            self._hold(-self._kept.pop(number).size)
        self._sessions.count("expired", len(expired))
        log.info("%s ! %d messages dropped: they expired while they waited", self, len(expired))
        return True

    def end(self, why: str) -> None:
        """Give everything back."""
        number = len(self._kept)
        if number:
            self._drop(number, "session_ended", why)
        self._kept.clear()
        self._hold(-self.size)
        self.channel = None
        self._tell_room()

    def _hand_over(self, channel: Channel, number: int, kept: _Kept) -> None:
        message = kept.message
        if kept.deadline is not None:
            left = max(1, math.ceil(kept.deadline - self._sessions.now))
            message = message if left == message.expiry else attrs.evolve(message, expiry=left)
        channel.delivered((message,), partial(self._handled, number))

    def _handled(self, number: int) -> None:
        """Forget a message: its handler has ended."""
        kept = self._kept.pop(number, None)
        if kept is not None:
            self._hold(-kept.size)
            self._tell_room()

    def _hold(self, size: int) -> None:
        self.size += size
        self._sessions.size += size

    @property
    def _roomy(self) -> bool:
        bounds = self._sessions.bounds
        return 2 * len(self._kept) <= bounds.messages and 2 * self.size <= bounds.queue

    def _tell_room(self) -> None:
        if self._room and (self.channel is None or self._roomy):
            room, self._room = self._room, None
            for outcome in room:
                outcome.settle(None)

    def _drop(self, number: int, why: str, words: str) -> None:
        self._sessions.count(why, number)
        before, self._dropped = self._dropped, self._dropped + number
        if before.bit_length() != self._dropped.bit_length():  # a flood of messages isn't one of log lines
            log.warning("%s ! %d messages dropped: %s", self, self._dropped, words)


class Sessions:
    """All sessions of devices, by clientid; *ended* is told of each that is over."""

    def __init__(self, bounds: SessionBounds, ended: Callable[[DeviceSession], object]) -> None:
        self.bounds = bounds
        self.by_id: dict[str, DeviceSession] = {}
        self.size = 0
        self._ended = ended
        self._of: dict[Channel, DeviceSession] = {}
        self._absent: OrderedDict[str, Timer] = OrderedDict()
        self._context: Context  # of the first that entered

    @property
    def now(self) -> float:
        """The time in seconds, on a clock that never goes back."""
        return self._context.runtime.time()

    def of(self, channel: Channel) -> DeviceSession | None:
        """Return the session that *channel* is attached to."""
        return self._of.get(channel)

    def enter(self, channel: Channel, client: ClientInfo, expiry: int) -> DeviceSession | None:
        """Attach *channel* to the session of *client*, which is continued, or made if *expiry* isn't 0.

        A device that wants none any more, or is mounted elsewhere, ends the one that it has left.
        """
        self._context = channel.engine
        session = self.by_id.get(client.clientid)
        if session is not None:
            unwanted = session.channel is None and not expiry
            if unwanted or session.mount != client.mountpoint:
                self.end(session, "its device no longer wants it")
                session = None
        if session is None:
            if not expiry:
                return None
            session = self.by_id[client.clientid] = DeviceSession(self, client)
        timer = self._absent.pop(client.clientid, None)
        if timer is not None:
            timer.cancel()
        older = session.channel
        session.client = client
        self._of[channel] = session
        session.attach(channel, expiry)
        if older is None:
            session.begin(channel)
        else:
            self._of.pop(older, None)
            older.when_ended(partial(session.begin, channel))
        return session

    def move(self, older: Channel, heir: Channel) -> None:
        """Have *heir* be attached to the session of *older*, whose messages it has or gets."""
        session = self._of.pop(older, None)
        if session is not None:
            self._of[heir] = session
            session.channel = heir

    def leave(self, channel: Any) -> DeviceSession | None:
        """Detach *channel*, which has gone; return its session if it had one that is kept."""
        session = self._of.pop(channel, None)
        if session is None:
            return None
        if not session.expiry:
            self.end(session, "its device has gone")
            return None
        session.detach()
        clientid = session.client.clientid
        session.left = channel.engine.runtime.time()
        timer = channel.engine.runtime.call_later(session.expiry, self._expire, session)
        self._absent[clientid] = timer
        if len(self._absent) > self.bounds.absent:
            oldest = next(iter(self._absent))
            self.end(
                self.by_id[oldest], f"there are more than {self.bounds.absent} sessions of absent devices"
            )
        return session if clientid in self._absent else None

    def end(self, session: DeviceSession, why: str) -> None:
        """Forget *session*."""
        clientid = session.client.clientid
        timer = self._absent.pop(clientid, None)
        if timer is not None:
            timer.cancel()
        if self.by_id.get(clientid) is session:
            del self.by_id[clientid]
        if session.channel is not None:
            self._of.pop(session.channel, None)
        session.end(why)
        self._ended(session)

    def count(self, why: str, number: int) -> None:
        """Count messages that are dropped."""
        self._context.count("deliveries_dropped", number)
        self._context.count(f"deliveries_dropped.{why}", number)

    def _expire(self, session: DeviceSession) -> None:
        if session.channel is not None or self.by_id.get(session.client.clientid) is not session:
            return  # a timer that fires although it was cancelled
        if self.now - session.left >= session.expiry - ROUNDING:
            self.end(session, f"its device was away for {session.expiry} s")
