"""Verbs: what handlers ask of a connection, by way of its `Connection`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any

from ..commands import Command, Outcome, Publish, Register, refused
from ..errors import UnavailableError, UnsupportedError
from .broker_queue import BrokerQueue
from .life import Life
from .naming import described
from .registration import Registration, mounted
from .requests import Requests
from .states import (
    CLOSED,
    ENDED,
    RUNNING,
)
from .tasks import Tasks
from .timers import Silence

__all__ = ["Verbs"]

log = logging.getLogger("exproto_app")


class Verbs(Life):
    """What `Connection` issues its verbs to; they never block."""

    __slots__ = ()

    @property
    def builds(self) -> bool:
        """Whether a codec makes frames of what is sent."""
        return self.protocol.builds

    def send(self, data: Any, *, raw: bool) -> Outcome[None]:
        """Have *data* sent, behind what was sent before."""
        if not raw:
            data = self.protocol.encode(data)
        if self.state >= CLOSED:
            return self.refuse("send", self.closed_error())
        if self.engine.runtime.in_other_thread():
            return self.engine.from_thread(partial(self.send, data, raw=True))
        return self.outbound.put(data)

    def issue(self, command: Command) -> Outcome[Any]:
        """Have the broker asked for *command*, behind what it was asked before."""
        if type(command) is Register:
            self.keep_secret(command)
        if self.gone and (self.state is ENDED or type(command) is not Publish):
            if type(command) is Register and self.client is None and self.engine.hub.judges(self, command):
                self._make_broker_queue().bar()
            return self.refuse(command, self.closed_error())
        if self.engine.runtime.in_other_thread():
            return self.engine.from_thread(partial(self.issue, command))
        queue = self._make_broker_queue()
        if queue.refusal is not None and not self.all_handled:
            refusal = queue.refusal_of(command)
            if refusal is not None:
                return self.refuse(command, refusal)
        return queue.issue(command)

    def forgive(self) -> None:
        """Take what is asked of the broker again although a login was refused."""
        if self.broker_queue is not None:
            self.broker_queue.refusal = None

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
            raise RuntimeError("keep() has a meaning in on_error only")
        self.failures.keep()

    def track(self, outcome: Outcome[Any]) -> None:
        """Have *outcome* fail at the latest when the connection ends."""
        self._make_broker_queue().track(outcome)

    def _execute(self, command: Command) -> Outcome[Any]:
        """Carry *command* out, now."""
        if self.state is ENDED:  # it waited behind an answer that came too late
            self.counters["commands_failed"] += 1
            log.warning("%s ! %s failed: the connection has ended meanwhile", self, described(command))
            return refused(self.closed_error())
        if type(command) is Register:
            if self.registration is None:
                self.registration = Registration(self._whole)
            return self.registration.register(command)
        if type(command) is Publish:
            self.counters["messages_published"] += 1
        if self.mount:
            command = mounted(command, self.mount)
        if self.tracer is not None:
            self.tracer.command(command)
        return self.engine.hub.execute(self, command)

    def _commands_done(self) -> None:
        """Take note that nothing is on its way to the broker any more."""
        if self.ending is not None:
            self.ending.idle()
            if not self.waits & RUNNING:
                self.later()

    def _make_broker_queue(self) -> BrokerQueue:
        if self.broker_queue is None:
            engine = self.engine
            self.broker_queue = BrokerQueue(
                self._execute,
                ordered=engine.hub.ordered,
                limit=engine.limits.commands,
                waiter=engine.runtime.waiter,
                failed=self.command_failed,
                idle=self._commands_done,
            )
        return self.broker_queue
