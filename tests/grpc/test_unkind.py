"""Behind EMQX as the world has it: an adapter that is slow or cut off, devices that hang up early."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from exproto_app import (
    App,
    ClosedError,
    CommandError,
    Connection,
    DeniedError,
    Limits,
    UnsupportedError,
)
from exproto_app.framing import Line
from exproto_app.hosts.grpc import client, ended, link, service
from exproto_app.hosts.grpc.client import IN_FLIGHT, AdapterClient
from tests.behaviour.hosts import PASSWORD

from .host import Behind
from .test_service import Ends, echo_app, wait

pytestmark = pytest.mark.live


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def login_app(*, awaited: bool, register: bool = True, password: str | None = None) -> App[Any]:
    """Return an app that takes one line, CLIENTID, from a device and publishes it."""
    app: App[Any] = App(framing=Line())

    if awaited:

        @app.on_received
        async def tell(conn: Connection[Any], frame: bytes) -> None:
            if register:
                await conn.register(frame.decode(), password=password)
            await conn.publish("up", frame)

    else:

        @app.on_received
        def tell_at_once(conn: Connection[Any], frame: bytes) -> None:
            if register:
                conn.register(frame.decode(), password=password)
            conn.publish("up", frame)

    return app


def on_broker(behind: Behind, change: Callable[[], object]) -> None:
    """Have *change* happen on the loop of the stand-in."""

    async def do() -> None:
        change()

    behind.broker.run(do())


def say_and_hang_up(behind: Behind, count: int) -> None:
    """Have *count* devices say one line each, with the end of the connection right behind it."""

    async def device(number: int) -> None:
        _, writer = await asyncio.open_connection(behind.node.host, behind.node.ports[0])
        writer.write(b"%d\n" % number)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def all_of_them() -> None:
        for begin in range(0, count, 100):
            await asyncio.gather(*[device(number) for number in range(begin, min(begin + 100, count))])

    behind.broker.run(all_of_them())


# --- an adapter whose answers cost more with each call that is open


def test_a_thousand_devices_at_once_cost_none_its_turn(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "DEADLINE", 2.0)
    app: App[Any] = App(framing=Line())

    @app.on_received
    def login(conn: Connection[Any], frame: bytes) -> bytes:
        conn.register(frame.decode())
        conn.publish("up", frame)
        return frame

    behind = Behind(app, stack, cost=0.00002)
    behind.node.record = False

    async def device(number: int) -> bytes:
        reader, writer = await asyncio.open_connection(behind.node.host, behind.node.ports[0])
        writer.write(b"%d\n" % number)
        line = await reader.readline()
        writer.close()
        return line

    async def all_of_them() -> list[bytes]:
        return await asyncio.gather(*[device(number) for number in range(1000)])

    future = asyncio.run_coroutine_threadsafe(all_of_them(), behind.broker.loop)
    assert future.result(120) == [b"%d\n" % number for number in range(1000)]
    assert behind.node.most_open <= IN_FLIGHT
    assert app.stats["sends_failed"] == app.stats["commands_failed"] == 0


class Wire:
    """The client's side of a connection that a test answers."""

    def __init__(self, in_flight: int) -> None:
        self.client = AdapterClient("127.0.0.1", 9, in_flight=in_flight)
        self.connection = client.ClientConnection(self.client)
        self.connection.http2.settled = True
        self.connection.settled()
        self.outcomes: list[tuple[bytes, int]] = []
        self.method = self.client.method("/a/Send")

    def call(self, flow: bytes) -> None:
        self.client.call(self.method, b"", lambda status, _: self.outcomes.append((flow, status)), flow)

    def answer(self) -> None:
        """Answer the oldest call that is on the wire."""
        call = self.connection.calls[min(self.connection.calls)]
        call.answer, call.status = bytes(5), 0
        self.connection._ended(call)

    def age(self, seconds: float) -> None:
        """Have time pass for all calls."""
        for call in (*self.client._begun, *self.client._unbegun):
            call.since -= seconds
            call.begun -= seconds if call.begun else 0.0
        self.client.answered -= seconds
        self.client._sweep()


def on_a_wire(talk: Callable[[Wire], None], in_flight: int) -> list[tuple[bytes, int]]:
    async def run() -> list[tuple[bytes, int]]:
        wire = Wire(in_flight)
        talk(wire)
        outcomes = wire.outcomes[:]
        wire.connection.closed("the test ends")
        await wire.client.close()
        return outcomes

    return asyncio.run(run())


def test_the_burst_of_one_device_holds_no_other_up() -> None:
    def talk(wire: Wire) -> None:
        for _ in range(1000):
            wire.call(b"burst")
        wire.call(b"other")
        wire.call(b"another")
        for _ in range(5):
            wire.answer()

    flows = [flow for flow, _ in on_a_wire(talk, in_flight=2)]
    assert flows == [b"burst", b"burst", b"burst", b"other", b"another"]


def test_a_deadline_counts_from_when_a_call_is_on_the_wire() -> None:
    def talk(wire: Wire) -> None:
        wire.call(b"first")
        wire.call(b"second")
        wire.age(4)
        wire.answer()  # so that the second is on the wire
        wire.age(4)
        assert wire.outcomes == [(b"first", 0)]
        wire.age(4)

    assert on_a_wire(talk, in_flight=1) == [(b"first", 0), (b"second", 4)]


def test_a_call_waits_as_long_as_others_are_answered_but_not_for_ever() -> None:
    def talk(wire: Wire) -> None:
        for _ in range(100):
            wire.call(b"busy")
        wire.call(b"busy")  # the last of its flow
        for _ in range(14):
            wire.answer()
            wire.client.answered = wire.client.loop.time()
            wire.age(4)
        assert {status for _, status in wire.outcomes} == {0}
        wire.client.answered = wire.client.loop.time()
        wire.age(4)

    outcomes = on_a_wire(talk, in_flight=1)
    assert len(outcomes) > 80
    assert {status for _, status in outcomes} == {0, 4}


def test_nobody_waits_where_nothing_is_answered() -> None:
    def talk(wire: Wire) -> None:
        for _ in range(3):
            wire.call(b"a")
        wire.age(6)

    assert on_a_wire(talk, in_flight=1) == [(b"a", 4)] * 3


def test_waiting_calls_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAITING", 2)

    async def run() -> list[tuple[bytes, int]]:
        wire = Wire(1)
        for _ in range(4):
            wire.call(b"a")
        await asyncio.sleep(0)
        outcomes = wire.outcomes[:]
        wire.connection.closed("the test ends")
        await wire.client.close()
        return outcomes

    assert asyncio.run(run()) == [(b"a", 8)]


def test_calls_that_nobody_waits_for_take_no_others_place() -> None:
    def talk(wire: Wire) -> None:
        wire.call(b"hangs")
        wire.call(b"hangs too")
        wire.age(6)
        wire.call(b"next")
        assert not wire.connection.retired
        wire.answer()

    assert (b"next", 0) not in on_a_wire(talk, in_flight=3)


# --- an adapter that is cut off, while the broker goes on calling


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.2])
def test_no_device_stays_connected_and_forgotten(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch, streaming: bool, seconds: float
) -> None:
    # A tenth of the times in the field: cut for 3, 8 and 12 s.
    for module, name, value in (
        (client, "DEADLINE", 0.5),
        (client, "SWEEP", 0.05),
        (link, "CLOSE_WAIT", 0.3),
        (ended, "RETRY", 60.0),
    ):
        monkeypatch.setattr(module, name, value)
    app = echo_app()
    behind = Behind(app, stack, streaming=streaming, cut=True)
    devices = [behind.connect() for _ in range(15)]
    for number, device in enumerate(devices):
        device.send(b"login d%d\n" % number)
        device.expect(b"welcome\n")
    cable = behind.cable
    assert cable is not None
    behind.broker.run(cable.cut())
    for number, device in enumerate(devices):
        device.send(b"up t %d\n" % number)
    behind.broker.run(asyncio.sleep(seconds))
    behind.broker.run(cable.mend())

    def served_or_closed(device: Any) -> bool:
        with contextlib.suppress(OSError):
            device.send(b"there?\n")
        device.sock.settimeout(0.05)
        try:
            data = device.sock.recv(1000)
        except TimeoutError:
            return False
        except OSError:
            return True
        device.seen += data
        return not data or device.seen.endswith(b"there?\n")

    for device in devices:
        wait(lambda device=device: served_or_closed(device))  # type: ignore[misc] # of this round


@pytest.mark.parametrize("streaming", [False, True])
def test_a_silent_device_is_closed_when_the_adapter_is_back(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    for module, name, value in (
        (client, "DEADLINE", 0.2),
        (client, "SWEEP", 0.05),
        (ended, "RETRY", 0.1),
    ):
        monkeypatch.setattr(module, name, value)
    app = echo_app()
    ends = Ends(app)
    behind = Behind(app, stack, streaming=streaming, cut=True)
    devices = [behind.connect() for _ in range(5)]
    for device in devices:
        device.send(b"hi\n")
        device.expect(b"hi\n")
    cable = behind.cable
    assert cable is not None
    behind.broker.run(cable.cut())
    for device in devices:
        device.send(b"unheard\n")
    ends.wait(*["lost"] * 5)
    wait(lambda: all(not broker.links for broker in behind.service.adapters))
    behind.broker.run(cable.mend())
    for device in devices:
        with contextlib.suppress(AssertionError):
            device.expect(b"unheard\n")  # what was given up may arrive late
        device.expect_end()


def test_an_event_of_a_device_that_could_not_be_closed_is_refused(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, value in (
        (client, "DEADLINE", 0.2),
        (client, "SWEEP", 0.05),
        (ended, "RETRY", 60.0),
    ):
        monkeypatch.setattr(module, name, value)
    app = echo_app()
    ends = Ends(app)
    behind = Behind(app, stack, cut=True)
    device = behind.connect()
    device.send(b"hi\n")
    device.expect(b"hi\n")
    cable = behind.cable
    assert cable is not None
    behind.broker.run(cable.cut())
    device.send(b"unheard\n")
    ends.wait("lost")
    (broker,) = behind.service.adapters
    wait(lambda: any(broker.ended._owed.values()))
    device.send(b"still there\n")  # and the adapter is still away
    device.expect_end()
    behind.broker.run(cable.mend())


def test_a_stream_with_a_hole_in_it_is_closed_and_datagrams_go_on(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "DEADLINE", 0.2)
    monkeypatch.setattr(client, "SWEEP", 0.05)
    monkeypatch.setattr(ended, "RETRY", 0.1)
    app = echo_app()
    ends = Ends(app)
    behind = Behind(app, stack)
    tcp, udp = behind.connect(), behind.connect(udp=True)
    tcp.send(b"hi\n")
    tcp.expect(b"hi\n")
    udp.send(b"hi")
    assert udp.sock.recv(100) == b"hi\n"
    behind.broker.run(behind.node.stop_adapter())
    tcp.send(b"lost\n")
    udp.send(b"lost")
    wait(lambda: app.stats["sends_failed"] == 2)
    ends.wait("lost")
    behind.broker.run(behind.node.start_adapter())
    tcp.expect_end()
    udp.send(b"again")
    assert udp.sock.recv(100) == b"again\n"


def test_a_login_whose_answer_was_lost_counts_when_it_is_shown_again(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "DEADLINE", 0.3)
    monkeypatch.setattr(client, "SWEEP", 0.05)
    app: App[Any] = App(framing=Line())

    @app.on_received
    async def login(conn: Connection[Any], frame: bytes) -> bytes:
        try:
            await conn.register(frame.decode(), password=PASSWORD)
        except CommandError as error:
            return type(error).__name__.encode()
        return b"welcome"

    behind = Behind(app, stack)
    device, other = behind.connect(), behind.connect()
    behind.node.mute.add("Authenticate")
    device.send(b"d1\n")
    device.expect(b"UnavailableError\n")
    other.send(b"d2\n")
    other.expect(b"UnavailableError\n")
    behind.node.mute.clear()
    device.send(b"d1\n")
    device.expect(b"welcome\n")
    other.send(b"d3\nd2\n")
    other.expect(b"DeniedError\nwelcome\n")  # the broker has it as d2


# --- devices that hang up right behind what they say


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("register", [False, True])
def test_what_a_device_said_before_it_hung_up_arrives(
    stack: contextlib.ExitStack,
    monkeypatch: pytest.MonkeyPatch,
    streaming: bool,
    awaited: bool,
    register: bool,
) -> None:
    monkeypatch.setattr(client, "DEADLINE", 30.0)  # a stand-in with 1,000 streams takes its time
    behind = Behind(login_app(awaited=awaited, register=register), stack, streaming=streaming)
    behind.node.record = False
    count = 150 if streaming else 500
    say_and_hang_up(behind, count)
    came = {behind.messages.get("up") for _ in range(count)}
    assert came == {b"%d" % number for number in range(count)}


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("crashes", [False, True])
def test_a_registered_devices_last_words_arrive_while_its_queue_is_emptied(
    stack: contextlib.ExitStack, awaited: bool, crashes: bool
) -> None:
    app: App[Any] = App(framing=Line())
    outcomes: list[str] = []

    @app.on_received(b"login ")
    async def login(conn: Connection[Any], frame: bytes) -> bytes:
        await conn.register(frame[6:].decode(), password=PASSWORD)
        return b"welcome"

    @app.on_received
    async def up(conn: Connection[Any], frame: bytes) -> None:
        outcome = conn.publish("up", frame)
        if awaited:
            await outcome
            outcomes.append("published")

    behind = Behind(app, stack)
    device = behind.connect()
    device.send(b"login d1\n")
    device.expect(b"welcome\n")
    behind.node.crashes = crashes
    gate = asyncio.Event()
    behind.node.gates["Publish"] = gate
    on_broker(behind, behind.node.acknowledging.clear)
    device.send(b"one\ntwo\n")
    wait(lambda: behind.node.held)
    device.hang_up()
    wait(lambda: any(conn.disconnected for conn in behind.node.conns.values()))
    on_broker(behind, gate.set)
    assert [behind.messages.get("up") for _ in range(2)] == [b"one", b"two"]
    on_broker(behind, behind.node.acknowledging.set)
    wait(lambda: app.stats["connections_closed"] == 1)
    assert outcomes == ["published"] * 2 * awaited


def hung_up_in_mid_login(behind: Behind, said: bytes) -> None:
    """Have a device say something and hang up before the broker looks at its login."""
    gate = asyncio.Event()
    behind.node.gates["Authenticate"] = gate
    before = len(behind.calls("Authenticate"))
    opened = behind.app.stats["connections_opened"]
    device = behind.connect()
    wait(lambda: behind.app.stats["connections_opened"] > opened)
    wait(lambda: not any(conn.in_flight for conn in behind.node.conns.values()))
    on_broker(behind, behind.node.acknowledging.clear)
    device.send(said)
    wait(lambda: len(behind.calls("Authenticate")) > before)
    device.hang_up()
    wait(lambda: any(conn.disconnected for conn in behind.node.conns.values()))
    on_broker(behind, gate.set)
    on_broker(behind, behind.node.acknowledging.set)


@pytest.mark.parametrize("awaited", [False, True])
def test_nobody_gets_around_a_login_by_hanging_up(
    stack: contextlib.ExitStack, awaited: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app: App[Any] = App(framing=Line())
    errors: list[type[CommandError]] = []

    @app.on_received
    async def login(conn: Connection[Any], frame: bytes) -> None:
        outcome = conn.register(frame.decode(), password="guess")
        if awaited:
            try:
                await outcome
            except CommandError as error:
                errors.append(type(error))
        with contextlib.suppress(DeniedError):
            conn.publish("up", b"around the login")

    behind = Behind(app, stack)
    hung_up_in_mid_login(behind, b"d1\n")
    wait(lambda: app.stats["connections_closed"] == 1)
    assert app.stats["commands_failed"] == 1
    assert "its device hung up before the broker had taken its login" in caplog.text
    assert errors == [ClosedError] * awaited
    assert behind.calls("RawPublish") == []


def test_a_login_without_a_password_that_the_broker_refuses_stays_refused(
    stack: contextlib.ExitStack,
) -> None:
    app = login_app(awaited=False)
    behind = Behind(app, stack)
    behind.node.passwords = lambda clientid, password: password == PASSWORD
    first = behind.connect()
    first.send(b"d1\n")
    first.expect_end()
    hung_up_in_mid_login(behind, b"d2\n")
    wait(lambda: app.stats["connections_closed"] == 2)
    assert behind.calls("RawPublish") == []


@pytest.mark.parametrize("hung_up", [True, False])
def test_a_process_that_ends_during_a_login_ended_with_the_device_or_crashed(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch, hung_up: bool
) -> None:
    monkeypatch.setattr(link, "GRACE", 0.2)
    app = login_app(awaited=True)
    behind = Behind(app, stack)
    if hung_up:
        behind.node.crashes = True
        hung_up_in_mid_login(behind, b"d1\n")
        assert behind.messages.get("up") == b"d1"
    else:
        behind.node.crashes_at_login = True
        behind.connect().send(b"d1\n")
    wait(lambda: app.stats["connections_closed"] == 1)
    assert len(behind.calls("RawPublish")) == hung_up


# --- the rest


def test_streams_of_ended_connections_are_forgotten(stack: contextlib.ExitStack) -> None:
    app = echo_app()
    behind = Behind(app, stack, streaming=True)
    for _ in range(3):
        devices = [behind.connect() for _ in range(20)]
        for device in devices:
            device.send(b"hi\n")
        for device in devices:
            device.expect(b"hi\n")
        for device in devices:
            device.hang_up()
    wait(lambda: app.stats["connections_closed"] == 60)
    (broker,) = behind.service.adapters
    wait(lambda: not any(caller.calls for caller in behind.service.callers))
    assert not broker.streams._of
    assert behind.node.errors == []


def test_a_shared_subscription_is_refused_and_the_device_goes_on(stack: contextlib.ExitStack) -> None:
    app: App[Any] = App(framing=Line())

    @app.on_received
    async def subscribe(conn: Connection[Any], frame: bytes) -> bytes:
        if conn.client is None:
            await conn.register("d1")
        try:
            await conn.subscribe(frame.decode())
        except UnsupportedError as error:
            return str(error).encode()
        return b"subscribed"

    behind = Behind(app, stack)
    device = behind.connect()
    device.send(b"$share/group/t\n")
    device.expect(
        b"subscribe $share/group/t: EMQX 5.4 and later end a connection of ExProto that asks for a shared "
        b"subscription; where the broker is older, say so: serve --emqx 5.3\n"
    )
    device.send(b"plain\n")
    device.expect(b"subscribed\n")


def test_a_peer_of_dtls_ends_by_the_idle_rule(stack: contextlib.ExitStack) -> None:
    app: App[Any] = App(framing=Line(), limits=Limits(datagram_idle=0.3))
    ends = Ends(app)
    types: list[str] = []

    @app.on_received
    def echo(conn: Connection[Any], frame: bytes) -> bytes:
        types.append(conn.info.socktype)
        return frame

    behind = Behind(app, stack, dtls=True)
    device = behind.connect(udp=True)
    device.send(b"hi")
    assert device.sock.recv(100) == b"hi\n"
    assert types == ["dtls"]
    ends.wait("timeout")
    wait(lambda: behind.calls("Close"))


def test_what_waits_is_said_where_nothing_is_answered(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(client, "DEADLINE", 0.2)
    monkeypatch.setattr(service, "SWEEP", 60.0)
    app = echo_app()
    behind = Behind(app, stack, in_flight=1)
    behind.node.hang.add("Send")
    devices = [behind.connect() for _ in range(3)]
    for device in devices:
        device.send(b"hi\n")
    wait(lambda: app.stats["sends_failed"] == 3)
    assert "leaves 1 calls unanswered; it is connected anew" in caplog.text
