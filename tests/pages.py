"""The code blocks of README and the guide, and how they are tested.

A block's language says what it is. Comments right above it, which nobody sees in the rendered page, say more:

- `python` runs in a namespace of its own, and functions named `test_…` in it are called. `file: NAME` writes
  the block to the page's folder, `append: NAME` appends it to a file there. `examples/*.py` are there too.
- `console` has commands after `$ `, each followed by what it prints. `…` stands for what varies; alone on a
  line, for any number of lines. `exit code: N` is for a failing command, `needs: field.jsonl` provides a
  recording. `run` and `serve` stay up until the end of the page. Ports are replaced by free ones. `nc` is
  played by the test; `typed: TEXT | TEXT` says which lines the user types.
  `mosquitto_sub` is started there, and what it prints is compared at the end of the page.
- `sh` has commands that aren't run, but whose options have to exist.
- `text` is not tested.
- `not run: REASON` skips a block.
"""

from __future__ import annotations

import importlib
import os
import queue
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from exproto_app.cli import COMMANDS
from exproto_app.hosts.gateway import Listen
from exproto_app.ops.recorder import Recorder
from exproto_app.target import load
from exproto_app.testing import TestClient

from .devices import EXAMPLES, GT06
from .mqtt.broker import free_port

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["GUIDE", "PAGES", "README", "Block", "Story", "blocks", "check_spelling", "run_python"]

ROOT: Final = Path(__file__).parent.parent
README: Final = ROOT / "README.md"
GUIDE: Final = ROOT / "exproto_app" / "guide"
PAGES: Final = (README, ROOT / ".github" / "CONTRIBUTING.md", *sorted(GUIDE.glob("*.md")))

PATIENCE: Final = 60.0
"""Seconds that anything may take."""

PORTS: Final = (7993, 1883, 1884)
"""Ports of commands that are run, each replaced by a free one."""

ELSEWHERE: Final = {
    "curl",
    "emqx_ctl",
    "git",
    "mosquitto_pub",
    "mosquitto_sub",
    "openssl",
    "pkill",
    "ssh",
    "tcpdump",
    "tshark",
}
"""Programs of others that a page may tell its reader to run."""

DIRECTIVE: Final = re.compile(r"<!-- ([a-z ]+): (.*) -->")
FENCE: Final = re.compile(r"```(\w*)")


@attrs.frozen
class Block:
    """A fenced block, its place, and what the comments above it say."""

    where: str
    language: str
    text: str
    says: dict[str, str]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page."""
    says: dict[str, str] = {}
    lines = iter(enumerate(page.read_text().splitlines(), 1))
    for number, line in lines:
        comment, fence = DIRECTIVE.fullmatch(line), FENCE.fullmatch(line)
        if comment is not None:
            says[comment[1]] = comment[2]
        elif fence is not None:
            body: list[str] = []
            for _, inner in lines:
                if inner == "```":
                    break
                body.append(f"{inner}\n")
            yield Block(f"{page.name}:{number}", fence[1], "".join(body), says)
            says = {}
        elif says:
            raise AssertionError(f"{page.name}:{number}: a comment for a block has to stand right above it")


def run_python(block: Block) -> None:
    """Run a block of Python that stands alone, and the tests in it."""
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(block.text, block.where, "exec"), names)
    for name, value in names.items():
        if name.startswith("test_") and callable(value):
            value()


def check_spelling(block: Block) -> None:
    """Fail for a command that doesn't exist, or has an option that doesn't."""
    for line in block.text.splitlines():
        words = shlex.split(line.split(" | ")[-1], comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            del words[0]
        for redirection in (">", ">>"):
            if redirection in words:
                del words[words.index(redirection) :]
        if words:
            _check_command(words, block.where)


def _check_command(words: list[str], where: str) -> None:
    program, *arguments = words
    if program == "exproto-app":
        _check_ours(arguments)
    elif program == "pip" or words[:3] == ["python3", "-m", "pip"]:
        _check_extras(words[-1])
    elif program == ".venv/bin/python":
        package = ROOT.joinpath(*arguments[1].split("."))
        assert package.is_dir() or package.with_suffix(".py").is_file(), where
    elif program == "make":
        targets = (ROOT / "Makefile").read_text()
        named = [argument for argument in arguments if "=" not in argument]
        assert all(re.search(rf"^{target}:", targets, re.MULTILINE) for target in named), where
    else:
        known = program in ELSEWHERE or words[:3] == ["python3", "-m", "venv"] or program in {".", "cd"}
        assert known, f"{where}: {program}"


def _check_extras(package: str) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"[\w-]+", package.partition("[")[2]):
        assert re.search(rf"^{extra} = \[", text, re.MULTILINE), package


def _check_ours(arguments: list[str]) -> None:
    name, *rest = arguments
    assert name in COMMANDS
    module = importlib.import_module(f"exproto_app.cli.{name.replace('-', '_')}")
    if "--help" in rest:
        return
    given = module.command.make_context(name, rest).params
    listens = [Listen.parse(text) for text in given.get("listens") or ()]
    target = EXAMPLES / str(given.get("target"))
    if target.is_file():
        app = load(str(target))
        for listen in listens:
            listen.routers(app)


class Story:
    """A page's files and commands, in their order, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._ports = {port: self._stack.enter_context(free_port()) for port in PORTS}
        self._background: list[_Background] = []
        self._subscribers: list[tuple[_Background, list[str]]] = []
        for example in EXAMPLES.glob("*.py"):
            shutil.copy(example, folder)
        (folder / "examples").symlink_to(EXAMPLES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, wrong: type[BaseException] | None, *_: object) -> None:
        """End what runs in the background, as the user would."""
        with self._stack:
            for subscriber, printed in self._subscribers:
                if wrong is None:
                    subscriber.expect(printed)
                subscriber.stop()
            for background in self._background:
                background.stop()

    def tell(self, block: Block) -> None:
        """Do what *block* says."""
        if "file" in block.says:
            (self.folder / block.says["file"]).write_text(block.text)
        elif "append" in block.says:
            with (self.folder / block.says["append"]).open("a") as file:
                file.write(f"\n\n{block.text}")
        elif block.language == "console":
            if block.says.get("needs") == "field.jsonl":
                _record(self.folder / "tracker.py", self.folder / "field.jsonl")
            for command, printed in _commands(block.text):
                self._run(block, command, printed)

    def _run(self, block: Block, command: str, printed: list[str]) -> None:
        program, *_, last = command.split()
        if program == "nc":
            typed = block.says["typed"].split(" | ")
            _play(self._ports[int(last)], printed, typed)
            return
        if program == "mosquitto_sub":
            self._subscribe(command, printed)
            return
        serves = re.match(r"exproto-app (run|serve) ", command) and "--print-config" not in command
        moved = self._moved(command) if serves or " doctor " in command else command
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "PYTEST_ADDOPTS": "-p no:cacheprovider",
            "EXPROTO_MQTT_LISTEN": f"127.0.0.1:{self._ports[1883]}",
        }
        if serves:
            if "--listen" not in moved:
                moved += f" --listen tcp://127.0.0.1:{self._ports[7993]}"
            background = _Background(f"exec {moved}", self.folder, environment)
            self._background.append(background)
            shown = background.read(len(printed))
        else:
            done = subprocess.run(
                moved,
                shell=True,
                cwd=self.folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=PATIENCE,
            )
            shown = done.stdout
            assert done.returncode == int(block.says.get("exit code", "0")), f"{block.where}: {shown}"
        text = self._moved_back(shown)
        assert _pattern(printed).fullmatch(text), f"{block.where}: $ {command}\n{text}"

    def _subscribe(self, command: str, printed: list[str]) -> None:
        """Start it, if it is installed, and go on when it has subscribed."""
        if shutil.which("mosquitto_sub") is None:
            return
        moved = f"exec stdbuf -oL {command} -d -p {self._ports[1883]}"
        subscriber = _Background(moved, self.folder, dict(os.environ))
        self._subscribers.append((subscriber, printed))
        while not subscriber.read(1).startswith("Subscribed"):
            pass

    def _moved(self, text: str) -> str:
        for port, free in self._ports.items():
            text = text.replace(f":{port}", f":{free}")
        return text

    def _moved_back(self, text: str) -> str:
        for port, free in self._ports.items():
            text = text.replace(str(free), str(port))
        return text


class _Background:
    """A program that goes on while others run."""

    def __init__(self, command: str, folder: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            shell=True,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # its log has times
            text=True,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)

    def read(self, count: int) -> str:
        """Return the next *count* lines."""
        return "".join(self._lines.get(timeout=PATIENCE) for _ in range(count))

    def expect(self, lines: list[str]) -> None:
        """See that it prints *lines*, beside what -d adds."""
        for line in lines:
            shown = self.read(1)
            while shown.startswith("Client "):
                shown = self.read(1)
            assert shown == f"{line}\n"

    def stop(self) -> None:
        """Press Ctrl-C."""
        self._process.send_signal(signal.SIGINT)
        try:
            assert self._process.wait(PATIENCE) == 0
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join()


def _commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each command and the lines that it prints."""
    command, printed = "", list[str]()
    for line in text.splitlines():
        if not line.startswith("$ "):
            printed.append(line)
            continue
        if command:
            yield command, printed
        command, printed = line[2:], []
    yield command, printed


def _pattern(lines: list[str]) -> re.Pattern[str]:
    """Return what matches *lines*, with `…` for whatever varies."""
    parts = [
        r"(?:.*\n)*" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + r"\n" for line in lines
    ]
    return re.compile("".join(parts))


def _play(port: int, lines: list[str], typed: list[str]) -> None:
    """Be nc, and its user: send the lines that are *typed*, and see that the others come."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as device:
        file = device.makefile("rb")
        for line in lines:
            if line in typed:
                device.sendall(f"{line}\n".encode())
            else:
                assert file.readline().decode().rstrip("\r\n") == line


def _record(script: Path, recording: Path) -> None:
    """Have a tracker log in, send its status and answer a command, and record it."""
    app = load(str(script))
    recorder = Recorder(recording)
    app.watch(recorder)
    with TestClient(app) as client:
        for step in (GT06.login, GT06.steps[0], *GT06.commands):
            if step.command is not None:
                client.deliver(*step.command)
                assert client.recv() == step.asked
            client.send(step.sends)
            assert client.recv() == step.answer
        assert client.published[-1].payload == b"DYD=Success!"
    app.unwatch(recorder)
    recorder.close()
