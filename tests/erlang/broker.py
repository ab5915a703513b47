"""The broker, played by a real Erlang VM (`harness.erl`), and devices that are connected to it."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from exproto_app.hosts.emqx42.terms import Atom, Opaque, decode, encode

__all__ = ["MISSING", "PASSWORD", "PATIENCE", "Broker", "Device", "Vm", "packages"]

PATIENCE: Final = 60.0
"""Seconds until a wait is given up."""

PASSWORD: Final = "s3cret"
"""The one that the broker's authentication takes."""

MISSING: Final = ", ".join(name for name in ("erl", "erlc") if shutil.which(name) is None)
"""Programs of the Erlang VM that this machine lacks."""

_HERE: Final = Path(__file__).parent
_numbers = itertools.count(1)


def packages(folder: Path) -> Path:
    """Put what the framework imports, all of it pure Python, into *folder*, for Pythons of any version."""
    import attr  # noqa: PLC0415 - where it is doesn't matter to anybody else
    import attrs  # noqa: PLC0415 - as above

    for package in (attr, attrs):
        source = Path(str(package.__file__)).parent
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, folder / source.name, dirs_exist_ok=True, ignore=ignored)
    return folder


class Vm:
    """An Erlang VM with the harness, spoken to in terms over a socket."""

    def __init__(self, cache: Path) -> None:
        beam = cache / "harness.beam"
        source = _HERE / "harness.erl"
        if not beam.exists() or beam.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["erlc", "-o", str(cache), str(source)], check=True, timeout=60)
        self.news = threading.Condition()
        self.owners: dict[Any, Callable[[Any], None]] = {}
        self.crashes: list[str] = []
        self._answers: dict[int, Any] = {}
        self._calls = itertools.count(1)
        self._writing = threading.Lock()
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        command = ["erl", "-noshell", "-noinput", "+P", "262144", "-pa", str(cache)]
        # Without a terminal a dead VM would leave a dump file behind.
        env = {**os.environ, "ERL_CRASH_DUMP_BYTES": "0"}
        self._process = subprocess.Popen([*command, "-run", "harness", "main", str(port)], env=env)
        try:
            listener.settimeout(PATIENCE)
            self._socket, _ = listener.accept()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            listener.close()
        self._socket.settimeout(None)
        self._reader = threading.Thread(target=self._read, name="harness", daemon=True)
        self._reader.start()

    def request(self, *command: Any, patience: float = PATIENCE) -> Any:
        """Have the harness carry *command* out; return what it answers."""
        number = next(self._calls)
        data = encode((number, command))
        with self._writing:
            self._socket.sendall(struct.pack(">I", len(data)) + data)
        self.wait(lambda: number in self._answers, f"an answer to {command[0]}", patience)
        answer = self._answers.pop(number)
        if isinstance(answer, tuple) and answer[:1] == ("failed",):
            raise AssertionError(answer[1].decode())
        return answer

    def wait(self, ready: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
        """Wait until *ready*, which is looked at whenever something has come from the VM."""
        with self.news:
            if not self.news.wait_for(ready, patience):
                raise AssertionError(f"waited {patience:g} s for {what}")

    def stop(self) -> None:
        """End the VM."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join(PATIENCE)
            self._socket.close()

    def _read(self) -> None:
        stream = self._socket.makefile("rb")
        with stream:
            while len(head := stream.read(4)) == 4:
                term = decode(stream.read(struct.unpack(">I", head)[0]))
                with self.news:
                    match term:
                        case ("reply", number, answer):
                            self._answers[number] = answer
                        case ("event", "vm", ("crash", text)):
                            self.crashes.append(text.decode())
                        case ("event", owner, what):
                            known = self.owners.get(owner)
                            if known is not None:
                                known(what)
                    self.news.notify_all()


class Broker:
    """One listener of the broker, with its driver and a hub of its own."""

    def __init__(
        self,
        vm: Vm,
        module: str,
        search_path: Sequence[Path | str],
        *,
        python: str = sys.executable,
        env: dict[str, str] | None = None,
        loop: str = "erlport.cli",
        executable: Sequence[str] | None = None,
        behaves: dict[str, Any] | None = None,
    ) -> None:
        self.vm = vm
        self.id = next(_numbers)
        self.lines: list[str] = []
        self.messages: list[tuple[str, bytes, int, Any]] = []
        self.ups: list[int] = []
        self.downs: list[str] = []
        self.faults: list[str] = []
        self.levels: list[str] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.socket_closed = False
        self.datagrams_dropped: list[int] = []
        self._taken: dict[str, int] = {}
        arguments = ["-u", "-m", loop, "--packet=4", "--use_stdio", "--compressed=0", "--buffer_size=65536"]
        command = list(executable or [python, *arguments])
        path = ":".join(map(str, search_path))
        pairs = {"PYTHONPATH": path, **(env or {})}
        options = {
            Atom("module"): module.encode(),
            Atom("executable"): command[0].encode(),
            Atom("arguments"): [argument.encode() for argument in command[1:]],
            Atom("env"): [(name.encode(), value.encode()) for name, value in pairs.items()],
            Atom("folder"): b"/",  # the broker's own, which has nothing to do with the driver
            Atom("password"): PASSWORD.encode(),
            **{Atom(name): value for name, value in (behaves or {}).items()},
        }
        vm.owners[self.id] = self._happened
        vm.request(Atom("listen"), self.id, options)

    def _happened(self, what: Any) -> None:
        match what:
            case ("log", text):
                self.lines.append(text.decode())
            case ("log", level, line):
                self.lines.append(line.decode() + "\n")
                self.levels.append(level)
            case (("authenticate" | "check_acl") as function, client):
                self.asked.append((str(function), {str(key): value for key, value in client.items()}))
            case ("socket_closed", what):
                self.socket_closed = what == "true"
            case ("dropped", size):
                self.datagrams_dropped.append(size)
            case ("published", topic, payload, qos, sender):
                self.messages.append((topic.decode(errors="surrogateescape"), payload, qos, sender))
            case ("up", os_pid):
                self.ups.append(os_pid)
            case ("down", reason):
                self.downs.append(reason.decode())
            case ("fault", text):
                self.faults.append(text.decode())

    @property
    def log(self) -> str:
        """What the broker's log has got."""
        return "".join(self.lines)

    def expect_log(self, *words: str) -> None:
        """Wait until all *words* are in the broker's log."""
        try:
            self.vm.wait(lambda: all(word in self.log for word in words), f"{words} in the log")
        except AssertionError:
            raise AssertionError(f"{words} isn't in the broker's log:\n{self.log}") from None

    def connect(
        self,
        socktype: str = "tcp",
        *,
        peercert: tuple[str | None, str | None] | None = None,
        host: tuple[int, ...] = (127, 0, 0, 1),
        unknown: bool = False,
    ) -> Device:
        """Connect a device; its process begins with `init`, unless it was there before the driver's start."""
        return Device(self, socktype, peercert=peercert, host=host, unknown=unknown)

    def publish(self, topic: str | bytes, payload: bytes, qos: int = 0, sender: str = "somebody") -> None:
        """Have somebody else publish."""
        name = topic if isinstance(topic, bytes) else topic.encode()
        self.vm.request(Atom("publish"), self.id, sender.encode(), name, payload, qos)

    def published(self, topic: str) -> bytes:
        """Wait for the next message that was published to *topic*."""
        taken = self._taken.get(topic, 0)

        def found() -> list[bytes]:
            return [payload for name, payload, _, _ in self.messages if name == topic][taken:]

        try:
            self.vm.wait(found, f"a message to {topic!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}; the log:\n{self.log}") from None
        self._taken[topic] = taken + 1
        return found()[0]

    def call(self, function: str, *arguments: Any) -> Any:
        """Call the driver as a connection process does; return `("ok", Result)` or `("error", Reason)`."""
        return self.vm.request(Atom("call"), self.id, Atom(function), list(arguments))

    def raw(self, data: bytes) -> None:
        """Write *data* as one frame."""
        self.vm.request(Atom("raw"), self.id, data)

    @property
    def called(self) -> list[tuple[str, str]]:
        """The functions of the broker that the driver has called, each in a process of its own."""
        called: list[tuple[str, str]] = self.vm.request(Atom("called"), self.id)
        return called

    @property
    def os_pid(self) -> int:
        """The driver's process."""
        pid: int = self.vm.request(Atom("os_pid"), self.id)
        return pid

    def kill_driver(self, number: int = signal.SIGKILL) -> None:
        """Send the driver a signal that ends it; wait until the broker has started the next one."""
        ups = len(self.ups)
        os.kill(self.ups[-1], number)
        self.vm.wait(lambda: len(self.ups) > ups, "the next driver")

    def stop(self) -> None:
        """Close the port; wait for the driver's end."""
        self.vm.request(Atom("unlisten"), self.id)
        last = self.ups[-1] if self.ups else None
        deadline = time.monotonic() + PATIENCE
        # Nobody tells the end of somebody else's child but the system's table.
        while last is not None and _runs(last):
            if time.monotonic() > deadline:
                os.kill(last, signal.SIGKILL)
                raise AssertionError(f"the driver didn't end when the broker closed the port:\n{self.log}")
            time.sleep(0.005)
        self.vm.owners.pop(self.id, None)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Device:
    """A device, which the broker speaks for: bytes to and from its connection process."""

    def __init__(
        self,
        broker: Broker,
        socktype: str,
        *,
        peercert: tuple[str | None, str | None] | None,
        host: tuple[int, ...],
        unknown: bool,
    ) -> None:
        self.broker = broker
        self.vm = broker.vm
        self.id = next(_numbers)
        self.got: list[bytes] = []
        self.registered: dict[str, Any] | None = None
        self.subscriptions: dict[str, int] = {}
        self.udp = socktype == "udp"
        self.closed: str | None = None
        self.unexpected: list[str] = []
        self._seen = 0
        certificate: Any = Atom("nossl")
        if peercert is not None:
            certificate = [
                (Atom(name), Atom("undefined") if value is None else value.encode())
                for name, value in zip(("dn", "cn"), peercert, strict=True)
            ]
        about: list[Any] = [
            (Atom("socktype"), Atom(socktype)),
            (Atom("peername"), (host, 1024 + self.id % 60_000)),
            (Atom("sockname"), (host, 7993)),
            (Atom("peercert"), certificate),
        ]
        if unknown:
            about.insert(0, Atom("unknown"))
        self.vm.owners[("dev", self.id)] = self._happened
        self.vm.request(Atom("connect"), broker.id, self.id, about)

    def _happened(self, what: Any) -> None:
        match what:
            case ("sent", data):
                self.got.append(data)
            case ("registered", client):
                self.registered = client
            case ("subscribed", topic, qos):
                self.subscriptions[topic.decode()] = qos
            case ("unexpected", call):
                self.unexpected.append(call)
            case ("unsubscribed", topic):
                self.subscriptions.pop(topic.decode(), None)
            case ("closed", reason):
                self.closed = reason.decode()

    @property
    def pid(self) -> Opaque:
        """The connection process."""
        pid: Opaque = self.vm.request(Atom("pid"), self.id)
        return pid

    @property
    def received(self) -> bytes:
        """What was sent to the device and not yet expected."""
        return b"".join(self.got)[self._seen :]

    def send(self, data: bytes) -> None:
        """Send *data*; on UDP, as one datagram."""
        if self.udp:  # a peer whose process has ended gets a new one
            self.closed = None
        if self.vm.request(Atom("data"), self.id, data) == "refused":
            raise ConnectionRefusedError("the listener's socket is closed")

    def mail(self, term: Any) -> None:
        """Send *term* to the connection process."""
        self.vm.request(Atom("mail"), self.id, term)

    def read(self, count: int) -> bytes:
        """Return the next *count* bytes; fewer if the connection ends before, or if no more come."""
        with contextlib.suppress(AssertionError):
            self.vm.wait(lambda: len(self.received) >= count or self.closed is not None, "bytes")
        got = self.received[:count]
        self._seen += len(got)
        return got

    def expect(self, data: bytes) -> None:
        """Wait for the next bytes, and assert that they are *data*."""
        got = self.read(len(data))
        assert got == data, f"{got[:200]!r}; closed: {self.closed}; the log:\n{self.broker.log[-4000:]}"

    def wait(self, ready: Callable[[Device], object]) -> None:
        """Wait until *ready*."""
        self.vm.wait(lambda: ready(self), "the device")

    def expect_end(self) -> None:
        """Wait until the connection is closed; assert that nothing more was sent."""
        self.vm.wait(lambda: self.closed is not None, "the end of the connection")
        assert self.received == b""

    def hang_up(self) -> None:
        """Close the connection."""
        self.mail(Atom("hang_up"))


@contextlib.contextmanager
def running(cache: Path) -> Iterator[Vm]:
    """Run a VM."""
    vm = Vm(cache)
    try:
        yield vm
    finally:
        vm.stop()
    assert vm.crashes == []
