"""A real Mosquitto, one for a test: started, stopped, killed, paused and restarted on its port by it."""

from __future__ import annotations

import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

import attrs

from .process import PATIENCE, Process

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["DYNAMIC_SECURITY", "MISSING", "Broker", "Tls", "free_port"]

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Debian puts Mosquitto where users don't look for programs."""


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=_PATH)


def _path_of(name: str) -> str:
    path = _program(name)
    assert path, f"{name} isn't installed"
    return path


MISSING: Final = ", ".join(name for name in ("mosquitto", "mosquitto_passwd") if _program(name) is None)
"""Programs that this machine lacks."""


DYNAMIC_SECURITY: Final = next(
    (str(path) for path in Path("/usr").glob("lib*/**/mosquitto_dynamic_security.so")), None
)
"""Mosquitto's plugin for users and rights that may be changed while it runs."""


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


def _shakes_hands(sock: socket.socket) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        context.wrap_socket(sock).close()
    except ssl.SSLEOFError:
        return False
    except ssl.SSLError:  # it wants a certificate of us
        return True
    return True


@attrs.frozen
class Tls:
    """A broker's certificate with its key, and the authority of those that it demands of clients."""

    certificate: Path
    client_ca: Path | None = None


@attrs.define(eq=False)
class Broker:
    """Mosquitto on *port*, its files in *folder*; use it in a `with` block, where it runs.

    *users*: passwords by name; clients without a name are let in where *anonymous*. *acl*: lines of
    Mosquitto's ACL file. *persistent*: sessions outlive a `stop`, and after `save` a `kill`. *options*: more
    lines of its configuration.
    """

    folder: Path
    port: int
    users: Mapping[str, str] = attrs.field(factory=dict)
    anonymous: bool = False
    acl: tuple[str, ...] = ()
    tls: Tls | None = None
    persistent: bool = False
    options: tuple[str, ...] = ()
    _process: Process | None = None

    def __enter__(self) -> Self:
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
    def process(self) -> Process:
        """The program, and its log since it was started last."""
        assert self._process is not None, "the broker doesn't run"
        return self._process

    @property
    def url(self) -> str:
        """Where it is, without a user."""
        return f"mqtt{'s' if self.tls else ''}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers a client."""
        self._configure()
        self._process = Process([_path_of("mosquitto"), "-c", str(self.folder / "mosquitto.conf")])
        # What it logs doesn't tell: 2.1 says that it runs before it listens.
        until = time.monotonic() + PATIENCE
        while not self._answers():
            assert self._process.runs, "\n".join(("Mosquitto didn't start:", *self._process.lines))
            assert time.monotonic() < until, "Mosquitto doesn't answer"
            time.sleep(0.01)  # nothing tells of it

    def stop(self) -> None:
        """Have it end in good order, its sessions saved if it is persistent."""
        self.process.end()
        self._process = None

    def kill(self) -> None:
        """End it as a crash does; clients find their connections closed."""
        self.process.end(signal.SIGKILL)
        self._process = None

    def restart(self) -> None:
        """Kill it, and start it again on the same port."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Have it do nothing until `resume`, while the kernel goes on to accept connections for it."""
        self.process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on."""
        self.process.signal(signal.SIGCONT)

    def save(self) -> None:
        """Have it write its sessions to its file, which a `kill` then leaves; once in its life."""
        assert self.persistent, "only a persistent broker has a file"
        self.process.signal(signal.SIGUSR1)
        self.process.wait_for("Saving in-memory database")
        # It does one thing after another: when it answers somebody new, the file is written.
        assert self._answers()

    def _answers(self) -> bool:
        """Tell whether it answers to somebody new, be it by a refusal."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as sock:
                if self.tls is not None:
                    return _shakes_hands(sock)
                sock.sendall(b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x00")
                return sock.recv(1) == b"\x20"
        except OSError:
            return False

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
        path = self.folder / "passwords"
        path.write_text("".join(f"{name}:{password}\n" for name, password in self.users.items()))
        subprocess.run(
            [_path_of("mosquitto_passwd"), "-U", str(path)], check=True, capture_output=True, timeout=PATIENCE
        )
        return path
