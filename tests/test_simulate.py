"""A recording becomes a fleet: devices with identities of their own, whose answers are compared."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from exproto_app import App, Connection, SetupError
from exproto_app.checksums import XOR
from exproto_app.cli import main
from exproto_app.cli.simulate import _of_the_first
from exproto_app.framing import Checked, Decoder, Line
from exproto_app.ops.recorder import record
from exproto_app.simulating import Identities, Script, scripts
from exproto_app.simulating.fleet import Latencies
from exproto_app.target import load
from exproto_app.testing import TestClient
from exproto_app.traffic.capture import read

from .devices import DEVICES, EXAMPLES, Device
from .test_cli import gateway, port_of


def recorded(device: Device, path: Path) -> Path:
    """Record *device* while it logs in and says what it has to say."""
    app = load(device.path)
    recorder = record(app, path)
    with TestClient(app, device.protocol, socktype="udp" if device.udp else "tcp") as client:
        for step in (device.login, *device.steps):
            if step.sends:
                client.send(step.sends)
            client.recv()
            client.advance(0.1)
    app.unwatch(recorder)
    recorder.close()
    return path


def simulate(path: Path, server: str, *options: object) -> tuple[int, dict[str, Any], str]:
    """Run the command; return its exit code, its summary, and what it said beside it."""
    arguments = ["simulate", str(path), "--to", server, "--json", *map(str, options)]
    result = CliRunner().invoke(main, arguments)
    out = result.stdout.strip().splitlines()
    summary = json.loads(out[-1]) if out and out[-1].startswith("{") else {}
    return result.exit_code, summary, result.stderr


# --- identities


@given(st.integers(10**14, 10**15 - 1), st.integers(0, 999), st.binary(max_size=20))
def test_an_identity_is_replaced_in_each_form_and_nothing_else_is(
    imei: int, device: int, other: bytes
) -> None:
    text = str(imei)
    identities = Identities.of([text], 1_000)
    (name,) = identities.named(device)
    assert (len(name), name[:12], name[12:]) == (15, text[:12], f"{device:03d}")
    forms = (text.encode(), bytes.fromhex("0" + text), imei.to_bytes(8, "big"))
    new = (name.encode(), bytes.fromhex("0" + name), int(name).to_bytes(8, "big"))
    data = b"|".join((other, *forms, other))
    if not identities.told_in(other):
        assert identities.rewritten(data, device) == b"|".join((other, *new, other))


def test_devices_behind_a_line_have_identities_of_their_own() -> None:
    identities = Identities.of(["000000000161", "000000000162", "000000000161"], 50)
    names = [name for device in range(50) for name in identities.named(device)]
    assert len(set(names)) == 100


def test_an_identity_that_is_too_short_is_refused() -> None:
    with pytest.raises(SetupError, match="identity '12' is too short for 1,000 devices"):
        Identities.of(["12"], 1_000)


def test_percentiles_are_right_within_a_few_percent() -> None:
    latencies = Latencies()
    for milliseconds in range(1, 1_001):
        latencies.add(milliseconds / 1e3)
    for percent in (50, 90, 99):
        assert latencies.percentile(percent) == pytest.approx(percent / 100, rel=0.03)
    assert latencies.percentile(100) == latencies.most == 1.0
    assert Latencies().percentile(99) == 0.0


# --- scripts

WITH_IDENTITIES = ("gt06", "teltonika", "jt808", "jt808-2019", "wialon", "coban")


@pytest.mark.parametrize("name", WITH_IDENTITIES)
def test_each_devices_frames_are_made_anew_with_its_identity(name: str, tmp_path: Path) -> None:
    """They have their checksums, and the app answers each device as it answered the recorded one."""
    device = DEVICES[name]
    recording = read(recorded(device, tmp_path / "it.jsonl"))
    app = load(device.path)
    (script,), notes = scripts(recording, 100, app=app)
    assert notes == []
    for number in (7, 42):
        decoder = Decoder(app.protocols[device.protocol].framing)
        with TestClient(load(device.path), device.protocol) as client:
            for step in script.steps:
                data = step.data(script.identities, number)
                assert decoder.feed(data)
                assert decoder.take_bad() == []
                client.send(data)
            (name_,) = script.identities.named(number)
            assert client.connection.client is not None
            assert client.connection.client.clientid == name_
            # What the server counts up differs between this run and that only where it does in the recording.
            assert device.plain(client.recv()) == device.plain(script.expected(number))


def test_a_step_knows_what_was_answered_before_it(tmp_path: Path) -> None:
    script = script_of(DEVICES["gt06"], tmp_path)
    assert [step.answered for step in script.steps][:2] == [0, 10]
    assert [round(step.at, 1) for step in script.steps][:3] == [0.0, 0.1, 0.2]


def script_of(device: Device, folder: Path, **options: Any) -> Script:
    (script,), _ = scripts(read(recorded(device, folder / "it.jsonl")), 10, **options)
    return script


def test_what_stands_between_frames_stays_and_frames_have_their_checksums(tmp_path: Path) -> None:
    """Here garbage before the login, which the framing skips."""
    device = DEVICES["gt06"]
    login = attrs.evolve(device.login, sends=device.garbage + device.login.sends)
    script = script_of(attrs.evolve(device, login=login), tmp_path, app=load(device.path))
    data = script.steps[0].data(script.identities, 7)
    assert data.startswith(device.garbage)
    decoder = Decoder(load(device.path).protocols["gt06"].framing)
    assert len(decoder.feed(data)) == 1


def test_what_cannot_be_made_anew_is_said(tmp_path: Path) -> None:
    """Here a line with a checksum that ends otherwise than the app's framing has it."""
    app = App(framing=Checked(Line(ending=b"\r\n"), XOR, mark=b"*", text=True))

    @app.on_received
    def on_line(conn: Connection, line: bytes) -> None:
        conn.register(line.decode())

    recorder = record(app, tmp_path / "it.jsonl")
    with TestClient(app) as client:
        client.send(b"meter-0001*%02X\n" % XOR(b"meter-0001"))
    app.unwatch(recorder)
    recorder.close()
    _, notes = scripts(read(tmp_path / "it.jsonl"), 10, app=app)
    assert notes == ["connection 1: its frames can't be made anew; checksums stay as they are"]


def test_without_an_app_identities_change_and_that_checksums_do_not_is_said(tmp_path: Path) -> None:
    (_,), notes = scripts(read(recorded(DEVICES["gt06"], tmp_path / "it.jsonl")), 10)
    assert notes == ["identities change, checksums over them stay as they are without --app"]


def test_identities_may_be_found_by_an_expression(tmp_path: Path) -> None:
    recording = read(recorded(DEVICES["wialon"], tmp_path / "it.jsonl"))
    (script,), _ = scripts(recording, 10, identity=re.compile(rb"#L#(\d+)"))
    assert script.identities.texts == ("1001",)
    with pytest.raises(SetupError, match="--identity nothing matches nothing that a device sent"):
        scripts(recording, 10, identity=re.compile(b"nothing"))


def test_a_recording_without_devices_is_refused(tmp_path: Path) -> None:
    app = load(str(EXAMPLES / "gt06.py"))
    recorder = record(app, tmp_path / "it.jsonl")
    with TestClient(app):
        pass
    app.unwatch(recorder)
    recorder.close()
    with pytest.raises(SetupError, match="the recording has no connection whose device sent something"):
        scripts(read(tmp_path / "it.jsonl"), 10)


def test_of_a_recording_with_many_connections_the_first_are_kept() -> None:
    lines = ['{"recording":1}\n', *(f'{{"conn":"{number}","event":"in"}}\n' for number in range(100_000))]
    lines.insert(2, '{"conn":"0.1","event":"in"}\n')
    kept = [line for line in _of_the_first(iter(lines), 3) if line.strip()]
    assert [line.partition('"conn":')[2][:5] for line in kept] == ["", '"0","', '"0.1"', '"1","', '"2","']


# --- fleets


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """Give the port of a gateway that serves GT06, and UDP on the same port."""
    options = ("--listen", "tcp://127.0.0.1:0", "--mqtt-listen", "127.0.0.1:0")
    with gateway(EXAMPLES / "gt06.py", *options) as (_, lines):
        yield port_of(lines, "gt06")


@pytest.mark.live
@pytest.mark.parametrize("speed", ["max", "100"])
def test_a_fleet_is_answered_as_the_recorded_device_was(server: int, speed: str, tmp_path: Path) -> None:
    path = recorded(DEVICES["gt06"], tmp_path / "it.jsonl")
    app = EXAMPLES / "gt06.py"
    code, summary, said = simulate(
        path, f"tcp://127.0.0.1:{server}", "--devices", 50, "--app", app, "--speed", speed
    )
    assert (code, said) == (0, "")
    assert (summary["connected"], summary["finished"], summary["differing"]) == (50, 50, 0)
    assert summary["frames"] >= 50 * len(DEVICES["gt06"].steps)
    assert summary["latency_ms"]["count"] > 0


@pytest.mark.live
def test_what_is_answered_otherwise_is_told(server: int, tmp_path: Path) -> None:
    """Without the app the checksum of the login is wrong: nothing is answered to a frame that is dropped."""
    path = recorded(DEVICES["gt06"], tmp_path / "it.jsonl")
    code, summary, _ = simulate(
        path, f"tcp://127.0.0.1:{server}", "--devices", 20, "--timeout", 0.5, "--speed", "max"
    )
    assert (code, summary["differing"]) == (1, 20)
    assert len(summary["examples"]) == 10
    assert re.match(r"device \d+ \(1234567890123\d\d\), connection 1: ", summary["examples"][0])


@pytest.mark.live
def test_random_parts_of_answers_may_be_ignored(tmp_path: Path) -> None:
    """Here the app's answers have another word than in the recording."""
    script = tmp_path / "echo.py"
    script.write_text(
        "from exproto_app import App, Connection\nfrom exproto_app.framing import Line\n\n"
        "app = App(framing=Line())\n\n\n"
        "@app.on_received\ndef on_line(conn: Connection, line: bytes) -> bytes:\n"
        '    conn.register(line.decode())\n    return b"WORD " + line\n'
    )
    source = script.read_text()
    script.write_text(source.replace("WORD", "one"))
    app = load(str(script))
    path = tmp_path / "it.jsonl"
    recorder = record(app, path)
    with TestClient(app) as client:
        client.send(b"meter-0001\n")
    app.unwatch(recorder)
    recorder.close()
    script.write_text(
        source.replace("WORD", "three")
    )  # not as long, or Python might take what it had compiled
    with gateway(script, "--listen", "tcp://127.0.0.1:0", "--mqtt-listen", "127.0.0.1:0") as (_, lines):
        where = f"tcp://127.0.0.1:{port_of(lines)}"
        code, summary, _ = simulate(path, where, "--devices", 3)
        assert (code, summary["differing"]) == (1, 3)
        assert "answered 74 68 72 65 65 20" in summary["examples"][0]
        assert simulate(path, where, "--devices", 3, "--ignore", "one|three")[0] == 0


@pytest.mark.live
def test_a_fleet_speaks_udp(tmp_path: Path) -> None:
    options = ("--listen", "wialon-udp=udp://127.0.0.1:0", "--mqtt-listen", "127.0.0.1:0")
    path = recorded(DEVICES["wialon-udp"], tmp_path / "it.jsonl")
    with gateway(EXAMPLES / "wialon.py", *options) as (_, lines):
        where = f"udp://127.0.0.1:{port_of(lines, 'wialon-udp')}"
        code, summary, _ = simulate(
            path, where, "--devices", 30, "--speed", "max", "--app", EXAMPLES / "wialon.py"
        )
        assert (code, summary["finished"]) == (0, 30)
        result = CliRunner().invoke(main, ["simulate", str(path), "--to", where.replace("udp", "tcp")])
    assert result.exit_code == 2
    assert result.stderr.endswith("connection 1 of the recording is datagrams; --to tcp:// can't play it\n")


@pytest.mark.live
def test_a_server_that_is_not_there_or_hangs_up_is_told(tmp_path: Path) -> None:
    path = recorded(DEVICES["gt06"], tmp_path / "it.jsonl")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def hang_up() -> None:
            for _ in range(2):
                listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        code, summary, _ = simulate(path, f"tcp://127.0.0.1:{port}", "--devices", 2)
        thread.join(20)
    assert (code, summary["differing"]) == (1, 2)
    assert "closed by the server" in summary["examples"][0] or "error" in summary["examples"][0]
    code, summary, _ = simulate(path, f"tcp://127.0.0.1:{port}", "--devices", 2)
    assert (code, sum(summary["failed"].values())) == (1, 2)


@pytest.mark.live
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--to", "127.0.0.1:80"), "--to 127.0.0.1:80 is not a server; write tcp://HOST:PORT"),
        (("--to", "tcp://h:99999"), "--to tcp://h:99999 is not a server"),
        (("--to", "tcp://h:1", "--identity", "("), "--identity ( is not a regular expression"),
        (("--to", "tcp://h:1", "--devices", "1000000"), "1,000,000 devices need 1,000,100 open files"),
    ],
)
def test_what_the_user_did_wrong_is_one_sentence(
    options: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    path = recorded(DEVICES["gt06"], tmp_path / "it.jsonl")
    result = CliRunner().invoke(main, ["simulate", str(path), *options])
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.live
def test_a_file_that_is_no_recording_is_one_sentence(tmp_path: Path) -> None:
    for content, words in ((b"\xff\xfe", "is neither a recording nor"), (b"x\n", "is not a recording")):
        path = tmp_path / "it.jsonl"
        path.write_bytes(content)
        result = CliRunner().invoke(main, ["simulate", str(path), "--to", "tcp://h:1"])
        assert (result.exit_code, words in result.stderr) == (2, True)
