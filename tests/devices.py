"""What real devices say, what they are answered, and what the examples publish of it.

The frames are published facts, with their checksums recomputed; those that a comment calls made up follow the
protocol's document where no frame of a device was at hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from exproto_app.checksums import CRC16_X25

__all__ = ["DEVICES", "EXAMPLES", "Device", "Step"]

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
DEVICES = (GT06,)
