"""Memory of idle connections: 5,000 of ours beside as many of a server by hand.

Run it as `python -m tests.bench idle`. Counted is the memory that is the server's own alone, for each
connection above a few hundred; sockets' buffers in the kernel are the same for both and not counted. The
devices say nothing first, then each says one line.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack

from .figures import show
from .servers import LOOPS, Server, allow_files

__all__ = ["main"]

CONNECTIONS = 5_000
WARM = 300
"""Connections that aren't counted: with the first ones a server loads and caches what it needs but once."""

BAR = 6.0
PATIENCE = 30.0


def connect(server: Server, count: int, stack: ExitStack) -> list[socket.socket]:
    """Return *count* connections to *server*, all of which it has taken."""
    before = server.connections()
    devices = [
        stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE))
        for _ in range(count)
    ]
    while server.connections() < before + count:
        pass
    return devices


def say(devices: list[socket.socket]) -> None:
    """Have each of *devices* send a line and read its echo."""
    for device in devices:
        device.sendall(b"hello\n")
    for device in devices:
        if device.recv(64) != b"hello\n":
            raise RuntimeError("the echo differs from what was sent")


def kibibytes(kind: str, loop: str) -> tuple[float, float]:
    """Return the KiB of a connection that has said nothing yet, and of one that has said a line."""
    with Server(kind, (loop,)) as server, ExitStack() as stack:
        say(connect(server, WARM, stack))
        server.connections()  # collects its garbage
        before = server.memory()
        devices = connect(server, CONNECTIONS, stack)
        silent = server.memory() - before
        say(devices)
        server.connections()
        said = server.memory() - before
        return silent / CONNECTIONS / 1024, said / CONNECTIONS / 1024


def main() -> None:
    allow_files()
    for loop in LOOPS:
        by_hand = kibibytes("line_by_hand", loop)
        ours = kibibytes("line", loop)
        for name, our, hand in zip(("silent", "said_a_line"), ours, by_hand, strict=True):
            adds = our - hand
            show(
                f"idle.{name}.{loop}",
                f"{adds:.2f}",
                "KiB/connection",
                bar=BAR if loop == "asyncio" else None,
                good=adds <= BAR,
                note=f"at-most ours={our:.2f} by_hand={hand:.2f} connections={CONNECTIONS}",
            )


if __name__ == "__main__":
    main()
