"""The write queue: what an awaited send comes to, whatever the device's side answers, or doesn't."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from exproto_app import App, Connection
from exproto_app.commands import DONE, Outcome
from exproto_app.core import Channel, State
from exproto_app.errors import ClosedError, UnavailableError
from exproto_app.framing import Line
from exproto_app.models import Limits
from exproto_app.tap import Event, Refused
from exproto_app.testing import TestClient

from .world import FakeLink, FakeWaiter, World


class FencedLink(FakeLink):
    """A link that tells, if asked, whether what was sent has arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Outcome[None]] = []
        self.confirm = self._ask

    def _ask(self) -> Outcome[None]:
        self.asked.append(Outcome(FakeWaiter))
        return self.asked[-1]


def world_of(**limits: int) -> World:
    app: App[Any, Any] = App(framing=Line(), limits=Limits(**limits))

    @app.on_received
    def frame(conn: Connection[Any, Any], frame: bytes) -> None:
        """Take every frame."""

    return World(app)


def results(world: World, outcome: Outcome[Any]) -> list[object]:
    """Await *outcome* in a task; return the list that its result or its error comes into."""
    seen: list[object] = []

    async def wait() -> None:
        try:
            seen.append(await outcome)
        except Exception as error:  # noqa: BLE001 - compared by the test
            seen.append(error)

    world.runtime.run_task(wait(), lambda *_: None)
    world.settle()
    return seen


def answering(world: World) -> tuple[Channel, FakeLink]:
    link = FakeLink()
    link.answers = True
    return world.connect(link)


def test_a_send_with_room_is_done_at_once() -> None:
    channel, link = world_of().connect()
    assert channel.conn.send(b"a") is DONE
    channel.advance()
    assert link.sent == b"a\n"


def test_an_awaited_send_asks_the_fence_behind_what_was_sent() -> None:
    world, link = world_of(), FencedLink()
    channel, _ = world.connect(link)
    seen = results(world, channel.conn.send(b"a"))
    assert (link.sent, seen) == (b"a\n", [])
    link.asked[0].settle(None)
    world.settle()
    assert seen == [None]


def test_a_fence_fails_at_the_end_at_the_latest() -> None:
    world, link = world_of(), FencedLink()
    channel, _ = world.connect(link)
    sent, conn = channel.conn.send(b"b"), channel.conn
    seen = results(world, conn.send(b"a"))
    channel.terminated()
    world.settle()
    assert [type(error) for error in seen] == [ClosedError]
    seen = results(world, sent)
    assert ([type(error) for error in seen], len(link.asked)) == ([ClosedError], 1)


def test_sends_of_a_device_that_reads_slowly_are_done_when_it_reads() -> None:
    world = world_of()
    channel, link = world.connect()
    channel.unwritable()
    first, second = channel.conn.send(b"a"), channel.conn.send(b"b")
    world.settle()
    assert (first.done, link.sent) == (False, b"")
    channel.unwritable()  # once more, which changes nothing
    channel.drained()
    assert (first.done, second.done, link.sent) == (True, True, b"a\nb\n")
    world.runtime.advance(31)
    assert not channel.gone, "it stalls no more"


def test_sends_above_the_outbox_are_done_when_there_is_room() -> None:
    world = world_of(outbox=4)
    channel, link = world.connect()
    outcome = channel.conn.send(b"too much")
    assert not outcome.done
    world.settle()
    assert (outcome.done, link.sent, channel.waits & 32) == (True, b"too much\n", 0)


def test_more_than_the_outbox_ever_holds_loses_the_device() -> None:
    world = world_of(outbox=4, outbox_max=8)
    channel, link = world.connect()
    conn = channel.conn
    assert not conn.send(b"12345678").done, "it goes at once, so no more than that waits"
    assert link.sent == b"12345678\n"
    channel.unwritable()
    waiting, lost = conn.send(b"123456"), conn.send(b"789")
    assert isinstance(lost.error, ClosedError)
    assert (channel.reason, channel.detail) == ("lost", "it doesn't read: 11 bytes wait, limit is 8")
    assert link.told == ["abort"]
    channel.terminated()
    world.settle()
    assert isinstance(waiting.error, ClosedError)
    assert world.app.stats["bytes_dropped.unsent"] == 11


def test_a_send_comes_to_what_the_host_answers() -> None:
    world = world_of()
    channel, link = answering(world)
    first = channel.conn.send(b"a")
    world.settle()
    second = channel.conn.send(b"b")
    world.settle()
    assert link.sent == b"a\n", "one at a time"
    link.outcomes[0].settle(None)
    world.settle()
    assert (first.done, second.done, link.sent) == (True, False, b"a\nb\n")
    link.outcomes[1].fail(UnavailableError("no room"))
    assert str(second.error) == "no room"
    assert world.app.stats["sends_failed"] == 1
    third = channel.conn.send(b"c")
    channel.unwritable()
    channel.drained()
    assert (link.sent, world.engine.open) == (b"a\nb\n", 1), "there is a hole, so nothing goes any more"
    world.runtime.advance(2)
    assert (channel.reason, channel.detail) == ("lost", "a send failed")
    assert third.done


def test_an_answer_behind_the_end_is_nobodys_failure() -> None:
    world = world_of()
    channel, link = answering(world)
    outcome = channel.conn.send(b"a")
    world.settle()
    channel.terminated()
    assert channel.state is State.ENDED
    link.outcomes[0].fail(UnavailableError("gone"))
    assert str(outcome.error) == "gone"
    assert world.app.stats["sends_failed"] == 0
    channel.unwritable()
    channel.drained()
    world.settle()


def test_a_failed_send_is_shown_to_watchers() -> None:
    world = world_of()
    events: list[Event] = []
    world.engine.watch(lambda tap, now, event: events.append(event))
    channel, link = answering(world)
    channel.conn.send(b"a")
    world.settle()
    link.outcomes[0].fail(UnavailableError("no room"))
    world.settle()
    assert [event.what for event in events if isinstance(event, Refused)] == ["send"]


@pytest.mark.parametrize("taken", [True, False])
def test_a_full_outbox_keeps_turns_waiting_until_the_host_has_taken_it(*, taken: bool) -> None:
    world = world_of(outbox=4)
    channel, link = answering(world)
    channel.received(b"x\n")
    channel.conn.send(b"first")
    world.settle()
    channel.conn.send(b"second")
    channel.received(b"y\n")
    world.settle()
    assert world.app.stats["frames_received"] == 1
    if taken:
        link.outcomes[0].settle(None)
    else:
        channel.terminated()
    world.settle()
    assert world.app.stats["frames_received"] == 2


def test_replies_to_a_device_that_has_gone_keep_no_turn() -> None:
    app = App[Any, Any](framing=Line(), limits=Limits(outbox=64))
    handled: list[bytes] = []

    @app.on_received
    async def echo(conn: Connection[Any, Any], frame: bytes) -> bytes:
        if not handled:
            await asyncio.sleep(1)
        handled.append(frame)
        return frame

    ends: list[str] = []

    @app.on_terminated
    def end(conn: Connection[Any, Any], reason: str) -> None:
        ends.append(reason)

    with TestClient(app) as device:
        device.send(b"0123456789abcdef\n" * 200)
        device.close()
        device.advance(60)
        assert len(handled) == 200
        assert ends == ["device closed"]
