"""The Python process of one listener of the broker's.

The broker's calls are answered at once with "go on", behind what their handlers sent; closing is always
ours, so that what was sent still arrives. Only while a connection's queue is full its process
waits for the answer, and with it the device.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import traceback
from collections.abc import Callable
from struct import Struct
from typing import Any, Final

from ...asyncio_host.runner import Runner
from ...core import Channel, Intake
from ...errors import ExprotoError
from . import facts
from .answers import Answers
from .broker import BrokerHub
from .calls import framed
from .driver import Driver, driver_of
from .leftovers import Leftovers
from .link import ErlangLink, cast_frame
from .liveness import Liveness
from .logtext import LogText
from .port import Port
from .presence import Presence
from .terms import Atom, Opaque, TermError, TermTooLargeError, body, decode, parse

__all__ = ["Process"]

log = logging.getLogger("exproto_app")

OK: Final = Atom("ok")

STATE: Final = Atom("undefined")
"""What travels to Erlang and back with every call; our state stays here."""

SHORTEST: Final = 16
"""Bytes that a call has at least: its number may be read without looking where the frame ends."""

ENDED: Final = 4_096
"""Connections that we ended ourselves and whose late calls are known as such."""

_length: Final = Struct(">I").pack
_u32: Final = Struct(">I").unpack_from
_ANSWER: Final = b"\x83h\x03d\x00\x01r"
_OK: Final = body(OK)
_CALL_HEADS: Final = (b"\x83h\x05d\x00\x01C", b"\x83h\x05w\x01C", b"\x83h\x05s\x01C")


class Process:
    """The Python process of one listener."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._loop = asyncio.get_running_loop()
        self.port = Port(
            read_fd, write_fd, received=self._received, unreadable=self._unreadable, ended=self._ended
        )
        self._write_in_batch = self.port.write_in_batch
        self._answers = Answers(self.port.write)
        self.stopped: asyncio.Future[None] = self._loop.create_future()
        self.links: dict[bytes, ErlangLink] = {}
        self.ended_links: dict[bytes, None] = {}
        self._driver: Driver | None = None
        self.hub = BrokerHub(self.port.write)
        self.hub.serves = self._serves
        self._presence = Presence(self.hub, self._client, self.links)
        self._leftovers = Leftovers(self)
        self._liveness = Liveness(self.hub, self.links)
        self._module = ""
        self._runner: Runner | None = None
        self._starting: asyncio.Task[None] | None = None
        self._waiting: list[bytes] = []
        self._broken = False
        self.log: LogText | None = None
        # The bytes between a call's number and its pid, and those behind its data, once a call of `received`
        # has been seen.
        self._mark = self._tail = b""
        self._pid_size = 0

    async def run(self) -> None:
        """Serve until the broker closes the port or the process is told to end."""
        for name in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(name, self._stop)
        self.port.start()
        # Behind the first look at the port, which may be closed already.
        self._loop.call_later(0, self._leftovers.look)
        self._loop.call_later(0, self._presence.watch)
        await self.stopped
        if self._runner is not None:
            await self._runner.stop()
        await self.hub.finish()
        if self.log is not None:
            await self.log.finish()
        self.port.stop()

    def _client(self, clientid: str) -> Channel | None:
        return None if self._runner is None else self._runner.engine.clients.get(clientid)

    def _serves(self, pid: bytes, clientid: str) -> bool:
        """Return whether the engine ends the connection of *pid* itself when *clientid* registers anew.

        One from before our start, which was resumed, is nobody to it.
        """
        link = self.links.get(pid)
        if link is None:
            return False
        known = self._client(clientid)
        return link.registration is not None or (known is not None and known is link.channel)

    def _stop(self) -> None:
        if not self.stopped.done():
            self.stopped.set_result(None)

    def _ended(self) -> None:
        """Take the end of the broker's stream: every connection of it is gone."""
        self.hub.lose()
        for link in tuple(self.links.values()):
            if link.channel is not None:
                link.channel.terminated("lost", "the broker closed the port")
        self._stop()

    # --- frames

    def _received(self, frame: bytes) -> None:
        """Take a frame: the hot path first, that of a device's bytes."""
        if frame.startswith(_CALL_HEADS) and len(frame) > SHORTEST:
            at = 7 if frame[3] == 100 else 6
            tag = frame[at]
            end = at + (2 if tag == 97 else 5 if tag == 98 else 3 + frame[at + 1])
            mark = self._mark
            if mark and frame.startswith(mark, end):
                start = end + len(mark)
                behind = start + self._pid_size
                link = self.links.get(frame[start:behind])
                first = behind + 5
                if link is not None and first < len(frame) and frame[behind] == 109:
                    size = _u32(frame, behind + 1)[0]
                    if frame[first + size :] == self._tail and link.channel is not None:
                        channel = link.channel
                        channel.received(frame[first : first + size])
                        number = frame[at:end]
                        answer = _length(len(number) + 12) + _ANSWER + number + _OK
                        if not channel.busy:
                            self._write_in_batch(answer)
                        else:
                            self._answers.behind(link, channel, answer)
                        return
        self._received_slowly(frame)

    def _received_slowly(self, frame: bytes) -> None:
        try:
            term = decode(frame)
        except TermTooLargeError as error:
            self._unreadable(frame, f"a frame of {len(frame)} bytes is given up: {error}")
            return
        except TermError as error:
            log.error("port ! a frame of %d bytes is no term: %s", len(frame), error)  # noqa: TRY400 - the broker's fault, not a bug's trace
            return
        match term:
            case ("C", int() as number, Atom() as module, function, list() as arguments):
                if self._runner is None:
                    self._start(module, frame)
                elif module != self._module:
                    words = f"this process serves {self._module}, not {module}"
                    log.error("port ! %s: %s was called", words, function)
                    self._fail(number, "ImportError", words)
                else:
                    self._called(frame, number, str(function), arguments)
            case ("r", number, result):
                self.hub.answered(number, result, None)
            case ("e", number, wrong):
                self.hub.answered(number, None, wrong)
            case ("M", (int() as number, answer)):
                self.hub.answered(number, answer, None)
            case ("M", ("deliver", _, message)):
                self._presence.announced(message)
            case _:
                log.error("port ! an unknown message: %.200r", term)

    def _unreadable(self, frame: bytes, why: str) -> None:
        """Take the beginning of a *frame* whose rest can't be taken: whoever waits for us waits no longer."""
        log.error("port ! %s", why)
        match _numbered(frame):
            case ("C", number):
                self._answer(number, OK)
            case (("r" | "e"), number):
                self.hub.answered(number, None, why.encode())

    def _answer(self, number: object, result: object) -> None:
        self.port.write(framed((Atom("r"), number, result)))

    def _fail(self, number: object, kind: str, words: str) -> None:
        failure: tuple[Any, ...] = (Atom("python"), Atom(kind), words.encode(), [])
        self.port.write(framed((Atom("e"), number, failure)))

    # --- calls

    def _start(self, module: object, frame: bytes) -> None:
        """Import the callback module with the first call; calls wait until the app has started."""
        if self._broken:
            self._refuse(frame)
            return
        self._waiting.append(frame)
        self._begin(str(module))

    def _begin(self, module: str) -> None:
        if self._starting is None:
            self._module = module
            self._starting = asyncio.ensure_future(self._import(module))

    def when_started(self, module: str, then: Callable[[], object]) -> None:
        """Import *module*, if no call has led to that yet, and call *then*, whatever has come of it."""
        self._begin(module)
        if self._starting is not None and not self._starting.done():
            self._starting.add_done_callback(lambda _: then())
        else:
            then()

    def meet(self, pid: bytes) -> ErlangLink | None:
        """Close the connection of *pid*, which began before our start, or return its link to resume it."""
        if self._runner is None or self._driver is None:
            return None
        link = ErlangLink(self.hub, pid, ended=self.forget)
        if self._runner.engine.unknown(link, self._driver.routers):
            return link
        self.forget(link)
        return None

    async def _import(self, module: str) -> None:
        try:
            self._driver = driver_of(module)
            if self._driver.acl:
                self.hub.ask_acl()
            runner = Runner(self._driver.app, self.hub, exits=())  # the process is the broker's
            await runner.start()
            self._runner = runner
            self._liveness.watch()
        except BaseException as error:  # noqa: BLE001 - whatever the user's file raises, the log has to tell
            self._broken = True
            if isinstance(error, ExprotoError):
                log.error("exproto-app ! %s can't be served: %s", module, error)  # noqa: TRY400 - the sentence says all
            else:
                trace = "".join(traceback.format_exception(error))
                log.error("exproto-app ! %s can't be imported; every device is closed:\n%s", module, trace)  # noqa: TRY400 - as above
        waiting, self._waiting = self._waiting, []
        for frame in waiting:
            if self._broken:
                self._refuse(frame)
            else:
                self._received_slowly(frame)

    def _refuse(self, frame: bytes) -> None:
        """Go on, and close: there is no app."""
        match decode(frame):
            case ("C", number, _, "init", [Opaque() as pid, about, *_]):
                link = ErlangLink(self.hub, pid.raw)
                self._answer(number, (0, STATE))
                # Of a UDP peer never the socket, which all of them share.
                if _socktype(about) == "udp":
                    link.kill()
                else:
                    self.port.write(cast_frame(pid.raw, Atom("close")))
            case ("C", number, _, "terminated", [Opaque() as pid, *_]):
                self._end_process(number, pid.raw)
            case (_, number, *_):
                self._answer(number, OK)

    def _end_process(self, number: object, pid: bytes) -> None:
        """Answer to `terminated` when the process can't close its socket any more, which others may share."""
        ErlangLink(self.hub, pid).kill(done=lambda: self._answer(number, OK))

    def _called(self, frame: bytes, number: int, function: str, arguments: list[Any]) -> None:
        match function, arguments:
            case "init", [pid, about] if facts.is_pid(pid):
                self._init(number, pid.raw, about)
            case "received", [pid, bytes() as data, _] if facts.is_pid(pid):
                self._learn(frame, number, pid.raw, data)
                self._event(number, pid.raw, lambda channel: channel.received(data))
            case "deliver", [pid, list() as batch, _] if facts.is_pid(pid):
                messages, wrong = facts.readable(batch)
                if wrong and pid.raw not in self.links and not messages:
                    self._fail(number, "ValueError", wrong[0])
                    return
                for words in wrong:
                    self._drop(pid.raw, words)
                self._event(number, pid.raw, lambda channel: channel.delivered(messages))
            case "terminated", [pid, why, _] if facts.is_pid(pid):
                self._terminated(number, pid.raw, why)
            case (("init" | "received" | "deliver" | "terminated"), _):
                words = f"{function} was called with {len(arguments)} arguments that it doesn't take"
                log.error("port ! %s: %.200r", words, arguments)
                self._fail(number, "TypeError", words)
            case _:
                log.error("port ! there is no callback %r", function)
                self._fail(number, "AttributeError", f"exproto-app has no callback {function}")

    def _drop(self, pid: bytes, why: str) -> None:
        """Drop a message for the device of *pid*."""
        link = self.links.get(pid)
        if self._runner is not None:
            self._runner.engine.count("deliveries_dropped")
            self._runner.engine.count("deliveries_dropped.unreadable")
        who = link.channel if link is not None and link.channel is not None else "port"
        log.warning("%s ! a message that can't be read is dropped: %s", who, why)

    def _learn(self, frame: bytes, number: int, pid: bytes, data: bytes) -> None:
        """Note what a call of `received` looks like here, for the hot path."""
        if not self._mark and frame.count(pid) == 1:
            head = next((head for head in _CALL_HEADS if frame.startswith(head)), None)
            if head is not None:
                self._mark = frame[len(head) + len(body(number)) : frame.index(pid)]
                self._pid_size = len(pid)
                self._tail = frame[frame.index(pid) + len(pid) + 5 + len(data) :]

    def _init(self, number: int, pid: bytes, about: Any) -> None:
        try:
            info = facts.connection_info(about)
        except TermError as error:
            # Its process ends before it has begun, which does a UDP socket no harm.
            self._fail(number, "ValueError", str(error))
            return
        self.ended_links.pop(pid, None)
        link = ErlangLink(self.hub, pid, ended=self.forget)
        channel = self.connected(link, info, resumed=False)
        self._answers.behind(link, channel, framed((Atom("r"), number, (0, STATE))))

    def connected(self, link: ErlangLink, info: Any, *, resumed: bool) -> Intake:
        if self._runner is None or self._driver is None:
            raise RuntimeError("a connection before the app has started")
        link.info = info
        self.links[link.pid] = link
        return self._runner.engine.connected(link, info, self._driver.routers, resumed=resumed)

    def _event(self, number: object, pid: bytes, feed: Callable[[Intake], object]) -> None:
        link = self.links.get(pid)
        if link is None:
            self._leftovers.event(pid, feed)
            self._answer(number, OK)
            return
        answer = framed((Atom("r"), number, OK))
        channel = link.channel
        if channel is None:
            self.port.write(answer)
        else:
            feed(channel)
            self._answers.behind(link, channel, answer)

    def _terminated(self, number: object, pid: bytes, why: object) -> None:
        link = self.links.pop(pid, None)
        self._leftovers.forget(pid)

        def end() -> None:
            if link is not None and link.channel is not None:
                channel, link.channel = link.channel, None
                channel.terminated(*facts.reason(why))
                link.leave()
            if link is not None and not link.udp:
                self._answer(number, OK)
            else:
                self._end_process(number, pid)

        if link is None:
            end()
            return
        link.ending = True
        self._hurry(link, end)

    def _hurry(self, link: ErlangLink, end: Callable[[], None]) -> None:
        """See to what the device's process will never look at, then *end*."""

        def rescue() -> None:
            if link.unconfirmed:
                self.hub.rescue(link, settle)
            else:
                settle()

        def settle() -> None:
            if link.last is None:
                end()
            else:
                link.last.when_done(lambda _: end())

        if link.registration is None:
            rescue()
        else:
            link.registration.hurry(rescue)

    def forget(self, link: ErlangLink) -> None:
        """Forget *link*, whose process we ended; calls that it made before may still come."""
        self.links.pop(link.pid, None)
        self.ended_links[link.pid] = None
        if len(self.ended_links) > ENDED:
            del self.ended_links[next(iter(self.ended_links))]


def _numbered(frame: bytes) -> tuple[str, int] | None:
    """Return the kind and the number of a message that begins as *frame* does; None if it has none."""
    if frame[:2] != b"\x83h":  # a small tuple
        return None
    try:
        kind, at = parse(frame, 3)
        number, _ = parse(frame, at)
    except TermError:
        return None
    return (kind, number) if isinstance(kind, Atom) and isinstance(number, int) else None


def _socktype(about: object) -> str:
    """Return the kind of socket that `init` tells, "" if it tells none."""
    try:
        return str(dict(about)[Atom("socktype")])  # type: ignore[call-overload] # whatever it is, it is caught
    except (KeyError, TypeError, ValueError):
        return ""
