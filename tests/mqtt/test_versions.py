"""MQTT 3.1.1 towards the broker: when it is spoken, and what a session does with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import mqtt5
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exproto_app import DeniedError, Message
from exproto_app.commands import Publish, Subscribe, Unsubscribe
from exproto_app.hosts.mqtt.dialects import MQTT_5, MQTT_311, TRIAL, Dialect
from exproto_app.hosts.mqtt.packets import prefixed
from exproto_app.hosts.mqtt.reasons import NO_MQTT311
from exproto_app.hosts.mqtt.session import Blame, Bounds, Login, ProtocolError
from exproto_app.hosts.mqtt.versions import LOST, Versions
from exproto_app.hosts.mqtt_server import codec
from exproto_app.hosts.mqtt_server import packets as packets_of
from exproto_app.hosts.mqtt_server.packets import V4, ConnAck, SubAck, UnsubAck
from exproto_app.properties import checked_properties

from ..test_gateway import run
from .fake import FakeBroker, fake
from .peer import Peer
from .test_uplink import site

VERSION = 0x84


class OldPeer(Peer):
    """A session that speaks MQTT 3.1.1, and its broker."""

    def sent(self) -> list[Any]:
        data = self.session.take()
        packets = []
        while data:
            head = codec.head_of(data, 0, len(data))
            assert head is not None
            packets.append(codec.decode(data[0], data[head[0] : head[1]], V4))
            data = data[head[1] :]
        return packets

    def say(self, *packets: Any) -> None:
        for packet in packets:
            self.session.receive(packet if isinstance(packet, bytes) else codec.encode(packet, V4))

    def up(self, *, present: bool = False) -> list[Any]:  # type: ignore[override] # 3.1.1 has no terms
        self.session.connect(self.now, MQTT_311)
        self.sent()
        self.say(ConnAck(0, present))
        return self.sent()


def message(payload: bytes, packet_id: int = 0, qos: int = 0) -> packets_of.Publish:
    return packets_of.Publish("t", payload, qos, packet_id=packet_id)


class TestVersions:
    """Which version is tried when."""

    def test_a_refusal_in_words_settles_it(self) -> None:
        versions = Versions()
        assert versions.dialect is MQTT_5
        assert versions.refused(MQTT_5, VERSION)
        assert versions.dialect is MQTT_311
        assert versions.refused(MQTT_5, VERSION), "another one that was on its way connects anew too"
        assert versions.dialect is MQTT_311

    def test_other_refusals_say_nothing_about_it(self) -> None:
        versions = Versions()
        assert not versions.refused(MQTT_5, 0x87)
        assert versions.dialect is MQTT_5

    def test_refused_both_ways_it_begins_again(self) -> None:
        versions = Versions()
        versions.refused(MQTT_5, VERSION)
        assert not versions.refused(MQTT_311, VERSION)
        assert versions.dialect is MQTT_5

    def test_silence_has_the_older_one_tried_and_then_the_newer_once_more(self) -> None:
        versions = Versions()
        for _ in range(3):
            assert versions.dialect is MQTT_5
            versions.closed(MQTT_5)
        assert versions.dialect is TRIAL
        assert versions.refused(TRIAL, MQTT_311_WORKS)
        assert versions.dialect is MQTT_5
        versions.closed(MQTT_5)
        assert versions.dialect is MQTT_311

    def test_a_broker_that_was_only_starting_is_spoken_to_with_the_newer(self) -> None:
        versions = Versions()
        for _ in range(3):
            versions.closed(MQTT_5)
        versions.refused(TRIAL, MQTT_311_WORKS)
        versions.accepted()
        assert versions.dialect is MQTT_5

    def test_one_that_closes_whatever_is_spoken_is_told_of(self) -> None:
        versions = Versions()
        dialects: list[Dialect] = []
        for _ in range(8):
            dialects.append(versions.dialect)
            versions.closed(versions.dialect)
        assert dialects == [*[MQTT_5] * 3, TRIAL, *[MQTT_5] * 3, TRIAL]
        assert versions.hint == "perhaps it speaks neither MQTT 5 nor 3.1.1, or wants TLS (mqtts://)"

    @pytest.mark.parametrize("silent", [True, False])
    def test_when_all_have_gone_the_newer_is_tried_once(self, silent: bool) -> None:
        versions = Versions()
        if silent:
            for dialect in (MQTT_5,) * 3:
                versions.closed(dialect)
            versions.refused(TRIAL, MQTT_311_WORKS)
            versions.closed(MQTT_5)
        else:
            versions.refused(MQTT_5, VERSION)
        assert not versions.doubtful
        versions.accepted()
        assert versions.doubtful
        versions.doubt()
        assert versions.dialect is MQTT_5
        if silent:
            versions.closed(MQTT_5)
        else:
            versions.refused(MQTT_5, VERSION)
        assert versions.dialect is MQTT_311

    @pytest.mark.parametrize(("wanted", "dialect"), [("5", MQTT_5), ("3.1.1", MQTT_311)])
    def test_what_the_user_says_is_done(self, wanted: Any, dialect: Dialect) -> None:
        versions = Versions(wanted)
        assert not versions.refused(dialect, VERSION)
        for _ in range(5):
            assert not versions.closed(dialect)
        assert "doesn't speak" in versions.hint
        versions.accepted()
        assert not versions.doubtful
        assert versions.dialect is dialect


MQTT_311_WORKS = TRIAL.answer(memoryview(b"\x20\x02\0\0"), memoryview(b"\0\0")).code


class TestSession:
    """A session with 3.1.1."""

    def test_the_broker_gets_who_the_client_is(self) -> None:
        will = Message("w", b"gone", 1, retain=True)
        peer = OldPeer(login=Login("c", "user", "pass", 30, 600, will))
        peer.session.connect(0.0, MQTT_311)
        assert peer.sent() == [
            packets_of.Connect(
                "c", V4, clean_start=False, keepalive=30, username="user", password=b"pass",
                will=packets_of.Will("w", b"gone", 1, retain=True),
            )
        ]  # fmt: skip

    @pytest.mark.parametrize(("expiry", "clean"), [(0, True), (60, False)])
    def test_a_session_that_is_not_to_outlive_the_connection_is_clean(self, expiry: int, clean: bool) -> None:
        peer = OldPeer(login=Login("c", session_expiry=expiry))
        for _ in range(2):
            peer.session.connect(0.0, MQTT_311)
            assert peer.sent()[0].clean_start is clean
            peer.say(ConnAck())
            peer.down()

    def test_a_password_without_a_username_has_an_empty_one_before_it(self) -> None:
        peer = OldPeer(login=Login("c", password="pass"))
        peer.session.connect(0.0, MQTT_311)
        assert (peer.sent()[0].username, peer.session.login.username) == ("", "")

    @pytest.mark.parametrize(
        ("code", "reason", "words"),
        [
            (1, 0x84, NO_MQTT311),
            (2, 0x85, "client identifier not valid (0x85)"),
            (3, 0x88, "server unavailable (0x88)"),
            (4, 0x86, "bad user name or password (0x86)"),
            (5, 0x87, "not authorized (0x87)"),
            (77, 0x80, "unspecified error (0x80)"),
        ],
    )
    def test_refusals_are_told_as_those_of_mqtt_5(self, code: int, reason: int, words: str) -> None:
        peer = OldPeer()
        peer.session.connect(0.0, MQTT_311)
        peer.say(bytes([0x20, 2, 0, code]))
        assert peer.events == [("refused", reason, words)]

    @pytest.mark.parametrize(("with_will", "goodbye"), [(False, b"\xe0\0"), (True, b"")])
    def test_a_will_that_is_due_has_no_disconnect_before_it(self, with_will: bool, goodbye: bytes) -> None:
        peer = OldPeer()
        peer.up()
        peer.session.disconnect(with_will=with_will)
        assert peer.session.take() == goodbye

    @pytest.mark.parametrize("qos", [0, 1, 2])
    def test_messages_go_without_properties(self, qos: int) -> None:
        peer = OldPeer()
        peer.up()
        rich = checked_properties(expiry=60, content_type="text/plain", user_properties={"unit": "C"})
        plain = peer.publish(b"plain", qos)
        outcome = peer.session.publish(Publish("t", b"rich", qos, properties=rich))
        first, second = (qos and 1, qos and 2)
        assert peer.sent() == [message(b"plain", first, qos), message(b"rich", second, qos)]
        for number in (1, 2):
            if qos == 2:
                peer.say(packets_of.Ack(5, number))
                assert peer.sent() == [packets_of.Ack(6, number)]
            if qos:
                peer.say(packets_of.Ack(7 if qos == 2 else 4, number))
        assert plain.done
        assert outcome.done
        assert outcome.error is None

    @given(
        size=st.sampled_from([0, 1, 100, 123, 124, 125, 126, 16_380, 16_384, 2_097_151]),
        qos=st.integers(0, 2),
        retain=st.booleans(),
    )
    @settings(max_examples=30)
    def test_a_plain_message_is_the_packet_that_the_codec_makes(
        self, size: int, qos: int, retain: bool
    ) -> None:
        number = 7 if qos else 0
        packet = packets_of.Publish("tö", bytes(size), qos, retain, packet_id=number)
        plain = MQTT_311.plain_publish(prefixed("tö"), bytes(size), qos << 1 | retain, number)
        assert plain == codec.encode(packet, V4)

    def test_subscriptions(self) -> None:
        peer = OldPeer()
        peer.up()
        granted = peer.session.subscribe(Subscribe("a/#", 2), 17, retained=False)
        denied = peer.session.subscribe(Subscribe("b", 1))
        assert [packet.filters for packet in peer.sent()] == [
            [packets_of.Subscription("a/#", 2)],
            [packets_of.Subscription("b", 1)],
        ]
        peer.say(SubAck(1, [1]), SubAck(2, [0x80]))
        assert granted.value == 1
        assert isinstance(denied.error, DeniedError)
        left = peer.session.unsubscribe(Unsubscribe("a/#"))
        assert peer.sent() == [packets_of.Unsubscribe(3, ["a/#"])]
        peer.say(UnsubAck(3))
        assert left.done

    def test_subscriptions_are_built_up_again_where_the_session_is_gone(self) -> None:
        peer = OldPeer()
        peer.up()
        peer.session.subscribe(Subscribe("a", 1))
        peer.say(SubAck(1, [1]))
        peer.down()
        assert [packet.filters[0].topic for packet in peer.up()] == ["a"]

    def test_what_is_unacknowledged_is_sent_again(self) -> None:
        peer = OldPeer(login=Login("c", session_expiry=60))
        peer.up()
        peer.publish(b"a")
        peer.down()
        assert peer.up(present=True) == [packets_of.Publish("t", b"a", 1, duplicate=True, packet_id=1)]

    @pytest.mark.parametrize("qos", [0, 1, 2])
    def test_messages_come_and_are_acknowledged(self, qos: int) -> None:
        peer = OldPeer()
        peer.up()
        peer.say(packets_of.Publish("t", b"x", qos, retain=True, packet_id=qos and 9))
        assert peer.messages == [Message("t", b"x", qos, retain=True)]
        if qos:
            taken = peer.takers[0]
            assert taken is not None
            taken()
            assert peer.sent() == [packets_of.Ack(4 if qos == 1 else 5, 9)]
        if qos == 2:
            peer.say(packets_of.Ack(6, 9))
            assert peer.sent() == [packets_of.Ack(7, 9)]

    @pytest.mark.parametrize("cut", [1, 3, 7, 1000])
    @pytest.mark.parametrize("qos", [0, 1, 2])
    def test_a_message_that_is_too_large_is_dropped_alone(
        self, cut: int, qos: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        peer = OldPeer(bounds=Bounds(packet_max=100))
        peer.up()
        data = codec.encode(packets_of.Publish("large", bytes(1000), qos, packet_id=qos and 9), V4)
        data += codec.encode(message(b"small"), V4)
        for at in range(0, len(data), cut):
            peer.session.receive(data[at : at + cut])
        assert peer.messages == [Message("t", b"small", 0)]
        assert "c1: a message to 'large' is dropped: its packet has 10" in caplog.text
        assert peer.sent() == ([packets_of.Ack(3 + qos, 9)] if qos else [])

    def test_a_disconnect_of_the_broker_is_an_error(self) -> None:
        peer = OldPeer()
        peer.up()
        with pytest.raises(ProtocolError, match="DISCONNECT"):
            peer.say(b"\xe0\0")

    @pytest.mark.parametrize("bad", [b"\x30\x01\0", b"\xf0\0", b"\x20\x01\0"])
    def test_what_is_no_packet_is_an_error(self, bad: bytes) -> None:
        peer = OldPeer()
        peer.up()
        with pytest.raises(ProtocolError):
            peer.say(bad)

    def test_silence_after_a_message_makes_it_a_suspect(self) -> None:
        peer = OldPeer()
        peer.up()
        assert not peer.session.silenced(), "nothing was sent that it could mean"
        one, two = peer.publish(b"1"), peer.publish(b"2")
        assert peer.session.silenced()
        assert peer.blames == [Blame.SOUGHT]
        peer.down()
        assert [packet.payload for packet in peer.up()] == [b"1"]
        assert peer.session.silenced()
        assert isinstance(one.error, DeniedError)
        peer.down()
        (packet,) = peer.up()
        assert packet.payload == b"2"
        peer.say(packets_of.Ack(4, packet.packet_id))
        assert two.error is None

    def test_mqtt_5_gives_its_reasons(self) -> None:
        peer = Peer()
        peer.up()
        peer.publish(b"1")
        assert not peer.session.silenced()


REFUSALS: dict[str, Callable[[FakeBroker], None]] = {
    "0x84": lambda broker: setattr(broker, "refusal", b"\x20\x03\x00\x84\x00"),
    "code 1": lambda broker: setattr(broker, "refusal", b"\x20\x02\x00\x01"),
    "let in, as by 3.1.1": lambda broker: setattr(broker, "refusal", b"\x20\x02\x00\x00"),
    "closed": lambda broker: None,
    "reset": lambda broker: setattr(broker, "resets", True),
}
"""How brokers of 3.1.1 answer to the CONNECT of MQTT 5."""


@pytest.mark.live
class TestUplink:
    """The uplink with a broker that speaks 3.1.1 alone."""

    @pytest.mark.parametrize("shared", [False, True])
    @pytest.mark.parametrize("how", REFUSALS)
    def test_it_is_found_out_and_told_once(
        self, how: str, shared: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def test() -> None:
            async with fake() as broker:
                broker.versions = {4}
                REFUSALS[how](broker)
                async with site(broker, shared=shared) as here:
                    devices = [await here.device("a"), await here.device("b")]
                    for device in devices:
                        assert await device.ask("ask hello") == "ok"
                    assert broker.payloads() == [b"hello", b"hello"]
                    assert broker.spoken[-1] == 4

        run(test)
        assert caplog.text.count(LOST) == 1
        assert "not MQTT 5" in caplog.text

    def test_the_gateway_may_be_told_to_require_the_broker(self) -> None:
        async def test() -> None:
            async with fake() as broker:
                broker.versions = {4}
                async with site(broker, required=True) as here:
                    await here.device("a")

        run(test)

    def test_one_that_has_been_upgraded_is_spoken_to_with_mqtt_5(self) -> None:
        async def test() -> None:
            async with fake() as broker:
                broker.versions, broker.refusal = {4}, b"\x20\x02\x00\x01"
                async with site(broker) as here:
                    device = await here.device("a")
                    await broker.stop()
                    device.send("ask kept")
                    await asyncio.sleep(0.1)
                    broker.versions, broker.spoken = {4, 5}, []
                    await broker.start()
                    assert await device.read() == "ok"
                    assert set(broker.spoken) == {5}

        run(test)

    def test_refused_logins_and_subscriptions(self) -> None:
        async def test() -> None:
            async with fake() as broker:
                broker.versions, broker.refusal = {4}, b"\x20\x02\x00\x01"
                broker.refuse = {"a": 4, "b": 5, "c": 2}
                async with site(broker) as here:
                    device = await here.device()
                    answers = [await device.ask(f"login {name}") for name in "abc"]
                    assert answers == [
                        f"DeniedError: the broker refused {name!r}: {words}"
                        for name, words in (
                            ("a", "bad user name or password (0x86)"),
                            ("b", "not authorized (0x87)"),
                            ("c", "client identifier not valid (0x85)"),
                        )
                    ]

        run(test)

    def test_a_message_that_it_closes_for_is_given_up(self) -> None:
        async def test() -> None:
            async with fake() as broker:
                broker.versions, broker.refusal = {4}, b"\x20\x02\x00\x01"
                broker.disconnects, broker.denied = True, {"up"}
                async with site(broker) as here:
                    device = await here.device("a")
                    answer = await device.ask("ask bad")
                    assert answer.startswith("DeniedError: the broker ended the connection because of this")
                    broker.denied = set()
                    assert await device.ask("ask good") == "ok"

        run(test)

    def test_a_device_that_is_taken_over_ends(self) -> None:
        """The broker can't say so: it closes again and again."""

        async def test() -> None:
            async with fake() as broker:
                broker.versions, broker.refusal = {4}, b"\x20\x02\x00\x01"
                async with site(broker) as here:
                    device = await here.device("a")
                    for number in (1, 2):
                        before = broker.connects
                        broker.kick("a", 0)
                        if number == 1:
                            await broker.until(lambda broker, before=before: broker.connects > before)
                            await broker.until(lambda broker: not broker.clients["a"].is_closing())
                            assert await device.ask("ask here") == "ok"
                    assert await device.read() == ""
                    assert here.ends == [
                        ("taken over", "the broker closed it twice without a word, for another client")
                    ]

        run(test)

    def test_a_broker_that_speaks_neither_is_told_of(self) -> None:
        async def test() -> None:
            async with fake() as broker:
                broker.versions, broker.refusal = set(), b"\x20\x02\x00\x01"
                async with site(broker) as here:
                    device = await here.device()
                    assert await device.ask("login a") == f"UnavailableError: {NO_MQTT311}"

        run(test)


def test_the_trial_leaves_no_will_behind() -> None:
    login = Login("c", will=Message("w", b"gone"))
    data = TRIAL.connect(login, Bounds(), again=False)
    connect: Any = codec.decode(data[0], data[2:], V4)
    assert connect.will is None


def test_mqtt_5_is_the_packets_own_codec() -> None:
    packet = MQTT_5.publish(Publish("t", b"x", 1), 5, duplicate=False)
    assert mqtt5.read(memoryview(packet))[0].packet_id == 5  # type: ignore[union-attr] # it is a PUBLISH
