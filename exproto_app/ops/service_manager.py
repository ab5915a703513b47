"""What a service manager is told: that this process serves, reads its files again, ends, and is alive.

systemd takes datagrams of `NAME=VALUE` lines on the socket that `NOTIFY_SOCKET` names, see sd_notify(3). It
ends and restarts a service with `WatchdogSec=` that isn't heard of in that time: so a loop that hangs is
found by somebody who can do something about it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from typing import Final

import attrs

__all__ = ["ServiceManager"]

PART: Final = 3
"""A sign of life is given so many times in the time in which one is expected."""


@attrs.frozen
class ServiceManager:
    """The service manager at *address*, None where there is none: then it is told nothing.

    *patience*: seconds in which it expects signs of life, 0 where it doesn't.
    """

    address: str | None = None
    patience: float = 0.0

    @classmethod
    def take(cls) -> ServiceManager:
        """Return the one that started this process; programs that the process starts don't know of it."""
        address = os.environ.pop("NOTIFY_SOCKET", None)
        microseconds = os.environ.pop("WATCHDOG_USEC", "")
        meant = os.environ.pop("WATCHDOG_PID", "") in ("", str(os.getpid()))
        patience = int(microseconds) / 1_000_000 if meant and microseconds.isdecimal() else 0.0
        return cls(address or None, patience)

    def ready(self) -> None:
        """Tell that devices can connect, again after `reloading`."""
        self._tell("READY=1", "STATUS=")

    def reloading(self) -> None:
        """Tell that files are read again, until `ready`."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}")

    def draining(self) -> None:
        """Tell whoever looks; it isn't a stop, which would be bounded in time."""
        self._tell("STATUS=draining")

    def stopping(self) -> None:
        """Tell that the end has begun."""
        self._tell("STOPPING=1")

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give signs of life from now on, as long as *loop* turns."""
        if self.address is not None and self.patience:
            self._tell("WATCHDOG=1")
            loop.call_later(self.patience / PART, self.watch, loop)

    def _tell(self, *lines: str) -> None:
        if self.address is None:
            return
        # One that doesn't listen, or has no room, keeps nobody waiting.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            where = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
            sock.sendto("\n".join(lines).encode(), where)
