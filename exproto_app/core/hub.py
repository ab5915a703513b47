"""The embedded hub: routes messages between the connections of one process, and keeps the retained ones."""

from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

import attrs

from ..commands import (
    DONE,
    GRANTED,
    Command,
    Outcome,
    Publish,
    Register,
    Subscribe,
    Unsubscribe,
    all_of,
    refused,
)
from ..errors import DeniedError, UnavailableError
from ..masking import hide_secrets, log_error, password_forms
from ..models import ClientInfo, Message
from ..topics import Filters, split_share
from .channel import Channel
from .retained import RETAINED, RETAINED_BYTES, Retained
from .seams import Context
from .sessions import SessionBounds, Sessions

__all__ = ["Login", "Member", "MemoryHub", "Watch"]

log = logging.getLogger("exproto_app")

Login: TypeAlias = Callable[[ClientInfo, str | None], bool | Awaitable[bool]]
"""A login rule: gets the client and its password (None if it gave none), returns whether it may register."""

Watch: TypeAlias = Callable[[Channel | None, Message], object]
"""Gets each message that is published and the channel it came from, None for the app's own."""


class Member(Hashable, Protocol):
    """Who subscribes and publishes: the `Channel` of a device, or an MQTT client of the embedded hub."""

    @property
    def client(self) -> ClientInfo | None:
        """Who it is."""
        ...

    def delivered(self, messages: Sequence[Message], /) -> Outcome[None] | None:
        """Take messages that it is subscribed to.

        None: it has them, or it drops them by its own rules. An outcome: it has them and is full; the outcome
        is settled when there is room again, and whoever published is made to wait for it. One that has
        failed: it has no room for them.
        """
        ...


@attrs.define(eq=False)
class Group:
    """The members of one shared subscription; each message goes to one of them, in turn."""

    members: dict[Member, int] = attrs.field(factory=dict)

    def take_turn(self, absent: set[Member]) -> tuple[Member, int]:
        """Return the member whose turn it is, with its QoS, and put it last; the *absent* only if all are."""
        channel = next(iter(self.members))
        if channel in absent:
            channel = next((member for member in self.members if member not in absent), channel)
        qos = self.members.pop(channel)
        self.members[channel] = qos
        return channel, qos


class MemoryHub:
    """A hub in memory, with sessions for the devices that want one (*sessions* bounds them).

    *login* decides who may register; without it everybody may. A device's messages come back to it where it
    is subscribed; overlapping subscriptions of one device deliver once, with the highest QoS. Retained
    messages are kept as long as the hub is there, *retained* of them at most, with *retained_bytes* at most:
    what is beyond that is delivered, but not kept, and its outcome is `UnavailableError`.

    With a login rule a name belongs to its user, who is told by the username, or the clientid where there is
    none: as long as somebody is connected by a clientid, or has a session kept for it, only the same user may
    take it over, whether by a listener for devices or as an MQTT client. *guests* are those who aren't
    devices, by clientid.
    """

    ordered = True
    keeps_wills = False
    keeps_sessions = True
    many_clients = True
    has_properties = True
    roams = True

    def __init__(
        self,
        login: Login | None = None,
        *,
        watch: Watch | None = None,
        retained: int = RETAINED,
        retained_bytes: int = RETAINED_BYTES,
        sessions: SessionBounds | None = None,
    ) -> None:
        self._login = login
        self._watch = watch
        self._filters: Filters[Member | Group, int] = Filters()
        self._granted: dict[Member, dict[str, int]] = {}
        self._retained = Retained(retained, retained_bytes, lambda: self.now)
        self._groups: dict[str, Group] = {}
        self._absent: set[Member] = set()
        self._sessions = Sessions(sessions or SessionBounds(), self._forget)
        self._ids = itertools.count(1)
        self.guests: Mapping[str, Member] = {}
        self._context: Context | None = None

    def __str__(self) -> str:
        return "the embedded hub"

    @property
    def broker_side(self) -> MemoryHub:
        """Carries out what devices ask: this."""
        return self

    def attach(self, context: Context) -> None:
        """Serve the connections of *context* from now on; its clock counts."""
        self._context = context

    @property
    def now(self) -> float:
        """The time in seconds, on a clock that never goes back."""
        return 0.0 if self._context is None else self._context.runtime.time()

    @property
    def asks(self) -> bool:
        """Whether a login rule decides who may register."""
        return self._login is not None

    def gauges(self) -> dict[str, float]:
        """Return what metrics show of it."""
        return {
            "retained_messages": len(self._retained),
            "retained_bytes": self._retained.size,
            "subscriptions": sum(map(len, self._granted.values())),
            "device_sessions": len(self._sessions.by_id),
            "device_session_bytes": self._sessions.size,
        }

    async def admits(self, client: ClientInfo, password: str | None) -> bool:
        """Return whether *client*, which isn't a device, may log in, by the same rule. May raise anything."""
        if self._login is None:
            return True
        answer = self._login(client, password)
        return bool(await answer if inspect.isawaitable(answer) else answer)

    def owner(self, client: ClientInfo, devices: Mapping[str, Member], asker: Member | None = None) -> str:
        """Return the user, other than that of *client*, who has its clientid; nothing if it is free to take.

        *devices* are those connected; *asker*, one of them, may have the name already.
        """
        if self._login is None:
            return ""
        for members in (devices, self.guests, self._sessions.by_id):
            member = members.get(client.clientid)
            if member is None or member is asker or member.client is None:
                continue
            if (user := _user(member.client)) != _user(client):
                return user
        return ""

    def execute(self, channel: Channel, command: Command) -> Outcome[Any]:
        """Carry out what a device's connection asks."""
        if type(command) is Publish:  # most are
            matching = self._filters.matching(command.topic)
            if not matching and not command.retain and self._watch is None:
                return DONE  # nobody ever sees it
            return self._pass_on(channel, command, matching, channel)
        if isinstance(command, Register):
            return self._register(channel, command)
        return self.serve(self._member(channel), command)

    def judges(self, channel: Channel, command: Register) -> bool:  # noqa: ARG002 - as `BrokerSide` has it
        """Return whether a login may be refused."""
        return self._login is not None

    def serve(self, member: Member, command: Publish | Subscribe | Unsubscribe) -> Outcome[Any]:
        """Carry out what a member asks."""
        match command:
            case Publish():
                return self._route(member, command)
            case Subscribe(topic, qos):
                self._subscribe(member, topic, qos)
                return GRANTED[qos]
            case Unsubscribe(topic):
                self._unsubscribe(member, topic)
                return DONE

    def publish(self, command: Publish) -> Outcome[None]:
        """Publish for the app itself."""
        return self._route(None, command)

    def subscribe(self, member: Member, command: Subscribe) -> None:
        """Subscribe *member*, which sees to the retained messages itself."""
        self._add(member, command.topic, command.qos)

    def retained_topics(self, topic_filter: str) -> Iterator[str | None]:
        """Return the topics with retained messages that match a plain filter; None for a step without one.

        They may have expired; `retained` finds out.
        """
        return self._retained.topics(topic_filter)

    def retained(self, topic: str) -> Message | None:
        """Return the retained message of *topic*, unless it has expired."""
        return self._retained.get(topic)

    def absent(self, member: Member) -> None:
        """Give messages of shared subscriptions to others than *member* where there are any."""
        self._absent.add(member)

    def present(self, member: Member) -> None:
        """Give *member* its share again."""
        self._absent.discard(member)

    def registered(self, channel: Channel, command: Register, older: Channel | None) -> None:
        """Have *channel* continue the session of its client, and keep what *older* had subscribed to."""
        session = self._sessions.enter(channel, command.client, command.session_expiry)
        if session is not None:
            self.present(session)
            self._inherit(session, channel)
        if older is not None:
            self._inherit(session or channel, older)

    def _inherit(self, heir: Member, older: Member) -> None:
        for topic, qos in tuple(self._granted.get(older, {}).items()):
            self._unsubscribe(older, topic)
            if topic not in self._granted.get(heir, ()):
                self._add(heir, topic, qos)

    def move(self, older: Channel, heir: Channel) -> None:
        """Have *heir* stand for the client that both are connections of."""
        self._sessions.move(older, heir)
        self._inherit(self._member(heir), older)

    def gone(self, member: Member) -> None:
        """Forget a member's subscriptions, but for those of a session that is kept."""
        session = self._sessions.leave(member)
        if session is not None:
            self.absent(session)
        self._forget(member)

    def _forget(self, member: Member) -> None:
        self._absent.discard(member)
        for topic in tuple(self._granted.get(member, ())):
            self._unsubscribe(member, topic)

    def _member(self, channel: Channel) -> Member:
        """Return who subscribes for *channel*: its client's session, where that is kept."""
        return self._sessions.of(channel) or channel

    def subscribed(self, channel: Channel, topic: str) -> bool:
        """Return whether a message of *topic* would reach *channel*."""
        members = (channel, self._member(channel))
        return any(
            key in members or (isinstance(key, Group) and not key.members.keys().isdisjoint(members))
            for key, _ in self._filters.matching(topic)
        )

    def _route(self, sender: Member | None, command: Publish) -> Outcome[None]:
        matching = self._filters.matching(command.topic)
        if not matching and not command.retain and self._watch is None:
            return DONE
        return self._pass_on(sender, command, matching, None)

    def _pass_on(
        self,
        sender: Member | None,
        command: Publish,
        matching: list[tuple[Member | Group, int]],
        channel: Channel | None,
    ) -> Outcome[None]:
        message = Message(
            command.topic,
            command.payload,
            command.qos,
            command.retain,
            id=f"{next(self._ids):016x}",
            sender=sender.client.clientid if sender is not None and sender.client is not None else "",
            timestamp=0 if self._context is None else self._context.runtime.wall(),
            properties=command.properties,
        )
        if self._watch is not None:
            self._watch(channel, message)
        outcome = self._retained.put(message) if message.retain else DONE
        if not matching:
            return outcome
        full = self._deliver(message, matching, channel)
        if not full or outcome is not DONE:
            return outcome
        return full[0] if len(full) == 1 else all_of(full)

    def _deliver(
        self, message: Message, matching: Sequence[tuple[Member | Group, int]], sender: Channel | None
    ) -> list[Outcome[None]]:
        """Give *message* of *sender* to each once; return the outcomes of those who have no room."""
        only, qos = matching[0]
        if len(matching) == 1 and not isinstance(only, Group):  # as most are
            outcome = only.delivered((self._for(message, qos),))
            return [] if outcome is None or self._waits_for_itself(sender, only, outcome) else [outcome]
        best: dict[Member, int] = {}
        full: list[Outcome[None]] = []
        for key, qos in matching:
            if isinstance(key, Group):
                channel, qos = key.take_turn(self._absent)  # noqa: PLW2901 - the member stands for its group
                outcome = channel.delivered((self._for(message, qos),))
                if outcome is not None and not self._waits_for_itself(sender, channel, outcome):
                    full.append(outcome)
            elif best.get(key, -1) < qos:
                best[key] = qos
        by_qos = {qos: (self._for(message, qos),) for qos in set(best.values())}
        for channel, qos in best.items():
            outcome = channel.delivered(by_qos[qos])
            if outcome is not None and not self._waits_for_itself(sender, channel, outcome):
                full.append(outcome)
        return full

    def _waits_for_itself(self, sender: Channel | None, member: Member, outcome: Outcome[None]) -> bool:
        """Return whether *sender* had to end its turn to make the room that *outcome* tells of."""
        if sender is None or outcome.done:
            return False
        receiver = getattr(member, "channel", member)  # a session's
        return (getattr(receiver, "line", None) or receiver) is (sender.line or sender)

    @staticmethod
    def _for(message: Message, qos: int) -> Message:
        """Return *message* as a subscription of this *qos* gets it."""
        if message.qos <= qos and not message.retain:
            return message
        return attrs.evolve(message, qos=min(message.qos, qos), retain=False)

    def _subscribe(self, channel: Member, topic: str, qos: int) -> None:
        self._add(channel, topic, qos)
        group_name, plain = split_share(topic)
        if group_name:
            return  # a group gets none (MQTT 5, 4.8.2): each of its members would get them
        retained = self._retained.matching(plain)
        if retained:
            channel.delivered([attrs.evolve(one, qos=min(one.qos, qos)) for one in retained])

    def _add(self, channel: Member, topic: str, qos: int) -> None:
        granted = self._granted.setdefault(channel, {})
        group_name, plain = split_share(topic)
        granted[topic] = qos
        if not group_name:
            self._filters.add(plain, channel, qos)
            return
        group = self._groups.get(topic)
        if group is None:
            group = self._groups[topic] = Group()
            self._filters.add(plain, group, 0)
        group.members[channel] = qos

    def _unsubscribe(self, channel: Member, topic: str) -> None:
        granted = self._granted.get(channel)
        if granted is None or granted.pop(topic, None) is None:
            return
        if not granted:
            del self._granted[channel]
        group_name, plain = split_share(topic)
        if not group_name:
            self._filters.discard(plain, channel)
            return
        group = self._groups[topic]
        del group.members[channel]
        if not group.members:
            del self._groups[topic]
            self._filters.discard(plain, group)

    def _register(self, channel: Channel, command: Register) -> Outcome[None]:
        if self._login is None:
            return DONE
        try:
            answer = self._login(command.client, command.password)
        except Exception as error:  # noqa: BLE001 - a login rule is the user's code
            return refused(self._broken(error, command.password))
        if not inspect.isawaitable(answer):
            denied = self._denied(channel, command.client, answer)
            return DONE if denied is None else refused(denied)
        outcome: Outcome[None] = Outcome(channel.engine.runtime.waiter)
        channel.engine.runtime.run_task(answer, partial(self._answered, channel, command, outcome))
        return outcome

    def _answered(
        self,
        channel: Channel,
        command: Register,
        outcome: Outcome[None],
        answer: object,
        error: BaseException | None,
    ) -> None:
        if error is not None:
            outcome.fail(self._broken(error, command.password))
        elif (denied := self._denied(channel, command.client, answer)) is not None:
            outcome.fail(denied)
        else:
            outcome.settle(None)

    def _denied(self, channel: Channel, client: ClientInfo, answer: object) -> DeniedError | None:
        """Return why *client* may not register, though the login rule's *answer* may be that it may."""
        why = "wrong clientid, username or password"
        if answer:
            owner = self.owner(client, channel.engine.clients, channel)
            if not owner:
                return None
            why = f"the clientid belongs to the user {owner!r}"
        return DeniedError(f"{client.clientid!r} may not register: {why}")

    @staticmethod
    def _broken(error: BaseException, password: str | None) -> UnavailableError:
        hide = partial(hide_secrets, secrets=password_forms(password or ""))
        log_error(log, "hub ! the login rule failed: %s", error=error, hide=hide)
        return UnavailableError(f"the login rule failed: {hide(repr(error))}")


def _user(client: ClientInfo) -> str:
    return client.username or client.clientid
