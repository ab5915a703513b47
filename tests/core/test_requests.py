"""Requests: answered, asked again, given up, one behind the other; and the call that awaits one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from exproto_app import App, Connection
from exproto_app.core import Channel
from exproto_app.errors import ClosedError, RequestTimeout, UnavailableError
from exproto_app.framing import Line
from exproto_app.models import Limits

from .world import Cancelled, FakeLink, World


class Asking:
    """An app whose handler of `ask` asks `?` and notes what comes, and its world."""

    def __init__(self, **limits: Any) -> None:
        self.seen: list[object] = []
        self.at_answer: Callable[[], object] = lambda: None
        app: App[Any, Any] = App(framing=Line(), limits=Limits(**limits))

        @app.on_received(b"ask")
        async def ask(conn: Connection[Any, Any], frame: bytes) -> bytes:
            try:
                self.seen.append(await conn.request(b"?", match=self.answers, timeout=5))
            except BaseException as error:
                self.seen.append(type(error))
                raise
            return b"thanks"

        @app.on_received
        def rest(conn: Connection[Any, Any], frame: bytes) -> None:
            self.seen.append(frame)

        @app.on_error
        def wrong(conn: Connection[Any, Any], error: BaseException) -> None:
            conn.keep()

        self.app = app
        self.world = World(app)
        self.channel: Channel
        self.link: FakeLink
        self.channel, self.link = self.world.connect()
        self.feed(b"hello\n")
        self.seen.clear()

    def answers(self, frame: bytes) -> bool:
        if frame == b"!":
            self.at_answer()
        return frame == b"!"

    def feed(self, data: bytes) -> None:
        self.channel.received(data)
        self.world.settle()


def test_a_request_is_sent_again_and_then_given_up() -> None:
    asking = Asking()
    outcome = asking.channel.conn.request(b"?", timeout=5, retries=1)
    asking.world.runtime.advance(11)
    assert asking.link.sent == b"?\n?\n"
    assert isinstance(outcome.error, RequestTimeout)
    assert str(outcome.error) == "no answer within 5 s, sent 2 times"
    assert [asking.app.stats[name] for name in ("requests_retried", "requests_timed_out")] == [1, 1]
    assert asking.app.stats["commands_failed"] == 1, "nobody awaited it"


def test_a_request_with_an_answer_is_never_sent_again() -> None:
    asking = Asking()
    outcome = asking.channel.conn.request(b"?", match=lambda frame: frame == b"!", timeout=5, retries=3)
    asking.feed(b"other\n!\n")
    assert (outcome.value, asking.seen) == (b"!", [b"other"])
    while asking.world.runtime.timers:  # even those that were cancelled
        asking.world.runtime.fire_late(0)
        if asking.channel.gone:
            break
    assert asking.link.sent == b"?\n"


def test_requests_with_one_key_are_asked_one_by_one() -> None:
    asking = Asking()
    conn = asking.channel.conn
    first, second, other = (conn.request(name, key=key) for name, key in ((b"1", 7), (b"2", 7), (b"3", 8)))
    asking.world.settle()
    assert asking.link.sent == b"1\n3\n"
    asking.feed(b"a\n")
    assert (first.value, asking.link.sent) == (b"a", b"1\n3\n2\n")
    asking.feed(b"b\nc\n")
    assert {second.value, other.value} == {b"b", b"c"}


def test_too_many_requests_are_refused() -> None:
    asking = Asking(requests=1)
    first, second = (asking.channel.conn.request(b"?") for _ in range(2))
    assert isinstance(second.error, UnavailableError)
    assert str(second.error) == "1 requests are waiting already, which is the limit"
    assert not first.done


def test_all_fail_when_the_device_has_gone_and_nothing_more_is_asked() -> None:
    asking = Asking()
    outcomes = [asking.channel.conn.request(b"?", key=1) for _ in range(3)]
    asking.world.settle()
    asking.channel.terminated()
    asking.world.settle()
    assert all(isinstance(outcome.error, ClosedError) for outcome in outcomes)
    assert asking.link.sent == b"?\n"


def test_a_handler_goes_on_with_the_answer() -> None:
    asking = Asking()
    asking.feed(b"ask\nother\n!\n")
    assert (asking.seen, asking.link.sent) == ([b"other", b"!"], b"?\nthanks\n")


def test_a_handler_gets_the_error_in_a_turn_of_its_own() -> None:
    asking = Asking()
    asking.feed(b"ask\n")
    asking.world.runtime.advance(6)
    assert asking.seen == [RequestTimeout]
    assert asking.app.stats["commands_failed"] == 0, "it was awaited"


def task_of(asking: Asking) -> Any:
    """Return the task of the handler that waits."""
    (request,) = asking.channel.requests.waiting  # type: ignore[union-attr]
    return request.call.task  # type: ignore[union-attr]


def test_a_wait_that_is_cancelled_forgets_the_request_and_goes_on_in_a_free_turn() -> None:
    asking = Asking()
    asking.feed(b"ask\n")
    asking.channel.unwritable()  # no turn is free
    task_of(asking).cancel()
    asking.world.settle()
    assert asking.seen == []
    asking.channel.drained()
    asking.world.settle()
    assert asking.seen == [Cancelled]
    asking.feed(b"!\n")
    assert asking.seen == [Cancelled, b"!"], "which is an ordinary frame now"


@pytest.mark.parametrize("served", [False, True], ids=["it waits for its turn", "its turn has come"])
def test_a_wait_that_is_cancelled_behind_its_answer_goes_on_in_its_turn(*, served: bool) -> None:
    asking = Asking()
    asking.feed(b"ask\n")
    task = task_of(asking)
    if not served:
        asking.at_answer = asking.channel.unwritable  # so that no turn is free
    asking.channel.received(b"!\n")
    task.cancel()
    asking.world.settle()
    if not served:
        assert asking.seen == []
        asking.channel.drained()
        asking.world.settle()
    assert len(asking.seen) == 1
    assert asking.channel.busy is False


def test_a_handler_that_is_dropped_forgets_its_request() -> None:
    asking = Asking()
    asking.feed(b"ask\n")
    task = task_of(asking)
    with pytest.raises(GeneratorExit):
        task._steps.throw(GeneratorExit)
    assert asking.seen == [GeneratorExit]
    assert asking.channel.requests is not None
    assert asking.channel.requests.waiting == []


def test_no_time_of_a_handler_runs_while_it_waits_for_its_answer() -> None:
    asking = Asking(handler_timeout=3.0)
    asking.feed(b"ask\n")
    asking.world.runtime.advance(4)
    assert asking.seen == []
    asking.feed(b"!\n")
    assert asking.seen == [b"!"]


def test_a_request_of_another_connections_handler_gives_no_turn_up() -> None:
    asking = Asking()
    other, link = asking.world.connect()
    app_seen: list[object] = []

    async def wait() -> None:
        app_seen.append(await other.conn.request(b"?"))

    asking.channel.conn.spawn(wait())
    asking.world.settle()
    assert link.sent == b"?\n"
    other.received(b"answer\n")
    asking.world.settle()
    assert app_seen == [b"answer"]
