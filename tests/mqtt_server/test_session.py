"""What MQTT promises a client, without sockets: packets in, packets out, time as an argument."""

from __future__ import annotations

from typing import Any

import pytest

from exproto_app.commands import DONE, Outcome
from exproto_app.hosts.mqtt_server.bounds import Bounds
from exproto_app.hosts.mqtt_server.broker import FEW, MqttBroker
from exproto_app.hosts.mqtt_server.packets import (
    V4,
    V5,
    Ack,
    ConnAck,
    Connect,
    Disconnect,
    Kind,
    Packet,
    Ping,
    Publish,
    SubAck,
    Subscribe,
    Subscription,
    UnsubAck,
    Unsubscribe,
    Will,
)
from exproto_app.hosts.mqtt_server.properties import (
    ASSIGNED_CLIENTID,
    CONTENT_TYPE,
    CORRELATION_DATA,
    EXPIRY,
    MAXIMUM_PACKET,
    RECEIVE_MAXIMUM,
    RESPONSE_TOPIC,
    SESSION_EXPIRY,
    SUBSCRIPTION_IDS_AVAILABLE,
    USER,
    UTF8,
    WILL_DELAY,
)
from exproto_app.hosts.mqtt_server.reasons import Reason
from exproto_app.hub import MemoryHub

from .desk import Desk, Peer, no_waiter

versions = pytest.mark.parametrize("version", [V4, V5])
KEPT: dict[int, dict[str, Any]] = {
    V4: {"clean_start": False},
    V5: {"clean_start": False, "properties": {SESSION_EXPIRY: 600}},
}


def payloads(packets: list[Packet]) -> list[bytes]:
    return [packet.payload for packet in packets if isinstance(packet, Publish)]


def acknowledge(peer: Peer, packets: list[Packet]) -> None:
    for packet in packets:
        if isinstance(packet, Publish) and packet.qos:
            peer.send(Ack(Kind.PUBACK, packet.packet_id))


def test_a_client_of_mqtt_5_is_told_what_it_may_do() -> None:
    desk = Desk()
    peer = desk.peer()
    peer.send(Connect("", properties={SESSION_EXPIRY: 0xFFFFFFFF}))
    (answer,) = peer.got()
    assert isinstance(answer, ConnAck)
    properties = dict(answer.properties)
    assert properties.pop(ASSIGNED_CLIENTID) in desk.broker.sessions
    assert properties == {
        RECEIVE_MAXIMUM: 1_024,
        MAXIMUM_PACKET: 1_048_576,
        SUBSCRIPTION_IDS_AVAILABLE: 0,
        SESSION_EXPIRY: 86_400,
    }


@versions
def test_qos_2_passes_once_in_both_directions_however_often_it_is_sent(version: int) -> None:
    desk = Desk()
    source, sink = desk.connect("source", version), desk.connect("sink", version)
    sink.subscribe("t", 2)
    message = Publish("t", b"x", 2, packet_id=7)
    source.send(message)
    message.duplicate = True
    source.send(message)
    assert source.got() == [Ack(Kind.PUBREC, 7)] * 2
    source.send(Ack(Kind.PUBREL, 7), Ack(Kind.PUBREL, 7))
    code = Reason.UNKNOWN_ID if version == V5 else 0
    assert source.got() == [Ack(Kind.PUBCOMP, 7), Ack(Kind.PUBCOMP, 7, code)]
    assert sink.got() == [Publish("t", b"x", 2, packet_id=1)]
    sink.send(Ack(Kind.PUBREC, 1), Ack(Kind.PUBREC, 1))
    assert sink.got() == [Ack(Kind.PUBREL, 1)] * 2
    sink.send(Ack(Kind.PUBCOMP, 1))
    assert sink.connection.session is not None
    assert sink.connection.session.in_flight == 0


@versions
def test_a_kept_session_goes_on_where_it_was(version: int) -> None:
    desk = Desk()
    sink = desk.connect("sink", version, **KEPT[version])
    sink.subscribe("t", 2)
    desk.publish("t", b"unacknowledged", 1)
    desk.publish("t", b"half", 2)
    sink.got()
    sink.send(Ack(Kind.PUBREC, 2))
    sink.hang_up()
    desk.publish("t", b"while away", 1)
    desk.publish("t", b"QoS 0 isn't kept", 0)
    again = desk.peer(version)
    again.send(Connect("sink", version, **KEPT[version]))
    answer, *rest = again.got()
    assert isinstance(answer, ConnAck)
    assert answer.session_present
    assert rest == [
        Publish("t", b"unacknowledged", 1, duplicate=True, packet_id=1),
        Ack(Kind.PUBREL, 2),
        Publish("t", b"while away", 1, packet_id=3),
    ]


def test_a_clean_start_an_expiry_and_a_goodbye_end_a_session() -> None:
    desk = Desk()
    for ending in ("clean", "expired", "goodbye"):
        sink = desk.connect("sink", **KEPT[V5])
        sink.subscribe("t", 1)
        if ending == "goodbye":
            sink.send(Disconnect(0, {SESSION_EXPIRY: 0}))
        else:
            sink.hang_up()
        if ending == "expired":
            desk.pass_time(601)
        assert (ending == "clean") == ("sink" in desk.broker.sessions)
        fields = {**KEPT[V5], "clean_start": ending == "clean"}
        again = desk.connect("sink", **fields)
        assert not again.present
        desk.publish("t", b"x", 1)
        assert again.got() == []
        again.send(Disconnect(0, {SESSION_EXPIRY: 0}))
    assert desk.broker.budget.used == 0


def test_absent_sessions_make_room_the_oldest_first() -> None:
    desk = Desk(sessions=2)
    for name in ("a", "b", "c"):
        desk.connect(name, **KEPT[V5]).hang_up()
    assert list(desk.broker.sessions) == ["b", "c"]
    desk.connect("b", **KEPT[V5])
    desk.connect("d")
    peer = desk.peer()
    peer.send(Connect("e"))
    assert peer.got() == [ConnAck(Reason.QUOTA)]


@pytest.mark.parametrize(
    ("way", "published"),
    [("hang up", True), ("goodbye", False), ("with will", True), ("error", True), ("taken over", True)],
)
def test_a_will_is_published_unless_the_client_says_goodbye(way: str, published: bool) -> None:
    desk = Desk()
    watcher = desk.connect("watcher")
    watcher.subscribe("#")
    client = desk.connect("client", will=Will("gone", b"will", 1, retain=True))
    if way == "hang up":
        client.hang_up()
    elif way == "taken over":
        desk.connect("client")
        assert client.got() == [Disconnect(Reason.TAKEN_OVER)]
        assert client.closed
    elif way == "error":
        client.feed(b"\x00\x00")
    else:
        client.send(Disconnect(Reason.WITH_WILL if way == "with will" else 0))
    assert payloads(watcher.got()) == [b"will"] * published
    kept = desk.hub.retained("gone")
    assert (kept is not None) == published


def test_a_will_waits_and_is_forgotten_when_its_client_comes_back() -> None:
    desk = Desk()
    watcher = desk.connect("watcher")
    watcher.subscribe("#")
    fields = {**KEPT[V5], "will": Will("gone", b"will", properties={WILL_DELAY: 30})}
    desk.connect("client", **fields).hang_up()
    desk.pass_time(29)
    back = desk.connect("client", **fields)
    desk.pass_time(30)
    assert watcher.got() == []
    desk.connect("client", **fields)  # taken over, by one that goes on with the session
    assert back.closed
    assert watcher.got() == []
    desk.connect("client", clean_start=True, will=None)
    assert payloads(watcher.got()) == [b"will"]


def test_a_will_that_waits_is_published_when_its_time_or_its_session_is_over() -> None:
    desk = Desk()
    watcher = desk.connect("watcher")
    watcher.subscribe("#")
    for expiry, delay in ((600, 30), (20, 600)):
        will = Will("gone", b"will", properties={WILL_DELAY: delay})
        client = desk.connect("client", properties={SESSION_EXPIRY: expiry}, will=will)
        client.hang_up()
        desk.pass_time(19)
        assert watcher.got() == []
        desk.pass_time(12)
        assert payloads(watcher.got()) == [b"will"]


@versions
def test_options_of_subscriptions_and_codes_of_filters(version: int) -> None:
    desk = Desk(subscriptions=3)
    peer = desk.connect("peer", version)
    wrong = ("a/#/b", "", "$share/g", "x/" * 200)
    filters = [Subscription(topic) for topic in (*wrong, "a", "b", "c", "d")]
    peer.send(Subscribe(9, filters))
    invalid, quota = (Reason.FILTER_INVALID, Reason.QUOTA) if version == V5 else (0x80, 0x80)
    assert peer.got() == [SubAck(9, [*[invalid] * 4, 0, 0, 0, quota])]
    peer.send(Unsubscribe(10, ["a", "nothing"]))
    assert peer.got() == [UnsubAck(10, [0, Reason.NO_SUBSCRIPTION] if version == V5 else [])]
    peer.send(Ping(Kind.PINGREQ))
    assert peer.got() == [Ping(Kind.PINGRESP)]


def test_no_local_keeps_a_clients_own_messages_from_it() -> None:
    desk = Desk()
    peer, other = desk.connect("peer"), desk.connect("other")
    peer.subscribe("t", no_local=True)
    other.send(Publish("t", b"theirs"))
    peer.send(Publish("t", b"mine"))
    assert payloads(peer.got()) == [b"theirs"]
    peer.subscribe("#")
    peer.send(Publish("t", b"mine"))
    assert payloads(peer.got()) == [b"mine"]
    peer.send(Subscribe(1, [Subscription("$share/g/t", no_local=True)]))
    assert peer.got() == [Disconnect(Reason.PROTOCOL_ERROR)]


def test_retained_messages_come_as_the_subscription_wants_them() -> None:
    desk = Desk()
    desk.publish("t", b"kept", 2, retain=True)
    peer = desk.connect("peer")
    for handling, expected in ((2, False), (1, False), (0, True), (1, False)):
        peer.send(Subscribe(1, [Subscription("t", 1, handling=handling)]))
        assert payloads(peer.got()) == [b"kept"] * expected
    other = desk.connect("other")
    other.send(Subscribe(1, [Subscription("t", 1, handling=1)]))
    assert other.got() == [SubAck(1, [1]), Publish("t", b"kept", 1, retain=True, packet_id=1)]


def test_a_retained_message_that_is_replaced_meanwhile_comes_as_it_is_now() -> None:
    desk = Desk(write=64)
    for number in range(50):
        desk.publish(f"t/{number}", b"old", retain=True)
    peer = desk.connect("peer")
    peer.send(Subscribe(1, [Subscription("#")]))
    assert peer.read(6) == bytes.fromhex("90 04 00 01 00 00")  # some of them wait behind it
    for number in range(50):
        desk.publish(f"t/{number}", b"new", retain=True)
    seen: dict[str, bytes] = {}
    data = peer.got()
    for packet in data:
        if isinstance(packet, Publish):
            seen[packet.topic] = packet.payload
    assert set(seen.values()) == {b"new"}


def test_what_a_client_can_take_is_kept_to() -> None:
    desk = Desk()
    peer = desk.connect("peer", properties={RECEIVE_MAXIMUM: 2, MAXIMUM_PACKET: 30})
    peer.subscribe("t", 1)
    for number in range(4):
        desk.publish("t", b"%d" % number, 1)
    desk.publish("t", bytes(30), 1)
    first = peer.got()
    assert payloads(first) == [b"0", b"1"]
    acknowledge(peer, first)
    second = peer.got()
    assert payloads(second) == [b"2", b"3"]
    acknowledge(peer, second)
    assert peer.got() == []
    assert desk.stats["door_messages_dropped"] == 1


def test_publishers_wait_for_a_client_that_has_much_to_read_and_nobody_else_does() -> None:
    desk = Desk(in_flight=2, soft=1_000, queue=4_000)
    slow, source = desk.connect("slow", V4), desk.connect("source", V4)
    slow.subscribe("t", 1)
    outcomes = [desk.publish("t", bytes(100), 1) for _ in range(10)]
    assert outcomes[0] is DONE
    waiting = [outcome for outcome in outcomes if not outcome.done]
    assert waiting == outcomes[-len(waiting) :]
    assert waiting
    source.send(Publish("t", b"", 1, packet_id=1), Publish("other", b"", 1, packet_id=2))
    assert source.got() == []  # acknowledged in the order in which they came
    assert desk.publish("t", b"", 0) is DONE
    while packets := slow.got():
        acknowledge(slow, packets)
    assert all(outcome.done and outcome.error is None for outcome in outcomes)
    assert source.got() == [Ack(Kind.PUBACK, 1), Ack(Kind.PUBACK, 2)]
    assert desk.stats["door_messages_dropped"] == 0


def test_what_is_awaited_waits_for_room_behind_a_full_queue() -> None:
    desk = Desk(in_flight=2, soft=1_300, queue=2_800, late=5_000)
    slow = desk.connect("slow", V4)
    slow.subscribe("t", 1)
    outcomes = [desk.publish("t", b"%3d" % number, 1) for number in range(20)]
    for outcome in outcomes:
        outcome.awaited = True
    full = desk.publish("t", b"too much", 1)
    assert str(full.error) == (
        "mqtt:'slow' can't take it: 2736 bytes wait for it, limits are 2800 and 50331648 in all; "
        "4994 bytes wait for room, limit is 5000"
    )
    seen: list[bytes] = []
    while packets := slow.got():
        seen += payloads(packets)
        acknowledge(slow, packets)
    assert seen == [b"%3d" % number for number in range(20)]
    assert all(outcome.done and outcome.error is None for outcome in outcomes)
    assert desk.broker.late.used == 0
    assert desk.stats["door_messages_dropped"] == 1


def test_of_what_waits_for_room_the_oldest_goes_that_nobody_awaits() -> None:
    desk = Desk(in_flight=2, soft=1_300, queue=2_800, late=1_000)
    slow = desk.connect("slow", V4)
    slow.subscribe("t", 1)
    outcomes = [desk.publish("t", b"%3d" % number, 1) for number in range(13)]
    assert [number for number, outcome in enumerate(outcomes) if outcome.error is not None] == [9, 10]
    seen: list[bytes] = []
    while packets := slow.got():
        seen += payloads(packets)
        acknowledge(slow, packets)
    assert seen == [b"%3d" % number for number in range(13) if number not in (9, 10)]
    assert desk.stats["door_messages_dropped"] == 2


@pytest.mark.parametrize("kept", [False, True])
def test_nobody_waits_for_room_at_a_client_that_has_gone(kept: bool) -> None:
    desk = Desk(in_flight=2, soft=1_300, queue=2_800, late=5_000)
    slow = desk.connect("slow", **(KEPT[V5] if kept else {}))
    slow.subscribe("t", 1)
    outcomes = [desk.publish("t", b"%3d" % number, 1) for number in range(20)]
    slow.hang_up()
    assert all(outcome.done for outcome in outcomes)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    assert len(failed) == (11 if kept else 0), "a session that is kept has no room for these"
    assert desk.broker.late.used == 0


@versions
def test_a_client_that_publishes_to_itself_makes_its_own_room(version: int) -> None:
    desk = Desk(in_flight=2, soft=500, receive_max=100)
    peer = desk.connect("peer", version)
    peer.subscribe("t", 2)
    peer.send(*(Publish("t", b"%d" % number, 1, packet_id=number) for number in range(1, 51)))
    seen: list[bytes] = []
    acknowledged: list[int] = []
    while some := peer.got():
        seen += payloads(some)
        acknowledge(peer, some)
        acknowledged += [packet.packet_id for packet in some if isinstance(packet, Ack)]
    assert seen == [b"%d" % number for number in range(1, 51)]
    assert acknowledged == list(range(1, 51))


def test_who_sends_without_end_is_acknowledged_without_waiting() -> None:
    desk = Desk(in_flight=2, soft=500, receive_max=5)
    slow, source = desk.connect("slow", V4), desk.connect("source", V4)
    slow.subscribe("t", 1)
    source.send(*(Publish("t", b"x", 1, packet_id=number) for number in range(1, 51)))
    assert source.got() == [Ack(Kind.PUBACK, number) for number in range(1, 46)]


def test_publishers_wait_for_the_slowest_of_several_clients() -> None:
    desk = Desk(in_flight=1, soft=300)
    peers = [desk.connect(f"slow {number}", V4) for number in range(2)]
    for peer in peers:
        peer.subscribe("t", 1)
    outcomes = [desk.publish("t", bytes(100), 1) for _ in range(5)]
    assert not outcomes[-1].done
    while packets := peers[0].got():
        acknowledge(peers[0], packets)
    assert not outcomes[-1].done
    peers[1].hang_up()
    assert outcomes[-1].done
    assert outcomes[-1].error is None


def test_nobody_waits_for_a_client_that_has_gone() -> None:
    desk = Desk(in_flight=1, soft=300)
    slow = desk.connect("slow", **KEPT[V5])
    slow.subscribe("t", 1)
    outcomes = [desk.publish("t", bytes(100), 1) for _ in range(5)]
    assert not outcomes[-1].done
    slow.hang_up()
    assert all(outcome.done and outcome.error is None for outcome in outcomes)
    assert desk.publish("t", b"", 1) is DONE


def test_shared_subscriptions_go_to_those_who_are_there() -> None:
    desk = Desk()
    away, there = desk.connect("away", **KEPT[V5]), desk.connect("there", **KEPT[V5])
    for peer in (away, there):
        peer.subscribe("$share/g/jobs", 1)
    away.hang_up()
    for number in range(3):
        desk.publish("jobs", b"%d" % number, 1)
    assert payloads(there.got()) == [b"0", b"1", b"2"]
    there.hang_up()
    desk.publish("jobs", b"3", 1)
    back = [desk.peer(), desk.peer()]
    for peer, name in zip(back, ("away", "there"), strict=True):
        peer.send(Connect(name, **KEPT[V5]))
    assert sorted(payloads(back[0].got()) + payloads(back[1].got())) == [b"0", b"1", b"2", b"3"]


def test_silence_and_a_slow_login_end_a_connection() -> None:
    desk = Desk(connect_time=10.0)
    silent, mute = desk.connect("silent", keepalive=10), desk.peer()
    desk.pass_time(11, mute)
    assert mute.closed
    assert mute.got() == []
    silent.send(Ping(Kind.PINGREQ))
    desk.pass_time(15, silent)
    assert not silent.closed
    desk.pass_time(16, silent)
    assert silent.got()[-1] == Disconnect(Reason.SILENT)
    assert silent.closed


PROPERTIES = {
    UTF8: 1,
    EXPIRY: 60,
    CONTENT_TYPE: "text/plain",
    RESPONSE_TOPIC: "answers",
    CORRELATION_DATA: b"\x00\x01",
    USER: [("a", "1"), ("a", "2"), ("b", "")],
}


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_properties_of_a_message_pass_and_mqtt_3_gets_it_without(qos: int) -> None:
    desk = Desk()
    new, old, source = desk.connect("new"), desk.connect("old", 4), desk.connect("source")
    for peer in (new, old):
        peer.subscribe("t", qos)
    number = 1 if qos else 0
    source.send(Publish("t", b"x", qos, packet_id=number, properties=PROPERTIES))
    assert new.got() == [Publish("t", b"x", qos, packet_id=number, properties=PROPERTIES)]
    assert old.got() == [Publish("t", b"x", qos, packet_id=number)]


def test_a_message_that_expires_while_its_client_is_away_is_not_sent_and_others_tell_what_is_left() -> None:
    desk = Desk()
    peer = desk.connect("peer", clean_start=False, properties={SESSION_EXPIRY: 600})
    peer.subscribe("t", 1)
    peer.hang_up()
    source = desk.connect("source")
    for number, seconds in enumerate((10, 60), 1):
        message = Publish("t", b"%d" % seconds, 1, packet_id=number, properties={EXPIRY: seconds})
        source.send(message)
    desk.pass_time(20)
    back = desk.peer()
    back.send(Connect("peer", V5, **KEPT[V5]))
    assert back.got()[1:] == [Publish("t", b"60", 1, packet_id=1, properties={EXPIRY: 40})]
    assert desk.stats["door_messages_expired"] == 1


def test_a_full_queue_makes_room_by_what_has_expired() -> None:
    desk = Desk(queue=100_000)
    peer = desk.connect("peer", clean_start=False, properties={SESSION_EXPIRY: 600})
    peer.subscribe("t", 1)
    peer.hang_up()
    source = desk.connect("source")
    source.send(Publish("t", bytes(60_000), 1, packet_id=1, properties={EXPIRY: 10}))
    source.send(Publish("t", bytes(60_001), 1, packet_id=2))
    desk.pass_time(20)
    source.send(Publish("t", bytes(60_002), 1, packet_id=3))
    back = desk.peer()
    back.send(Connect("peer", V5, **KEPT[V5]))
    assert [len(packet.payload) for packet in back.got() if isinstance(packet, Publish)] == [60_002]
    back.hang_up()
    source.hang_up()
    desk.pass_time(1_000)
    assert desk.broker.budget.used == 0


def test_a_will_keeps_its_properties() -> None:
    desk = Desk()
    other = desk.connect("other")
    other.subscribe("w", 1)
    peer = desk.connect("peer", will=Will("w", b"gone", 1, properties={**PROPERTIES, WILL_DELAY: 0}))
    peer.hang_up()
    assert other.got() == [Publish("w", b"gone", 1, packet_id=1, properties=PROPERTIES)]


def test_a_response_topic_with_a_wildcard_ends_its_client() -> None:
    peer = Desk().connect("peer")
    peer.send(Publish("t", b"x", properties={RESPONSE_TOPIC: "a/+"}))
    assert peer.closed


def test_many_publishers_that_waited_go_on_in_slices_and_in_order() -> None:
    """Each has devices answered: thousands at once would hold everybody up."""
    asked: list[str] = []
    broker = MqttBroker(
        MemoryHub(), Bounds(), waiter=no_waiter, count=print, devices={}, soon=lambda: asked.append("soon")
    )
    outcomes: list[Outcome[None]] = [Outcome(no_waiter) for _ in range(3 * FEW)]
    broker.settle(outcomes[:FEW])
    assert all(outcome.done for outcome in outcomes[:FEW])
    broker.settle(outcomes[FEW:])
    assert asked == ["soon"]
    overdue = iter([False, True])
    assert broker.settle_some(lambda: next(overdue))
    assert [outcome.done for outcome in outcomes] == [True] * 2 * FEW + [False] * FEW
    assert not broker.settle_some(lambda: False)
    assert all(outcome.done for outcome in outcomes)
