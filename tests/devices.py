"""What real devices say, what they are answered, and what the examples publish of it.

The frames are published facts, with their checksums recomputed; those that a comment calls made up follow the
protocol's document where no frame of a device was at hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from exproto_app.checksums import CRC16_ARC, CRC16_X25

__all__ = [
    "DEVICES",
    "EXAMPLES",
    "GT06",
    "TELTONIKA",
    "TELTONIKA_UDP",
    "Device",
    "Step",
    "gt06_frame",
    "teltonika_packet",
]

EXAMPLES = Path(__file__).parent.parent / "examples"


@attrs.frozen
class Step:
    """One exchange: a *command* may be published first, the device is *asked*, *sends*, and gets an *answer*.

    *published* are topics with what the JSON published there holds, no more and no less.
    """

    sends: bytes
    answer: bytes = b""
    published: tuple[tuple[str, Any], ...] = ()
    command: tuple[str, bytes] | None = None
    asked: bytes = b""


@attrs.frozen
class Device:
    """An example and a device that speaks to it: *login* first, then *steps* in any number and order.

    *commands* come behind, in their order. *bad* are frames that cost themselves alone, and *garbage* is
    what its framing skips.
    """

    example: str
    protocol: str
    login: Step
    steps: tuple[Step, ...]
    commands: tuple[Step, ...]
    bad: tuple[bytes, ...]
    garbage: bytes = b""
    refused: bytes = b""
    """What it is told when the broker doesn't let it in, before it is closed."""
    udp: bool = False

    @property
    def path(self) -> str:
        """The example's file."""
        return str(EXAMPLES / self.example)


def step(sends: str, answer: str = "", *published: tuple[str, Any], **fields: Any) -> Step:
    asked = bytes.fromhex(fields.pop("asked", ""))
    return Step(bytes.fromhex(sends), bytes.fromhex(answer), published, asked=asked, **fields)


# --- GT06


def gt06_frame(body: str, *, long: bool = False) -> str:
    """Return a frame of GT06 around a type, content and serial that are made up."""
    covered = (len(body) // 2 + 2).to_bytes(2 if long else 1, "big") + bytes.fromhex(body)
    return f"{'7979' if long else '7878'}{covered.hex()}{CRC16_X25(covered):04x}0d0a"


GT06_POSITION = {
    "time": "2015-10-20T14:21:11+00:00",
    "lat": 54.945347,
    "lon": 24.017622,
    "speed": 0,
    "course": 0,
    "satellites": 5,
    "fix": True,
}
GT06_STATUS = {
    "armed": False,
    "ignition": False,
    "charging": True,
    "gps": True,
    "cut": True,
    "voltage": 6,
    "gsm": 4,
}
GT06_CELL = {"mcc": 246, "mnc": 1, "lac": 110, "cid": 21978}
GT06_TOPIC = "devices/123456789012345"
GT06 = Device(
    "gt06.py",
    "gt06",
    step("78780D01012345678901234500018CDD0D0A", "787805010001D9DC0D0A"),
    (
        step("78780a13c40604000201298f5b0d0a", "7878051301295d630d0a", (f"{GT06_TOPIC}/status", GT06_STATUS)),
        step(
            "78781f120f0a140e150bc505e51e780293a9e800540000f601006e0055da00035f240d0a",
            "",
            (f"{GT06_TOPIC}/position", {**GT06_POSITION, "cell": GT06_CELL}),
        ),
        step(  # Made up: no fix, in the south-west, on a course of 300 degrees at 90 km/h.
            gt06_frame("220f0a140e150bc005e51e780293a9e85a092c00f601006e0055da0000010004"),
            "",
            (
                f"{GT06_TOPIC}/position",
                {
                    **GT06_POSITION,
                    "lat": -54.945347,
                    "lon": -24.017622,
                    "speed": 90,
                    "course": 300,
                    "satellites": 0,
                    "fix": False,
                    "cell": GT06_CELL,
                },
            ),
        ),
        step(  # Made up: SOS.
            gt06_frame("160f0a140e150bc505e51e780293a9e80054000900f601006e0055dac4060401020005"),
            gt06_frame("160005"),
            (f"{GT06_TOPIC}/alarm", {"alarm": "sos", **GT06_POSITION, **GT06_STATUS}),
        ),
        step(
            "797900109b0344373532304136320d0a000f87f00d0a",
            "",
            (f"{GT06_TOPIC}/serial", {"text": "D7520A62"}),
        ),
    ),
    (
        step(  # What the tracker says is made up.
            gt06_frame("1510000000004459443d537563636573732100020006"),
            "",
            (f"{GT06_TOPIC}/answer", {"command": "Relay,1#", "answer": "DYD=Success!"}),
            command=(f"{GT06_TOPIC}/command", b"Relay,1#"),
            asked="787812800c0000000052656c61792c312300009dee0d0a",
        ),
    ),
    (
        bytes.fromhex("78781F120B081D112E10CC027AC7EB0C46584900148F01CC00287D001FB8000380810D0A"),
        bytes.fromhex(gt06_frame("120f0a14")),  # the checksum is right, the content cut off
        bytes.fromhex(gt06_frame("120f0d140e150bc505e51e780293a9e800540000f601006e0055da0003")),  # month 13
    ),
    b"\x00\x78junk\r\n",
)
# --- Teltonika


def teltonika_packet(packet: str) -> str:
    """Return the frame around a packet that is made up."""
    data = bytes.fromhex(packet)
    return f"{len(data):016x}{packet}{CRC16_ARC(data):08x}"


def teltonika_position(time: str, io: dict[str, int | str], **fields: object) -> dict[str, object]:
    nowhere = {"lat": 0.0, "lon": 0.0, "altitude": 0, "speed": 0, "course": 0, "satellites": 0, "fix": False}
    return {"time": time, **nowhere, "event": 1, "priority": 1, "io": io, **fields}


TELTONIKA_TOPIC = "devices/356307042441013"
TELTONIKA = Device(
    "teltonika.py",
    "teltonika",
    step("000F333536333037303432343431303133", "01"),
    (
        step(
            "000000000000003608010000016B40D8EA30010000000000000000000000000000000105021503010101425E0F01F1000060"
            "1A014E0000000000000000010000C7CF",
            "00000001",
            (
                f"{TELTONIKA_TOPIC}/position",
                teltonika_position(
                    "2019-06-10T10:04:46+00:00", {"21": 3, "1": 1, "66": 24079, "241": 24602, "78": 0}
                ),
            ),
        ),
        step(
            "000000000000004308020000016B40D57B480100000000000000000000000000000001010101000000000000016B40D5C198"
            "010000000000000000000000000000000101010101000000020000252C",
            "00000002",
            (
                f"{TELTONIKA_TOPIC}/position",
                teltonika_position("2019-06-10T10:01:01+00:00", {"1": 0}, event=1),
            ),
            (
                f"{TELTONIKA_TOPIC}/position",
                teltonika_position("2019-06-10T10:01:19+00:00", {"1": 1}, event=1),
            ),
        ),
        step(  # Codec 8 extended, of the maker's document.
            "000000000000004A8E010000016B412CEE000100000000000000000000000000000000010005000100010100010011001D00"
            "010010015E2C880002000B000000003544C87A000E000000001DD7E06A00000100002994",
            "00000001",
            (
                f"{TELTONIKA_TOPIC}/position",
                teltonika_position(
                    "2019-06-10T11:36:32+00:00",
                    {"1": 1, "17": 29, "16": 22949000, "11": 893700218, "14": 500686954},
                ),
            ),
        ),
        step(  # Made up: in the south-west, below the sea, with an element of three bytes and one of none.
            teltonika_packet(
                "8e010000016b412cee0002f1000000e1000000fff6010e07005a"
                "0100000200000000000000000002010000034142430101000001"
            ),
            "00000001",
            (
                f"{TELTONIKA_TOPIC}/position",
                teltonika_position(
                    "2019-06-10T11:36:32+00:00",
                    {"256": "414243", "257": ""},
                    lat=-52.0093696,
                    lon=-25.165824,
                    altitude=-10,
                    speed=90,
                    course=270,
                    satellites=7,
                    fix=True,
                    event=256,
                    priority=2,
                ),
            ),
        ),
    ),
    (
        step(  # The answer is made up.
            teltonika_packet("0c01060000000c56657220312e32205250463101"),
            "",
            (f"{TELTONIKA_TOPIC}/answer", {"command": "getinfo", "answer": "Ver 1.2 RPF1"}),
            command=(f"{TELTONIKA_TOPIC}/command", b"getinfo"),
            asked="000000000000000F0C010500000007676574696E666F0100004312",
        ),
    ),
    (
        bytes.fromhex("000000000000000F0C010500000007676574696E666F0100004313"),
        bytes.fromhex(teltonika_packet("08010000016b40d8ea300100000001")),  # the record is cut off
        bytes.fromhex(teltonika_packet("080100000001")),
        bytes.fromhex(teltonika_packet("990100")),  # a codec that there isn't
    ),
    b"\xff\xff",  # pings
    refused=b"\x00",
)

TELTONIKA_UDP = Device(
    "teltonika.py",
    "teltonika-udp",
    Step(b""),
    (
        step(
            "003DCAFE0105000F33353230393330383634303336353508010000016B4F815B30010000000000000000000000000000000103"
            "021503010101425DBC000001",
            "0005CAFE010501",
            (
                "devices/352093086403655/position",
                teltonika_position("2019-06-13T06:23:26+00:00", {"21": 3, "1": 1, "66": 23996}),
            ),
        ),
    ),
    (),
    (bytes.fromhex("0018CAFE0105000F333532303933303836343033363535080001"),),
    udp=True,
)

DEVICES = (GT06, TELTONIKA, TELTONIKA_UDP)
