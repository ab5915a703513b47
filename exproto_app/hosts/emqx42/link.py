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
from typing import Any, Final, Protocol

from ...commands import Outcome, Waiter
from ...core import Intake
from ...errors import ClosedError, CommandError, UnavailableError
from ...models import ConnectionInfo
from . import facts
from .terms import Atom, Opaque, TermError, body

__all__ = ["CAST", "Caller", "ErlangLink", "cast_frame"]

log = logging.getLogger("exproto_app")

CAST: Final = Atom("$gen_cast")

PROBE: Final = 262_144
"""Bytes on their way to a connection process, beyond which it is asked whether it has taken them."""

FULL: Final = 1_048_576
"""Bytes that it hasn't taken, beyond which nothing more is sent: the device doesn't read."""

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


class Caller(Protocol):
    """What a link asks of the hub."""

    write: Callable[[bytes], None]
    waiter: Callable[[], Waiter]

    def call(self, module: str, function: str, arguments: list[Any], done: Done, /) -> None:
        """Call a function of the broker; *done* gets its result or an error."""
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
        "_datagram",
        "_early",
        "_fences",
        "_full",
        "_hub",
        "_info",
        "_probing",
        "_send",
        "_size",
        "_taken_to",
        "channel",
        "ended",
        "ending",
        "last",
        "pid",
        "published",
        "registration",
        "rescued",
        "subscriptions",
        "superuser",
        "udp",
        "withheld",
        "write",
    )

    answers = False

    def __init__(self, hub: Caller, pid: bytes, *, ended: Callable[[ErlangLink], None] | None = None) -> None:
        self._hub = hub
        self.pid = pid
        self.channel: Intake | None = None
        self.ended = ended  # is told when the process was ended without `terminated`
        self.withheld: bytes | None = None
        self.published = False
        self.rescued = False
        self.ending = False
        self.superuser = False
        self.registration: Hurried | None = None  # the register under way
        self.subscriptions: dict[str, int] = {}
        self.last: Outcome[None] | None = None  # of what was published past the process
        self.udp: bool | None = None  # None: not known
        self.write: Callable[[bytes], object] = self._write
        self._info: ConnectionInfo | None = None
        self._cast = _CAST_HEAD + pid + _CAST_WORD
        self._send = self._cast + _SEND
        self._size = len(self._send) + 4
        self._datagram: bytes | None = None
        self._early: list[bytes] | None = None
        self._fences: list[Outcome[None]] = []
        self._asking = 0
        self._taken_to = 0
        self._probing = self._full = False

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
        if self.udp:
            return
        if self._taken_to > FULL and not self._full and self.channel is not None:
            self._full = True
            self.channel.unwritable()
        if self._probing or self.ending:
            return
        self._probing = True
        self.ask(partial(self._probed, self._taken_to))

    def _probed(self, taken: int, answer: object, error: CommandError | None) -> None:
        self._probing = False
        if self.channel is None:
            return
        if error is None and isinstance(answer, dict):
            self._taken_to -= taken
        elif not isinstance(error, UnavailableError):
            return  # the process has gone, or says nothing that would tell
        if self._full and self._taken_to <= FULL // 2:
            self._full = False
            self.channel.drained()
        if self._taken_to > PROBE or self._full:
            self._probe()

    def cast(self, request: object) -> None:
        """Send `{'$gen_cast', Request}` to the process; it answers nothing."""
        data = self._cast + body(request)
        self._hub.write(_length(len(data)) + data)

    # --- questions

    def ask(self, done: Done) -> None:
        """Ask the process about itself; it answers behind everything that was sent to it before."""
        self._asking += 1
        self.answer()  # a process that waits for us answers nothing

        def answered(answer: object, error: CommandError | None) -> None:
            self._asking -= 1
            done(answer, error)

        self._hub.call("emqx_exproto_conn", "info", [Opaque(self.pid)], answered)

    def fence(self) -> Outcome[None]:
        """Return the outcome of everything that was sent to the process before."""
        outcome: Outcome[None] = Outcome(self._hub.waiter)
        self._fences.append(outcome)

        def answered(answer: object, error: CommandError | None) -> None:
            if outcome in self._fences:
                self._fences.remove(outcome)
            if error is None and isinstance(answer, dict):
                outcome.settle(None)
            elif error is None or isinstance(error, UnavailableError):
                outcome.fail(UnavailableError(f"the broker's process doesn't answer: {error or answer!r}"))
            else:
                outcome.fail(ClosedError(f"the broker's process is gone: {error}"))

        self.ask(answered)
        return outcome

    def pass_fences(self) -> None:
        """Settle what waits for the process: what it will never look at was seen to otherwise."""
        self.rescued = True
        fences, self._fences = self._fences, []
        for outcome in fences:
            outcome.settle(None)

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
            self.answer()
            if done is not None:
                done()
                return
            channel, self.channel = self.channel, None
            if channel is not None:
                channel.terminated("lost", detail)
            if self.ended is not None:
                self.ended(self)

        self._hub.call("erlang", "exit", [Opaque(self.pid), Atom("kill")], killed)

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
