"""Sends that wait for an outcome: every way from waiting to sent or dropped."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from exproto_app import App, Connection, Message
from exproto_app.commands import DONE, Outcome, Register, Unconfirmed, refused
from exproto_app.core import State
from exproto_app.core.states import SENDS_FAILED, SENDS_FULL
from exproto_app.errors import ClosedError, DeniedError, UnavailableError
from exproto_app.framing import Line
from exproto_app.models import Limits

from .world import FakeLink, FakeWaiter, World

NO = DeniedError("not authorized")


class Stored:
    """An app that answers each frame once it is published, and its world, whose broker answers later."""

    def __init__(self, *, strict: bool = False, keep: bool = True, **limits: int) -> None:
        self.errors: list[Exception] = []
        self.turns: list[bytes] = []
        app: App[Any, Any] = App(framing=Line(), strict_order=strict, limits=Limits(**limits))

        @app.on_received
        def record(conn: Connection[Any, Any], frame: bytes) -> None:
            self.turns.append(frame)
            conn.send(frame, after=conn.publish("up", frame, 1))

        @app.on_received(b"beat")
        def beat(conn: Connection[Any, Any], frame: bytes) -> bytes:
            self.turns.append(frame)
            return frame

        @app.on_error
        def wrong(conn: Connection[Any, Any], error: Exception) -> None:
            self.errors.append(error)
            if keep:
                conn.keep()

        self.world = World(app)
        self.world.hub.at_once = False
        self.app = app
        self.channel, self.link = self.world.connect()
        self.conn = self.channel.conn

    @property
    def answers(self) -> list[Outcome[Any]]:
        """What the broker has been asked and hasn't answered, the oldest first."""
        return self.world.hub.unanswered

    def outcome(self) -> Outcome[None]:
        return Outcome(FakeWaiter)


def await_in_task(stored: Stored, outcome: Outcome[Any]) -> list[object]:
    seen: list[object] = []

    async def wait() -> None:
        try:
            seen.append(await outcome)
        except Exception as error:  # noqa: BLE001 - compared by the test
            seen.append(error)

    stored.world.runtime.run_task(wait(), lambda *_: None)
    stored.world.settle()
    return seen


# --- sent


def test_the_turn_ends_and_the_answer_follows_the_outcome() -> None:
    stored = Stored()
    stored.channel.received(b"1\n2\n")
    assert (stored.turns, stored.link.sent) == ([b"1", b"2"], b"")
    stored.answers[0].settle(None)
    assert stored.link.sent == b"1\n"
    stored.answers[1].settle(None)
    assert stored.link.sent == b"1\n2\n"


def test_no_turn_of_the_loop_lies_between_an_outcome_and_the_bytes() -> None:
    stored = Stored()
    stored.channel.received(b"1\n")
    stored.world.settle()
    stored.answers[0].settle(None)
    assert (stored.link.sent, list(stored.world.runtime.soon)) == (b"1\n", [])


def test_they_keep_their_order_whatever_comes_first() -> None:
    stored = Stored()
    stored.channel.received(b"1\n2\n3\n")
    stored.answers[2].settle(None)
    stored.answers[1].settle(None)
    assert stored.link.sent == b""
    stored.answers[0].settle(None)
    assert stored.link.sent == b"1\n2\n3\n"


def test_what_is_released_together_leaves_in_one_write() -> None:
    """Sends of the same device; those of others are not held up by each other."""
    stored = Stored()
    stored.channel.received(b"1\n2\n3\n")
    writes: list[bytes] = []
    send = stored.link.send

    def written(chunks: list[bytes]) -> Outcome[None] | None:
        writes.append(b"".join(chunks))
        return send(chunks)

    stored.link.send = written  # type: ignore[method-assign] # to see the writes apart

    def release(answers: list[Outcome[Any]]) -> None:
        for answer in answers:
            answer.settle(None)
        assert writes == []

    stored.world.engine.release_together(release, list(stored.answers))
    assert writes == [b"1\n2\n3\n"]


def test_what_was_released_leaves_although_something_failed_behind_it() -> None:
    stored = Stored()
    stored.channel.received(b"1\n")

    def release(answer: Outcome[Any]) -> None:
        answer.settle(None)
        raise ValueError("no good")

    with pytest.raises(ValueError, match="no good"):
        stored.world.engine.release_together(release, stored.answers[0])
    assert stored.link.sent == b"1\n"


def test_others_pass() -> None:
    stored = Stored()
    stored.channel.received(b"1\nbeat\n")
    assert stored.link.sent == b"beat\n"
    stored.conn.send(b"two")
    stored.world.settle()
    assert stored.link.sent == b"beat\ntwo\n"
    stored.answers[0].settle(None)
    assert stored.link.sent == b"beat\ntwo\n1\n"


def test_what_has_succeeded_already_is_sent_at_once() -> None:
    stored = Stored()
    assert stored.conn.send(b"1", after=DONE) is DONE
    assert stored.conn.send(b"2", after=[DONE, DONE]) is DONE
    assert stored.channel.outbound.later is None
    stored.world.settle()
    assert stored.link.sent == b"1\n2\n"


def test_nothing_to_wait_for_is_a_place_in_the_order() -> None:
    stored = Stored()
    first = stored.outcome()
    stored.conn.send(b"1", after=first)
    stored.conn.send(b"2", after=())
    stored.conn.send(b"3", after=iter([DONE]))
    stored.world.settle()
    assert stored.link.sent == b""
    first.settle(None)
    assert stored.link.sent == b"1\n2\n3\n"


def test_several_outcomes_are_all_waited_for() -> None:
    stored = Stored()
    outcomes = [stored.outcome() for _ in range(3)]
    stored.conn.send(b"all", after=outcomes)
    for outcome in reversed(outcomes):
        assert stored.link.sent == b""
        outcome.settle(None)
    assert stored.link.sent == b"all\n"


def test_raw_bytes_are_not_framed() -> None:
    stored = Stored()
    first = stored.outcome()
    stored.conn.send(b"\x01", raw=True, after=first)
    first.settle(None)
    assert stored.link.sent == b"\x01"


def test_where_a_host_hands_over_in_order_it_is_asked_whether_it_has_arrived() -> None:
    stored, asked = Stored(), Outcome[None](FakeWaiter)
    stored.conn.send(b"1", after=Unconfirmed(lambda: asked, None))
    stored.world.settle()
    assert stored.link.sent == b""
    asked.settle(None)
    assert stored.link.sent == b"1\n"


def test_awaited_it_returns_when_it_is_sent() -> None:
    stored, first = Stored(), Outcome[None](FakeWaiter)
    seen = await_in_task(stored, stored.conn.send(b"1", after=first))
    assert seen == []
    first.settle(None)
    stored.world.settle()
    assert (seen, stored.link.sent) == ([None], b"1\n")


def test_a_device_that_reads_slowly_gets_it_when_it_reads() -> None:
    stored = Stored()
    stored.channel.received(b"1\n")
    stored.channel.unwritable()
    stored.answers[0].settle(None)
    assert stored.link.sent == b""
    stored.channel.drained()
    assert stored.link.sent == b"1\n"


def test_where_the_host_answers_sends_one_goes_after_the_other() -> None:
    stored = Stored()
    link = FakeLink()
    link.answers = True
    channel, _ = stored.world.connect(link)
    channel.received(b"1\n2\n")
    sent = channel.conn.send(b"3", after=())
    for answer in tuple(stored.answers):
        answer.settle(None)
    stored.world.settle()
    assert (link.sent, sent.done) == (b"1\n", False)
    link.outcomes[0].settle(None)
    stored.world.settle()
    link.outcomes[1].settle(None)
    assert (link.sent, sent.done) == (b"1\n2\n3\n", True)


def test_threads_may_have_a_send_wait() -> None:
    stored, first = Stored(), Outcome[None](FakeWaiter)
    stored.world.runtime.other_thread = True
    stored.conn.send(b"1", after=first)
    stored.world.settle()
    first.settle(None)
    assert stored.link.sent == b"1\n"


# --- a strict order


def test_where_the_order_is_strict_none_passes() -> None:
    stored = Stored(strict=True)
    stored.channel.received(b"beat\n1\nbeat\n2\nbeat\n")
    assert stored.link.sent == b"beat\n"
    stored.conn.send(b"three")
    stored.world.settle()
    stored.answers[1].settle(None)
    assert stored.link.sent == b"beat\n"
    stored.answers[0].settle(None)
    assert stored.link.sent == b"beat\n1\nbeat\n2\nbeat\nthree\n"
    stored.channel.received(b"beat\n")
    assert stored.link.sent.endswith(b"three\nbeat\n"), "nothing waits any more"


def test_a_strict_order_holds_while_the_device_reads_slowly() -> None:
    stored = Stored(strict=True)
    first = stored.outcome()
    stored.channel.unwritable()
    stored.conn.send(b"1")
    stored.conn.send(b"2", after=first)
    stored.conn.send(b"3")
    stored.world.settle()
    first.settle(None)
    stored.channel.drained()
    assert stored.link.sent == b"1\n2\n3\n"


def test_a_strict_order_holds_for_those_that_are_released_one_by_one() -> None:
    stored = Stored(strict=True)
    first, second = stored.outcome(), stored.outcome()
    stored.conn.send(b"1", after=first)
    stored.conn.send(b"2", after=second)
    stored.conn.send(b"3")
    stored.channel.unwritable()
    stored.world.settle()
    first.settle(None)
    stored.conn.send(b"4")
    second.settle(None)
    stored.channel.drained()
    stored.world.settle()
    assert stored.link.sent == b"1\n2\n3\n4\n"


def test_a_request_waits_for_its_place_too() -> None:
    stored = Stored(strict=True)
    first = stored.outcome()
    stored.conn.send(b"1", after=first)
    stored.conn.request(b"who?")
    stored.world.settle()
    assert stored.link.sent == b""
    first.settle(None)
    assert stored.link.sent == b"1\nwho?\n"


# --- dropped


def test_a_failure_drops_what_waits_behind_it_and_is_the_handlers(caplog: pytest.LogCaptureFixture) -> None:
    stored = Stored()
    stored.channel.received(b"1\n2\n3\n")
    one, two, three = tuple(stored.answers)
    two.fail(NO)
    stored.world.settle()
    assert stored.errors == [NO]
    three.settle(None)
    assert stored.link.sent == b""
    one.settle(None)
    assert stored.link.sent == b"1\n", "what stands before it is sent all the same"
    assert stored.app.stats["sends_dropped"] == 2
    assert stored.app.stats["bytes_dropped.unsent"] == 4
    assert stored.app.stats["commands_failed"] == 0, "somebody knows of it"
    assert "2 sends dropped: the outcome they waited for failed: not authorized" in caplog.text
    stored.channel.received(b"4\n")
    stored.answers[-1].settle(None)
    assert stored.link.sent == b"1\n4\n", "it was kept"


def test_without_on_error_the_connection_is_closed() -> None:
    stored = Stored(keep=False)
    stored.channel.received(b"1\n2\n")
    one, two = tuple(stored.answers)
    one.fail(NO)
    stored.world.settle()
    two.settle(None)
    stored.world.settle()
    assert (stored.channel.reason, stored.link.told, stored.link.sent) == ("error", ["close"], b"")
    assert stored.channel.detail == "not authorized"


def test_nothing_more_is_acknowledged_until_the_failure_is_judged() -> None:
    stored = Stored()
    outcome = stored.outcome()
    stored.conn.send(b"1", after=outcome)
    outcome.fail(NO)
    assert stored.channel.waits & SENDS_FAILED
    late = stored.conn.send(b"2", after=stored.conn.publish("up", b"", 1))
    assert isinstance(late.error, DeniedError)
    stored.world.settle()
    assert (stored.errors, stored.app.stats["sends_dropped"]) == ([NO], 2)
    assert not stored.channel.waits & SENDS_FAILED


def test_an_outcome_that_has_failed_already_fails_it_behind_the_turn() -> None:
    stored = Stored()
    sent = stored.conn.send(b"1", after=[DONE, refused(NO), refused(NO)])
    assert (sent.error, stored.errors) == (NO, [])
    stored.world.settle()
    assert stored.errors == [NO]


def test_a_failure_that_is_awaited_is_the_awaiters_alone() -> None:
    stored, first = Stored(), Outcome[None](FakeWaiter)
    seen = await_in_task(stored, stored.conn.send(b"1", after=first))
    first.fail(NO)
    behind = stored.conn.send(b"2", after=())
    stored.world.settle()
    assert (seen, stored.errors, behind.error) == ([NO], [], None)
    assert stored.link.sent == b"2\n"


def test_those_behind_say_what_the_matter_is() -> None:
    stored = Stored()
    first = stored.outcome()
    stored.conn.send(b"1", after=first)
    behind = stored.conn.send(b"2", after=())
    first.fail(NO)
    assert isinstance(behind.error, UnavailableError)
    assert str(behind.error) == "not sent: an earlier send waited for an outcome that failed: not authorized"


def test_a_refused_login_behind_a_dropped_send_still_ends_the_connection() -> None:
    stored = Stored()
    first = stored.outcome()
    stored.conn.send(b"1", after=first)
    stored.conn.send(b"2", after=stored.conn.register("d1"))
    first.fail(NO)
    stored.world.settle()
    assert stored.errors == []
    stored.answers[0].fail(NO)
    stored.world.settle()
    assert (stored.channel.reason, stored.channel.detail) == ("error", "register failed: not authorized")


def test_what_was_asked_behind_a_refused_login_is_refused_until_on_error_knows() -> None:
    stored = Stored()
    stored.conn.send(b"welcome", after=stored.conn.register("d1"))
    stored.conn.publish("forged", b"")
    stored.answers[0].fail(NO)
    stored.world.settle()
    stored.conn.publish("allowed", b"")
    assert (stored.errors, stored.world.hub.topics()) == ([NO], ["allowed"])


# --- the end


def test_a_hang_up_lets_go_of_them() -> None:
    stored = Stored()
    stored.channel.received(b"1\n22\n")
    sent = stored.conn.send(b"3", after=())
    stored.channel.terminated()
    stored.world.settle()
    assert isinstance(sent.error, ClosedError)
    assert stored.app.stats["bytes_dropped.unsent"] == 7
    for answer in stored.answers:
        answer.settle(None)
    stored.world.runtime.advance(10)
    assert (stored.channel.state, stored.link.sent, stored.errors) == (State.ENDED, b"", [])


def test_a_hang_up_right_behind_a_failure_leaves_nothing_to_judge() -> None:
    stored = Stored()
    stored.channel.received(b"1\n")
    stored.answers[0].fail(NO)
    stored.channel.terminated()
    stored.world.runtime.advance(10)
    assert (stored.channel.state, stored.errors) == (State.ENDED, [])


def test_terminate_waits_for_them() -> None:
    stored = Stored()
    outcome = stored.outcome()
    stored.conn.send(b"1", after=outcome)
    stored.conn.terminate()
    stored.world.settle()
    assert stored.link.told == []
    outcome.settle(None)
    stored.world.settle()
    assert (stored.link.sent, stored.link.told) == (b"1\n", ["close"])


def test_the_end_waits_no_longer_than_its_limit() -> None:
    stored = Stored()
    outcome = stored.outcome()
    stored.conn.send(b"1", after=outcome)
    stored.conn.terminate()
    stored.world.runtime.advance(5)
    assert (stored.link.sent, stored.link.told) == (b"", ["close"])
    outcome.settle(None)
    stored.world.settle()
    assert stored.link.sent == b"", "the link is closed"
    stored.channel.terminated()
    assert stored.app.stats["bytes_dropped.unsent"] == 2


def test_after_the_end_they_are_refused_as_every_send_is() -> None:
    stored = Stored()
    stored.channel.terminated()
    stored.world.settle()
    assert isinstance(stored.conn.send(b"1", after=DONE).error, ClosedError)


# --- bounds


def test_above_the_limit_turns_hold_and_reading_pauses() -> None:
    stored = Stored(waiting_sends=2, inbox=4)
    stored.channel.received(b"1\n2\n3\n4\n5\n")
    assert (stored.turns, stored.channel.waits & SENDS_FULL) == ([b"1", b"2", b"3"], SENDS_FULL)
    stored.channel.received(b"6\n7\n8\n")
    assert stored.link.paused
    stored.answers[0].settle(None)
    stored.world.settle()
    assert len(stored.turns) == 3, "half of it has to be free"
    stored.answers[1].settle(None)
    stored.world.settle()
    assert len(stored.turns) == 5
    for _ in range(10):
        for answer in stored.answers:
            answer.settle(None)
        stored.world.settle()
    assert (len(stored.turns), stored.link.paused) == (8, False)


def test_bytes_are_bounded_too() -> None:
    stored = Stored(outbox=3)
    stored.channel.received(b"1\n22\n3\n")
    assert stored.turns == [b"1", b"22"]
    stored.channel.terminated()
    stored.world.settle()
    assert not stored.channel.waits & SENDS_FULL


def test_what_is_too_much_even_for_one_turn_fails() -> None:
    stored = Stored(outbox_max=10)
    first = stored.outcome()
    stored.conn.send(b"1234567", after=first)
    refusal = stored.conn.send(b"89", after=first)
    assert str(refusal.error) == "2 sends wait, 11 bytes, limits are 256000 and 10"
    stored.world.settle()
    assert stored.errors == [refusal.error]
    first.settle(None)
    assert stored.link.sent == b"1234567\n"


# --- what may be waited for


@pytest.mark.parametrize("wrong", [b"text", 7, [None], [DONE, "x"]])
def test_whatever_is_no_outcome_is_refused_at_once(wrong: Any) -> None:
    stored = Stored()
    with pytest.raises(TypeError, match="after= takes what a verb returned"):
        stored.conn.send(b"1", after=wrong)


# --- several messages at once


def test_many_messages_have_one_outcome() -> None:
    stored = Stored()
    outcome = stored.conn.publish_many([Message("a", b"1"), ("b", b"2")], qos=1)
    stored.conn.send(b"2 stored", after=outcome)
    assert [(one.topic, one.qos) for one in stored.world.hub.asked] == [("a", 0), ("b", 1)]  # type: ignore[union-attr] # they are publishes
    stored.answers[1].settle(None)
    assert not outcome.done
    stored.answers[0].settle(None)
    assert (outcome.value, stored.link.sent) == (2, b"2 stored\n")


def test_many_that_are_done_at_once() -> None:
    stored = Stored()
    stored.world.hub.at_once = True
    assert stored.conn.publish_many([("a", b"1")] * 3).value == 3
    assert stored.conn.publish_many([]).value == 0
    assert stored.app.publish_many([("a", b"1"), ("b", b"2")]).value == 2
    assert stored.world.hub.topics() == ["a", "a", "a", "a", "b"]


def test_many_fail_with_the_first_failure(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stored = Stored()
    outcome = stored.conn.publish_many([("a", b""), ("b", b""), ("c", b"")], qos=1)
    one, two, three = tuple(stored.answers)
    two.fail(NO)
    three.fail(UnavailableError("away"))
    assert not outcome.done
    one.settle(None)
    assert isinstance(outcome.error, DeniedError)
    assert str(outcome.error) == "2 of 3 failed, the first: not authorized"
    stored.world.settle()
    assert stored.app.stats["commands_failed"] == 1
    assert "publish to 'b' refused for clientid '', username '': not authorized" in caplog.text
    assert "publish_many failed: 2 of 3 failed, the first: not authorized" in caplog.text


def test_where_a_host_hands_many_over_in_order_the_last_one_is_asked_for() -> None:
    stored, asked = Stored(), list[Outcome[None]]()

    def ask() -> Outcome[None]:
        asked.append(Outcome(FakeWaiter))
        return asked[-1]

    stored.world.hub.execute = lambda channel, command: Unconfirmed(ask, None)  # type: ignore[method-assign] # as EMQX 4.2's does
    outcome = stored.conn.publish_many([("a", b""), ("b", b"")])
    seen = await_in_task(stored, outcome)
    assert len(asked) == 1
    asked[0].settle(None)
    stored.world.settle()
    assert seen == [2]


@pytest.mark.parametrize("thread", [False, True])
@pytest.mark.parametrize("kind", ["await", "await late", "send", "many"])
def test_what_waited_behind_a_login_has_succeeded_when_the_host_says_so(kind: str, thread: bool) -> None:
    """Not when it was handed over, whichever way somebody waits for it."""
    stored, asked = Stored(), list[Outcome[None]]()
    conn, world = stored.conn, stored.world
    login = stored.outcome()

    def ask() -> Outcome[None]:
        asked.append(stored.outcome())
        return asked[-1]

    world.hub.execute = lambda channel, command: (  # type: ignore[method-assign] # as EMQX 4.2's does
        login if isinstance(command, Register) else Unconfirmed(ask, None)
    )
    conn.register("a")
    world.runtime.other_thread = thread
    outcome: Outcome[Any] = conn.publish_many([("up", b"")]) if kind == "many" else conn.publish("up", b"", 1)
    world.settle()
    seen: list[object] = []
    if kind == "send":
        conn.send(b"stored", after=outcome)
    elif kind != "await late":
        seen = await_in_task(stored, outcome)
    login.settle(None)
    world.settle()
    if kind == "await late":
        seen = await_in_task(stored, outcome)
    assert len(asked) == 1
    assert not seen
    assert stored.link.sent == b""
    asked[0].settle(None)
    world.settle()
    assert seen or stored.link.sent == b"stored\n"


@pytest.mark.parametrize("kind", ["await", "send", "many"])
def test_what_waited_behind_a_login_that_is_refused_fails(kind: str) -> None:
    stored = Stored()
    stored.conn.register("a")
    outcome: Outcome[Any] = (
        stored.conn.publish_many([("up", b"")]) if kind == "many" else stored.conn.publish("up", b"", 1)
    )
    if kind == "send":
        outcome = stored.conn.send(b"stored", after=outcome)
    seen = await_in_task(stored, outcome)
    stored.answers[0].fail(NO)
    stored.world.settle()
    assert [type(error) for error in seen] == [DeniedError]
    assert stored.link.sent == b""


def test_threads_may_publish_many() -> None:
    stored = Stored()
    stored.world.hub.at_once = True
    stored.world.runtime.other_thread = True
    outcome = stored.conn.publish_many([("a", b"1"), ("b", b"2")])
    stored.world.settle()
    assert outcome.value == 2
    stored.world.runtime.other_thread = True
    outcome = stored.app.publish_many([("a", b"1")])
    stored.world.settle()
    assert outcome.value == 1


@pytest.mark.parametrize("wrong", [["a"], [("a",)], [("a", b"", 1)], [None], [("a", "text")]])
def test_wrong_messages_are_refused_before_any_is_published(wrong: Any) -> None:
    stored = Stored()
    with pytest.raises(TypeError):
        stored.conn.publish_many([("fine", b""), *wrong])
    with pytest.raises(ValueError, match="wildcard"):
        stored.conn.publish_many([("fine", b""), ("a/#", b"")])
    assert stored.world.hub.asked == []


# --- released by the host in one go, as a store does


def test_what_one_look_at_the_disk_released_leaves_in_one_write_for_each() -> None:
    stored = Stored()
    other, other_link = stored.world.connect()
    stored.channel.received(b"1\n2\n")
    other.received(b"3\n")

    def release(answers: list[Outcome[Any]]) -> None:
        for answer in answers:
            stored.world.engine.release_together(lambda one: one.settle(None), answer)
        assert (stored.link.sent, other_link.sent) == (b"", b"")

    stored.world.engine.release_together(release, list(stored.answers))
    assert (stored.link.sent, other_link.sent) == (b"1\n2\n", b"3\n")


def test_what_it_released_for_a_device_that_hung_up_meanwhile_is_gone() -> None:
    stored = Stored()
    stored.channel.received(b"1\n")

    def release(answer: Outcome[Any]) -> None:
        answer.settle(None)
        stored.channel.terminated()

    stored.world.engine.release_together(release, stored.answers[0])
    stored.world.settle()
    assert (stored.link.sent, stored.channel.state) == (b"", State.ENDED)


def test_what_it_released_for_a_device_that_reads_slowly_leaves_when_it_reads() -> None:
    stored = Stored()
    stored.channel.received(b"1\n")
    stored.channel.unwritable()
    stored.world.engine.release_together(lambda one: one.settle(None), stored.answers[0])
    stored.world.settle()
    assert stored.link.sent == b""
    stored.channel.drained()
    assert stored.link.sent == b"1\n"


# --- of the children of a line


class Bus(Stored):
    """A line with two children that acknowledge by it."""

    def __init__(self) -> None:
        super().__init__()
        self.children = [self.conn.child(name) for name in ("a", "b")]
        for answer in self.answers:
            answer.settle(None)
        self.answers.clear()
        self.world.settle()


def test_a_failure_drops_what_the_same_child_has_behind_it_alone() -> None:
    bus = Bus()
    a, b = bus.children
    outcomes = [bus.outcome() for _ in range(4)]
    sends = [(a if at % 2 == 0 else b).send(b"%d" % at, after=outcome) for at, outcome in enumerate(outcomes)]
    outcomes[0].fail(NO)
    bus.world.settle()
    assert [one.done for one in sends] == [True, False, True, False]
    for outcome in (outcomes[1], outcomes[3]):
        outcome.settle(None)
    bus.world.settle()
    assert bus.link.sent == b"1\n3\n"
    assert [one.done for one in sends] == [True] * 4


def test_a_failure_of_a_child_that_has_ended_meanwhile_is_judged_by_nobody() -> None:
    bus = Bus()
    a, b = bus.children
    outcome = bus.outcome()
    a.send(b"1", after=outcome)
    bus.channel.unwritable()
    outcome.fail(NO)
    a.terminate()
    bus.world.runtime.advance(20)
    bus.channel.drained()
    bus.world.settle()
    assert bus.errors == []
    b.send(b"2")
    bus.world.settle()
    assert bus.link.sent == b"2\n"


def test_a_watcher_is_shown_what_was_not_sent() -> None:
    stored = Stored()
    shown: list[str] = []
    stored.channel.watch(lambda tap, when, event: shown.append(type(event).__name__), late=False)
    stored.channel.received(b"1\n")
    stored.answers[0].fail(NO)
    stored.world.settle()
    assert shown == ["Received", "Frame", "Published", "Refused", "Refused", "Failed"]
    assert stored.errors == [NO]


# --- where the host takes bytes at once, as a socket does


class Socket(FakeLink):
    """A link that is written to without a word about whether it has arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.write = self.writes.append

    def send(self, chunks: list[bytes]) -> None:
        self.writes.append(b"".join(chunks))


def test_one_that_is_released_alone_is_written_as_it_is() -> None:
    stored, link = Stored(), Socket()
    channel, _ = stored.world.connect(link)
    sent = channel.conn.send(b"0", after=())
    channel.received(b"1\n")
    stored.answers[0].settle(None)
    stored.world.settle()
    assert (link.writes, sent.done) == ([b"0\n", b"1\n"], True)
    assert channel.bytes_sent == 4


def test_several_that_are_released_are_one_write() -> None:
    stored, link = Stored(), Socket()
    channel, _ = stored.world.connect(link)
    channel.received(b"1\n2\n3\n")
    one, two, three = stored.answers
    two.settle(None)
    one.settle(None)
    three.settle(None)
    stored.world.settle()
    assert link.writes == [b"1\n2\n", b"3\n"]
