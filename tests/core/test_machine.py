"""The machine walked at random: events, verbs, failures and ends in any order; the invariants hold."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from exproto_app import App, Connection, Message
from exproto_app.core import Channel
from exproto_app.core.states import CLOSED, ENDED, GONE, WRITE_BLOCKED
from exproto_app.errors import DeniedError, UnavailableError
from exproto_app.framing import Line

from .world import FakeLink, FakeWaiter, World

FRAMES = (b"sync", b"wait", b"asks", b"fail", b"late", b"ends", b"pubs", b"answ", b"regs", b"thrd", b"acks")
SIZE = 5
"""Bytes of each of them on the line."""


class Machine(RuleBasedStateMachine):
    """One connection; everything that may happen to it is a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.log = logging.getLogger("exproto_app")
        self.level = self.log.level
        self.log.setLevel(logging.CRITICAL)
        self.running = 0  # handlers that have a turn
        self.handled = self.answered = self.delivered = 0
        self.accepted = 0  # bytes to be sent
        self.number = 0
        self.gone: list[str] = []
        self.waiters: list[FakeWaiter] = []
        self.carry = b""
        self.last_state = 0
        self.conn: Connection[Any, Any]
        self.app: App[Any, Any] = App(framing=Line())
        self._register_handlers(self.app)
        self.world = World(self.app)

    # --- the app

    def _enter(self) -> None:
        assert self.running == 0, "turns overlap"
        assert not self.gone, "something runs behind on_terminated"
        self.running += 1

    def _leave(self) -> None:
        self.running -= 1

    def _reply(self) -> bytes:
        self.number += 1
        data = b"%08d" % self.number
        self.accepted += len(data) + 1
        return data

    def _register_handlers(self, app: App[Any, Any]) -> None:  # noqa: C901, PLR0915 - one app of all
        @app.on_connect
        def connect(conn: Connection[Any, Any]) -> None:
            self.conn = conn

        @app.on_received
        def received(conn: Connection[Any, Any], frame: bytes) -> bytes | None:
            self._enter()
            self.handled += 1
            try:
                if frame == b"fail":
                    raise ValueError(frame)
                if frame == b"ends":
                    conn.terminate()
                if frame == b"pubs":
                    conn.publish("up", frame)
                if frame == b"regs":
                    conn.register("d1")
                if frame == b"acks":
                    self.send_after("up")
                return self._reply()
            finally:
                self._leave()

        @app.on_received(b"thrd", blocking=True)
        def thread(conn: Connection[Any, Any], frame: bytes) -> None:
            """Do nothing; it is counted as it starts, for it may never end."""

        @app.on_received(b"wait")
        async def wait(conn: Connection[Any, Any], frame: bytes) -> None:
            self._enter()
            self.handled += 1
            try:
                waiter = FakeWaiter()
                self.waiters.append(waiter)
                await waiter
            finally:
                self._leave()
            # Not returned: what a handler returns that has run out of its time is not sent.
            self.send()

        @app.on_received(b"late")
        async def late(conn: Connection[Any, Any], frame: bytes) -> None:
            self._enter()
            self.handled += 1
            try:
                waiter = FakeWaiter()
                self.waiters.append(waiter)
                await waiter
                raise ValueError(frame)
            finally:
                self._leave()

        @app.on_received(b"asks")
        async def asks(conn: Connection[Any, Any], frame: bytes) -> None:
            self._enter()
            self.handled += 1
            if not conn.closed:
                self.accepted += SIZE
            request = conn.request(b"ques", match=self._answers, timeout=5)
            self._leave()
            await request

        @app.on_deliver
        def message(conn: Connection[Any, Any], message: Message) -> bytes:
            self._enter()
            self.delivered += 1
            self._leave()
            return self._reply()

        @app.on_timeout
        def timeout(conn: Connection[Any, Any]) -> None:
            self._enter()
            self._leave()

        @app.every(7)
        def tick(conn: Connection[Any, Any]) -> None:
            self._enter()
            self._leave()

        @app.on_error
        def wrong(conn: Connection[Any, Any], error: BaseException) -> None:
            assert not self.gone
            if isinstance(error, DeniedError):  # of a send that waited: its turn is its own
                assert self.running == 0
            if self.number % 2:
                conn.keep()

        @app.on_terminated
        def terminated(conn: Connection[Any, Any], reason: str) -> None:
            assert self.running == 0
            self.gone.append(reason)
            conn.publish("gone", b"")

    def _answers(self, frame: bytes) -> bool:
        if frame == b"answ":
            self.answered += 1
            return True
        return False

    # --- what may happen

    @initialize(answers=st.booleans(), at_once=st.booleans(), strict=st.booleans())
    def begin(self, *, answers: bool, at_once: bool, strict: bool) -> None:
        link = FakeLink()
        self.app.strict_order = strict
        link.answers = answers
        self.world.hub.at_once = at_once
        self.channel: Channel
        self.channel, self.link = self.world.connect(link)

    def alive(self) -> bool:
        return self.channel.state < GONE

    @precondition(alive)
    @rule(frames=st.lists(st.sampled_from(FRAMES), max_size=40), cut=st.integers(0, SIZE - 1))
    def feed(self, frames: list[bytes], cut: int) -> None:
        data = self.carry + b"".join(frame + b"\n" for frame in frames)
        self.carry = data[len(data) - cut :] if cut else b""
        self.channel.received(data[: len(data) - cut] if cut else data)

    @rule(count=st.integers(1, 5))
    def deliver(self, count: int) -> None:
        self.channel.delivered([Message("down", b"")] * count)

    @precondition(alive)
    @rule()
    def unwritable(self) -> None:
        self.channel.unwritable()

    @precondition(alive)
    @rule()
    def drained(self) -> None:
        if self.channel.waits & WRITE_BLOCKED:
            self.channel.drained()

    @rule()
    def congested(self) -> None:
        self.channel.congested()

    @rule()
    def relieved(self) -> None:
        self.channel.relieved()

    @rule(number=st.integers(0, 50), good=st.booleans())
    def broker_answers(self, number: int, *, good: bool) -> None:
        outcomes = self.world.hub.unanswered
        if outcomes:
            outcome = outcomes.pop(number % len(outcomes))
            if good:
                outcome.settle(None)
            else:
                outcome.fail(DeniedError("no"))

    @rule(good=st.integers(0, 9))
    def host_answers(self, good: int) -> None:
        if self.link.outcomes:
            outcome = self.link.outcomes.pop(0)
            if good:
                outcome.settle(None)
            else:
                outcome.fail(UnavailableError("no"))

    @rule(number=st.integers(0, 50))
    def a_handler_goes_on(self, number: int) -> None:
        if self.waiters:
            waiter = self.waiters.pop(number % len(self.waiters))
            if not waiter.done():
                waiter.set_result(None)

    @rule(number=st.integers(0, 50))
    def a_thread_ends(self, number: int) -> None:
        if self.world.runtime.threads:
            self.world.runtime.threads.pop(number % len(self.world.runtime.threads)).run()

    @rule(number=st.integers(0, 50))
    def a_timer_fires(self, number: int) -> None:
        self.world.runtime.fire_late(number)
        self.world.settle()  # a handler that is cancelled ends, or else the next one goes on beside it

    @rule(steps=st.integers(1, 10))
    def the_loop_goes_on(self, steps: int) -> None:
        for _ in range(min(steps, len(self.world.runtime.soon))):
            self.world.runtime.soon.popleft()()

    @rule()
    def send(self) -> None:
        if self.channel.state < CLOSED:
            self.number += 1
            self.accepted += 9
            self.conn.send(b"%08d" % self.number)

    @rule(topic=st.sampled_from(("", "up")))
    def send_after(self, topic: str) -> None:
        if self.channel.state >= ENDED:
            return
        outcome = self.conn.publish(topic, b"", 1) if topic else ()
        if self.channel.state < CLOSED:
            self.accepted += 9
            self.number += 1
            mark = b"" if self.app.strict_order else b"A"
            self.conn.send(mark + b"%0*d" % (8 - len(mark), self.number), after=outcome)

    @rule(verb=st.sampled_from(("publish", "subscribe", "register", "terminate", "timer", "spawn", "keep")))
    def say(self, verb: str) -> None:
        conn = self.conn
        match verb:
            case "publish":
                conn.publish("a", b"", 1)
            case "subscribe":
                conn.subscribe("a")
            case "register":
                conn.register("d1")
            case "timer":
                conn.start_timer(3)
            case "spawn":
                conn.spawn(self._spawned())
            case "terminate":
                conn.terminate()
            case "keep":
                with contextlib.suppress(RuntimeError):
                    conn.keep()

    async def _spawned(self) -> None:
        waiter = FakeWaiter()
        self.waiters.append(waiter)
        await waiter
        raise ValueError("spawned")

    @rule(drain=st.booleans(), reason=st.sampled_from(("shutdown", "error", "kicked", "device closed")))
    def end(self, reason: Any, *, drain: bool) -> None:
        self.channel.end(reason, drain=drain)

    @rule()
    def hang_up(self) -> None:
        self.channel.terminated()

    # --- what always holds

    @invariant()
    def states_never_go_back(self) -> None:
        if hasattr(self, "channel"):
            assert self.channel.state >= self.last_state
            self.last_state = self.channel.state

    @invariant()
    def bytes_leave_in_order(self) -> None:
        if hasattr(self, "link"):
            lines = [line for line in self.link.sent.split(b"\n") if line and line != b"ques"]
            waited = [line for line in lines if line.startswith(b"A")]  # others may pass these
            others = [line for line in lines if not line.startswith(b"A")]
            assert (waited, others) == (sorted(waited), sorted(others))

    def teardown(self) -> None:
        try:
            if hasattr(self, "channel"):
                self._end()
        finally:
            self.log.setLevel(self.level)

    def _end(self) -> None:
        """Come to the end, and balance the books."""
        runtime = self.world.runtime
        self.channel.terminated()
        for _ in range(100):
            for waiter in self.waiters:
                if not waiter.done():
                    waiter.set_result(None)
            for thread in runtime.threads:
                thread.run()
            runtime.threads.clear()
            for outcome in self.world.hub.unanswered:
                outcome.settle(None)
            runtime.advance(20)
            if self.channel.state is ENDED:
                break
        runtime.advance(1000)
        stats, handled = self.app.stats, self.handled + runtime.started
        assert self.channel.state is ENDED
        assert len(self.gone) == 1
        assert self.world.hub.forgotten == [self.channel]
        assert self.world.engine.open == 0
        assert not self.app.connections
        dropped = stats.get("bytes_dropped.unsent", 0)
        assert len(self.link.sent) == stats["bytes_sent"]
        assert stats["bytes_sent"] + dropped == self.accepted
        lost = stats.get("bytes_dropped.closing", 0) + stats.get("bytes_dropped.unfinished", 0)
        assert stats["bytes_received"] == SIZE * stats["frames_received"] + lost
        assert stats["frames_received"] == handled + self.answered + stats["frames_dropped"]
        assert stats["messages_delivered"] + stats.get("deliveries_dropped", 0) >= self.delivered
        self.world.stop()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
