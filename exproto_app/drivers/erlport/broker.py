"""The broker as the engine sees it: links that cast to connection processes, and the hub behind them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from struct import Struct
from typing import Any, Final

from ...commands import Command, Fence, Outcome, Publish, Register, Subscribe, Unsubscribe, refused
from ...core import Channel, Intake
from ...errors import ClosedError, CommandError, DeniedError, UnavailableError
from ...models import ConnectionInfo
from . import facts
from .terms import Atom, Opaque, body, encode

__all__ = ["BrokerHub", "ErlangLink", "framed"]

log = logging.getLogger("exproto_app")

DEADLINE: Final = 10.0
"""Seconds that a function of the broker may take to answer."""

CAST: Final = Atom("$gen_cast")

_length: Final = Struct(">I").pack
_CAST_HEAD: Final = b"\x83h\x03d\x00\x01M"
_CAST_WORD: Final = b"h\x02" + body(CAST)
_SEND: Final = b"h\x02" + body(Atom("send")) + b"m"


def framed(term: object) -> bytes:
    """Return *term* as a frame with its length before it."""
    data = encode(term)
    return _length(len(data)) + data


class ErlangLink:
    """One connection process of the broker, which has the device's socket."""

    __slots__ = (
        "_cast",
        "_hub",
        "_send",
        "_size",
        "channel",
        "ending",
        "info",
        "last",
        "pid",
        "published",
        "withheld",
    )

    answers = False

    def __init__(self, hub: BrokerHub, pid: bytes) -> None:
        self._hub = hub
        self.pid = pid
        self.channel: Intake | None = None
        self.info: ConnectionInfo | None = None
        self.withheld: bytes | None = None
        self.published = False
        self.ending = False
        self.last: Outcome[None] | None = None  # of what was published past the process
        self._cast = _CAST_HEAD + pid + _CAST_WORD
        self._send = self._cast + _SEND
        self._size = len(self._send) + 4

    def send(self, chunks: list[bytes]) -> None:
        if len(chunks) > 1 and self.info is not None and self.info.socktype not in ("udp", "dtls"):
            chunks = [b"".join(chunks)]
        for data in chunks:
            self.write(data)

    def write(self, data: bytes) -> None:
        size = len(data)
        self._hub.write(_length(self._size + size) + self._send + _length(size) + data)

    def cast(self, request: object) -> None:
        """Send `{'$gen_cast', Request}` to the process; it answers nothing."""
        data = self._cast + body(request)
        self._hub.write(_length(len(data)) + data)

    def fence(self) -> Outcome[None]:
        """Ask the process something that it answers behind everything that was sent to it before."""
        self.answer()  # a process that waits for us answers nothing
        outcome: Outcome[None] = Outcome(self._hub.waiter)
        done = partial(_fenced, outcome)
        self._hub.call(Atom("emqx_exproto_conn"), Atom("info"), [Opaque(self.pid)], done)
        return outcome

    def close(self) -> None:
        self.cast(Atom("close"))
        self.answer()

    def abort(self) -> None:
        self.close()
        self._hub.call_soon(self._give_up)

    def pause(self) -> None:
        """Do nothing: the next answer is withheld."""

    def resume(self) -> None:
        self.answer()

    def answer(self) -> None:
        """Let the process go on, if it waits."""
        if self.withheld is not None:
            frame, self.withheld = self.withheld, None
            self._hub.write(frame)

    def _give_up(self) -> None:
        if self.channel is not None:
            self.channel.terminated("lost", "the broker's process didn't close it in time")


def _fenced(outcome: Outcome[None], _: object, error: CommandError | None) -> None:
    if error is None:
        outcome.settle(None)
    elif isinstance(error, UnavailableError):
        outcome.fail(error)
    else:
        outcome.fail(ClosedError(f"the broker's process is gone: {error}"))


class BrokerHub:
    """The functions of the broker.

    *write* takes a frame for the broker. With *acl* the broker is asked before each publish and subscribe,
    for its connection processes ask nobody.
    """

    keeps_wills = False
    keeps_sessions = False

    def __init__(self, write: Callable[[bytes], None], *, acl: bool) -> None:
        self.write = write
        self.ordered = not acl
        self._acl = acl
        self._loop = asyncio.get_running_loop()
        self.waiter = self._loop.create_future
        self.call_soon = self._loop.call_soon
        self._calls: dict[int, tuple[Callable[[Any, CommandError | None], None], asyncio.TimerHandle]] = {}
        self._last_call = 0
        self._lost = False
        self._settled: asyncio.Future[None] | None = None
        self._said_retain = False
        self._lost = False

    def execute(self, channel: Channel, command: Command) -> Outcome[Any]:
        """Hand *command* to the connection's process."""
        link = channel.link
        if not isinstance(link, ErlangLink):
            raise TypeError(f"{link!r} is no link of this hub")
        match command:
            case Publish():
                if channel.gone or link.ending:
                    # What a process is cast while it ends is lost: publish past it.
                    return self._publish_past(link, self._message(channel, command)[1])
                link.published = True
                request: tuple[Any, ...] = self._message(channel, command)
                return self._allowed(channel, link, request, topic=command.topic, value=None)
            case Subscribe(topic, qos):
                request = (Atom("subscribe"), topic.encode(), qos)
                return self._allowed(channel, link, request, topic=topic, value=qos)
            case Unsubscribe(topic):
                link.cast((Atom("unsubscribe"), topic.encode()))
                return Fence(partial(_ask, channel, link), None)
            case Register():
                return self._register(channel, link, command)

    def publish(self, command: Publish) -> Outcome[None]:
        """Publish for the app itself."""
        self._look_at_retain(command)
        outcome: Outcome[None] = Outcome(self.waiter)

        def made(message: object, error: CommandError | None) -> None:
            if error is not None or not isinstance(message, tuple) or len(message) < 3:
                outcome.fail(UnavailableError(f"the broker made no message: {error or message!r}"))
            else:
                self._publish((*message[:2], command.qos, *message[3:]), outcome)

        arguments = [Atom("exproto_app"), command.topic.encode(), command.payload]
        self.call(Atom("emqx_message"), Atom("make"), arguments, made)
        return outcome

    def rescue(self, link: ErlangLink, done: Callable[[], None]) -> None:
        """Publish what the process of *link*, which ends and waits for us, was cast and will never look at.

        A device that hangs up right behind its data has its process end before it has seen what the data's
        handlers published: that is in its mailbox still, behind the news of the end.
        """

        def found(answer: object, error: CommandError | None) -> None:
            match answer:
                case ("messages", list() as mails):
                    outcomes = [
                        self._publish_past(link, record)
                        for mail in mails
                        if (record := _published_record(mail)) is not None
                    ]
                    if outcomes:
                        outcomes[-1].when_done(lambda _: done())
                        return
                case _:
                    log.warning("broker ! what a device published last may be lost: %s", error or answer)
            done()

        self.call(Atom("erlang"), Atom("process_info"), [Opaque(link.pid), Atom("messages")], found)

    def gone(self, channel: Channel) -> None:
        """Do nothing: the broker's process is gone too."""

    def call(
        self,
        module: Atom,
        function: Atom,
        arguments: list[Any],
        done: Callable[[Any, CommandError | None], None],
    ) -> None:
        """Call a function of the broker; *done* gets its result or an error, within 10 s."""
        if self._lost:
            done(None, UnavailableError(f"the broker has gone, {module}:{function} can't be asked"))
            return
        if self._lost:
            done(None, UnavailableError("the broker has closed the port"))
            return
        self._last_call += 1
        number = self._last_call
        timer = self._loop.call_later(DEADLINE, self._late, number, f"{module}:{function}")
        self._calls[number] = done, timer
        self.write(framed((Atom("C"), number, module, function, arguments, Atom("N"))))

    def answered(self, number: object, result: object, error: object | None) -> None:
        """Take the broker's answer to a call."""
        call = self._calls.pop(number, None) if isinstance(number, int) else None
        if call is None:
            log.debug("port ! an answer to no call: %r", number)
            return
        done, timer = call
        timer.cancel()
        done(result, None if error is None else CommandError(facts.text(error)))
        self._settle()

    async def finish(self) -> None:
        """Wait for the answers that are still to come, each within its deadline, and what they lead to."""
        while self._calls:
            self._settled = self._loop.create_future()
            await self._settled

    def lose(self) -> None:
        """Fail what waits and what comes: the broker has closed the port."""
        self._lost = True
        while self._calls:
            _, (done, timer) = self._calls.popitem()
            timer.cancel()
            done(None, UnavailableError("the broker has closed the port"))
        self._settle()

    def _settle(self) -> None:
        if self._settled is not None and not self._calls and not self._settled.done():
            self._settled.set_result(None)

    def _late(self, number: int, name: str) -> None:
        done, _ = self._calls.pop(number)
        done(None, UnavailableError(f"the broker's {name} gave no answer within {DEADLINE:g} s"))
        self._settle()

    def _allowed(
        self, channel: Channel, link: ErlangLink, request: tuple[Any, ...], *, topic: str, value: object
    ) -> Outcome[Any]:
        """Cast *request*, if the broker's ACL is asked and allows it."""
        if not self._acl or link.info is None:
            link.cast(request)
            return Fence(partial(_ask, channel, link), value)
        what = request[0]
        outcome: Outcome[Any] = Outcome(self.waiter)

        def done(answer: object, error: CommandError | None) -> None:
            if error is not None:
                outcome.fail(UnavailableError(f"the broker's ACL failed: {error}"))
            elif answer == Atom("allow"):
                link.cast(request)
                outcome.settle(value)
            else:
                outcome.fail(DeniedError(f"the broker's ACL doesn't allow to {what} {topic!r}"))

        who = facts.access(channel.client, link.info)
        self.call(Atom("emqx_access_control"), Atom("check_acl"), [who, what, topic.encode()], done)
        return outcome

    def _register(self, channel: Channel, link: ErlangLink, command: Register) -> Outcome[None]:
        request = (Atom("register"), facts.client_map(command.client))
        if command.password is None or link.info is None:
            link.cast(request)
            return Fence(partial(_ask, channel, link), None)
        outcome: Outcome[None] = Outcome(self.waiter)

        def done(answer: object, error: CommandError | None) -> None:
            if error is not None:
                outcome.fail(UnavailableError(f"the broker's authentication failed: {error}"))
            elif isinstance(answer, tuple) and answer[:1] == (Atom("ok"),):
                if not channel.gone:
                    link.cast(request)
                outcome.settle(None)
            else:
                why = answer[1] if isinstance(answer, tuple) and len(answer) > 1 else answer
                outcome.fail(
                    DeniedError(f"the broker refuses {command.client.clientid!r}: {facts.text(why)}")
                )

        who = facts.authentication(command.client, command.password, link.info)
        self.call(Atom("emqx_access_control"), Atom("authenticate"), [who], done)
        return outcome

    def _sender(self, channel: Channel) -> bytes | Atom:
        return channel.client.clientid.encode() if channel.client is not None else Atom("exproto_app")

    def _message(self, channel: Channel, command: Publish) -> tuple[Any, ...]:
        self._look_at_retain(command)
        record = facts.message_record(command.topic, command.payload, command.qos, self._sender(channel))
        return (Atom("publish"), record)

    def _publish_past(self, link: ErlangLink, record: object) -> Outcome[None]:
        """Publish *record* without the process of *link*, behind what was published before in this way."""
        outcome: Outcome[None] = Outcome(self.waiter)
        before, link.last = link.last, outcome
        if before is None:
            self._publish(record, outcome)
        else:
            before.when_done(lambda _: self._publish(record, outcome))
        return outcome

    def _publish(self, record: object, outcome: Outcome[None]) -> None:
        def published(_: object, error: CommandError | None) -> None:
            if error is None:
                outcome.settle(None)
            else:
                outcome.fail(UnavailableError(f"the broker didn't publish: {error}"))

        self.call(Atom("emqx"), Atom("publish"), [record], published)

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
    if channel.gone:
        return refused(ClosedError(f"the connection is closed: {channel.reason}"))
    return link.fence()
