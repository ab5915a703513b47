"""Recordings: their format, the files they are in, and hex dumps at the terminal."""

from __future__ import annotations

import io
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exproto_app import (
    Address,
    App,
    Certificate,
    ClientInfo,
    Connection,
    ConnectionInfo,
    DeniedError,
    Message,
    SetupError,
    UnavailableError,
)
from exproto_app.framing import Line
from exproto_app.ops.recorder import HexDump, Recorder
from exproto_app.tap import (
    Closed,
    Delivered,
    Dropped,
    Event,
    Failed,
    Frame,
    Opened,
    Published,
    Received,
    Refused,
    Registered,
    Sent,
    Subscribed,
    Tap,
    Unsubscribed,
)
from exproto_app.testing import TestClient
from exproto_app.traffic.hexdump import dump, undump
from exproto_app.traffic.recording import Entry, Gap, RecordedError, header, line, parse

HEAD = header("2026-01-02T03:04:05.678+00:00", "exproto-app 1.0")

# --- the format

texts = st.text(max_size=10)
counts = st.integers(0, 2**31)
hosts = st.sampled_from(["10.0.0.7", "::1", "fe80::1%eth0", ""])
addresses = st.builds(Address, hosts, st.integers(0, 65_535))
certificates = st.none() | st.builds(Certificate, texts, texts)
infos = st.builds(
    ConnectionInfo, st.sampled_from(["tcp", "ssl", "udp", "dtls"]), addresses, addresses, certificates
)
clients = st.builds(
    ClientInfo, st.text(min_size=1, max_size=10), texts, texts, texts, texts, st.integers(0, 65_535)
)
messages = st.builds(Message, texts, st.binary(max_size=20), st.integers(0, 2), st.booleans())
events: st.SearchStrategy[Event | Gap] = st.one_of(
    st.builds(Opened, infos, st.booleans(), st.booleans(), st.none() | clients),
    st.builds(Received, st.binary(max_size=50)),
    st.builds(Frame, st.binary(max_size=50), st.none() | texts),
    st.builds(Sent, st.binary(max_size=50)),
    st.builds(Published, messages),
    st.builds(Delivered, messages, st.none() | texts, counts),
    st.builds(Registered, clients),
    st.builds(Subscribed, texts, st.integers(0, 2)),
    st.builds(Unsubscribed, texts),
    st.builds(Refused, texts, texts, st.sampled_from([DeniedError("no"), UnavailableError("away")])),
    st.builds(Failed, texts, st.builds(RecordedError, texts)),
    st.builds(Dropped, texts, counts),
    st.builds(Closed, st.sampled_from(["lost", "device closed"]), texts),
    st.builds(Gap, counts),
)
entries = st.builds(Entry, st.floats(0, 1e6).map(lambda at: round(at, 6)), texts, texts, events)


@given(st.lists(entries, max_size=10))
def test_what_is_written_is_read(written: list[Entry]) -> None:
    written.sort(key=lambda entry: entry.at)
    text = "".join(f"{line(entry)}\n" for entry in written)
    recording = parse([HEAD + "\n", *text.splitlines(keepends=True)], "it")
    assert [line(entry) for entry in recording.entries] == [line(entry) for entry in written]
    for read, entry in zip(recording.entries, written, strict=True):
        if not isinstance(entry.event, Refused | Failed):  # exceptions have no equality
            assert read.event == entry.event


def test_a_secret_in_an_error_or_in_the_words_of_the_end_is_masked() -> None:
    source = Source(shown := Shown())
    source.show("1", Received(b"login s3cret"))
    source.taps["1"].keep_secret("s3cret", ClientInfo("1"))
    source.show("1", Failed("login", ValueError(b"login s3cret")))
    source.show("1", Closed("error", "b'login s3cret'"))
    _, *lines = (line(Entry(0.0, "1", "gt06", event)) for event in shown.events)
    assert not [text for text in lines if "s3cret" in text]
    assert len(lines) == 2


@given(st.text(max_size=60), st.dictionaries(texts, st.none() | texts | counts, max_size=3))
def test_a_foreign_line_is_told_in_one_sentence(text: str, facts: dict[str, Any]) -> None:
    for foreign in (text.replace("\n", ""), json.dumps(facts), json.dumps({"event": "in", **facts})):
        if not foreign.strip():
            continue
        with pytest.raises(SetupError, match="line 2 is not a recorded event"):
            parse([HEAD + "\n", foreign + "\n"], "it")


def test_a_last_line_that_was_cut_off_is_left_out_and_noted() -> None:
    whole = line(Entry(1.0, "1", "gt06", Received(b"\x78\x78")))
    recording = parse([HEAD + "\n", whole + "\n", whole[:-7]], "it")
    assert [entry.event for entry in recording.entries] == [Received(b"\x78\x78")]
    assert recording.notes == ["it, line 3 was cut off and is skipped"]


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ("", "it is not a recording; make one with run --record FILE"),
        ("hello", "it is not a recording"),
        ("[1]", "it is not a recording"),
        ('{"recording":2}', "it is a recording of version 2, this exproto-app reads version 1"),
    ],
)
def test_other_files_and_versions_are_refused(first: str, words: str) -> None:
    with pytest.raises(SetupError, match=re.escape(words)):
        parse([first], "it")


def test_lines_say_what_the_docstring_says() -> None:
    info = ConnectionInfo("tcp", Address("10.0.0.7", 5000), Address("::1", 7993))
    assert line(Entry(0.25, "1", "gt06", Opened(info))) == (
        '{"at":0.25,"conn":"1","protocol":"gt06","event":"opened","socktype":"tcp",'
        '"peer":"10.0.0.7:5000","local":"[::1]:7993"}'
    )
    assert line(Entry(0.5, "1", "gt06", Received(b"xx"))) == (
        '{"at":0.500000,"conn":"1","protocol":"gt06","event":"in","hex":"7878"}'
    )


# --- files


class Shown:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, tap: Tap, now: float, event: Event) -> None:
        self.events.append(event)


class Source:
    """A tap without a connection, to have events shown."""

    def __init__(self, watcher: Callable[[Tap, float, Event], object]) -> None:
        self.now = 0.0
        self.broken = False
        self.watcher = watcher
        self.taps: dict[str, Tap] = {}

    def show(self, conn: str, event: Event) -> None:
        if conn not in self.taps:
            tap = Tap(conn, "gt06", time=lambda: self.now, masks=(), broken=self._broken)
            tap.add(self.watcher, None)
            self.taps[conn] = tap
        self.taps[conn].show(event)

    def _broken(self, _: object) -> None:
        self.broken = True


INFO = ConnectionInfo("tcp", Address("10.0.0.7", 5000), Address("10.0.0.1", 7993))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_a_recording_is_written_and_may_be_read_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "it.jsonl"
    recorder = Recorder(path, clock=lambda: 1_767_323_045.678)
    source = Source(recorder)
    source.now = 100.0
    source.show("1", Opened(INFO))
    source.now = 100.5
    source.show("1", Received(b"xx"))
    source.show("1", Frame(b"x", "login"))
    recorder.close()
    first, *rest = lines_of(path)
    assert (first["recording"], first["started"]) == (1, "2026-01-02T03:04:05.678000+00:00")
    assert [(entry["at"], entry["event"]) for entry in rest] == [(0.0, "opened"), (0.5, "in")]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_files_rotate_by_size_and_each_can_be_read_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "it.jsonl"
    path.write_text("what was there before\n")
    recorder = Recorder(path, size=1_000, keep=2)
    source = Source(recorder)
    client = ClientInfo("42")
    source.show("1", Opened(INFO))
    source.show("1", Registered(client))
    for _ in range(40):
        source.show("1", Received(b"x" * 30))
    recorder.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["it.jsonl", "it.jsonl.1", "it.jsonl.2"]
    for name in ("it.jsonl", "it.jsonl.1", "it.jsonl.2"):
        assert (tmp_path / name).stat().st_size < 1_400
        first, *rest = parse((tmp_path / name).read_text().splitlines(keepends=True), name).entries
        assert first.event == Opened(INFO, late=True, client=client)
        assert {type(entry.event) for entry in rest} == {Received}


def test_what_was_there_before_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "it.jsonl"
    path.write_text("what was there before\n")
    recorder = Recorder(path)
    Source(recorder).show("1", Received(b"x"))
    recorder.close()
    assert (tmp_path / "it.jsonl.1").read_text() == "what was there before\n"


def test_a_file_that_cant_be_written_is_one_line_in_the_log_and_ends_the_recording(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(tmp_path / "nowhere" / "it.jsonl")
    source = Source(recorder)
    source.show("1", Received(b"x"))
    recorder.close()
    for _ in range(3):
        source.show("1", Received(b"x"))
    assert source.broken
    (record,) = caplog.records
    assert re.search("can't be written: no such file or directory; nothing more is rec", record.getMessage())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_a_full_disk_ends_the_recording(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "it.jsonl"
    path.symlink_to("/dev/full")
    recorder = Recorder(path)
    Source(recorder).show("1", Received(b"x"))
    recorder.close()
    (record,) = caplog.records
    assert "can't be written: no space left on device" in record.getMessage()


def test_a_file_that_another_process_records_into_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "it.jsonl"
    first, second = Recorder(path), Recorder(path)
    Source(first).show("1", Received(b"x"))
    first._background.close()  # written, and still open
    Source(second).show("1", Received(b"y"))
    second.close()
    first.close()
    assert [entry["hex"] for entry in lines_of(path)[1:]] == ["78"]
    assert "another process records into it" in caplog.text


def test_what_a_slow_disk_cant_take_is_left_out_and_said(tmp_path: Path) -> None:
    path = tmp_path / "it.jsonl"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    recorder = Recorder(path)
    recorder._background._limit = 2_000
    source = Source(recorder)
    os.close(reader)
    for _ in range(40):
        source.show("1", Received(b"x"))
    recorder._background._limit = 1_000_000
    source.show("1", Received(b"y"))
    waiting = [item[3] for item, _ in recorder._background._waiting]
    gaps = [event.count for event in waiting if isinstance(event, Gap)]
    assert gaps == [41 - sum(isinstance(event, Received) for event in waiting)]
    path.unlink()
    recorder.close()


# --- hex at the terminal


def test_traffic_as_a_hex_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    app = App(framing=Line())

    @app.on_received(b"login ")
    def login(conn: Connection, frame: bytes) -> bytes:
        conn.register("42", username="bob", password=frame[6:].decode())
        conn.subscribe("down/42", qos=1)
        return b"welcome, " + b"." * 20

    @app.on_received
    def up(conn: Connection, frame: bytes) -> None:
        conn.publish("up/42", frame)
        conn.publish("up/42", b"\xff\x00", qos=1, retain=True)

    @app.on_received(b"bad")
    def bad(conn: Connection, frame: bytes) -> None:
        raise ValueError("s3cret and \x1b[31mred")

    @app.on_deliver
    def command(conn: Connection, message: Message) -> None:
        pass

    stream = io.StringIO()
    printer = HexDump(stream, clock=lambda: 0.25)
    monkeypatch.setenv("TZ", "UTC")
    with TestClient(app, raise_errors=False) as device:
        device.app.watch(printer)
        device.send(b"login s3cret\n", chunk=6)
        device.advance(61.5)
        device.send(b"hi\nyou\n")
        device.deliver("down/42", b"work\x1b")
        device.send(b"bad\n")
        app.unwatch(printer)
    printer.close()
    assert re.sub(r"(?m)^\d\d:", "hh:", stream.getvalue()) == DUMP


DUMP = """\
hh:00:00.250 1 default = open already: tcp 127.0.0.1:50001
hh:00:00.250 1 default < 6 bytes
    0000  6c 6f 67 69 6e 20                                 |login |
hh:00:00.250 1 default < 6 bytes
    0000  2a 2a 2a 2a 2a 2a                                 |******|
hh:00:00.250 1 default < 1 byte
    0000  0a                                                |.|
hh:00:00.250 1 default : frame of 12 bytes for LOGIN: 6c 6f 67 69 6e 20 2a 2a 2a 2a 2a 2a
hh:00:00.250 1 default = registered 42 (bob)
hh:00:00.250 1 default = subscribing to down/42 qos 1
hh:00:00.250 1 default > 30 bytes
    0000  77 65 6c 63 6f 6d 65 2c  20 2e 2e 2e 2e 2e 2e 2e  |welcome, .......|
    0010  2e 2e 2e 2e 2e 2e 2e 2e  2e 2e 2e 2e 2e 0a        |..............|
hh:01:01.750 1 default < 7 bytes
    0000  68 69 0a 79 6f 75 0a                              |hi.you.|
hh:01:01.750 1 default : frame of 2 bytes for UP: 68 69
hh:01:01.750 1 default ^ up/42 qos 0 'hi'
hh:01:01.750 1 default ^ up/42 qos 1 retain ff 00
hh:01:01.750 1 default : frame of 3 bytes for UP: 79 6f 75
hh:01:01.750 1 default ^ up/42 qos 0 'you'
hh:01:01.750 1 default ^ up/42 qos 1 retain ff 00
hh:01:01.750 1 default v down/42 qos 0 77 6f 72 6b 1b for COMMAND
hh:01:01.750 1 default < 4 bytes
    0000  62 61 64 0a                                       |bad.|
hh:01:01.750 1 default : frame of 3 bytes for BAD: 62 61 64
hh:01:01.750 1 default ! BAD failed: 'ValueError: ****** and \\x1b[31mred'
hh:01:01.750 1 default = closed: error, '****** and \\x1b[31mred'
""".replace("LOGIN", "test_traffic_as_a_hex_dump.<locals>.login")
for _name in ("up", "command", "bad"):
    DUMP = DUMP.replace(_name.upper(), f"test_traffic_as_a_hex_dump.<locals>.{_name}")


# --- hex from elsewhere


@given(st.binary(min_size=1, max_size=100))
def test_a_dump_is_read_back(data: bytes) -> None:
    assert undump("\n".join(dump(data))) == data
    assert undump(data.hex()) == undump(data.hex(" ")) == undump(data.hex(":")) == data


WANTED = bytes.fromhex("78780d01034353215321621503a50d0a7a")


@pytest.mark.parametrize(
    "text",
    [
        "78780d01034353215321621503a50d0a7a",
        "7878 0d01 0343 5321 5321 6215 03a5 0d0a 7a",
        "0x78780d01034353215321621503a50d0a7a",
        "78:78:0d:01:03:43:53:21:53:21:62:15:03:A5:0D:0A:7A",
        "78-78-0D-01-03-43-53-21-53-21-62-15-03-A5-0D-0A-7A",
        "{0x78, 0x78, 0xd, 0x1, 0x3, 0x43, 0x53, 0x21, 0x53, 0x21, 0x62, 0x15, 0x3, 0xa5, 0xd, 0xa, 0x7a}",
        (
            "unsigned char f[17] = {\n 0x78,0x78,0x0d,0x01,0x03,0x43,0x53,0x21, // start\n"
            " 0x53,0x21,0x62,0x15,0x03,0xa5,0x0d,0x0a,0x7a /* end */ };"
        ),
        r"b'\x78\x78\x0d\x01\x03\x43\x53\x21\x53\x21\x62\x15\x03\xa5\x0d\x0a\x7a'",
        (
            "00000000: 7878 0d01 0343 5321 5321 6215 03a5 0d0a  xx...CS!S!b.....\n"
            "00000010: 7a                                       z\n"
        ),
        (
            "00000000  78 78 0d 01 03 43 53 21  53 21 62 15 03 a5 0d 0a  |xx...CS!S!b.....|\n"
            "00000010  7a                                                |z|\n00000011\n"
        ),
        "0000000 7878 010d 4303 2153 2153 1562 a503 0a0d\n0000010 007a\n0000011\n",
        "\t0x0000:  7878 0d01 0343 5321 5321 6215 03a5 0d0a  xx...CS!S!b.....\n\t0x0010:  7a  z\n",
    ],
)
def test_hex_as_people_have_it(text: str) -> None:
    assert undump(text) == WANTED


@given(st.text(alphabet="0123456789abcdefx:*|{},\\\n ", max_size=80) | st.text(max_size=40))
def test_any_text_is_hex_or_refused(text: str) -> None:
    try:
        assert isinstance(undump(text), bytes)
    except SetupError as error:
        assert re.search("is not hex|has an odd number", str(error))  # noqa: PT017 - it may pass too


def test_a_dump_that_claims_to_be_huge_is_none() -> None:
    with pytest.raises(SetupError, match="is not hex"):
        undump("00000000  00 00  |..|\n*\nffffffffffff0\n")


def test_a_dump_with_repeated_lines() -> None:
    row = "00000000  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|\n"
    assert undump(row + "*\n00000040  01  |.|\n00000041\n") == bytes(64) + b"\x01"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello", "'hello' is not hex"),
        ("787", "'787' has an odd number of hex digits"),
        ("78 7g", "'7g' is no"),
    ],
)
def test_what_is_no_hex_is_named(text: str, words: str) -> None:
    with pytest.raises(SetupError, match=words):
        undump(text)
