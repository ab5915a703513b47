"""Child: the state machine of a device behind a line that it shares with others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from ..commands import DONE, Command, Outcome, Publish, Register, refused
from ..connection import ChildConnection
from ..errors import DeniedError
from ..handlers import Handler
from .calls import ALONE, HandlerCalls
from .channel import Channel
from .children import ChildLink, Children
from .states import CLOSED, COMMANDS_FULL, CONGESTED, ENDED, HANDLER, LEAVING, OPEN, State
from .timers import Ticks

if TYPE_CHECKING:
    from .seams import CompiledRouter, Context

__all__ = ["Child"]

log = logging.getLogger("exproto_app")


class Child(Channel):
    """A channel without bytes of its own: frames come to its *line*, and what it sends leaves by that.

    It has a client, subscriptions, timers, handlers and an end of its own. `Children` sees to it that its
    turns are turns of the line.
    """

    __slots__ = ("_line", "_mine", "_of_its_own", "_siblings", "name")

    def __init__(
        self, engine: Context, line: Channel, siblings: Children, name: str, protocol: CompiledRouter
    ) -> None:
        siblings.made += 1
        link = ChildLink(engine, line)
        conn_id = f"{line.id}.{siblings.made}"
        super().__init__(engine, link, line.conn.info, protocol, conn_id)
        link.channel = self
        self._line = line
        self._mine = False
        self._siblings = siblings
        self.name = name
        self._of_its_own = engine.hub.many_clients  # a client; else it uses the line's
        self.calls = HandlerCalls(self._whole, line.outbound, line.calls)
        self.conn = ChildConnection(self, line.conn, conn_id=conn_id, protocol=self.protocol.router.name)

    @property
    def line(self) -> Channel:
        """The connection that it shares with others."""
        return self._line

    def start(self, command: Register) -> Outcome[None]:
        """Begin: log in by *command*, and run `on_connect`."""
        self.move_on(OPEN)
        routes = self.protocol.router.routes
        if routes.ticks:
            self.ticks = Ticks(self, self.calls)
        if self.make_state("child_state=") and routes.connect is not None:
            self.enqueue(self._run_connect, routes.connect)
        outcome = self.issue(command)
        self.later()
        return outcome

    def stillborn(self) -> Outcome[None]:
        """Never begin: the line has ended."""
        self.reason = self._line.reason
        self.move_on(ENDED)
        return self.refuse("child", self.closed_error())

    def _run_connect(self, handler: Handler) -> None:
        self.calls.run((ALONE,), handler)

    # --- turns, which are the line's

    @property
    def congests(self) -> bool:
        """Whether the line has to wait: for a handler of the child's, or for the broker."""
        return self.waits & (HANDLER | CONGESTED | COMMANDS_FULL) != 0 and self.state < LEAVING

    def look(self) -> None:
        """See whether the line has to wait for the child."""
        self._siblings.look(self)

    def later(self) -> None:
        """Advance in a turn of the line; by itself where the line waits for just that, or is through."""
        if self.scheduled:
            return
        if self._line.state >= LEAVING or self._siblings.holds(self):
            self.scheduler.later(self)
        else:
            self.scheduled = True
            self._siblings.enqueue(self)

    def advance(self) -> None:
        """Take turns, if it is the child's turn."""
        if self._mine or self._line.state >= LEAVING or self._siblings.holds(self):
            self.take_turns()
        else:
            self.later()

    def take_turns(self) -> None:
        """Take turns: the line stands still meanwhile."""
        outer, self._mine = self._mine, True
        try:
            super().advance()
        finally:
            self._mine = outer
        if self.state is not ENDED:
            self.look()
        if self._line.state < CLOSED and self._line.outbound.chunks:
            self._line.later()

    def move_on(self, state: State) -> None:
        """Be in *state* from now on, unless that is past."""
        super().move_on(state)
        if state > OPEN:
            self.look()

    # --- verbs

    def send(self, data: Any, *, raw: bool, after: Sequence[Outcome[Any]] | None = None) -> Outcome[None]:
        """Send by the line."""
        if not raw:
            data = self.protocol.encode(data)
        if self.state >= CLOSED:
            return self.refuse("send", self.closed_error())
        if after is None or self._line.state >= CLOSED:
            return self._line.send(data, raw=True)
        if self.engine.runtime.in_other_thread():
            return self.engine.from_thread(partial(self.send, data, raw=True, after=after))
        return self._line.outbound.put_after(data, after, self._whole)

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
        """Ask by the line, where the answer comes in."""
        if self.state >= CLOSED:
            return self.refuse("request", self.closed_error())
        return self._line.request(frame, match=match, timeout=timeout, retries=retries, key=key, raw=raw)

    def add_child(self, command: Register) -> ChildConnection[Any, Any]:
        """Refuse: behind a child there is nobody."""
        raise DeniedError(
            f"{command.client.clientid!r} can't be a child of a child; make it a child of the line"
        )

    def let_go(self) -> None:
        """Have everybody forget the child, which has ended."""
        super().let_go()
        self._siblings.remove(self.name, self)

    def _execute(self, command: Command) -> Outcome[Any]:
        """Carry *command* out, by the line's client where the host has one for a connection."""
        if type(command) is Publish:  # its device has spoken, as a frame of the line told
            if self.state <= OPEN and self.deliveries is not None and self.deliveries.held:
                self.deliveries.spoke()
                self.later()
            if self.silence is not None:
                self.silence.heard = self.engine.runtime.time()
        if self._of_its_own:
            return super()._execute(command)
        if type(command) is Register:
            command.client = attrs.evolve(command.client, mountpoint=self._line.mount)
            command.will = None
            return super()._execute(command)
        if self.tracer is not None:
            self.tracer.command(command)
        return self._siblings.execute(self, command)

    def log_in(self, command: Register) -> Outcome[None]:
        """Have the broker judge a login, where it knows more than the line."""
        if self._of_its_own:
            return super().log_in(command)
        if self._line.client is None:
            words = "this host has one client for a connection, so its line has to register first"
            return refused(DeniedError(f"{self.name!r} can't register: {words}"))
        text = "%s ! children share the client of their line: logins, wills and ACLs of their own don't work"
        self.engine.once("children", text, self._line)
        return DONE
