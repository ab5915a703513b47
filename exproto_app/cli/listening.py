"""Listening to devices without answering, to see what they send."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from typing import Any, Final

import click

from ..errors import SetupError
from ..guessing import Stream

__all__ = ["heard"]

MOST_BYTES: Final = 1_000_000
MOST_CONNECTIONS: Final = 200
"""What is heard at most; then it is enough."""

ADDRESS: Final = re.compile(r"(tcp|udp)://(\[[0-9a-fA-F:.]+\]|[^\[\]:/]*):(\d{1,5})")


class _Ear:
    """What is heard, by connection."""

    def __init__(self) -> None:
        self.reads: dict[str, list[bytes]] = {}
        self.size = 0
        self.enough = asyncio.Event()

    def take(self, name: str, data: bytes) -> None:
        """Take *data* of the device *name*."""
        if name not in self.reads and len(self.reads) >= MOST_CONNECTIONS:
            return
        self.reads.setdefault(name, []).append(data)
        self.size += len(data)
        if self.size >= MOST_BYTES:
            self.enough.set()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, ear: _Ear) -> None:
        self._ear = ear

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._ear.take(f"{addr[0]}:{addr[1]}", data)


def heard(address: str, seconds: float) -> list[Stream]:
    """Return what devices send to *address* within *seconds*, or up to Ctrl-C. Raises `SetupError`."""
    found = ADDRESS.fullmatch(address)
    if found is None or int(found[3]) > 65_535:
        raise SetupError(f"--listen {address}: write it like tcp://0.0.0.0:7993 or udp://0.0.0.0:7993")
    kind, host, port = found[1], found[2].strip("[]") or None, int(found[3])
    return asyncio.run(_listen(kind, host, port, seconds))


async def _listen(kind: str, host: str | None, port: int, seconds: float) -> list[Stream]:
    ear = _Ear()
    loop = asyncio.get_running_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = "{}:{}".format(*writer.get_extra_info("peername")[:2])
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                ear.take(name, data)
        writer.close()

    try:
        if kind == "udp":
            transport, _ = await loop.create_datagram_endpoint(
                lambda: _Datagrams(ear), local_addr=(host or "::", port)
            )
            close = transport.close
            where = transport.get_extra_info("sockname")
        else:
            server = await asyncio.start_server(serve, host, port)
            close = server.close
            where = server.sockets[0].getsockname()
    except OSError as error:
        text = (error.strerror or str(error)).lower()
        raise SetupError(f"--listen {kind}://{host or ''}:{port}: {text}") from None
    click.echo(f"listening on {kind}://{where[0]}:{where[1]} for {seconds:g} s, or until Ctrl-C", err=True)
    with contextlib.suppress(NotImplementedError):  # where signals can't be told to a loop
        loop.add_signal_handler(signal.SIGINT, ear.enough.set)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(ear.enough.wait(), seconds)
    close()
    return [Stream(tuple(reads), kind == "udp", name) for name, reads in ear.reads.items()]
