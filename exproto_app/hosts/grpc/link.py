"""GrpcLink: one connection of a broker, as the engine's channel sees it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from ...commands import Outcome, refused
from ...core import Intake
from ...errors import ClosedError, CommandError
from ...models import Reason
from . import exproto_pb2 as pb
from .answers import Crashed, Dead, judge
from .broker_side import BrokerSide
from .client import OK, Done

if TYPE_CHECKING:
    from .broker import Broker

__all__ = ["PROBE", "GrpcLink"]

log = logging.getLogger("exproto_app")

GRACE: Final = 1.0
"""Seconds in which the broker may still tell why a connection is gone that it no longer has."""

CLOSE_WAIT: Final = 3.0
"""Seconds until a connection that we closed counts as gone although the broker didn't say so."""

END_WAIT: Final = 15.0
"""Seconds for which the end of a connection waits for the broker's answers to what its device said before."""

ROUNDS: Final = 5
"""Rounds of the loop in which a handler goes on that has waited for such an answer."""

NEVER_IDLE: Final = 86_400
"""Seconds given to the broker's own timer: ours does the work, but without it UDP ends after 30 s."""

PROBE: Final = "exproto-app/probe"
"""A topic that nobody subscribed to: taking it back changes nothing, and tells whether there is somebody."""


class GrpcLink:
    """One connection process of the broker, which has the device's socket.

    *asked*: the device has shown a login. *proven*: the broker took it, so that what the device says counts
    even when its connection has gone. *refusing*: a login has just failed, and takes with it what was to be
    published behind it. *left*: the device has gone, and the broker takes nothing more from it.
    """

    __slots__ = (
        "_ending",
        "_head",
        "_pending",
        "_timer",
        "_unjudged",
        "asked",
        "broker",
        "channel",
        "closing",
        "conn",
        "datagram",
        "heard",
        "left",
        "proven",
        "refusing",
        "unsure",
        "withheld",
    )

    answers = True
    write = None
    confirm = None
    buffered = 0

    def __init__(self, broker: Broker, conn: bytes, *, datagram: bool) -> None:
        self.broker = broker
        self.conn = conn
        self.datagram = datagram
        self.channel: Intake | None = None
        self.heard = 0.0
        self.closing = self.left = False
        self.asked = self.proven = self.refusing = False
        self.unsure = b""  # an Authenticate whose answer never came
        self.withheld: list[Callable[[], None]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pending = 0  # commands that the broker has not answered
        self._ending: tuple[Intake, Reason, str] | None = None
        self._unjudged: Callable[[bool], None] | None = None
        self._head = b"\x0a" + _varint(len(conn)) + conn + b"\x12"

    # --- from the channel

    @property
    def broker_side(self) -> BrokerSide:
        """Carries out what the device asks of the broker."""
        return BrokerSide(self)

    def send(self, chunks: list[bytes]) -> Outcome[None]:
        if self.closing:
            return refused(ClosedError("the broker is closing the connection"))
        outcome: Outcome[None] = Outcome(self.broker.waiter)
        if self.datagram and len(chunks) > 1:
            self._send_each(deque(chunks), outcome)
        else:
            data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            self._send(data, partial(self._sent, outcome))
        return outcome

    def close(self) -> None:
        self.closing = True
        self.answer()  # the broker reports the end behind what waits for our answer
        if self._ending is not None:
            self._end_now()
        else:
            self.broker.ended.close_again(self.conn)

    def abort(self) -> None:
        self.close()
        self.broker.loop.call_soon(self.gone, "the broker didn't close it in time")

    def pause(self) -> None:
        """Do nothing: the service withholds its answers while the channel is paused."""

    def resume(self) -> None:
        self.answer()

    # --- from the broker side

    def call(self, name: str, request: bytes, done: Done) -> None:
        """Call the adapter for the device; the end of the connection waits for the answer."""
        self._pending += 1

        def answered(status: int, answer: bytes) -> None:
            self._pending -= 1
            done(status, answer)
            if self._ending is not None and not self._pending:
                self._look_ended(ROUNDS)

        self.broker.call(name, request, answered, self.conn)

    def when_over(self, told: Callable[[bool], None]) -> None:
        """Call *told* with whether the broker has said that the device hung up, within `GRACE`.

        It says so of a process that ended because of that, and not of one that crashed.
        """
        if self._ending is not None:
            told(True)
            return
        self._unjudged = told
        self.broker.loop.call_later(GRACE, self._over_or_not, False)

    # --- from the service

    def answer(self) -> None:
        """Let the broker go on, if it waits."""
        withheld, self.withheld = self.withheld, None
        for answer in withheld or ():
            answer()

    def lift_idle_limit(self) -> None:
        """Have the broker leave a UDP connection alone."""
        request = pb.TimerRequest(conn=self.conn.decode(), type=pb.KEEPALIVE, interval=NEVER_IDLE)
        self.broker.call("StartTimer", request.SerializeToString(), self._idle_lifted, self.conn)

    def probe(self, done: Callable[[], None]) -> None:
        """Ask whether the broker still has the connection."""
        request = pb.UnsubscribeRequest(conn=self.conn.decode(), topic=PROBE)

        def answered(status: int, answer: bytes) -> None:
            self.judge("Unsubscribe", status, answer)
            done()

        self.broker.call("Unsubscribe", request.SerializeToString(), answered, self.conn)

    def judge(self, name: str, status: int, answer: bytes) -> CommandError | None:
        """Return what an answer of the adapter means, None for success."""
        error = judge(name, status, answer, registered=self.proven)
        if isinstance(error, Dead):
            self.broker.ended.over(self.conn)
            self.missing()
        elif isinstance(error, Crashed):
            self.left = True
            if self._ending is None:
                self.close()
        elif isinstance(error, ClosedError):
            self.left = True  # the broker tells of the end once it has emptied its queue
        return error

    def missing(self) -> None:
        """Take note that the broker has no such connection: wait a little for its own words, then end it."""
        self.closing = self.left = True
        self.answer()
        if self._timer is None and self._ending is None:
            # Where we had ended it already, there is nothing left to learn.
            wait = GRACE if self.channel is not None and self.channel.closing is None else 0.0
            words = "the broker has no such connection"
            self._timer = self.broker.loop.call_later(wait, self.gone, words)

    def gone(self, detail: str) -> None:
        """End the connection without the broker's words."""
        self.broker.forget(self)
        if self.channel is not None:
            channel, self.channel = self.channel, None
            channel.terminated("lost", detail)

    def over(self, reason: Reason, words: str) -> None:
        """End the connection as the broker says, once it has answered what the device said before."""
        self.broker.ended.over(self.conn)
        self.broker.forget(self)
        if self.channel is None:
            return
        self._ending, self.channel, self.left = (self.channel, reason, words), None, True
        self._timer = self.broker.loop.call_later(END_WAIT, self._end_now)
        self._over_or_not(True)
        self._look_ended(ROUNDS)  # a handler may not have begun yet

    def ended(self) -> None:
        """Let go of what waits for the end."""
        self.closing = True
        self.answer()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def unclosed(self) -> None:
        """Take note that the broker could not be told to close it."""
        if self._ending is None:
            self.gone("the broker could not be told to close it")

    def close_told(self) -> None:
        """Wait for the broker's words, now that it closes the connection."""
        if self._timer is None and self.channel is not None:
            words = "the broker didn't tell of its end"
            self._timer = self.broker.loop.call_later(CLOSE_WAIT, self.gone, words)

    # --- inside

    def _over_or_not(self, over: bool) -> None:
        told, self._unjudged = self._unjudged, None
        if told is not None:
            told(over)

    def _look_ended(self, rounds: int) -> None:
        if self._ending is None or self._pending:
            return
        if rounds:
            self.broker.loop.call_soon(self._look_ended, rounds - 1)
        else:
            self._end_now()

    def _end_now(self) -> None:
        if self._ending is None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        (channel, reason, words), self._ending = self._ending, None
        channel.terminated(reason, words)

    def _send(self, data: bytes, done: Done) -> None:
        # A SendBytesRequest, by hand: it is most of what is sent.
        broker = self.broker
        broker.client.call(broker.send, self._head + _varint(len(data)) + data, done, self.conn)

    def _send_each(self, chunks: deque[bytes], outcome: Outcome[None]) -> None:
        """Send datagrams one after another: calls may overtake each other."""

        def done(status: int, answer: bytes) -> None:
            error = self.judge("Send", status, answer)
            if error is not None:
                outcome.fail(error)
            elif not chunks:
                outcome.settle(None)
            elif self.closing:
                outcome.fail(ClosedError("the broker is closing the connection"))
            else:
                self._send(chunks.popleft(), done)

        self._send(chunks.popleft(), done)

    def _sent(self, outcome: Outcome[None], status: int, answer: bytes) -> None:
        if status == OK and not answer:
            outcome.settle(None)
            return
        error = self.judge("Send", status, answer)
        if error is None:
            outcome.settle(None)
        else:
            outcome.fail(error)

    def __str__(self) -> str:
        return self.conn.decode() if self.channel is None else str(self.channel)

    def _idle_lifted(self, status: int, answer: bytes) -> None:
        error = self.judge("StartTimer", status, answer)
        if error is not None and not self.closing:
            log.warning("%s ! the broker will end it after its idle_timeout: %s", self, error)


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
