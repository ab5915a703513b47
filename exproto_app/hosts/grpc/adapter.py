"""AdapterHub: the adapters as the engine's hub."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from ...commands import Command, Outcome, Publish, Register, Subscribe, Unsubscribe, refused
from ...core import Channel
from ...errors import ClosedError, CommandError, DeniedError, UnavailableError, UnsupportedError
from . import exproto_pb2 as pb
from .answers import DUPLICATE, MISSING, Crashed, judge
from .broker import AdapterMap, Broker
from .link import GrpcLink

__all__ = ["AdapterHub"]

log = logging.getLogger("exproto_app")

SHARES: Final = "$share/", "$queue/"
"""How a shared subscription begins."""

HUNG_UP: Final = ClosedError("the device hung up before the broker could judge its login")

RAW: Final = 10_000
"""Messages of the app itself that are on their way to one broker at a time."""


class AdapterHub:
    """The adapters as the engine's `Hub`."""

    # Calls of one connection may overtake each other.
    ordered = False
    keeps_wills = False
    keeps_sessions = False

    def __init__(self, adapters: AdapterMap, *, shares: bool = False) -> None:
        self.adapters = adapters
        self._shares = shares
        self._loop = asyncio.get_running_loop()
        self._waiter = self._loop.create_future
        self._said_retain = False

    @property
    def ready(self) -> bool:
        """Whether no adapter is known to be away; they are called when there is something to say."""
        return not any(broker.client.away for broker in self.adapters)

    def judges(self, channel: Channel, command: Register) -> bool:
        """Tell whether a login may be refused."""
        return command.password is not None or (
            isinstance(channel.link, GrpcLink) and channel.link.broker.refuses_anonymous
        )

    def execute(self, channel: Channel, command: Command) -> Outcome[Any]:
        """Call the adapter for what a device's connection asks."""
        link = channel.link
        if not isinstance(link, GrpcLink):
            raise TypeError(f"{link!r} is no link of this hub")
        match command:
            case Publish():
                return self._publish(channel, link, command)
            case _ if channel.gone:
                return refused(ClosedError(f"the connection is closed: {channel.reason}"))
            case Register():
                return self._register(link, command)
            case Subscribe(topic) if not self._shares and topic.startswith(SHARES):
                return refused(
                    UnsupportedError(
                        f"subscribe {topic}: EMQX 5.4 and later end a connection of ExProto that asks for a "
                        "shared subscription; where the broker is older, say so: serve --emqx 5.3"
                    )
                )
        name, request = self._request(link.conn.decode(), command)
        outcome: Outcome[Any] = Outcome(self._waiter)

        def done(status: int, answer: bytes) -> None:
            error = link.judge(name, status, answer)
            if error is None:
                outcome.settle(command.qos if isinstance(command, Subscribe) else None)
            else:
                outcome.fail(error)

        link.call(name, request, done)
        return outcome

    def _register(self, link: GrpcLink, command: Register) -> Outcome[None]:
        """Have the broker judge a login."""
        link.asked = True
        name, request = self._request(link.conn.decode(), command)
        outcome: Outcome[None] = Outcome(self._waiter)

        def done(status: int, answer: bytes) -> None:
            error = link.judge(name, status, answer)
            if isinstance(error, Crashed) and command.password is None:
                link.when_over(lambda over: judged(error if not over else HUNG_UP))
            else:
                judged(error)

        def judged(error: CommandError | None) -> None:
            if error is not None and _counts(link, command, request, error):
                error = None
            if error is None:
                link.proven = True
                outcome.settle(None)
            else:
                link.refusing = True  # what was to be published behind the login
                outcome.fail(error)
                link.refusing = False
            if command.password is None and isinstance(error, DeniedError):
                link.broker.refuses_anonymous = True
            if isinstance(error, UnavailableError):
                link.unsure = request if link.unsure in (b"", request) else b"one of several"

        link.call(name, request, done)
        return outcome

    def _publish(self, channel: Channel, link: GrpcLink, command: Publish) -> Outcome[None]:
        if not link.asked:
            # The broker takes nothing from a connection that never was a client: then the app publishes.
            return self._raw(link.broker, command, link)
        if channel.gone or link.left:
            # So it does in on_terminated, which runs when all is handled that the device had said.
            if link.proven or (channel.all_handled and not link.refusing):
                return self._raw(link.broker, command, link)
            words = "its device hung up before the broker had taken its login"
            return refused(DeniedError(f"publish {command.topic}: {words}"))
        name, request = self._request(link.conn.decode(), command)
        outcome: Outcome[None] = Outcome(self._waiter)

        def done(status: int, answer: bytes) -> None:
            error = link.judge(name, status, answer)
            if error is None:
                outcome.settle(None)
            elif isinstance(error, ClosedError) and link.proven:
                # The device hung up, but what it had said before still counts.
                outcome.follow(self._raw(link.broker, command, link))
            else:
                outcome.fail(error)

        link.call(name, request, done)
        return outcome

    def _request(self, conn: str, command: Command) -> tuple[str, bytes]:
        """Return the method for *command* and its request."""
        match command:
            case Publish(topic, payload, qos):
                self._look_at_retain(command)
                publish = pb.PublishRequest(conn=conn, topic=topic, payload=payload, qos=qos)
                return "Publish", publish.SerializeToString()
            case Subscribe(topic, qos):
                return "Subscribe", pb.SubscribeRequest(conn=conn, topic=topic, qos=qos).SerializeToString()
            case Unsubscribe(topic):
                return "Unsubscribe", pb.UnsubscribeRequest(conn=conn, topic=topic).SerializeToString()
            case Register(client, password):
                # The mountpoint is the engine's, so the broker gets none.
                info = pb.ClientInfo(
                    proto_name=client.proto_name,
                    proto_ver=client.proto_ver,
                    clientid=client.clientid,
                    username=client.username,
                )
                register = pb.AuthenticateRequest(conn=conn, clientinfo=info, password=password or "")
                return "Authenticate", register.SerializeToString()

    def publish(self, command: Publish) -> Outcome[None]:
        """Publish for the app itself."""
        broker = self.adapters.any()
        if broker is None:
            return refused(UnavailableError("no broker has called yet, so nobody knows where its adapter is"))
        return self._raw(broker, command)

    def gone(self, channel: Channel) -> None:
        """Do nothing: the broker's process is gone too."""

    def _raw(self, broker: Broker, command: Publish, link: GrpcLink | None = None) -> Outcome[None]:
        """Publish without a connection; for *link*, whose end waits for that."""
        self._look_at_retain(command)
        if link is None and broker.raw >= RAW:
            return refused(UnavailableError(f"{RAW} messages are on their way already, that is the limit"))
        outcome: Outcome[None] = Outcome(self._waiter)
        request = pb.RawPublishRequest(topic=command.topic, payload=command.payload, qos=command.qos)

        def done(status: int, answer: bytes) -> None:
            if link is None:
                broker.raw -= 1
            error = judge("RawPublish", status, answer)
            if status in MISSING:
                words = (
                    "EMQX before 5.1 publishes only for a live connection, not for an app or one that ended"
                )
                outcome.fail(UnsupportedError(words))
            elif error is None:
                outcome.settle(None)
            else:
                outcome.fail(error)

        if link is None:
            broker.raw += 1
            broker.call("RawPublish", request.SerializeToString(), done)
        else:
            link.call("RawPublish", request.SerializeToString(), done)
        return outcome

    def _look_at_retain(self, command: Publish) -> None:
        if command.retain and not self._said_retain:
            self._said_retain = True
            log.warning("broker ! EMQX's exproto retains nothing; retain= is ignored")


def _counts(link: GrpcLink, command: Register, request: bytes, error: CommandError) -> bool:
    """Tell whether a login that *error* came of counts all the same."""
    if isinstance(error, DeniedError) and DUPLICATE in str(error):
        return request == link.unsure  # it is ours whose answer was lost
    # The device has hung up already. Where it has shown a password, nobody can judge it any more; where it
    # has none to show, there is nothing to judge, unless this broker is known to refuse such logins.
    hung_up = isinstance(error, ClosedError) and not isinstance(error, Crashed)
    return hung_up and command.password is None and not link.broker.refuses_anonymous
