"""MQTT packets as bytes and back, good ones and hostile ones."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exproto_app.hosts.mqtt_server.codec import FILTERS, decode, encode, head_of
from exproto_app.hosts.mqtt_server.inbound import Inbound
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
    ALLOWED,
    FLAGS,
    KINDS,
    NEVER_ZERO,
    NONE,
    SUBSCRIPTION_ID,
    USER,
    WILL,
    encode_varint,
    read_varint,
)
from exproto_app.hosts.mqtt_server.reasons import MqttError, Reason

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
ids = st.integers(1, 65_535)
codes = st.integers(0, 255)
qos = st.integers(0, 2)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "byte": st.integers(0, 255),
    "two": st.integers(0, 65_535),
    "four": st.integers(0, 2**32 - 1),
    "varint": st.integers(0, 2**28 - 1),
    "text": text,
    "binary": st.binary(max_size=20),
    "pair": st.tuples(text, text),
}


def value_of(name: int) -> st.SearchStrategy[Any]:
    if name in FLAGS:
        return st.integers(0, 1)
    value = VALUES[KINDS[name]]
    return value.filter(bool) if name in NEVER_ZERO else value


def properties(version: int, packet: int) -> st.SearchStrategy[Any]:
    if version == V4:
        return st.just(NONE)
    optional = {}
    for name in ALLOWED[packet]:
        several = name == USER or (name == SUBSCRIPTION_ID and packet == Kind.PUBLISH)
        value = value_of(name)
        optional[name] = st.lists(value, min_size=1, max_size=3) if several else value
    return st.fixed_dictionaries({}, optional=optional)


@lru_cache
def packets(version: int) -> st.SearchStrategy[Packet]:
    """Any packet that *version* has."""
    is_5 = version == V5
    some = {kind: properties(version, kind) for kind in ALLOWED}
    wills = st.none() | st.builds(
        Will, text, st.binary(max_size=50), qos, st.booleans(), properties(version, WILL)
    )
    passwords = st.none() | st.binary(max_size=20)
    fields = (st.just(version), st.booleans(), st.integers(0, 65_535))
    options = (st.booleans(), st.booleans(), st.integers(0, 2)) if is_5 else ()
    filters = st.lists(st.builds(Subscription, text, qos, *options), min_size=1, max_size=5)
    code = codes if is_5 else st.just(0)
    payload = st.binary(max_size=300)
    kinds: list[st.SearchStrategy[Any]] = [
        st.builds(Connect, text, *fields, text, passwords, wills, some[Kind.CONNECT]),
        st.builds(Connect, text, *fields, st.none(), passwords if is_5 else st.none(), wills),
        st.builds(ConnAck, codes, st.booleans(), some[Kind.CONNACK]),
        st.builds(Publish, text, payload, retain=st.booleans(), properties=some[Kind.PUBLISH]),
        st.builds(
            Publish, text, payload, st.integers(1, 2), st.booleans(), st.booleans(), ids, some[Kind.PUBLISH]
        ),
        *(
            st.builds(Ack, st.just(kind), ids, code, some[kind])
            for kind in (Kind.PUBACK, Kind.PUBREC, Kind.PUBREL, Kind.PUBCOMP)
        ),
        st.builds(Subscribe, ids, filters, some[Kind.SUBSCRIBE]),
        st.builds(SubAck, ids, st.lists(codes, max_size=5), some[Kind.SUBACK]),
        st.builds(Unsubscribe, ids, st.lists(text, min_size=1, max_size=5), some[Kind.UNSUBSCRIBE]),
        st.builds(UnsubAck, ids, st.lists(codes, max_size=5) if is_5 else st.just([]), some[Kind.UNSUBACK]),
        st.builds(Ping, st.sampled_from((Kind.PINGREQ, Kind.PINGRESP))),
        st.builds(Disconnect, code, some[Kind.DISCONNECT]),
    ]
    if is_5:
        kinds.append(st.builds(Auth, codes, some[Kind.AUTH]))
    return st.one_of(kinds)


def cut(data: bytes, size: int, version: int) -> list[Packet]:
    """Decode *data* that comes in pieces of *size* bytes."""
    inbound, found = Inbound(1_048_576), []
    for at in range(0, len(data), size):
        inbound.feed(data[at : at + size])
        while (packet := inbound.next()) is not None:
            found.append(decode(*packet, version))
    assert not inbound.ready
    return found


@pytest.mark.parametrize("version", [V4, V5])
@given(data=st.data())
def test_what_was_encoded_is_decoded_however_it_is_cut(version: int, data: st.DataObject) -> None:
    sent = data.draw(st.lists(packets(version), max_size=4))
    raw = b"".join(encode(packet, version) for packet in sent)
    assert cut(raw, data.draw(st.integers(1, 50)), version) == sent


@pytest.mark.parametrize("version", [V4, V5])
@given(data=st.data())
def test_a_mutated_packet_is_decoded_or_has_a_reason(version: int, data: st.DataObject) -> None:
    raw = bytearray(encode(data.draw(packets(version)), version))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    try:
        cut(bytes(raw), 7, version)
    except MqttError as error:
        assert isinstance(error.code, Reason)  # noqa: PT017 - what it says is all that may happen


@pytest.mark.parametrize("version", [V4, V5])
@given(first=st.integers(0, 255), body=st.binary(max_size=200))
def test_any_bytes_are_decoded_or_have_a_reason(version: int, first: int, body: bytes) -> None:
    try:
        packet = decode(first, body, version)
    except MqttError as error:
        assert isinstance(error.code, Reason)  # noqa: PT017 - likewise
    else:
        raw = encode(packet, version)
        found = head_of(raw, 0, len(raw))
        assert found is not None
        assert decode(raw[0], raw[found[0] :], version) == packet


@given(st.integers(0, 2**28 - 1))
def test_a_length_is_written_as_it_is_read(value: int) -> None:
    raw = encode_varint(value)
    assert read_varint(raw, 0, len(raw)) == (value, len(raw))


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ("36 05 00 01 74 00 01", Reason.MALFORMED),  # QoS 3
        ("38 03 00 01 74", Reason.MALFORMED),  # QoS 0 as a duplicate
        ("32 05 00 01 74 00 00", Reason.PROTOCOL_ERROR),  # packet identifier 0
        ("30 04 00 02 ff fe", Reason.MALFORMED),  # a topic that is no UTF-8
        ("30 05 00 03 61 00 62", Reason.MALFORMED),  # a NUL in it
        ("30 02 00 05", Reason.MALFORMED),  # shorter than its topic
        ("80 06 00 01 00 01 74 00", Reason.MALFORMED),  # SUBSCRIBE with wrong flags
        ("82 02 00 01", Reason.PROTOCOL_ERROR),  # without a filter
        ("82 06 00 01 00 01 74 03", Reason.MALFORMED),  # QoS 3
        ("00 00", Reason.MALFORMED),  # a type that doesn't exist
        ("e0 01 00", Reason.MALFORMED),  # a DISCONNECT with a body
    ],
)
def test_what_mqtt_311_doesnt_allow_has_its_code(raw: str, code: Reason) -> None:
    with pytest.raises(MqttError) as caught:
        cut(bytes.fromhex(raw), 100, V4)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ("30 06 00 01 74 02 01 02", Reason.PROTOCOL_ERROR),  # payload format indicator 2
        ("30 08 00 01 74 04 01 00 01 00", Reason.PROTOCOL_ERROR),  # a property twice
        ("30 06 00 01 74 02 7f 00", Reason.MALFORMED),  # an unknown one
        ("30 06 00 01 74 05 23 00", Reason.MALFORMED),  # longer than the packet
        ("30 07 00 01 74 03 23 00 00", Reason.PROTOCOL_ERROR),  # topic alias 0
        ("82 09 00 01 02 0b 00 00 01 74 00", Reason.PROTOCOL_ERROR),  # subscription identifier 0
        ("e0 04 00 80 80 00", Reason.MALFORMED),  # a length in too many bytes
    ],
)
def test_what_mqtt_5_doesnt_allow_has_its_code(raw: str, code: Reason) -> None:
    with pytest.raises(MqttError) as caught:
        cut(bytes.fromhex(raw), 100, V5)
    assert caught.value.code == code


def test_filters_and_properties_of_one_packet_are_bounded() -> None:
    many = [Subscription("t")] * (FILTERS + 1)
    with pytest.raises(MqttError, match="more than 1000 topic filters") as caught:
        cut(encode(Subscribe(1, many), V5), 65_536, V5)
    assert caught.value.code == Reason.QUOTA
    with pytest.raises(MqttError, match="limit is 32768") as caught:
        cut(encode(Publish("t", b"", properties={USER: [("", "")] * 10_000}), V5), 65_536, V5)
    assert caught.value.code == Reason.TOO_LARGE


def test_a_packet_beyond_the_limit_is_refused_by_its_head() -> None:
    inbound = Inbound(100)
    inbound.feed(b"\x30\xff\xff\xff\x7f")
    with pytest.raises(MqttError, match="268435455 bytes, limit is 100") as caught:
        inbound.next()
    assert caught.value.code == Reason.TOO_LARGE
    inbound = Inbound(100)
    inbound.feed(b"\x30\xff\xff\xff\xff")
    with pytest.raises(MqttError, match="more than 4 bytes"):
        inbound.next()


def test_a_packet_that_comes_byte_by_byte_is_looked_at_when_it_is_complete() -> None:
    raw = encode(Publish("t", bytes(100_000)), V4)
    inbound, looks = Inbound(1_048_576), 0
    for byte in raw:
        inbound.feed(bytes((byte,)))
        if inbound.ready:
            looks += 1
            packet = inbound.next()
    assert looks <= 6
    assert packet is not None
    assert len(packet[1]) == 100_003
