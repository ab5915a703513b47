"""The broker as the engine sees it: its functions, and what is cast to its connection processes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from ...commands import (
    DONE,
    Command,
    Outcome,
    Pending,
    Publish,
    Register,
    Subscribe,
    Unconfirmed,
    Unsubscribe,
    refused,
)
from ...core import Channel, Context
from ...errors import ClosedError, CommandError, DeniedError, UnavailableError
from . import facts
from .calls import Calls, framed
from .hooks import Acl
from .link import ErlangLink
from .past import Past
from .register import Registration
from .terms import Atom, Opaque

__all__ = ["BrokerHub"]

log = logging.getLogger("exproto_app")

PRESENCE: Final = "emqx_mod_presence"
"""The broker's module that announces clients."""

APP_PUBLISHES: Final = 10_000
"""Messages of the app itself that are on their way to the broker at a time; what is more waits."""


class BrokerHub(Calls):
    """The functions of the broker.

    *write* takes a frame for the broker. *acl*: the broker is asked before each publish and subscribe,
    for its connection processes ask nobody.
    """

    broker_side = None
    keeps_wills = False
    keeps_sessions = False
    many_clients = False
    has_properties = False
    roams = False

    def __init__(self, write: Callable[[bytes], None]) -> None:
        super().__init__(write)
        self.acl, self.ordered = False, True
        self.serves: Callable[[bytes, str], bool] = lambda *_: False  # the process knows its own clients
        self._said_retain = False
        self._said_takeover = False
        self._engine: Context | None = None
        self._app_publishes = 0
        self._acl_hooks = Acl(self)

    def ask_acl(self) -> None:
        """Ask the broker before each publish and subscribe; then commands don't keep their order any more."""
        self.acl, self.ordered = True, False

    def attach(self, context: Context) -> None:
        """Serve *context*, which is told when the app publishes too much; the clock is the broker's."""
        self._engine = context

    def execute(self, channel: Channel, link: ErlangLink, command: Command) -> Outcome[Any]:
        """Hand *command* to the process of *link*, which is the link of *channel*."""
        match command:
            case Publish():
                request: tuple[Any, ...] = self._message(channel, command)
                if not self.acl and (channel.gone or link.ending):
                    # What a process is cast while it ends is lost: publish past it.
                    return self._publish_past(link, request[1])
                return self._allowed(channel, link, request, topic=command.topic, value=None)
            case Subscribe(topic, qos):
                request = (Atom("subscribe"), topic.encode(), qos)
                return self._allowed(channel, link, request, topic=topic, value=qos)
            case Unsubscribe(topic):
                link.subscriptions.pop(topic, None)
                link.cast((Atom("unsubscribe"), topic.encode()))
                link.bound(channel)
                return Unconfirmed(partial(_ask, channel, link), None)
            case Register():
                return Registration(self, channel, link, command).begin()

    def publish(self, command: Publish) -> Outcome[None]:
        """Publish for the app itself."""
        self._look_at_retain(command)
        outcome: Outcome[None] = Outcome(self.waiter)
        sender = Atom("exproto_app")
        record = facts.message_record(command.topic, command.payload, command.qos, sender)
        self._app_publishes += 1
        if self._app_publishes >= APP_PUBLISHES and self._engine is not None:
            self._engine.congested()
        outcome.when_done(self._app_published)
        self._publish(record, outcome)
        return outcome

    def _app_published(self, _: Outcome[None]) -> None:
        self._app_publishes -= 1
        if self._app_publishes == APP_PUBLISHES // 2 and self._engine is not None:
            self._engine.relieved()

    def rescue(self, link: ErlangLink, done: Callable[[], None]) -> None:
        """Publish what the process of *link*, which ends and waits for us, was cast and will never look at.

        A device that hangs up right behind its data has its process end before it has seen what the data's
        handlers published: that is in its mailbox still, behind the news of the end.
        """

        def found(answer: object, error: CommandError | None) -> None:
            records: list[object] = []
            match answer:
                case ("messages", list() as mails):
                    records = [record for mail in mails if (record := _published_record(mail)) is not None]
                case _:
                    log.warning("broker ! what a device published last may be lost: %s", error or answer)
            if not records:
                passed(DONE)
                return
            for record in records:
                outcome = self._publish_past(link, record)
            outcome.when_done(passed)

        def passed(outcome: Outcome[None]) -> None:
            if outcome.error is None:
                link.confirm_all()
            else:
                log.warning("broker ! what a device published last is lost: %s", outcome.error)
            done()

        self.call("erlang", "process_info", [Opaque(link.pid), Atom("messages")], found)

    def registered(self, channel: Channel, command: Register, older: Channel | None) -> None:
        """Do nothing: the broker has a session for each connection."""

    def move(self, older: Channel, heir: Channel) -> None:
        """Do nothing: it isn't asked to."""

    def gone(self, channel: Channel) -> None:
        """Do nothing: the broker's process is gone too."""

    def tell_of_takeover(self) -> None:
        """Say once who ends whom."""
        if self._said_takeover:
            return
        self._said_takeover = True

        def found(answer: object, error: CommandError | None) -> None:
            watched = error is None and PRESENCE in str(answer)
            words = "and ends itself when an MQTT client takes its name"
            if not watched:
                words = f"but doesn't end when an MQTT client takes its name: {PRESENCE} isn't loaded"
            log.info(
                "broker = a device that registers ends older connections of its name, MQTT's too, %s", words
            )

        self.call("emqx_hooks", "lookup", [Atom("client.connected")], found)

    def mail(self, pid: bytes, message: object) -> None:
        """Send *message* to the process *pid*."""
        self.write(framed((Atom("M"), Opaque(pid), message)))

    def _allowed(
        self, channel: Channel, link: ErlangLink, request: tuple[Any, ...], *, topic: str, value: object
    ) -> Outcome[Any]:
        """Cast *request*, if the broker's ACL is asked and allows it."""
        if not self.acl or link.superuser:
            cast = self._cast(channel, link, request, value)
            link.bound(channel)
            return cast
        if link.info is None:
            return refused(DeniedError("nobody knows whose connection this is"))
        what = str(request[0])
        outcome: Outcome[Any] = Pending(self.waiter)

        def done(answer: object, error: CommandError | None) -> None:
            if error is not None:
                outcome.fail(DeniedError(f"the broker's ACL gives no answer to {what} {topic!r}: {error}"))
            elif answer == "allow" and isinstance(answer, Atom):
                outcome.follow(self._cast(channel, link, request, value))
            else:
                outcome.fail(DeniedError(f"the broker's ACL doesn't allow to {what} {topic!r}"))

        who = facts.access(channel.client, link.info)
        self._acl_hooks.check([who, Atom(what), topic.encode()], done)
        return outcome

    def _cast(
        self, channel: Channel, link: ErlangLink, request: tuple[Any, ...], value: object
    ) -> Outcome[Any]:
        """Cast *request*; what the process of a device that leaves would lose goes past it.

        Return its outcome, which has that *value*.
        """
        match request:
            case ("subscribe", topic, qos):
                link.subscriptions[topic.decode()] = qos
            case ("publish", record):
                if link.ending or link.channel is None:
                    return self._publish_past(link, record)
                link.published_to += 1
        link.cast(request)
        return Unconfirmed(partial(_ask, channel, link), value)

    def _sender(self, channel: Channel) -> bytes | Atom:
        return channel.client.clientid.encode() if channel.client is not None else Atom("exproto_app")

    def _message(self, channel: Channel, command: Publish) -> tuple[Any, ...]:
        self._look_at_retain(command)
        record = facts.message_record(command.topic, command.payload, command.qos, self._sender(channel))
        return (Atom("publish"), record)

    def _publish_past(self, link: ErlangLink, record: object) -> Outcome[None]:
        """Publish *record* without the process of *link*, behind what was published before in this way."""
        if link.past is None:
            link.past = Past(self)
        link.last = link.past.publish(record)
        return link.last

    def _publish(self, record: object, outcome: Outcome[None]) -> None:
        def published(answer: object, error: CommandError | None) -> None:
            why = error or facts.problem(answer)
            if why:
                outcome.fail(UnavailableError(f"the broker didn't publish: {why}"))
            else:
                outcome.settle(None)

        self.call("emqx", "publish", [record], published)

    def _look_at_retain(self, command: Publish) -> None:
        if command.retain and not self._said_retain:
            self._said_retain = True
            log.warning("broker ! EMQX 4.2's exproto retains nothing; retain= is ignored")


def _published_record(mail: object) -> object | None:
    match mail:
        case ("$gen_cast", ("publish", record)):
            return record
    return None


def _ask(channel: Channel, link: ErlangLink) -> Outcome[None]:
    if channel.gone and link.rescued:
        return DONE
    if channel.gone:
        return refused(ClosedError(f"the connection is closed: {channel.reason}"))
    return link.confirm()
