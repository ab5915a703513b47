"""Children: the devices behind one line, whose turns and bytes go through it."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..commands import DONE, Command, Outcome, Publish, Register, Unsubscribe
from ..connection import ChildConnection
from ..models import Message, Reason
from .states import BATCH, CHILDREN, GONE, OPENING, RUNNING, State

if TYPE_CHECKING:
    from .seams import BrokerSide, Context, Owner

__all__ = ["ChildLink", "Children"]


class Sibling(Hashable, Protocol):
    """A child, as its line sees it; `Child` explains each of these."""

    scheduled: bool
    state: State
    conn: Any

    @property
    def gone(self) -> bool: ...
    @property
    def congests(self) -> bool: ...
    def take_turns(self) -> None: ...
    def delivered(self, messages: Sequence[Message], /) -> Any: ...
    def terminated(self, reason: Reason = ..., detail: str = ...) -> None: ...


class Children:
    """The children of one line, *members* by clientid; made for the first one.

    Turns of the line and of its children run strictly one after another, so a child's are events in the
    backlog of its line. While a child's handler takes longer, or a child's queue to the broker is full, the
    line waits for CHILDREN. *ready* are those whose turns are kept though the line drops what waits.
    """

    __slots__ = ("_carried", "_ending", "_holding", "_line", "conns", "made", "members", "ready")

    def __init__(self, line: Owner) -> None:
        self._line = line
        self._holding: set[Sibling] = set()
        self.members: dict[str, Sibling] = {}
        self.conns: dict[str, ChildConnection[Any, Any]] = {}
        self.made = 0
        self._carried: set[int] = set()  # commands of children on their way, by identity
        self.ready: deque[Sibling] = deque()
        self._ending: deque[Sibling] | None = None  # those that are still to be ended

    def add(self, clientid: str, child: Sibling) -> None:
        """Have *child* belong to the line."""
        self.members[clientid] = child
        self.conns[clientid] = child.conn

    def remove(self, clientid: str, child: Sibling) -> None:
        """Let go of *child*, which has ended."""
        if self.members.get(clientid) is child:
            del self.members[clientid]
            del self.conns[clientid]
        self.release(child)
        subscriptions = self._line.subscriptions
        if subscriptions is None or self._line.gone:
            return
        for topic in subscriptions.topics(child):
            self.execute(child, Unsubscribe(topic))  # nobody asked for it, so nobody is told if it fails

    def enqueue(self, child: Sibling) -> None:
        """Have *child* take its turns when all that the line got before has had its own."""
        self._line.enqueue(self.run, child)
        if not self._line.waits & RUNNING:
            self._line.later()

    def run(self, child: Sibling) -> None:
        """Take the turns of *child*."""
        child.scheduled = False
        child.take_turns()

    def holds(self, child: Sibling) -> bool:
        """Whether the line waits for *child*."""
        return child in self._holding

    def look(self, child: Sibling) -> None:
        """Have the line wait for *child*, or go on."""
        if child.congests:
            self._holding.add(child)
            self._line.waits |= CHILDREN
        else:
            self.release(child)

    def release(self, child: Sibling) -> None:
        """Have the line wait for *child* no more."""
        if child in self._holding:
            self._holding.discard(child)
            if not self._holding:
                self._line.waits &= ~CHILDREN
                self._line.later()

    def end_holding(self, reason: Reason, detail: str) -> None:
        """End those that the line waits for, so that they keep it no longer than an end may take."""
        for child in tuple(self._holding):
            child.terminated(reason, detail)

    def end(self, reason: Reason, detail: str) -> bool:
        """End a few of those that have begun, because the line has ended; return whether any was left."""
        if not self._ending:
            self._ending = deque(child for child in self.members.values() if OPENING < child.state < GONE)
        left = min(BATCH, len(self._ending))
        for _ in range(left):
            self._ending.popleft().terminated(reason, detail)
        return left > 0

    # --- where the host has one client for a connection

    def execute(self, child: Sibling, command: Command) -> Outcome[Any]:
        """Carry *command* of *child* out by the line's client."""
        outcome: Outcome[Any]
        if isinstance(command, Register):
            return DONE  # a login, which is the line's
        if isinstance(command, Publish):
            outcome = self._carry(command)
        else:
            subscriptions = self._line.share_subscriptions()
            if not subscriptions.changes(child, command):
                return DONE
            outcome = self._carry(command)
            subscriptions.watch(child, command, outcome)
        if outcome is not DONE:
            outcome.awaited = True  # by the child, which tells of a failure
        return outcome

    def carries(self, command: Command) -> bool:
        """Return whether *command* is a child's, which the child shows its watchers."""
        return id(command) in self._carried

    def _carry(self, command: Command) -> Outcome[Any]:
        """Have the line ask for *command*."""
        number = id(command)
        self._carried.add(number)
        outcome = self._line.issue(command)
        outcome.when_done(lambda _: self._carried.discard(number))
        return outcome


class ChildLink:
    """The device's side of a child: the line's, as far as it has one of its own."""

    answers = False
    confirm = None
    buffered = 0
    write = None

    __slots__ = ("_context", "_line", "channel")

    def __init__(self, context: Context, line: Owner) -> None:
        self._context = context
        self._line = line
        self.channel: Any = None

    @property
    def broker_side(self) -> BrokerSide[Any] | None:
        """Return the line's."""
        return self._line.link.broker_side

    def send(self, chunks: list[bytes]) -> None:
        """Send by the line."""
        for chunk in chunks:
            self._line.outbound.put(chunk)

    def close(self) -> None:
        """End the child alone."""
        self._context.runtime.call_soon(self.channel.terminated)

    def abort(self) -> None:
        """End the child alone."""
        self.close()

    def pause(self) -> None:
        """Have the line wait: what the child has said is too much for the broker."""
        self.channel.look()

    def resume(self) -> None:
        """Have the line go on."""
        self.channel.look()
