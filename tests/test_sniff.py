"""Sniffing: which protocol a device speaks, by its first bytes; and all that happens before that is known."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exproto_app import App, Connection, Limits, Message
from exproto_app.core import Rules
from exproto_app.framing import Line
from exproto_app.hosts.gateway import Gateway
from exproto_app.ops.logs import JsonFormatter
from exproto_app.options import Sniff
from exproto_app.router import Router
from exproto_app.tap import Closed, Event, Failed, Frame, Opened, Received, Tap
from exproto_app.testing import TestClient

LIMIT = 6
"""Bytes that may tell the protocol here."""


@attrs.define(eq=False, repr=False)
class ByteAt:
    """A rule: the byte at this place tells."""

    place: int
    byte: bytes

    def __call__(self, data: bytes) -> bool | None:
        return None if len(data) <= self.place else data[self.place : self.place + 1] == self.byte

    def __repr__(self) -> str:
        return f"byte {self.place} is {self.byte!r}"


def undetermined(data: bytes) -> None:
    """Never tell."""


def app_of(rules: list[Sniff | None], **limits: Any) -> App:
    """Return an app whose protocols `0`, `1`… have these rules; each handler answers with its name."""
    app = App(limits=Limits(**{"sniff_bytes": LIMIT, **limits}))

    def serve(router: Router[Any]) -> None:
        @router.on_received
        def received(conn: Connection[Any], frame: bytes) -> bytes:
            return router.name.encode() + frame

    for number, rule in enumerate(rules):
        serve(app.protocol(str(number), sniff=rule))
    return app


def names(app: App) -> str:
    return ",".join(app.protocols)


def decision(device: TestClient) -> str:
    """Return the protocol, or how it is without one."""
    try:
        return device.connection.protocol
    except RuntimeError:
        return "closed" if device.closed else "unknown"


byte = st.sampled_from([b"a", b"b"])
data = st.binary(min_size=1, max_size=9).map(lambda raw: bytes(b"ab"[byte % 2] for byte in raw))
prefix = data.filter(lambda prefix: len(prefix) <= LIMIT)
rule: st.SearchStrategy[Sniff] = st.one_of(
    prefix,
    st.lists(prefix, min_size=1, max_size=3).map(tuple),
    st.builds(ByteAt, st.integers(0, 8), byte),
    st.just(undetermined),
)
rules = st.tuples(st.lists(rule, min_size=1, max_size=3), st.booleans(), st.randoms())


def shared(drawn: tuple[list[Sniff], bool, Any]) -> list[Sniff | None]:
    """Return the rules, with a fallback somewhere among them if there is one, two at least."""
    chosen: list[Sniff | None] = list(drawn[0])
    if drawn[1] or len(chosen) == 1:
        chosen.insert(drawn[2].randint(0, len(chosen)), None)
    return chosen


@settings(max_examples=settings().max_examples * 3 // 2)
@given(rules.map(shared), data, st.lists(st.integers(1, 8), max_size=4))
def test_however_the_bytes_are_cut_the_decision_is_the_same(
    rules: list[Sniff | None], data: bytes, cuts: list[int]
) -> None:
    app = app_of(rules)
    with TestClient(app, names(app)) as whole:
        whole.send(data)
        pieces = whole.another()
        edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
        for start, end in itertools.pairwise(edges):
            if not pieces.closed:
                pieces.send(data[start:end])
        assert decision(pieces) == decision(whole)
        for device in (whole, pieces):  # what can't tell by then is out
            if not device.closed:
                device.close()
        assert decision(pieces) == decision(whole)


@settings(max_examples=settings().max_examples * 3)
@given(rules.map(shared), data, data)
def test_more_bytes_never_change_a_decision(rules: list[Sniff | None], data: bytes, more: bytes) -> None:
    choice = Rules(tuple(app_of(rules).protocols.values()))
    before, waits = choice.choose(data, final=False)
    if not waits:
        assert choice.choose(data + more, final=False) == (before, False)
        assert choice.choose(data, final=True) == (before, False)


@pytest.mark.parametrize(
    ("rules", "data", "chosen"),
    [
        ([b"a", b"b"], b"a", "0"),
        ([b"ab", b"abc", b"a"], b"ab", "unknown"),
        ([b"ab", b"abc", b"a"], b"abd", "0"),
        ([b"ab", b"abc", b"a"], b"abc", "1"),
        ([b"ab", b"abc", b"a"], b"ac", "2"),
        ([(b"x", b"ab"), b"ab"], b"ab", "0"),
        ([b"ab", b"a", None], b"b", "2"),
        ([None, b"ab"], b"a", "unknown"),
        ([None, b"ab"], b"ac", "0"),
        ([b"a", b"b"], b"c", "closed"),
        ([ByteAt(1, b"b"), b"a"], b"a", "unknown"),
        ([ByteAt(1, b"b"), b"a"], b"ab", "0"),
        ([ByteAt(1, b"b"), b"a"], b"ac", "1"),
        ([b"a", ByteAt(1, b"b")], b"ab", "0"),
        ([b"a", ByteAt(0, b"a"), b"ab"], b"ab", "2"),
        ([undetermined, b"a"], b"aaaaa", "unknown"),
        ([undetermined, b"a"], b"aaaaaa", "1"),
        ([undetermined, None], b"aaaaaa", "1"),
        ([undetermined, b"b"], b"aaaaaa", "closed"),
        ([ByteAt(6, b"a"), None], b"aaaaaaaa", "1"),
    ],
)
def test_who_takes_what(rules: list[Sniff | None], data: bytes, chosen: str) -> None:
    app = app_of(rules)
    with TestClient(app, names(app)) as device:
        device.send(data)
        assert decision(device) == chosen


def test_the_connection_begins_when_its_protocol_is_known() -> None:
    app = App()
    begun: list[str] = []

    def state() -> str:
        begun.append("state")
        return "fresh"

    a = app.protocol("a", framing=Line(), state=state, sniff=b"a:")
    b = app.protocol("b", sniff=b"b:")

    @a.on_connect
    async def connect(conn: Connection[str]) -> bytes:
        begun.append(conn.id)
        await asyncio.sleep(1)
        return b"welcome"

    @a.on_received
    def received(conn: Connection[str], frame: bytes) -> bytes:
        return frame

    @b.on_received
    def other(conn: Connection, frame: bytes) -> bytes:
        return frame

    with TestClient(app, "a,b") as device:
        device.send(b"a")
        assert begun == []
        with pytest.raises(RuntimeError, match="its protocol isn't known yet"):
            assert device.connection
        assert (device.closed, device.close_reason, device.published) == (False, None, [])
        device.send(b":1\na:2\n")
        assert begun == ["state", device.connection.id]
        assert device.recv() == b""
        device.advance(1)
        assert device.recv() == b"welcome\na:1\na:2\n"
        assert (app.stats["connections_opened"], app.stats["bytes_received"]) == (1, 8)
        other_device = device.another()
        other_device.send(b"b:")
        assert (other_device.recv(), other_device.connection.id) == (b"b:", "2")


def test_a_first_read_beyond_every_limit_is_handled_whole() -> None:
    app = App(limits=Limits(inbox=64))
    for name in "ab":
        router = app.protocol(name, framing=Line(), sniff=name.encode())

        @router.on_received
        async def received(conn: Connection, frame: bytes) -> bytes:
            await asyncio.sleep(0.001)
            return frame

    lines = b"".join(b"a%d\n" % number for number in range(1_000))
    with TestClient(app, "a,b") as device:
        device.send(lines)
        device.send(b"and more\n")
        device.advance(10)
        assert device.recv() == lines + b"and more\n"


def test_what_no_protocol_takes_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    app = app_of([b"a", b"b"])
    with TestClient(app, "0,1") as device:
        device.send(b"\xff\x00")
        assert (device.closed, device.close_reason) == (True, "error")
        assert device.close_detail == "no protocol takes 2 bytes"
        assert [record.getMessage() for record in caplog.records] == ["1/0,1 ! no protocol takes 2 bytes"]
        line = json.loads(JsonFormatter().format(caplog.records[0]))
        assert (line["conn"], line["protocol"]) == ("1", "0,1")
        stats = app.stats
        assert (stats["connections_undecided"], stats["connections_closed.error"]) == (1, 1)
        assert (stats["connections_opened"], stats["connections_closed"]) == (1, 1)


def test_who_says_nothing_is_closed_in_time_with_a_hint(caplog: pytest.LogCaptureFixture) -> None:
    app = app_of([b"a", None], sniff_time=7)
    with TestClient(app, "0,1") as device:
        device.advance(6.9)
        assert not device.closed
        device.advance(0.2)
        assert (device.closed, device.close_reason) == (True, "timeout")
        assert (
            "it said nothing within 7 s; a protocol in which the server speaks first needs its own listener"
            in caplog.text
        )
        assert app.stats["connections_closed.timeout"] == 1


@pytest.mark.parametrize(("data", "level"), [(b"", logging.DEBUG), (b"a", logging.WARNING)])
def test_who_hangs_up_undecided_is_logged_quietly_if_it_sent_nothing(
    data: bytes, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    app = app_of([b"ab", b"ac"])
    with TestClient(app, "0,1") as device:
        if data:
            device.send(data)
        device.close()
        assert (device.closed, device.close_reason) == (True, "device closed")
        assert max(record.levelno for record in caplog.records) == level
        assert app.stats["connections_undecided"] == 1


def test_a_hang_up_decides_and_what_has_come_is_handled() -> None:
    app = app_of([b"ab", None])
    told: list[str] = []

    @app.protocols["1"].on_connect
    def connect(conn: Connection) -> bytes:
        conn.publish("begun", conn.protocol.encode())
        return b"nobody hears that"

    @app.protocols["1"].on_terminated
    def gone(conn: Connection, reason: str) -> None:
        told.append(reason)

    with TestClient(app, "0,1") as device:
        device.send(b"a")
        device.close()
        assert told == ["device closed"]
        assert device.published == [Message("begun", b"1")]
        assert app.stats["frames_received"] == 1
        assert (app.stats["connections_undecided"], app.stats["connections_closed"]) == (0, 1)


def test_bytes_behind_the_refusal_are_counted_as_dropped() -> None:
    app = app_of([b"a", b"b"])
    with TestClient(app, "0,1") as device:
        channel = device._connected()[1].channel
        assert channel is not None
        for data in (b"c", b"def"):  # as they may come from a broker, one right behind the other
            channel.received(data)
        assert app.stats["bytes_received"] == 4
        assert app.stats["bytes_dropped.closing"] == app.stats["bytes_dropped"] == 3


def broken(data: bytes) -> bool:
    raise KeyError(data)


@pytest.mark.parametrize(
    ("rule", "error"),
    [(broken, KeyError), (lambda data: data.find(b"a"), Exception), (lambda data: "yes", Exception)],
)
def test_a_rule_that_fails_is_logged_and_fails_the_test(
    rule: Callable[[bytes], Any], error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    app = app_of([rule, None])
    with TestClient(app, "0,1") as device:
        with pytest.raises(error):
            device.send(b"a")
        assert (device.closed, device.close_reason) == (True, "error")
        assert app.stats["handler_errors"] == 1
    assert "1/0,1 ! protocol not recognized: sniff= of Router('0')" in caplog.text


@pytest.mark.live
def test_the_process_ends_while_some_are_undecided() -> None:
    came = asyncio.Event()

    def never_tell(data: bytes) -> None:
        came.set()

    app = app_of([never_tell, None])
    told: list[str] = []

    @app.protocols["1"].on_terminated
    def gone(conn: Connection, reason: str) -> None:
        told.append(reason)

    async def main() -> None:
        async with Gateway(app, ["0,1=tcp://127.0.0.1:0"]) as gateway:
            port = gateway.addresses[0][2].port
            (_, silent), (reader, half) = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            half.write(b"a")
            await came.wait()
        assert await reader.read() == b"1a"
        silent.close()
        half.close()

    asyncio.run(main())
    assert told == ["shutdown"]
    assert (app.stats["connections_closed.shutdown"], app.stats["connections_undecided"]) == (2, 1)


@pytest.mark.live
@pytest.mark.parametrize("library", ["asyncio", "uvloop"])
def test_half_closed_connections_get_their_answer(library: str) -> None:
    loop = pytest.importorskip(library).new_event_loop()
    app = app_of([b"ab", None])

    async def main() -> None:
        async with Gateway(app, ["0,1=tcp://127.0.0.1:0"]) as gateway:
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.addresses[0][2].port)
            writer.write(b"a")
            writer.write_eof()
            assert await reader.read() == b"1a"
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.addresses[0][2].port)
            for piece in (b"a", b"b", b"c"):
                writer.write(piece)
                await asyncio.sleep(0.001)
            assert await reader.readexactly(1) == b"0"
            writer.close()

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


# --- what watchers see


Seen = list[tuple[str, Event]]


def seen_by(app: App) -> Seen:
    seen: Seen = []

    def watcher(tap: Tap, now: float, event: Event) -> None:
        seen.append((tap.protocol, event))

    app.watch(watcher)
    return seen


def kinds(seen: Seen) -> list[tuple[str, type[Event]]]:
    return [(protocol, type(event)) for protocol, event in seen]


def test_watchers_see_the_undecided_bytes_and_then_the_protocol() -> None:
    app = app_of([b"ab", b"ac"])
    seen = seen_by(app)
    with TestClient(app, "0,1") as device:
        device.send(b"ab", chunk=1)
        assert kinds(seen)[:2] == [("0,1", Opened), ("0", Received)]
        assert [event.data for _, event in seen if isinstance(event, Received)] == [b"a", b"b"]
        assert [event.frame for protocol, event in seen if isinstance(event, Frame)] == [b"ab"]


def test_undecided_bytes_dont_wait_for_the_decision_to_be_shown() -> None:
    app = app_of([b"ab", b"ac"])
    seen = seen_by(app)
    with TestClient(app, "0,1") as device:
        device.send(b"a")
        device.advance(1)
        assert kinds(seen) == [("0,1", Opened), ("0,1", Received)]
        device.send(b"x")
        assert kinds(seen)[2:] == [("0,1", Received), ("0,1", Failed), ("0,1", Closed)]
        assert [event.text for _, event in seen if isinstance(event, Failed)] == [
            "FramingError: no protocol takes 2 bytes: 6178"
        ]


def test_who_begins_to_watch_is_told_of_the_undecided() -> None:
    app = app_of([b"ab", b"ac"])
    with TestClient(app, "0,1") as device:
        device.send(b"a")
        seen = seen_by(app)
        assert [(protocol, event) for protocol, event in seen if isinstance(event, Opened) and event.late]
        for watcher in tuple(app.watchers):
            app.unwatch(watcher)
        device.send(b"b")
        assert device.recv() == b"0ab"
        assert len(seen) == 1


def test_a_password_in_the_deciding_bytes_never_shows() -> None:
    app = App()
    login = app.protocol("login", framing=Line(), sniff=b"login ")
    app.protocol("rest").on_received(lambda conn, frame: None)

    @login.on_received(b"login ")
    def received(conn: Connection, frame: bytes) -> None:
        conn.register("device", password=frame[6:].decode())

    seen = seen_by(app)
    with TestClient(app, "login,rest") as device:
        device.send(b"login s3cret\n", chunk=4)
        shown = b"".join(event.data for _, event in seen if isinstance(event, Received))
        assert shown == b"login ******\n"
