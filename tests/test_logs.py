"""The log: who a line is about, JSON, and what is held back."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exproto_app import App, Connection
from exproto_app.checksums import XOR
from exproto_app.core import Channel
from exproto_app.errors import DeniedError
from exproto_app.framing import Checked, Line
from exproto_app.models import Address
from exproto_app.ops import logs
from exproto_app.ops.logs import JsonFormatter, Repeats, TextFormatter, configure_from
from exproto_app.testing import TestClient

log = logging.getLogger("exproto_app")


@contextmanager
def written(formatter: logging.Formatter | None = None, level: int = logging.DEBUG) -> Iterator[list[str]]:
    """Give the lines that our logger writes, as they are written."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Lines()
    handler.setFormatter(formatter or logging.Formatter("%(message)s"))
    before = log.level
    log.setLevel(level)
    log.addHandler(handler)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def tracker() -> App:
    app = App()
    gt06 = app.protocol("gt06", framing=Line())

    @gt06.on_received(b"login ")
    def login(conn: Connection, frame: bytes) -> None:
        name, _, password = frame[6:].decode().partition(" ")
        conn.register(name, password=password)

    @gt06.on_received(b"break")
    def broken(conn: Connection, frame: bytes) -> None:
        raise RuntimeError("the meter is broken")

    @gt06.on_received(b"say ")
    def say(conn: Connection, frame: bytes) -> None:
        log.info("%s says", conn)
        log.info("something else", extra={"conn": conn})

    return app


def test_a_line_tells_the_connection_its_protocol_and_its_client() -> None:
    with written() as lines, TestClient(tracker(), raise_errors=False) as device:
        device.send(b"login 860\nbreak\n")
    assert lines[0].startswith("1/gt06 = connected from 127.0.0.1:")
    assert lines[1] == "1/gt06/860 = registered '860'"
    assert "1/gt06/860 ! tracker.<locals>.broken failed: RuntimeError('the meter is broken')" in lines[2]
    assert lines[3].startswith("1/gt06/860 = closed: error the meter is broken")


@pytest.mark.parametrize(
    ("clientid", "shown"),
    [("a b", "a\\x20b"), ("é", "é"), ("x" * 100, "x" * 64 + "…"), ("<b>", "<b>")],
)
def test_a_clientid_is_one_word_of_one_line(clientid: str, shown: str) -> None:
    app = App()

    @app.on_received
    def register(conn: Connection, frame: bytes) -> None:
        conn.register(frame.decode())

    with written() as lines, TestClient(app) as device:
        device.send(clientid.encode())
    assert lines[1].startswith(f"1/default/{shown} = registered ")
    assert "\n" not in lines[1]


def test_json_has_stable_keys_and_the_traceback_as_a_field() -> None:
    with written(JsonFormatter()) as lines, TestClient(tracker(), raise_errors=False) as device:
        device.send(b"login 860\nsay \nbreak\n")
    parsed = [json.loads(line) for line in lines]
    assert all("\n" not in line for line in lines)
    connected, registered, mine, extra, failed, closed = parsed
    assert set(connected) == {"time", "level", "logger", "message", "conn", "protocol", "peer"}
    assert len({line["peer"] for line in parsed}) == 1
    for line in (registered, mine, extra, closed):
        assert (line["conn"], line["protocol"], line["clientid"]) == ("1", "gt06", "860")
    assert failed["level"] == "error"
    assert failed["error"] == "RuntimeError"
    assert failed["traceback"].endswith("RuntimeError: the meter is broken")
    assert registered["time"].endswith("Z")


def test_a_line_that_tells_of_trouble_has_the_peers_address() -> None:
    with written(TextFormatter("%(message)s")) as lines, TestClient(tracker(), raise_errors=False) as device:
        device.send(b"login 860\nsay \nbreak\n")
        peer = device.connection.info.peername
    assert [line.splitlines()[0].endswith(f" (peer {peer})") for line in lines] == [False] * 4 + [True, False]
    with written(JsonFormatter()) as lines:
        log.warning("%s ! connection refused", Address("192.0.2.1", 7))
    assert json.loads(lines[0])["peer"] == "192.0.2.1:7"


def test_what_was_held_back_tells_the_peer_of_a_connection_that_has_ended() -> None:
    repeats = Repeats()
    with TestClient(tracker()) as device:
        channel = device.connection._verbs
        peer = device.connection.info.peername
        for _ in range(9):
            repeats.filter(record("%s ! failed", channel, at=100))
    with written(JsonFormatter()) as lines:
        repeats.finish(101)
    assert json.loads(lines[0])["peer"] == str(peer)


def test_a_password_is_in_no_line() -> None:
    def nobody(client: object, password: str | None) -> bool:
        raise DeniedError("no")

    with written(JsonFormatter()) as lines, TestClient(tracker(), login=nobody, raise_errors=False) as device:
        device.send(b"login 860 s3cret\n")
        device.another().send(b"login 861 s3cret\n")
    assert any("register failed" in line for line in lines)
    assert not any("s3cret" in line for line in lines)


def record(
    text: str, *arguments: object, at: float, level: int = logging.WARNING, error: Exception | None = None
) -> logging.LogRecord:
    trace = (type(error), error, error.__traceback__) if error else None
    made = logging.LogRecord("exproto_app", level, __file__, 1, text, arguments, trace)
    made.created = at
    return made


def channels(count: int) -> Iterator[Channel]:
    """Give channels of so many connections."""
    with TestClient(tracker()) as first:
        clients = [first, *(first.another() for _ in range(count - 1))]
        for client in clients:
            verbs = client.connection._verbs
            assert isinstance(verbs, Channel)
            yield verbs


def test_repetition_of_one_connection_is_counted() -> None:
    repeats = Repeats()
    one, other = channels(2)
    passed = [repeats.filter(record("%s ! %d lost", one, n, at=100)) for n in range(1_206)]
    assert passed == [True] * 3 + [False] * 1_203
    assert repeats.filter(record("%s ! %d lost", other, 1, at=100))
    assert repeats.filter(record("%s ! another thing", one, at=100))
    with written() as lines:
        assert repeats.sweep(105)
        assert lines == []
        assert not repeats.sweep(110)
    assert lines == ["1/gt06 ! 1205 lost … 1,203 more in 10 s"]
    assert repeats.filter(record("%s ! %d lost", one, 1, at=111))


def test_what_is_held_back_anyway_is_counted_without_a_record() -> None:
    repeats = Repeats()
    one, other = channels(2)
    for _ in range(3):
        assert not repeats.again("%s ! %d lost", one)
        assert repeats.filter(record("%s ! %d lost", one, 1, at=100))
    assert not repeats.again("%s ! %d lost", one)  # the one that is told in the end
    assert not repeats.filter(record("%s ! %d lost", one, 7, at=100))
    assert [repeats.again("%s ! %d lost", one) for _ in range(10)] == [True] * 10
    assert not repeats.again("%s ! %d lost", other)
    with written() as lines:
        repeats.finish(105)
    assert lines == ["1/gt06 ! 7 lost … 11 more in 5 s"]
    assert not repeats.again("%s ! %d lost", one)


def test_a_storm_of_connections_is_counted_by_its_kind() -> None:
    repeats = Repeats()
    storm = [record("%s ! refused", Address(f"10.0.{n >> 8}.{n & 255}", 1), at=100) for n in range(5_000)]
    assert sum(map(repeats.filter, storm)) == logs.ALL
    with written(JsonFormatter()) as lines:
        repeats.finish(102)
    (line,) = map(json.loads, lines)
    assert line["repeats"] == 5_000 - logs.ALL
    assert line["message"].endswith("! refused … 4,950 more in 2 s")


def test_tracebacks_from_one_place_are_counted_and_not_kept() -> None:
    repeats = Repeats()

    def fail(place: int) -> logging.LogRecord:
        try:
            _ = int("x") if place else 1 // place
        except (ValueError, ZeroDivisionError) as error:
            return record("app ! failed", at=100, error=error)
        raise AssertionError

    assert [repeats.filter(fail(0)) for _ in range(7)] == [True] * logs.TRACES + [False] * 2
    assert repeats.filter(fail(1))
    held = fail(0)
    assert not repeats.filter(held)
    assert held.exc_info is None


def test_facts_and_debug_lines_are_never_held_back() -> None:
    repeats = Repeats()
    assert all(repeats.filter(record("app = stats %d", n, at=100)) for n in range(1_000))
    debug = [record("app ! %d", n, at=100, level=logging.DEBUG) for n in range(1_000)]
    assert all(map(repeats.filter, debug))


def test_without_a_sweep_the_next_line_of_the_kind_tells() -> None:
    repeats = Repeats()
    for _ in range(logs.ALL + 2):
        repeats.filter(record("app ! again", at=100))
    with written() as lines:
        assert repeats.filter(record("app ! again", at=150))
    assert lines == ["app ! again … 2 more in 50 s"]


def test_the_filters_memory_is_bounded() -> None:
    repeats = Repeats()
    for n in range(10_000):
        repeats.filter(record(f"app ! {n}", at=100))
    assert len(repeats._windows) == logs.KNOWN
    assert repeats.filter(record("app ! new", at=111))
    assert len(repeats._windows) == 1


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 5)), max_size=100))
def test_windows_stand_in_the_order_in_which_they_began(events: list[tuple[int, float]]) -> None:
    """Those that have ended are the first ones, so that no line looks through all of them."""
    repeats, now = Repeats(), 0.0
    for number, seconds in events:
        now += seconds
        repeats.filter(record(f"app ! {number}", at=now))
    began = [window.began for window in repeats._windows.values()]
    assert began == sorted(began)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 40)), max_size=300))
def test_every_line_is_said_or_counted(events: list[tuple[int, float]]) -> None:
    repeats = Repeats()
    events.sort(key=lambda event: event[1])
    with written(JsonFormatter()) as lines:
        said = sum(repeats.filter(record(f"app ! kind {kind}", at=at)) for kind, at in events)
        repeats.finish(50)
    assert said + sum(json.loads(line)["repeats"] for line in lines) == len(events)


def test_a_host_without_options_takes_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", logging.WARNING)
    stream = io.StringIO()
    environment = {"EXPROTO_LOG_LEVEL": "loud", "EXPROTO_LOG_FORMAT": "json"}
    configure_from(environment, stream, text="%(message)s")
    line: dict[str, Any] = json.loads(stream.getvalue())
    assert line["message"].startswith("app ! EXPROTO_LOG_LEVEL is 'loud'; it must be one of debug, info, ")


FORGED = "dev5\n2026-01-01 00:00:00,000 INFO 9/gt06 = registered 'admin'\r\x1b[2J\x9b\u2028\u202e\ud800"
"""What forges a line, clears a terminal, can't be written."""


def forger() -> App:
    app = App(framing=Line(limit=1000))

    @app.on_received(b"login ")
    def login(conn: Connection, frame: bytes) -> None:
        conn.register(frame[6:].decode(), password="s3cret")

    @app.on_received(b"log")
    def say(conn: Connection, frame: bytes) -> None:
        log.info("a user's line: " + FORGED)  # noqa: G003 - as people write it
        log.warning("%s says %s", conn, FORGED)

    @app.on_received(b"raise")
    def broken(conn: Connection, frame: bytes) -> None:
        raise ValueError(f"no such device: {FORGED} {frame.decode()}")

    return app


def test_no_line_can_be_forged_whoever_writes_it() -> None:
    """What is logged is one line, and whatever stands below it, a traceback, is indented."""
    formatter = TextFormatter("%(levelname)s %(message)s")
    with written(formatter) as lines, TestClient(forger(), raise_errors=False) as device:
        device.send(b"log\nlogin 1\nraise\n")
    whole = "\n".join(lines)
    whole.encode()
    assert not set(whole) & set("\r\x1b\x9b\u2028\u202e")
    for line in whole.split("\n"):
        assert line.startswith(("DEBUG ", "INFO ", "WARNING ", "ERROR ", "    ")), line
    (error,) = (line for line in lines if line.startswith("ERROR"))
    assert "Traceback (most recent call last):" in error
    assert "    ValueError: no such device: dev5\n    2026-01-01" in error


def test_json_escapes_whatever_a_line_tells() -> None:
    with written(JsonFormatter()) as lines, TestClient(forger(), raise_errors=False) as device:
        device.send(b"log\nlogin 1\nraise\n")
    for line in lines:
        line.encode()
        assert line.isprintable()
        assert "\n" not in json.loads(line)["message"]


def test_a_stack_stands_below_its_line() -> None:
    with written(TextFormatter("%(message)s")) as lines:
        log.info("a line", stack_info=True)
    first, *below = lines[0].split("\n")
    assert first == "a line"
    assert below[0] == "    Stack (most recent call last):"
    assert all(line.startswith("    ") for line in below)


@pytest.mark.parametrize("told", ["{!r}", "{}", "hex"])
@pytest.mark.parametrize("formatter", [TextFormatter("%(message)s"), JsonFormatter(), None])
def test_a_password_is_masked_in_all_that_a_failing_handler_logs(
    told: str, formatter: logging.Formatter | None
) -> None:
    """Also for handlers of logging that aren't ours, tracebacks and the words of the end included."""
    app = App(framing=Line())

    @app.on_received
    def login(conn: Connection, frame: bytes) -> None:
        name, password = frame.decode().split()
        conn.register(name, password=password)
        log.warning("%s has %s", conn, password)
        cause = KeyError(password)
        raise ValueError(frame.hex() if told == "hex" else told.format(frame)) from cause

    formatter = formatter or logging.Formatter("%(levelname)s %(message)s")
    with written(formatter) as lines, TestClient(app, raise_errors=False) as device:
        device.send(b"860 s3cret\n")
        assert "s3cret" not in device.close_detail
        assert b"s3cret".hex() not in device.close_detail
    failed = [line for line in lines if "failed" in line]
    assert len(failed) == 1
    for line in lines if type(formatter) is not logging.Formatter else failed:
        assert "s3cret" not in line
        assert b"s3cret".hex() not in line


@pytest.mark.parametrize(
    "kind", ["raise", "await", "thread", "bad frame", "framing", "unhandled", "on_error"]
)
def test_what_a_device_said_before_it_registered_is_counted(kind: str) -> None:
    """From warning on; at debug it is shown."""
    app = App(framing=Line(limit=30)) if kind != "bad frame" else App(framing=Checked(Line(), XOR))

    def fail(conn: Connection, frame: bytes) -> None:
        raise ValueError(f"no idea what {frame!r} is, {frame.hex()}")

    async def fail_later(conn: Connection, frame: bytes) -> None:
        fail(conn, frame)

    app.on_received(b"other")(lambda conn, frame: None)
    if kind == "await":
        app.on_received(b"LOGIN")(fail_later)
    elif kind in ("raise", "thread", "on_error"):
        app.on_received(b"LOGIN", blocking=kind == "thread")(fail)
    if kind == "on_error":
        app.on_error(lambda conn, error: fail(conn, str(error).encode()))
    with written(level=logging.WARNING) as lines, TestClient(app, raise_errors=False) as device:
        device.send(b"LOGIN 860 s3cret" + (b"x" * 30 if kind == "framing" else b"") + b"\n")
        device.advance(1)
    assert lines
    for line in lines:
        assert "s3cret" not in line
        assert b"s3cret".hex() not in line


def test_a_router_that_says_where_secrets_stand_shows_the_rest() -> None:
    app = App(framing=Line(), secret=rb"LOGIN \w+ (\w+)".decode())

    @app.on_received
    def fail(conn: Connection, frame: bytes) -> None:
        raise ValueError(f"no idea what {frame!r} is: {frame[-6:]!r}")

    with written(level=logging.WARNING) as lines, TestClient(app, raise_errors=False) as device:
        device.send(b"LOGIN 860 s3cret\n")
    assert "no idea what b'LOGIN 860 ******' is: b'******'" in lines[0]
    assert "s3cret" not in lines[0]


def test_a_login_rule_that_fails_does_not_tell_the_password() -> None:
    def rule(client: object, password: str | None) -> bool:
        raise RuntimeError(f"the database refuses {password}")

    with written() as lines, TestClient(tracker(), login=rule, raise_errors=False) as device:
        device.send(b"login 860 s3cret\n")
        assert "the login rule failed" in device.close_detail
    assert any("the database refuses ******" in line for line in lines)
    assert not any("s3cret" in line for line in lines)
