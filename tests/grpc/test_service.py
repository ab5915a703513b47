"""Behind EMQX: the traps of its ExProto gateway, and bad input, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from exproto_app import (
    Address,
    App,
    CommandError,
    Connection,
    DeniedError,
    Message,
    Router,
    SetupError,
    UnavailableError,
)
from exproto_app.framing import Line
from exproto_app.hosts.grpc import AdapterMap, Service, adapter, client, events, link, service
from exproto_app.hosts.grpc import exproto_pb2 as pb
from exproto_app.hosts.grpc.broker import PACE
from tests.behaviour.hosts import PASSWORD, PATIENCE

from .host import Behind
from .standin import PACKAGE

pytestmark = pytest.mark.live


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def wait(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came true"
        threading.Event().wait(0.005)


def echo_app(**options: Any) -> App[Any]:
    app: App[Any] = App(framing=Line(), **options)

    @app.on_received(b"login ")
    async def login(conn: Connection[Any], frame: bytes) -> bytes:
        clientid, _, password = frame[6:].decode().partition(" ")
        try:
            await conn.register(clientid, password=password or None)
        except DeniedError as error:
            return str(error).encode()
        await conn.subscribe(f"down/{clientid}")
        return b"welcome"

    @app.on_received(b"up ")
    async def up(conn: Connection[Any], frame: bytes) -> bytes:
        topic, _, payload = frame[3:].partition(b" ")
        try:
            await conn.publish(topic.decode(), payload)
        except Exception as error:  # noqa: BLE001 - the device is told
            return f"{type(error).__name__} {error}".encode()
        return b"published"

    @app.on_received
    def echo(conn: Connection[Any], frame: bytes) -> bytes:
        return frame

    @app.on_deliver
    def deliver(conn: Connection[Any], message: Message) -> bytes:
        return message.payload

    return app


class Ends:
    """How connections ended, for whoever waits for it."""

    def __init__(self, app: App[Any]) -> None:
        self.reasons: list[str] = []

        @app.on_terminated
        def gone(conn: Connection[Any], reason: str) -> None:
            self.reasons.append(reason)

    def wait(self, *reasons: str) -> None:
        wait(lambda: len(self.reasons) >= len(reasons))
        assert sorted(self.reasons) == sorted(reasons)


def raw_channel(behind: Behind) -> grpc.Channel:
    channel = grpc.insecure_channel(str(behind.bind))
    behind.stack.callback(channel.close)
    return channel


def call(behind: Behind, name: str, request: bytes, service: str = "ConnectionUnaryHandler") -> Any:
    """Call the handler as a broker would, from a thread of grpcio's own."""
    method = raw_channel(behind).unary_unary(f"/{PACKAGE}.{service}/{name}")
    return method(request, timeout=PATIENCE)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_device_logs_in_publishes_and_is_reached(stack: contextlib.ExitStack, streaming: bool) -> None:
    behind = Behind(echo_app(), stack, streaming=streaming)
    device = behind.connect()
    device.send(b"login d1 %s\nup up/d1 hello\n" % PASSWORD.encode())
    device.expect(b"welcome\npublished\n")
    assert behind.messages.get("up/d1") == b"hello"
    behind.route("down/d1", b"reboot")
    device.expect(b"reboot\n")
    (request,) = behind.calls("Authenticate")
    assert request.clientinfo.proto_name == "default"
    assert request.clientinfo.mountpoint == ""
    assert behind.node.errors == []


def test_the_broker_says_why_it_refuses(stack: contextlib.ExitStack) -> None:
    device = Behind(echo_app(), stack).connect()
    device.send(b"login d1 guess\nlogin d1 %s\n" % PASSWORD.encode())
    device.expect(b"the broker refuses Authenticate: bad_username_or_password\nwelcome\n")
    device.send(b"up denied/1 x\n")
    device.expect(b"DeniedError the broker refuses Publish: not allowed\n")


def test_what_would_crash_the_broker_is_never_sent(stack: contextlib.ExitStack) -> None:
    app = echo_app()
    behind = Behind(app, stack)
    device = behind.connect()
    device.send(b"login d1\nup t/# x\nstill here\n")
    device.expect(b"welcome\n")
    assert device.read(len(b"ValueError")) == b"ValueError"
    wait(lambda: b"still here\n" in device.read(1) + device.seen or device.seen.endswith(b"here\n"))
    assert behind.calls("Publish") == []


def test_what_the_broker_would_take_wrongly_is_never_sent(stack: contextlib.ExitStack) -> None:
    app: App[Any] = App(framing=Line())

    @app.on_received
    def refuse(conn: Connection[Any], frame: bytes) -> bytes:
        verbs: list[Callable[[], object]] = [
            lambda: conn.register(""),
            lambda: conn.publish("t", b"x", 3),
            lambda: conn.subscribe("t", 3),
            lambda: conn.start_timer(0),
        ]
        for verb in verbs:
            with pytest.raises(ValueError, match=r"empty|qos|timer"):
                verb()
        return b"refused"

    behind = Behind(app, stack)
    device = behind.connect()
    device.send(b"go\n")
    device.expect(b"refused\n")
    assert {name for name, _ in behind.node.calls} == {"Send"}


def test_what_a_turn_sends_is_one_call_on_tcp(stack: contextlib.ExitStack) -> None:
    behind = Behind(echo_app(), stack)
    device = behind.connect()
    device.send(b"one\ntwo\nthree\n")
    device.expect(b"one\ntwo\nthree\n")
    assert [request.bytes for request in behind.calls("Send")] == [b"one\ntwo\nthree\n"]


def test_datagrams_are_never_joined_and_their_idle_limit_is_lifted(stack: contextlib.ExitStack) -> None:
    app: App[Any] = App(framing=Line())

    @app.on_received
    def twice(conn: Connection[Any], frame: bytes) -> bytes:
        conn.send(frame)
        return frame

    behind = Behind(app, stack, idle_timeout=0.3)
    device = behind.connect(udp=True)
    device.send(b"hi")
    assert device.sock.recv(100) == b"hi\n"
    assert device.sock.recv(100) == b"hi\n"
    wait(lambda: behind.calls("StartTimer"))
    (timer,) = behind.calls("StartTimer")
    assert timer.interval > 3600


@pytest.mark.parametrize("streaming", [False, True])
def test_batches_of_messages_arrive_whole_and_in_order(stack: contextlib.ExitStack, streaming: bool) -> None:
    behind = Behind(echo_app(), stack, streaming=streaming)
    device = behind.connect()
    device.send(b"login d1\n")
    device.expect(b"welcome\n")

    async def flood() -> None:
        for number in range(500):
            behind.node.route("down/d1", b"%d" % number)

    behind.broker.run(flood())
    device.expect(b"".join(b"%d\n" % number for number in range(500)))


def test_too_much_before_the_beginning_closes_the_device(
    stack: contextlib.ExitStack, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "EARLY", 3)
    behind = Behind(echo_app(), stack, streaming=True)
    early = pb.ReceivedBytesRequest(conn="early", bytes=b"x").SerializeToString()
    for _ in range(5):
        assert call(behind, "OnReceivedBytes", early, "ConnectionHandler") == b""
    wait(lambda: [request.conn for request in behind.calls("Close")] == ["early"])
    assert "4 events came before its beginning, limit is 3" in caplog.text
    (broker,) = behind.service.adapters
    assert not broker.early
    assert broker.early_bytes == 0


def test_a_takeover_that_the_broker_doesnt_tell_of(stack: contextlib.ExitStack) -> None:
    app = echo_app()
    ends = Ends(app)
    behind = Behind(app, stack)
    older, newer = behind.connect(), behind.connect()
    older.send(b"login same\n")
    older.expect(b"welcome\n")
    # A call in flight keeps the broker from telling that the process has ended.
    for conn in behind.node.conns.values():
        conn.in_flight = conn.clientid == "same"
    newer.send(b"login same\n")
    newer.expect(b"welcome\n")
    ends.wait("taken over")
    newer.send(b"fine\n")
    newer.expect(b"fine\n")


def test_a_connection_that_crashed_is_found_when_something_is_sent(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "GRACE", 0.05)
    app = echo_app()
    ends = Ends(app)
    behind = Behind(app, stack)
    device = behind.connect()
    device.send(b"login d1\n")
    device.expect(b"welcome\n")

    async def crash() -> None:
        conn = behind.node.clients["d1"]
        name = conn.name
        conn.end("", silently=True)
        await behind.node.call("OnReceivedBytes", pb.ReceivedBytesRequest(conn=name, bytes=b"late\n"))

    behind.broker.run(crash())
    ends.wait("lost")


@pytest.mark.parametrize("alive", [True, False])
def test_silence_alone_ends_nothing(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    monkeypatch.setattr(link, "GRACE", 0.05)
    monkeypatch.setattr(service, "SILENCE", 0.01)
    monkeypatch.setattr(service, "SWEEP", 0.05)
    app = echo_app()
    ends = Ends(app)
    behind = Behind(app, stack)
    device = behind.connect()
    device.send(b"login d1\n")
    device.expect(b"welcome\n")
    if not alive:
        behind.broker.loop.call_soon_threadsafe(lambda: behind.node.clients["d1"].end("", silently=True))
        ends.wait("lost")
        return
    wait(lambda: len(behind.calls("Unsubscribe")) >= 3)
    device.send(b"here\n")
    device.expect(b"here\n")
    assert ends.reasons == []


def test_an_answer_is_withheld_only_while_the_queue_is_full(stack: contextlib.ExitStack) -> None:
    app: App[Any] = App(framing=Line())
    gate = threading.Event()

    @app.on_received(blocking=True)
    def slow(conn: Connection[Any], frame: bytes) -> bytes:
        gate.wait(PATIENCE)
        return b"%d" % len(frame)

    behind = Behind(app, stack)
    device, other = behind.connect(), behind.connect()
    device.send(b"first\n")
    wait(lambda: app.stats["frames_received"] == 1)
    # Events are answered while the handler still runs...
    device.send(b"second\n")
    wait(lambda: not any(conn.in_flight or conn.events for conn in behind.node.conns.values()))
    # ...until the queue is full.
    device.send((b"x" * 1000 + b"\n") * 200)
    wait(lambda: any(conn.in_flight and conn.events for conn in behind.node.conns.values()))
    gate.set()
    device.expect(b"5\n6\n" + b"1000\n" * 200)
    other.send(b"me\n")
    other.expect(b"2\n")


def test_a_restart_closes_what_it_never_saw_begin(stack: contextlib.ExitStack) -> None:
    app = echo_app()
    behind = Behind(app, stack)
    device = behind.connect()
    device.send(b"hi\n")
    device.expect(b"hi\n")
    # As if the process had been killed: nobody closes the devices.
    behind.ours.loop.call_soon_threadsafe(lambda: [b.links.clear() for b in behind.service.adapters])
    device.send(b"hi again\n")
    device.expect_end()
    wait(lambda: app.stats["connections_restarted"] == 1)
    device = behind.connect()
    device.send(b"fresh\n")
    device.expect(b"fresh\n")


def test_resume_carries_on(stack: contextlib.ExitStack) -> None:
    app: App[Any] = App(framing=Line(), resume=True)

    @app.on_received
    def echo(conn: Connection[Any], frame: bytes) -> bytes:
        return frame

    behind = Behind(app, stack)
    device = behind.connect()
    device.send(b"hi\n")
    device.expect(b"hi\n")
    behind.ours.loop.call_soon_threadsafe(lambda: [b.links.clear() for b in behind.service.adapters])
    device.send(b"hi again\n")
    device.expect(b"hi again\n")


@pytest.mark.parametrize("streaming", [False, True])
def test_stopping_closes_every_device_and_answers_what_is_in_flight(
    stack: contextlib.ExitStack, streaming: bool
) -> None:
    app = echo_app()
    ends = Ends(app)
    behind = Behind(app, stack, streaming=streaming)
    devices = [behind.connect() for _ in range(100)]
    for device in devices:
        device.send(b"hi\n")
    for device in devices:
        device.expect(b"hi\n")
    behind.stop()
    for device in devices:
        device.expect_end()
    ends.wait(*["shutdown"] * 100)
    assert behind.node.errors == []


def test_closes_are_paced(stack: contextlib.ExitStack) -> None:
    behind = Behind(echo_app(), stack)
    devices = [behind.connect() for _ in range(PACE + 10)]
    for device in devices:
        device.send(b"hi\n")
    for device in devices:
        device.expect(b"hi\n")
    gate = asyncio.Event()
    behind.node.gates["Close"] = gate
    stopping = asyncio.run_coroutine_threadsafe(behind.service.stop(), behind.ours.loop)
    stack.callback(lambda: setattr(behind, "service", None))
    wait(lambda: behind.node.held == PACE)
    # All others wait for an answer to one of these: a call that isn't one of them still gets through.
    assert call(behind, "OnReceivedBytes", pb.ReceivedBytesRequest(conn="?").SerializeToString()) == b""
    assert behind.node.held == PACE
    behind.broker.loop.call_soon_threadsafe(gate.set)
    stopping.result(PATIENCE)
    for device in devices:
        device.expect_end()


@pytest.mark.parametrize("rounds", range(5))
def test_who_connects_while_it_stops_leaves_nothing_behind(rounds: int) -> None:
    async def begin_and_stop() -> None:
        service = Service(echo_app(), Address("127.0.0.1", 0), AdapterMap(["auto:9100"]))
        await service.start()
        with contextlib.ExitStack() as sockets:
            for _ in range(3):
                caller = sockets.enter_context(socket.socket())
                caller.setblocking(False)
                caller.connect_ex((service.address.host, service.address.port))
            for _ in range(rounds):
                await asyncio.sleep(0)
            await service.stop()
        assert not service.callers

    asyncio.run(begin_and_stop())
    gc.collect()  # pytest makes an error of what was left open


def test_the_adapter_goes_away_and_comes_back(
    stack: contextlib.ExitStack, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "DEADLINE", 60.0)  # however busy this machine is
    behind = Behind(echo_app(), stack)
    device = behind.connect()
    device.send(b"hi\n")
    device.expect(b"hi\n")
    behind.broker.run(behind.node.stop_adapter())
    device.send(b"meanwhile\n")
    wait(lambda: "unreachable" in caplog.text)
    behind.broker.run(behind.node.start_adapter())
    device.expect(b"meanwhile\n")
    assert "reached again" in caplog.text


def test_the_adapter_stays_away(stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "DEADLINE", 0.2)
    app = echo_app()
    behind = Behind(app, stack)
    device = behind.connect()
    device.send(b"login d1\n")
    device.expect(b"welcome\n")
    behind.broker.run(behind.node.stop_adapter())
    device.send(b"lost\n")
    wait(lambda: app.stats["sends_failed"] == 1)
    with pytest.raises(UnavailableError, match="RawPublish failed"):
        behind.ours.run(awaited(app.publish("t", b"x")))


async def awaited(outcome: Any) -> Any:
    return await outcome


def test_an_adapter_that_hangs(stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "DEADLINE", 0.2)
    app = echo_app()
    behind = Behind(app, stack)
    device = behind.connect()
    device.send(b"login d1\n")
    device.expect(b"welcome\n")
    behind.node.hang.add("Publish")
    device.send(b"up t x\nand then\n")
    device.expect(b"UnavailableError the adapter's Publish failed")
    wait(lambda: device.read(1) == b"\n")
    device.expect(b"and then\n")


def test_an_adapter_that_is_something_else(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client, "DEADLINE", 0.3)
    app = echo_app()
    behind = Behind(app, stack)

    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def begin() -> asyncio.Server:
        await behind.node.stop_adapter()
        return await asyncio.start_server(web, "127.0.0.1", behind.node.adapter_port)

    server = behind.broker.run(begin())
    stack.callback(lambda: behind.broker.loop.call_soon_threadsafe(server.close))
    behind.connect().send(b"hi\n")
    wait(lambda: app.stats["sends_failed"] == 1)
    assert "doesn't speak gRPC, it said b'HTTP/1.1 400" in caplog.text


def test_publishing_for_the_app(stack: contextlib.ExitStack) -> None:
    app = echo_app()
    behind = Behind(app, stack)
    behind.ours.run(awaited(app.publish("alarms", b"fire", qos=1)))
    assert behind.messages.get("alarms") == b"fire"


def test_publishing_for_the_app_before_emqx_5_1(
    stack: contextlib.ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    app = echo_app()
    behind = Behind(app, stack, raw_publish=False)
    behind.ours.loop.call_soon_threadsafe(app.publish, "alarms", b"fire")
    wait(lambda: app.stats["commands_failed"] == 1)
    assert "EMQX before 5.1" in caplog.text


def test_several_protocols_by_port(stack: contextlib.ExitStack) -> None:
    app: App[Any] = App()
    for name in ("lines", "bytes"):
        router = Router(name, framing=Line()) if name == "lines" else Router(name)
        app.include(router)

        @router.on_received
        def tell(conn: Connection[Any], frame: bytes) -> bytes:
            return f"{conn.protocol} {conn.info.sockname.port} ".encode() + frame

    behind = Behind(app, stack)
    lines, plain = behind.connect(0), behind.connect(1)
    lines.send(b"hi\n")
    lines.expect(b"lines %d hi\n" % behind.node.ports[0])
    plain.send(b"hi")
    plain.expect(b"bytes %d hi" % behind.node.ports[1])


def test_a_listener_that_no_protocol_names(
    stack: contextlib.ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    behind = Behind(echo_app(), stack, ports=True)
    behind.service.protocols.ports[1] = behind.service.protocols.ports.pop(behind.node.ports[0])
    behind.connect().expect_end()
    assert "no --protocol names it, only default=:1" in caplog.text


def test_two_nodes_each_with_its_own_adapter(stack: contextlib.ExitStack) -> None:
    app = echo_app()
    behind = Behind(app, stack, nodes=2)
    devices = [behind.connect(node=number) for number in (0, 1)]
    for number, device in enumerate(devices):
        device.send(b"login d%d\n" % number)
        device.expect(b"welcome\n")
    assert [[*node.clients] for node in behind.nodes] == [["d0"], ["d1"]]
    devices[0].hang_up()
    wait(lambda: app.stats["connections_closed"] == 1)
    devices[1].send(b"fine\n")
    devices[1].expect(b"fine\n")


def test_the_address_that_called() -> None:
    async def find() -> list[str]:
        adapters = AdapterMap(["auto:9100", "10.0.0.9=http://broker:9200"])
        return [adapters.find(host).client.name for host in ("10.0.0.7", "10.0.0.9")]  # type: ignore[union-attr] # auto knows all

    assert asyncio.run(find()) == ["10.0.0.7:9100", "broker:9200"]


@pytest.mark.parametrize(
    "text",
    ["foo", "auto:x", "auto:0", "https://h:9100", "http://h", "http://h:9100/x", "http://[::1", "http://:1"],
)
def test_an_adapter_that_is_no_address(text: str) -> None:
    with pytest.raises(SetupError, match="--adapter"):
        AdapterMap([text])


def test_health(stack: contextlib.ExitStack) -> None:
    behind = Behind(echo_app(), stack)
    channel = raw_channel(behind)
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    assert check(b"", timeout=PATIENCE) == b"\x08\x01"
    known = b"\x0a\x26emqx.exproto.v1.ConnectionUnaryHandler"
    assert check(known, timeout=PATIENCE) == b"\x08\x01"
    with pytest.raises(grpc.RpcError) as caught:
        check(b"\x0a\x03tea", timeout=PATIENCE)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
    assert next(watch(b"\x0a\x03tea", timeout=PATIENCE)) == b"\x08\x03"
    watched = watch(b"", timeout=PATIENCE)
    assert next(watched) == b"\x08\x01"
    behind.stop()
    assert list(watched) == [b"\x08\x02"]


def test_a_method_that_there_is_not(stack: contextlib.ExitStack) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(Behind(echo_app(), stack), "OnTea", b"")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def bad(name: str, request: bytes) -> Any:
    return pytest.param(name, request, id=name)


NOWHERE = pb.SocketCreatedRequest(conn="c").SerializeToString()
STRANGE = pb.SocketCreatedRequest(conn="c2").SerializeToString() + b"\x12\x02\x08\x4d"  # socktype 77


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        *[bad(name, b"") for name in ("OnSocketCreated", "OnReceivedBytes", "OnReceivedMessages")],
        *[bad(name, b"\xff\xff\xff") for name in ("OnSocketCreated", "OnSocketClosed", "OnReceivedBytes")],
        bad("OnReceivedBytes", b"\x0a\x05conn1\x12\x85\x80\x80\x80\x80\x80\x01xx"),
        bad("OnReceivedBytes", b"\x0a\x05conn1\x12\x7fxx"),
        bad("OnReceivedBytes", pb.ReceivedBytesRequest(conn="?" * 300, bytes=b"x").SerializeToString()),
        bad("OnReceivedMessages", pb.ReceivedMessagesRequest(conn="?").SerializeToString()),
        bad("OnTimerTimeout", b"\x0a\x01c\x10\x63"),
        bad("OnSocketCreated", NOWHERE),
        bad("OnSocketCreated", STRANGE),
        bad("OnSocketClosed", pb.SocketClosedRequest(conn="never").SerializeToString()),
    ],
)
def test_whatever_comes_is_answered_with_success(
    stack: contextlib.ExitStack, name: str, request_: bytes
) -> None:
    behind = Behind(echo_app(), stack)
    assert call(behind, name, request_) == b""
    assert call(behind, name, request_) == b""
    device = behind.connect()
    device.send(b"fine\n")
    device.expect(b"fine\n")


def test_events_after_the_end_are_ignored(stack: contextlib.ExitStack) -> None:
    app = echo_app()
    behind = Behind(app, stack)
    device = behind.connect()
    device.send(b"x\n")
    device.expect(b"x\n")
    (conn,) = behind.node.conns
    device.hang_up()
    wait(lambda: app.stats["connections_closed"] == 1)
    late = pb.ReceivedBytesRequest(conn=conn, bytes=b"late\n").SerializeToString()
    assert call(behind, "OnReceivedBytes", late) == b""
    created = pb.SocketCreatedRequest(conn=conn).SerializeToString()
    assert call(behind, "OnSocketCreated", created) == b""
    assert app.stats["events_ignored"] == 1
    assert app.stats["connections_opened"] == 1
    assert app.stats["connections_restarted"] == 0


def test_an_adapter_that_answers_unknown(stack: contextlib.ExitStack) -> None:
    app: App[Any] = App(framing=Line())

    @app.on_received
    async def subscribe(conn: Connection[Any], frame: bytes) -> bytes:
        try:
            await conn.subscribe("down")
        except CommandError as error:
            return str(error).encode()
        return b"subscribed"

    device = Behind(app, stack).connect()
    device.send(b"go\n")
    device.expect(b"the broker takes no Subscribe before register has succeeded\n")


def test_five_megabytes_at_once(stack: contextlib.ExitStack) -> None:
    app: App[Any] = App()
    sizes: list[int] = []

    @app.on_received
    def size(conn: Connection[Any], frame: bytes) -> bytes:
        sizes.append(len(frame))
        return b"."

    behind = Behind(app, stack)
    device = behind.connect()
    device.send(b"x")
    device.expect(b".")
    (conn,) = behind.node.conns
    request = pb.ReceivedBytesRequest(conn=conn, bytes=b"y" * 5_000_000)
    assert call(behind, "OnReceivedBytes", request.SerializeToString()) == b""
    wait(lambda: sum(sizes) == 5_000_001)
    device.expect(b"." * (len(sizes) - 1))


def test_more_than_is_taken_in_one_call(stack: contextlib.ExitStack) -> None:
    app = echo_app()
    ends = Ends(app)
    behind = Behind(app, stack)
    device = behind.connect()
    device.send(b"x\n")
    device.expect(b"x\n")
    (conn,) = behind.node.conns
    request = pb.ReceivedBytesRequest(conn=conn, bytes=b"y" * 17_000_000)
    assert call(behind, "OnReceivedBytes", request.SerializeToString()) == b""
    device.expect_end()
    ends.wait("error")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"hello\r\n", "devices belong on a listener"),
        (b"GET / HTTP/1.1\r\n\r\n", "speaks HTTP/1"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 20, "speaks TLS"),
    ],
)
def test_somebody_else_on_the_port(
    stack: contextlib.ExitStack, caplog: pytest.LogCaptureFixture, said: bytes, words: str
) -> None:
    behind = Behind(echo_app(), stack)
    with socket.create_connection((behind.bind.host, behind.bind.port), timeout=PATIENCE) as stranger:
        stranger.sendall(said)
        with contextlib.suppress(ConnectionError):
            while stranger.recv(1000):
                pass
    assert words in caplog.text
    device = behind.connect()
    device.send(b"fine\n")
    device.expect(b"fine\n")


def test_who_calls_is_told(stack: contextlib.ExitStack, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    behind = Behind(echo_app(), stack, streaming=True)
    device = behind.connect()
    device.send(b"hi\n")
    device.expect(b"hi\n")
    assert "EMQX at 127.0.0.1 calls ConnectionHandler; its adapter is 127.0.0.1:" in caplog.text
    assert "prefer service_name = ConnectionUnaryHandler" in caplog.text
    wait(lambda: "answers: the first Send succeeded" in caplog.text)


def test_nobody_calls_and_nobody_answers(
    stack: contextlib.ExitStack, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SILENT_START", 0.2)
    behind = Behind(echo_app(), stack)
    wait(lambda: "no broker has called within 0.2 s" in caplog.text)
    behind.node.hang.add("Send")
    device = behind.connect()
    device.send(b"hi\n")
    wait(lambda: behind.calls("Send"))
    behind.ours.loop.call_soon_threadsafe(behind.service._look_for_brokers)
    wait(lambda: f"nothing was answered by 127.0.0.1:{behind.node.adapter_port}" in caplog.text)


def test_the_app_publishes_through_a_broker_that_is_there(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "DEADLINE", 0.5)
    monkeypatch.setattr(link, "CLOSE_WAIT", 0.1)
    app = echo_app()
    behind = Behind(app, stack, nodes=2)
    devices = [behind.connect(node=number) for number in (0, 1)]
    for device in devices:
        device.send(b"hi\n")
        device.expect(b"hi\n")
    behind.broker.run(behind.nodes[1].stop())
    broker = next(it for it in behind.service.adapters if it.client.name.startswith("127.0.0.2"))
    wait(lambda: broker.callers == 0)
    behind.ours.run(awaited(app.publish("alarms", b"fire")))
    assert behind.messages.get("alarms") == b"fire"
    behind.stop()  # while the dead node's calls end soon


def test_what_the_app_publishes_waits_for_room(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "RAW", 3)
    app = echo_app()
    behind = Behind(app, stack)
    behind.ours.run(publish_at_once(app, 100))
    assert [behind.messages.get("t") for _ in range(100)] == [b"%d" % number for number in range(100)]
    assert app.stats["commands_failed"] == 0


async def publish_at_once(app: App[Any], count: int) -> None:
    for outcome in [app.publish("t", b"%d" % number) for number in range(count)]:
        await outcome


def test_a_taken_port() -> None:
    async def begin(port: int) -> None:
        await Service(echo_app(), Address("127.0.0.1", port), AdapterMap(["auto:9100"])).start()

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SetupError, match="another program"):
        asyncio.run(begin(taken.getsockname()[1]))


def test_two_thousand_devices_none_stuck(stack: contextlib.ExitStack) -> None:
    app = echo_app()
    behind = Behind(app, stack)
    behind.node.record = False

    async def device(number: int) -> bytes:
        reader, writer = await asyncio.open_connection(behind.node.host, behind.node.ports[0])
        writer.write(b"%d\n" % number)
        line = await reader.readline()
        writer.close()
        return line

    async def all_of_them() -> list[bytes]:
        got: list[bytes] = []
        for begin in range(0, 2000, 250):
            got += await asyncio.gather(*[device(number) for number in range(begin, begin + 250)])
        return got

    future = asyncio.run_coroutine_threadsafe(all_of_them(), behind.broker.loop)
    assert future.result(90) == [b"%d\n" % number for number in range(2000)]
    wait(lambda: app.stats["connections_closed"] == 2000)
    assert behind.node.errors == []
    for broker in behind.service.adapters:
        assert not broker.links
        assert not broker.early
