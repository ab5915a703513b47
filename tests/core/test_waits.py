"""Every reason to wait: what sets it, that turns wait for it, and what clears it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from exproto_app import App, Connection, Message
from exproto_app.core.states import (
    BACKLOG,
    CONGESTED,
    ENDING,
    FAILURES,
    HANDLER,
    INDIRECT,
    OUTBOUND_FULL,
    REGISTER,
    RESUMES,
    RUNNING,
    WRITE_BLOCKED,
    reasons,
)
from exproto_app.errors import DeniedError, UnavailableError
from exproto_app.framing import Line
from exproto_app.models import Limits

from .world import FakeLink, FakeWaiter, World


class Waits:
    """An app whose handlers do what the frame says, and its world."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.app: App[Any, Any] = App(framing=Line(), limits=Limits(outbox=10))
        self.waiter = FakeWaiter()
        self.errors: list[BaseException] = []

        @self.app.on_received(b"wait")
        async def wait(conn: Connection, frame: bytes) -> bytes:
            self.seen.append("wait")
            await self.waiter
            return frame

        @self.app.on_received(b"ask")
        async def ask(conn: Connection, frame: bytes) -> None:
            self.seen.append("asks")
            self.seen.append(await conn.request(b"?", match=lambda frame: frame == b"!"))

        @self.app.on_received(b"thread", blocking=True)
        def thread(conn: Connection, frame: bytes) -> bytes:
            return frame

        @self.app.on_received(b"login")
        def login(conn: Connection, frame: bytes) -> None:
            conn.register("d1", password="pw")

        @self.app.on_received
        def rest(conn: Connection, frame: bytes) -> bytes:
            self.seen.append((frame, reasons(self.channel.waits)))
            return frame

        @self.app.on_deliver
        def message(conn: Connection, message: Message) -> bytes:
            self.seen.append(message.topic)
            return message.payload

        self.world = World(self.app)
        self.channel, self.link = self.world.connect()
        self.channel.received(b"hello\n")
        assert self.channel.waits == 0
        self.seen.clear()
        self.link.sent = b""

    def feed(self, data: bytes) -> None:
        self.channel.received(data)
        self.world.settle()


@pytest.fixture
def waits() -> Iterator[Waits]:
    waits = Waits()
    yield waits
    waits.channel.terminated()
    waits.world.stop()


def test_running(waits: Waits) -> None:
    waits.feed(b"a\n")
    assert waits.seen == [(b"a", {"RUNNING"})]
    assert waits.channel.waits & RUNNING == 0


def test_a_handler_that_awaits(waits: Waits) -> None:
    waits.feed(b"wait\na\n")
    assert waits.channel.waits == HANDLER | BACKLOG
    assert waits.seen == ["wait"]
    waits.waiter.set_result(None)
    waits.world.settle()
    assert (waits.channel.waits, waits.link.sent) == (0, b"wait\na\n")


def test_a_handler_in_a_thread(waits: Waits) -> None:
    waits.feed(b"thread\na\n")
    assert waits.channel.waits & HANDLER
    waits.world.runtime.threads.pop().run()
    assert waits.link.sent == b"thread\na\n"


def test_a_registration(waits: Waits) -> None:
    waits.feed(b"login\na\n")
    assert waits.channel.waits == REGISTER | BACKLOG
    waits.world.hub.unanswered.pop().settle(None)
    waits.world.settle()
    assert waits.channel.client is not None
    assert (waits.channel.waits, waits.link.sent) == (0, b"a\n")


def test_a_refused_registration_ends_the_connection(waits: Waits, caplog: pytest.LogCaptureFixture) -> None:
    waits.feed(b"login\na\n")
    waits.world.hub.unanswered.pop().fail(DeniedError("wrong password"))
    waits.world.settle()
    assert waits.channel.reason == "error"
    assert "login refused, from 192.0.2.1:5000: clientid 'd1', username 'd1': wrong password" in caplog.text


def test_congestion(waits: Waits) -> None:
    waits.channel.congested()
    waits.feed(b"a\n")
    assert (waits.channel.waits, waits.link.paused) == (CONGESTED | BACKLOG, True)
    waits.channel.relieved()
    waits.world.settle()
    assert (waits.channel.waits, waits.link.paused, waits.link.sent) == (0, False, b"a\n")


def test_a_device_that_does_not_read(waits: Waits) -> None:
    waits.channel.unwritable()
    waits.feed(b"a\n")
    assert waits.channel.waits == WRITE_BLOCKED | BACKLOG
    waits.channel.drained()
    assert (waits.channel.waits, waits.link.sent) == (0, b"a\n")


def test_too_much_to_send() -> None:
    waits = Waits()
    link = FakeLink()
    link.answers = True
    channel, _ = waits.world.connect(link)
    waits.channel = channel
    channel.conn.send(b"first")
    waits.world.settle()
    channel.conn.send(b"0123456789ab")
    channel.received(b"a\n")
    waits.world.settle()
    assert channel.waits & OUTBOUND_FULL
    assert not waits.seen
    link.outcomes[0].settle(None)
    waits.world.settle()
    assert not channel.waits & OUTBOUND_FULL
    link.outcomes[1].settle(None)
    waits.world.settle()
    assert link.sent == b"first\n0123456789ab\na\n"


def test_failures_are_judged_behind_the_turn(waits: Waits) -> None:
    seen: list[int] = []
    hub, channel = waits.world.hub, waits.channel
    hub.at_once = False
    channel.waits |= RUNNING  # as within a handler
    channel.conn.publish("a/b", b"")
    hub.unanswered.pop().fail(UnavailableError("away"))
    seen.append(channel.waits)
    channel.waits &= ~RUNNING
    channel.advance()
    assert seen == [RUNNING | FAILURES]
    assert (channel.waits, waits.app.stats["commands_failed"]) == (0, 1)


def test_a_refused_publish_tells_its_topic(waits: Waits, caplog: pytest.LogCaptureFixture) -> None:
    waits.world.hub.at_once = False
    outcome = waits.channel.conn.publish("a/b", b"")
    outcome.awaited = True
    waits.world.hub.unanswered.pop().fail(DeniedError("not authorized"))
    waits.world.settle()
    assert "publish to 'a/b' refused for clientid '', username '': not authorized" in caplog.text
    assert waits.app.stats["commands_failed"] == 0, "whoever awaits it sees to it"


def test_a_suspended_call_resumes_before_new_turns(waits: Waits) -> None:
    waits.feed(b"ask\n")
    assert waits.channel.waits == 0, "its turn is free"
    waits.channel.unwritable()
    waits.feed(b"!\na\n")
    waits.channel.waits &= ~WRITE_BLOCKED
    waits.channel.advance()
    waits.world.settle()
    assert waits.seen == ["asks", b"!", (b"a", {"RUNNING"})]
    assert not waits.channel.waits & RESUMES


def test_a_backlog(waits: Waits) -> None:
    waits.channel.delivered([Message("m", b"1"), Message("n", b"2")])
    assert waits.channel.waits == BACKLOG
    waits.feed(b"a\n")
    assert waits.link.sent == b"1\n2\na\n"
    assert waits.channel.waits == 0


def test_the_end(waits: Waits) -> None:
    waits.channel.end("error")
    assert waits.channel.waits == ENDING


def test_the_detour_of_those_that_are_watched(waits: Waits) -> None:
    def look(*_: object) -> None:
        """See nothing."""

    waits.channel.watch(look)
    assert waits.channel.waits == INDIRECT
    assert not waits.channel.busy
    waits.feed(b"a\n")
    waits.channel.unwatch(look)
    assert (waits.channel.waits, waits.link.sent) == (0, b"a\n")
