"""The framings of five real protocols, in a few lines each, with frames that their devices send.

The frames are published facts; `frame` is what a handler gets, checked and without what stands around it.
"""

from __future__ import annotations

import attrs
import pytest

from exproto_app.checksums import CRC16_ARC, CRC16_MODBUS, CRC16_X25, XOR
from exproto_app.errors import FramingError
from exproto_app.framing import (
    JT808,
    Bad,
    Checked,
    Decoder,
    Decoding,
    FirstOf,
    Framing,
    LengthPrefix,
    Line,
    Reader,
    Resync,
)

from .framings import bytewise

# GT06: 7878 and one byte of length, or 7979 and two; CRC-16/X-25 from the length on; 0D0A.
# Frames: type … serial.
GT06 = Resync(
    FirstOf(
        Checked(LengthPrefix(1, start=b"\x78\x78", end=b"\r\n"), CRC16_X25, start=-1),
        Checked(LengthPrefix(2, start=b"\x79\x79", end=b"\r\n"), CRC16_X25, start=-2),
    )
)

# JT/T 808: 7E … 7E with escapes, and the XOR of all bytes as the last one. Frames: header and body.
JT = Checked(JT808, XOR)

# Teltonika over TCP: first 000F and the IMEI; then four zeros, a length, the packet, and CRC-16/ARC of the
# packet in four bytes, which the length doesn't count. Frames: the IMEI in ASCII, packets. The packets come
# first, for what we send is one.
TELTONIKA = FirstOf(
    Checked(LengthPrefix(4, start=bytes(4), adjustment=4), CRC16_ARC, size=4),
    (b"\x00\x0f", LengthPrefix(2)),
)

# NMEA 0183: the XOR of what is between $ and *, in hex behind it. Frames: with the $, without the checksum.
NMEA = Resync(Checked(Line(ending=b"\r\n"), XOR, start=1, mark=b"*", text=True), b"$")


@attrs.frozen
class ModbusAnswers:
    """Modbus RTU over TCP, as a server hears it: the function code tells how long an answer is.

    Frames end with the CRC, which `Checked` takes off.
    """

    limit: int = 256  # of a Modbus RTU frame

    def encode(self, frame: bytes) -> bytes:
        return frame

    def decode(self, reader: Reader) -> Decoding:
        while True:
            head = yield from reader.peek(3)  # address, function code, and a first byte of data
            function = head[1]
            if function & 0x80:  # an exception: its code
                size = 5
            elif function in (1, 2, 3, 4):  # what was read: a count of bytes, and these
                size = 5 + head[2]
            elif function in (5, 6, 15, 16):  # what was written: an address, and a value or a quantity
                size = 8
            else:
                raise FramingError(f"function code {function} is unknown")
            yield (yield from reader.exactly(size))


MODBUS = Checked(ModbusAnswers(), CRC16_MODBUS, byteorder="little")


@attrs.frozen
class Vector:
    """What is on the wire, and what a handler gets; *sent*: it is what we send for that, too."""

    framing: Framing
    wire: bytes
    frame: bytes
    sent: bool = True


def vector(framing: Framing, wire: str, frame: str, *, sent: bool = True) -> Vector:
    return Vector(framing, bytes.fromhex(wire), bytes.fromhex(frame), sent)


def sentence(text: str) -> Vector:
    return Vector(NMEA, text.encode() + b"\r\n", text.encode()[:-3])


VECTORS = [
    vector(GT06, "78780D01012345678901234500018CDD0D0A", "0101234567890123450001"),
    vector(GT06, "787805010001D9DC0D0A", "010001"),
    vector(GT06, "78780d0103534190360660610003c3df0d0a", "0103534190360660610003"),
    vector(GT06, "78780a13c40604000201298f5b0d0a", "13c4060400020129"),
    vector(GT06, "7878051301295d630d0a", "130129"),
    vector(
        GT06,
        "78781f120f0a140e150bc505e51e780293a9e800540000f601006e0055da00035f240d0a",
        "120f0a140e150bc505e51e780293a9e800540000f601006e0055da0003",
    ),
    # We would send it as a short one. Its payload contains 0D0A: the length decides.
    vector(GT06, "797900109b0344373532304136320d0a000f87f00d0a", "9b0344373532304136320d0a000f", sent=False),
    vector(GT06, "787812800c0000000052656c61792c312300009dee0d0a", "800c0000000052656c61792c31230000"),
    vector(
        JT,
        "7E0100002D013511221122000500000000373031303748422D52303347424400000000000000000000003233363631303402CB"
        "D5424136383630387E",
        "0100002D013511221122000500000000373031303748422D52303347424400000000000000000000003233363631303402CB"
        "D5424136383630",
    ),
    vector(
        JT,
        "7E0102000E013511221122000661757468656E7469636174696F6E3F7E",
        "0102000E013511221122000661757468656E7469636174696F6E",
    ),
    vector(JT, "7e8001000501351122112200010006010200b47e", "8001000501351122112200010006010200"),
    vector(JT, "7e0002000004304832546500b7ca7e", "0002000004304832546500b7"),
    vector(
        JT,
        "7e0200002c00160128561400030000000000040007005de13c065c6cdb00160000000017011710054201040000a9002a0200"
        "0030011b310104e47e",
        "0200002c00160128561400030000000000040007005de13c065c6cdb00160000000017011710054201040000a9002a0200"
        "0030011b310104",
    ),
    vector(JT, "7e810500010b3a73ce2ff20000f0247e", "810500010b3a73ce2ff20000f0"),
    vector(TELTONIKA, "000F333536333037303432343431303133", "333536333037303432343431303133", sent=False),
    vector(
        TELTONIKA,
        "000000000000003608010000016B40D8EA30010000000000000000000000000000000105021503010101425E0F01F1000060"
        "1A014E0000000000000000010000C7CF",
        "08010000016B40D8EA30010000000000000000000000000000000105021503010101425E0F01F1000060"
        "1A014E000000000000000001",
    ),
    vector(
        TELTONIKA,
        "000000000000004308020000016B40D57B480100000000000000000000000000000001010101000000000000016B40D5C198"
        "010000000000000000000000000000000101010101000000020000252C",
        "08020000016B40D57B480100000000000000000000000000000001010101000000000000016B40D5C198"
        "01000000000000000000000000000000010101010100000002",
    ),
    vector(
        TELTONIKA, "000000000000000F0C010500000007676574696E666F0100004312", "0C010500000007676574696E666F01"
    ),
    sentence("$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47"),
    sentence("$GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W*6A"),
    sentence("$GPRMC,192350.000,V,0000.0000,N,00000.0000,E,,,110318,,*12"),
    # Registers that were read, an exception, a register that was written; the CRCs are recomputed.
    vector(MODBUS, "01030400060005DA31", "01030400060005"),
    vector(MODBUS, "018302C0F1", "018302"),
    vector(MODBUS, "010600010003980B", "010600010003"),
]
JT_UNREAL = vector(JT808, "7e307d02087d01557e", "307e087d55")  # an example of the escapes alone
BAD: dict[str, tuple[Framing, str]] = {
    "gt06": (GT06, "78781F120B081D112E10CC027AC7EB0C46584900148F01CC00287D001FB8000380810D0A"),
    "jt808": (
        JT,
        (
            "7E02000032013511221122000700000000000C000301578CC006CA3A5C0047000000001407231720150104000000003001"
            "1631010BD07E"
        ),
    ),
    "teltonika": (TELTONIKA, "000000000000000F0C010500000007676574696E666F0100004313"),
    "nmea": (NMEA, b"$GPRMC,192350.000,V,0000.0000,N,00000.0000,E,,,110318,,*13\r\n".hex()),
    "modbus": (MODBUS, "01030400060005DA32"),
}


def decoded(framing: Framing, chunks: list[bytes]) -> tuple[list[bytes], list[Bad]]:
    decoder = Decoder(framing)
    frames = [frame for chunk in chunks for frame in decoder.feed(chunk)]
    assert (decoder.error, decoder.buffered) == (None, 0)
    return frames, decoder.take_bad()


@pytest.mark.parametrize("case", [*VECTORS, JT_UNREAL], ids=lambda case: case.wire.hex()[:24])
def test_a_real_frame(case: Vector) -> None:
    """It comes whole and split at every byte, and goes as the device's maker has it."""
    for chunks in ([case.wire], bytewise(case.wire), [case.wire * 3]):
        frames, bad = decoded(case.framing, chunks)
        assert (set(frames), bad) == ({case.frame}, [])
    for place in range(len(case.wire)):
        assert decoded(case.framing, [case.wire[:place], case.wire[place:]]) == ([case.frame], [])
    if case.sent:
        assert case.framing.encode(case.frame) == case.wire


@pytest.mark.parametrize("name", BAD)
def test_a_bad_checksum_costs_its_frame_alone(name: str) -> None:
    """The frames before and behind it are handled, and it is told."""
    framing, wire = BAD[name]
    wrong = bytes.fromhex(wire)
    good = next(case for case in reversed(VECTORS) if case.framing == framing)
    stream = good.wire + wrong + good.wire
    for chunks in ([stream], bytewise(stream)):
        frames, bad = decoded(framing, chunks)
        assert frames == [good.frame, good.frame]
        assert len(bad) == 1
        assert bad[0].frame
        assert bad[0].reason.startswith("checksum is ")


def test_all_frames_of_a_device_in_one_stream() -> None:
    """They follow each other in any pieces, with garbage between them where that is looked for."""
    streams: list[tuple[Framing, bytes]] = [
        (GT06, b"\x00\x78junk"),
        (JT, b""),
        (TELTONIKA, b""),
        (NMEA, b"junk\xff"),
        (MODBUS, b""),
    ]
    for framing, garbage in streams:
        cases = [case for case in VECTORS if case.framing == framing]
        stream = garbage.join(case.wire for case in cases)
        for size in (1, 7, len(stream)):
            chunks = [stream[start : start + size] for start in range(0, len(stream), size)]
            frames, bad = decoded(framing, chunks)
            assert frames == [case.frame for case in cases]
            assert b"".join(item.data for item in bad) == garbage * (len(cases) - 1)
