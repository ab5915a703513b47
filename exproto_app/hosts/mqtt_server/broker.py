"""What all MQTT clients share, sans-IO: their sessions, who takes over from whom, wills, bounds, counters."""

from __future__ import annotations

import logging
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from ...commands import Outcome, Publish, Waiter
from ...core.takeovers import OFTEN, WINDOW, Takeovers
from ...errors import UnavailableError
from ...hub import Member, MemoryHub
from ...models import ClientInfo, Message
from .bounds import Bounds, Budget
from .codec import publish_head
from .late import Room
from .packets import V5, Connect, Will
from .properties import SESSION_EXPIRY, WILL_DELAY, for_message, of_message
from .reasons import MqttError, Reason
from .session import Session

if TYPE_CHECKING:
    from .connection import ClientConnection

__all__ = ["MqttBroker"]

log = logging.getLogger("exproto_app")

FEW: Final = 16
"""Publishers that go on at a time."""


class MqttBroker:
    """The MQTT side of *hub*.

    *waiter* makes what publishers wait with, *count* counts what happens; *devices* are those connected, by
    clientid. *soon* has `settle_some` called, as long as that says that there is more.
    """

    def __init__(
        self,
        hub: MemoryHub,
        bounds: Bounds,
        *,
        waiter: Callable[[], Waiter],
        count: Callable[[str, int], object],
        devices: Mapping[str, Member],
        soon: Callable[[], object] | None = None,
    ) -> None:
        self.hub = hub
        self.bounds = bounds
        self.waiter = waiter
        self.count = count
        self.devices = devices
        self.budget = Budget(self.bounds.total, self.bounds.clients)
        self.late = Room(self.bounds.late)
        self.sessions: dict[str, Session] = {}
        hub.guests = self.sessions
        self.absent: OrderedDict[str, float] = OrderedDict()  # when each absent session ends, by clientid
        self.now = 0.0
        self._wills: dict[str, tuple[float, Session, Will]] = {}
        self._takeovers = Takeovers()
        self._last: tuple[Message | None, int] = (None, 0)
        self._packet = b""
        self._sent = 0
        self._soon = soon
        self._settling: deque[tuple[Outcome[None], UnavailableError | None]] = deque()

    # --- publishers that wait

    def settle(self, outcomes: Iterable[Outcome[None]], error: UnavailableError | None = None) -> None:
        """Have publishers go on, in order: many of them in slices, for devices are answered then."""
        waiting = bool(self._settling)
        self._settling.extend((outcome, error) for outcome in outcomes)
        if waiting:
            return
        if self._soon is None or len(self._settling) <= FEW:
            self.settle_some(lambda: False)
        else:
            self._soon()

    def settle_some(self, overdue: Callable[[], bool]) -> bool:
        """Have some go on, until it is *overdue*; return whether there are more."""
        settling = self._settling
        while settling and not overdue():
            for _ in range(min(FEW, len(settling))):
                outcome, error = settling.popleft()
                if error is None:
                    outcome.settle(None)
                else:
                    outcome.fail(error)
        return bool(settling)

    # --- logins

    def check_owner(self, client: ClientInfo) -> None:
        """See that a name that somebody has is its user's. Raises `MqttError`."""
        owner = self.hub.owner(client, self.devices)
        if owner:
            raise MqttError(f"the clientid belongs to the user {owner!r}", Reason.NOT_AUTHORIZED)

    # --- sessions

    def attach(self, client: ClientInfo, connect: Connect) -> tuple[Session, bool]:
        """Return the session of *client*, and whether it was there before. Raises `MqttError`.

        An older connection of the clientid ends: there is one of each (MQTT 5, 3.1.4).
        """
        clientid = client.clientid
        before = self.sessions.get(clientid)
        if before is not None and before.connection is not None:
            self._check_fight(before.connection, clientid)
            before.connection.taken_over(resumed=not connect.clean_start)
            before = self.sessions.get(clientid)
        if before is not None and connect.clean_start:
            self.end_session(before)
            before = None
        self.absent.pop(clientid, None)
        self._wills.pop(clientid, None)
        session = before
        if session is None:
            if len(self.sessions) >= self.bounds.sessions:
                self._end_oldest()
            session = self.sessions[clientid] = Session(self, client)
        session.client = client
        will = connect.will
        session.keep_will(0 if will is None else len(will.payload) + of_message(will.properties).size)
        session.expiry = self._expiry(connect)
        return session, before is not None

    def detach(self, session: Session, will: Will | None, *, resumed: bool = False) -> None:
        """Take note that the connection of *session* has ended; *will* is to be published, now or later."""
        clientid = session.client.clientid
        session.detach()
        delay = 0
        if will is not None:
            delay = min(will.properties.get(WILL_DELAY, 0), session.expiry)
        if will is not None and not (delay and resumed):
            if delay:
                self._wills[clientid] = (self.now + delay, session, will)
            else:
                self.publish_will(session, will)
        if not session.expiry:
            self.end_session(session)
            return
        if clientid not in self._wills:
            session.keep_will(0)
        self.hub.absent(session)
        self.absent[clientid] = self.now + session.expiry

    def end_session(self, session: Session) -> None:
        """Forget *session*, with a will that still waits for it to end."""
        clientid = session.client.clientid
        self.absent.pop(clientid, None)
        if self.sessions.get(clientid) is session:
            del self.sessions[clientid]
        waiting = self._wills.pop(clientid, None)
        if waiting is not None:
            self.publish_will(session, waiting[2])
        if session.waiting and session.expiry:
            self.dropped(session, "its session has ended", session.waiting)
        session.end()
        self.hub.gone(session)

    def publish_will(self, session: Session, will: Will) -> None:
        """Publish a will, which was checked with its CONNECT."""
        session.keep_will(0)
        properties = of_message(will.properties)
        self.publish(session, Publish(will.topic, will.payload, will.qos, will.retain, properties))

    def publish(self, session: Session, command: Publish) -> None:
        """Publish for a client that hears no answer."""
        self.count("door_messages_received", 1)
        outcome = self.hub.serve(session, command)
        if outcome.error is not None:
            text = "%s ! publish to %r refused for username %r: %s"
            log.warning(text, session, command.topic, session.client.username, outcome.error)

    def new_clientid(self) -> str:
        """Return a name for a client that gives none."""
        return f"auto-{secrets.token_hex(8)}"

    def tick(self, now: float) -> None:
        """End what has expired; at least every few seconds."""
        self.now = now
        for clientid, (when, session, will) in tuple(self._wills.items()):
            if when <= now:
                del self._wills[clientid]
                self.publish_will(session, will)
        for clientid, when in tuple(self.absent.items()):
            if when <= now:
                self.end_session(self.sessions[clientid])
        self.flush_counts()

    # --- counting

    def encoded(self, message: Message, version: int) -> bytes:
        """Return the QoS 0 packet of *message*, the same object for all who get it in a row."""
        last = self._last
        if last[0] is not message or last[1] != version:
            properties = for_message(message.properties)
            head = publish_head(message.topic, len(message.payload), version, properties=properties)
            self._packet = head + message.payload
            self._last = (message, version)
        return self._packet

    def counted_sent(self) -> None:
        """Count a message to a client."""
        self._sent += 1

    def flush_counts(self) -> None:
        """Pass on what was counted here, for speed."""
        if self._sent:
            self.count("door_messages_sent", self._sent)
            self._sent = 0
        self._last = (None, 0)

    def dropped(self, session: Session, why: str, number: int = 1) -> None:
        """Count and log messages that a client doesn't get."""
        self.count("door_messages_dropped", number)
        log.warning("%s ! %d messages dropped: %s", session, number, why)

    def expired(self, session: Session, message: Message) -> None:
        """Count a message that has waited too long for its client; that is as its publisher wants it."""
        self.count("door_messages_expired", 1)
        log.debug("%s = message to %r dropped: it expired while it waited", session, message.topic)

    def _expiry(self, connect: Connect) -> int:
        most = self.bounds.session_expiry
        if connect.version == V5:
            return min(int(connect.properties.get(SESSION_EXPIRY, 0)), most)
        return 0 if connect.clean_start else most

    def _end_oldest(self) -> None:
        clientid = next(iter(self.absent), None)
        if clientid is None:
            raise MqttError(
                f"{len(self.sessions)} sessions are kept already, which is the limit", Reason.QUOTA
            )
        self.end_session(self.sessions[clientid])

    def _check_fight(self, older: ClientConnection, clientid: str) -> None:
        """Refuse a takeover where two take one clientid from each other again and again."""
        if not self._takeovers.allows(clientid, self.now):
            words = f"{OFTEN} takeovers of its clientid in {WINDOW:g} s"
            raise MqttError(f"{words}, the last one by {older.peer}", Reason.BUSY)
