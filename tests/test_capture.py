"""Captures of packets: what devices and server said, put together from segments and datagrams."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Iterable
from pathlib import Path

import pytest
from dpkt import pcap, pcapng
from dpkt.ethernet import Ethernet
from dpkt.ip import IP
from dpkt.ip6 import IP6
from dpkt.sll import SLL
from dpkt.tcp import TCP
from dpkt.udp import UDP
from hypothesis import given
from hypothesis import strategies as st

from exproto_app import App, Connection, SetupError
from exproto_app.framing import Line
from exproto_app.tap import Closed, Opened, Received, Sent
from exproto_app.testing import cases, replay
from exproto_app.traffic.capture import read

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
DEVICE, SERVER = 40_000, 7_993
START = 1_767_323_045.0


def segment(
    data: bytes = b"", *, seq: int = 0, flags: int = ACK, down: bool = False, device: int = DEVICE
) -> IP:
    ends = (SERVER, device) if down else (device, SERVER)
    tcp = TCP(sport=ends[0], dport=ends[1], seq=seq % 2**32, flags=flags, data=data)
    return packet(tcp, 6, down=down)


def datagram(data: bytes, *, down: bool = False) -> IP:
    ends = (SERVER, DEVICE) if down else (DEVICE, SERVER)
    return packet(UDP(sport=ends[0], dport=ends[1], ulen=8 + len(data), data=data), 17, down=down)


def packet(inner: TCP | UDP, number: int, *, down: bool) -> IP:
    hosts = (b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x07")
    source, target = hosts if down else hosts[::-1]
    ip = IP(src=source, dst=target, p=number, data=inner)
    ip.len = len(ip)
    return ip


def framed(ip: IP) -> bytes:
    return bytes(Ethernet(data=ip, type=0x0800))


def capture(path: Path, packets: Iterable[IP], *, step: float = 0.5) -> Path:
    """Write *packets* as a pcap file."""
    with path.open("wb") as file:
        writer = pcap.Writer(file)
        for number, ip in enumerate(packets):
            writer.writepkt(framed(ip), ts=START + number * step)
    return path


def events_of(path: Path, port: int | None = None) -> list[object]:
    return [entry.event for entry in read(path, port=port).entries if not isinstance(entry.event, Opened)]


TALK = [
    segment(seq=99, flags=SYN),
    segment(seq=499, flags=SYN | ACK, down=True),
    segment(seq=100),
    segment(b"hello\n", seq=500, down=True),
    segment(b"one\n", seq=100),
    segment(b"got one\n", seq=506, down=True),
    segment(seq=104, flags=FIN | ACK),
    segment(seq=514, flags=FIN | ACK, down=True),
]
SAID = [Sent(b"hello\n"), Received(b"one\n"), Sent(b"got one\n"), Closed("device closed", "")]


def echo() -> App:
    app = App(framing=Line())

    @app.on_connect
    def greet(conn: Connection) -> bytes:
        return b"hello"

    @app.on_received
    def answer(conn: Connection, frame: bytes) -> bytes:
        conn.publish("up", frame)
        return b"got " + frame

    return app


def test_a_tcp_connection(tmp_path: Path) -> None:
    path = capture(tmp_path / "it.pcap", TALK)
    recording = read(path)
    first, *rest = recording.entries
    assert isinstance(first.event, Opened)
    assert (str(first.event.info.peername), str(first.event.info.sockname)) == (
        "10.0.0.7:40000",
        "10.0.0.1:7993",
    )
    assert [entry.event for entry in rest] == SAID
    assert [entry.at for entry in rest] == [1.5, 2.0, 2.5, 3.5]
    assert (recording.started, recording.notes, recording.broker) == (START, [], False)


def test_a_capture_replays_and_makes_cases_by_bytes_alone(tmp_path: Path) -> None:
    path = capture(tmp_path / "it.pcap", TALK)
    assert replay(echo(), path) == []
    (case,) = cases(path)
    case.check(echo())
    other = App(framing=Line())
    other.on_received(lambda conn, frame: b"no")
    (difference,) = replay(other, path)
    assert (len(difference.sent), difference.broker) == (4, [])


def test_pcapng(tmp_path: Path) -> None:
    path = tmp_path / "it.pcapng"
    with path.open("wb") as file:
        writer = pcapng.Writer(file)
        for number, ip in enumerate(TALK):
            writer.writepkt(framed(ip), ts=START + number)
    assert events_of(path) == SAID


@pytest.mark.parametrize("kind", ["raw", "cooked"])
def test_other_link_types(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it.pcap"
    with path.open("wb") as file:
        writer = pcap.Writer(file, linktype=101 if kind == "raw" else 113)
        for number, ip in enumerate(TALK):
            writer.writepkt(
                bytes(ip) if kind == "raw" else bytes(SLL(ethtype=0x0800, data=ip)), ts=START + number
            )
    assert events_of(path) == SAID


def test_ipv6(tmp_path: Path) -> None:
    path = tmp_path / "it.pcap"
    tcp = TCP(sport=DEVICE, dport=SERVER, seq=1, flags=SYN)
    ip = IP6(src=bytes(15) + b"\x01", dst=bytes(15) + b"\x02", nxt=6, plen=20, data=tcp)
    with path.open("wb") as file:
        pcap.Writer(file).writepkt(bytes(Ethernet(data=ip, type=0x86DD)), ts=START)
    (entry,) = read(path).entries
    assert isinstance(entry.event, Opened)
    assert str(entry.event.info.peername) == "[::1]:40000"


STREAM = bytes(range(256)) * 2


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 60), min_size=1, max_size=30), st.randoms())
def test_segments_in_any_order_and_twice_give_the_stream(
    tmp_path_factory: pytest.TempPathFactory, start: int, sizes: list[int], rng: random.Random
) -> None:
    packets = [segment(seq=start - 1, flags=SYN)]
    at, pieces = 0, []
    for size in sizes:
        data = STREAM[at : at + size]
        pieces.append(segment(data, seq=start + at))
        # Sent again, from a little before and to a little behind.
        before, behind = max(0, at - rng.randrange(5)), at + size + rng.randrange(5)
        if rng.random() < 0.3:
            pieces.append(segment(STREAM[before:behind], seq=start + before))
        at += len(data)
    rng.shuffle(pieces)
    path = capture(tmp_path_factory.getbasetemp() / "any.pcap", packets + pieces)
    said = b"".join(event.data for event in events_of(path) if isinstance(event, Received))
    assert said[:at] == STREAM[:at]
    assert STREAM.startswith(said)


def test_datagrams_are_kept_apart_also_empty_ones(tmp_path: Path) -> None:
    path = capture(tmp_path / "it.pcap", [datagram(b"a"), datagram(b"A", down=True), datagram(b"")])
    first, *rest = read(path).entries
    assert isinstance(first.event, Opened)
    assert first.event.info.socktype == "udp"
    assert [entry.event for entry in rest] == [Received(b"a"), Sent(b"A"), Received(b"")]


def test_several_connections_of_one_device_are_several(tmp_path: Path) -> None:
    again = [
        segment(seq=999, flags=SYN),
        segment(seq=1_999, flags=SYN | ACK, down=True),
        segment(b"two\n", seq=1000),
    ]
    recording = read(capture(tmp_path / "it.pcap", [*TALK, *again]))
    assert [entry.conn for entry in recording.entries] == ["1"] * 5 + ["2"] * 2
    assert recording.entries[-1].event == Received(b"two\n")


def test_a_connection_that_began_before_is_late(tmp_path: Path) -> None:
    path = capture(tmp_path / "it.pcap", TALK[4:])
    recording = read(path, port=SERVER)
    assert isinstance(recording.entries[0].event, Opened)
    assert recording.entries[0].event.late
    assert recording.notes == ["connection 1 began before the capture; on_connect isn't run"]
    assert replay(echo(), path, port=SERVER) == []


def test_lost_segments_are_noted(tmp_path: Path) -> None:
    path = capture(tmp_path / "it.pcap", [*TALK[:3], segment(b"behind", seq=150)])
    assert events_of(path) == []
    assert read(path).notes == [
        "connection 1: the capture lacks bytes of 10.0.0.7:40000; what follows is skipped"
    ]


def test_the_servers_port_has_to_be_said_where_it_isnt_clear(tmp_path: Path) -> None:
    midway = capture(tmp_path / "midway.pcap", TALK[4:])
    with pytest.raises(
        SetupError, match=r"midway\.pcap doesn't show which side is the server; give its port"
    ):
        read(midway)
    other = TCP(sport=DEVICE, dport=80, seq=1, flags=SYN)
    both = capture(tmp_path / "both.pcap", [*TALK, packet(other, 6, down=False)])
    with pytest.raises(SetupError, match=r"both\.pcap has traffic to several ports \(80, 7993\)"):
        read(both)
    assert events_of(both, SERVER) == SAID
    with pytest.raises(SetupError, match=r"both\.pcap has no TCP or UDP traffic with port 81"):
        read(both, port=81)


def test_a_capture_that_was_cut_off(tmp_path: Path) -> None:
    path = capture(tmp_path / "it.pcap", TALK)
    path.write_bytes(path.read_bytes()[:-5])
    recording = read(path)
    assert [entry.event for entry in recording.entries][1:] == [
        *SAID[:3],
        Closed("device closed", ""),
    ]


@given(st.binary(max_size=200))
def test_nonsense_is_one_sentence_or_nothing(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "nonsense.pcap"
    good = io.BytesIO()
    pcap.Writer(good).writepkt(framed(TALK[0]), ts=START)
    for text in (
        struct.pack("<I", 0xA1B2C3D4) + data,
        b"\x0a\x0d\x0d\x0a" + data,
        good.getvalue()[:24] + data,
        good.getvalue()[:50] + data + good.getvalue()[50 + len(data) :],
    ):
        path.write_bytes(text)
        try:
            read(path, port=SERVER)
        except SetupError as error:
            assert "nonsense.pcap" in str(error) or "link type" in str(error)  # noqa: PT017 - it may pass too


def test_files_that_are_neither(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="can't be read: no such file or directory"):
        read(tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SetupError, match="is neither a recording nor a packet capture"):
        read(tmp_path / "binary")
