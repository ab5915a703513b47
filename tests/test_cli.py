"""The command line, as its user calls it: what it prints, and how it ends."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.live

ROOT = Path(__file__).parent.parent
ECHO = ROOT / "examples" / "echo.py"
FLEET = ROOT / "examples" / "fleet.py"
TWO = ROOT / "tests" / "data" / "two.py"
COMMAND = (sys.executable, "-m", "exproto_app")


def run(*arguments: object, stdin: str = "", cwd: Path | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


@contextlib.contextmanager
def gateway(
    *arguments: object, env: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run the gateway; give the process, and the lines up to the one that says that it serves."""
    process = subprocess.Popen(
        [*COMMAND, "run", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PYTHONUNBUFFERED": "1", "EXPROTO_MQTT_LISTEN": "off"},
    )
    assert process.stdout is not None
    try:
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C stops it" in line:
                break
        yield process, lines
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def port_of(lines: list[str], protocol: str = "default") -> int:
    text = "".join(lines)
    match = re.search(rf"{protocol} on \w+://127\.0\.0\.1:(\d+)", text)
    assert match, text
    return int(match[1])


def test_run_serves_and_stops_gracefully() -> None:
    with gateway(ECHO, "--listen", "tcp://127.0.0.1:0") as (process, lines):
        assert f"nc 127.0.0.1 {port_of(lines)}" in "".join(lines)
        with (
            socket.create_connection(("127.0.0.1", port_of(lines)), timeout=20) as device,
            device.makefile("rb") as stream,
        ):
            device.sendall(b"hi\n")
            assert [stream.readline(), stream.readline()] == [b"hello\n", b"got hi\n"]
            process.send_signal(signal.SIGTERM)
            assert stream.readline() == b""
        assert process.stdout is not None
        out = process.stdout.read()
        assert process.wait(20) == 0
        assert re.search(r"bye 127\.0\.0\.1:\d+ shutdown", out)
        assert "any password is accepted" in "".join(lines) + out


LEAVING = """
import asyncio, sys

from exproto_app import App, Connection
from exproto_app.framing import Line

app = App(framing=Line())


@app.on_received
async def leave(conn: Connection, frame: bytes) -> None:
    if frame == b"later":
        await asyncio.sleep(0)
    sys.exit(3)


@app.on_terminated
def gone(conn: Connection, reason: str) -> None:
    print("bye", reason)
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("when", [b"now", b"later"])
def test_a_handler_may_end_the_program(tmp_path: Path, loop: str, when: bytes) -> None:
    """Whether it has waited before or not, and whether its task begins at once or not."""
    pytest.importorskip(loop)
    target = tmp_path / "leaving.py"
    target.write_text(LEAVING)
    with gateway(target, "--listen", "tcp://127.0.0.1:0", "--loop", loop) as (process, lines):
        with socket.create_connection(("127.0.0.1", port_of(lines)), timeout=20) as device:
            device.sendall(when + b"\n")
            assert device.recv(100) == b""
        assert process.stdout is not None
        out = process.stdout.read()
        assert process.wait(20) == 3
        assert "leave failed: SystemExit(3)" in out
        assert "bye error" in out


def test_run_behind_a_load_balancer() -> None:
    listens = ("--listen", "tcp://127.0.0.1:0", "--proxy-protocol")
    with gateway(ECHO, *listens) as (process, lines):
        with (
            socket.create_connection(("127.0.0.1", port_of(lines)), timeout=20) as device,
            device.makefile("rb") as stream,
        ):
            device.sendall(b"PROXY TCP4 203.0.113.7 198.51.100.1 40000 7993\r\nhi\n")
            assert [stream.readline(), stream.readline()] == [b"hello\n", b"got hi\n"]
        assert process.stdout is not None
        assert any("bye 203.0.113.7:40000 device closed" in line for line in process.stdout)


def test_run_several_protocols_and_kinds() -> None:
    listens = ("--listen", "tracker=tcp://127.0.0.1:0", "--listen", "meter=udp://127.0.0.1:0")
    with gateway(FLEET, *listens, "--stats", "0.05") as (process, lines):
        assert port_of(lines, "tracker") != port_of(lines, "meter")
        assert process.stdout is not None
        assert any("stats = " in line for line in iter(process.stdout.readline, ""))


def test_run_several_protocols_on_one_port() -> None:
    with gateway(FLEET, "--listen", "meter,tracker=tcp://127.0.0.1:0") as (_, lines):
        found = re.search(r"^meter,tracker on tcp://127\.0\.0\.1:(\d+) ", "".join(lines), re.MULTILINE)
        assert found
        for data, answer in (
            (b"what?\n", b"error: what is what?\n"),
            (b"pos 1 2\n", b"error: log in first\n"),
        ):
            with socket.create_connection(("127.0.0.1", int(found[1])), timeout=20) as device:
                device.sendall(data)
                assert device.recv(100) == answer


def test_run_with_users(tmp_path: Path) -> None:
    code, line, _ = run("hash-password", "42", stdin="secret\n")
    assert code == 0
    users = tmp_path / "users"
    users.write_text(line)
    with (
        gateway(FLEET, "--listen", "tracker=tcp://127.0.0.1:0", "--users", users) as (_, lines),
        socket.create_connection(("127.0.0.1", port_of(lines, "tracker")), timeout=20) as device,
        device.makefile("rb") as stream,
    ):
        device.sendall(b"login 42 secret\n")
        assert stream.readline() == b"welcome\n"
        with (
            socket.create_connection(("127.0.0.1", port_of(lines, "tracker")), timeout=20) as other,
            other.makefile("rb") as answers,
        ):
            other.sendall(b"login 42 guess\n")
            assert answers.read() == b"error: denied\n"
        device.sendall(b"pos 1 2\n")
        assert stream.readline() == b"ok\n"


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        code, _, err = run("run", ECHO, "--listen", url)
    assert code == 2
    assert f"{url} can't be opened: another program has the port; stop it or choose another" in err
    assert "Traceback" not in err


BROKEN = """
from exproto_app import App
app = App()
def helper():
    raise RuntimeError("my own mistake")
helper()
"""


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        (None, ("routes", "missing.py"), "there is no file missing.py"),
        (None, ("routes", "missing"), "there is no module 'missing'"),
        ("from exproto_app import App\nother = App()", ("routes", "t.py"), "did you mean t.py:other?"),
        (None, ("routes", ""), "TARGET has no file name"),
        (None, ("routes", ":app"), "TARGET has no file name"),
        (None, ("routes", f"{'a' * 300}.py"), "there is no file"),
        ("import sys; sys.exit()", ("run", "t.py"), "t.py: importing it ends the program (None)"),
        ("x = 1", ("run", "t.py"), "it needs a line such as: app = App()"),
        ("app = 3", ("run", "t.py"), "'app' in t.py is int, not an App"),
        ("from exproto_app import App\napp = App()", ("run", "t.py"), "has no handlers; register one"),
        ("x = 1", ("routes", "t"), "it needs a line"),
        (
            "from exproto_app import App\napp = App()\napp.on_connect(3)",
            ("run", "t.py"),
            "t.py:3: on_connect takes a function, not 3",
        ),
        (
            "from exproto_app import App\napp = App()\n@app.on_received\ndef f(): pass",
            ("run", "t.py"),
            "f takes no arguments, but on_received calls it with (conn, frame)",
        ),
    ],
)
def test_wrong_targets(tmp_path: Path, text: str | None, arguments: tuple[str, ...], words: str) -> None:
    if text is not None:
        (tmp_path / "t.py").write_text(text)
    code, _, err = run(*arguments, cwd=tmp_path)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert err.count("\n") == 1


def test_an_exception_in_the_users_file_is_shown_as_its_own(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text(BROKEN)
    code, _, err = run("run", "t.py", cwd=tmp_path)
    assert code == 1
    assert "RuntimeError: my own mistake" in err
    assert "in helper" in err
    assert "exproto_app" not in err.replace("exproto_app import App", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((FLEET,), "several protocols (tracker, meter); name the one you mean: --listen NAME=tcp://"),
        ((ECHO, "--listen", "nope=tcp://:0"), "serves no protocol 'nope'; it serves default"),
        ((FLEET, "--listen", "tracker,tracker=tcp://:0"), "'tracker,tracker' names a protocol twice"),
        ((FLEET, "--listen", "meter,nope=tcp://:0"), "serves no protocol 'nope'; it serves tracker, meter"),
        ((TWO, "--listen", "a,b=tcp://:0"), "'a' and 'b' can't be told apart; give one a sniff="),
        ((FLEET, "--sniff-bytes", "0"), "limit sniff_bytes is 0"),
        ((ECHO, "--listen", "tcp://[::1:1"), "listener 'tcp://[::1:1' is not a valid URL"),
        ((ECHO, "--inspect", "[::1:1"), "write HOST:PORT, such as 127.0.0.1:8080"),
        ((ECHO, "--handshake-timeout", "-1"), "-1.0 is not in the range x>0"),
        ((ECHO, "--listen", "http://:1"), "has to begin with tcp://, tls://, udp://"),
        ((ECHO, "--listen", "tcp://:x"), "the port has to be a number"),
        ((ECHO, "--listen", "tcp://127.0.0.1"), "has no port"),
        ((ECHO, "--listen", "tcp://:1?colour=red"), "unknown option 'colour'"),
        (
            (ECHO, "--listen", "tcp://no.such.host.invalid:1"),
            "the host name 'no.such.host.invalid' can't be resolved",
        ),
        ((ECHO, "--listen", "udp://:1?proxy-protocol=1"), "unknown option 'proxy-protocol'"),
        ((ECHO, "--workers", "0", "--mqtt", "mqtt://:1"), "0 is not in the range x>=1"),
        (
            (ECHO, "--listen", "tls://:0"),
            "needs a certificate, or pre-shared keys: give --cert FILE and --key FILE",
        ),
        ((ECHO, "--listen", "tls://:0", "--cert", "gone.pem"), "there is no file gone.pem"),
        ((ECHO, "--listen", "tls://:0", "--cert", ECHO), "can't be used"),
        ((ECHO, "--users", "gone"), "gone can't be read: no such file"),
        ((ECHO, "--inbox", "0"), "limit inbox is 0"),
        ((ECHO, "--inbox", "many"), "'many' is not a valid int"),
    ],
)
def test_wrong_usage_of_run(arguments: tuple[object, ...], words: str) -> None:
    code, _, err = run("run", *arguments)
    assert code == 2
    assert words in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("module", "extra", "options"),
    [
        ("uvloop", "uvloop", ("--loop", "uvloop")),
        ("mqtt5", "mqtt", ("--mqtt", "mqtt://127.0.0.1:1")),
        ("prometheus_client", "metrics", ("--metrics", "127.0.0.1:0")),
    ],
)
@pytest.mark.skipif(sys.version_info < (3, 11), reason="one of them needs Python 3.11 itself")
def test_a_missing_extra(module: str, extra: str, options: tuple[str, ...]) -> None:
    hide = f"import sys; sys.modules[{module!r}] = None; from exproto_app.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", hide, "run", str(ECHO), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"pip install 'exproto-app[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_routes() -> None:
    code, out, _ = run("routes", FLEET)
    assert code == 0
    assert re.search(r"^tracker  Line\(", out, re.MULTILINE)
    assert re.search(r"^meter  LengthPrefix\(.*, sniff b'\\x04'$", out, re.MULTILINE)
    assert re.search(r"on_received\(b'login '\) +async login  fleet\.py:\d+", out)
    assert re.search(r"on_deliver\('fleet/\+/command'\) +async command", out)


def test_hash_password_refuses_what_the_file_cant_hold() -> None:
    assert run("hash-password", "a:b", stdin="x\n")[0] == 2
    code, _, err = run("hash-password", "a", stdin="\n")
    assert (code, "the password is empty" in err) == (2, True)


def test_unknown_commands() -> None:
    assert run("fly")[0] == 2
    assert run()[0] in (0, 2)
    assert run("--version")[0] == 0


def test_the_log_may_be_json() -> None:
    with gateway(ECHO, "--listen", "tcp://127.0.0.1:0", "--log-format", "json", "--log-level", "debug") as (
        process,
        lines,
    ):
        with socket.create_connection(("127.0.0.1", port_of(lines)), timeout=20) as device:
            assert device.recv(6) == b"hello\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        logged = [json.loads(line) for line in [*lines, *process.stdout] if line.startswith("{")]
    (registered,) = (line for line in logged if " = registered " in line["message"])
    assert registered["protocol"] == "default"
    assert registered["clientid"].startswith("hello-127.0.0.1:")
    assert any(line["message"] == "gateway = stopped" for line in logged)
