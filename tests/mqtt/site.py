"""A gateway with an uplink, run as its user runs it, and the devices that are connected to it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from signal import SIGKILL
from types import TracebackType
from typing import TYPE_CHECKING, Final

from tests.behaviour.hosts import SocketDevice

from .process import Process

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LineDevice", "Site"]

APP: Final = Path(__file__).with_name("app.py")


class LineDevice(SocketDevice):
    """A device that speaks in lines."""

    def line(self) -> str:
        """Wait for the next line; empty if the connection ends before."""
        data = b""
        while not data.endswith(b"\n"):
            byte = self.read(1)
            if not byte:
                break
            data += byte
        return data.decode().rstrip("\n")

    def say(self, *lines: str) -> None:
        """Send *lines*."""
        self.send("".join(f"{line}\n" for line in lines).encode())

    def ask(self, line: str) -> str:
        """Send *line*, and return the next that comes."""
        self.say(line)
        return self.line()


class Site(Process):
    """`exproto-app run` with the app of these tests and the broker at *url*, in a `with` block.

    *app* is another one's file, *protocol* what devices speak there.
    """

    def __init__(self, url: str, *options: object, app: Path = APP, protocol: str = "default") -> None:
        self._protocol = protocol
        listen = ("--listen", f"{protocol}=tcp://127.0.0.1:0")
        command = ("run", app, *listen, "--mqtt", url, "--loop", "asyncio", *options)
        super().__init__([sys.executable, "-m", "exproto_app", *map(str, command)])
        self._devices: list[LineDevice] = []

    def __enter__(self) -> Self:
        self.wait_for("Ctrl-C stops ")
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for device in self._devices:
            device.hang_up()
        self.end(SIGKILL)
        assert not any("Traceback" in line for line in self.lines), "\n".join(self.lines)

    @property
    def port(self) -> int:
        """Where devices connect to."""
        found = re.search(r"tcp://127\.0\.0\.1:(\d+)", self.wait_for(f"{self._protocol} on tcp"))
        assert found
        return int(found[1])

    def device(self) -> LineDevice:
        """Connect a device."""
        device = LineDevice(("127.0.0.1", self.port), udp=False)
        self._devices.append(device)
        return device

    def client(self, clientid: str) -> LineDevice:
        """Connect a device, and have it log in."""
        device = self.device()
        assert device.ask(f"login {clientid}") == "ok"
        return device
