"""Exports: Wireshark's own program finds the frames that the app finds."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from exproto_app import App, Connection, Router
from exproto_app.checksums import CRC16_ARC, CRC16_MODBUS, CRC16_X25, CRC32, XOR, crc
from exproto_app.cli import main
from exproto_app.errors import SetupError
from exproto_app.exporting import dissector, protocol_name
from exproto_app.framing import (
    JT808,
    RAW,
    SLIP,
    Checked,
    Decoder,
    Delimiter,
    FirstOf,
    FixedSize,
    Framing,
    Gap,
    JsonObjects,
    LengthPrefix,
    Line,
    OctetCounting,
    Resync,
    Skip,
    StartEnd,
    Varint,
)

from .framings import BCC, DLT645, GT06, MBUS, NMEA, Counted, meter

TSHARK = shutil.which("tshark") or ""
EXAMPLES = Path(__file__).parent.parent / "examples"
RANDOM = random.Random(18)
needs_tshark = [pytest.mark.system, pytest.mark.skipif(not TSHARK, reason="tshark is not installed")]


def router_of(framing: Framing, **options: Any) -> Router[Any, Any]:
    router: Router[Any, Any] = Router("meter-1", framing=framing, **options)

    @router.on_received
    def rest(conn: Connection, frame: bytes) -> None:
        pass

    return router


def capture(path: Path, packets: Sequence[tuple[bytes, bool]], *, udp: bool = False) -> None:
    """Write a capture of *packets*, each of the device or, if its flag is set, of the server."""
    out = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 101)
    sequence = {False: 1000, True: 5000}
    for number, (data, sent) in enumerate(packets):
        ends = (7_993, 50_001) if sent else (50_001, 7_993)
        if udp:
            inner = struct.pack(">HHHH", *ends, 8 + len(data), 0) + data
        else:
            inner = (
                struct.pack(">HHIIBBHHH", *ends, sequence[sent], sequence[not sent], 0x50, 0x18, 8192, 0, 0)
                + data
            )
            sequence[sent] += len(data)
        hosts = bytes([10, 0, 0, 2, 10, 0, 0, 1]) if sent else bytes([10, 0, 0, 1, 10, 0, 0, 2])
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(inner), number, 0, 64, 17 if udp else 6, 0)
        packet = header + hosts + inner
        out += struct.pack("<IIII", 1_000 + number, 0, len(packet), len(packet)) + packet
    path.write_bytes(out)


def seen(router: Router[Any, Any], folder: Path, field: str) -> list[str]:
    """Return the values of *field* in the capture, as tshark has them."""
    script = folder / "dissector.lua"
    script.write_text(dissector(router, [7_993]))
    name = f"{protocol_name(router)}.{field}"
    command = [TSHARK, "-r", str(folder / "a.pcap"), "-X", f"lua_script:{script}", "-T", "fields", "-e", name]
    command += ["-o", "tcp.check_checksum:FALSE", "-E", "aggregator=,"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "Lua" not in result.stderr, result.stderr
    return [value for line in result.stdout.split() for value in line.split(",")]


def anything(count: int = 20) -> list[bytes]:
    return [RANDOM.randbytes(RANDOM.randint(1, 60)) for _ in range(count)]


TEXTS = [b"temp=%d;%s" % (number, b"x" * (number * 7 % 40)) for number in range(20)]
JSON = [b'{"a": ["}", %d, {"b": "\\""}]}' % number for number in range(20)]
FRAMINGS: dict[str, tuple[Framing, list[bytes]]] = {
    "line": (Line(), TEXTS),
    "any ending": (Line(ending=b"\r\n", universal=True), TEXTS),
    "delimiters": (Delimiter(b"|", b"\n"), TEXTS),
    "fixed": (FixedSize(5), [frame[:5].ljust(5, b"-") for frame in anything()]),
    "length": (LengthPrefix(2, byteorder="little", adjustment=-2), anything()),
    "length with marks": (LengthPrefix(1, start=b"\x78\x78", end=b"\r\n"), anything()),
    "varint": (Varint(), [*anything(), bytes(300)]),
    "octets": (OctetCounting(), TEXTS),
    "jt808": (Checked(JT808, XOR), [*anything(), b"\x7e\x7d\x7e\x7d\x02"]),
    "slip": (SLIP, [*anything(), b"\xc0\xdb"]),
    "brackets": (StartEnd(b"<", b">"), TEXTS),
    "json": (JsonObjects(), JSON),
    "crc 32": (Checked(LengthPrefix(2), CRC32, start=-2), anything()),
    "crc modbus": (Checked(LengthPrefix(1), CRC16_MODBUS, byteorder="little"), anything()),
    "crc 16 in four bytes": (
        Checked(LengthPrefix(4, start=bytes(4), adjustment=4), CRC16_ARC, size=4),
        anything(),
    ),
    "crc of its parameters": (Checked(LengthPrefix(1), crc(24, 0x864CFB, init=0xB704CE)), anything()),
    "crc 8": (Checked(LengthPrefix(1), crc(8, 0x31, init=0xFF)), anything()),
    "crc x25": (Checked(Delimiter(b"|\x00|"), CRC16_X25), anything()),
    "nmea": (NMEA, [b"GPGLL,%d" % number for number in range(20)]),
    "gt06": (Resync(GT06), anything()),
    "dl/t 645": (Skip(DLT645, b"\xfe", send=4), [meter(frame) for frame in anything()]),
    "m-bus": (MBUS, [b"\x10\x5b\x01", b"\xe5", b"\x68\x03\x03\x68abc"] * 5),
    "unknown sum": (Checked(LengthPrefix(1), lambda data: len(data) % 251, size=1), anything()),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_tshark) for name in FRAMINGS])
def test_tshark_finds_the_frames_that_the_decoder_finds(name: str, tmp_path: Path) -> None:
    """Whatever the segments are; garbage and a damaged frame cost it no more than us."""
    framing, frames = FRAMINGS[name]
    stream = b"".join(framing.encode(frame) for frame in frames)
    cuts = sorted(RANDOM.sample(range(1, len(stream)), 9))
    pieces = [stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    expected = [frame for piece in [Decoder(framing)] for frame in piece.feed(stream)]
    assert expected == frames
    capture(tmp_path / "a.pcap", [(piece, False) for piece in pieces])
    assert seen(router_of(framing), tmp_path, "frame") == [frame.hex() for frame in frames]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_tshark) for name in ("gt06", "jt808", "dl/t 645")]
)
def test_a_damaged_frame_is_told(name: str, tmp_path: Path) -> None:
    """The frames around it come."""
    framing, frames = FRAMINGS[name]
    sent = [framing.encode(frame) for frame in frames[:3]]
    sent[1] = sent[1][:-3] + bytes([sent[1][-3] ^ 1]) + sent[1][-2:]
    capture(tmp_path / "a.pcap", [(b"".join(sent), False)])
    assert seen(router_of(framing), tmp_path, "frame") == [frame.hex() for frame in (frames[0], frames[2])]
    assert seen(router_of(framing), tmp_path, "bad") == ["wrong", "checksum"]


@pytest.mark.parametrize("udp", [pytest.param(udp, marks=needs_tshark) for udp in (False, True)])
def test_handlers_and_answers(tmp_path: Path, *, udp: bool) -> None:
    """Frames of the device show their handler; answers are framed by reply_framing."""
    router: Router[Any, Any] = Router(
        "keyed", framing=Line(), reply_framing=LengthPrefix(1), key=lambda frame: frame[1:2]
    )

    @router.on_received(b"L")
    def login(conn: Connection, frame: bytes) -> None:
        pass

    @router.on_received
    def other(conn: Connection, frame: bytes) -> None:
        pass

    last = b"xO" if udp else b"xO\n"
    packets = [(b"aLx\n", False), (b"\x02ok", True), (last, False)]
    capture(tmp_path / "a.pcap", packets, udp=udp)
    assert seen(router, tmp_path, "frame") == ["614c78", "6f6b", "784f"]
    names = [name.rsplit(".", 1)[-1] for name in seen(router, tmp_path, "handler")]
    assert names == ["login", "other"]


@pytest.mark.parametrize(
    ("framing", "why"),
    [
        (Counted(), "can't be exported: only the framings of exproto_app.framing can, other than Gap"),
        (Gap(0.1), "other than Gap"),
        (Resync(Counted(), b"a"), "Counted(limit=65536) can't be exported"),
        (BCC, "in Lua a checksum stands at the end, and covers all before it"),
        (FirstOf((bytes.isalpha, Line()), LengthPrefix(1)), "tells frames apart by a Python function"),
    ],
    ids=["generator", "gap", "resync of a generator", "behind", "function"],
)
def test_what_lua_cant_say_is_refused(framing: Framing, why: str) -> None:
    """In one sentence, which names the framing."""
    with pytest.raises(SetupError) as info:
        dissector(router_of(framing), [7_993])
    assert why in str(info.value)


def test_prefixes_and_other_keys() -> None:
    """The longest prefix comes first; a key that does more than look at bytes is left out."""
    router = router_of(RAW)
    router.on_received(b"ab")(lambda conn, frame: None)
    router.on_received(b"c")(lambda conn, frame: None)
    text = dissector(router, [1, 2])
    assert text.index("frame:sub(1, 2)") < text.index("frame:sub(1, 1)")
    assert "local ports = {1, 2}" in text
    for key in (len, lambda frame: frame[::2], lambda frame: frame.decode("utf-16")):
        assert "can't be written in Lua" in dissector(router_of(RAW, key=key), [1])


def test_the_command(tmp_path: Path) -> None:
    """It prints the dissector, or writes it; what goes wrong is a sentence."""
    runner = CliRunner()
    result = runner.invoke(main, ["export", "wireshark", str(EXAMPLES / "gt06.py")])
    assert result.exit_code == 0
    assert 'local proto = Proto("dev_' in result.output
    out = tmp_path / "gt06.lua"
    result = runner.invoke(main, ["export", "wireshark", str(EXAMPLES / "gt06.py"), "--out", str(out)])
    assert (result.exit_code, out.read_text().count("local framing = sent and replies or frames")) == (0, 1)
    result = runner.invoke(main, ["export", "wireshark", str(EXAMPLES / "gt06.py"), "--out", str(tmp_path)])
    assert (result.exit_code, "can't be written: is a directory" in result.output) == (2, True)


def test_the_examples_can_be_exported() -> None:
    """All but those whose framing is a generator of their own."""
    from exproto_app.target import load  # noqa: PLC0415 - for this alone

    for name in ("gt06", "jt808", "nmea", "teltonika", "echo"):
        app: App[Any, Any] = load(str(EXAMPLES / f"{name}.py"))
        for router in app.protocols.values():
            assert dissector(router, [7_993])
