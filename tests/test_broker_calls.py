"""Calls of EMQX 4.2's functions: what is on the wire, and deadlines that run when the call does."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from exproto_app.errors import CommandError, UnavailableError
from exproto_app.hosts.emqx42.calls import AT_ONCE, DEADLINE, LOOK, PORT, Calls
from exproto_app.hosts.emqx42.terms import Atom, Opaque, decode
from exproto_app.testing.virtual_time import VirtualLoop

OWN = Opaque(b"X" + b"w\x01a" + bytes(12))
PID = b"X" + b"w\x01a" + bytes(11) + b"\x01"


class PortProcess:
    """The process that owns the port; it looks at its mailbox when it is told to, a message at a time."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.calls: Calls
        self.mailbox: deque[Any] = deque()
        self.running: list[Any] = []
        self.outcomes: list[tuple[str, Any]] = []

    def write(self, frame: bytes) -> None:
        assert struct.unpack(">I", frame[:4])[0] == len(frame) - 4
        self.mailbox.append(decode(frame[4:]))

    def look(self) -> None:
        """Handle what is in the mailbox; a call in the context `L` is answered, others run."""
        while self.mailbox:
            match self.mailbox.popleft():
                case ("C", number, _, _, _, "L"):
                    self.calls.answered(number, OWN, None)
                case call:
                    self.running.append(call)

    def answer(self) -> None:
        """Answer everything that runs."""
        running, self.running = self.running, []
        for call in running:
            match call:
                case ("C", number, _, "map", [_, items], _):
                    self.calls.answered(number, [[item] for item in items], None)
                case ("C", number, *_):
                    self.calls.answered(number, Atom("ok"), None)
                case ("M", _, ("system", (_, number), _)):
                    self.calls.answered(number, Atom("ok"), None)

    def call(self, name: str) -> None:
        self.calls.call("module", "function", [name.encode()], self.noted(name))

    def noted(self, name: str) -> Any:
        def done(answer: Any, error: CommandError | None) -> None:
            self.outcomes.append((name, type(error) if error else answer))

        return done


@pytest.fixture
def port() -> Iterator[PortProcess]:
    loop = VirtualLoop()
    process = PortProcess(loop)

    async def begin() -> None:
        process.calls = Calls(process.write)
        process.calls.own = OWN

    loop.complete(begin())
    yield process
    loop.close()


def test_a_call_that_waits_in_the_mailbox_for_long_is_no_failure(port: PortProcess) -> None:
    port.call("late")
    port.calls.reach(PID, port.noted("reached"))
    port.loop.advance(4 * DEADLINE)
    port.look()
    port.loop.advance(DEADLINE / 2)
    port.answer()
    port.loop.advance(4 * DEADLINE)
    assert port.outcomes == [("late", "ok"), ("reached", "ok")]


def test_a_call_that_runs_for_too_long_fails(port: PortProcess) -> None:
    port.call("hangs")
    port.calls.reach(PID, port.noted("dead"))
    for _ in range(int(DEADLINE / LOOK) + 4):
        port.loop.advance(LOOK)
        port.look()
    assert port.outcomes == [("hangs", UnavailableError), ("dead", UnavailableError)]
    port.answer()  # too late
    assert len(port.outcomes) == 2


def test_an_answer_that_waits_in_the_mailbox_counts(port: PortProcess) -> None:
    port.call("answered")
    port.loop.advance(LOOK)
    port.look()
    port.loop.advance(LOOK)
    port.loop.advance(3 * DEADLINE)  # nobody looks at what has come meanwhile
    port.answer()
    port.look()
    assert port.outcomes == [("answered", "ok")]


def test_a_port_that_nobody_looks_at_fails_all(port: PortProcess) -> None:
    for number in range(3):
        port.call(f"call {number}")
    port.calls.reach(PID, port.noted("reached"))
    port.loop.advance(PORT + 2 * LOOK)
    assert {what for _, what in port.outcomes} == {UnavailableError}
    assert len(port.outcomes) == 4
    port.mailbox.clear()
    port.call("later")
    port.look()
    port.answer()
    assert port.outcomes[-1] == ("later", "ok")


def test_calls_beyond_the_limit_wait_and_those_that_hang_give_way(port: PortProcess) -> None:
    for number in range(2 * AT_ONCE):
        port.call(str(number))
    assert len(port.mailbox) == AT_ONCE
    for _ in range(6):
        port.loop.advance(LOOK)
        port.look()
    assert len(port.running) == 2 * AT_ONCE
    port.answer()
    assert [answer for _, answer in port.outcomes] == ["ok"] * 2 * AT_ONCE


def test_calls_of_one_function_at_the_same_time_are_told_in_one(port: PortProcess) -> None:
    for number in range(10):
        port.calls.each("module", "function", number, port.noted(str(number)))
    port.loop.advance(0.01)
    port.look()
    assert len(port.running) == 1
    port.answer()
    assert port.outcomes == [(str(number), [number]) for number in range(10)]


def test_joined_calls_fail_together(port: PortProcess) -> None:
    for number in range(2):
        port.calls.each("module", "function", number, port.noted(str(number)))
    port.loop.advance(0.01)
    port.look()
    (call,) = port.running
    port.calls.answered(call[1], None, (Atom("erlang"), Atom("error"), Atom("undef"), []))
    assert [what for _, what in port.outcomes] == [CommandError, CommandError]


def test_a_process_that_has_gone_is_given_up(port: PortProcess) -> None:
    number = port.calls.reach(PID, port.noted("gone"))
    assert number is not None
    port.calls.give_up(number, CommandError("it has ended"))
    port.calls.give_up(number, CommandError("it has ended"))
    assert port.outcomes == [("gone", CommandError)]


def test_nothing_is_asked_of_a_port_that_is_closed(port: PortProcess) -> None:
    port.call("waits")
    port.calls.lose()
    port.call("comes")
    port.calls.reach(PID, port.noted("reach"))
    port.calls.each("module", "function", 1, port.noted("each"))
    port.loop.complete(port.calls.finish())
    assert port.outcomes == [(name, UnavailableError) for name in ("waits", "comes", "reach", "each")]
