"""The MQTT session, without a network."""

from __future__ import annotations

from typing import Any

import mqtt5
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mqtt5 import (
    ConnAckPacket,
    ConnectPacket,
    DisconnectPacket,
    PubAckPacket,
    PubAckReasonCode,
    PubCompPacket,
    PublishPacket,
    PubRecPacket,
    PubRelPacket,
    QoS,
    SubAckPacket,
    SubAckReasonCode,
    SubscribePacket,
    UnsubAckPacket,
    UnsubAckReasonCode,
)

from exproto_app import DeniedError, Message
from exproto_app.commands import Publish, Subscribe, Unsubscribe
from exproto_app.hosts.mqtt.packets import plain_publish, prefixed
from exproto_app.hosts.mqtt.reasons import NO_MQTT5
from exproto_app.hosts.mqtt.session import Bounds, Login, ProtocolError

from .peer import Peer

GRANTED = SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE
QOS = (QoS.AT_MOST_ONCE, QoS.AT_LEAST_ONCE, QoS.EXACTLY_ONCE)


def incoming(payload: bytes, packet_id: int | None = None, qos: int = 1, **options: Any) -> PublishPacket:
    return PublishPacket("t", payload, qos=QOS[qos], packet_id=packet_id, **options)


def payloads(packets: list[Any]) -> list[bytes]:
    return [packet.payload for packet in packets if isinstance(packet, PublishPacket)]


@given(
    topic=st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0+#"), min_size=1),
    size=st.sampled_from([0, 1, 100, 126, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152]),
    qos=st.integers(0, 2),
    retain=st.booleans(),
    packet_id=st.integers(1, 65_535),
)
@settings(max_examples=50)
def test_a_plain_publish_is_the_packet_that_the_codec_makes(
    topic: str, size: int, qos: int, retain: bool, packet_id: int
) -> None:
    number = packet_id if qos else None
    packet = PublishPacket(topic, bytes(size), qos=QOS[qos], retain=retain, packet_id=number)
    assert plain_publish(prefixed(topic), bytes(size), qos << 1 | retain, number or 0) == packet.write()


class TestConnect:
    """CONNECT and CONNACK."""

    def test_the_broker_gets_who_the_client_is(self) -> None:
        will = Message("w", b"gone", 1, retain=True)
        peer = Peer(login=Login("c", "user", "pass", 30, 600, will))
        peer.session.connect(0.0)
        (packet,) = peer.sent()
        assert isinstance(packet, ConnectPacket)
        assert (packet.client_id, packet.username, packet.password) == ("c", "user", b"pass")
        assert (packet.keep_alive, packet.session_expiry_interval, packet.clean_start) == (30, 600, False)
        assert packet.will is not None
        assert (packet.will.topic, packet.will.payload, packet.will.qos) == ("w", b"gone", 1)
        assert packet.will.retain

    def test_a_session_that_is_to_end_begins_clean_but_outlives_the_network(self) -> None:
        peer = Peer()
        peer.session.connect(0.0)
        first = peer.sent()[0]
        peer.say(ConnAckPacket())
        peer.down()
        peer.session.connect(0.0)
        again = peer.sent()[0]
        assert (first.clean_start, again.clean_start) == (True, False)
        assert again.session_expiry_interval > 0
        peer.say(ConnAckPacket(session_present=True))
        peer.session.disconnect(with_will=False)
        goodbye = peer.sent()[-1]
        assert isinstance(goodbye, DisconnectPacket)
        assert goodbye.session_expiry_interval == 0

    @pytest.mark.parametrize(("with_will", "code"), [(False, 0), (True, 4)])
    def test_disconnect_says_what_becomes_of_the_will(self, with_will: bool, code: int) -> None:
        peer = Peer()
        peer.up()
        peer.session.disconnect(with_will=with_will)
        assert peer.sent()[0].reason_code == code

    def test_a_refusal_is_told_in_words(self) -> None:
        peer = Peer()
        peer.session.connect(0.0)
        peer.say(ConnAckPacket(reason_code=mqtt5.ConnAckReasonCode.BANNED, reason_str="until noon"))
        assert peer.events == [("refused", 0x8A, "banned (0x8A): until noon")]

    @pytest.mark.parametrize("answer", [b"\x20\x02\x00\x01", b"\x20\x02\x00\x00", b"\x20\x03\x00\x84\x00"])
    def test_a_broker_of_mqtt_3_is_recognised(self, answer: bytes) -> None:
        peer = Peer()
        peer.session.connect(0.0)
        peer.say(answer)
        assert peer.events == [("refused", 0x84, NO_MQTT5)]

    def test_an_end_is_told_in_words_of_codes_that_the_standard_has_elsewhere_too(self) -> None:
        peer = Peer()
        peer.up()
        peer.say(b"\xe0\x01\x8a")
        assert peer.events[-1] == ("disconnected", 0x8A, "banned (0x8A)")


class TestPublish:
    """Messages of ours."""

    def test_qos_0_is_done_at_once(self) -> None:
        peer = Peer()
        peer.up()
        assert peer.publish(b"a", 0).done
        assert payloads(peer.sent()) == [b"a"]

    def test_qos_0_waits_for_the_connection(self) -> None:
        peer = Peer()
        outcome = peer.publish(b"a", 0)
        assert not outcome.done
        assert payloads(peer.up()) == [b"a"]
        assert outcome.done
        assert outcome.error is None

    @given(st.lists(st.sampled_from([1, 2]), min_size=1, max_size=8), st.data())
    def test_acknowledgements_may_come_in_any_order(self, qos: list[int], data: st.DataObject) -> None:
        peer = Peer()
        peer.up()
        outcomes = [peer.publish(b"%d" % number, each) for number, each in enumerate(qos)]
        ids = [packet.packet_id for packet in peer.sent()]
        assert len(set(ids)) == len(ids)
        for number in data.draw(st.permutations(range(len(qos)))):
            if qos[number] == 1:
                peer.say(PubAckPacket(ids[number]))
            else:
                peer.say(PubRecPacket(ids[number]))
                assert not outcomes[number].done
                (release,) = peer.sent()
                assert isinstance(release, PubRelPacket)
                peer.say(PubCompPacket(ids[number]))
            assert outcomes[number].done
            qos[number] = 0
            assert [outcome.done for outcome in outcomes] == [not each for each in qos]

    @given(st.integers(1, 5), st.lists(st.sampled_from([0, 1, 2]), max_size=20))
    def test_the_brokers_receive_maximum_is_kept_and_so_is_the_order(self, room: int, qos: list[int]) -> None:
        peer = Peer()
        peer.up(receive_max=room)
        for number, each in enumerate(qos):
            peer.publish(b"%d" % number, each)
        unacknowledged: list[Any] = []
        arrived: list[bytes] = []
        while True:
            for packet in peer.sent():
                if isinstance(packet, PublishPacket):
                    arrived.append(packet.payload)
                    if int(packet.qos):
                        unacknowledged.append(packet)
            assert len(unacknowledged) <= room
            if not unacknowledged:
                break
            packet = unacknowledged.pop(0)
            if int(packet.qos) == 1:
                peer.say(PubAckPacket(packet.packet_id))
            else:
                peer.say(PubRecPacket(packet.packet_id), PubCompPacket(packet.packet_id))
        assert arrived == [b"%d" % number for number in range(len(qos))]

    def test_an_identifier_in_use_is_not_given_again(self) -> None:
        peer = Peer(first_id=65_533)
        peer.up()
        for number in range(4):
            peer.publish(b"%d" % number)
        assert [packet.packet_id for packet in peer.sent()] == [65_534, 65_535, 1, 2]
        peer.say(PubAckPacket(1))
        peer.session.outgoing._last_id = 65_533
        peer.publish(b"again")
        assert [packet.packet_id for packet in peer.sent()] == [1]

    def test_when_every_identifier_is_in_use_commands_wait(self) -> None:
        peer = Peer(bounds=Bounds(messages=65_535))
        peer.up()
        for number in range(65_535):
            peer.session.unsubscribe(Unsubscribe(f"{number}"))
        peer.sent()
        outcome = peer.session.unsubscribe(Unsubscribe("last"))
        assert peer.sent() == []
        peer.say(UnsubAckPacket(7, [UnsubAckReasonCode.SUCCESS]))
        assert [packet.packet_id for packet in peer.sent()] == [7]
        assert not outcome.done

    def test_a_refusal_is_told_in_words(self) -> None:
        peer = Peer()
        peer.up()
        first, second, third = (peer.publish(b"x", qos) for qos in (1, 2, 1))
        peer.say(
            PubAckPacket(1, reason_code=PubAckReasonCode.NOT_AUTHORIZED, reason_str="no"),
            b"\x50\x03\x00\x02\x97",
            b"\x40\x03\x00\x03\x95",  # packet too large: Mosquitto says it so, the standard has it elsewhere
        )
        assert str(first.error) == "the broker refused the message to 't': not authorized (0x87): no"
        assert str(second.error) == "the broker refused the message to 't': quota exceeded (0x97)"
        assert str(third.error) == "the broker refused the message to 't': packet too large (0x95)"

    def test_nobody_listening_is_no_refusal(self) -> None:
        peer = Peer()
        peer.up()
        outcome = peer.publish(b"x")
        peer.say(PubAckPacket(1, reason_code=PubAckReasonCode.NO_MATCHING_SUBSCRIBERS))
        assert outcome.done
        assert outcome.error is None

    @pytest.mark.parametrize(
        ("command", "words"),
        [
            (Publish("t", b"", 2), "the broker takes QoS 1 at most, not 2"),
            (Publish("t", b"", 0, retain=True), "the broker keeps no retained messages"),
            (Publish("t", b"x" * 100, 1), "the packet has 108 bytes, the broker takes 50 at most"),
            (Publish("t", b"x" * 100, 0), "the packet has 106 bytes, the broker takes 50 at most"),
            (Subscribe("a/#"), "the broker has no wildcard subscriptions"),
            (Subscribe("$share/g/a"), "the broker has no shared subscriptions"),
        ],
    )
    @pytest.mark.parametrize("early", [False, True], ids=["connected", "before"])
    def test_what_the_broker_told_that_it_lacks_is_not_sent(
        self, command: Publish | Subscribe, words: str, early: bool
    ) -> None:
        peer = Peer()
        terms = {
            "max_qos": QoS.AT_LEAST_ONCE,
            "retain_available": False,
            "max_packet_size": 50,
            "wildcard_subscription_available": False,
            "shared_subscription_available": False,
        }
        if not early:
            peer.up(**terms)
        session = peer.session
        issue: Any = session.publish if isinstance(command, Publish) else session.subscribe
        outcome = issue(command)
        sent = peer.up(**terms) if early else peer.sent()
        assert sent == []
        assert isinstance(outcome.error, DeniedError)
        assert words in str(outcome.error)

    def test_what_waits_can_be_dropped_oldest_first(self) -> None:
        peer = Peer()
        outcomes = [peer.publish(b"%d" % number, number % 2) for number in range(3)]
        oldest = peer.session.outgoing.drop_oldest()
        assert oldest is not None
        assert oldest.outcome is outcomes[0]
        assert payloads(peer.up()) == [b"1", b"2"]

    def test_relief_is_told_when_half_of_the_queue_is_free(self) -> None:
        peer = Peer(bounds=Bounds(messages=4))
        peer.up(receive_max=1)
        for number in range(5):
            peer.publish(b"%d" % number)
        peer.events.clear()
        peer.say(PubAckPacket(1))
        assert peer.events == []
        peer.say(PubAckPacket(2))
        assert peer.events == ["relieved"]

    def test_a_socket_that_takes_nothing_makes_messages_wait(self) -> None:
        peer = Peer()
        peer.up()
        peer.session.blocked()
        outcome = peer.publish(b"a", 0)
        assert (outcome.done, peer.sent()) == (False, [])
        peer.session.unblocked()
        assert payloads(peer.sent()) == [b"a"]
        assert outcome.done


class TestResumption:
    """What was on its way when the network connection was lost."""

    def test_the_broker_has_the_session_still(self) -> None:
        peer = Peer()
        peer.up()
        first, second, third = (peer.publish(b"%d" % qos, qos) for qos in (1, 2, 1))
        peer.sent()
        peer.say(PubRecPacket(2))
        peer.down()
        waiting = peer.publish(b"waiting", 0)
        resent = peer.up(session_present=True)
        assert [(type(packet), packet.packet_id) for packet in resent] == [
            (PublishPacket, 1),
            (PubRelPacket, 2),
            (PublishPacket, 3),
            (PublishPacket, None),
        ]
        assert [packet.duplicate for packet in resent if isinstance(packet, PublishPacket)] == [
            True,
            True,
            False,
        ]
        peer.say(PubAckPacket(1), PubCompPacket(2), PubAckPacket(3))
        assert all(outcome.done and not outcome.error for outcome in (first, second, third, waiting))

    def test_the_broker_has_forgotten_the_session(self) -> None:
        peer = Peer()
        peer.up()
        subscribed = peer.session.subscribe(Subscribe("down", 1))
        peer.say(SubAckPacket(1, [GRANTED]))
        assert subscribed.value == 1
        outcomes = [peer.publish(b"%d" % qos, qos) for qos in (1, 2)]
        peer.sent()
        peer.say(PubRecPacket(3))
        peer.down()
        subscribe, first, second = peer.up()
        assert isinstance(subscribe, SubscribePacket)
        assert subscribe.topic_filters[0].pattern == "down"
        assert (first.payload, first.duplicate) == (b"1", False)
        assert (second.payload, second.duplicate) == (b"2", False)
        peer.say(SubAckPacket(subscribe.packet_id, [GRANTED]))
        peer.say(PubAckPacket(first.packet_id), PubRecPacket(second.packet_id))
        peer.say(PubCompPacket(second.packet_id))
        assert [outcome.done for outcome in outcomes] == [True, True]

    def test_a_subscription_taken_back_is_not_restored(self) -> None:
        peer = Peer()
        peer.up()
        peer.session.subscribe(Subscribe("down", 1))
        peer.session.unsubscribe(Unsubscribe("down"))
        peer.say(SubAckPacket(1, [GRANTED]), UnsubAckPacket(2, [UnsubAckReasonCode.SUCCESS]))
        peer.down()
        assert peer.up() == []

    def test_subscriptions_on_their_way_are_sent_again(self) -> None:
        peer = Peer()
        peer.up()
        outcome = peer.session.subscribe(Subscribe("down", 1))
        peer.down()
        (subscribe,) = peer.up(session_present=True)
        peer.say(SubAckPacket(subscribe.packet_id, [SubAckReasonCode.NOT_AUTHORIZED], reason_str="not you"))
        assert str(outcome.error) == "the broker refused 'down': not authorized (0x87): not you"

    def test_another_session_inherits_what_is_not_safe(self) -> None:
        older, newer = Peer(), Peer()
        older.up()
        outcomes = [older.publish(b"%d" % number) for number in range(2)]
        older.down()
        outcomes.append(older.publish(b"2"))
        waits = newer.publish(b"3")
        newer.session.outgoing.append(older.session.outgoing.pending(), first=True)
        assert payloads(newer.up()) == [b"0", b"1", b"2", b"3"]
        newer.say(*(PubAckPacket(number) for number in range(1, 5)))
        assert all(outcome.done for outcome in (*outcomes, waits))
        assert older.session.unsafe == 0


class TestWrongPackets:
    """A packet that the broker ends the connection for isn't sent for ever."""

    def test_the_culprit_is_found_and_the_others_arrive(self) -> None:
        peer = Peer()
        outcomes = [peer.publish(payload) for payload in (b"good", b"bad", b"fine")]
        arrived: list[bytes] = []
        packets = peer.up()
        for _ in range(20):
            bad = [packet for packet in packets if packet.payload == b"bad"]
            if bad:
                peer.say(b"\xe0\x01\x99")
                peer.down()
                packets = peer.up(session_present=True)
                continue
            if not packets:
                break
            for packet in packets:
                arrived.append(packet.payload)
                peer.say(PubAckPacket(packet.packet_id))
            packets = peer.sent()
        assert arrived == [b"good", b"fine"]
        assert [outcome.error is None for outcome in outcomes] == [True, False, True]
        assert "payload format invalid (0x99)" in str(outcomes[1].error)
        for number in range(3):  # and afterwards there is as much room as ever
            peer.publish(b"%d" % number)
        assert len(peer.sent()) == 3


class TestDeliveries:
    """Messages of the broker."""

    def test_qos_1_is_acknowledged_when_it_is_handled(self) -> None:
        peer = Peer()
        peer.up()
        peer.say(incoming(b"a", 9))
        assert peer.messages == [Message("t", b"a", 1)]
        assert peer.sent() == []
        taken = peer.takers[0]
        assert taken is not None
        taken()
        (ack,) = peer.sent()
        assert isinstance(ack, PubAckPacket)
        assert ack.packet_id == 9

    def test_qos_2_is_delivered_once(self) -> None:
        peer = Peer()
        peer.up()
        peer.say(incoming(b"a", 9, 2))
        taken = peer.takers[0]
        assert taken is not None
        taken()
        assert isinstance(peer.sent()[0], PubRecPacket)
        peer.down()
        peer.up(session_present=True)
        peer.say(incoming(b"a", 9, 2, duplicate=True))
        assert isinstance(peer.sent()[0], PubRecPacket)
        peer.say(PubRelPacket(9))
        assert isinstance(peer.sent()[0], PubCompPacket)
        assert len(peer.messages) == 1
        peer.say(incoming(b"b", 9, 2))
        assert len(peer.messages) == 2

    def test_handled_while_the_broker_is_away_it_is_acknowledged_when_it_comes_again(self) -> None:
        peer = Peer()
        peer.up()
        peer.say(incoming(b"a", 9))
        peer.down()
        taken = peer.takers[0]
        assert taken is not None
        taken()
        peer.up(session_present=True)
        peer.say(incoming(b"a", 9, duplicate=True))
        assert [packet.packet_id for packet in peer.sent()] == [9]
        assert len(peer.messages) == 1

    def test_handled_too_late_for_its_session_it_is_not_acknowledged(self) -> None:
        peer = Peer()
        peer.up()
        peer.say(incoming(b"a", 9))
        peer.down()
        peer.up()
        peer.say(incoming(b"b", 9))
        assert len(peer.messages) == 2
        old = peer.takers[0]
        assert old is not None
        old()
        assert peer.sent() == []

    def test_a_broker_that_exceeds_our_receive_maximum_by_far_breaks_the_protocol(self) -> None:
        peer = Peer(bounds=Bounds(receive_max=2, excess=1))
        peer.up()
        peer.say(incoming(b"a", 1), incoming(b"b", 2), incoming(b"c", 3))
        with pytest.raises(ProtocolError, match=r"3 of its messages are unacknowledged.*2 are allowed"):
            peer.say(incoming(b"d", 4))

    @given(st.lists(st.integers(1, 80), max_size=12))
    def test_packets_may_be_cut_anywhere(self, cuts: list[int]) -> None:
        data = b"".join(
            packet.write()
            for packet in (
                ConnAckPacket(receive_max=7),
                incoming(b"a" * 200, 1, subscription_ids=[3]),
                PubAckPacket(1, reason_str="words"),
                incoming(b"b", None, 0, retain=True),
                SubAckPacket(2, [GRANTED]),
                incoming(b"c", 2, 2),
                DisconnectPacket(reason_code=mqtt5.DisconnectReasonCode.SERVER_BUSY),
            )
        )
        whole, cut = Peer(), Peer()
        for peer in (whole, cut):
            peer.session.publish(Publish("t", b"", 1))
            peer.session.subscribe(Subscribe("t"))
            peer.session.connect(0.0)
        whole.say(data)
        for size in cuts:
            cut.session.receive(data[:size])
            data = data[size:]
        cut.session.receive(data)
        assert cut.events == whole.events
        assert len(whole.messages) == 3
        assert whole.events[-1] == ("disconnected", 0x89, "server busy (0x89)")


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # the codec panics at bad UTF-8
class TestProtocolErrors:
    """A broker's bad input is told from ours, and costs the network connection at most."""

    @given(st.binary(max_size=60))
    @settings(max_examples=settings().max_examples * 3)
    def test_bytes_at_random(self, data: bytes) -> None:
        peer = Peer()
        peer.up()
        try:
            peer.session.receive(data)
        except ProtocolError as error:
            peer.session.broken(error)
            assert isinstance(peer.sent()[-1], DisconnectPacket)

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"\xd0\xff\xff\xff\xff\x01", "without an end"),
            (b"\x30\x80\x80\x80\x08", "limit is 1048576"),
            (b"\x30\x05\x00\x01\x80\x00\x00", "not a packet"),
            (b"\xc0\x00", "which is a client's"),
            (ConnAckPacket().write(), "second CONNACK"),
            (b"\x40\x01\x00", "without an identifier"),
        ],
        ids=["endless length", "too long", "no UTF-8", "PINGREQ", "CONNACK", "short"],
    )
    def test_what_is_no_packet(self, data: bytes, words: str) -> None:
        peer = Peer()
        peer.up()
        with pytest.raises(ProtocolError, match=words):
            peer.session.receive(data)

    def test_the_first_packet_has_to_be_a_connack(self) -> None:
        peer = Peer()
        peer.session.connect(0.0)
        with pytest.raises(ProtocolError, match="not CONNACK"):
            peer.say(incoming(b"", None, 0))


class TestTime:
    """Keepalive and deadlines; time is an argument."""

    def test_no_connack(self) -> None:
        peer = Peer()
        peer.session.connect(5.0)
        assert peer.session.tick(14.0) == ""
        assert "no CONNACK within 10 s" in peer.session.tick(15.0)

    def test_silence_is_broken_by_pings_and_no_answer_is_noticed(self) -> None:
        peer = Peer()
        peer.up()
        assert [peer.session.tick(float(now)) for now in (1, 30)] == ["", ""]
        assert peer.sent() == []
        peer.session.tick(50.0)
        assert peer.session.take() == b"\xc0\x00"
        peer.say(b"\xd0\x00")
        assert peer.session.tick(60.0) == ""
        peer.session.tick(110.0)
        assert peer.session.take() == b"\xc0\x00"
        assert peer.session.tick(119.0) == ""
        assert "no answer to a ping" in peer.session.tick(120.0)

    def test_a_broker_that_only_listens_is_pinged_too(self) -> None:
        peer = Peer()
        peer.up()
        for now in range(1, 60):
            peer.publish(b"", 0)
            assert peer.session.tick(float(now)) == ""
            if b"\xc0\x00" in peer.session.take():
                break
        else:
            raise AssertionError("it was never pinged")

    def test_an_acknowledgement_that_is_due_is_asked_after_sooner(self) -> None:
        peer = Peer()
        peer.up()
        peer.publish(b"", 1)
        peer.sent()
        assert [peer.session.tick(now) for now in (1.0, 10.9)] == ["", ""]
        assert peer.session.take() == b""
        peer.session.tick(11.0)
        assert peer.session.take() == b"\xc0\x00"

    def test_the_brokers_keepalive_wins(self) -> None:
        peer = Peer(login=Login("c", keepalive=300))
        peer.up(server_keep_alive=10)
        peer.session.tick(1.0)
        peer.session.tick(9.0)
        assert peer.session.take() == b"\xc0\x00"


class Network:
    """A broker that keeps its word, and a network that is lost now and then, as a plan of choices says."""

    def __init__(self, receive_max: int) -> None:
        self.peer = Peer(bounds=Bounds(messages=8))
        self.receive_max = receive_max
        self.arrived: list[bytes] = []
        self.unanswered: list[Any] = []
        self.received: set[int] = set()  # identifiers of QoS 2 that aren't released
        self.outcomes: list[Any] = []

    def look(self) -> None:
        for packet in self.peer.sent():
            if isinstance(packet, PublishPacket):
                if int(packet.qos) < 2 or packet.packet_id not in self.received:
                    self.arrived.append(packet.payload)
                if int(packet.qos) == 2:
                    assert packet.packet_id is not None
                    self.received.add(packet.packet_id)
                if int(packet.qos):
                    self.unanswered.append(packet)
            elif isinstance(packet, PubRelPacket):
                self.received.discard(packet.packet_id)
                self.unanswered.append(packet)
        assert len({packet.packet_id for packet in self.unanswered}) <= self.receive_max

    def answer(self, number: int) -> None:
        packet = self.unanswered.pop(number % len(self.unanswered))
        if isinstance(packet, PubRelPacket):
            self.peer.say(PubCompPacket(packet.packet_id))
        else:
            self.peer.say((PubAckPacket if int(packet.qos) == 1 else PubRecPacket)(packet.packet_id))
        self.look()

    def reconnect(self, *, present: bool) -> None:
        self.peer.down()
        self.unanswered.clear()
        if not present:
            self.received.clear()
        self.peer.session.connect(0.0)
        self.peer.sent()
        self.peer.say(ConnAckPacket(session_present=present, receive_max=self.receive_max))
        self.look()

    def publish(self, qos: int) -> None:
        self.outcomes.append(self.peer.publish(b"%d" % len(self.outcomes), qos))
        self.look()


PLANS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.sampled_from([1, 2])),
        st.tuples(st.just("answer"), st.integers(0, 9)),
        st.tuples(st.just("down"), st.just(0)),
        st.tuples(st.just("up"), st.booleans()),
    ),
    max_size=60,
)


@given(st.integers(1, 4), PLANS, st.booleans())
@settings(max_examples=settings().max_examples * 3)
def test_whatever_the_network_does_messages_arrive(
    receive_max: int, plan: list[tuple[str, int]], forgetful: bool
) -> None:
    """At least once; exactly once and in order, where the broker keeps the session."""
    network = Network(receive_max)
    up = False
    for what, number in plan:
        if what == "publish":
            network.publish(number)
        elif what == "answer" and up and network.unanswered:
            network.answer(number)
        elif what == "down" and up:
            network.peer.down()
            up = False
        elif what == "up" and not up:
            network.reconnect(present=bool(network.peer.events) and not (forgetful and number))
            up = True
    network.reconnect(present=bool(network.peer.events))
    while network.unanswered:
        network.answer(0)
    assert all(outcome.done and outcome.error is None for outcome in network.outcomes)
    wanted = [b"%d" % number for number in range(len(network.outcomes))]
    assert set(network.arrived) == set(wanted)
    first = list(dict.fromkeys(network.arrived))
    assert first == wanted
    assert network.peer.session.unsafe == 0
