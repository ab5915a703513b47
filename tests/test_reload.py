"""`run --reload`: a gateway that begins anew when its user's files change, on the same ports."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from exproto_app.cli.reload import Watched, find_roots
from exproto_app.errors import SetupError

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(sys.platform == "win32", reason="--reload needs inherited sockets"),
]
pytest.importorskip("watchfiles")

RUN = (sys.executable, "-m", "exproto_app", "run")
PATIENCE = 60

APP = """
import os

from exproto_app import App, Connection
from exproto_app.framing import Line

from words import WORD

app = App(framing=Line())


@app.on_received
def answer(conn: Connection, frame: bytes) -> bytes:
    return WORD + b" " + frame


@app.on_received(b"later")
def later(conn: Connection, frame: bytes) -> bytes:
    import lazy
    return lazy.WORD


@app.on_received(b"die")
def die(conn: Connection, frame: bytes) -> None:
    os._exit(7)


@app.on_terminated
def gone(conn: Connection, reason: str) -> None:
    os.write(1, f"gone: {reason}\\n".encode())
"""


@attrs.define(eq=False)
class Gateway:
    """A gateway that reloads, as its developer and its devices see it."""

    process: subprocess.Popen[str]
    folder: Path
    text: str = ""

    @property
    def port(self) -> int:
        match = re.search(r" on \w+://127\.0\.0\.1:(\d+)", self.text)
        assert match, self.text
        return int(match[1])

    def until(self, words: str) -> str:
        """Read what it prints, until a line has *words*; return all that is new."""
        assert self.process.stdout is not None
        new = ""
        for line in self.process.stdout:
            self.text += line
            new += line
            if re.search(words, line):
                return new
        pytest.fail(f"it ended without saying {words!r}:\n{self.text}")

    def edit(self, name: str, text: str) -> None:
        """Write a file as editors do: beside it, then in its place."""
        new = self.folder / f".{name}.new"
        new.write_text(text)
        new.rename(self.folder / name)

    def ask(self, line: bytes = b"x\n") -> bytes:
        """Return what a new device is answered; it waits where nobody serves."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as device:
            device.sendall(line)
            return device.recv(100)


@contextlib.contextmanager
def running(folder: Path, command: list[str], ready: str) -> Iterator[Gateway]:
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "EXPROTO_MQTT_LISTEN": "off"},
    )
    gateway = Gateway(process, folder)
    assert process.stdout is not None
    try:
        gateway.until(ready)
        yield gateway
    finally:
        process.kill()  # its child notices
        process.stdout.read()
        process.stdout.close()
        process.wait()


def reloading(
    folder: Path, *arguments: str, ready: str = "Ctrl-C stops it"
) -> contextlib.AbstractContextManager[Gateway]:
    listen = ("--reload", "--listen", "tcp://127.0.0.1:0")
    return running(folder, [*RUN, str(folder / "devices.py"), *listen, *arguments], ready)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "devices.py").write_text(APP)
    (tmp_path / "words.py").write_text("WORD = b'one'\n")
    return tmp_path


def test_a_change_closes_devices_and_begins_anew_on_the_same_port(folder: Path) -> None:
    with reloading(folder) as gateway:
        assert gateway.ask() == b"one x\n"
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE) as device:
            device.sendall(b"y\n")
            assert device.recv(100) == b"one y\n"
            gateway.edit("words.py", "WORD = b'two'\n")
            assert device.recv(100) == b""
        assert gateway.ask() == b"two x\n"
        new = gateway.until("serves again")
        assert re.search(r"words\.py changed", new)
        assert "gone: shutdown" in new


def test_several_changes_at_once_are_one(folder: Path) -> None:
    with reloading(folder) as gateway:
        gateway.edit("words.py", "WORD = b'three'\n")
        gateway.edit("devices.py", APP.replace('b" "', 'b"-"'))
        gateway.until("serves again")
        assert gateway.ask() == b"three-x\n"
        assert gateway.text.count("changed") == 1
        assert "detected" not in gateway.text, "the library's own words for it"


def test_a_broken_file_is_told_and_devices_wait_until_it_is_mended(folder: Path) -> None:
    with reloading(folder) as gateway:
        gateway.edit("words.py", "WORD = \n")
        new = gateway.until("restarts when a file changes")
        assert "SyntaxError" in new
        assert "ended with exit code 1" in new
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE) as device:
            device.sendall(b"x\n")
            gateway.edit("words.py", "WORD = b'mended'\n")
            assert device.recv(100) == b"mended x\n"


def test_a_file_that_is_missing_from_the_start_may_be_added_in_a_folder(folder: Path) -> None:
    (folder / "devices.py").write_text(APP.replace("from words", "from inner.more import *\nfrom words"))
    with reloading(folder, ready="! the gateway ended") as gateway:
        assert "No module named 'inner'" in gateway.text
        (folder / "inner").mkdir()
        (folder / "inner" / "more.py").write_text("")
        gateway.until("Ctrl-C stops it")
        assert gateway.ask() == b"one x\n"


def test_a_file_that_a_handler_imports_counts_and_one_that_nobody_imports_does_not(folder: Path) -> None:
    (folder / "lazy.py").write_text("WORD = b'early'\n")
    with reloading(folder, "--log-level", "debug") as gateway:
        assert gateway.ask(b"later\n") == b"early\n"
        gateway.until(r"reload = watches .*lazy\.py")
        gateway.edit("lazy.py", "WORD = b'late'\n")
        gateway.until("serves again")
        assert gateway.ask(b"later\n") == b"late\n"
        gateway.edit("other.py", "")
        gateway.edit("words.py", "WORD = b'two'\n")
        assert "other.py" not in gateway.until("serves again")


def test_the_users_file_counts(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "exproto_app", "hash-password", "42"],
        input="secret\n",
        capture_output=True,
        text=True,
        check=True,
    )
    users = folder / "elsewhere" / "users"
    users.parent.mkdir()
    users.write_text(done.stdout)
    with reloading(folder, "--users", str(users)) as gateway:
        users.write_text("nonsense\n")
        assert "nonsense" not in gateway.until("! the gateway ended with exit code 2")
        users.write_text(done.stdout)
        gateway.until("serves again")
        assert gateway.ask() == b"one x\n"


def test_a_gateway_that_dies_waits_for_a_change_or_a_signal(folder: Path) -> None:
    with reloading(folder) as gateway:
        gateway.ask(b"die\n")
        gateway.until("! the gateway ended with exit code 7; it restarts when a file changes")
        gateway.process.send_signal(signal.SIGHUP)
        gateway.until("asked by SIGHUP")
        assert gateway.ask() == b"one x\n"


def test_serve_reloads_too(folder: Path) -> None:
    pytest.importorskip("google.protobuf")
    command = [sys.executable, "-m", "exproto_app", "serve", str(folder / "devices.py"), "--reload"]
    with running(folder, [*command, "--bind", "127.0.0.1:0"], "Ctrl-C stops it") as gateway:
        match = re.search(r"gateway on 127\.0\.0\.1:(\d+)", gateway.text)
        assert match
        gateway.edit("words.py", "WORD = b'two'\n")
        gateway.until("serves again")
        with socket.create_connection(("127.0.0.1", int(match[1])), timeout=PATIENCE) as caller:
            caller.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
            assert caller.recv(9)[3] == 4, "its settings"


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_the_end_closes_devices_and_leaves_no_process(folder: Path, name: signal.Signals) -> None:
    with reloading(folder) as gateway:
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE) as device:
            device.sendall(b"x\n")
            assert device.recv(100)
            gateway.process.send_signal(name)
            assert device.recv(100) == b""
        assert gateway.process.stdout is not None
        assert "gone: shutdown" in gateway.process.stdout.read()
        assert gateway.process.wait(PATIENCE) == 0
        with pytest.raises(ConnectionRefusedError):
            gateway.ask()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--workers", "2", "--mqtt", "mqtt://127.0.0.1:9"), "--reload is for one process; SIGHUP reloads"),
        (("--listen", "tcp://192.0.2.1:7"), "can't be opened"),
    ],
)
def test_what_cant_be_is_told_at_once(folder: Path, arguments: tuple[str, ...], words: str) -> None:
    command = [*RUN, str(folder / "devices.py"), "--reload", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 2
    assert words in done.stderr


def test_without_watchfiles_it_says_what_to_install(folder: Path) -> None:
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name: None if name == 'watchfiles' else find(name)\n"
        "from exproto_app.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "run", str(folder / "devices.py"), "--reload"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 1
    assert "pip install 'exproto-app[reload]'" in done.stderr


def test_a_target_that_isnt_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="there is no file"):
        find_roots(str(tmp_path / "typo.py"))


def test_folders_of_libraries_are_not_looked_at(tmp_path: Path) -> None:
    for name in (".venv", ".git", "__pycache__", "node_modules", "package", "package/inner"):
        (tmp_path / name).mkdir()
    watched = Watched([tmp_path], {tmp_path / "etc" / "users"})
    assert watched.folders() == {tmp_path, tmp_path / "package", tmp_path / "package" / "inner"}
    watched.imported = {tmp_path / "package" / "x.py"}
    assert watched.folders() == {tmp_path, tmp_path / "package"}
