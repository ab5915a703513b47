"""Several lines with children, walked at random: what they share is right, and given back in the end."""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from exproto_app import App, Connection, Limits, Login, Message
from exproto_app.commands import Outcome, Publish
from exproto_app.core import Channel
from exproto_app.core.memory import LARGE
from exproto_app.core.states import CLOSED, ENDED, GONE, WRITE_BLOCKED
from exproto_app.errors import CommandError, DeniedError, UnavailableError
from exproto_app.framing import Line

from .world import Cancelled, FakeLink, FakeWaiter, World

PLAIN = (
    "echo",
    "fail",
    "odd",
    "end",
    "publish",
    "acknowledge",
    "register",
    "child",
    "child-acks",
    "child-ends",
)
SLOW = ("wait", "late", "ask", "await-child", "await-login")
FRAMES = (*PLAIN, *SLOW, "answer")
SIZES = (0, 1_000, 9_000, 40_000)
LIMITS = Limits(
    inbox=20_000,
    outbox=2_000,
    outbox_max=60_000,
    deliveries=8,
    deliveries_bytes=50_000,
    commands=5,
    commands_bytes=50_000,
    waiting_sends=3,
    requests=3,
    tasks=2,
    children=3,
    memory=150_000,
)
PARTS = 7
"""What a connection holds is the sum of so many, each of which says when it is large."""

picks = st.integers(0, 99)
names = st.integers(0, 3)


class Fleet(RuleBasedStateMachine):
    """Lines with children on one engine, and everything that may happen to any of them."""

    def __init__(self) -> None:
        super().__init__()
        self.log = logging.getLogger("exproto_app")
        self.level = self.log.level
        self.log.setLevel(logging.CRITICAL)
        self.running: Counter[str] = Counter()  # handlers that have a turn, by line
        self.ends: Counter[str] = Counter()
        self.accepted = 0  # bytes to be sent
        self.offered = self.handled = 0  # messages for devices
        self.acknowledged: Counter[int] = Counter()
        self.number = 0
        self.published: dict[str, tuple[str, Outcome[None]]] = {}  # by topic: by whom, and its outcome
        self.outcomes: list[Outcome[Any]] = []
        self.waiters: list[FakeWaiter] = []
        self.links: list[FakeLink] = []
        self.known: dict[Channel, Connection[Any, Any]] = {}
        self.app: App[Any, Any] = App(framing=Line(limit=100_000), limits=LIMITS)
        self.world: World

    # --- the app

    def _enter(self, conn: Connection[Any, Any]) -> None:
        line = conn.id.partition(".")[0]
        assert not self.running[line], "turns of a line and its children overlap"
        assert not self.ends[conn.id], "something runs behind on_terminated"
        self.running[line] += 1

    def _leave(self, conn: Connection[Any, Any]) -> None:
        self.running[conn.id.partition(".")[0]] -= 1

    def _reply(self) -> bytes:
        self.number += 1
        self.accepted += 9
        return b"%08d" % self.number

    def _publish(self, conn: Connection[Any, Any], size: int = 0) -> Outcome[None]:
        topic = f"up/{len(self.published):06}"
        outcome: Outcome[None] = conn.publish(topic, b"x" * size, 1)
        thread = " by thread" if self.world.runtime.other_thread else ""  # which the loop may overtake
        self.published[topic] = conn.id + thread, outcome
        self.outcomes.append(outcome)
        return outcome

    def _send(self, conn: Connection[Any, Any], size: int = 0, after: Outcome[Any] | None = None) -> None:
        channel: Any = conn._verbs
        if channel.state < CLOSED and (channel.line is None or channel.line.state < CLOSED):
            self.number += 1
            mark = b"A" if after is not None and not self.app.strict_order else b""
            data = mark + b"%0*d" % (8 - len(mark), self.number) + b"x" * size
            self.accepted += len(data) + 1
            self.outcomes.append(conn.send(data, after=after))

    def _wait(self) -> FakeWaiter:
        waiter = FakeWaiter()
        self.waiters.append(waiter)
        return waiter

    def _do(self, conn: Connection[Any, Any], verb: str, name: str, size: int) -> None:
        match verb:
            case "fail":
                raise ValueError(verb)
            case "odd":
                raise (GeneratorExit(), Cancelled(), BaseException("odd"))[self.number % 3]
            case "end":
                conn.terminate()
            case "publish":
                self._publish(conn, size)
            case "acknowledge":
                self._send(conn, after=self._publish(conn, size))
            case "register":
                self.outcomes.append(conn.register(f"d{name}", password="pw"))
            case "child":
                self.outcomes.append(conn.child(f"d{name}").registered)
            case "child-acks":
                child = conn.child(f"d{name}")
                self._send(child, after=self._publish(child, size))
            case "child-ends" if f"d{name}" in conn.children:
                conn.children[f"d{name}"].terminate()

    def _register_handlers(self, app: App[Any, Any]) -> None:  # noqa: C901, PLR0915 - one app of all
        @app.on_received
        def received(conn: Connection[Any, Any], frame: bytes) -> bytes:
            self._enter(conn)
            verb, name, size = frame.decode().split()[:3]
            try:
                self._do(conn, verb, name, int(size))
                return self._reply()
            finally:
                self._leave(conn)

        async def slow(conn: Connection[Any, Any], frame: bytes) -> None:
            self._enter(conn)
            verb, name, _ = frame.decode().split()[:3]
            try:
                match verb:
                    case "wait":
                        await self._wait()
                    case "late":
                        await self._wait()
                        raise ValueError(verb)
                    case "await-child":
                        await conn.child(f"d{name}")
                    case "await-login":
                        await conn.register(f"d{name}", password="pw")
            finally:
                self._leave(conn)
            self._send(conn)

        for verb in SLOW:
            if verb != "ask":
                app.on_received(verb.encode())(slow)

        @app.on_received(b"ask")
        async def ask(conn: Connection[Any, Any], frame: bytes) -> None:
            self._enter(conn)
            channel: Any = conn._verbs
            waiting = 0 if channel.requests is None else len(channel.requests.waiting)
            if not conn.closed and waiting < LIMITS.requests:
                self.accepted += 5
            request = conn.request(b"ques", match=lambda frame: frame.startswith(b"answer"), timeout=5)
            self.outcomes.append(request)
            self._leave(conn)
            await request

        @app.on_deliver
        def message(conn: Connection[Any, Any], message: Message) -> bytes:
            self._enter(conn)
            self.handled += 1
            self._leave(conn)
            return self._reply()

        @app.on_deliver("held", when="uplink")
        def held(conn: Connection[Any, Any], message: Message) -> None:
            self._enter(conn)
            self.handled += 1
            self._leave(conn)

        @app.on_deliver("slow")
        async def takes_time(conn: Connection[Any, Any], message: Message) -> None:
            self._enter(conn)
            self.handled += 1
            try:
                await self._wait()
            finally:
                self._leave(conn)

        @app.on_timeout
        def timeout(conn: Connection[Any, Any]) -> None:
            self._enter(conn)
            self._leave(conn)

        @app.every(7)
        def tick(conn: Connection[Any, Any]) -> None:
            self._enter(conn)
            self._leave(conn)

        @app.on_error
        def wrong(conn: Connection[Any, Any], error: BaseException) -> None:
            assert not self.ends[conn.id]
            if self.number % 2:
                conn.keep()

        @app.on_terminated
        def terminated(conn: Connection[Any, Any], reason: str) -> None:
            self._enter(conn)
            self.ends[conn.id] += 1
            assert not conn.children or all(child.closed for child in conn.children.values())
            self._publish(conn)
            self._leave(conn)

    def _judge_logins(self, how: str) -> None:
        """Have the app judge logins: each name has its answer."""

        def judged(login: Login) -> Any:
            match login.client.clientid:
                case "d1":
                    return "not this one"
                case "d2":
                    raise ValueError("no such table")
            return True

        async def judged_later(login: Login) -> Any:
            await self._wait()
            return judged(login)

        if how == "async":
            self.app.on_login(judged_later)
        elif how:
            self.app.on_login(blocking=how == "blocking")(judged)

    # --- what may happen

    @initialize(
        login=st.sampled_from(("", "plain", "async", "blocking")),
        many=st.booleans(),
        at_once=st.booleans(),
        strict=st.booleans(),
    )
    def begin(self, login: str, *, many: bool, at_once: bool, strict: bool) -> None:
        self.app.strict_order = strict
        self._register_handlers(self.app)
        self._judge_logins(login)
        self.world = World(self.app)
        self.world.hub.at_once = at_once
        self.world.hub.many_clients = many
        self.connect(answers=False)
        self.connect(answers=True)

    @rule(answers=st.booleans())
    def connect(self, *, answers: bool) -> None:
        if len(self.links) < 5:
            link = FakeLink()
            link.answers = answers
            self.links.append(link)
            self.world.connect(link)
            self.find_new_ones()

    @rule(
        pick=picks,
        verbs=st.lists(st.sampled_from(FRAMES), min_size=1, max_size=9),
        name=names,
        size=st.sampled_from(SIZES),
    )
    def feed(self, pick: int, verbs: list[str], name: int, size: int) -> None:
        channel = self._line(pick)
        if channel.state < GONE:
            channel.received(b"".join(b"%s %d %d\n" % (verb.encode(), name, size) for verb in verbs))

    @rule(pick=picks, size=st.sampled_from(SIZES))
    def pour(self, pick: int, size: int) -> None:
        """Send much that is handled, some of it unfinished for now."""
        channel = self._line(pick)
        if channel.state < GONE:
            channel.received(b"echo 0 0 " + b"x" * size)
            channel.received(b"\n" * bool(size % 9))

    @rule(
        pick=picks,
        count=st.integers(1, 5),
        size=st.sampled_from(SIZES),
        qos=st.integers(0, 1),
        topic=st.sampled_from(("down", "held", "slow")),
    )
    def deliver(self, pick: int, count: int, size: int, qos: int, topic: str) -> None:
        self.offered += count
        message = Message(topic, b"x" * size, qos)
        outcome = self._any(pick).delivered([message] * count)
        if outcome is not None:
            self.outcomes.append(outcome)

    @rule(pick=picks)
    def deliver_what_the_broker_keeps(self, pick: int) -> None:
        self.offered += 1
        number = self.number = self.number + 1
        acknowledge = partial(self.acknowledged.update, (number,))
        self._any(pick).delivered([Message("kept", b"", 1)], acknowledge)

    @rule(pick=picks)
    def stop_reading(self, pick: int) -> None:
        channel = self._line(pick)
        if channel.state < GONE:
            channel.unwritable()

    @rule(pick=picks)
    def read_again(self, pick: int) -> None:
        channel = self._line(pick)
        if channel.state < GONE and channel.waits & WRITE_BLOCKED:
            channel.drained()

    @rule(pick=picks)
    def congested(self, pick: int) -> None:
        self._any(pick).congested()

    @rule(pick=picks)
    def relieved(self, pick: int) -> None:
        self._any(pick).relieved()

    @rule(pick=picks, good=st.integers(0, 2))
    def broker_answers(self, pick: int, good: int) -> None:
        outcomes = self.world.hub.unanswered
        if outcomes:
            outcome = outcomes.pop(pick % len(outcomes))
            if good:
                outcome.settle(None)
            else:
                outcome.fail(DeniedError("no") if pick % 2 else UnavailableError("away"))

    @rule(pick=picks, good=st.integers(0, 9))
    def host_answers(self, pick: int, good: int) -> None:
        link = self.links[pick % len(self.links)]
        if link.outcomes:
            outcome = link.outcomes.pop(0)
            if good:
                outcome.settle(None)
            else:
                outcome.fail(UnavailableError("no"))

    @rule(pick=picks)
    def a_handler_goes_on(self, pick: int) -> None:
        if self.waiters:
            waiter = self.waiters.pop(pick % len(self.waiters))
            if not waiter.done():
                waiter.set_result(None)

    @rule(pick=picks)
    def a_thread_ends(self, pick: int) -> None:
        threads = self.world.runtime.threads
        if threads:
            threads.pop(pick % len(threads)).run()

    @rule(pick=picks)
    def a_timer_fires(self, pick: int) -> None:
        self.world.runtime.fire_late(pick)
        self.world.settle()  # a handler that is cancelled ends, or else the next one goes on beside it

    @rule(steps=st.integers(1, 10))
    def the_loop_goes_on(self, steps: int) -> None:
        for _ in range(min(steps, len(self.world.runtime.soon))):
            self.world.runtime.soon.popleft()()

    @rule()
    def the_loop_comes_to_rest(self) -> None:
        self.world.settle()

    @rule(pick=picks, size=st.sampled_from(SIZES), after=st.booleans())
    def send(self, pick: int, size: int, *, after: bool) -> None:
        conn = self.known[self._any(pick)]
        self._send(conn, size, self._publish(conn) if after else None)

    @rule(
        pick=picks,
        verb=st.sampled_from(("publish", "register", "end", "child", "timer", "spawn")),
        name=names,
        thread=st.booleans(),
    )
    def say(self, pick: int, verb: str, name: int, *, thread: bool) -> None:
        conn = self.known[self._any(pick)]
        self.world.runtime.other_thread = thread
        try:
            match verb:
                case "timer":
                    conn.start_timer(3)
                case "spawn":
                    conn.spawn(self._spawned())
                case "child":
                    self.outcomes.append(conn.child(f"d{name}").registered)
                case _:
                    self._do(conn, verb, str(name), 0)
        except CommandError:
            """Too many, or too late; the caller knows."""
        finally:
            self.world.runtime.other_thread = False

    async def _spawned(self) -> None:
        await self._wait()
        raise ValueError("spawned")

    @rule(
        pick=picks, drain=st.booleans(), reason=st.sampled_from(("error", "kicked", "device closed", "lost"))
    )
    def end(self, pick: int, reason: Any, *, drain: bool) -> None:
        if reason == "lost":
            self._any(pick).lose("as it is told")
        else:
            self._any(pick).end(reason, drain=drain)

    @rule(pick=picks)
    def hang_up(self, pick: int) -> None:
        self._line(pick).terminated()

    @rule(much=st.integers(0, 9))
    def shut_down(self, much: int) -> None:
        if not much:
            self.world.engine.shutdown()

    # --- who is there

    def _any(self, pick: int) -> Channel:
        channels = tuple(self.known)
        return channels[pick % len(channels)]

    def _line(self, pick: int) -> Channel:
        channel = self.links[pick % len(self.links)].channel
        assert isinstance(channel, Channel)
        return channel

    @invariant()
    def find_new_ones(self) -> None:
        if hasattr(self, "world"):
            for channel in sorted(self.world.engine.channels, key=lambda one: one.id):
                if channel not in self.known:
                    self.known[channel] = channel.conn

    # --- what always holds

    @invariant()
    def bytes_leave_in_order(self) -> None:
        for link in self.links:
            lines = [line for line in link.sent.split(b"\n") if line and line != b"ques"]
            waited = [line for line in lines if line.startswith(b"A")]  # others may pass these
            others = [line for line in lines if not line.startswith(b"A")]
            assert (waited, others) == (sorted(waited), sorted(others))

    @invariant()
    def sizes_are_those_of_what_waits(self) -> None:
        for channel in self.known:
            if channel.state >= CLOSED:
                continue
            events = channel.backlog or ()
            cut = sum(len(data) for run, data in events if run == channel.inbound.take)
            assert channel.inbound.size == cut
            if channel.deliveries is not None:
                batches = [batch for run, batch in events if channel.deliveries.waits_in((run, batch))]
                items: list[Any] = [item for batch in batches for item in batch] + [
                    *(channel.deliveries.held or ())
                ]
                messages = [getattr(item, "message", item) for item in items]
                assert channel.deliveries.waiting == len(messages)
                assert channel.deliveries.size == sum(len(one.topic) + len(one.payload) for one in messages)
            if channel.outbound.later is not None:
                later = channel.outbound.later
                assert later.size == sum(len(send.data) for send in later._queue)

    @invariant()
    def memory_is_bounded_and_known(self) -> None:
        if not hasattr(self, "world"):
            return
        memory = self.world.engine.memory
        for channel in self.known:
            assert channel.bytes_held - memory._held.get(channel, 0) <= PARTS * LARGE
        if not self.world.runtime.soon:
            assert memory.used <= LIMITS.memory

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self._end()
        finally:
            self.log.setLevel(self.level)

    def _end(self) -> None:
        """Come to the end: everything is given back, and the books balance."""
        world = self.world
        runtime, engine = world.runtime, world.engine
        for link in self.links:
            assert isinstance(link.channel, Channel)
            link.channel.terminated()
        for _ in range(100):
            for waiter in self.waiters:
                if not waiter.done():
                    waiter.set_result(None)
            for thread in runtime.threads:
                thread.run()
            runtime.threads.clear()
            for outcome in (*world.hub.unanswered, *(one for link in self.links for one in link.outcomes)):
                outcome.settle(None)
            runtime.advance(20)
            if not engine.open:
                break
        runtime.advance(1000)
        stats = self.app.stats
        assert not engine.open
        assert all(channel.state is ENDED for channel in self.known)
        assert set(self.ends.values()) <= {1}
        assert len(self.ends) == stats["connections_opened"] == stats["connections_closed"]
        assert len(set(world.hub.forgotten)) == len(world.hub.forgotten) == len(self.ends)
        assert not any(self.running.values())
        assert not self.app.connections
        assert not engine.clients
        assert not engine.takeovers._waiting
        assert (engine.memory.used, engine.memory._held) == (0, {})
        for judging in (engine._judging_tasks, engine._judging_threads):
            assert (judging._running, len(judging._waiting)) == (0, 0)
        assert not [timer for timer in runtime.timers if not timer.cancelled]
        assert all(outcome.done for outcome in self.outcomes)
        self._balance(stats)
        world.stop()

    def _balance(self, stats: Any) -> None:
        assert sum(len(link.sent) for link in self.links) == stats["bytes_sent"]
        assert stats["bytes_sent"] + stats.get("bytes_dropped.unsent", 0) == self.accepted
        assert self.offered == self.handled + stats["deliveries_dropped"]
        assert set(self.acknowledged.values()) <= {1}
        asked = [command.topic for command in self.world.hub.asked if isinstance(command, Publish)]
        assert len(set(asked)) == len(asked) == stats["messages_published"]
        by: dict[str, list[str]] = {}
        for topic in asked:
            by.setdefault(self.published[topic][0], []).append(topic)
        assert all(topics == sorted(topics) for topics in by.values())
        lost = [outcome for topic, (_, outcome) in self.published.items() if topic not in asked]
        assert all(outcome.error is not None for outcome in lost)


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)
