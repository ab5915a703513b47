"""Looking at traffic from the command line: --record and --hex, replay, decode."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from dpkt import pcap
from dpkt.ethernet import Ethernet

from .test_capture import TALK, datagram
from .test_cli import ECHO, FLEET, gateway, port_of, run

pytestmark = pytest.mark.live

TRACKER = ("--protocol", "tracker")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run a gateway for one device, recorded and dumped; give the recording and what was printed."""
    path = tmp_path_factory.mktemp("session") / "field.jsonl"
    options = ("--listen", "tracker=tcp://127.0.0.1:0", "--record", path, "--hex", "--mask", r"pin (\d+)")
    with (
        gateway(FLEET, *options) as (process, lines),
        socket.create_connection(("127.0.0.1", port_of(lines, "tracker")), timeout=20) as device,
        device.makefile("rb") as stream,
    ):
        device.sendall(b"login 42 s3cret\n")
        assert stream.readline() == b"welcome\n"
        device.sendall(b"pos 48.2 16.3\n")
        assert stream.readline() == b"ok\n"
        device.sendall(b"pin 4711\n")
        assert stream.readline() == b"error: what is pin 4711\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        text = "".join(lines) + process.stdout.read()
        assert process.wait(20) == 0
    return path, text


def test_run_records_and_replay_finds_no_difference(session: tuple[Path, str]) -> None:
    path, _ = session
    code, out, err = run("replay", path, FLEET)
    assert (code, err) == (0, "")
    assert re.fullmatch(r"1 connection, \d+ events: no difference\n", out)


def test_run_prints_the_traffic_in_hex_without_the_password(session: tuple[Path, str]) -> None:
    _, text = session
    time, head = r"\d\d:\d\d:\d\d\.\d{3}", r"1 tracker"
    for pattern in (
        rf"^{time} {head} = opened: tcp 127\.0\.0\.1:\d+$",
        rf"^{time} {head} < 16 bytes\n    0000  6c 6f 67 69 6e 20 34 32  20 2a 2a 2a 2a 2a 2a 0a  ",
        rf"^{time} {head} : frame of 15 bytes for login: 6c 6f",
        rf"^{time} {head} = registered 42$",
        rf"^{time} {head} > 8 bytes\n    0000  77 65 6c 63 6f 6d 65 0a   ",
        rf"^{time} {head} < 9 bytes\n    0000  70 69 6e 20 2a 2a 2a 2a  0a ",
        rf"^{time} {head} = closed: shutdown",
    ):
        assert re.search(pattern, text, re.MULTILINE), text
    assert "s3cret" not in text
    assert b"s3cret".hex(" ") not in text


def test_the_recording_has_no_secrets(session: tuple[Path, str]) -> None:
    path, _ = session
    assert b"s3cret".hex() not in path.read_text()
    assert b"4711".hex() not in path.read_text()
    assert path.read_text().count(b"pin ****".hex()) == 2, "what came, and what was answered"


def test_replay_shows_what_differs_and_exits_with_1(session: tuple[Path, str], tmp_path: Path) -> None:
    path, _ = session
    changed = tmp_path / "changed.py"
    changed.write_text(FLEET.read_text().replace('b"ok"', 'b"fine"'))
    code, out, err = run("replay", path, changed)
    assert (code, err) == (1, "")
    assert "  - > 6f 6b 0a  |ok.|\n  + > 66 69 6e 65 0a  |fine.|\n" in out
    assert out.endswith(": 1 of 1 differ\n")
    assert run("replay", path, changed, "--ignore", "ok|fine")[0] == 0
    assert run("replay", path, FLEET, "--chunk", "1", "--speed", "10")[0] == 0


def test_replay_notes_what_was_cut_off(session: tuple[Path, str], tmp_path: Path) -> None:
    path, _ = session
    cut = tmp_path / "cut.jsonl"
    cut.write_text(path.read_text()[:-9])
    code, out, err = run("replay", cut, FLEET)
    assert "no difference" in out
    assert (code, "was cut off and is skipped" in err) == (0, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello\n", "is not a recording; make one with run --record FILE"),
        ('{"recording":2}\n', "is a recording of version 2, this exproto-app reads version 1"),
        ('{"recording":1}\n{"at":1}\n', "line 2 is not a recorded event (it has no 'conn')"),
        ("", "is not a recording"),
    ],
)
def test_replay_of_what_is_no_recording_exits_with_2(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "it").write_text(text)
    code, _, err = run("replay", tmp_path / "it", FLEET)
    assert (code, words in err, "Traceback" in err) == (2, True, False), err


def test_replay_of_nothing_exits_with_2(session: tuple[Path, str], tmp_path: Path) -> None:
    path, _ = session
    assert run("replay", tmp_path / "nowhere", FLEET)[0] == 2
    assert run("replay", FLEET)[0] == 2
    code, _, err = run("replay", path, ECHO)
    assert (code, "serves no protocol 'tracker'; it serves default" in err) == (2, True)


def test_replay_takes_the_files_of_a_recording_together(tmp_path: Path) -> None:
    path = tmp_path / "field.jsonl"
    options = ("--listen", "tcp://127.0.0.1:0", "--record", path, "--record-size", "0.001")
    with (
        gateway(ECHO, *options) as (process, lines),
        socket.create_connection(("127.0.0.1", port_of(lines)), timeout=20) as device,
        device.makefile("rb") as stream,
    ):
        assert stream.readline() == b"hello\n"
        for number in range(10):
            device.sendall(b"%d\n" % number)
            assert stream.readline() == b"got %d\n" % number
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    files = sorted(tmp_path.iterdir())
    assert len(files) > 2
    code, out, _ = run("replay", *files, ECHO)
    assert (code, "1 connection" in out) == (0, True), out
    assert run("replay", path, ECHO)[0] == 0, "a file by itself"


def test_a_recording_that_cant_be_written_leaves_the_gateway_alone(tmp_path: Path) -> None:
    options = ("--listen", "tcp://127.0.0.1:0", "--record", tmp_path / "nowhere" / "it")
    with (
        gateway(ECHO, *options) as (process, lines),
        socket.create_connection(("127.0.0.1", port_of(lines)), timeout=20) as device,
        device.makefile("rb") as stream,
    ):
        assert stream.readline() == b"hello\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        text = process.stdout.read()
        assert process.wait(20) == 0
    assert text.count("can't be written: no such file or directory; nothing more is recorded") == 1


@pytest.mark.parametrize("command", ["run", "serve"])
def test_wrong_masks_are_usage(command: str) -> None:
    code, _, err = run(command, ECHO, "--hex", "--mask", "(")
    assert (code, "'(' isn't a valid regular expression" in err, err.count("\n")) == (2, True, 1)


# --- decode

DECODED = """\
= opened: tcp 127.0.0.1:50001
= registered hello-127.0.0.1:50001
= subscribing to hello/down qos 1
> 6 bytes
    0000  68 65 6c 6c 6f 0a                                 |hello.|
< 3 bytes
    0000  68 69 0a                                          |hi.|
: frame of 2 bytes for uplink: 68 69
^ hello/up qos 0 'hi'
> 7 bytes
    0000  67 6f 74 20 68 69 0a                              |got hi.|
"""


@pytest.mark.parametrize("hexes", [("68690a",), ("68", "69 0a"), ("0x68,0x69,0x0a",)])
def test_decode_shows_frames_handlers_and_what_they_do(hexes: tuple[str, ...]) -> None:
    code, out, _ = run("decode", ECHO, *hexes)
    assert (code, out) == (0, DECODED)


def test_decode_reads_hex_from_standard_input_and_files(tmp_path: Path) -> None:
    assert run("decode", ECHO, stdin="00000000: 6869 0a    hi.\n")[:2] == (0, DECODED)
    (tmp_path / "dump").write_text("68 69 0a\n")
    assert run("decode", ECHO, tmp_path / "dump")[:2] == (0, DECODED)


def test_decode_takes_more_hex_than_a_file_name_may_have() -> None:
    code, out, err = run("decode", ECHO, b"hi\n".hex() * 200)
    assert (code, err) == (0, "bye 127.0.0.1:50001 shutdown\n"), out
    assert out.count("= opened") == 1
    assert out.count("frame of 2 bytes for uplink") == 200


def test_decode_masks_the_password_and_waits_for_async_handlers() -> None:
    code, out, _ = run("decode", FLEET, *TRACKER, b"login 42 s3cret\n".hex(), "--chunk", "1")
    assert code == 0
    assert "= registered 42" in out
    assert "> 8 bytes" in out
    assert "73 33 63 72 65 74" not in out


def test_decode_of_what_is_no_frame_exits_with_1(tmp_path: Path) -> None:
    code, out, _ = run("decode", FLEET, *TRACKER, "6869")
    assert (code, out.splitlines()[-1]) == (1, "! 2 bytes left, not a whole frame")
    code, out, err = run("decode", FLEET, *TRACKER, stdin="41" * 100_000)
    assert (code, "! framing failed: FramingError: frame has" in out, "Traceback" in err) == (1, True, False)


def test_decode_by_the_first_bytes() -> None:
    both = ("--protocol", "meter,tracker", "--chunk", "1")
    code, out, _ = run("decode", FLEET, *both, "04 00000007 04 00000009")
    assert (code, "= registered meter-7" in out, "^ meters/7 qos 0 '9'" in out) == (0, True, True), out
    code, out, _ = run("decode", FLEET, *both, b"pos 1 2\n".hex())
    assert (code, "frame of 7 bytes for position" in out) == (0, True), out


def test_decode_of_what_is_no_protocol(tmp_path: Path) -> None:
    app = tmp_path / "two.py"
    text = "app.protocol({name!r}, sniff={sniff!r}).on_received(lambda conn, frame: None)\n"
    app.write_text(
        "from exproto_app import App\napp = App()\n"
        + text.format(name="a", sniff=b"abcd")
        + text.format(name="b", sniff=b"b")
    )
    code, out, _ = run("decode", app, "--protocol", "a,b", "ffff")
    assert (code, "! sniff failed: FramingError: no protocol takes 2 bytes: ffff" in out) == (1, True), out
    code, out, _ = run("decode", app, "--protocol", "a,b", "6162")
    assert (code, out.splitlines()[-1]) == (1, "! 2 bytes left, not a whole frame")
    code, _, err = run("decode", app, "--protocol", "a,c", "6162")
    assert (code, "the app serves no protocol 'c'; it serves a, b" in err) == (2, True)


def test_decode_of_a_handler_that_fails_exits_with_1(tmp_path: Path) -> None:
    app = tmp_path / "broken.py"
    app.write_text(
        "from exproto_app import App\napp = App()\n"
        "@app.on_received\ndef broken(conn, frame):\n    print('the app prints')\n    raise KeyError(frame)\n"
    )
    code, out, err = run("decode", app, "01")
    assert (code, "! broken failed: KeyError: b'\\x01'\n" in out, err) == (1, True, "the app prints\n")


def test_decode_for_machines() -> None:
    code, out, _ = run("decode", FLEET, *TRACKER, b"login 42 x\npo".hex(), "--json")
    lines = [json.loads(text) for text in out.splitlines()]
    assert code == 1
    assert [line["event"] for line in lines] == [
        "opened",
        "in",
        "frame",
        "registered",
        "subscribed",
        "out",
        "left",
    ]
    assert lines[2] == {
        "at": 0.0,
        "conn": "1",
        "protocol": "tracker",
        "event": "frame",
        "hex": b"login 42 *".hex(),
        "handler": "login",
    }
    assert lines[-1]["count"] == 2


def test_decode_of_datagrams() -> None:
    code, out, _ = run("decode", ECHO, "--udp", b"one".hex(), b"two".hex())
    assert (code, out.count(": frame of 3 bytes for uplink")) == (0, 2)


def test_decode_of_a_capture(tmp_path: Path) -> None:
    path = tmp_path / "it.pcap"
    with path.open("wb") as file:
        writer = pcap.Writer(file)
        for number, ip in enumerate([*TALK, datagram(b"two")]):
            writer.writepkt(bytes(Ethernet(data=ip, type=0x0800)), ts=number)
    code, out, _ = run("decode", ECHO, path)
    assert code == 0
    assert "1 : frame of 3 bytes for uplink: 6f 6e 65" in out
    assert "2 : frame of 3 bytes for uplink: 74 77 6f" in out
    assert run("replay", path, ECHO)[0] == 1, "the capture has no answer to the datagram"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((ECHO, "hello"), "'hello' is not hex; write it like 78780d01"),
        ((ECHO, "field.hex"), "there is no file 'field.hex' either"),
        ((ECHO, "zz" * 300), "is not hex"),
        ((ECHO, ""), "no bytes given"),
        ((FLEET, "01"), "name the one you mean: --protocol NAME"),
        ((FLEET, "--protocol", "gt06", "01"), "the app serves no protocol 'gt06'"),
    ],
)
def test_wrong_usage_of_decode(arguments: tuple[object, ...], words: str) -> None:
    code, _, err = run("decode", *arguments)
    assert (code, words in err, "Traceback" in err) == (2, True, False), err


def test_a_capture_without_the_extra(tmp_path: Path) -> None:
    path = tmp_path / "it.pcap"
    with path.open("wb") as file:
        pcap.Writer(file)
    hide = "import sys; sys.modules['dpkt'] = None; from exproto_app.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", hide, "decode", str(ECHO), str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "pip install 'exproto-app[pcap]'" in done.stderr) == (1, True)


# --- inside EMQX 4.2


def test_gen_driver_has_each_module_record_into_a_file_of_its_own(tmp_path: Path) -> None:
    record = tmp_path / "field.jsonl"
    options = ("--record", record, "--record-size", "1", "--mask", r"pin=(\d+)")
    code, _, err = run("gen-driver", FLEET, "--out", tmp_path / "out", *options)
    assert code == 0, err
    text = (tmp_path / "out" / "exproto_tracker.py").read_text()
    file = tmp_path / "field-tracker.jsonl"
    masks = (r"pin=(\d+)",)
    assert f", record={str(file)!r}, record_size=1000000, record_keep=5, masks={masks!r})" in text
    code, _, err = run("gen-driver", ECHO, "--out", tmp_path / "one", "--record", record)
    assert f"record={str(record)!r}" in (tmp_path / "one" / "exproto_default.py").read_text()
    assert run("gen-driver", ECHO, "--out", tmp_path / "two", "--mask", "(")[0] == 2
