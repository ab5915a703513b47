"""Guesses: the framing of protocols that nobody told, from published frames, and honesty beyond."""

from __future__ import annotations

import contextlib
import json
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from exproto_app import checksums
from exproto_app.checksums import CRC16_MODBUS, CRC16_X25, XOR, crc
from exproto_app.cli import main
from exproto_app.errors import SetupError
from exproto_app.framing import (
    SLIP,
    Checked,
    Decoder,
    FirstOf,
    FixedSize,
    Framing,
    JsonObjects,
    LengthPrefix,
    Line,
    Skip,
    StartEnd,
    Varint,
)
from exproto_app.guessing import Guess, Stream, guess
from exproto_app.guessing.streams import _spans
from exproto_app.guessing.sums import KINDS

from .framings import DLT645, MBUS

DATA = json.loads((Path(__file__).parent / "data" / "guess.json").read_text())
SPOKEN = {"wialon"}  # an example speaks it, so it is no test of guessing
CASES = {case["name"]: [bytes.fromhex(frame) for frame in case["frames"]] for case in DATA["cases"]}
RANDOM = random.Random(16)

# Frames of one protocol that the framing cuts as they were published; some of these are damaged.
ENOUGH = 0.8


def stream_of(frames: Sequence[bytes], size: int = 0) -> Stream:
    """Return *frames* as a dump has them, one a read, or as a stream in reads of *size* bytes."""
    data = b"".join(frames)
    return Stream(tuple(data[at : at + size] for at in range(0, len(data), size)) if size else tuple(frames))


def right(result: Guess, frames: Sequence[bytes]) -> bool:
    """Tell whether what was guessed cuts *frames* where they end; a flag may be left for the next one."""
    if result.framing is None:
        return False
    data = b"".join(frames)
    ends: list[int] = []
    for frame in frames:
        ends.append((ends[-1] if ends else 0) + len(frame))
    spans = {(begin, end) for begin, end, _ in _spans(result.framing, data, ends)}
    spans |= {(begin, end + 1) for begin, end in spans}
    hits = sum(pair in spans for pair in zip([0, *ends], ends, strict=False))
    return hits >= ENOUGH * len(frames)


def code_runs(result: Guess) -> Framing:
    """Run the line of code, as a user would paste it."""
    space: dict[str, Any] = {}
    exec("\n".join((*result.imports, f"framing = {result.code}")), space)
    framing: Framing = space["framing"]
    return framing


def test_published_frames_of_fifty_protocols(record_property: Any) -> None:
    """The first guess is right for four of five protocols, none of which it was written for."""
    results = {name: guess([stream_of(frames)]) for name, frames in CASES.items() if name not in SPOKEN}
    good = [name for name, result in results.items() if right(result, CASES[name])]
    wrong = {name: results[name].certainty for name in results if name not in good}
    record_property("guesses", f"{len(good)} of {len(results)} right; else {wrong}")
    assert len(results) >= 45
    assert len(good) >= 0.8 * len(results), wrong
    # What is wrong is rarely told as certain.
    assert sum(certainty == "sure" for certainty in wrong.values()) <= 1, wrong


@pytest.mark.parametrize("name", ["castel", "eelink", "tzone", "dmt", "navis", "h02", "minifinder2", "tk103"])
@pytest.mark.parametrize("size", [1_460, 10**6])
def test_a_stream_in_any_pieces(name: str, size: int) -> None:
    """Reads that end anywhere, or a single one, give the same framing as a line each."""
    frames = CASES[name]
    whole = guess([stream_of(frames)])
    good = [frame for frame in frames if right(whole, [frame])]
    result = guess([stream_of(good * 3, size)])
    assert right(result, good * 3)
    assert result.certainty in ("sure", "likely")


def encoded(framing: Framing, frames: Sequence[bytes]) -> list[bytes]:
    return [framing.encode(frame) for frame in frames]


def some(count: int = 24, least: int = 4, most: int = 60) -> list[bytes]:
    return [RANDOM.randbytes(RANDOM.randint(least, most)) for _ in range(count)]


def meters(count: int = 24) -> list[bytes]:
    return [
        b"\x68" + RANDOM.randbytes(6) + b"\x68\x91" + bytes([size]) + RANDOM.randbytes(size)
        for size in (RANDOM.choice([4, 6, 8, 12]) for _ in range(count))
    ]


PPP = StartEnd(b"\x7e", b"\x7e", {b"\x7e": b"\x7d\x5e", b"\x7d": b"\x7d\x5d"})
MADE: dict[str, tuple[Framing, list[bytes]]] = {
    "dl/t 645": (DLT645, meters()),
    "modbus answers": (
        Checked(LengthPrefix(1, start=b"\x01\x03"), CRC16_MODBUS, start=-3, byteorder="little"),
        some(),
    ),
    "hdlc": (Checked(PPP, CRC16_X25, byteorder="little"), some(40)),
    "a length with a crc": (Checked(LengthPrefix(2, adjustment=4), checksums.CRC32, start=-2), some()),
    "a rare crc": (Checked(LengthPrefix(1, start=b"\xaa\x55"), crc(16, 0x3D65, xorout=0xFFFF)), some()),
    "bcc": (
        Checked(StartEnd(b"\x02", b"\x03"), XOR, at="behind"),
        [b"%d;%d" % (number, number * 7) for number in range(20)],
    ),
    "slip": (SLIP, some(40)),
    "varint": (Varint(), some(30, 20, 300)),
    "json": (JsonObjects(), [b'{"id":%d,"v":["}",{}]}' % number for number in range(20)]),
    "lines": (Line(), [b"temp=%d" % number for number in range(20)]),
    "little endian": (LengthPrefix(4, byteorder="little"), some(24, 10, 300)),
}


@pytest.mark.parametrize("name", MADE)
def test_what_is_made_is_found(name: str) -> None:
    """Framing, checksum and all: the code runs, and gives each frame as it was sent."""
    framing, frames = MADE[name]
    result = guess([stream_of(encoded(framing, frames))])
    assert result.certainty in ("sure", "likely"), result
    decoder = Decoder(code_runs(result))
    found = [frame for sent in encoded(framing, frames) for frame in decoder.feed(sent)]
    assert len(found) == len(frames)
    assert not decoder.take_bad()
    assert all(frame in one for one, frame in zip(found, frames, strict=True))


def test_wake_up_bytes_are_told() -> None:
    """Skip passes over them."""
    reads = [b"\xfe" * RANDOM.choice([2, 4]) + DLT645.encode(frame) for frame in meters()]
    result = guess([stream_of(reads)])
    assert isinstance(result.framing, Skip)
    assert result.framing.fill == (b"\xfe",)
    assert "SUM8 at the end of the frame: right in 24 of 24 frames, from byte 0 on" in result.evidence


def test_several_kinds_of_frames_in_one_stream() -> None:
    """Each first byte has a framing of its own."""
    frames = [b"\x10\x5b" + RANDOM.randbytes(1) for _ in range(12)] + [b"\xe5"] * 4
    for _ in range(12):
        size = RANDOM.randint(10, 60)
        frames.append(b"\x68" + bytes([size, size]) + b"\x68" + RANDOM.randbytes(size))
    RANDOM.shuffle(frames)
    result = guess([stream_of(encoded(MBUS, frames))])
    assert isinstance(result.framing, FirstOf)
    assert right(result, encoded(MBUS, frames))
    code_runs(result)


# --- honesty


def noise(size: int) -> bytes:
    return random.Random(7).randbytes(size)


@pytest.mark.parametrize(
    ("streams", "why"),
    [
        ([Stream((noise(50_000),))], "it looks like noise: encrypted, or compressed"),
        (
            [Stream(tuple(noise(9_000)[at : at + 90 + at % 7] for at in range(0, 9_000, 90)))],
            "it looks like noise",
        ),
        ([Stream((bytes.fromhex("1603010200010001fc0303") + noise(500),))], "this is TLS"),
        ([Stream((b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",))], "this is HTTP"),
        ([Stream((b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00",))], "connect it to the broker itself"),
        ([Stream((b"SSH-2.0-OpenSSH_9.2\r\n",))], "this is SSH"),
        ([Stream((b"abc",))], "3 bytes are too few"),
        ([Stream((noise(7),))], "a capture with more messages"),
        ([], "0 bytes are too few"),
    ],
    ids=["noise", "noise in reads", "tls", "http", "mqtt", "ssh", "three bytes", "one frame", "nothing"],
)
def test_what_fits_nothing_is_said_so(streams: list[Stream], why: str) -> None:
    """No framing is made up."""
    result = guess(streams)
    assert (result.certainty, result.code) == ("none", "")
    assert any(why in text for text in result.evidence)


def test_a_few_frames_are_unsure() -> None:
    """Two frames prove little."""
    result = guess([stream_of([b"\xaa\x55\x00\x07\x01\x02\x03", b"\xaa\x55\x00\x09\x01\x02\x03\x04\x05"])])
    assert result.certainty in ("unsure", "none")


def test_frames_of_one_size_prove_no_length_field() -> None:
    """Any constant byte would be one."""
    result = guess([stream_of([b"\x10" + noise(300)[at : at + 15] for at in range(0, 300, 15)])])
    assert result.certainty == "unsure"
    assert right(result, [bytes(16)]) or isinstance(result.framing, FixedSize | LengthPrefix)


def test_two_protocols_are_told_apart() -> None:
    """Each connection has its own."""
    streams = [
        Stream(tuple(CASES["h02"]), name="connection 1"),
        Stream(tuple(CASES["ruptela"]), name="connection 2"),
    ]
    result = guess(streams)
    assert [names for names, _ in result.parts] == [("connection 1",), ("connection 2",)]
    assert [
        right(part, CASES[name]) for (_, part), name in zip(result.parts, ("h02", "ruptela"), strict=True)
    ] == [
        True,
        True,
    ]


def test_the_examples_are_known() -> None:
    """Their protocols are named, with the example that speaks them."""
    from .devices import GT06  # noqa: PLC0415 - for this alone

    result = guess([Stream((GT06.login.sends * 3,))])
    assert result.known is not None
    assert (result.known.name, result.known.example) == ("GT06", "examples/gt06.py")
    assert code_runs(result) == result.framing


@pytest.mark.parametrize("data", [noise(1 << 20), b"\x7e\x7d" * (1 << 19), b"{[" * (1 << 19), bytes(1 << 20)])
def test_a_megabyte_is_looked_at_in_bounds(data: bytes) -> None:
    """What is read of it, and tried on it, is bounded; the benchmark has the time."""
    began = time.process_time()
    guess([Stream(tuple(data[at : at + 1_460] for at in range(0, len(data), 1_460)))])
    assert time.process_time() - began < 60


# --- checksums


def test_each_checksum_has_its_catalogued_value() -> None:
    """Those with names of the catalogue have its check value, and their code makes the same."""
    checks = {"CRC-16/KERMIT": 0x2189, "CRC-16/DNP": 0xEA82, "CRC-8/MAXIM-DOW": 0xA1, "CRC-32C": 0xE3069283}
    for kind in KINDS:
        value = kind.function(b"123456789")
        assert value == checks.get(kind.name, value)
        assert eval(kind.code, vars(checksums))(b"123456789") == value


def test_a_crc_is_made_of_its_parameters() -> None:
    """A wrong one is told."""
    assert crc(16, 0x1021, init=0xFFFF)(b"123456789") == 0x29B1
    assert crc(24, 0x864CFB, init=0xB704CE)(b"123456789") == 0x21CF02
    assert crc(8, 0x07).size == 1
    for options, why in (((12, 3), "width is 12 bits"), ((8, 256), "poly is 0x100")):
        with pytest.raises(SetupError, match=why):
            crc(*options)


# --- the command


def run(*args: str, text: bytes | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["guess", *args], input=text)
    return result.exit_code, result.output


def test_a_dump_of_lines(tmp_path: Path) -> None:
    """The output has the line of code and the evidence, and the script runs."""
    dump = tmp_path / "dump.txt"
    dump.write_text("\n".join(frame.hex(" ") for frame in CASES["tzone"]))
    script = tmp_path / "start.py"
    code, output = run(str(dump), "--script", str(script))
    assert code == 0
    assert "framing = Checked(LengthPrefix(2, start=b'TZ', end=b'\\r\\n'), CRC16_MODBUS)" in output
    assert "each frame begins with 'TZ'" in output
    result = CliRunner().invoke(main, ["decode", str(script), CASES["tzone"][0].hex()])
    assert result.exit_code == 0, result.output
    assert run(str(dump), "--script", str(script))[0] == 2


def test_a_dump_with_offsets_is_one_piece(tmp_path: Path) -> None:
    """Its lines are no messages."""
    data = b"".join(encoded(DLT645, meters()))
    rows = [f"{at:08x}: {data[at : at + 16].hex(' ')}" for at in range(0, len(data), 16)]
    dump = tmp_path / "dump.txt"
    dump.write_text("\n".join(rows))
    code, output = run(str(dump))
    assert code == 0
    assert "SUM8" in output


def test_plain_bytes_and_the_standard_input(tmp_path: Path) -> None:
    """A file that is no hex is what it is."""
    log = tmp_path / "log.bin"
    log.write_bytes(b"".join(CASES["wialon"]))
    assert "examples/wialon.py speaks it" in run(str(log))[1]
    assert "examples/wialon.py speaks it" in run(text=b"".join(CASES["wialon"]))[1]


def test_nothing_fits(tmp_path: Path) -> None:
    """The exit code says so, and a missing file is one sentence."""
    raw = tmp_path / "raw.bin"
    raw.write_bytes(noise(5_000))
    code, output = run(str(raw))
    assert code == 1
    assert output.startswith("no framing found\n- no framing fits 5000 bytes in 1 reads\n")
    code, output = run(str(tmp_path / "missing"))
    assert (code, "can't be read: no such file or directory" in output) == (2, True)
    assert run(text=b"")[0] == 2
    assert "write it like tcp://" in run("--listen", "tcp:7993")[1]


def listening(kind: str) -> tuple[subprocess.Popen[str], int]:
    address = f"{kind}://127.0.0.1:0"
    command = [sys.executable, "-m", "exproto_app", "guess", "--listen", address, "--seconds", "60"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    return process, int(re.findall(r"127\.0\.0\.1:(\d+)", process.stderr.readline())[0])


@pytest.mark.live
def test_ctrl_c_ends_listening() -> None:
    """What devices have sent by then is guessed from."""
    process, port = listening("tcp")
    with process, socket.create_connection(("127.0.0.1", port)) as device:
        device.sendall(b"".join(CASES["h02"]))
        device.shutdown(socket.SHUT_WR)
        assert device.recv(1) == b""
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=50)
    assert "StartEnd(b'*', b'#')" in output, output


@pytest.mark.live
def test_a_megabyte_is_enough() -> None:
    """Datagrams are heard too."""
    process, port = listening("udp")
    with process, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        device.connect(("127.0.0.1", port))
        while process.poll() is None:
            with contextlib.suppress(ConnectionRefusedError):
                device.send(b"*HQ," + b"x" * 9_000 + b"#")
        output, _ = process.communicate(timeout=50)
    assert "StartEnd(b'*', b'#')" in output, output
