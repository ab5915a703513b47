"""The uplink with a broker that does what real ones seldom do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import mqtt5
import pytest

from exproto_app import App, Connection, Limits, Message, UnavailableError
from exproto_app.errors import CommandError
from exproto_app.framing import Line
from exproto_app.hosts.gateway import Gateway
from exproto_app.hosts.mqtt import MqttHub
from exproto_app.hosts.mqtt.reasons import NO_MQTT311

from ..test_gateway import run
from .fake import FakeBroker, fake

pytestmark = pytest.mark.live

Ends = list[tuple[str, str]]


class Device:
    """A device of the app below."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, *lines: str) -> None:
        self._writer.write("".join(f"{line}\n" for line in lines).encode())

    async def read(self) -> str:
        """Return the next line, empty at the end."""
        return (await self._reader.readline()).decode().strip()

    async def ask(self, line: str) -> str:
        self.send(line)
        return await self.read()

    async def hang_up(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


class Site:
    """An app on its gateway: devices log in, publish with a QoS, and learn what came of it."""

    def __init__(self, hub: MqttHub) -> None:  # noqa: C901 - one app of all
        self.app = App(framing=Line(), limits=Limits(end_timeout=0.3))
        self.ends: Ends = []
        self.gate = asyncio.Event()
        self._devices: list[Device] = []
        app = self.app

        @app.on_received(b"login ")
        async def login(conn: Connection, frame: bytes) -> bytes:
            clientid = frame[6:].decode()
            return await words(conn.register(clientid, will=Message("will", b"gone")))

        @app.on_received(b"say ")
        def say(conn: Connection, frame: bytes) -> None:
            conn.publish("up", frame[4:], qos=1)

        @app.on_received(b"ask ")
        async def ask(conn: Connection, frame: bytes) -> bytes:
            return await words(conn.publish("up", frame[4:], qos=1))

        @app.on_received(b"flood ")
        def flood(conn: Connection, frame: bytes) -> bytes:
            outcomes = [conn.subscribe(f"down/{number}") for number in range(int(frame[6:]))]
            return b"%d" % sum(outcome.error is not None for outcome in outcomes)

        @app.on_received(b"box ")
        async def box(conn: Connection, frame: bytes) -> bytes:
            records = [b"%d" % number for number in range(int(frame[4:]))]
            outcomes = [conn.publish("up", record, qos=1) for record in records]
            for outcome in outcomes:
                await outcome
            return b"all"

        @app.on_received(b"many ")
        def many(conn: Connection, frame: bytes) -> None:
            records = [("up", b"%d" % number) for number in range(int(frame[5:]))]
            conn.send(b"many", after=conn.publish_many(records, qos=1))

        @app.on_received(b"each ")
        def each(conn: Connection, frame: bytes) -> None:
            for number in range(int(frame[5:])):
                conn.send(b"%d" % number, after=conn.publish("up", b"%d" % number, qos=1))

        @app.on_received(b"app ")
        async def by_the_app(conn: Connection, frame: bytes) -> bytes:
            outcomes = [app.publish("up", b"%d" % number, qos=1) for number in range(int(frame[4:]))]
            return str(len(await asyncio.gather(*outcomes))).encode()

        @app.on_deliver
        async def down(conn: Connection, message: Message) -> bytes:
            if message.payload == b"wait":
                await self.gate.wait()
            return message.payload

        @app.on_terminated
        def gone(conn: Connection, reason: str) -> None:
            self.ends.append((reason, conn.close_detail))
            conn.publish("end", reason.encode())

        self.gateway = Gateway(app, ["tcp://127.0.0.1:0"], hub=hub)

    async def device(self, clientid: str = "") -> Device:
        """Connect a device, and log it in."""
        address = self.gateway.addresses[0][2]
        device = Device(*await asyncio.open_connection(address.host, address.port))
        self._devices.append(device)
        if clientid:
            assert await device.ask(f"login {clientid}") == "ok"
        return device

    async def close(self) -> None:
        for device in self._devices:
            await device.hang_up()


async def words(outcome: Any) -> bytes:
    try:
        await outcome
    except CommandError as error:
        return f"{type(error).__name__}: {error}".encode()
    return b"ok"


@contextlib.asynccontextmanager
async def site(broker: FakeBroker, **options: Any) -> AsyncIterator[Site]:
    here = Site(broker.hub(**options))
    async with here.gateway:
        try:
            yield here
        finally:
            await here.close()


class TestTheBrokersWord:
    """What the broker says about a client's session."""

    @pytest.mark.parametrize(
        ("code", "reason", "detail"),
        [
            (0x8E, "taken over", "session taken over (0x8E)"),
            (0x98, "kicked", "administrative action (0x98)"),
            (0x8A, "kicked", "banned (0x8A)"),
            (0x87, "kicked", "not authorized (0x87)"),
        ],
    )
    def test_an_end_for_good_ends_the_connection(self, code: int, reason: str, detail: str) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker) as here:
                device = await here.device("a")
                broker.kick("a", code)
                assert await device.read() == ""
                await broker.until(lambda broker: reason.encode() in broker.payloads())
                assert here.ends == [(reason, detail)]
                assert reason.encode() not in broker.payloads("a")  # the gateway's own client said it

        run(test)

    @pytest.mark.parametrize("code", sorted(set(range(0x80, 0xA3)) - {0x87, 0x8A, 0x8E, 0x98}))
    def test_an_end_for_now_does_not(self, code: int) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker) as here:
                device = await here.device("a")
                broker.kick("a", code)
                assert await device.ask("ask hello") == "ok"
                assert broker.payloads("a") == [b"hello"]

        run(test)

    def test_an_end_without_a_word_does_not_but_another_soon_after_does(self) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker) as here:
                device, other = await here.device("a"), await here.device("b")
                broker.clients["a"].close()
                assert await device.ask("ask hello") == "ok"
                broker.clients["a"].close()
                assert await device.read() == ""
                await broker.until(lambda broker: b"taken over" in broker.payloads())
                assert await other.ask("ask still here") == "ok"

        run(test)

    def test_a_client_that_may_not_come_back_is_kicked(self) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker) as here:
                device = await here.device("a")
                broker.refuse["a"] = 0x8A
                broker.kick("a", 0x8B)
                assert await device.read() == ""
                await broker.until(lambda broker: b"kicked" in broker.payloads())
                assert here.ends == [("kicked", "the broker refused 'a': banned (0x8A)")]

        run(test)

    def test_a_refused_register(self) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker) as here:
                broker.refuse["a"] = 0x86
                device = await here.device()
                answer = await device.ask("login a")
                assert answer == "DeniedError: the broker refused 'a': bad user name or password (0x86)"
                assert await device.ask("login b") == "ok"

        run(test)

    @pytest.mark.parametrize("answer", [b"\x20\x02\x00\x01", b"\x20\x03\x00\x84\x00"])
    def test_a_broker_that_refuses_every_version(self, answer: bytes) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker) as here:
                broker.answer, broker.versions = answer, {4, 5}
                device = await here.device()
                assert await device.ask("login a") == f"UnavailableError: {NO_MQTT311}"

        run(test)

    def test_a_message_that_it_calls_wrong_is_given_up(self) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker) as here:
                device = await here.device("a")
                broker.holding = True
                device.send("ask bad")
                for number in (1, 2):
                    await broker.until(lambda broker, number=number: len(broker.payloads("a")) == number)
                    broker.kick("a", 0x99)
                answer = await device.read()
                assert answer.startswith("DeniedError: the broker ended the connection because of this")
                broker.holding = False
                assert await device.ask("ask good") == "ok"

        run(test)

    def test_goodbyes_tell_what_becomes_of_the_will(self) -> None:
        async def test() -> None:
            async with fake() as broker:
                async with site(broker) as here:
                    leaves, stays = await here.device("leaves"), await here.device("stays")
                    await leaves.hang_up()
                    await broker.until(lambda broker: broker.goodbyes)
                    here.app.connections["stays"].terminate()
                    assert await stays.read() == ""
                    await broker.until(lambda broker: len(broker.goodbyes) == 2)
                    await here.device("ends")
                names = [*broker.goodbyes[:3]]
                assert names == [("leaves", 4), ("stays", 0), ("ends", 4)]

        run(test)


class TestTheBrokerAway:
    """Nothing is lost silently."""

    def test_what_is_published_meanwhile_arrives_in_order(self) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker, queue=10) as here:
                device = await here.device("a")
                await broker.stop()
                device.send(*(f"say {number}" for number in range(100)), "ask last")
                await asyncio.sleep(0.1)
                await broker.start()
                assert await device.read() == "ok"
                assert broker.payloads("a") == [*(b"%d" % number for number in range(100)), b"last"]

        run(test)

    def test_what_expires_meanwhile_is_not_sent(self) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker) as here:
                await here.device("a")
                await broker.stop()
                conn = here.app.connections["a"]
                outcomes = [
                    verb("x", payload, qos=1, expiry=seconds)
                    for verb in (conn.publish, here.app.publish)
                    for payload, seconds in ((b"old", 1), (b"new", 60))
                ]
                for outcome in outcomes[::2]:
                    with pytest.raises(UnavailableError, match="expired while it waited"):
                        await outcome
                await broker.start()
                await outcomes[1]
                await outcomes[3]
                assert sorted(broker.payloads()) == [b"new", b"new"]
                assert here.app.stats["messages_expired"] == 2

        run(test)

    def test_what_was_on_its_way_expires_too(self) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker) as here:
                await here.device("a")
                broker.holding = True
                conn = here.app.connections["a"]
                old = conn.publish("x", b"old", qos=1, expiry=1)
                new = conn.publish("x", b"new", qos=1, expiry=60)
                await broker.until(lambda broker: len(broker.published) == 2)
                await broker.stop()
                with pytest.raises(UnavailableError, match="expired while it waited"):
                    await old
                broker.holding = False
                await broker.start()
                await new
                assert broker.payloads() == [b"old", b"new", b"new"]
                assert here.app.stats["messages_expired"] == 1

        run(test)

    def test_what_expires_in_the_store_is_not_sent_and_what_is_sent_has_less_time_left(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        later, real = 0.0, time.time
        left: list[int] = []
        monkeypatch.setattr(time, "time", lambda: real() + later)

        async def test() -> None:
            nonlocal later
            async with fake() as broker, site(broker, store=tmp_path) as here:
                await here.device("a")
                await broker.stop()
                conn = here.app.connections["a"]
                await conn.publish("x", b"old", qos=1, expiry=20)
                await conn.publish("x", b"new", qos=1, expiry=100)
                broker.answers = lambda packet, _: left.append(packet.message_expiry_interval or 0)
                later = 30.0
                for count in (1, 2):
                    await broker.start()
                    await broker.until(lambda _, count=count: len(left) == count)
                    await broker.stop()
                    await asyncio.sleep(2.2)  # expiry is in whole seconds, rounded up
                assert here.app.stats["messages_expired"] == 1
                broker.answers = None
                await broker.start()
                await broker.until(lambda broker: len(broker.published) == 3)
                assert broker.payloads() == [b"new"] * 3

        run(test)
        assert 60 < left[1] < left[0] <= 70

    def test_drop_oldest_keeps_the_newest_and_counts_the_others(self) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker, queue=3, when_full="drop-oldest") as here:
                device = await here.device("a")
                await broker.stop()
                device.send(*(f"say {number}" for number in range(9)), "ask last")
                while here.app.stats["frames_received"] < 11:  # noqa: ASYNC110 - the device isn't answered
                    await asyncio.sleep(0.001)
                await broker.start()
                assert await device.read() == "ok"
                assert broker.payloads("a") == [b"7", b"8", b"last"]
                assert here.app.stats["publishes_dropped"] == 7

        run(test)

    def test_disconnect_ends_the_connection(self) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker, queue=3, when_full="disconnect") as here:
                device = await here.device("a")
                await broker.stop()
                device.send(*(f"say {number}" for number in range(9)))
                assert await device.read() == ""
                await broker.start()
                await broker.until(lambda broker: b"error" in broker.payloads())
                assert here.ends == [("error", "the broker is away or too slow, and the queue is full")]
                assert broker.payloads("a") == [b"0", b"1", b"2", b"3", b"error"]

        run(test)

    def test_what_nobody_awaits_of_a_single_turn_is_bounded_too(self) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker, queue=5) as here:
                device = await here.device("a")
                await broker.stop()
                assert await device.ask("flood 3000") == "0"
                while not here.app.stats["commands_failed"]:  # noqa: ASYNC110 - nothing else tells it
                    await asyncio.sleep(0.001)
                await broker.start()
                assert await device.ask("ask hello") == "ok"
                # Some are on their way, if the end of the connection hasn't come to be known yet.
                assert 1_980 <= here.app.stats["commands_failed"] <= 1_994

        run(test)

    @pytest.mark.parametrize(
        ("how", "when_full"),
        [
            ("box", "wait"),
            ("many", "wait"),
            ("each", "wait"),
            ("app", "wait"),
            ("many", "drop-oldest"),
            ("each", "drop-oldest"),
        ],
    )
    def test_whatever_is_awaited_waits_for_room(self, how: str, when_full: str) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker, queue=10, when_full=when_full) as here:
                device = await here.device("a")
                await broker.stop()
                device.send(f"{how} 3000")
                while here.app.stats["messages_published"] < 10:  # noqa: ASYNC110 - the device isn't answered
                    await asyncio.sleep(0.001)
                await broker.start()
                if how == "each":
                    assert [await device.read() for _ in range(3000)] == [str(n) for n in range(3000)]
                else:
                    assert await device.read() == {"box": "all", "many": "many", "app": "3000"}[how]
                who = None if how == "app" else "a"
                assert broker.payloads(who) == [b"%d" % number for number in range(3000)]
                assert here.app.stats.get("publishes_dropped", 0) == 0
                assert here.app.stats["commands_failed"] == 0

        run(test)

    def test_acknowledgements_out_of_order_twice_or_of_nothing_change_no_order(self) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker) as here:
                ids: list[int] = []

                def answer(packet: mqtt5.PublishPacket, writer: asyncio.StreamWriter) -> None:
                    ids.append(packet.packet_id or 0)
                    if len(ids) == 3:
                        for packet_id in (ids[2], ids[2], 60_000, ids[0], ids[1], ids[1]):
                            writer.write(mqtt5.PubAckPacket(packet_id).write())

                broker.answers = answer
                device = await here.device("a")
                device.send("each 3")
                assert [await device.read() for _ in range(3)] == ["0", "1", "2"]

        run(test)

    def test_a_broker_that_refuses_every_second_message_has_only_the_first_acknowledged(self) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker) as here:
                codes = itertools.cycle((0x00, 0x97))

                def answer(packet: mqtt5.PublishPacket, writer: asyncio.StreamWriter) -> None:
                    body = (packet.packet_id or 0).to_bytes(2, "big") + bytes([next(codes)])
                    writer.write(bytes([0x40, 3]) + body)

                broker.answers = answer
                device = await here.device("a")
                device.send("each 4")
                assert [await device.read(), await device.read()] == ["0", ""]
                assert here.ends == [
                    ("error", "the broker refused the message to 'up': quota exceeded (0x97)")
                ]

        run(test)

    def test_a_broker_that_never_acknowledges_costs_a_bounded_wait(self) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker) as here:
                broker.holding = True
                device = await here.device("a")
                device.send("each 2")
                await broker.until(lambda broker: len(broker.published) == 2)
                here.app.connections["a"].terminate()
                assert await device.read() == ""
                assert here.app.stats["bytes_dropped.unsent"] == 4

        run(test)

    def test_what_a_device_said_before_it_left_arrives(self) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker) as here:
                device = await here.device("a")
                await broker.stop()
                device.send("say 1", "say 2")
                await device.hang_up()
                while here.app.connections:  # noqa: ASYNC110 - nothing else tells it
                    await asyncio.sleep(0.001)
                await broker.start()
                await broker.until(lambda broker: broker.goodbyes)
                assert broker.payloads("a") == [b"1", b"2", b"device closed"]
                assert broker.goodbyes == [("a", 4)]

        run(test)

    def test_back_before_that_the_device_sends_it_itself(self) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker) as here:
                broker.holding = True
                device = await here.device("a")
                device.send("say 1", "say 2")
                await broker.until(lambda broker: len(broker.published) == 2)
                await device.hang_up()
                while here.app.connections:  # noqa: ASYNC110 - nothing else tells it
                    await asyncio.sleep(0.001)
                broker.holding = False
                broker.published.clear()
                again = await here.device("a")
                assert await again.ask("ask 3") == "ok"
                assert [*filter(bytes.isdigit, broker.payloads("a"))] == [b"1", b"2", b"3"]

        run(test)

    def test_a_newer_connection_sends_what_an_older_one_of_its_name_could_not(self) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker) as here:
                broker.holding = True
                older = await here.device("a")
                older.send("say 1", "say 2")
                await broker.until(lambda broker: len(broker.published) == 2)
                broker.holding = False
                newer = await here.device("a")
                assert await older.read() == ""
                assert await newer.ask("ask 3") == "ok"
                assert broker.payloads("a") == [b"1", b"2", b"1", b"2", b"3"]
                assert here.ends[0][0] == "taken over"

        run(test)

    def test_a_register_waits_for_it_but_not_for_ever(self) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker, timeout=1.0) as here:
                await broker.stop()
                device = await here.device()
                answer = await device.ask("login a")
                assert answer.startswith("UnavailableError: no session with the broker within 1 s: ")
                await broker.start()
                # It is dialled again after a wait, which may be longer than a register waits.
                while answer != "ok":
                    assert answer.startswith("UnavailableError: no session with the broker within 1 s: ")
                    answer = await device.ask("login a")

        run(test)

    def test_one_that_accepts_and_never_answers_counts_as_away(self) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker, timeout=0.4) as here:
                broker.silent = True
                device = await here.device()
                answer = await device.ask("login a")
                assert answer.startswith("UnavailableError: no session with the broker within 0.4 s")

        run(test)

    def test_a_gateway_that_requires_it_does_not_start(self) -> None:
        async def test() -> None:
            async with fake() as broker:
                await broker.stop()
                with pytest.raises(UnavailableError, match="required and can't be used: connection refused"):
                    await Site(broker.hub(required=True)).gateway.start()
                await broker.start()
                broker.silent = True
                with pytest.raises(UnavailableError, match=r"no CONNACK within 0\.2 s"):
                    await Site(broker.hub(required=True, timeout=0.2)).gateway.start()

        run(test)


class TestOwnClient:
    """Connections that aren't clients share the gateway's."""

    def test_who_has_not_registered_publishes_through_it(self) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker, client_id="gate") as here:
                device = await here.device()
                assert await device.ask("ask before") == "ok"
                assert await device.ask("login a") == "ok"
                assert await device.ask("ask after") == "ok"
                await here.app.publish("up", b"app", qos=1)
                assert broker.published == [("gate", b"before"), ("a", b"after"), ("gate", b"app")]

        run(test)

    def test_in_shared_mode_everybody_does(self) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker, client_id="gate", shared=True) as here:
                device = await here.device("a")
                assert await device.ask("ask hello") == "ok"
                await device.hang_up()
                await broker.until(lambda broker: b"gone" in broker.payloads())
                assert broker.published == [("gate", b"hello"), ("gate", b"device closed"), ("gate", b"gone")]
                assert list(broker.clients) == ["gate"]

        run(test)

    def test_it_is_not_let_in_and_comes_again(self, caplog: pytest.LogCaptureFixture) -> None:
        async def test() -> None:
            async with fake() as broker:
                broker.refuse["gate"] = 0x86
                async with site(broker, client_id="gate") as here:
                    await broker.until(lambda broker: caplog.records)
                    assert "the broker refused 'gate': bad user name or password (0x86)" in caplog.text
                    broker.refuse.clear()
                    assert await (await here.device()).ask("ask hello") == "ok"

        run(test)


class TestDeliveries:
    """What the broker sends."""

    def test_it_is_acknowledged_when_its_handler_has_ended(self) -> None:
        async def test() -> None:
            async with fake() as broker, site(broker) as here:
                device = await here.device("a")
                for number, payload in enumerate((b"first", b"wait", b"last"), 1):
                    qos = mqtt5.QoS.AT_LEAST_ONCE
                    broker.deliver("a", mqtt5.PublishPacket("down", payload, qos=qos, packet_id=number))
                assert await device.read() == "first"
                await broker.until(lambda broker: broker.acknowledged)
                assert broker.acknowledged == [("a", 1)]
                here.gate.set()
                assert [await device.read(), await device.read()] == ["wait", "last"]
                await broker.until(lambda broker: len(broker.acknowledged) == 3)
                assert broker.acknowledged == [("a", 1), ("a", 2), ("a", 3)]

        run(test)
