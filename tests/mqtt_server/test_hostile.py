"""MQTT clients that attack or are broken: what they cost is bounded, and theirs alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exproto_app import ClientInfo
from exproto_app.commands import DONE
from exproto_app.errors import UnavailableError
from exproto_app.hosts.mqtt_server import bounds
from exproto_app.hosts.mqtt_server.codec import encode
from exproto_app.hosts.mqtt_server.packets import (
    V4,
    V5,
    Ack,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Kind,
    Packet,
    Publish,
    SubAck,
    Subscribe,
    Subscription,
    Will,
)
from exproto_app.hosts.mqtt_server.properties import (
    AUTHENTICATION_METHOD,
    MAXIMUM_PACKET,
    RECEIVE_MAXIMUM,
    SESSION_EXPIRY,
    SUBSCRIPTION_ID,
    TOPIC_ALIAS,
    USER,
    WILL_DELAY,
)
from exproto_app.hosts.mqtt_server.reasons import Reason

from .desk import Desk, Peer
from .site import Site, at_a_site
from .test_packets import packets

MIB = 1_048_576
versions = pytest.mark.parametrize("version", [V4, V5])


def topics(packets: list[Packet]) -> list[str]:
    return [packet.topic for packet in packets if isinstance(packet, Publish)]


# --- work in slices


def test_a_thousand_filters_bring_each_retained_message_once_for_each_subscription() -> None:
    desk = Desk()
    for number in range(1_000):
        desk.publish(f"kept/{number}", b"x", retain=True)
    peer = desk.connect("peer")
    peer.send(Subscribe(1, [Subscription("#")] * 1_000))
    answer, *kept = peer.got()
    assert answer == SubAck(1, [0] * 1_000)
    assert Counter(topics(kept)) == {f"kept/{number}": 1 for number in range(1_000)}
    peer.send(Subscribe(2, [Subscription("+/1"), Subscription("kept/+"), Subscription("kept/1")]))
    _, *kept = peer.got()
    assert Counter(topics(kept))["kept/1"] == 3
    assert len(topics(kept)) == 1_002


def test_retained_messages_and_filters_are_worked_off_in_slices() -> None:
    desk = Desk()
    for number in range(1_000):
        desk.publish(f"kept/{number}", b"x", retain=True)
    peer = desk.connect("peer")
    slices, sent = 0, 0
    peer.connection.feed(encode(Subscribe(1, [Subscription(f"+/{n}/#") for n in range(1_000)]), V5))
    more = True
    while more:
        more = peer.connection.work(lambda: True)
        slices += 1
        step = peer.connection.take(1 << 20).count(b"kept/")
        assert step <= 100
        sent += step
    assert slices >= 1_000
    assert sent == 1_000


@versions
def test_a_flood_is_worked_off_in_slices(version: int) -> None:
    desk = Desk()
    peer = desk.connect("peer", version)
    peer.connection.feed(encode(Publish("t", b"x"), version) * 1_000)
    assert peer.connection.work(lambda: False)
    assert desk.stats["door_messages_received"] == 32
    assert peer.connection.work(lambda: True)
    assert desk.stats["door_messages_received"] == 33


# --- bytes


def test_messages_of_qos_2_that_are_never_released_hold_no_payload() -> None:
    desk = Desk()
    peer, reader = desk.connect("peer", V4), desk.connect("reader", V4)
    reader.subscribe("t")
    for number in range(200):
        peer.send(Publish("t", bytes(100_000), 2, packet_id=number + 1))
        assert peer.got() == [Ack(Kind.PUBREC, number + 1)]
        assert topics(reader.got()) == ["t"]
    assert peer.held == 0
    assert desk.broker.budget.used == reader.connection.session.filter_bytes  # type: ignore[union-attr]


def test_a_client_of_mqtt_5_keeps_to_its_receive_maximum() -> None:
    desk = Desk(receive_max=10)
    peer = desk.connect("peer")
    for number in range(11):
        peer.send(Publish("t", b"x", 2, packet_id=number + 1))
    assert peer.got()[10:] == [Disconnect(Reason.RECEIVE_MAXIMUM)]
    assert peer.closed


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_what_waits_for_clients_that_never_read_is_bounded_in_bytes(qos: int) -> None:
    desk = Desk(queue=4 * MIB, total=12 * MIB, late=8 * MIB, clients=10)
    peers = [desk.connect(f"slow {number}", V4) for number in range(6)]
    for peer in peers:
        peer.subscribe("t", qos)
        peer.connection.writable = False
    outcomes = [desk.publish("t", bytes(MIB), qos) for _ in range(20)]
    for peer in peers:
        assert peer.held <= 4 * MIB
    assert desk.broker.budget.used <= 18 * MIB
    assert desk.broker.late.used <= 8 * MIB
    assert desk.stats["door_messages_dropped"] >= 6 * 20 - 18 - 8
    for peer in peers:
        peer.hang_up()
    if qos:
        assert isinstance(outcomes[-1].error, UnavailableError)
    assert desk.broker.budget.used == 0


def test_those_who_hold_much_keep_nobody_out() -> None:
    desk = Desk(queue=4 * MIB, total=8 * MIB, clients=10)
    good = desk.connect("good")
    good.subscribe("good", 1)
    for number in range(10):
        away = desk.connect(f"away {number}", clean_start=False, properties={SESSION_EXPIRY: 600})
        away.subscribe("t", 1)
        away.hang_up()
    for _ in range(40):
        desk.publish("t", bytes(MIB // 4), 1)
    assert desk.broker.budget.used <= 4 * MIB + 10 * desk.broker.budget.share
    for number in range(10):
        slow = desk.connect(f"slow {number}")
        slow.subscribe("t", 0)
        slow.connection.writable = False
    for _ in range(40):
        desk.publish("t", bytes(MIB // 4), 1)
    assert 7 * MIB < desk.broker.budget.used <= 12 * MIB
    for _ in range(3):
        assert desk.publish("good", bytes(MIB), 1) is DONE
        (message,) = good.got()
        assert isinstance(message, Publish)
        good.send(Ack(Kind.PUBACK, message.packet_id))


def test_a_client_that_takes_nothing_is_ended() -> None:
    desk = Desk()
    deaf, idle = desk.connect("deaf", V4), desk.connect("idle", V4)
    deaf.subscribe("t", 1)
    for number in range(40):
        desk.publish("t", b"%d" % number, 1)
    assert len(topics(deaf.got())) == 32  # it reads, and acknowledges nothing
    for _ in range(33):
        desk.pass_time(1, deaf, idle)
    assert deaf.closed
    assert not idle.closed


def test_packets_that_never_end_are_bounded_in_bytes_and_in_time() -> None:
    desk = Desk(total=8 * MIB, clients=20, packet=2 * MIB)
    peers = [desk.connect(f"slow {number}") for number in range(20)]
    begun = encode(Publish("t", bytes(MIB)), V5)[:-1]
    for peer in peers:
        for at in range(0, len(begun), 65_536):
            peer.feed(begun[at : at + 65_536])
        assert desk.broker.budget.used <= 8 * MIB + 20 * (desk.broker.budget.share + 65_536)
    refused = [peer for peer in peers if peer.closed]
    assert refused
    assert refused[0].got() == [Disconnect(Reason.QUOTA)]
    for _ in range(62):
        desk.pass_time(1, *peers)
    assert all(peer.closed for peer in peers)
    assert desk.broker.budget.used < MIB


@pytest.mark.parametrize("first", [b"G", b"\x16", b"\x11", b"\x00", b"\x30", b"\xe0"])
def test_what_does_not_begin_as_mqtt_is_ended_by_its_first_byte(first: bytes) -> None:
    peer = Desk().peer()
    peer.feed(first)
    assert peer.closed
    assert peer.got() == []


@pytest.mark.parametrize("size", [65_537, 2**28 - 1])
def test_a_connect_is_small(size: int) -> None:
    peer = Desk().peer()
    peer.feed(b"\x10" + bytes((size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14 & 0x7F | 0x80)))
    peer.feed(bytes((size >> 21,)))
    assert peer.closed
    assert peer.connection.inbound.size == 0


def test_what_a_connect_brings_is_counted_or_forgotten() -> None:
    desk = Desk()
    many = {USER: [("", "")] * 5_000}
    will = Will("t", bytes(30_000), properties={**many, WILL_DELAY: 60})
    peer = desk.connect("peer", will=will, properties={SESSION_EXPIRY: 600, USER: many[USER][:100]})
    connect = peer.connection._connect
    assert connect is not None
    assert connect.properties == {SESSION_EXPIRY: 600}
    assert connect.will is not None
    held = desk.broker.budget.used
    assert held > 30_000 + 5_000 * 64  # what the will's properties take, which is more than they have bytes
    peer.hang_up()
    assert desk.broker.budget.used == held
    desk.pass_time(61)
    assert desk.broker.budget.used == 0


def test_a_refusal_is_one_short_line(caplog: pytest.LogCaptureFixture) -> None:
    peer = Desk().connect("peer")
    peer.send(Subscribe(1, [Subscription("x#" * 5_000)] * 50))
    assert peer.got() == [SubAck(1, [Reason.FILTER_INVALID] * 50)]
    (record,) = caplog.records
    assert record.getMessage().startswith("mqtt:'peer' ! 50 of 50 subscriptions refused for username ''")
    assert len(record.getMessage()) < 400


def test_subscriptions_are_bounded_in_bytes() -> None:
    desk = Desk(filters=100_000)
    peer = desk.connect("peer")
    deep = "/".join("a" * 128)
    peer.send(Subscribe(1, [Subscription(f"{deep[:-1]}{number}") for number in range(1_000)]))
    (answer,) = peer.got()
    assert isinstance(answer, SubAck)
    assert Counter(answer.codes) == {0: 1, Reason.QUOTA: 999}
    peer.hang_up()
    assert desk.broker.budget.used == 0


def test_retained_messages_of_many_levels_count_what_they_take() -> None:
    desk = Desk()
    for number in range(1_000):
        desk.publish("/".join((*"a" * 127, str(number))), b"x", retain=True)
    gauges = desk.hub.gauges()
    assert gauges["retained_messages"] < 400
    assert gauges["retained_bytes"] <= 16 * MIB


# --- the same checks as everywhere

TOPICS = ["evil/#", "evil/+/x", "#", "", "a\x00b", "/".join("a" * 129)]


@pytest.mark.parametrize("topic", TOPICS)
@versions
def test_nobody_publishes_to_what_is_no_topic(topic: str, version: int) -> None:
    desk = Desk()
    peer, other = desk.connect("peer", version), desk.connect("other", version)
    other.subscribe("#")
    peer.send(Publish(topic, b"x", 1, True, packet_id=1))
    code = Reason.MALFORMED if "\0" in topic else Reason.TOPIC_INVALID
    assert peer.got() == ([Disconnect(code)] if version == V5 else [])
    assert peer.closed
    assert other.got() == []
    assert desk.hub.gauges()["retained_messages"] == 0


@pytest.mark.parametrize("topic", TOPICS)
@versions
def test_a_will_is_checked_when_it_is_made(topic: str, version: int) -> None:
    desk = Desk()
    other = desk.connect("other", version)
    other.subscribe("#")
    peer = desk.peer(version)
    peer.send(Connect("peer", version, will=Will(topic, b"x", 1, retain=True)))
    code = Reason.MALFORMED if "\0" in topic else Reason.TOPIC_INVALID
    assert peer.got() == ([ConnAck(code)] if version == V5 else [])
    peer.hang_up()
    assert other.got() == []
    assert not other.closed


@pytest.mark.parametrize(
    "name", ["a+", "#", "$SYS", "dev5\nFORGED", "dev5\x1b[2J", "dev5\u2028x", "x" * 2_000]
)
def test_names_that_widen_topics_or_forge_lines_are_refused(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    for connect in (Connect(name), Connect("x", username=name)):
        peer = Desk().peer()
        peer.send(connect)
        assert peer.got() == [ConnAck(Reason.CLIENTID_INVALID)]
        assert peer.closed
    assert all(record.getMessage().isprintable() for record in caplog.records)


# --- reason codes

WRONG: list[tuple[Packet | bytes, Reason]] = [
    (b"\x00\x00", Reason.MALFORMED),
    (b"\x36\x00", Reason.MALFORMED),
    (b"\x30\xff\xff\xff\x7f", Reason.TOO_LARGE),
    (b"\x30\xff\xff\xff\xff", Reason.MALFORMED),
    (Connect("again"), Reason.PROTOCOL_ERROR),
    (ConnAck(), Reason.PROTOCOL_ERROR),
    (SubAck(1, [0]), Reason.PROTOCOL_ERROR),
    (Auth(0x18), Reason.PROTOCOL_ERROR),
    (Publish("", b"", properties={TOPIC_ALIAS: 1}), Reason.ALIAS_INVALID),
    (Publish("t", b"", properties={SUBSCRIPTION_ID: [1]}), Reason.PROTOCOL_ERROR),
    (Subscribe(1, [Subscription("t")], {SUBSCRIPTION_ID: 1}), Reason.NO_SUBSCRIPTION_IDS),
    (Subscribe(1, []), Reason.PROTOCOL_ERROR),
    (Subscribe(1, [Subscription("t")] * 1_001), Reason.QUOTA),
    (Disconnect(0, {SESSION_EXPIRY: 60}), Reason.PROTOCOL_ERROR),
]


@pytest.mark.parametrize(("packet", "code"), WRONG)
def test_a_wrong_packet_ends_its_client_with_the_reason(packet: Packet | bytes, code: Reason) -> None:
    desk = Desk()
    peer, other = desk.connect("peer"), desk.connect("other")
    peer.feed(packet if isinstance(packet, bytes) else encode(packet, V5))
    assert peer.got() == [Disconnect(code)]
    assert peer.closed
    other.subscribe("t")
    assert desk.stats["door_clients_failed"] == 1


def test_acknowledgements_of_nothing_and_of_the_wrong_kind_change_nothing() -> None:
    desk = Desk()
    peer = desk.connect("peer")
    peer.subscribe("t", 2)
    desk.publish("t", b"x", 2)
    peer.got()
    kinds = (Kind.PUBACK, Kind.PUBCOMP)
    peer.send(*(Ack(kind, packet_id) for kind in kinds for packet_id in (1, 9)))
    peer.send(Ack(Kind.PUBREC, 9))
    assert peer.got() == [Ack(Kind.PUBREL, 9, Reason.UNKNOWN_ID)]
    assert peer.connection.session is not None
    assert peer.connection.session.in_flight == 1
    peer.send(Ack(Kind.PUBREC, 1), Ack(Kind.PUBACK, 1))
    assert peer.connection.session.in_flight == 1
    peer.send(Ack(Kind.PUBCOMP, 1), Ack(Kind.PUBCOMP, 1))
    assert peer.connection.session.in_flight == 0
    assert not peer.closed


@pytest.mark.parametrize("properties", [{RECEIVE_MAXIMUM: 0}, {MAXIMUM_PACKET: 0}])
def test_a_connect_with_wrong_properties_is_told_so(properties: dict[int, Any]) -> None:
    peer = Desk().peer()
    peer.send(Connect("x", properties=properties))
    assert peer.got() == [ConnAck(Reason.PROTOCOL_ERROR)]


def test_enhanced_authentication_and_a_nameless_session_are_refused() -> None:
    peer = Desk().peer()
    peer.send(Connect("x", properties={AUTHENTICATION_METHOD: "GSSAPI"}))
    assert peer.got() == [ConnAck(Reason.BAD_AUTHENTICATION)]
    old = Desk().peer(V4)
    old.send(Connect("", V4, clean_start=False))
    assert old.got() == [ConnAck(2)]


@given(st.data())
def test_whatever_a_client_sends_it_harms_itself_alone(data: st.DataObject) -> None:
    desk = Desk(queue=50_000, total=100_000)
    good = desk.connect("good")
    good.subscribe("good/t", 1)
    before = desk.broker.budget.used
    version = data.draw(st.sampled_from((V4, V5)))
    peer = desk.peer(version)
    if data.draw(st.booleans()):
        peer.send(Connect("bad", version))
        peer.send(Subscribe(1, [Subscription("#", 2)]))
    for _ in range(data.draw(st.integers(1, 8))):
        raw = bytearray(encode(data.draw(packets(version)), version))
        for _ in range(data.draw(st.integers(0, 2))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        peer.feed(bytes(raw) if data.draw(st.integers(0, 9)) else data.draw(st.binary()))
        if data.draw(st.booleans()):
            peer.read()
        desk.pass_time(data.draw(st.integers(0, 10)), peer)
    peer.hang_up()
    desk.publish("good/t", b"still here", 1)
    (message,) = [one for one in good.got() if isinstance(one, Publish) and one.payload == b"still here"]
    good.send(Ack(Kind.PUBACK, message.packet_id))
    desk.pass_time(100_000)
    desk.pass_time(100_000)
    assert list(desk.broker.sessions) == ["good"]
    for packet in good.got():
        if isinstance(packet, Publish):
            good.send(Ack(Kind.PUBACK if packet.qos == 1 else Kind.PUBREC, packet.packet_id))
    assert desk.broker.budget.used <= before + 50_000


# --- logins and names


def anybody(client: ClientInfo, password: str | None) -> bool:
    return password is not None


def connect_as(desk: Desk, clientid: str, username: str, version: int = V5) -> Peer:
    peer = desk.peer(version)
    peer.send(Connect(clientid, version, username=username, password=b"right"))
    return peer


@versions
def test_a_name_belongs_to_its_user(version: int) -> None:
    desk = Desk(anybody)
    owner = connect_as(desk, "dashboard", "ops", version)
    desk.devices["dev5"] = type("Device", (), {"client": ClientInfo("dev5", "fleet")})
    owner.got()
    denied = Reason.NOT_AUTHORIZED if version == V5 else 5
    for clientid, username in (("dashboard", "mallory"), ("dev5", "mallory"), ("dev5", "dev5")):
        assert connect_as(desk, clientid, username, version).got() == [ConnAck(denied)]
    assert not owner.closed
    assert isinstance(connect_as(desk, "dev5", "fleet", version).got()[0], ConnAck)
    again = connect_as(desk, "dashboard", "ops", version)
    assert owner.closed
    assert not again.closed


def test_a_kept_session_belongs_to_its_user_too() -> None:
    desk = Desk(anybody)
    kept = {SESSION_EXPIRY: 600}
    owner = desk.peer()
    owner.send(Connect("worker", username="ops", password=b"", clean_start=False, properties=kept))
    owner.hang_up()
    thief = desk.peer()
    thief.send(Connect("worker", username="mallory", password=b"", clean_start=False, properties=kept))
    assert thief.got() == [ConnAck(Reason.NOT_AUTHORIZED)]


def test_two_that_fight_for_one_name_are_paced_and_told(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    for _ in range(6):
        holder = desk.connect("twin")
    late = desk.peer()
    late.send(Connect("twin"))
    assert late.got() == [ConnAck(Reason.BUSY)]
    assert not holder.closed
    assert "192.0.2.1:1 ! MQTT client 'twin' closed: 5 takeovers of its clientid in 10 s" in caplog.text
    desk.pass_time(11, holder)
    desk.connect("twin")
    assert holder.closed


@pytest.mark.live
@pytest.mark.parametrize("uvloop", [False, True])
def test_a_login_is_dropped_with_its_connection(uvloop: bool) -> None:
    states: Counter[str] = Counter()

    async def login(info: ClientInfo, password: str | None) -> bool:
        if info.clientid == "good":
            return True
        states["asked"] += 1
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            states["dropped"] += 1
        return True

    async def test(site: Site) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for number in range(20):
                await stack.enter_async_context(site.raw(encode(Connect(f"bad{number}"), V5)))
            await site.until(lambda: states["asked"] == 20)
        await site.until(lambda: states["dropped"] == 20)
        async with site.mqtt("good"):
            pass

    at_a_site(test, login, uvloop=uvloop)


@pytest.mark.live
@pytest.mark.parametrize(
    "first", [b"", b"\x10", encode(Connect("mute"), V5)[:-1], encode(Connect("slow"), V5)]
)
def test_half_open_connections_leave_room_for_who_logs_in(first: bytes) -> None:
    async def login(info: ClientInfo, password: str | None) -> bool:
        if info.clientid == "slow":
            await asyncio.get_running_loop().create_future()
        return True

    async def test(site: Site) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(60):
                await stack.enter_async_context(site.raw(first))
            async with site.mqtt("good") as good:
                assert len(site.server.half_open) <= 10
                good.send(Subscribe(1, [Subscription("t")]))
                assert await good.packet() == SubAck(1, [0])
            assert site.stat("door_clients_refused") >= 50

    at_a_site(test, login, half_open=10)


@pytest.mark.live
@pytest.mark.parametrize("uvloop", [False, True])
def test_a_subscriber_that_never_reads_costs_what_it_may(uvloop: bool) -> None:
    async def test(site: Site) -> None:
        async with site.mqtt("slow") as slow, site.mqtt("good") as good:
            for one in (slow, good):
                one.send(Subscribe(1, [Subscription("t", 0)]))
                assert await one.packet() == SubAck(1, [0])
            slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
            for number in range(60):
                site.gateway.app.publish("t", bytes((number,)) * MIB)
                packet = await good.packet()
                assert isinstance(packet, Publish)
                assert packet.payload[0] == number
                assert site.server.broker.budget.used < 5 * MIB
            assert site.stat("door_messages_dropped")

    at_a_site(test, uvloop=uvloop, queue=3 * MIB)


def test_the_constants_fit_each_other() -> None:
    some = bounds.Bounds()
    assert some.soft < some.queue < some.total
    assert some.connect < some.packet < some.queue
    assert some.half_open < some.clients
