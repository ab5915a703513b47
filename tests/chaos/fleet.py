"""The devices: they send numbered records, and send again what wasn't acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import random

import attrs

__all__ = ["Device"]

WINDOW = 8
"""Records that a device has on their way."""

PATIENCE = 5.0
"""Seconds without an answer after which a device dials again."""


@attrs.define(eq=False)
class Device:
    """One device, at the gateway's *port*. It counts what it was told is safe."""

    name: str
    port: int
    safe: set[str] = attrs.field(factory=set)
    sent: int = 0
    dialled: int = 0
    leaving: bool = False
    _open: dict[str, None] = attrs.field(factory=dict)
    _writer: asyncio.StreamWriter | None = None

    def hang_up(self) -> None:
        """Break the connection off, without a goodbye."""
        if self._writer is not None:
            self._writer.transport.abort()

    async def live(self) -> None:
        """Be there until it is *leaving* and every record is safe."""
        while not (self.leaving and not self._open):
            with contextlib.suppress(
                OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
            ):
                await self._talk()
            await asyncio.sleep(random.uniform(0.05, 0.3))

    async def _talk(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.dialled += 1
        self._writer = writer
        try:
            writer.write(f"login {self.name}\n".encode())
            if await asyncio.wait_for(reader.readuntil(), PATIENCE) != b"welcome\n":
                return
            for record in self._open:
                writer.write(f"record {record}\n".encode())
            while not (self.leaving and not self._open):
                self._send_more(writer)
                await writer.drain()
                line = await asyncio.wait_for(reader.readuntil(), PATIENCE)
                record = line.decode().removeprefix("safe ").strip()
                self.safe.add(record)
                self._open.pop(record, None)
                await asyncio.sleep(random.uniform(0, 0.05))
        finally:
            self._writer = None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _send_more(self, writer: asyncio.StreamWriter) -> None:
        while not self.leaving and len(self._open) < WINDOW:
            self.sent += 1
            record = f"{self.name}/{self.sent}"
            self._open[record] = None
            writer.write(f"record {record}\n".encode())
