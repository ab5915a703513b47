"""The examples of real protocols, spoken to as their devices speak."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exproto_app import ClientInfo, FramingError
from exproto_app.checksums import CRC16_X25
from exproto_app.framing import Checked, Decoder, LengthPrefix
from exproto_app.models import SockType
from exproto_app.target import load
from exproto_app.testing import TestClient

from .devices import (
    AMONG_OTHERS,
    DEVICES,
    GT06,
    JT808,
    JT808_2019,
    JT808_NOWHERE,
    JT808_PHONE,
    JT808_WIRE,
    MODBUS,
    MODBUS_ASKS,
    NMEA,
    TELTONIKA,
    Device,
    Step,
    gt06_frame,
    jt808_frame,
    jt808_general,
    jt808_login,
    modbus_frame,
    teltonika_packet,
)

Send = Callable[[TestClient, bytes], None]

often = settings().max_examples
thrifty = settings(max_examples=often if often >= 100 else often // 3)  # there are many devices


GT06_SHORT = Checked(LengthPrefix(1, start=b"\x78\x78", end=b"\r\n"), CRC16_X25, start=-1)

app_of = functools.cache(load)


def those(wanted: Callable[[Device], bool]) -> pytest.MarkDecorator:
    """Return the mark for the tests of devices of a kind."""
    names = [name for name, device in DEVICES.items() if wanted(device)]
    return pytest.mark.parametrize("device", [DEVICES[name] for name in names], ids=names)


each = those(lambda device: True)
among_others = pytest.mark.parametrize("device", AMONG_OTHERS.values(), ids=list(AMONG_OTHERS))
speaking = those(lambda device: bool(device.steps))
logging_in = those(lambda device: not device.anonymous)
on_tcp = those(lambda device: bool(device.steps) and not device.udp)


@contextmanager
def connected(device: Device, **options: Any) -> Iterator[TestClient]:
    """Connect *device* to its example."""
    socktype: SockType = "udp" if device.udp else "tcp"
    with TestClient(app_of(device.path), device.protocol, socktype=socktype, **options) as client:
        yield client


@contextmanager
def logged_in(device: Device, **options: Any) -> Iterator[TestClient]:
    """Connect *device* and log it in."""
    with connected(device, **options) as client:
        play(device, client, device.login)
        yield client


def said(client: TestClient) -> list[tuple[str, Any]]:
    """Return what was published since the last call: topics, and what their JSON holds."""
    messages = [(message.topic, json.loads(message.payload)) for message in client.published]
    client.published.clear()
    return messages


def play(device: Device, client: TestClient, step: Step, send: Send = TestClient.send) -> None:
    """Have *device* go through *step*."""
    if step.command is not None:
        client.deliver(*step.command)
    assert client.recv() == step.asked
    send(client, step.sends)
    check(device, client, step)


def check(device: Device, client: TestClient, *steps: Step) -> None:
    """Assert that what *device* has sent in *steps* was answered and published, and nothing else."""
    assert device.plain(client.recv()) == b"".join(device.plain(step.answer) for step in steps)
    assert said(client) == [message for step in steps for message in step.published]


def bytewise(client: TestClient, data: bytes) -> None:
    client.send(data, chunk=1)


@each
@pytest.mark.parametrize("send", [TestClient.send, bytewise], ids=["whole", "bytewise"])
def test_a_device_is_understood_whole_and_byte_by_byte(device: Device, send: Send) -> None:
    """Each frame is answered and published as its protocol has it; commands come back with their answer."""
    if device.udp:
        send = TestClient.send  # a datagram comes whole
    with connected(device) as client:
        for step in (device.login, *device.steps, *device.commands):
            play(device, client, step, send)
        assert client.app.stats["frames_bad"] == 0
        assert client.app.stats["frames_unhandled"] == 0


@among_others
def test_devices_may_share_a_listener(device: Device) -> None:
    """Byte by byte, their first ones tell which protocol they speak."""
    with connected(device) as client:
        for step in (device.login, *device.steps, *device.commands):
            play(device, client, step, bytewise)


@on_tcp
def test_a_frame_may_be_split_anywhere(device: Device) -> None:
    """Two reads give what one does, wherever the network cuts."""
    with logged_in(device) as client:
        for step in device.steps:
            for place in range(1, len(step.sends)):
                client.send(step.sends[:place])
                client.send(step.sends[place:])
                check(device, client, step)


@logging_in
def test_nothing_is_taken_from_a_device_before_its_login(device: Device) -> None:
    """It gets no answer, nothing is published, and the device is closed."""
    for step in device.steps:
        with connected(device) as client:
            client.send(step.sends)
            assert client.recv() == b""
            assert said(client) == []
            assert client.closed


@logging_in
def test_a_login_that_the_broker_refuses_ends_the_connection(device: Device) -> None:
    """The device gets no answer that it could take for a yes, and what it sends with it is not taken."""

    def login(client: ClientInfo, password: str | None) -> bool:
        return False

    with connected(device, login=login) as client:
        client.send(device.login.sends)
        assert device.plain(client.recv()) == device.plain(device.refused)
        assert client.closed


@speaking
def test_a_bad_frame_costs_itself_alone(device: Device) -> None:
    """The device stays, and what it sends behind is understood, in the same read too."""
    step = device.steps[0]
    with logged_in(device) as client:
        for number, frame in enumerate(device.bad, start=1):
            client.send(frame)
            check(device, client)
            play(device, client, step)
            if not device.udp:
                client.send(frame + step.sends)
                check(device, client, step)
            assert client.app.stats["frames_bad"] == number * (1 if device.udp else 2)


@speaking
@thrifty
@given(data=st.data())
def test_any_stream_cut_anywhere(device: Device, data: st.DataObject) -> None:
    """Frames, good and bad, with garbage between them, in any pieces: each good one is handled, in order."""
    nothing = [Step(frame) for frame in (*device.bad, device.garbage)]
    steps = data.draw(st.lists(st.sampled_from([*device.steps, *nothing]), max_size=12))
    wire = [step.sends for step in steps]
    with logged_in(device) as client:
        for piece in wire if device.udp else cut(b"".join(wire), data.draw):
            client.send(piece)
        check(device, client, *steps)
        assert not client.closed


def cut(stream: bytes, draw: Callable[[Any], Any]) -> Sequence[bytes]:
    """Return *stream* in pieces."""
    places = draw(st.lists(st.integers(0, len(stream)), max_size=20).map(sorted))
    ends = [*places, len(stream)]
    return [stream[start:end] for start, end in zip([0, *places], ends, strict=True)]


@each
@thrifty
@given(data=st.data())
def test_damage_and_nonsense_raise_nothing(device: Device, data: st.DataObject) -> None:
    """Whatever comes, no handler fails: it costs its frame or, where framing is lost, the connection.

    Frames are damaged on the wire, and also under a checksum that is right.
    """
    sends = st.sampled_from([step.sends for step in (device.login, *device.steps, *device.commands)])
    damaged = st.builds(damage, sends, st.integers(0, 1_000), st.integers(1, 255))
    content = st.sampled_from(contents(device))
    forged = st.builds(damage, content, st.integers(0, 1_000), st.integers(1, 255))
    cut_off = st.builds(lambda frame, size: frame[:size], content, st.integers(0, 60))
    framed = st.one_of(forged, cut_off, st.binary(max_size=40)).map(lambda frame: wire_of(device, frame))
    pieces = data.draw(st.lists(st.one_of(sends, damaged, framed, st.binary(max_size=40)), max_size=8))
    with connected(device) if data.draw(st.booleans()) else logged_in(device) as client:
        for piece in pieces:
            if not client.closed:
                client.send(piece)


@speaking
@thrifty
@given(data=st.data())
def test_a_frame_with_damaged_content_costs_itself_at_most(device: Device, data: st.DataObject) -> None:
    """Its checksum is right, as from a device with a fault of its own, which stays; the next is good."""
    frames = st.sampled_from(contents(attrs.evolve(device, login=Step(b""), commands=())))
    places = st.lists(st.tuples(st.integers(0, 1_000), st.integers(1, 255)), max_size=4)

    def forged(frame: bytes, changes: list[tuple[int, int]], size: int) -> bytes:
        body = frame[device.header :][:size]
        for place, value in changes:
            body = damage(body, place, value)
        return wire_of(device, frame[: device.header] + body)

    wire = st.builds(forged, frames, places, st.integers(0, 200))
    with logged_in(device) as client:
        for piece in data.draw(st.lists(wire, max_size=10)):
            client.send(piece)
            assert not client.closed
        client.recv()
        client.published.clear()
        play(device, client, device.steps[0])


def damage(data: bytes, place: int, value: int) -> bytes:
    """Change one byte of *data*."""
    place %= max(len(data), 1)
    return data[:place] + bytes([data[place] ^ value]) + data[place + 1 :] if data else data


def contents(device: Device) -> list[bytes]:
    """Return what is in the frames of *device*, behind its checksums."""
    decoder = Decoder(app_of(device.path).protocols[device.protocol].framing)
    steps = (device.login, *device.steps, *device.commands)
    return [frame for step in steps for frame in decoder.feed(step.sends)]


def wire_of(device: Device, frame: bytes) -> bytes:
    """Return *frame* with its checksum, as *device* would send it; nothing if it can't."""
    try:
        return app_of(device.path).protocols[device.protocol].framing.encode(frame)
    except FramingError:
        return b""


def test_gt06_a_command_without_an_answer_is_told() -> None:
    """So is one that is too long for a frame; neither harms the tracker."""
    topic = "devices/123456789012345"
    with logged_in(GT06) as client:
        client.deliver(f"{topic}/command", b"STATUS#")
        client.deliver(f"{topic}/command", b"x" * 300)
        client.advance(10)
        assert said(client) == [
            (
                f"{topic}/answer",
                {
                    "command": "x" * 300,
                    "error": "frame has 310 bytes; its length, 310, doesn't fit into 1 bytes",
                },
            ),
            (f"{topic}/answer", {"command": "STATUS#", "error": "no answer within 10 s"}),
        ]
        client.recv()
        play(GT06, client, GT06.steps[0])


def test_gt06_answers_go_to_the_command_that_they_belong_to() -> None:
    """Commands may wait together; a long answer comes in a long frame, perhaps in UTF-16."""
    topic = "devices/123456789012345"
    with logged_in(GT06) as client:
        client.deliver(f"{topic}/command", b"A#")
        client.deliver(f"{topic}/command", b"B#")
        client.send(bytes.fromhex(gt06_frame("2100000001020042004f004b0008", long=True)))
        client.send(bytes.fromhex(gt06_frame("150600000000414100020007")))
        assert said(client) == [
            (f"{topic}/answer", {"command": "B#", "answer": "BOK"}),
            (f"{topic}/answer", {"command": "A#", "answer": "AA"}),
        ]


def test_gt06_a_tracker_is_told_the_time() -> None:
    """It is that of now, in UTC; some ask before they log in."""
    with connected(GT06) as client:
        before = datetime.now(timezone.utc).replace(microsecond=0)
        client.send(bytes.fromhex("7878058A000688290D0A"))  # published
        (frame,) = Decoder(GT06_SHORT).feed(client.recv())
        assert (frame[:1], frame[-2:], len(frame)) == (b"\x8a", b"\x00\x06", 9)
        year, month, day, hour, minute, second = frame[1:7]
        told = datetime(2000 + year, month, day, hour, minute, second, tzinfo=timezone.utc)
        assert before <= told <= datetime.now(timezone.utc)
        play(GT06, client, GT06.login)


@pytest.mark.parametrize(
    ("flags", "alarm"),
    [("44", "none"), ("4c", "vibration"), ("54", "power cut"), ("5c", "low battery"), ("64", "sos")],
)
def test_gt06_a_status_has_an_alarm_in_its_flags(flags: str, alarm: str) -> None:
    """So does an alarm that has no code of its own."""
    with logged_in(GT06) as client:
        client.send(bytes.fromhex(gt06_frame(f"13{flags}060400020001")))
        place = "0f0a140e150bc505e51e780293a9e800540009" + "00f601006e0055da"
        client.send(bytes.fromhex(gt06_frame(f"26{place}{flags}060400020002")))
        assert [values["alarm"] for _, values in said(client)] == [alarm, alarm]


def test_gt06_a_tracker_is_who_it_logged_in_as() -> None:
    """The same login again is answered; as another it is closed."""
    with connected(GT06) as client:
        client.send(bytes.fromhex("78780d0103534190360660610003c3df0d0a"))
        assert client.recv() == bytes.fromhex(gt06_frame("010003"))
        client.send(bytes.fromhex("78780d0103534190360660610003c3df0d0a"))
        assert client.recv() == bytes.fromhex(gt06_frame("010003"))
        assert client.connection.client is not None
        assert client.connection.client.clientid == "353419036066061"
        client.send(GT06.login.sends)
        assert client.recv() == b""
        assert client.closed


def test_jt808_the_platforms_messages_are_those_of_the_document() -> None:
    """Serials count up from 0, and a command may have any body."""
    with connected(JT808) as client:
        client.send(JT808.login.sends)
        assert client.recv() == JT808.login.answer  # to the byte
    with logged_in(attrs.evolve(JT808, login=jt808_login("0b3a73ce2ff2"))) as client:
        client.deliver("devices/b3a73ce2ff2/command", b"8105F0")
        # The document's example, but for its serial, which is 0, and so its checksum.
        assert client.recv() == bytes.fromhex("7e810500010b3a73ce2ff20001f0257e")


def test_jt808_a_command_may_be_answered_by_a_message_of_its_own() -> None:
    """Its serial tells which; a late general answer is no answer to the next command."""
    topic = f"devices/{JT808_PHONE.lstrip('0')}"
    with logged_in(JT808) as client:
        for serial in (2, 3):
            client.deliver(f"{topic}/command", b"8104")
            asked = bytes.fromhex(jt808_frame("8104", JT808_PHONE, serial))
            assert client.recv() == asked
        client.advance(10)
        client.deliver(f"{topic}/command", b"8104")
        client.deliver(f"{topic}/command", b"reboot")
        client.send(bytes.fromhex(jt808_frame("0001", JT808_PHONE, 20, "0002810400")))
        client.send(bytes.fromhex(jt808_frame("0104", JT808_PHONE, 21, "00040100000001040000003c")))
        answers = [values for _, values in said(client)]
        assert [sorted(values) for values in answers] == [["command", "error"]] * 3 + [["answer", "command"]]
        assert answers[-1] == {"command": "8104", "answer": "010400040100000001040000003c"}


def test_jt808_parts_of_a_message_that_never_becomes_whole_are_forgotten(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log tells. The next are not joined with them; what joins to nonsense is published as it is."""
    topic = f"devices/{JT808_PHONE.lstrip('0')}"
    with logged_in(JT808) as client:
        for serial, part in ((1, "00030001"), (2, "00030002"), (7, "00020002"), (6, "00020001")):
            client.send(bytes.fromhex(jt808_frame("0704", JT808_PHONE, serial, f"{serial:02x}", part)))
        assert said(client) == [(f"{topic}/message", {"id": "0704", "body": "0607"})]
        assert "2 parts of a message are dropped" in caplog.text
        assert not client.closed


def test_jt808_a_terminal_may_bring_a_code_of_another_platform() -> None:
    """It is let in, and closed when it comes with another number."""
    with connected(JT808) as client:
        client.send(
            bytes.fromhex("7E010200100940278494700084323031313131303831313333323139369F7E")
        )  # published
        assert client.recv() == bytes.fromhex(jt808_general("094027849470", 0x84, "0102"))
        client.send(bytes.fromhex(jt808_frame("0002", "043048325465", 1)))
        assert client.recv() == b""
        assert client.closed


@pytest.mark.parametrize(
    ("sends", "values"),
    [
        (  # published, of the document of 2011
            "7E01000021013345678906000F002C012F373031313142534A2D4D3742203030303030303001D4C1423838383838B47E",
            {"maker": "70111", "model": "BSJ-M7B", "terminal": "0000000", "plate": "粤B88888"},
        ),
        (
            "7e010000190940278494700012000000000000000000000000000000000000094027849470000a7e",
            {"maker": "", "model": "", "terminal": "\t@'剶p", "plate": ""},
        ),
        (  # published, of 2013
            (
                "7e0100002d0141305678720024002c012f373031313142534a2d41362d42440000000000000000000000303536373837"
                "3201d4c14238383838386d7e"
            ),
            {"maker": "70111", "model": "BSJ-A6-BD", "terminal": "0567872", "plate": "粤B88888"},
        ),
        (  # made up, of 2019
            jt808_frame(
                "0100",
                "00000000013511221122",
                1,
                "002c012f"
                + b"70111".hex().zfill(22)
                + b"X1".hex().ljust(60, "0")
                + b"T9".hex().ljust(60, "0")
                + "01d4c14238383838382000",
            ),
            {"maker": "70111", "model": "X1", "terminal": "T9", "plate": "粤B88888"},
        ),
    ],
)
def test_jt808_a_registration_of_each_document_is_understood(sends: str, values: dict[str, str]) -> None:
    """It is answered with a code, and told once the terminal has logged in."""
    with connected(JT808) as client:
        client.send(bytes.fromhex(sends))
        registered = Decoder(JT808_WIRE).feed(client.recv())[0]
        new = bool(registered[2] & 0x40)
        phone = registered[5:15].hex() if new else registered[4:10].hex()
        auth = ("0e" if new else "") + b"authentication".hex()
        client.send(bytes.fromhex(jt808_frame("0102", phone, 2, auth)))
        assert said(client) == [(f"devices/{phone.lstrip('0')}/terminal", values)]


@pytest.mark.parametrize(
    ("phone", "sends", "added"),
    [
        (
            "013578888888",
            (
                "7E0200002F01357888888800B60000000000000003015972B406CBF6B80223000000011606131757130104000000000302"
                "0000EB0700050001016708B37E"
            ),
            {"mileage": 0.0, "03": "0000", "eb": "00050001016708"},
        ),
        (
            "094027587492",
            (
                "7e0200002e094027587492000a000000010000000a03083db7001329f300000014000013041216495201040000001236"
                "0a0002341502cb0c20085c107e"
            ),
            {"mileage": 1.8, "36": "0002341502cb0c20085c"},
        ),
        (
            "086031592715",
            (
                "7e02000054086031592715006e0000000000000002015a3c1a06c8733800000000000019103022183633362a4d30302c34"
                "352c31313338363030526f79314f70656e26303030303030303030303030263132333435363738393031323334353623ff"
                "7e"
            ),
            {"33": b"*M00,45,1138600Roy1Open&000000000000&1234567890123456#".hex()},
        ),
    ],
)
def test_jt808_what_a_maker_adds_is_told(phone: str, sends: str, added: dict[str, Any]) -> None:
    """Its positions are published frames of terminals of several makers."""
    with logged_in(attrs.evolve(JT808, login=jt808_login(phone))) as client:
        client.send(bytes.fromhex(sends))
        ((topic, values),) = said(client)
        assert topic == f"devices/{phone.lstrip('0')}/position"
        assert {name: value for name, value in values.items() if name not in JT808_NOWHERE} == added


def test_jt808_a_terminal_is_told_the_time() -> None:
    """It is that of now, in UTC."""
    with logged_in(JT808_2019) as client:
        phone = "00000000013511221122"
        client.send(bytes.fromhex(jt808_frame("0004", phone, 7)))
        (frame,) = Decoder(JT808_WIRE).feed(client.recv())
        assert frame[:2] == b"\x80\x04"
        told = datetime.strptime(f"{frame[-6:].hex()}+0000", "%y%m%d%H%M%S%z")
        assert abs(datetime.now(timezone.utc) - told) < timedelta(minutes=5)


def test_jt808_what_a_terminal_is_comes_without_the_serial_of_the_question() -> None:
    """A question for that is answered all the same; a part of a long answer is not taken for it."""
    topic = f"devices/{JT808_PHONE.lstrip('0')}"
    with logged_in(JT808) as client:
        client.deliver(f"{topic}/command", b"8107")
        client.send(bytes.fromhex(jt808_frame("0107", JT808_PHONE, 20, "0001", "00020001")))
        client.send(bytes.fromhex(jt808_frame("0107", JT808_PHONE, 22, "0007")))
        assert said(client) == [(f"{topic}/answer", {"command": "8107", "answer": "01070007"})]


def test_modbus_units_are_asked_when_they_come_and_every_ten_seconds() -> None:
    """A question is asked three times, and what came of it is published."""
    first, asked = MODBUS.login, MODBUS.login.asked
    with logged_in(MODBUS) as client:
        client.advance(10)
        play(MODBUS, client, first)
        client.advance(10)
        assert client.recv() == asked
        client.advance(1)
        assert client.recv() == asked
        play(MODBUS, client, attrs.evolve(first, asked=b""))
        client.advance(12)
        assert client.recv() == asked * 3
        ((topic, values),) = said(client)
        assert topic == "devices/127.0.0.1/registers"
        assert values == {"unit": 1, "first": 0, "error": "no answer within 1 s, sent 3 times"}


@pytest.mark.parametrize(
    "wrong",
    [
        "01030400060005da32",
        "99",
        "0163040006",
        "010304000600",
        modbus_frame("02030400060005"),
        modbus_frame("0103020006"),
    ],
    ids=["bad CRC", "half a frame", "no function", "cut off", "another unit", "too few"],
)
def test_modbus_what_is_no_answer_is_asked_for_again(wrong: str) -> None:
    """It costs nothing but the second until the question comes again."""
    with connected(MODBUS) as client:
        assert client.recv() == MODBUS.login.asked
        client.send(bytes.fromhex(wrong))
        assert said(client) == []
        client.advance(1)
        play(MODBUS, client, MODBUS.login)


def test_modbus_a_late_answer_is_not_taken_for_that_to_the_next_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a second without an answer the next question waits for another: whatever comes then is late."""
    app = app_of(MODBUS.path)
    example = sys.modules[next(iter(app.protocols["modbus"].routes.ticks))[1].function.__module__]
    monkeypatch.setattr(example, "POLLED", [(1, 0, 2), (1, 100, 2)])
    with connected(MODBUS) as client:
        assert client.recv() == MODBUS.login.asked
        client.advance(1)
        assert client.recv() == MODBUS.login.asked
        client.send(MODBUS.login.sends)
        client.send(MODBUS.login.sends)  # to the second asking
        assert client.recv() == b""
        client.advance(1)
        assert client.recv() == bytes.fromhex(modbus_frame("010300640002"))
        client.send(bytes.fromhex(modbus_frame("01030400010002")))
        assert [(values["first"], values["values"]) for _, values in said(client)] == [
            (0, [6, 5]),
            (100, [1, 2]),
        ]


@pytest.mark.parametrize("noise", ["00", "03ff", "0103", "0103ff", MODBUS_ASKS], ids=str)
def test_modbus_noise_before_an_answer_holds_nothing_up(noise: str) -> None:
    """So does an echo of the question, as from a line of two wires."""
    with connected(MODBUS) as client:
        assert client.recv() == MODBUS.login.asked
        client.send(bytes.fromhex(noise) + MODBUS.login.sends)
        check(MODBUS, client, attrs.evolve(MODBUS.login, asked=b""))


def test_modbus_what_a_unit_cannot_do_is_told() -> None:
    """By its name where the document has one."""
    topic = "devices/127.0.0.1/registers"
    for frame, words in (("018302c0f1", "illegal data address"), (modbus_frame("018320"), "exception 32")):
        with connected(MODBUS) as client:
            assert client.recv() == MODBUS.login.asked
            client.send(bytes.fromhex(frame))
            assert said(client) == [(topic, {"unit": 1, "first": 0, "error": words})]


@pytest.mark.parametrize(
    "command",
    [b"", b"\xff", b"[]", b"7", b"{}", b'{"unit": 300, "register": 1, "value": 3}', b'{"unit": "1"}'],
)
def test_modbus_a_command_that_is_none_is_told(command: bytes) -> None:
    """Nothing is sent, and polling goes on."""
    with logged_in(MODBUS) as client:
        client.deliver("devices/127.0.0.1/command", command)
        ((topic, values),) = said(client)
        assert topic == "devices/127.0.0.1/answer"
        assert values["error"].startswith("a command is {")
        client.advance(10)
        play(MODBUS, client, MODBUS.login)


def test_nmea_a_command_may_have_its_checksum() -> None:
    """It is sent with one."""
    with logged_in(NMEA) as client:
        client.deliver("devices/127.0.0.1/command", b"$PMTK220,1000*1F")
        assert client.recv() == b"$PMTK220,1000*1F\r\n"


@pytest.mark.parametrize("command", [b"PMTK101", b"$PMTK101\r\n$", b"$\xff"])
def test_nmea_a_command_that_is_no_sentence_is_told(command: bytes) -> None:
    """It isn't sent, or nobody answers it; the receiver stays."""
    with logged_in(NMEA) as client:
        client.deliver("devices/127.0.0.1/command", command)
        client.advance(10)
        ((_, values),) = said(client)
        assert values["error"]
        client.recv()
        play(NMEA, client, NMEA.steps[0])


@pytest.mark.parametrize("name", ["gt06", "jt808", "teltonika-udp", "nmea", "modbus", "wialon", "coban"])
def test_the_line_to_try_an_example_works(name: str) -> None:
    """The device that it plays is answered, or understood."""
    device = DEVICES[name]
    docstring = docstring_of(device.path).replace("\\\n", "")
    found = re.search(r"printf '?([^ '|]+)'? *\n? *\|", docstring)
    assert found
    text = found[1]
    wire = text.replace(r"\r\n", "\r\n").encode() if text[0] in "$#" else bytes.fromhex(text)
    with connected(device) as client:
        client.recv()
        client.send(wire)
        assert client.recv() or said(client)
        assert client.app.stats["frames_bad"] == 0


def docstring_of(path: str) -> str:
    """Return the docstring of the example at *path*, as it stands there."""
    return Path(path).read_text().split('"""')[1]


GT06_PLACE = "1a0102030405cf0300000006000000101458"


@pytest.mark.parametrize(
    ("body", "topic", "told"),
    [
        pytest.param(  # a cell that doesn't count its length, and mileage behind
            "16 P 08 02d406c897b2bf02 46060302 01 004abd34 0003",
            "alarm",
            {
                "cell": {"mcc": 724, "mnc": 6, "lac": 51351, "cid": 11714306},
                "alarm": "power cut",
                "voltage": 6,
                "gsm": 3,
                "mileage": 4898100,
            },
            id="length-of-cell-alone",
        ),
        pytest.param(
            "26 P 08 027f14084c003842 0604031302 0007",
            "alarm",
            {"cell": {"mcc": 639, "mnc": 20, "lac": 2124, "cid": 14402}, "alarm": "tampering", "gsm": 3},
            id="length-of-cell-alone-26",
        ),
        pytest.param(
            "16 P 0172025336 0027db 62 04e4 04 00 004b",
            "alarm",
            {
                "cell": {"mcc": 370, "mnc": 2, "lac": 21302, "cid": 10203},
                "alarm": "sos",
                "volts": 12.52,
                "gsm": 4,
            },
            id="cell-without-length",
        ),
        pytest.param(
            "12 P 0172025336 0027db 62 04e4 04 00 004b",
            "position",
            {"cell": {"mcc": 370, "mnc": 2, "lac": 21302, "cid": 10203}, "volts": 12.52, "gsm": 4},
            id="status-behind-position",
        ),
        pytest.param(
            "16 P 09 01cc002503 0328e7a0 02 5d 4b 13 02 0001",
            "alarm",
            {
                "cell": {"mcc": 460, "mnc": 0, "lac": 9475, "cid": 53012384},
                "alarm": "tampering",
                "battery": 93,
            },
            id="cell-of-4-bytes",
        ),
        pytest.param("13 06 04ea 04 00 0006", "status", {"volts": 12.58, "gsm": 4}, id="volts-in-status"),
        pytest.param("13 46 0b12 04 00 1606", "status", {"volts": 28.34, "gsm": 4}, id="more-volts"),
        pytest.param(
            "13 06 04ea 04 01 0006",
            "status",
            {"rest": "04ea0401", "gsm": None, "voltage": None},
            id="unlike-any",
        ),
        pytest.param(
            "12 P 0172025336 0027db 62 ffff 04 00 004b",
            "position",
            {"rest": "01720253360027db62ffff0400", "volts": None},
            id="no-such-volts",
        ),
        pytest.param(
            "1340b2fa000201040000000000011c0040", "status", {"temperature": 28.4, "battery": 1}, id="worn"
        ),
        pytest.param(
            "13 40 01 02 03 04 05 06 0040", "message", {"content": "40010203040506"}, id="status-of-7-bytes"
        ),
        pytest.param(
            "22 01 0123456789012345 180c06142038 180c06142038 cb 03313ee4 061fe983 00 185e"
            "09 0000 00 0000 000000 46 0984 28 4c 00 02 000000 000171 01d6",
            "position",
            {"lat": -29.755007, "volts": 24.36, "battery_volts": 4.0, "hours": 6.15},
            id="imei-in-front",
        ),
        pytest.param(
            "12 0123456789012345 P 01cc00287d001f71 0002",
            "position",
            {"cell": {"mcc": 460, "mnc": 0, "lac": 10365, "cid": 8049}},
            id="imei-in-front-12",
        ),
        pytest.param(
            "16 0123456789012345 P 09 01cc00287d001f71 4804030301 001c",
            "alarm",
            {"cell": {"mcc": 460, "mnc": 0, "lac": 10365, "cid": 8049}, "alarm": "vibration", "voltage": 4},
            id="imei-in-front-16",
        ),
        pytest.param(
            "26 0123456789012345 P 01 0002",
            "alarm",
            {"lat": 27.962027, "rest": "01", "alarm": None},
            id="what-is-sure-alone",
        ),
        pytest.param(
            "26 0123456789012345 0123 0002",
            "message",
            {"type": "26", "content": "01234567890123450123"},
            id="what-cannot-be-read",
        ),
        pytest.param(
            "22 P 01cc00287d03001f71 010001 0002",
            "position",
            {"cell": {"mcc": 460, "mnc": 0, "lac": 10365, "cid": 0x03001F71}, "ignition": True},
            id="cell-of-4-bytes-22",
        ),
        pytest.param(
            "32 P 02d406c4af0aaf7801 010000 004a9494 056e 00075d8d 422d 0003",
            "position",
            {
                "cell": {"mcc": 724, "mnc": 6, "lac": 50351, "cid": 179271681},
                "mileage": 4887700,
                "volts": 13.9,
                "hours": 134.084,
            },
            id="position-of-type-32",
        ),
        pytest.param(
            "32 P 0a 02d4000ac3c70dbdc40b 46f0042102 02af 0017",
            "alarm",
            {"cell": {"mcc": 724, "mnc": 10, "lac": 50119, "cid": 230540299}, "alarm": 33, "altitude": 687},
            id="alarm-of-type-32",
        ),
        pytest.param("9404eb001c", "info", {"volts": 12.59}, id="volts-in-a-short-frame"),
        pytest.param("940512001c", "info", {"volts": 12.98}, id="volts-that-are-no-door"),
        pytest.param("940504001c", "info", {"type": "9405", "content": "04"}, id="volts-or-a-door"),
        pytest.param(
            "a3 P 10 01cc00 00009191 0000000009061703 44050403 01 0003",
            "alarm",
            {"cell": {"mcc": 460, "mnc": 0, "lac": 37265, "cid": 151394051}, "alarm": "vibration"},
            id="alarm-of-one-fence",
        ),
        pytest.param(
            "22 P 01cc00287d001f71 010001 00001000 0002",
            "position",
            {"ignition": True, "mileage": 4096},
            id="mileage",
        ),
        pytest.param(
            "12 P 01cc00287d001f71 0102030405060708 0002",
            "position",
            {"rest": "01cc00287d001f710102030405060708"},
            id="more-than-is-known",
        ),
    ],
)
def test_gt06_layouts_are_told_apart(body: str, topic: str, told: dict[str, Any]) -> None:
    """What a model has more, or otherwise, is recognised by its length, or told in hex: never misread."""
    with logged_in(GT06) as client:
        client.send(bytes.fromhex(gt06_frame(body.replace("P", GT06_PLACE).replace(" ", ""))))
        ((where, values),) = said(client)
        assert where.endswith(f"/{topic}")
        assert {name: values.get(name) for name in told} == told
        assert (client.recv() != b"") == (topic in ("alarm", "status") or body[:2] in ("13", "26"))


@pytest.mark.parametrize(
    ("zone", "kind", "time"),
    [
        ("3200", "12", "2026-01-01T19:04:05+00:00"),
        ("3200", "16", "2026-01-01T19:04:05+00:00"),
        ("2128", "12", "2026-01-02T08:34:05+00:00"),  # 5:30 west
        ("3200", "22", "2026-01-02T03:04:05+00:00"),
        ("0000", "12", "2026-01-02T03:04:05+00:00"),
        ("fff0", "12", "2026-01-02T03:04:05+00:00"),  # there is no such zone
    ],
)
def test_gt06_local_times_are_shifted_by_the_zone_of_the_login(zone: str, kind: str, time: str) -> None:
    """The document calls those of types 22, 26 and others UTC; they stay."""
    with connected(GT06) as client:
        client.send(bytes.fromhex(gt06_frame(f"010123456789012345100b{zone}0001")))
        client.send(bytes.fromhex(gt06_frame(f"{kind}{GT06_PLACE}01cc00287d001f710002")))
        ((_, values),) = said(client)
        assert values["time"] == time


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        (gt06_frame("9b0380d600046f", long=True), {"text_hex": "80d600"}),
        (gt06_frame("9b0332382e33a1e60d0a0289", long=True), {"text_hex": "32382e33a1e60d0a"}),
        (gt06_frame("9b030235393003139b", long=True), {"text_hex": "0235393003"}),
        (gt06_frame("9404ff00410001", long=True), {"text_hex": "ff0041"}),
        (gt06_frame("150600000001ff4100020007"), {"flag": "00000001", "text_hex": "ff41"}),
        (gt06_frame("210000000102d8000008", long=True), {"flag": "00000001", "text_hex": "d800"}),
    ],
)
def test_gt06_bytes_that_are_no_text_come_in_hex(frame: str, told: dict[str, str]) -> None:
    """Nothing of them is lost."""
    with logged_in(GT06) as client:
        client.send(bytes.fromhex(frame))
        assert [values for _, values in said(client)] == [told]


def test_answers_and_commands_that_are_no_text_come_in_hex() -> None:
    """So are they told to who has asked."""
    with logged_in(GT06) as client:
        client.deliver("devices/123456789012345/command", b"\xff\x00")
        client.send(bytes.fromhex(gt06_frame("1506000000008041000200ff")))
        assert [values for _, values in said(client)] == [{"command_hex": "ff00", "answer_hex": "8041"}]


def test_jt808_parts_go_by_number_and_total() -> None:
    """Others may come between them, in any order; a part that comes again costs nothing."""
    topic = f"devices/{JT808_PHONE.lstrip('0')}"
    with logged_in(JT808) as client:
        for serial, kind, body, part in (
            (16, "0801", "00000007000000", "00030001"),
            (40, "0900", "f0", "00020002"),
            (17, "0801", "aa", "00030002"),
            (18, "0002", "", ""),
            (17, "0801", "aa", "00030002"),
            (19, "0801", "bb", "00030003"),
            (41, "0900", "00", "00020001"),
        ):
            client.send(bytes.fromhex(jt808_frame(kind, JT808_PHONE, serial, body, part)))
        assert said(client) == [
            (f"{topic}/message", {"id": "0801", "body": "00000007000000aabb"}),
            (f"{topic}/message", {"id": "0900", "body": "00f0"}),
        ]


def test_jt808_parts_of_two_messages_are_not_mixed(caplog: pytest.LogCaptureFixture) -> None:
    """Where a part comes with something else in it, another message has begun; so it has behind a repeat."""
    topic = f"devices/{JT808_PHONE.lstrip('0')}"
    with logged_in(JT808) as client:
        for serial, body, part in ((1, "01", 1), (2, "02", 2), (11, "11", 1), (12, "12", 2), (13, "13", 3)):
            client.send(bytes.fromhex(jt808_frame("0900", JT808_PHONE, serial, body, f"0003{part:04x}")))
        assert said(client) == [(f"{topic}/message", {"id": "0900", "body": "111213"})]
        assert "2 parts of a message are dropped" in caplog.text
        for serial, body, part in ((13, "13", 3), (14, "21", 1), (15, "22", 2), (16, "23", 3)):
            client.send(bytes.fromhex(jt808_frame("0900", JT808_PHONE, serial, body, f"0003{part:04x}")))
        assert (
            said(client)
            == [
                (f"{topic}/message", {"id": "0900", "body": "212213"}),
            ]
            or said(client) == []
        )


@pytest.mark.parametrize("kind", ["0100", "0102", "0002", "0200", "0900"])
def test_jt808_a_terminal_without_a_number_is_closed(kind: str) -> None:
    """A registration and a login are refused first."""
    with connected(JT808) as client:
        client.send(bytes.fromhex(jt808_frame(kind, "000000000000", 1, "00" * 37)))
        refused = {
            "0100": jt808_frame("8100", "000000000000", 0, "000104"),
            "0102": jt808_general("000000000000", 1, "0102", 1),
        }
        assert client.recv() == bytes.fromhex(refused.get(kind, ""))
        assert client.closed


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("00000000000024030000000000000000fff4000000000000000000 00", {"altitude": -12, "status": 0x2403}),
        (
            "0000000000000003ffffffff06ca3a5c0000000000000000000000 00",
            {"fix": False, "lat": None, "lon": None},
        ),
        (
            44 * "0" + 12 * "0" + "0103000102" + "02028064" + "310200ff",
            {"01": "000102", "02": "8064", "31": "00ff"},
        ),
        (44 * "0" + 12 * "0" + "f30101" + "f30102", {"f3": "01", "f3_": "02"}),
        (44 * "0" + 12 * "0" + "0000007800", {"rest": "0000007800"}),
    ],
)
def test_jt808_a_position_is_told_as_it_is(body: str, told: dict[str, Any]) -> None:
    """Heights may be below the sea; what an addition of another length means isn't guessed."""
    with logged_in(JT808) as client:
        client.send(bytes.fromhex(jt808_frame("0200", JT808_PHONE, 1, body)))
        ((_, values),) = said(client)
        assert {name: values.get(name) for name in told} == told


def test_jt808_the_answer_to_a_location_query_is_a_position() -> None:
    """It is one too if nobody has asked."""
    topic, body = f"devices/{JT808_PHONE.lstrip('0')}", 44 * "0" + 12 * "0"
    with logged_in(JT808) as client:
        client.deliver(f"{topic}/command", b"8201")
        client.send(bytes.fromhex(jt808_frame("0201", JT808_PHONE, 1, f"0002{body}")))
        client.send(bytes.fromhex(jt808_frame("0201", JT808_PHONE, 2, f"0007{body}")))
        assert said(client) == [
            (f"{topic}/position", JT808_NOWHERE),
            (f"{topic}/answer", {"command": "8201", "answer": f"02010002{body}"}),
            (f"{topic}/position", JT808_NOWHERE),
        ]


def test_jt808_what_is_encrypted_is_told_as_it_is() -> None:
    """It is acknowledged, and never read."""
    topic = f"devices/{JT808_PHONE.lstrip('0')}"
    with logged_in(JT808) as client:
        client.send(JT808_WIRE.encode(bytes.fromhex(f"02000404{JT808_PHONE}000501020304")))
        assert client.recv() != b""
        assert said(client) == [(f"{topic}/message", {"id": "0200", "body": "01020304", "encrypted": True})]


def test_jt808_a_name_that_is_no_text_comes_in_hex() -> None:
    """As a plate of bytes that no character has."""
    with connected(JT808) as client:
        client.send(bytes.fromhex(jt808_frame("0100", JT808_PHONE, 5, "00" * 37 + "ff80ff")))
        client.send(bytes.fromhex(jt808_frame("0102", JT808_PHONE, 6, "30")))
        ((_, values),) = said(client)
        assert values == {"maker": "", "model": "", "terminal": "", "plate_hex": "ff80ff"}


@pytest.mark.parametrize("protocols", ["teltonika", "gt06,jt808,teltonika"])
def test_teltonika_a_ping_may_come_before_the_login(protocols: str) -> None:
    """Also where several protocols share a port."""
    example = "trackers.py" if "," in protocols else "teltonika.py"
    with connected(attrs.evolve(TELTONIKA, example=example, protocol=protocols)) as client:
        client.send(b"\xff")
        client.send(TELTONIKA.login.sends)
        assert client.recv() == TELTONIKA.login.answer


def test_teltonika_a_place_that_there_is_not_is_no_fix() -> None:
    """Latitude is below 90 degrees; the record is acknowledged all the same."""
    with logged_in(TELTONIKA) as client:
        record = "0000016b412cee0000" + "00000000" + "7fffffff" + "0000000005" + "0000" + "00" * 6
        client.send(bytes.fromhex(teltonika_packet(f"0801{record}01")))
        ((_, values),) = said(client)
        assert (values["lat"], values["lon"], values["fix"]) == (None, None, False)
        assert client.recv() == bytes.fromhex("00000001")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            b"$GPRMC,000452.981,V,36000.0000,N,72000.0000,E,0.0,,190120,,*02",
            {"fix": False, "lat": None, "lon": None, "time": "2020-01-19T00:04:52.981000+00:00"},
        ),
        (b"$GPRMC,123519,A,9107.038,N,01131.000,E,022.4,084.4,230394,003.1,W", {"fix": False, "lat": None}),
        (b"$GPRMC,123519,A,4860.000,N,01131.000,E,022.4,084.4,230394,003.1,W", {"fix": False, "lat": None}),
        (b"$GPRMC,123519,A,4807.038,X,01131.000,E,022.4,084.4,230394,003.1,W", {"fix": False, "lat": None}),
        (b"$GPRMC,123519,A,,,,,022.4,084.4,230394,003.1,W", {"fix": False, "lat": None}),
        (
            b"$GNGGA,164414.90,4650.5156514,N,01246.1059604,E,4,12,0.84,740.729,M,44.804,M,,",
            {"fix": True, "lat": 46.84192752, "lon": 12.76843267, "altitude": 740.729},
        ),
        (
            b"$GPGGA,123519,48$GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W*6A",
            {"lat": 48.1173, "time": "1994-03-23T12:35:19+00:00", "fix": True},
        ),
        (b"$GPTXT,01,01,02,\xe9*A4", {"sentence": "$GPTXT,01,01,02,\xe9"}),
        (b"$GPTXT,01,01,02,$AB*6A", {"sentence": "$GPTXT,01,01,02,$AB"}),
    ],
)
def test_nmea_what_a_receiver_does_not_know_is_not_guessed(line: bytes, told: dict[str, Any]) -> None:
    """A place that there isn't is no fix, a sentence that is cut off ends where the next begins."""
    with connected(NMEA) as client:
        client.send(line + b"\r\n")
        ((_, values),) = said(client)
        assert {name: values.get(name) for name in told} == told


def test_nmea_sentences_may_stand_on_one_line() -> None:
    """Each that has its checksum is told."""
    with connected(NMEA) as client:
        client.send(NMEA.steps[0].sends[:-2] + NMEA.steps[1].sends)
        assert said(client) == [*NMEA.steps[0].published, *NMEA.steps[1].published]
