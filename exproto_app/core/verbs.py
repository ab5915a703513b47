"""Verbs: what handlers ask of a connection, by way of its `Connection`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Hashable, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, Final

from ..commands import DONE, Command, Outcome, Publish, Register, refused, several
from ..connection import ChildConnection
from ..errors import DeniedError, UnavailableError, UnsupportedError
from ..models import PLAIN
from .broker_queue import BrokerQueue
from .children import Children
from .life import Life
from .naming import described
from .registration import Registration, mounted
from .requests import Requests
from .seams import IGNORED
from .states import CLOSED, COMMANDS_FULL, ENDED, GONE, HANDLER, OPEN, RUNNING
from .subscriptions import Subscriptions
from .tasks import Tasks
from .timers import Silence

__all__ = ["Verbs"]

log = logging.getLogger("exproto_app")

EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Verbs(Life):
    """What `Connection` issues its verbs to; they never block."""

    __slots__ = ()

    @property
    def builds(self) -> bool:
        """Whether a codec makes frames of what is sent."""
        return self.protocol.builds

    def send(self, data: Any, *, raw: bool, after: Sequence[Outcome[Any]] | None = None) -> Outcome[None]:
        """Have *data* sent, behind what was sent before; with *after*, once those have succeeded."""
        if not raw:
            data = self.protocol.encode(data)
        if self.state >= CLOSED:
            return self.refuse("send", self.closed_error())
        if self.engine.runtime.in_other_thread():
            return self.engine.from_thread(partial(self.send, data, raw=True, after=after))
        if after is None:
            return self.outbound.put(data)
        return self.outbound.put_after(data, after)

    def issue(self, command: Command) -> Outcome[Any]:
        """Have the broker asked for *command*, behind what it was asked before."""
        if type(command) is Register:
            self.keep_secret(command)
        if self.state >= GONE and (self.state is ENDED or type(command) is not Publish):
            if type(command) is Register and self.client is None and self.judged(command):
                self._make_broker_queue().bar()
            return self.refuse(command, self.closed_error())
        if self.engine.runtime.in_other_thread():
            return self.engine.from_thread(partial(self.issue, command))
        queue = self.broker_queue
        if queue is None:
            queue = self._make_broker_queue()
        if queue.refusal is not None and not self.all_handled:
            refusal = queue.refusal_of(command)
            if refusal is not None:
                return self.refuse(command, refusal)
        return queue.issue(command)

    def issue_many(self, commands: Sequence[Publish]) -> Outcome[int]:
        """Have the broker asked for *commands*, one behind the other."""
        if self.engine.runtime.in_other_thread():
            return self.engine.from_thread(partial(self.issue_many, commands))
        outcomes = []
        for command in commands:
            outcomes.append(self.issue(command))
            outcomes[-1].watched = True  # at once, or the host might drop it to make room for the next
        outcome = several(outcomes, self.engine.runtime.waiter)
        outcome.when_done(self._many_done)
        return outcome

    def _many_done(self, outcome: Outcome[int]) -> None:
        if outcome.error is not None:
            self.command_failed("publish_many", outcome)

    def forgive(self) -> None:
        """Take what is asked of the broker again although a login was refused."""
        if self.broker_queue is not None:
            self.broker_queue.forgive()

    def request(
        self,
        frame: Any,
        *,
        match: Callable[[Any], object] | None,
        timeout: float,
        retries: int,
        key: Hashable,
        raw: bool,
    ) -> Outcome[Any]:
        """Send *frame* and wait for the frame that answers it."""
        if not raw:
            frame = self.protocol.encode(frame)
        if self.state >= CLOSED:
            return self.refuse("request", self.closed_error())
        if self.engine.runtime.in_other_thread():
            ask = partial(self.request, match=match, timeout=timeout, retries=retries, key=key, raw=True)
            return self.engine.from_thread(partial(ask, frame))
        if self.requests is None:
            self.requests = Requests(self._whole, self.calls, partial(self.send, raw=True))
        return self.requests.ask(frame, match=match, timeout=timeout, retries=retries, key=key)

    @property
    def child_connections(self) -> dict[str, ChildConnection[Any, Any]]:
        """The devices behind this one, by clientid."""
        return {} if self.children is None else self.children.conns

    def add_child(self, command: Register) -> ChildConnection[Any, Any]:
        """Have another device behind this connection, by the name that *command* registers it with."""
        name = command.client.clientid
        with self.engine.runtime.mutex:  # threads that ask for one name get the same child
            if self.children is None and self.state < CLOSED:
                self.children = Children(self._whole)
            if self.children is not None:
                known, there = self.children.members.get(name), self.children.conns.get(name)
                if known is not None and there is not None and known.state <= OPEN:
                    return there
            child = self._new_child(name)
        if self.engine.runtime.in_other_thread():
            registered = self.engine.from_thread(partial(self.engine.begin_child, child, command))
        else:
            registered = self.engine.begin_child(child, command)
        conn: ChildConnection[Any, Any] = child.conn
        conn.registered = registered
        return conn

    def _new_child(self, name: str) -> Any:
        """Return a new child, which the line has from now on; raise `CommandError` if it may have none."""
        if self.children is None or self.state >= CLOSED:
            raise self.closed_error()
        if self.client is not None and self.client.clientid == name:
            raise DeniedError(f"{name!r} is the line's own clientid; a child needs another")
        number, limit = len(self.children.members), self.engine.limits.children
        if number >= limit:
            raise UnavailableError(f"{number} children are behind this line already, limit is {limit}")
        child = self.engine.new_child(self, self.children, name)
        self.children.add(name, child)
        return child

    def spawn(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run *coroutine* until the connection ends."""
        if self.gone:
            coroutine.close()
            self.refuse("spawn", self.closed_error())
        elif self.engine.runtime.in_other_thread():
            self.engine.runtime.call_from_thread(self._spawn_for_thread, coroutine)
        else:
            if self.tasks is None:
                self.tasks = Tasks(self._whole)
            self.tasks.spawn(coroutine)

    def _spawn_for_thread(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run *coroutine* for a thread, which has gone on: a refusal is a command's that nobody awaits."""
        try:
            self.spawn(coroutine)
        except UnavailableError as error:
            self.refuse("spawn", error)

    def start_timer(self, seconds: float) -> None:
        """Limit the device's silence to *seconds* from now on."""
        runtime = self.engine.runtime
        if self.gone:
            return
        if not runtime.ticks:
            raise UnsupportedError("this host has no timers")
        if runtime.in_other_thread():
            runtime.call_from_thread(self.start_timer, seconds)
            return
        if self.silence is None:
            self.silence = Silence(self._whole, self.calls)
        self.silence.start(seconds)

    def terminate(self) -> None:
        """Close when the queues are flushed."""
        if not self.engine.runtime.in_other_thread():
            self._whole.end("terminated")
        elif not self.gone:
            self.engine.runtime.call_from_thread(self.terminate)

    def keep(self) -> None:
        """Stay connected in spite of an error."""
        if self.failures is None:
            raise RuntimeError("keep() works in on_error only")
        self.failures.keep()

    def now(self) -> datetime:
        """Return the host's time of day."""
        return EPOCH + timedelta(milliseconds=self.engine.runtime.wall())

    def track(self, outcome: Outcome[Any]) -> None:
        """Have *outcome* fail at the latest when the connection ends."""
        self._make_broker_queue().track(outcome)

    def _execute(self, command: Command) -> Outcome[Any]:  # noqa: C901 - the hot path is flat
        """Carry *command* out, now."""
        if self.state is ENDED:  # it waited behind an answer that came too late
            self.counters["commands_failed"] += 1
            log.warning("%s ! %s failed: the connection has ended in the meantime", self, described(command))
            return refused(self.closed_error())
        if type(command) is Register:
            if self.registration is None:
                self.registration = Registration(self._whole)
            return self.registration.register(command)
        carried = self.children is not None and self.children.carries(command)
        subscriptions = None
        if type(command) is Publish:
            self.counters["messages_published"] += 1
            if command.properties is not PLAIN and not self.engine.hub.has_properties:
                self.engine.once("properties", IGNORED, self)
        elif not self.engine.hub.many_clients and not carried:
            subscriptions = self.share_subscriptions()
            if not subscriptions.changes(self._whole, command):
                return DONE
        asked = mounted(command, self.mount) if self.mount else command
        if self.tracer is not None and not carried:
            self.tracer.command(asked)
        if self.roaming is not None:
            return self.roaming.execute(self._whole, asked)
        outcome = self.broker_side.execute(self, asked)
        if subscriptions is not None:
            subscriptions.watch(self._whole, command, outcome)
        return outcome

    def share_subscriptions(self) -> Subscriptions:
        """Return who has subscribed to what by the one client of this line."""
        if self.subscriptions is None:
            self.subscriptions = Subscriptions(self._whole)
        return self.subscriptions

    def judged(self, command: Register) -> bool:
        """Whether a login such as *command* may be refused."""
        return self.protocol.login is not None or self.broker_side.judges(self, command)

    def log_in(self, command: Register) -> Outcome[None]:
        """Have the broker judge a login."""
        return self.broker_side.execute(self, command)

    def _commands_done(self) -> None:
        """Take note that nothing is on its way to the broker any more."""
        if self.ending is not None:
            self.ending.idle()
            if not self.waits & RUNNING:
                self.later()

    def hand_over(self) -> None:
        """Give the host what waits for room: nobody is there any more who could wait for it."""
        if self.broker_queue is not None:
            self.broker_queue.force()

    def _commands_full(self) -> None:
        """Have turns wait, and reading pause, until fewer commands wait for the broker."""
        if self.state <= OPEN:
            self.waits |= COMMANDS_FULL
            self.inbound.pause()
        if not self.waits & (RUNNING | HANDLER):
            self.look_at_excess()

    def look_at_excess(self) -> None:
        """Drop what is too much and nobody awaits, once whoever asked for it has had the time to await it."""
        soon = self.engine.runtime.call_soon
        if not self.judging and self.broker_queue is not None and self.broker_queue.excess:
            self.judging = True
            soon(soon, self._drop_excess)

    def _drop_excess(self) -> None:
        self.judging = False
        if self.broker_queue is not None and not self.waits & HANDLER:
            self.broker_queue.drop_excess()

    def _commands_fit(self) -> None:
        if self.waits & COMMANDS_FULL:
            self.waits &= ~COMMANDS_FULL
            if not self.waits & RUNNING:
                self.later()

    def _make_broker_queue(self) -> BrokerQueue:
        if self.broker_queue is None:
            engine = self.engine
            self.broker_queue = BrokerQueue(
                self._execute,
                ordered=engine.hub.ordered,
                limit=engine.limits.commands,
                limit_bytes=engine.limits.commands_bytes,
                waiter=engine.runtime.waiter,
                failed=self.command_failed,
                idle=self._commands_done,
                full=self._commands_full,
                room=self._commands_fit,
                large=self.note_memory,
            )
        return self.broker_queue
