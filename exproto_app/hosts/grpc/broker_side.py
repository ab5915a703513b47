"""What a device asks of the broker, as calls of its adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ...commands import Command, Outcome, Publish, Register, Subscribe, Unsubscribe, refused
from ...errors import ClosedError, CommandError, DeniedError, UnavailableError, UnsupportedError
from . import exproto_pb2 as pb
from .answers import DUPLICATE, MISSING, Crashed, judge
from .client import Done

if TYPE_CHECKING:
    from ...core import Channel
    from .broker import Broker
    from .link import GrpcLink

__all__ = ["RETAINS", "BrokerSide", "raw_publish"]

SHARES: Final = "$share/", "$queue/"
"""How a shared subscription begins."""

HUNG_UP: Final = ClosedError("the device hung up before the broker could judge its login")

RETAINS: Final = "broker ! EMQX's exproto retains nothing; retain= is ignored"


class BrokerSide:
    """The broker's side of the connection that *link* is the device's side of."""

    __slots__ = ("_link",)

    def __init__(self, link: GrpcLink) -> None:
        self._link = link

    def judges(self, channel: Channel, command: Register) -> bool:  # noqa: ARG002 - as the core has it
        """Return whether a login may be refused."""
        return command.password is not None or self._link.broker.refuses_anonymous

    def execute(self, channel: Channel, command: Command) -> Outcome[Any]:
        """Call the adapter."""
        link = self._link
        match command:
            case Publish():
                return self._publish(channel, command)
            case _ if channel.gone:
                return refused(ClosedError(f"the connection is closed: {channel.reason}"))
            case Register():
                return self._register(command)
            case Subscribe(topic) if not link.broker.shares and topic.startswith(SHARES):
                return refused(
                    UnsupportedError(
                        f"subscribe {topic}: EMQX 5.4 and later end a connection of ExProto that asks for a "
                        "shared subscription; where the broker is older, say so: serve --emqx 5.3"
                    )
                )
        name, request = _request(link.conn.decode(), command)
        outcome: Outcome[Any] = Outcome(link.broker.waiter)

        def done(status: int, answer: bytes) -> None:
            error = link.judge(name, status, answer)
            if error is None:
                outcome.settle(command.qos if isinstance(command, Subscribe) else None)
            else:
                outcome.fail(error)

        link.call(name, request, done)
        return outcome

    def _register(self, command: Register) -> Outcome[None]:
        """Have the broker judge a login."""
        link = self._link
        link.asked = True
        name, request = _request(link.conn.decode(), command)
        outcome: Outcome[None] = Outcome(link.broker.waiter)

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

    def _publish(self, channel: Channel, command: Publish) -> Outcome[None]:
        link = self._link
        if command.retain:
            channel.engine.once("retain", RETAINS)
        if not link.asked:
            # The broker takes nothing from a connection that never was a client: then the app publishes.
            return self._raw(command)
        if channel.gone or link.left:
            # So it does in on_terminated, which runs when all is handled that the device had said.
            if link.proven or (channel.all_handled and not link.refusing):
                return self._raw(command)
            words = "its device hung up before the broker had taken its login"
            return refused(DeniedError(f"publish {command.topic}: {words}"))
        name, request = _request(link.conn.decode(), command)
        outcome: Outcome[None] = Outcome(link.broker.waiter)

        def done(status: int, answer: bytes) -> None:
            error = link.judge(name, status, answer)
            if error is None:
                outcome.settle(None)
            elif isinstance(error, ClosedError) and link.proven:
                # The device hung up, but what it had said before still counts.
                outcome.follow(self._raw(command))
            else:
                outcome.fail(error)

        link.call(name, request, done)
        return outcome

    def _raw(self, command: Publish) -> Outcome[None]:
        """Publish without the connection, from which the broker takes nothing; its end waits for that."""
        request, outcome, done = raw_publish(command, self._link.broker)
        self._link.call("RawPublish", request, done)
        return outcome


def raw_publish(command: Publish, broker: Broker) -> tuple[bytes, Outcome[None], Done]:
    """Return a request to publish without a connection, its outcome, and what takes the answer."""
    request = pb.RawPublishRequest(topic=command.topic, payload=command.payload, qos=command.qos)
    outcome: Outcome[None] = Outcome(broker.waiter)

    def done(status: int, answer: bytes) -> None:
        error = judge("RawPublish", status, answer)
        if status in MISSING:
            words = "EMQX before 5.1 publishes only for a live connection, not for an app or one that ended"
            outcome.fail(UnsupportedError(words))
        elif error is None:
            outcome.settle(None)
        else:
            outcome.fail(error)

    return request.SerializeToString(), outcome, done


def _request(conn: str, command: Command) -> tuple[str, bytes]:
    """Return the method for *command* and its request."""
    match command:
        case Publish(topic, payload, qos):
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


def _counts(link: GrpcLink, command: Register, request: bytes, error: CommandError) -> bool:
    """Return whether a login that *error* came of counts all the same."""
    if isinstance(error, DeniedError) and DUPLICATE in str(error):
        return request == link.unsure  # it is ours whose answer was lost
    # The device has hung up already. Where it has shown a password, nobody can judge it any more; where it
    # has none to show, there is nothing to judge, unless this broker is known to refuse such logins.
    hung_up = isinstance(error, ClosedError) and not isinstance(error, Crashed)
    return hung_up and command.password is None and not link.broker.refuses_anonymous
