"""A real Mosquitto, one for a test: started, stopped, killed, paused and restarted on its port by it."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MISSING", "PATIENCE", "Broker", "Tls", "free_port"]

PATIENCE: Final = 20.0
"""Seconds until a wait is given up."""

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Debian puts Mosquitto where users don't look for programs."""


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=_PATH)


MISSING: Final = ", ".join(name for name in ("mosquitto", "mosquitto_passwd") if _program(name) is None)
"""Programs that this machine lacks."""


@contextmanager
def free_port() -> Iterator[int]:
    """Keep a port on loopback for programs that allow its reuse, also while none of them listens.

    While it is kept nobody is given it by chance, as a client of the kernel's choice would be: one that
    connects to a port where nobody listens, and gets the same as its own, is connected to itself.
    """
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("127.0.0.1", 0))
        yield keeper.getsockname()[1]


@attrs.frozen
class Tls:
    """A broker's certificate with its key, and the authority of those that it demands of clients."""

    certificate: Path
    client_ca: Path | None = None


@attrs.define(eq=False)
class Broker:
    """Mosquitto on *port*, its files in *folder*; use it in a `with` block, where it runs.

    *users*: passwords by name; clients without a name are let in where *anonymous*. *acl*: lines of
    Mosquitto's ACL file.
    *persistent*: sessions outlive a `stop`, and after `save` a `kill`. *options*: more lines of its
    configuration.
    """

    folder: Path
    port: int
    users: Mapping[str, str] = attrs.field(factory=dict)
    anonymous: bool = False
    acl: tuple[str, ...] = ()
    tls: Tls | None = None
    persistent: bool = False
    options: tuple[str, ...] = ()
    log: list[str] = attrs.field(factory=list)
    _news: threading.Condition = attrs.field(factory=threading.Condition)
    _process: subprocess.Popen[str] | None = None
    _reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._configure()
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self.kill()

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None, "the broker doesn't run"
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it listens."""
        program = _program("mosquitto")
        assert program, "mosquitto isn't installed"
        seen = len(self.log)
        self._process = subprocess.Popen(
            [program, "-c", str(self.folder / "mosquitto.conf")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, name="mosquitto", daemon=True)
        self._reader.start()
        self.wait_for(" running", since=seen)

    def stop(self) -> None:
        """Have it end in good order, its sessions saved if it is persistent."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash does; clients find their connections closed."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill it, and start it again on the same port."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Have it do nothing until `resume`, while the kernel goes on to accept connections for it."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on."""
        self._signal(signal.SIGCONT)

    def save(self) -> None:
        """Have it write its sessions to its file, which a `kill` then leaves."""
        assert self.persistent, "only a persistent broker has a file"
        seen = len(self.log)
        self._signal(signal.SIGUSR1)
        self.wait_for("Saving in-memory database", since=seen)
        # It works on one thing after another: who is answered now is answered after the file was written.
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as sock:
            sock.sendall(b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x00")
            assert sock.recv(1) == b"\x20"

    def wait_for(self, text: str, *, since: int = 0) -> str:
        """Wait for a line of its log, from number *since* on, that has *text* in it; return the line."""

        def found() -> str | None:
            return next((line for line in self.log[since:] if text in line), None)

        with self._news:
            self._news.wait_for(lambda: found() or not self._running, PATIENCE)
            line = found()
        assert line is not None, f"mosquitto said nothing of {text!r}: {self.log[since:]}"
        return line

    @property
    def _running(self) -> bool:
        return self._process is not None

    def _read(self) -> None:
        process = self._process
        assert process is not None
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                with self._news:
                    self.log.append(line.rstrip())
                    self._news.notify_all()
        with self._news:
            if self._process is process:
                self._process = None
            self._news.notify_all()
        process.wait()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, f"mosquitto has ended: {self.log}"
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        process, reader = self._process, self._reader
        assert reader is not None
        if process is not None:
            process.send_signal(number)
            if number != signal.SIGKILL:
                process.send_signal(signal.SIGCONT)
        reader.join(PATIENCE)
        assert not reader.is_alive(), "mosquitto didn't end"

    def _configure(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [
            "user root",  # else, started by root, it could read none of its files
            f"listener {self.port} 127.0.0.1",
            f"allow_anonymous {'false' if self.users and not self.anonymous else 'true'}",
            "log_dest stderr",
            "log_timestamp false",
            *(f"log_type {kind}" for kind in ("error", "warning", "information")),
            "set_tcp_nodelay true",
            "autosave_interval 0",
            f"persistence {'true' if self.persistent else 'false'}",
            f"persistence_location {self.folder}/",
            *self.options,
        ]
        if self.users:
            lines.append(f"password_file {self._password_file()}")
        if self.acl:
            path = self.folder / "acl"
            path.write_text("\n".join((*self.acl, "")))
            lines.append(f"acl_file {path}")
        if self.tls is not None:
            lines += [f"certfile {self.tls.certificate}", f"keyfile {self.tls.certificate}"]
            if self.tls.client_ca is not None:
                lines += [f"cafile {self.tls.client_ca}", "require_certificate true"]
        (self.folder / "mosquitto.conf").write_text("\n".join((*lines, "")))

    def _password_file(self) -> Path:
        program = _program("mosquitto_passwd")
        assert program, "mosquitto_passwd isn't installed"
        path = self.folder / "passwords"
        path.write_text("".join(f"{name}:{password}\n" for name, password in self.users.items()))
        subprocess.run([program, "-U", str(path)], check=True, capture_output=True, timeout=PATIENCE)
        return path
