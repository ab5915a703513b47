"""What real devices say, what they are answered, and what the examples publish of it.

The frames are published facts, with their checksums recomputed; those that a comment calls made up follow the
protocol's document where no frame of a device was at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from exproto_app.checksums import CRC16_ARC, CRC16_MODBUS, CRC16_X25, XOR
from exproto_app.framing import JT808 as JT808_FRAMES
from exproto_app.framing import Checked, Decoder

__all__ = [
    "AMONG_OTHERS",
    "DEVICES",
    "EXAMPLES",
    "GT06",
    "JT808",
    "JT808_2019",
    "JT808_NOWHERE",
    "JT808_PHONE",
    "JT808_WIRE",
    "MODBUS",
    "MODBUS_ASKS",
    "NMEA",
    "TELTONIKA",
    "Device",
    "Step",
    "gt06_frame",
    "jt808_frame",
    "jt808_general",
    "jt808_login",
    "modbus_frame",
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
    anonymous: bool = False
    """Whether the protocol has no login; then there may still be a first exchange."""
    header: int = 0
    """How many bytes of a frame tell what it is and who sends it."""
    plain: Callable[[bytes], bytes] = bytes
    """Takes out of answers what may differ: numbers that the server counts up."""

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
    "alarm": "none",
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


def gt06_position(time: str | None, lat: float, lon: float, **fields: object) -> dict[str, object]:
    return {**GT06_POSITION, "time": time, "lat": lat, "lon": lon, **fields}


def gt06_cell(mcc: int, mnc: int, lac: int, cid: int) -> dict[str, int]:
    return {"mcc": mcc, "mnc": mnc, "lac": lac, "cid": cid}


GT06_OFF = dict.fromkeys(("armed", "ignition", "charging", "gps", "cut"), False)
GT06_VARIANTS = (  # Published frames of other models, but for two.
    step(
        "787819100e010903230ec803ae32a60653cded00180000020072feb70d0a",
        "",
        (
            f"{GT06_TOPIC}/position",
            gt06_position("2014-01-09T03:35:14+00:00", -34.304377, -58.975278, satellites=8),
        ),
    ),
    step(
        "787822221106160a1016c60278019407c7783800040001940504700046fc01030100065f570d0a",
        "",
        (
            f"{GT06_TOPIC}/position",
            gt06_position(
                "2017-06-22T10:16:22+00:00",
                23.010642,
                72.507196,
                satellites=6,
                fix=False,
                cell=gt06_cell(404, 5, 1136, 18172),
                ignition=True,
            ),
        ),
    ),
    step(  # Made up: no fix since it was switched on, so no time.
        gt06_frame("12" + 18 * "00" + "00f601006e0055da0001"),
        "",
        (f"{GT06_TOPIC}/position", gt06_position(None, 0.0, 0.0, satellites=0, fix=False, cell=GT06_CELL)),
    ),
    step(
        "78780B23C00122040001000818720D0A",
        gt06_frame("230008"),
        (
            f"{GT06_TOPIC}/status",
            {**GT06_OFF, "alarm": "none", "gps": True, "cut": True, "volts": 2.9, "gsm": 4},
        ),
    ),
    step(
        "78782727110c0b0e170f850450059107f461ae001c7e0a81360104cb8a00bef32806030c02ff000316b10d0a",
        gt06_frame("270003"),
        (
            f"{GT06_TOPIC}/alarm",
            gt06_position(
                "2017-12-11T14:23:15+00:00",
                40.196205,
                -74.14239,
                course=126,
                cell=gt06_cell(310, 260, 52106, 48883),
                **{**GT06_OFF, "alarm": 12, "voltage": 6, "gsm": 3},
            ),
        ),
    ),
    step(
        "78782EA4110C0C02281BF6026C18720C38D22800149C1181CC00010000260E000000000615F8012C05041102FF001058FD0D0A",
        gt06_frame("a40010"),
        (
            f"{GT06_TOPIC}/alarm",
            gt06_position(
                "2017-12-12T02:40:27+00:00",
                22.576988,
                113.916893,
                course=156,
                satellites=6,
                cell=gt06_cell(460, 1, 9742, 102103041),
                **{**GT06_OFF, "alarm": 17, "charging": True, "voltage": 5, "gsm": 4},
            ),
        ),
    ),
    step(
        "787819a501cc0000009191000000000906170304050400010005f44d0d0a",
        gt06_frame("a50005"),
        (
            f"{GT06_TOPIC}/alarm",
            {
                **GT06_OFF,
                "alarm": "none",
                "cell": gt06_cell(460, 0, 37265, 151394051),
                "charging": True,
                "voltage": 5,
                "gsm": 4,
            },
        ),
    ),
    step(
        "78781219028f0a29e10036f12003040102000875dc0d0a",
        gt06_frame("190008"),
        (
            f"{GT06_TOPIC}/alarm",
            {**GT06_OFF, "alarm": "sos", "cell": gt06_cell(655, 10, 10721, 14065), "voltage": 3, "gsm": 4},
        ),
    ),
    step(  # Its external voltage, who it is, and what no document at hand explains.
        "79790008940000ed0289d6860d0a"
        "79790020940a035985708236675805200502187214018966051912408052452f000355560d0a"
        "7979000794050000c9b63e0d0a",
        "",
        (f"{GT06_TOPIC}/info", {"volts": 2.37}),
        (
            f"{GT06_TOPIC}/info",
            {"imei": "359857082366758", "imsi": "520050218721401", "iccid": "8966051912408052452"},
        ),
        (f"{GT06_TOPIC}/info", {"type": "9405", "content": "00"}),
    ),
    step(  # Made up after one that doesn't tell how long its answer is.
        gt06_frame("1500000000004459443d5375636365737321" + 40 * "00" + "00010009"),
        "",
        (f"{GT06_TOPIC}/message", {"flag": "00000000", "text": "DYD=Success!"}),
    ),
)
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
                    "ignition": False,
                },
            ),
        ),
        step(  # Made up: SOS.
            gt06_frame("160f0a140e150bc505e51e780293a9e80054000900f601006e0055dac4060401020005"),
            gt06_frame("160005"),
            (f"{GT06_TOPIC}/alarm", {**GT06_POSITION, "cell": GT06_CELL, **GT06_STATUS, "alarm": "sos"}),
        ),
        step(
            "797900109b0344373532304136320d0a000f87f00d0a",
            "",
            (f"{GT06_TOPIC}/serial", {"text": "D7520A62"}),
        ),
        *GT06_VARIANTS,
        step(  # Made up: what can't be read, as it is cut off or says month 13; an alarm is answered.
            gt06_frame("120f0a140003")
            + gt06_frame("120f0d140e150bc505e51e780293a9e800540000f601006e0055da0003")
            + gt06_frame("160f0a140004"),
            gt06_frame("160004"),
            (f"{GT06_TOPIC}/message", {"type": "12", "content": "0f0a14"}),
            (
                f"{GT06_TOPIC}/message",
                {"type": "12", "content": "0f0d140e150bc505e51e780293a9e800540000f601006e0055da"},
            ),
            (f"{GT06_TOPIC}/message", {"type": "16", "content": "0f0a14"}),
        ),
        step(  # Made up: a type that there isn't, and an answer to what nobody has asked.
            gt06_frame("1f0006") + gt06_frame("150600000009414100020007"),
            "",
            (f"{GT06_TOPIC}/message", {"type": "1f", "content": ""}),
            (f"{GT06_TOPIC}/message", {"flag": "00000009", "text": "AA"}),
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
        bytes.fromhex(gt06_frame("01012345678901234a0003")),  # no IMEI
    ),
    b"\x00\x78junk\r\n",
    header=1,
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
TELTONIKA_PLACE: dict[str, object] = {
    "lat": 55.365185,
    "lon": 10.2598799,
    "course": 46,
    "fix": True,
    "event": 385,
    "priority": 0,
}
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
        step(  # Codec 16, of the maker's document.
            "000000000000005F10020000016BDBC7833000000000000000000000000000000000000B05040200010000030002000B0027"
            "0042563A00000000016BDBC7871800000000000000000000000000000000000B05040200010000030002000B00260042563A"
            "00000200005FB3",
            "00000002",
            (
                f"{TELTONIKA_TOPIC}/position",
                teltonika_position(
                    "2019-07-10T12:06:54+00:00", {"1": 0, "3": 0, "11": 39, "66": 22074}, event=11, priority=0
                ),
            ),
            (
                f"{TELTONIKA_TOPIC}/position",
                teltonika_position(
                    "2019-07-10T12:06:55+00:00", {"1": 0, "3": 0, "11": 38, "66": 22074}, event=11, priority=0
                ),
            ),
        ),
        step(  # Published: elements of 23 bytes, and what comes from a serial port; and made up, by codec 13.
            "00000000000000858e0200000174431aadc100061d888f21000e8a0032002e0c000001810001000000000000000000010181"
            "001711210102030405060708090a0b0c0d0e0f10020b010ad000000174431a389100061d888f21000e8a0033002e0d000001"
            "810001000000000000000000010181001711210102030405060708090a0b0c0d0e0f10020b010ad2020000492b"
            "000000000000004f0c01060000004755555555777730362e343b30342e323b30302e303b30302e303b30302e303b30302e303b"
            "30302e303b30302e303b30312e333b30302e303b31302e373b30302e303b5353530d0a010000e371"
            + teltonika_packet("0d01060000000956e924225461673a3701"),
            "00000002",
            (
                f"{TELTONIKA_TOPIC}/position",
                teltonika_position(
                    "2020-08-31T06:00:56.001000+00:00",
                    {"385": "11210102030405060708090a0b0c0d0e0f10020b010ad0"},
                    **{**TELTONIKA_PLACE, "altitude": 50, "satellites": 12},
                ),
            ),
            (
                f"{TELTONIKA_TOPIC}/position",
                teltonika_position(
                    "2020-08-31T06:00:26.001000+00:00",
                    {"385": "11210102030405060708090a0b0c0d0e0f10020b010ad2"},
                    **{**TELTONIKA_PLACE, "altitude": 51, "satellites": 13},
                ),
            ),
            (
                f"{TELTONIKA_TOPIC}/text",
                {"text": "UUUUww06.4;04.2;00.0;00.0;00.0;00.0;00.0;00.0;01.3;00.0;10.7;00.0;SSS"},
            ),
            (f"{TELTONIKA_TOPIC}/text", {"text": "Tag:7"}),
        ),
        step(  # Published: Modbus by codec 12, and codec 15 of the maker's document; and a codec made up.
            "00000000000000100c010600000008010300010015d5c5010000d988"
            "000000000000001b0f010b00000013654b65a4012345678912345648656c6c6f210a01000093d6"
            + teltonika_packet("990100"),
            "",
            (f"{TELTONIKA_TOPIC}/text", {"text_hex": "010300010015d5c5"}),
            (f"{TELTONIKA_TOPIC}/text", {"text": "Hello!"}),
            (f"{TELTONIKA_TOPIC}/message", {"codec": "99", "content": "0100"}),
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
    header=21,
    anonymous=True,
)

# --- JT/T 808

JT808_WIRE = Checked(JT808_FRAMES, XOR)


def jt808_frame(kind: str, phone: str, serial: int, body: str = "", part: str = "") -> str:
    """Return a message that is made up, with the header of 2019 if *phone* has 20 digits."""
    content = bytes.fromhex(body)
    properties = len(content) | (0x2000 if part else 0) | (0x4000 if len(phone) == 20 else 0)
    version = "01" if len(phone) == 20 else ""
    header = bytes.fromhex(f"{kind}{properties:04x}{version}{phone}{serial:04x}{part}")
    return JT808_WIRE.encode(header + content).hex()


def jt808_general(phone: str, serial: int, kind: str, result: int = 0) -> str:
    """Return the general answer, whose own serial is left out of comparisons."""
    return jt808_frame("8001", phone, 0, f"{serial:04x}{kind}{result:02x}")


def without_serials(data: bytes) -> bytes:
    """Return the frames in *data* without the serials of whoever sent them."""
    frames = Decoder(JT808_WIRE).feed(data)
    places = [15 if frame[2] & 0x40 else 10 for frame in frames]
    return b"".join(frame[:place] + frame[place + 2 :] for frame, place in zip(frames, places, strict=True))


def jt808_login(phone: str, auth: str = b"authentication".hex()) -> Step:
    return step(jt808_frame("0102", phone, 6, auth), jt808_general(phone, 6, "0102"))


JT808_BODY = "0000000000040007005de13c065c6cdb00160000000017011710054201040000a9002a02000030011b310104"
JT808_POSITION = {
    "time": "2017-01-17T02:05:42+00:00",
    "lat": -6.152508,
    "lon": 106.720475,
    "altitude": 22,
    "speed": 0.0,
    "course": 0,
    "fix": True,
    "ignition": True,
    "status": 0x40007,
    "alarm": 0,
    "mileage": 4326.4,
    "2a": "0000",
    "signal": 27,
    "satellites": 4,
}
JT808_WEST_BODY = "000000010000000c" + "025e5f10" + "02faf080" + "0022" + "012d" + "010e" + "260101000000"
JT808_WEST = {
    "time": "2025-12-31T16:00:00+00:00",
    "lat": -39.739152,
    "lon": -50.0,
    "altitude": 34,
    "speed": 30.1,
    "course": 270,
    "fix": False,
    "ignition": False,
    "status": 0xC,
    "alarm": 1,
}

JT808_NOWHERE = {
    "time": None,
    "lat": 0.0,
    "lon": 0.0,
    "altitude": 0,
    "speed": 0.0,
    "course": 0,
    "fix": False,
    "ignition": False,
    "status": 0,
    "alarm": 0,
}


def jt808_steps(phone: str) -> tuple[Step, ...]:
    """Return what is made up alike for terminals of both documents."""
    topic = f"devices/{phone.lstrip('0')}"
    batch = f"000201{len(JT808_BODY) // 2:04x}{JT808_BODY}{len(JT808_WEST_BODY) // 2:04x}{JT808_WEST_BODY}"
    half = len(batch) // 4 * 2
    return (
        step(jt808_frame("0002", phone, 183), jt808_general(phone, 183, "0002")),
        step(
            jt808_frame("0200", phone, 3, JT808_WEST_BODY),
            jt808_general(phone, 3, "0200"),
            (f"{topic}/position", JT808_WEST),
        ),
        step(
            jt808_frame("0704", phone, 0xFFFF, batch[:half], "00020001")
            + jt808_frame("0704", phone, 0, batch[half:], "00020002"),
            jt808_general(phone, 0xFFFF, "0704") + jt808_general(phone, 0, "0704"),
            (f"{topic}/position", JT808_POSITION),
            (f"{topic}/position", JT808_WEST),
        ),
        step(
            jt808_frame("0900", phone, 9, "f07e7d"),
            jt808_general(phone, 9, "0900"),
            (f"{topic}/message", {"id": "0900", "body": "f07e7d"}),
        ),
        step(jt808_frame("0001", phone, 10, "0000810500")),
        step(  # A position that is cut off, and one of a terminal without a clock, with additions cut off.
            jt808_frame("0200", phone, 11, "00000000")
            + jt808_frame("0200", phone, 12, 44 * "0" + 12 * "0" + "0100310103300131" + "7f"),
            jt808_general(phone, 11, "0200") + jt808_general(phone, 12, "0200"),
            (f"{topic}/message", {"id": "0200", "body": "00000000"}),
            (
                f"{topic}/position",
                {**JT808_NOWHERE, "01": "", "satellites": 3, "signal": 49, "rest": "7f"},
            ),
        ),
        step(  # A picture in parts.
            jt808_frame("0801", phone, 13, "00000007000000", "00020001")
            + jt808_frame("0801", phone, 14, "ffd8ffd9", "00020002"),
            jt808_general(phone, 13, "0801") + jt808_frame("8800", phone, 0, "00000007"),
            (f"{topic}/message", {"id": "0801", "body": "00000007000000ffd8ffd9"}),
        ),
    )


def jt808_command(phone: str, serial: int) -> Step:
    """Return a command, which has this *serial* of ours, and its answer."""
    topic = f"devices/{phone.lstrip('0')}"
    return step(
        jt808_frame("0001", phone, 11, f"{serial:04x}810500"),
        "",
        (f"{topic}/answer", {"command": "8105f0", "result": 0}),
        command=(f"{topic}/command", b"8105f0"),
        asked=jt808_frame("8105", phone, serial, "f0"),
    )


JT808_PHONE = "013511221122"
JT808_BAD = (
    bytes.fromhex(
        "7E02000032013511221122000700000000000C000301578CC006CA3A5C0047000000001407231720150104000000003001"
        "1631010BD07E"
    ),
    bytes.fromhex(jt808_frame("0200", JT808_PHONE, 3, JT808_BODY, "00020003")),  # part 3 of 2
    bytes.fromhex(jt808_frame("0200", JT808_PHONE, 3, JT808_BODY, "ffff0001")),
    JT808_WIRE.encode(bytes.fromhex("000200050135112211220000")),  # its length is wrong
)
JT808 = Device(
    "jt808.py",
    "jt808",
    step(
        "7E0100002D013511221122000500000000373031303748422D52303347424400000000000000000000003233363631303402CB"
        "D5424136383630387E"
        "7E0102000E013511221122000661757468656E7469636174696F6E3F7E",
        jt808_frame("8100", JT808_PHONE, 0, "000500" + b"authentication".hex())
        + "7e8001000501351122112200010006010200b47e",
        (
            "devices/13511221122/terminal",
            {"maker": "70107", "model": "HB-R03GBD", "terminal": "2366104", "plate": "苏BA6860"},
        ),
    ),
    jt808_steps(JT808_PHONE),
    (jt808_command(JT808_PHONE, 11),),
    JT808_BAD,
    b"junk",
    bytes.fromhex(
        jt808_frame("8100", JT808_PHONE, 0, "000500" + b"authentication".hex())
        + jt808_general(JT808_PHONE, 6, "0102", 1)
    ),
    header=12,
    plain=without_serials,
)
JT808_2019 = attrs.evolve(
    JT808,
    login=jt808_login("00000000013511221122", "0e" + b"authentication123456789012345".hex() + "00" * 20),
    steps=jt808_steps("00000000013511221122"),
    commands=(jt808_command("00000000013511221122", 10),),
    bad=(),
    header=17,
    refused=bytes.fromhex(jt808_general("00000000013511221122", 6, "0102", 1)),
)
JT808_HEARTBEAT = attrs.evolve(
    JT808,
    login=jt808_login("043048325465"),
    steps=(step("7e0002000004304832546500b7ca7e", jt808_general("043048325465", 183, "0002")),),
    commands=(),
    refused=bytes.fromhex(jt808_general("043048325465", 6, "0102", 1)),
)
JT808_LOCATION = attrs.evolve(
    JT808,
    login=jt808_login("001601285614"),
    steps=(
        step(
            "7e0200002c00160128561400030000000000040007005de13c065c6cdb00160000000017011710054201040000a9002a02"
            "00003"
            "0011b310104e47e",
            jt808_general("001601285614", 3, "0200"),
            ("devices/1601285614/position", JT808_POSITION),
        ),
    ),
    commands=(),
    refused=bytes.fromhex(jt808_general("001601285614", 6, "0102", 1)),
)

# --- NMEA 0183


def nmea_line(text: str) -> str:
    """Return a sentence with its checksum, in hex."""
    return f"{text}*{XOR(text[1:].encode()):02X}\r\n".encode().hex()


NMEA_TOPIC = "devices/127.0.0.1"
NMEA_FIX = {
    "time": "1994-03-23T12:35:19+00:00",
    "lat": 48.1173,
    "lon": 11.516667,
    "speed": 41.4848,
    "course": 84.4,
    "fix": True,
}
NMEA_NOTHING = {"time": None, "lat": None, "lon": None, "fix": False}
NMEA = Device(
    "nmea.py",
    "nmea",
    Step(b""),
    (
        Step(
            b"$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47\r\n",
            published=(
                (
                    f"{NMEA_TOPIC}/position",
                    {
                        "time": "12:35:19+00:00",
                        "lat": 48.1173,
                        "lon": 11.516667,
                        "altitude": 545.4,
                        "satellites": 8,
                        "fix": True,
                    },
                ),
            ),
        ),
        Step(
            b"$GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W*6A\r\n",
            published=((f"{NMEA_TOPIC}/position", NMEA_FIX),),
        ),
        Step(
            b"$GPRMC,192350.000,V,0000.0000,N,00000.0000,E,,,110318,,*12\r\n",
            published=(
                (
                    f"{NMEA_TOPIC}/position",
                    {
                        "time": "2018-03-11T19:23:50+00:00",
                        "lat": 0.0,
                        "lon": 0.0,
                        "speed": None,
                        "course": None,
                        "fix": False,
                    },
                ),
            ),
        ),
        step(  # Made up: in the south-west, by another system, in mode of NMEA 2.3.
            nmea_line("$GNRMC,123519.25,A,3358.500,S,07030.000,W,0.0,359.9,230394,,,A"),
            "",
            (
                f"{NMEA_TOPIC}/position",
                {
                    "time": "1994-03-23T12:35:19.250000+00:00",
                    "lat": -33.975,
                    "lon": -70.5,
                    "speed": 0.0,
                    "course": 359.9,
                    "fix": True,
                },
            ),
        ),
        step(  # Made up: nothing is known yet.
            nmea_line("$GPGGA,123519,,,,,0,,,,M,,M,,"),
            "",
            (
                f"{NMEA_TOPIC}/position",
                {
                    "time": "12:35:19+00:00",
                    "lat": None,
                    "lon": None,
                    "altitude": None,
                    "satellites": 0,
                    "fix": False,
                },
            ),
        ),
        Step(  # Published: a receiver that has just been switched on knows no time either.
            b"$GNRMC,,V,,,,,,,,,,N*4D\r\n$GNGGA,,,,,,0,00,99.99,,,,,,*56\n",
            published=(
                (f"{NMEA_TOPIC}/position", {**NMEA_NOTHING, "speed": None, "course": None}),
                (f"{NMEA_TOPIC}/position", {**NMEA_NOTHING, "altitude": None, "satellites": 0}),
            ),
        ),
        Step(  # Made up: without a checksum, and with one in small letters, behind a block of tags.
            b"$GLGLL,4807.038,N,01131.000,E\n"
            b"$GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W*6a\r\n"
            b"\\s:r003669945,c:1241544035*4A\\!AIVDM,1,1,,B,15N4cJ`005Jrek0H@9n`DW5608EP,0*13\r\n",
            published=(
                (f"{NMEA_TOPIC}/sentence", {"sentence": "$GLGLL,4807.038,N,01131.000,E"}),
                (f"{NMEA_TOPIC}/position", NMEA_FIX),
                (
                    f"{NMEA_TOPIC}/sentence",
                    {"sentence": "!AIVDM,1,1,,B,15N4cJ`005Jrek0H@9n`DW5608EP,0"},
                ),
            ),
        ),
        step(  # Made up: what can't be read is told as it is.
            nmea_line("$GPRMC,123519,A")
            + nmea_line("$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,inf,M,46.9,M,,")
            + nmea_line("$GPRMC,129919,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W"),
            "",
            (f"{NMEA_TOPIC}/sentence", {"sentence": "$GPRMC,123519,A"}),
            (
                f"{NMEA_TOPIC}/sentence",
                {"sentence": "$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,inf,M,46.9,M,,"},
            ),
            (
                f"{NMEA_TOPIC}/sentence",
                {"sentence": "$GPRMC,129919,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W"},
            ),
        ),
        step(
            nmea_line("!AIVDM,1,1,,B,177KQJ5000G?tO`K>RA1wUbN0TKH,0"),
            "",
            (f"{NMEA_TOPIC}/sentence", {"sentence": "!AIVDM,1,1,,B,177KQJ5000G?tO`K>RA1wUbN0TKH,0"}),
        ),
    ),
    (
        step(
            nmea_line("$PMTK001,220,3"),
            "",
            (f"{NMEA_TOPIC}/answer", {"command": "$PMTK220,1000", "answer": "$PMTK001,220,3"}),
            command=(f"{NMEA_TOPIC}/command", b"$PMTK220,1000"),
            asked=b"$PMTK220,1000*1F\r\n".hex(),
        ),
    ),
    (
        b"$GPRMC,192350.000,V,0000.0000,N,00000.0000,E,,,110318,,*13\r\n",
        b"$GPRMC,192350.000,V,0000.0000,N,00000.0000,E,,,110318,,*junk\r\n",
    ),
    b"junk\xff",
    anonymous=True,
)
NMEA_UDP = attrs.evolve(NMEA, udp=True)

# --- Modbus RTU: the server asks; the CRCs are recomputed


def modbus_frame(body: str) -> str:
    """Return a frame that is made up."""
    data = bytes.fromhex(body)
    return (data + CRC16_MODBUS(data).to_bytes(2, "little")).hex()


MODBUS_TOPIC = "devices/127.0.0.1"
MODBUS_ASKS = "010300000002C40B"
MODBUS = Device(
    "modbus_rtu.py",
    "modbus",
    step(
        "01030400060005DA31",
        "",
        (f"{MODBUS_TOPIC}/registers", {"unit": 1, "first": 0, "values": [6, 5]}),
        asked=MODBUS_ASKS,
    ),
    (),
    (
        step(
            "010600010003980B",
            "",
            (
                f"{MODBUS_TOPIC}/answer",
                {"command": '{"unit": 1, "register": 1, "value": 3}', "answer": "written"},
            ),
            command=(f"{MODBUS_TOPIC}/command", b'{"unit": 1, "register": 1, "value": 3}'),
            asked="010600010003980B",
        ),
        step(
            "018602C3A1",
            "",
            (
                f"{MODBUS_TOPIC}/answer",
                {"command": '{"unit": 1, "register": 9, "value": 3}', "error": "illegal data address"},
            ),
            command=(f"{MODBUS_TOPIC}/command", b'{"unit": 1, "register": 9, "value": 3}'),
            asked="01060009000319C9",
        ),
    ),
    (bytes.fromhex("01030400060005DA32"),),
    anonymous=True,
)

# --- Wialon IPS


def wialon_packet(kind: str, body: str) -> bytes:
    """Return a packet of version 2.0 that is made up."""
    return f"#{kind}#{body}{CRC16_ARC(body.encode()):X}\r\n".encode()


WIALON_TOPIC = "devices/1001"
WIALON_PLACE = {
    "time": "2013-04-27T20:56:01+00:00",
    "lat": 55.743375,
    "lon": 37.66139,
    "speed": 1.0,
    "course": 2.0,
    "altitude": 3.0,
    "satellites": 4,
}
WIALON_NOTHING = dict.fromkeys(WIALON_PLACE)
WIALON_LONG: dict[str, Any] = {
    "hdop": None,
    "inputs": None,
    "outputs": None,
    "adc": [],
    "ibutton": None,
    "params": {},
}
WIALON_SHORT = "270413;205601;5544.6025;N;03739.6834;E;1;2;3;4"
WIALON = Device(
    "wialon.py",
    "wialon",
    Step(b"#L#1001;NA\r\n", b"#AL#1\r\n"),
    (
        Step(
            f"#SD#{WIALON_SHORT}\r\n".encode(), b"#ASD#1\r\n", ((f"{WIALON_TOPIC}/position", WIALON_PLACE),)
        ),
        Step(
            f"#D#{WIALON_SHORT};0.0;0;0;14.77,0.02,3.6;NA;count1:1:564,fuel:2:45.8,hw:3:V4.5\r\n".encode(),
            b"#AD#1\r\n",
            (
                (
                    f"{WIALON_TOPIC}/position",
                    {
                        **WIALON_PLACE,
                        "hdop": 0.0,
                        "inputs": 0,
                        "outputs": 0,
                        "adc": [14.77, 0.02, 3.6],
                        "ibutton": None,
                        "params": {"count1": 564, "fuel": 45.8, "hw": "V4.5"},
                    },
                ),
            ),
        ),
        Step(b"#P#\r\n", b"#AP#\r\n"),
        Step(  # Made up: nothing is known, and the line ends as some write it.
            b"#D#NA;NA;NA;NA;NA;NA;NA;NA;NA;NA;NA;NA;NA;;NA;\n",
            b"#AD#1\r\n",
            ((f"{WIALON_TOPIC}/position", {**WIALON_NOTHING, **WIALON_LONG}),),
        ),
        Step(  # Published: its latitude has 64 minutes. The others of its black box are made up.
            f"#B#110315;045857;5364.0167;N;06127.8262;E;0;155;965;7|{WIALON_SHORT}|1;2\r\n".encode(),
            b"#AB#3\r\n",
            (
                (
                    f"{WIALON_TOPIC}/unread",
                    {"packet": "110315;045857;5364.0167;N;06127.8262;E;0;155;965;7"},
                ),
                (f"{WIALON_TOPIC}/position", WIALON_PLACE),
                (f"{WIALON_TOPIC}/unread", {"packet": "1;2"}),
            ),
        ),
        Step("#M#Ещё час\r\n".encode(), b"#AM#1\r\n", ((f"{WIALON_TOPIC}/message", {"text": "Ещё час"}),)),
        Step(b"#QX#?\xff\r\n", b"", ((f"{WIALON_TOPIC}/unread", {"packet": "#QX#?ÿ"}),)),
    ),
    (
        Step(
            b"#AM#1\r\n",
            b"",
            ((f"{WIALON_TOPIC}/answer", {"command": "turn left", "taken": True}),),
            command=(f"{WIALON_TOPIC}/command", b"turn left"),
            asked=b"#M#turn left\r\n",
        ),
    ),
    (b"junk\r\n", b"#SD \r\n"),
    refused=b"#AL#0\r\n",
    header=3,
)
WIALON_2 = attrs.evolve(
    WIALON,
    login=Step(wialon_packet("L", "2.0;1001;NA;"), b"#AL#1\r\n"),
    steps=(
        Step(
            wialon_packet("SD", WIALON_SHORT + ";"),
            b"#ASD#1\r\n",
            ((f"{WIALON_TOPIC}/position", WIALON_PLACE),),
        ),
        Step(
            wialon_packet("B", f"{WIALON_SHORT}|{WIALON_SHORT}|"),
            b"#AB#2\r\n",
            ((f"{WIALON_TOPIC}/position", WIALON_PLACE), (f"{WIALON_TOPIC}/position", WIALON_PLACE)),
        ),
        Step(
            f"#SD#{WIALON_SHORT};BAD\r\n".encode(),
            b"#ASD#13\r\n",
            ((f"{WIALON_TOPIC}/unread", {"packet": f"#SD#{WIALON_SHORT};BAD"}),),
        ),
    ),
    commands=(
        Step(
            b"#AM#0\r\n",
            b"",
            ((f"{WIALON_TOPIC}/answer", {"command": "turn left", "taken": False}),),
            command=(f"{WIALON_TOPIC}/command", b"turn left"),
            asked=wialon_packet("M", "turn left;"),
        ),
    ),
)
WIALON_UDP = attrs.evolve(
    WIALON,
    protocol="wialon-udp",
    login=Step(b""),
    steps=(
        Step(
            f"1001#SD#{WIALON_SHORT}\r\n".encode(),
            b"#ASD#1\r\n",
            ((f"{WIALON_TOPIC}/position", WIALON_PLACE),),
        ),
        Step(
            b"2.0;1001" + wialon_packet("SD", WIALON_SHORT + ";"),
            b"#ASD#1\r\n",
            ((f"{WIALON_TOPIC}/position", WIALON_PLACE),),
        ),
    ),
    commands=(),
    bad=(b"junk\r\n",),
    refused=b"",
    udp=True,
    anonymous=True,
    header=12,
)

# --- Coban and TK103

COBAN_TOPIC = "devices/359586015829802"
COBAN_PLACE: dict[str, Any] = {
    "keyword": "tracker",
    "fix": True,
    "time": "2008-09-23T11:29:09.397000+00:00",
    "local": "0809231929",
    "phone": "13554900601",
    "lat": 22.574448,
    "lon": 113.905478,
    "speed": 0.11,
    "course": 321.53,
}
COBAN_REPORT = (
    "imei:359586015829802,{},0809231929,13554900601,F,112909.397,A,2234.4669,N,11354.3287,E,0.11,321.53"
)
COBAN = Device(
    "coban.py",
    "coban",
    Step(b"##,imei:359586015829802,A;", b"LOAD"),
    (
        Step(COBAN_REPORT.format("tracker").encode() + b";", b"", ((f"{COBAN_TOPIC}/report", COBAN_PLACE),)),
        Step(b"359586015829802;\r\n", b"ON"),
        Step(
            COBAN_REPORT.format("help me").encode() + b";",
            b"**,imei:359586015829802,E;",
            ((f"{COBAN_TOPIC}/report", {**COBAN_PLACE, "keyword": "help me"}),),
        ),
        Step(  # A heartbeat with a report behind it, as some send it.
            b"359586015829802" + COBAN_REPORT.format("acc on").encode() + b",12,1,0,1.5%,,+11;",
            b"ON",
            (
                (
                    f"{COBAN_TOPIC}/report",
                    {
                        **COBAN_PLACE,
                        "keyword": "acc on",
                        "altitude": 12.0,
                        "acc": True,
                        "door": False,
                        "fuel": [1.5, None],
                        "temperature": 11.0,
                    },
                ),
            ),
        ),
        Step(
            b"imei:359586015829802,tracker,000000000,13554900601,L,;",
            b"",
            (
                (
                    f"{COBAN_TOPIC}/report",
                    {
                        "keyword": "tracker",
                        "fix": False,
                        "time": None,
                        "local": "000000000",
                        "phone": "13554900601",
                    },
                ),
            ),
        ),
        Step(
            b"imei:359586015829802,vt\xff,1;",
            b"",
            ((f"{COBAN_TOPIC}/unread", {"packet": "imei:359586015829802,vtÿ,1"}),),
        ),
    ),
    (
        Step(
            b"",
            b"",
            command=(f"{COBAN_TOPIC}/command", b"C,30s"),
            asked=b"**,imei:359586015829802,C,30s",
        ),
    ),
    (b"junk;", b"imei:12,tracker;"),
    anonymous=True,
    header=5,
)
COBAN_UDP = attrs.evolve(COBAN, udp=True)

DEVICES = {
    "gt06": GT06,
    "teltonika": TELTONIKA,
    "teltonika-udp": TELTONIKA_UDP,
    "jt808": JT808,
    "jt808-2019": JT808_2019,
    "jt808-heartbeat": JT808_HEARTBEAT,
    "jt808-location": JT808_LOCATION,
    "nmea": NMEA,
    "nmea-udp": NMEA_UDP,
    "wialon": WIALON,
    "wialon-2.0": WIALON_2,
    "wialon-udp": WIALON_UDP,
    "coban": COBAN,
    "coban-udp": COBAN_UDP,
    "modbus": MODBUS,
}

AMONG_OTHERS = {
    name: attrs.evolve(DEVICES[name], example="trackers.py", protocol="gt06,jt808,teltonika")
    for name in ("gt06", "jt808", "jt808-2019", "teltonika")
}
"""The same devices, on a listener that several protocols share."""
