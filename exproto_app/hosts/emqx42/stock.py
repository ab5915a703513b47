"""The callback module on the broker's own loop, erlport's: `gen-driver --stock`.

That loop reads, calls, and answers, one call after another, and does nothing in between: so there are
neither coroutines nor timers nor outcomes that come later. Verbs go out as casts, never as `erlang.call`, in
which the loop would answer other calls, nested, until Python's stack is full.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

from ...commands import DONE, GRANTED, Command, Outcome, Publish, Register, Subscribe, Unsubscribe, refused
from ...core import Channel, Context, Engine, Intake
from ...errors import SetupError, UnsupportedError
from ...ops.logs import configure_from
from ...ops.recorder import KEEP, SIZE
from ...ops.recorder import record as start_recording
from ...runtime import Timer
from ...target import load
from . import facts
from .link import CAST
from .terms import VERSION, Atom, Opaque, body, decode

__all__ = ["Driver"]

log = logging.getLogger("exproto_app")

DATAGRAM = 65_507
"""Bytes of a datagram; with one that can't leave the broker would close the socket of all peers."""


def _erlport(part: str) -> ModuleType:
    """Return a module of the broker's own erlport, or of the one that EMQX published as `emqx-erlport`."""
    if not hasattr(inspect, "getargspec"):  # gone with Python 3.11, and erlport wants it
        vars(inspect)["getargspec"] = lambda function: inspect.getfullargspec(function)[:4]
    with contextlib.suppress(ImportError, SyntaxError):  # PyPI's erlport is for Python 2
        return importlib.import_module(f"erlport.{part}")
    try:
        return importlib.import_module(f"emqx.erlport.{part}")
    except ImportError:
        raise SetupError("there is no erlport here; pip install emqx-erlport") from None


class _Never:
    """A timer of a host without a clock."""

    def cancel(self) -> None:
        """Do nothing."""


class SyncRuntime:
    """The engine's `Runtime` where nothing happens between two calls."""

    ticks = False
    exits: tuple[type[BaseException], ...] = ()  # the process is the broker's

    def __init__(self) -> None:
        self.time = time.monotonic
        self.lock = threading.RLock()
        self.mutex: contextlib.AbstractContextManager[Any] = threading.RLock()
        self._soon: deque[Callable[[], object]] = deque()
        self._thread = threading.get_ident()

    def wall(self) -> int:
        return time.time_ns() // 1_000_000

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        self._soon.append(partial(callback, *args))

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:  # noqa: ARG002 - it never calls
        return _Never()

    def exit(self, error: BaseException) -> None:
        """Do nothing: there are no *exits*."""

    def in_other_thread(self) -> bool:
        return threading.get_ident() != self._thread

    def call_from_thread(self, callback: Callable[..., object], *args: Any) -> None:
        with self.lock:
            home, self._thread = self._thread, threading.get_ident()
            try:
                callback(*args)
                self.settle()
            finally:
                self._thread = home

    def settle(self) -> None:
        """Do what was to be done soon."""
        while self._soon:
            self._soon.popleft()()

    def waiter(self) -> Any:
        raise UnsupportedError(
            "nothing can be awaited on the broker's own loop; leave gen-driver --stock out"
        )

    def run_task(  # the signature of `Runtime`
        self,
        awaitable: Any,
        done: Callable[[Any, BaseException | None], None],  # noqa: ARG002 - it is refused
        *,
        now: bool = False,  # noqa: ARG002 - it is refused
    ) -> Timer:
        awaitable.close()
        raise UnsupportedError("the broker's own loop runs no coroutines; leave gen-driver --stock out")

    def run_thread(
        self,
        function: Callable[[], Any],  # noqa: ARG002 - it is refused
        done: Callable[[Any, BaseException | None], None],  # noqa: ARG002 - as above
    ) -> Timer:
        raise UnsupportedError("the broker's own loop waits for no thread; leave gen-driver --stock out")


class StockLink:
    """One connection process of the broker."""

    answers = False
    write = None
    confirm = None
    buffered = 0

    def __init__(self, hub: StockHub, pid: Any) -> None:
        self._hub = hub
        self.pid = pid
        self.udp = False
        self.ended: Callable[[StockLink], None] | None = None
        self.channel: Intake | None = None
        self.info: Any = None
        self.ending = False

    def cast(self, request: object) -> None:
        """Send `{'$gen_cast', Request}` to the process."""
        self._hub.cast(self.pid, body((CAST, request)))

    @property
    def broker_side(self) -> StockLink:
        """Carries out what the connection asks of the broker: this."""
        return self

    def judges(self, channel: Channel, command: Register) -> bool:  # noqa: ARG002 - as `BrokerSide` has it
        """Return whether a login may be refused."""
        return command.password is not None

    def execute(self, channel: Channel, command: Command) -> Outcome[Any]:
        """Cast *command* to the process."""
        match command:
            case Publish(topic, payload, qos):
                if channel.gone or self.ending:
                    return refused(UnsupportedError("with --stock a connection that has ended can't publish"))
                sender = channel.client.clientid.encode() if channel.client else Atom("exproto_app")
                self.cast((Atom("publish"), facts.message_record(topic, payload, qos, sender)))
            case Subscribe(topic, qos):
                self.cast((Atom("subscribe"), topic.encode(), qos))
                return GRANTED[qos]
            case Unsubscribe(topic):
                self.cast((Atom("unsubscribe"), topic.encode()))
            case Register(client, password):
                if password is not None:
                    return refused(
                        UnsupportedError("with --stock the broker isn't asked, so a password proves nothing")
                    )
                self.cast((Atom("register"), facts.client_map(client)))
        return DONE

    def send(self, chunks: list[bytes]) -> None:
        for data in chunks:
            if self.udp and len(data) > DATAGRAM:
                text = "broker ! %d bytes are dropped: a datagram has %d at most"
                log.warning(text, len(data), DATAGRAM)
            else:
                self.cast((Atom("send"), data))

    def close(self) -> None:
        """Close; the process of a UDP peer would close the socket of all, so it is ended and nothing else."""
        if self.udp:
            self._hub.kill(self.pid)
            if self.ended is not None:
                self.ended(self)
        else:
            self.cast(Atom("close"))

    def abort(self) -> None:
        self.close()

    def pause(self) -> None:
        """Do nothing: the broker waits for each call."""

    def resume(self) -> None:
        """Do nothing."""


class StockHub:
    """The broker, as far as casts to connection processes reach."""

    broker_side = None
    ordered = True
    keeps_wills = False
    keeps_sessions = False
    many_clients = False
    has_properties = False
    roams = False

    def __init__(self) -> None:
        self._cast: Callable[[Any, Any], None] = _erlport("erlang").cast
        self._call: Callable[[Any, Any, list[Any]], Any] = _erlport("erlang").call
        terms = _erlport("erlterms")
        self._atom: Callable[[bytes], Any] = terms.Atom
        self._raw: Callable[[Any], bytes] = terms.encode_term
        self._opaque: Callable[[bytes], Any] = lambda raw: terms.OpaqueObject(raw, terms.Atom(b"erlang"))

    def cast(self, pid: Any, message: bytes) -> None:
        """Send the term whose bytes are *message* to *pid*."""
        self._cast(pid, self._opaque(message))

    def kill(self, pid: Any, *, wait: bool = False) -> None:
        """End the process *pid*, and no socket that others share.

        Nothing but a function of Erlang's can do that. Erlang's server for them takes its orders without an
        answer; *wait* calls it, where the process must not go on before.
        """
        if wait:
            self._call(self._atom(b"erlang"), self._atom(b"exit"), [pid, self._atom(b"kill")])
            return
        arguments = [Opaque(self._raw(pid)), Atom("kill")]
        order = (Atom("cast"), Atom("erlang"), Atom("exit"), arguments, Atom("user"))
        self.cast(self._atom(b"rex"), body((CAST, order)))

    def attach(self, context: Context) -> None:
        """Do nothing: the broker's clock counts."""

    def publish(self, command: Publish) -> Outcome[None]:
        return refused(UnsupportedError(f"with --stock the app itself can't publish ({command.topic})"))

    def registered(self, channel: Channel, command: Register, older: Channel | None) -> None:
        """Do nothing: the broker has a session for each connection."""

    def move(self, older: Channel, heir: Channel) -> None:
        """Do nothing: it isn't asked to."""

    def gone(self, channel: Channel) -> None:
        """Do nothing: the broker's process is gone too."""


class Driver:
    """What a callback module is made of: its methods are the broker's callbacks."""

    def __init__(
        self,
        target: str,
        *,
        protocol: str | None = None,
        record: str | None = None,
        record_size: int = SIZE,
        record_keep: int = KEEP,
        masks: Sequence[str] = (),
    ) -> None:
        configure_from(os.environ, sys.stdout, text="%(levelname)s %(name)s: %(message)s")
        self.app = load(target)
        self.routers = self.app.find_protocols(protocol)
        if record is not None:
            start_recording(self.app, record, size=record_size, keep=record_keep, masks=masks)
        self._hub = StockHub()
        self._runtime = SyncRuntime()
        self._engine = Engine(self.app, self._runtime, self._hub)
        self._links: dict[bytes, StockLink] = {}
        terms = _erlport("erlterms")
        self._bytes: Callable[[Any], bytes] = terms.encode_term
        self._ok, self._state = terms.Atom(b"ok"), terms.Atom(b"undefined")
        self._engine.start()
        for handler in self.app.startup:
            handler.call()

    def init(self, conn: Any, about: Any) -> Any:
        """Take a new connection."""
        with self._runtime.lock:
            link = StockLink(self._hub, conn)
            link.info = facts.connection_info(self._term(about))
            link.udp = link.info.socktype == "udp"
            link.ended = self._killed
            self._links[self._bytes(conn)] = link
            self._engine.connected(link, link.info, self.routers)
            self._runtime.settle()
        return 0, self._state

    def received(self, conn: Any, data: bytes, _: Any) -> Any:
        """Take bytes of a device."""
        self._feed(conn, lambda channel: channel.received(data))
        return self._ok

    def deliver(self, conn: Any, messages: Any, _: Any) -> Any:
        """Take messages for a device."""
        batch, wrong = facts.readable(self._term(messages))
        for words in wrong:
            log.error("broker ! a message that can't be read is dropped: %s", words)
        self._feed(conn, lambda channel: channel.delivered(batch))
        return self._ok

    def terminated(self, conn: Any, reason: Any, _: Any) -> Any:
        """Take the end of a connection."""
        with self._runtime.lock:
            link = self._links.pop(self._bytes(conn), None)
            if link is not None and link.channel is not None:
                link.ending = True
                link.channel.terminated(*facts.reason(self._term(reason)))
                self._runtime.settle()
            if link is None or link.udp:
                self._hub.kill(conn, wait=True)
        return self._ok

    def _killed(self, link: StockLink) -> None:
        """End our side of a connection whose process was ended without `terminated`."""
        self._links.pop(self._bytes(link.pid), None)
        channel, link.channel = link.channel, None
        if channel is not None:
            self._runtime.call_soon(channel.terminated, "lost", "its process was ended")

    def _feed(self, conn: Any, feed: Callable[[Intake], object]) -> None:
        with self._runtime.lock:
            link = self._links.get(self._bytes(conn))
            if link is None:
                # From before our start. Nothing but a question, for which this loop can't wait, would tell
                # how it is connected: so it is never carried on here.
                unknown = StockLink(self._hub, conn)
                unknown.udp = True  # for all that is known
                self._engine.unknown(unknown, self.routers, may_resume=False)
            elif link.channel is not None:
                feed(link.channel)
            self._runtime.settle()

    def _term(self, value: Any) -> Any:
        """Return *value*, one of erlport's, in our own terms."""
        return decode(VERSION + self._bytes(value))
