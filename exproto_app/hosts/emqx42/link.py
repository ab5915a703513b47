"""One connection process of the broker, as the engine's link to a device.

What ends here must never end at esockd's close where the device speaks UDP: all peers of a UDP listener share
one socket, and the broker closes that. So the process of such a peer is ended by `exit(Pid, kill)`, which
leaves the socket alone, but comes without `terminated`: our own end runs without the broker. And what is sent
goes by the listener's process, which survives a datagram that can't leave; the peer's own would close.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, Protocol

from ...commands import Command, Outcome, Register, Waiter
from ...core import Channel, Intake
from ...errors import ClosedError, CommandError, UnavailableError
from ...models import ConnectionInfo
from . import facts
from .terms import Atom, Opaque, TermError, body

if TYPE_CHECKING:
    from .past import Past

__all__ = ["CAST", "ErlangLink", "HubCalls", "cast_frame"]

log = logging.getLogger("exproto_app")

CAST: Final = Atom("$gen_cast")

PROBE: Final = 262_144
"""Bytes sent to a device by its process, beyond which that is asked whether it has taken them."""

FULL: Final = 1_048_576
"""Bytes that it hasn't taken, beyond which nothing more is sent: the device doesn't read."""

PROBE_REQUESTS: Final = 1_048_576
"""Bytes of requests, such as publishes, beyond which the process is asked likewise."""

FULL_REQUESTS: Final = 8_388_608
"""Bytes of requests that it hasn't taken, beyond which it is asked for nothing more.

EMQX ends a process with 32,000 messages in its mailbox.
"""

REQUEST_COST: Final = 256
"""Bytes that a request counts beside its own."""

DATAGRAM: Final = 65_507
"""Bytes of a datagram; with one that can't leave a peer's own process would close the socket of all."""

EARLY_SENDS: Final = 64
"""Datagrams that wait until the process of a UDP listener is known."""

_length: Final = Struct(">I").pack
_CAST_HEAD: Final = b"\x83h\x03d\x00\x01M"
_CAST_WORD: Final = b"h\x02" + body(CAST)
_SEND: Final = b"h\x02" + body(Atom("send")) + b"m"
_DATAGRAM: Final = b"h\x03" + body(Atom("datagram"))

Done = Callable[[Any, CommandError | None], None]


class HubCalls(Protocol):
    """What a link asks of the hub."""

    write: Callable[[bytes], None]
    waiter: Callable[[], Waiter]

    def execute(self, channel: Channel, link: ErlangLink, command: Command, /) -> Outcome[Any]:
        """Carry out what the connection of *link* asks of the broker."""
        ...

    def call(self, module: str, function: str, arguments: list[Any], done: Done, /) -> None:
        """Call a function of the broker; *done* gets its result or an error."""
        ...

    def reach(self, pid: bytes, done: Done, /) -> int | None:
        """Have *done* called when the process *pid* has handled all that was sent to it before."""
        ...

    def give_up(self, number: int, error: CommandError, /) -> None:
        """Fail the question of this number."""
        ...


class Hurried(Protocol):
    """A register that is under way when the device leaves."""

    def hurry(self, done: Callable[[], None], /) -> None:
        """Come to an end, then call *done*."""
        ...


def cast_frame(pid: bytes, request: object) -> bytes:
    """Return the frame that sends `{'$gen_cast', Request}` to *pid*."""
    data = _CAST_HEAD + pid + _CAST_WORD + body(request)
    return _length(len(data)) + data


class ErlangLink:
    """One connection process of the broker, which has the device's socket."""

    __slots__ = (
        "_asking",
        "_cast",
        "_confirmed_to",
        "_congested",
        "_datagram",
        "_early",
        "_full",
        "_hub",
        "_info",
        "_probing",
        "_questions",
        "_requested",
        "_send",
        "_size",
        "_taken_to",
        "channel",
        "ended",
        "ending",
        "last",
        "past",
        "pid",
        "published_to",
        "registration",
        "rescued",
        "subscriptions",
        "superuser",
        "udp",
        "withheld",
        "write",
    )

    answers = False
    buffered = 0

    @property
    def broker_side(self) -> ErlangLink:
        """Carries out what the connection asks of the broker: this."""
        return self

    def __init__(
        self, hub: HubCalls, pid: bytes, *, ended: Callable[[ErlangLink], None] | None = None
    ) -> None:
        self._hub = hub
        self.pid = pid
        self.channel: Intake | None = None
        self.ended = ended  # is told when the process was ended without `terminated`
        self.withheld: bytes | None = None
        self.published_to = self._confirmed_to = 0  # messages cast, and those that the process has taken
        self.rescued = False
        self.ending = False
        self.superuser = False
        self.registration: Hurried | None = None  # the register under way
        self.subscriptions: dict[str, int] = {}
        self.past: Past | None = None  # once something is published past the process
        self.last: Outcome[None] | None = None  # of the last that was
        self.udp: bool | None = None  # None: not known
        self.write: Callable[[bytes], object] = self._write
        self._info: ConnectionInfo | None = None
        self._cast = _CAST_HEAD + pid + _CAST_WORD
        self._send = self._cast + _SEND
        self._size = len(self._send) + 4
        self._datagram: bytes | None = None
        self._early: list[bytes] | None = None
        self._questions: dict[Outcome[None], int | None] = {}  # that wait for the process
        self._asking = 0
        self._taken_to = self._requested = 0  # bytes that the process may not have taken yet
        self._probing = self._full = False
        self._congested: dict[Channel, None] | None = None  # those that may ask for nothing more

    @property
    def info(self) -> ConnectionInfo | None:
        """How the device is connected, once that is known."""
        return self._info

    @info.setter
    def info(self, info: ConnectionInfo) -> None:
        self._info = info
        self.udp = info.socktype == "udp"
        if self.udp:
            self._early = []
            self.write = self._write_datagram
            arguments = [Opaque(self.pid), Atom("dictionary")]
            self._hub.call("erlang", "process_info", arguments, partial(self._informed, facts.peer(info)))

    # --- what is asked of the broker

    def execute(self, channel: Channel, command: Command) -> Outcome[Any]:
        """Have the hub carry *command* out, by the connection's process or past it."""
        return self._hub.execute(channel, self, command)

    def judges(self, channel: Channel, command: Register) -> bool:  # noqa: ARG002 - as `BrokerSide` has it
        """Return whether a login may be refused."""
        return command.password is not None

    # --- what is sent

    def send(self, chunks: list[bytes]) -> None:
        """Send *chunks*, on UDP and DTLS each by itself."""
        if len(chunks) > 1 and self._info is not None and self._info.socktype not in ("udp", "dtls"):
            chunks = [b"".join(chunks)]
        for data in chunks:
            self.write(data)

    def _write(self, data: bytes) -> None:
        size = len(data)
        self._hub.write(_length(self._size + size) + self._send + _length(size) + data)
        self._taken_to += size
        if self._taken_to > PROBE:
            self._probe()

    def _write_datagram(self, data: bytes) -> None:
        if self._datagram is not None:
            frame = self._datagram + _length(len(data)) + data
            self._hub.write(_length(len(frame)) + frame)
        elif self._early is None and len(data) <= DATAGRAM:
            self.cast((Atom("send"), data))
        elif self._early is None:
            log.warning("port ! %d bytes are dropped: a datagram has %d at most", len(data), DATAGRAM)
        elif len(self._early) < EARLY_SENDS:
            self._early.append(data)
        else:
            log.warning("port ! a datagram to %s is dropped: %d wait", self._info, EARLY_SENDS)

    def _informed(self, peer: Any, answer: object, error: CommandError | None) -> None:
        """Learn which process has the UDP listener's socket: the one that started this one."""
        server = None
        match answer:
            case ("dictionary", list() as pairs):
                ancestors = dict(pair for pair in pairs if len(pair) == 2).get("$ancestors")
                if isinstance(ancestors, list) and ancestors and facts.is_pid(ancestors[0]):
                    server = ancestors[0].raw
        if server is None:
            log.debug("port ! the listener of a UDP peer isn't known: %s", error or answer)
        else:
            self._datagram = _CAST_HEAD + server + _DATAGRAM + body(peer) + b"m"
        early, self._early = self._early, None
        for data in early or ():
            self._write_datagram(data)

    def _probe(self) -> None:
        """Ask the process whether it has taken what was sent; too much, and nothing more goes."""
        if self._taken_to > FULL and not self._full and self.channel is not None:
            self._full = True
            self.channel.unwritable()
        if self._probing or self.ending:
            return
        self._probing = True
        self.confirm().when_done(partial(self._probed, self._taken_to, self._requested))

    def _probed(self, taken: int, requested: int, outcome: Outcome[None]) -> None:
        self._probing = False
        if self.channel is None:
            return
        if outcome.error is None:
            self._taken_to -= taken
            self._requested -= requested
        elif not isinstance(outcome.error, UnavailableError):
            return  # the process has gone
        if self._full and self._taken_to <= FULL // 2:
            self._full = False
            self.channel.drained()
        if self._congested and self._requested <= FULL_REQUESTS // 2:
            congested, self._congested = self._congested, None
            for one in congested:
                one.relieved()
        if self._taken_to > PROBE or self._full or self._requested > PROBE_REQUESTS or self._congested:
            self._probe()

    def cast(self, request: object) -> None:
        """Send `{'$gen_cast', Request}` to the process; it answers nothing."""
        data = self._cast + body(request)
        size = len(data)
        self._hub.write(_length(size) + data)
        self._requested += size + REQUEST_COST
        if self._requested > PROBE_REQUESTS:
            self._probe()

    def bound(self, channel: Channel) -> None:
        """Have *channel* ask for nothing more while the process hasn't taken what it was asked for."""
        if self._requested > FULL_REQUESTS and not self.ending:
            if self._congested is None:
                self._congested = {}
            self._congested[channel] = None
            channel.congested()

    # --- questions

    def ask(self, done: Done) -> None:
        """Ask the process about itself; it answers behind everything that was sent to it before."""
        self._asking += 1
        self.answer()  # a process that waits for us answers nothing

        def answered(answer: object, error: CommandError | None) -> None:
            self._asking -= 1
            done(answer, error)

        self._hub.call("emqx_exproto_conn", "info", [Opaque(self.pid)], answered)

    def confirm(self) -> Outcome[None]:
        """Return the outcome of everything that was sent to the process before."""
        outcome: Outcome[None] = Outcome(self._hub.waiter)
        questions = self._questions
        questions[outcome] = None
        self._asking += 1
        self.answer()
        published = self.published_to

        def answered(_: object, error: CommandError | None) -> None:
            self._asking -= 1
            questions.pop(outcome, None)
            if error is None:
                self._confirmed_to = max(self._confirmed_to, published)
                outcome.settle(None)
            elif isinstance(error, UnavailableError):
                outcome.fail(UnavailableError(f"the broker's process doesn't answer: {error}"))
            else:
                outcome.fail(ClosedError(f"the broker's process is gone: {error}"))

        number = self._hub.reach(self.pid, answered)
        if not outcome.done:
            questions[outcome] = number
        return outcome

    @property
    def unconfirmed(self) -> bool:
        """Whether anything was published that the process may not have taken."""
        return self.published_to > self._confirmed_to

    def confirm_all(self) -> None:
        """Settle what waits for the process: what it will never look at was seen to otherwise."""
        self.rescued = True
        for outcome in tuple(self._questions):
            outcome.settle(None)

    def leave(self) -> None:
        """Let nobody wait for the process any more: it has gone."""
        error = ClosedError("it has ended")
        for number in tuple(self._questions.values()):
            if number is not None:
                self._hub.give_up(number, error)

    @property
    def may_wait(self) -> bool:
        """Whether an answer to the process may be withheld: it owes us none."""
        return not self._asking

    # --- its end

    def close(self) -> None:
        """Close when everything that was sent has been taken."""
        if self.udp is False:
            self.cast(Atom("close"))
            self.answer()
            return
        self.ask(self._asked_to_close)

    def _asked_to_close(self, answer: object, error: CommandError | None) -> None:
        if self.udp is None and isinstance(answer, dict):
            try:
                self.udp = facts.connection_info(answer[Atom("conninfo")]).socktype == "udp"
            except (TermError, KeyError):
                log.debug("port ! a connection of unknown kind: %r", answer)
        if self.udp is False:
            self.cast(Atom("close"))
        else:
            self.kill(str(error or ""))

    def abort(self) -> None:
        """End the process at once, whatever it waits for."""
        self.kill("it didn't close in time")

    def kill(self, detail: str = "", done: Callable[[], object] | None = None) -> None:
        """End the process and nothing else; it never says `terminated`."""
        self.ending = True

        def killed(answer: object, error: CommandError | None) -> None:
            why = error or facts.problem(answer)
            if why:
                log.warning("port ! a connection's process can't be ended: %s", why)
            if done is None:
                self._left(detail)
                return
            self.answer()
            self.leave()
            done()

        self._hub.call("erlang", "exit", [Opaque(self.pid), Atom("kill")], killed)

    def vanished(self) -> None:
        """Take note that the process has ended, and didn't say so."""
        self.ending = True
        self._left("the broker's process ended without a word")

    def _left(self, detail: str) -> None:
        """End our side: the process is no more."""
        self.answer()
        self.leave()
        channel, self.channel = self.channel, None
        if channel is not None:
            channel.terminated("lost", detail)
        if self.ended is not None:
            self.ended(self)

    # --- turns that wait

    def pause(self) -> None:
        """Do nothing: the next answer is withheld."""

    def resume(self) -> None:
        """Let the process go on."""
        self.answer()

    def answer(self) -> None:
        """Let the process go on, if it waits."""
        if self.withheld is not None:
            frame, self.withheld = self.withheld, None
            self._hub.write(frame)
