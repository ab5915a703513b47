"""Who is judged by `on_login`, and every way in which that ends."""

from __future__ import annotations

from typing import Any

import pytest

from exproto_app import App, ClientInfo, Connection
from exproto_app.commands import Register
from exproto_app.core import Channel, State
from exproto_app.core.login_queue import REMEMBERED, WINDOW, Judging, LoginQueue
from exproto_app.errors import CommandError, DeniedError, InvalidNameError, UnavailableError
from exproto_app.framing import Line
from exproto_app.models import Limits

from .test_login_queue import login
from .world import FakeWaiter, World


class Gate:
    """An app whose devices log in by a line, and whose judge is what the test says."""

    def __init__(self, judge: Any, *, blocking: bool = False) -> None:
        self.errors: list[Exception] = []
        self.app: App[Any, Any] = App(framing=Line(), limits=Limits(login_timeout=3))
        if blocking:
            self.app.on_login(blocking=True)(judge)
        else:
            self.app.on_login(judge)

        @self.app.on_received
        async def ask(conn: Connection[Any, Any], frame: bytes) -> None:
            try:
                await conn.register(frame.decode())
            except CommandError as error:
                self.errors.append(error)

        self.world = World(self.app)

    def ask(self) -> Channel:
        channel, _ = self.world.connect()
        channel.received(b"a\n")
        self.world.settle()
        return channel

    def registered(self) -> list[ClientInfo]:
        return [command.client for command in self.world.hub.asked if isinstance(command, Register)]


@pytest.mark.parametrize(
    ("gives", "error"),
    [
        (False, DeniedError),
        ("too late", DeniedError),
        (ClientInfo("a/#"), InvalidNameError),
        (None, UnavailableError),
        (1, UnavailableError),
    ],
)
def test_what_is_no_yes_asks_the_broker_nothing(gives: Any, error: type[Exception]) -> None:
    gate = Gate(lambda _: gives)
    gate.ask()
    assert ([type(one) for one in gate.errors], gate.registered()) == ([error], [])


def test_facts_of_the_judge_are_what_the_broker_gets() -> None:
    client = ClientInfo("a", username="alice", mountpoint="sites/1/")
    gate = Gate(lambda _: client)
    gate.ask()
    assert gate.registered() == [client]


def test_an_exit_in_it_ends_the_host_and_lets_nobody_in() -> None:
    def leave(_: object) -> bool:
        raise SystemExit(3)

    gate = Gate(leave)
    gate.ask()
    assert [str(one) for one in gate.world.runtime.exited] == ["3"]
    assert gate.registered() == []


def test_an_answer_behind_the_timeout_is_late() -> None:
    waits: list[FakeWaiter] = []

    async def judge(_: object) -> bool:
        waits.append(FakeWaiter())
        try:
            await waits[-1]
        except BaseException:  # noqa: BLE001 - as a library may swallow it
            await waits[-1]
        return True

    gate = Gate(judge)
    gate.ask()
    gate.world.runtime.advance(4)
    gate.world.settle()
    assert "gave no answer within 3 s" in str(gate.errors[0])
    waits[0].set_result(None)
    gate.world.settle()
    assert (len(gate.errors), gate.registered()) == (1, [])


def test_the_device_hangs_up_while_a_thread_judges_it() -> None:
    gate = Gate(lambda _: True, blocking=True)
    channel = gate.ask()
    channel.terminated()
    for thread in gate.world.runtime.threads:
        thread.run()
    gate.world.settle()
    assert (channel.state, gate.registered()) == (State.ENDED, [])


def test_a_host_that_stops_refuses_those_that_wait_and_those_that_come() -> None:
    gate = Gate(lambda _: True, blocking=True)
    judging = gate.world.engine.judging(blocking=True)
    judging.stop()
    gate.ask()
    assert ([type(one) for one in gate.errors], gate.registered()) == ([UnavailableError], [])


class Call:
    """A login that is judged when its turn comes."""

    now = 0.0

    def __init__(self, name: str, *, gone: bool = False) -> None:
        waiter: Any = login("a", name, gone=gone)
        waiter.work = self
        self.waiter = waiter
        self.begun = False
        self.away = ""

    def begin(self) -> None:
        self.begun = True

    def turned_away(self, why: str, /) -> None:
        self.away = why


def test_places_go_to_those_that_still_wait() -> None:
    judging = Judging(1)
    first, gone, last = Call("1"), Call("2", gone=True), Call("3")
    for call in (first, gone, last):
        judging.enter(call)
    assert (first.begun, gone.begun, last.begun) == (True, False, False)
    judging.left(first, refused=True)
    assert (gone.begun, last.begun) == (False, True)
    assert gone.away
    forgotten = Call("4")
    judging.enter(forgotten)
    judging.forget(forgotten)
    judging.forget(forgotten)
    judging.left(last, refused=False)
    assert not forgotten.begun


def test_wrong_passwords_of_many_are_forgotten_the_oldest_first() -> None:
    waiting: LoginQueue[None] = LoginQueue()
    for number in range(REMEMBERED + 5):
        waiting.failed(login(str(number), str(number)), 0.0)
    waiting.failed(login("0", "0"), WINDOW / 2)
    assert not waiting.suspects(login("0", "0"))
