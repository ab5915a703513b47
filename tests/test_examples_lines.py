"""The examples of lines with many devices, spoken to as those lines speak."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from functools import reduce
from operator import xor
from pathlib import Path
from typing import Any

import pytest

from exproto_app.target import load
from exproto_app.testing import Broker, TestClient

EXAMPLES = Path(__file__).parent.parent / "examples"


def values(client: TestClient) -> Iterator[tuple[str, Any]]:
    """Yield what was published, topics with what their JSON holds."""
    for message in client.published:
        plain = message.payload in (b"online", b"offline")
        yield message.topic, message.payload if plain else json.loads(message.payload)


# --- DL/T 645; frames and values from a published capture of a master and the meter 000000000161

ENERGY = bytes.fromhex("686101000000006891083333343359333333 8a16")
VOLTAGE = bytes.fromhex("6861010000000068910633343435344310 16")
WAKE = b"\xfe" * 4


def meter_frame(control: int, data: bytes, address: str = "000000000161") -> bytes:
    body = b"\x68%b\x68%c%c%b" % (
        bytes.fromhex(address)[::-1],
        control,
        len(data),
        bytes((byte + 0x33) & 0xFF for byte in data),
    )
    return body + bytes([sum(body) & 0xFF, 0x16])


def answered(client: TestClient, *answers: bytes) -> list[bytes]:
    """Return what is asked, each question answered by the next of *answers*."""
    asked = [client.recv()]
    for answer in answers:
        client.send(answer)
        asked.append(client.recv())
    return asked


class TestDlt645:
    """Meters on a bus are asked one after another, each a device of its own."""

    def test_published_frames_are_asked_for_and_read_right(self) -> None:
        app: Any = load(str(EXAMPLES / "dlt645.py"))
        with TestClient(app) as line:
            asked = answered(
                line,
                WAKE + meter_frame(0x93, bytes.fromhex("610100000000")),
                WAKE + ENERGY,
                VOLTAGE,
                meter_frame(0x91, bytes.fromhex("00010202 501280")),
                meter_frame(0xD1, b"\2"),
            )
            assert asked[0] == WAKE + bytes.fromhex("68aaaaaaaaaaaa681300df16")
            assert asked[1] == WAKE + bytes.fromhex("68610100000000681104333334331416")
            assert asked[2] == WAKE + bytes.fromhex("68610100000000681104333434351716")
            assert asked[3] == WAKE + bytes.fromhex("68610100000000681104333435351816")
            read = {"energy": 0.26, "voltage": 100.1, "current": -1.25, "power": None}
            assert list(values(line)) == [("meters/000000000161/values", read)]
            assert list(app.connections)[1:] == ["000000000161"]

    def test_a_command_reads_any_item_of_a_meter(self) -> None:
        with TestClient(load(str(EXAMPLES / "dlt645.py"))) as line:
            line.send(b"")
            line.advance(4)
            line.recv()
            line.deliver(f"lines/{line.connection.info.name}/meters", b'["000000000161"]')
            line.advance(60)
            line.recv()
            answered(line, *[meter_frame(0xD1, b"\2")] * 4)
            line.deliver("meters/000000000161/command", b'{"read": "00010000"}')
            assert answered(line, ENERGY)[0].endswith(bytes.fromhex("333334331416"))
            line.deliver("meters/000000000161/command", b"rubbish")
            line.advance(5)
            answers = [value for topic, value in values(line) if topic.endswith("161/answer")]
            assert answers[0] == {"command": '{"read": "00010000"}', "value": 0.26}
            assert answers[1]["error"] == 'a command is {"read": "00010000"}'

    @pytest.mark.parametrize("meters", [b"rubbish", b"\xff", b'["12"]', b"[1]", b"5", b'{"a": 1}'])
    def test_an_invalid_list_changes_nothing(self, meters: bytes) -> None:
        with TestClient(load(str(EXAMPLES / "dlt645.py"))) as line:
            line.advance(4)
            for payload in (b'["000000000161"]', meters):
                line.deliver(f"lines/{line.connection.info.name}/meters", payload)
            line.advance(1)
            assert line.connection.state.meters == ["000000000161"]


# --- GB/T 32960; values from the parser's tests of a public gateway

VIN = "1G1BL52P7TR115520"
MORNING = bytes([16, 1, 1, 2, 59, 0])


def vehicle_frame(
    command: int, data: bytes, vin: str = VIN, answer: int = 0xFE, encryption: int = 1
) -> bytes:
    body = bytes([command, answer]) + vin.encode() + bytes([encryption]) + len(data).to_bytes(2, "big") + data
    return b"##" + body + bytes([reduce(xor, body)])


def words(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(2, "big") for number in numbers)


VEHICLE = bytes([1, 1, 1]) + words(2000) + (999_999).to_bytes(4, "big") + words(5000, 15_000)
VEHICLE += bytes([50, 1, 5]) + words(6000) + bytes([90, 0])
LOGIN = bytes([12, 12, 29, 12, 19, 20]) + words(1) + b"12345678901234567890" + b"\1\1C"

REPORTS: dict[str, tuple[bytes, dict[str, Any]]] = {
    "vehicle": (
        b"\1" + VEHICLE,
        {
            "vehicle": {
                "state": 1,
                "charging": 1,
                "mode": 1,
                "speed": 200.0,
                "mileage": 99_999.9,
                "voltage": 500.0,
                "current": 500.0,
                "charge": 50,
                "dcdc": 1,
                "gear": "5",
                "resistance": 6000,
                "accelerator": 90,
                "brake": 0,
            }
        },
    ),
    "motors": (
        b"\2\1\1\1\x7d" + words(30_000, 25_000) + b"\x7d" + words(30_012, 31_203),
        {
            "motors": [
                {
                    "number": 1,
                    "state": 1,
                    "controller_temperature": 85,
                    "speed": 10_000,
                    "torque": 500.0,
                    "temperature": 85,
                    "voltage": 3001.2,
                    "current": 2120.3,
                }
            ]
        },
    ),
    "engine": (b"\4\1" + words(2000, 200), {"engine": {"state": 1, "speed": 2000, "consumption": 2.0}}),
    "position": (
        b"\5\0" + (121_473_700).to_bytes(4, "big") + (31_230_400).to_bytes(4, "big"),
        {"position": {"latitude": 31.2304, "longitude": 121.4737}},
    ),
    "no position": (b"\5\1" + bytes(8), {"position": None}),
    "another item": (b"\4\1" + words(0xFFFF, 0xFFFE) + b"\x80\0\1x", {"unread": "80000178"}),
    "half an item": (b"\1\1\1", {"unread": "010101"}),
}


class TestGbt32960:
    """Vehicles are devices of their own, on a platform's line or on theirs."""

    @pytest.mark.parametrize("name", REPORTS)
    def test_reports_are_read_right(self, name: str) -> None:
        report, read = REPORTS[name]
        with TestClient(load(str(EXAMPLES / "gbt32960.py"))) as line:
            line.send(vehicle_frame(2, MORNING + report))
            assert line.recv() == vehicle_frame(2, MORNING, answer=1)
            topic, got = list(values(line))[-1]
            assert topic == f"vehicles/{VIN}/data"
            assert got.pop("time") == "2016-01-01T02:59:00+08:00"
            assert got.pop("late") is False
            if name == "another item":
                assert got.pop("engine") == {"state": 1, "speed": None, "consumption": None}
            assert got == read

    def test_a_platform_brings_its_vehicles(self) -> None:
        app: Any = load(str(EXAMPLES / "gbt32960.py"))
        platform = MORNING + words(1) + b"platform\0\0\0\0" + b"secret".ljust(20, b"\0") + b"\1"
        with TestClient(app, login=lambda _, password: password in (None, "secret")) as line:
            line.send(vehicle_frame(5, platform, vin="0" * 17))
            assert line.recv() == vehicle_frame(5, MORNING, vin="0" * 17, answer=1)
            line.send(vehicle_frame(1, LOGIN) + vehicle_frame(1, LOGIN, vin="2" * 17))
            assert list(app.connections) == ["platform", VIN, "2" * 17]
            assert (
                f"vehicles/{VIN}/login",
                {"time": "2012-12-29T12:19:20+08:00", "iccid": "12345678901234567890"},
            ) in values(line)
            line.recv()
            line.send(vehicle_frame(4, MORNING + words(1)))
            assert line.recv() == vehicle_frame(4, MORNING, answer=1)
            assert list(app.connections) == ["platform", "2" * 17]
            line.send(vehicle_frame(7, b""))
            assert line.recv() == vehicle_frame(7, b"", answer=1)

    def test_a_platform_that_is_refused_is_told(self) -> None:
        platform = MORNING + words(1) + b"platform\0\0\0\0" + b"wrong".ljust(20, b"\0") + b"\1"
        with TestClient(
            load(str(EXAMPLES / "gbt32960.py")), login=lambda _, password: password == "secret"
        ) as line:
            line.send(vehicle_frame(5, platform, vin="0" * 17))
            assert line.recv() == vehicle_frame(5, MORNING, vin="0" * 17, answer=2)

    def test_a_report_is_acknowledged_when_the_broker_has_it(self) -> None:
        with TestClient(load(str(EXAMPLES / "gbt32960.py")), broker=Broker(holds=True)) as line:
            line.send(vehicle_frame(2, MORNING + b"\1" + VEHICLE))
            assert line.recv() == b""
            line.broker.release()
            line.broker.release()
            line.broker.release()
            assert line.recv() == vehicle_frame(2, MORNING, answer=1)

    def test_what_is_encrypted_is_answered_as_an_error(self) -> None:
        with TestClient(load(str(EXAMPLES / "gbt32960.py"))) as line:
            line.send(vehicle_frame(2, MORNING, encryption=2))
            assert line.recv() == vehicle_frame(2, MORNING, answer=2, encryption=2)


# --- Semtech's forwarder; objects as its protocol's document has them

EUI = "aa555a0000000101"
NODE = "26011bda"
STAT = {"time": "2014-01-12 08:59:28 GMT", "lati": 46.24, "long": 3.2523, "rxnb": 2, "rxok": 2, "ackr": 100.0}
TXPK = {
    "imme": True,
    "freq": 864.123456,
    "rfch": 0,
    "powe": 14,
    "modu": "LORA",
    "size": 32,
    "data": "H3P3N2i9",
}


def forwarder_frame(kind: int, said: object = None, token: str = "a1b2") -> bytes:
    text = b"" if said is None else json.dumps(said).encode()
    return b"\2" + bytes.fromhex(token) + bytes([kind]) + bytes.fromhex(EUI) + text


def heard(payload: bytes, **fields: Any) -> dict[str, Any]:
    data = base64.b64encode(payload).decode()
    return {
        "tmst": 3512348611,
        "freq": 866.349812,
        "stat": 1,
        "datr": "SF7BW125",
        "rssi": -35,
        "lsnr": 5.1,
        "data": data,
        **fields,
    }


UPLINK = bytes.fromhex("40 da1b0126 00 0500 02") + b"secret" + bytes(4)


class TestSemtech:
    """A forwarder's two ports are one gateway, and nodes its children."""

    def test_both_ports_are_answered_and_nodes_are_devices(self) -> None:
        app: Any = load(str(EXAMPLES / "semtech.py"))
        with TestClient(app, socktype="udp") as down:
            up = down.another(socktype="udp")
            down.send(forwarder_frame(2))
            assert down.recv() == bytes.fromhex("02a1b204")
            up.send(forwarder_frame(0, {"rxpk": [heard(UPLINK)], "stat": STAT}, token="0001"))
            assert up.recv() == bytes.fromhex("02000101")
            said = dict(values(down))
            assert said[f"gateways/{EUI}/status"] == STAT
            assert said[f"nodes/{NODE}/up"]["payload"] == b"secret".hex()
            assert said[f"nodes/{NODE}/up"]["fcnt"] == 5
            assert said[f"nodes/{NODE}/up"]["port"] == 2
            assert list(app.connections) == [EUI, NODE]
            down.deliver(f"nodes/{NODE}/down", json.dumps(TXPK).encode())
            sent = down.recv()
            assert sent[0] == 2
            assert sent[3] == 3
            assert json.loads(sent[4:]) == {"txpk": TXPK}
            down.send(forwarder_frame(5, {"txpk_ack": {"error": "TOO_LATE"}}, token=sent[1:3].hex()))
            assert list(values(down))[-1] == (f"gateways/{EUI}/answer", {"error": "TOO_LATE"})

    def test_a_join_request_comes_raw_and_what_is_damaged_not_at_all(self) -> None:
        join = bytes([0]) + bytes(8) + bytes.fromhex("0807060504030201") + bytes(6)
        with TestClient(load(str(EXAMPLES / "semtech.py")), socktype="udp") as down:
            down.send(forwarder_frame(2))
            down.send(forwarder_frame(0, {"rxpk": [heard(join), heard(UPLINK, stat=-1), {"data": 5}, {}]}))
            assert [topic for topic, _ in values(down)] == ["nodes/0102030405060708/raw"]

    @pytest.mark.parametrize("bad", [b"", b"\2", b"\7\0\0\2" + bytes(8), forwarder_frame(0)[:12] + b"{"])
    def test_rubbish_costs_nobody_else(self, bad: bytes) -> None:
        with TestClient(load(str(EXAMPLES / "semtech.py")), socktype="udp", raise_errors=False) as down:
            stranger = down.another(socktype="udp")
            down.send(forwarder_frame(2))
            stranger.send(bad)
            down.recv()
            down.send(forwarder_frame(2, token="0002"))
            assert down.recv() == bytes.fromhex("02000204")
