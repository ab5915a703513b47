"""GT06 positions through the whole gateway: frame, CRC, handler, JSON, publish; beside the same by hand.

Run it as `python -m tests.bench devices`. Ours is `examples/gt06.py` as it stands, with the embedded hub; by
hand, an `asyncio.Protocol` does the same without a framework. Positions have no answer, so behind as many of
them as the figure's name tells each of the 100 trackers sends a status, and goes on when that is answered.
The figure counts positions alone. At its end the server has to have published each of them.
"""

from __future__ import annotations

import asyncio
import json
import selectors
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import attrs

from exproto_app.checksums import CRC16_X25
from exproto_app.hosts.gateway import Gateway
from exproto_app.target import load as load_app
from tests.devices import GT06

from .gateway import ROUNDS, SECONDS, WARMUP, rounds, tell
from .load import Round
from .servers import BACKLOG, LOOPS, ByHand, Server, answer_counts, run_server

__all__ = ["main"]

BARS = {1: 0.75, 16: 0.6}
"""By how many positions a tracker sends in one go."""

TRACKERS = 100
PATIENCE = 10.0
POSITIONS = (1, 16)
"""Positions that each tracker sends in one go."""

STATUS, POSITION = GT06.steps[:2]


# --- the servers


class Gt06ByHand(ByHand):
    """Speaks GT06 as far as these trackers do: short frames, logins, positions, statuses."""

    __slots__ = ("imei",)

    published = 0
    subscribers: dict[str, list[Callable[[str, bytes], None]]] = {}  # noqa: RUF012 - the server's own
    example: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.imei = ""

    def data_received(self, data: bytes) -> None:
        if self.rest:
            data = self.rest + data
        crc = CRC16_X25.function
        start, size = 0, len(data)
        while start + 3 <= size:
            if not data.startswith(b"\x78\x78", start):
                start = self.next_start(data, start + 1)
                continue
            end = start + data[start + 2] + 5
            if end > size:
                break
            if data[end - 2 : end] != b"\r\n":
                start = self.next_start(data, start + 1)
                continue
            if crc(data[start + 2 : end - 4]) == data[end - 4] << 8 | data[end - 3]:
                self.frame_received(data[start + 3 : end - 4])
            start = end
        self.rest = data[start:]

    def next_start(self, data: bytes, start: int) -> int:
        found = data.find(b"\x78\x78", start)
        return len(data) if found < 0 else found

    def frame_received(self, frame: bytes) -> None:
        packet = self.example.parse(frame)
        if packet.kind == "login":
            self.imei = packet.values["imei"]
        elif not self.imei:
            self.transport.close()
            return
        else:
            self.publish(packet.kind, packet.values)
            if not packet.waits:
                return
        answer = b"\x05" + packet.answer
        self.write(b"\x78\x78" + answer + CRC16_X25(answer).to_bytes(2, "big") + b"\r\n")

    def publish(self, what: str, values: dict[str, Any]) -> None:
        topic = f"devices/{self.imei}/{what}"
        payload = json.dumps(values).encode()
        for deliver in self.subscribers.get(topic, ()):
            deliver(topic, payload)
        Gt06ByHand.published += 1


async def serve(kind: str) -> None:
    """Serve, and tell whoever asks how many connections there are and what was published."""
    app = load_app(GT06.path)
    if kind == "by_hand":
        # What a content means is the same in both: only what is around it is compared.
        Gt06ByHand.example = sys.modules[app.protocols["gt06"].routes.keyed["login"].function.__module__]
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Gt06ByHand, "127.0.0.1", 0, backlog=BACKLOG)
        print(server.sockets[0].getsockname()[1], flush=True)
        await answer_counts(lambda: f"{ByHand.open} {Gt06ByHand.published}")
        server.close()
        return
    async with Gateway(app, ["tcp://127.0.0.1:0"]) as gateway:
        print(gateway.addresses[0][2].port, flush=True)
        await answer_counts(lambda: f"{gateway.open} {app.stats['messages_published']}")


# --- the trackers


def login(number: int) -> bytes:
    """Return the login of a tracker with a number of its own."""
    covered = b"\x0d\x01" + bytes.fromhex(f"{number:016}") + b"\0\1"
    return b"\x78\x78" + covered + CRC16_X25(covered).to_bytes(2, "big") + b"\r\n"


@attrs.define(eq=False)
class Tracker:
    sock: socket.socket
    waits: int
    """Bytes of an answer still to come."""


class Trackers:
    """Keeps *window* positions and a status under way from each tracker; each round has trackers anew."""

    def run(self, server: Server, window: int) -> Round:
        """Return how many positions a second *server* took."""
        _, before = server.ask()
        burst = POSITION.sends * window + STATUS.sends
        with selectors.DefaultSelector() as selector, ExitStack() as stack:
            for number in range(TRACKERS):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.sendall(login(number))
                selector.register(sock, selectors.EVENT_READ, Tracker(sock, len(GT06.login.answer)))
            sent = drive(selector, burst, WARMUP)
            cpu, own, started = server.cpu(), time.process_time(), time.perf_counter()
            bursts = drive(selector, burst, SECONDS)
            took = time.perf_counter() - started
            cpu, own = server.cpu() - cpu, time.process_time() - own
            sent += bursts
            settle(selector)
        _, after = server.ask()
        if after - before != sent * (window + 1):
            raise RuntimeError(f"{sent * (window + 1)} messages were sent, {after - before} published")
        return Round(bursts * window / took, cpu / took, own / took)


def drive(selector: selectors.BaseSelector, burst: bytes, seconds: float) -> int:
    """Have each tracker send *burst* when it has its answer; return how many were sent."""
    sent = 0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for key, _ in selector.select(PATIENCE):
            if answered(key.data):
                key.data.sock.sendall(burst)
                key.data.waits = len(STATUS.answer)
                sent += 1
    return sent


def settle(selector: selectors.BaseSelector) -> None:
    """Wait until each tracker has its answer."""
    for key in list(selector.get_map().values()):
        while not answered(key.data):
            pass


def answered(tracker: Tracker) -> bool:
    """Take what has come; tell whether the answer is whole."""
    data = tracker.sock.recv(tracker.waits)
    if not data:
        raise RuntimeError("the server closed a connection")
    tracker.waits -= len(data)
    return not tracker.waits


def main() -> None:
    for loop in LOOPS:
        with Server("gt06", (loop,), __name__) as ours, Server("by_hand", (loop,), __name__) as by_hand:
            for window in POSITIONS:
                pairs = rounds(Trackers(), ours, by_hand, window, ROUNDS[loop])
                bar = BARS[window] if loop == "asyncio" else None
                tell(f"devices.gt06.{window}_at_once.{loop}", "frames/s", bar, pairs)


if __name__ == "__main__":
    run_server(serve)
