"""Broker: the broker of a test, which is away, slow or unkind when the test says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import attrs

from ..commands import DONE, Command, Outcome, Publish, Register, Subscribe, Unsubscribe, refused
from ..core import Channel, Context, Engine
from ..errors import ClosedError, DeniedError, SetupError, UnavailableError
from ..hub import MemoryHub
from ..models import Message
from ..topics import check_filter, matches

if TYPE_CHECKING:
    from .world import World

__all__ = ["Broker", "Mood", "Refusals"]

Mood: TypeAlias = Literal["away", "holds"]
"""How a broker begins, where it doesn't just do what it is asked."""

Refusals: TypeAlias = Mapping[str, str] | Callable[[Message], str | None]
"""Why messages are refused: by topic filter, or as a function says."""

QUEUE: Final = 256
"""Messages of one device that wait, as `run --mqtt` has it."""

TIMEOUT: Final = 10.0
"""Virtual seconds that a register waits for a broker that is away, likewise."""


@attrs.define(eq=False)
class PendingCommand:
    """A command of *who* that the broker, which got it at time *since*, hasn't answered."""

    who: Channel | Engine
    command: Command
    outcome: Outcome[Any]
    since: float


class Broker:
    """A broker in memory, as devices that are connected to `exproto-app run --mqtt` know one.

    While it is *away*, verbs wait. While it *holds* its acknowledgements back, messages of QoS 1 and 2 do.
    *refuse* says which messages and subscriptions it refuses, and why: a mapping of topic filters, or a
    function that gets the message (of a subscription, one with its filter for the topic) and returns the
    reason or None. At most *queue* messages of a device wait; beyond that its turns do, and it isn't read.

    Every method returns when nothing can go on by itself.
    """

    ordered = True
    keeps_wills = False
    keeps_sessions = True
    many_clients = True
    has_properties = True
    roams = True

    def __init__(
        self, *, away: bool = False, holds: bool = False, refuse: Refusals | None = None, queue: int = QUEUE
    ) -> None:
        if queue < 1:
            raise SetupError(f"queue is {queue}; at least one message has to wait somewhere")
        self._away = away
        self._holds = holds
        self._queue = queue
        self._refusal = _rule(refuse)
        self._waiting: list[PendingCommand] = []
        # What others publish meanwhile, and since when it waits.
        self._later: list[tuple[Message, Callable[[Message], object], float]] = []
        self._congested: list[Channel | Engine] = []
        self._world: World | None = None

    def __repr__(self) -> str:
        words = [word for word, so in (("away", self._away), ("holds", self._holds)) if so]
        return f"<Broker {' '.join(words) or 'here'}, {len(self.unacknowledged)} unacknowledged>"

    # --- for the test

    @property
    def away(self) -> bool:
        """Whether it is away."""
        return self._away

    @property
    def unacknowledged(self) -> list[Message]:
        """The messages of devices and of the app that it hasn't acknowledged, the oldest first."""
        return [_message(one.command) for one in self._waiting if isinstance(one.command, Publish)]

    def go_away(self) -> None:
        """Be away: verbs wait from now on."""
        self._run(lambda: self._set(away=True))

    def come_back(self) -> None:
        """Be there again, and carry out what has waited, in order."""
        self._run(lambda: self._set(away=False))

    def hold(self) -> None:
        """Acknowledge no message from now on."""
        self._run(lambda: self._set(holds=True))

    def release(self) -> None:
        """Acknowledge all that wait, and every message from now on."""
        self._run(lambda: self._set(holds=False))

    def acknowledge(self, message: Message | None = None) -> None:
        """Acknowledge one message, the oldest, or *message*. Raises `AssertionError` if it doesn't wait."""
        one = self._find(message)
        self._run(lambda: self._answer(one, None))

    def refuse(self, why: str = "not authorized", message: Message | None = None) -> None:
        """Refuse one message, the oldest, or *message*. Raises `AssertionError` if it doesn't wait."""
        one = self._find(message)
        self._run(lambda: self._answer(one, DeniedError(why)))

    # --- for the world of the test

    def join(self, world: World) -> None:
        """Be the broker of *world*."""
        if self._world is not None:
            raise SetupError("this Broker belongs to another TestClient; make a new one for each test")
        self._world = world

    def others(self, message: Message, give: Callable[[Message], object]) -> None:
        """Give what others publish, when the broker is there, unless it has expired by then."""
        if self._away:
            self._later.append((message, give, self._joined.loop.time()))
        else:
            give(message)

    # --- from the engine

    @property
    def broker_side(self) -> Broker:
        """Carries out what devices ask: this."""
        return self

    def attach(self, context: Context) -> None:
        """Serve the connections of *context* from now on; its clock counts."""
        self._memory.attach(context)

    def execute(self, channel: Channel, command: Command) -> Outcome[Any]:
        """Carry out what a device's connection asks."""
        return self._take(channel, command)

    def publish(self, command: Publish) -> Outcome[None]:
        """Publish for the app itself."""
        return self._take(self._engine, command)

    def judges(self, channel: Channel, command: Register) -> bool:
        """Return whether a login may be refused."""
        return self._memory.judges(channel, command)

    def registered(self, channel: Channel, command: Register, older: Channel | None) -> None:
        """Have *channel* continue the session of its client, and keep what *older* had subscribed to."""
        self._memory.registered(channel, command, older)

    def move(self, older: Channel, heir: Channel) -> None:
        """Have *heir* stand for the client that both are connections of."""
        self._memory.move(older, heir)

    def gone(self, channel: Channel) -> None:
        """Forget a connection; what it has published still goes."""
        self._memory.gone(channel)
        for one in self._waiting:
            if one.who is channel and not isinstance(one.command, Publish):
                one.outcome.fail(ClosedError("the connection has ended"))

    # --- inside

    @property
    def _engine(self) -> Engine:
        return self._joined.runner.engine

    @property
    def _memory(self) -> MemoryHub:
        return self._joined.memory

    @property
    def _joined(self) -> World:
        if self._world is None:
            raise SetupError("this Broker has no device; give it to one: TestClient(app, broker=broker)")
        return self._world

    def _run(self, do: Callable[[], object]) -> None:
        world = self._joined
        world.loop.call_soon(do)
        world.run()

    def _take(self, who: Channel | Engine, command: Command) -> Outcome[Any]:
        """Carry *command* out, or have it wait for its turn."""
        waits = self._away or any(one.who is who for one in self._waiting if not self._held(one.command))
        if not waits and not self._held(command):
            return self._carry_out(who, command)
        runtime = self._engine.runtime
        one = PendingCommand(who, command, Outcome(runtime.waiter), runtime.time())
        self._waiting.append(one)
        if isinstance(command, Register):
            runtime.call_later(TIMEOUT, self._late, one)
        elif isinstance(command, Publish) and command.properties.expiry is not None:
            runtime.call_later(command.properties.expiry, self._expired, one)
        self._bound(who)
        return one.outcome

    def _held(self, command: Command) -> bool:
        return self._holds and isinstance(command, Publish) and command.qos > 0

    def _carry_out(self, who: Channel | Engine, command: Command) -> Outcome[Any]:
        if isinstance(command, (Publish, Subscribe)):
            why = self._refusal(_message(command))
            if why:
                return refused(DeniedError(why))
        if isinstance(who, Channel):
            if who.gone and not isinstance(command, Publish):
                return refused(ClosedError("the connection has ended"))
            return self._memory.execute(who, command)
        return self._memory.publish(command) if isinstance(command, Publish) else DONE

    def _set(self, *, away: bool | None = None, holds: bool | None = None) -> None:
        if self._away and away is False:
            for one in self._waiting:
                self._age(one)
        self._away = self._away if away is None else away
        self._holds = self._holds if holds is None else holds
        if self._away:
            return
        later, self._later = self._later, []
        # While these are answered there is room for more, which wait behind them.
        while first := next((one for one in self._waiting if not self._held(one.command)), None):
            self._answer(first, None)
        now = self._joined.loop.time()
        for message, give, since in later:
            if message.expiry is None:
                give(message)
            elif (left := message.expiry - (now - since)) > 0:
                give(attrs.evolve(message, expiry=math.ceil(left)))

    def _answer(self, one: PendingCommand, error: DeniedError | None) -> None:
        """Carry out what waits, or refuse it."""
        self._waiting.remove(one)
        if one.outcome.done and not isinstance(one.command, Publish):
            return  # nobody waits for it any more
        if error is not None:
            one.outcome.fail(error)
        else:
            one.outcome.follow(self._carry_out(one.who, one.command))
        self._relieve()

    def _find(self, message: Message | None) -> PendingCommand:
        if self._away:
            raise AssertionError("the broker is away, so it answers nothing; come_back() first")
        for one in self._waiting:
            if isinstance(one.command, Publish) and message in (None, _message(one.command)):
                return one
        what = "no message" if message is None else repr(message)
        raise AssertionError(f"{what} waits for an acknowledgement; these do: {self.unacknowledged}")

    def _late(self, one: PendingCommand) -> None:
        if not one.outcome.done:
            self._waiting.remove(one)
            words = f"no session with the broker within {TIMEOUT:g} s: the broker is away"
            one.outcome.fail(UnavailableError(words))

    def _expired(self, one: PendingCommand) -> None:
        """Drop a message that expires while the broker is away."""
        if self._away and one in self._waiting:
            self._waiting.remove(one)
            self._engine.count("messages_expired")
            one.outcome.fail(UnavailableError("the message expired while it waited for the broker"))
            self._relieve()

    def _age(self, one: PendingCommand) -> None:
        """Have a message be worth something only for as long as is left of its time."""
        command = one.command
        if isinstance(command, Publish) and command.properties.expiry is not None:
            left = math.ceil(command.properties.expiry - (self._engine.runtime.time() - one.since))
            command.properties = attrs.evolve(command.properties, expiry=max(0, left))

    def _bound(self, who: Channel | Engine) -> None:
        if who not in self._congested and self._number(who) > self._queue:
            self._congested.append(who)
            who.congested()

    def _relieve(self) -> None:
        for who in tuple(self._congested):
            if self._number(who) <= self._queue // 2:
                self._congested.remove(who)
                who.relieved()

    def _number(self, who: Channel | Engine) -> int:
        return sum(one.who is who for one in self._waiting)


def _message(command: Command) -> Message:
    """Return what a test knows of *command*."""
    match command:
        case Publish(topic, payload, qos, retain, properties):
            return Message(topic, payload, qos, retain, properties=properties)
        case Subscribe(topic, qos):
            return Message(topic, b"", qos)
        case Unsubscribe(topic):
            return Message(topic, b"")
        case Register(client):
            return Message(client.clientid, b"")


def _rule(refuse: Refusals | None) -> Callable[[Message], str | None]:
    if refuse is None:
        return lambda _: None
    if callable(refuse):
        return refuse
    rules = dict(refuse)
    for topic_filter in rules:
        check_filter(topic_filter)

    def refusal(message: Message) -> str | None:
        topic = message.topic
        return next((why for one, why in rules.items() if one == topic or matches(one, topic)), None)

    return refusal
