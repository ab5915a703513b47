"""Our message loop in the broker's Python process, in the place of erlport's own.

The broker's calls are answered at once with "go on", behind what their handlers sent; closing is always
ours, so that what was sent still arrives. Only while a connection's queue is full its process
waits for the answer, and with it the device.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from struct import Struct
from typing import Any, Final

from ...asyncio_host.runner import Runner
from ...core import Intake
from ...errors import ExprotoError
from ...ops.logs import configure_from
from . import facts
from .broker import BrokerHub
from .calls import framed
from .driver import Driver, driver_of
from .leftovers import Leftovers
from .link import ErlangLink, cast_frame
from .logtext import LogText
from .port import Port
from .terms import Atom, Opaque, TermError, body, decode

__all__ = ["Driver", "main"]

log = logging.getLogger("exproto_app")

LOG_LINE: Final = "%(levelname)s %(name)s: %(message)s"
"""The broker's log has the time already."""

OK: Final = Atom("ok")
PIPE: Final = 1_048_576
"""Bytes that the pipe to the broker holds, where it may: fewer and larger reads and writes."""

F_SETPIPE_SZ: Final = 1031
"""`fcntl` has its name on Linux only."""

COLLECT: Final = (20_000, 20, 50)

STATE: Final = Atom("undefined")
"""What travels to Erlang and back with every call; our state stays here."""

SHORTEST: Final = 16
"""Bytes that a call has at least: its number may be read without looking where the frame ends."""

EARLY: Final = 1_000
"""Events that may wait while the broker is asked about a connection from before our start."""

ENDED: Final = 4_096
"""Connections that we ended ourselves and whose late calls are known as such."""

_length: Final = Struct(">I").pack
_u16: Final = Struct(">H").unpack_from
_u32: Final = Struct(">I").unpack_from
_ANSWER: Final = b"\x83h\x03d\x00\x01r"
_OK: Final = body(OK)
_CALL_HEADS: Final = (b"\x83h\x05d\x00\x01C", b"\x83h\x05w\x01C", b"\x83h\x05s\x01C")


class Process:
    """The Python process of one listener."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._loop = asyncio.get_running_loop()
        self.port = Port(read_fd, write_fd, received=self._received, ended=self._ended)
        self._write_in_batch = self.port.write_in_batch
        self.stopped: asyncio.Future[None] = self._loop.create_future()
        self._links: dict[bytes, ErlangLink] = {}
        self._ended_links: dict[bytes, None] = {}
        self._early: dict[bytes, list[Callable[[Intake], None]]] = {}
        self._driver: Driver | None = None
        self.hub = BrokerHub(self.port.write)
        self.hub.serves = self._links.__contains__
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
        self._loop.call_later(0, Leftovers(self.hub, self._found).look)
        await self.stopped
        if self._runner is not None:
            await self._runner.stop()
        await self.hub.finish()
        if self.log is not None:
            await self.log.finish()
        self.port.stop()

    def _stop(self) -> None:
        if not self.stopped.done():
            self.stopped.set_result(None)

    def _ended(self) -> None:
        """Take the end of the broker's stream: every connection of it is gone."""
        self.hub.lose()
        for link in tuple(self._links.values()):
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
                link = self._links.get(frame[start:behind])
                first = behind + 5
                if link is not None and first < len(frame) and frame[behind] == 109:
                    size = _u32(frame, behind + 1)[0]
                    if frame[first + size :] == self._tail and link.channel is not None:
                        channel = link.channel
                        channel.received(frame[first : first + size])
                        number = frame[at:end]
                        answer = _length(len(number) + 12) + _ANSWER + number + _OK
                        if not channel.held:
                            self._write_in_batch(answer)
                        else:
                            self._answer_behind(link, channel, answer)
                        return
        self._received_slowly(frame)

    def _received_slowly(self, frame: bytes) -> None:
        try:
            term = decode(frame)
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
            case _:
                log.error("port ! an unknown message: %.200r", term)

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

    async def _import(self, module: str) -> None:
        try:
            self._driver = driver_of(module)
            if self._driver.acl:
                self.hub.ask_acl()
            runner = Runner(self._driver.app, self.hub, exits=())  # the process is the broker's
            await runner.start()
            self._runner = runner
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's file raises, the log has to tell
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
                try:
                    messages = facts.messages(batch)
                except TermError as error:
                    self._fail(number, "ValueError", str(error))
                    return
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
            self._fail(number, "ValueError", str(error))
            return
        self._ended_links.pop(pid, None)
        link = ErlangLink(self.hub, pid, ended=self._killed)
        channel = self._connected(link, info, resumed=False)
        self._answer_behind(link, channel, framed((Atom("r"), number, (0, STATE))))

    def _connected(self, link: ErlangLink, info: Any, *, resumed: bool) -> Intake:
        if self._runner is None or self._driver is None:
            raise RuntimeError("a connection before the app has started")
        link.info = info
        self._links[link.pid] = link
        return self._runner.engine.connected(link, info, self._driver.routers, resumed=resumed)

    def _event(self, number: object, pid: bytes, feed: Callable[[Intake], None]) -> None:
        link = self._links.get(pid)
        if link is None:
            self._unknown(pid, feed)
            self._answer(number, OK)
            return
        answer = framed((Atom("r"), number, OK))
        channel = link.channel
        if channel is None:
            self.port.write(answer)
        else:
            feed(channel)
            self._answer_behind(link, channel, answer)

    def _answer_behind(self, link: ErlangLink, channel: Intake, answer: bytes) -> None:
        """Answer behind what an async handler does before its first await; not while the queue is full.

        The connection's process handles what was sent to it before it looks after the device again: what
        comes later than a hang-up would be lost.
        """
        if channel.paused and channel.closing is None and link.may_wait:
            link.withheld = answer
        elif channel.turn is None:
            self.port.write(answer)
        else:
            self._loop.call_soon(self.port.write, answer)

    def _terminated(self, number: object, pid: bytes, why: object) -> None:
        link = self._links.pop(pid, None)
        self._early.pop(pid, None)

        def end() -> None:
            if link is not None and link.channel is not None:
                channel, link.channel = link.channel, None
                channel.terminated(*facts.reason(why))
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
            if link.published:
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

    def _killed(self, link: ErlangLink) -> None:
        """Forget *link*, whose process we ended; calls that it made before may still come."""
        self._links.pop(link.pid, None)
        self._ended_links[link.pid] = None
        if len(self._ended_links) > ENDED:
            del self._ended_links[next(iter(self._ended_links))]

    # --- connections from before our start (rule 8)

    def _unknown(self, pid: bytes, feed: Callable[[Intake], None]) -> None:
        """Take an event of a connection from before our start."""
        if pid in self._ended_links:
            return
        early = self._early.get(pid)
        if early is not None:
            if len(early) < EARLY:
                early.append(feed)
            else:
                log.warning("port ! an event of a connection from before our start is dropped")
            return
        link = self._meet(pid)
        if link is None:
            return
        self._early[pid] = [feed]
        link.ask(lambda about, error: self._informed(link, about, error))

    def _meet(self, pid: bytes) -> ErlangLink | None:
        """Close the connection of *pid*, which began before our start, or return its link to resume it."""
        if self._runner is None or self._driver is None:
            return None
        link = ErlangLink(self.hub, pid, ended=self._killed)
        if self._runner.engine.unknown(link, self._driver.routers):
            return link
        self._killed(link)
        return None

    def _informed(self, link: ErlangLink, about: object, error: object) -> None:
        """Go on with a connection from before our start, now that the broker has told of it."""
        events = self._early.pop(link.pid, None)
        if events is None or link.pid in self._links:
            return
        try:
            known: Any = about
            info = facts.connection_info(known[Atom("conninfo")])
        except (TermError, KeyError, TypeError) as wrong:
            log.warning("port ! a connection from before our start can't be resumed: %s", error or wrong)
            link.close()
            return
        self._connected(link, info, resumed=True)
        for event in events:
            if link.channel is not None:
                event(link.channel)

    def _found(self, module: str, pid: bytes, about: object) -> None:
        """Take a connection that was there at our start and has said nothing yet."""
        self._begin(module)
        if self._runner is None and self._starting is not None and not self._broken:
            self._starting.add_done_callback(lambda _: self._take_found(pid, about))
        else:
            self._take_found(pid, about)

    def _take_found(self, pid: bytes, about: object) -> None:
        if pid in self._links or pid in self._ended_links or pid in self._early:
            return
        link = self._meet(pid)
        if link is not None:
            self._early[pid] = []
            self._informed(link, about, None)


def _socktype(about: object) -> str:
    """Return the kind of socket that `init` tells, "" if it tells none."""
    try:
        return str(dict(about)[Atom("socktype")])  # type: ignore[call-overload] # whatever it is, it is caught
    except (KeyError, TypeError, ValueError):
        return ""


async def serve(read_fd: int, write_fd: int) -> None:
    """Serve the broker on these two files."""
    process = Process(read_fd, write_fd)
    stream = process.log = LogText(process.hub, asyncio.get_running_loop())
    sys.stdout = sys.stderr = stream
    configure_from(os.environ, stream, text=LOG_LINE)
    await process.run()


def main() -> None:
    """Take the pipe to the broker out of everybody's reach, then serve it."""
    read_fd, write_fd = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    # A stray byte on fd 1, of a child process or a C library, would wedge the broker's side for good.
    os.dup2(2 if _is_open(2) else null, 1)
    os.close(null)
    for fd in (read_fd, write_fd):
        with contextlib.suppress(OSError):  # it is no pipe, or may not be larger
            fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE)
    # What stands now stays: the collector needn't look at it time and again, nor at each few hundred frames.
    gc.freeze()
    gc.set_threshold(*COLLECT)
    # Not on uvloop: pipes of few and large reads gain nothing by it.
    asyncio.run(serve(read_fd, write_fd))


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
