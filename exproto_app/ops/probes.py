"""A small HTTP server in a thread of its own, for probes and scrapes: it answers while the event loop hangs.

A request is a GET with a head of up to 8 KB; the connection ends with its answer. Each connection has a
deadline, and there are so many of them; beyond that the oldest one that hasn't asked anything goes, so slow
clients keep no probe out.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, cast

import attrs

__all__ = ["CONNECTIONS", "Answer", "Probes", "Request"]

log = logging.getLogger("exproto_app")

CONNECTIONS: Final = 24
"""Connections at once."""

HEAD: Final = 8_192
"""Bytes of a request."""

DEADLINE: Final = 5.0
"""Seconds in which a request has to come."""

WRITING: Final = 10.0
"""Seconds in which it has to be answered, and the answer read."""


@attrs.frozen
class Request:
    """What is asked: *headers* by their names in lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]


@attrs.frozen
class Answer:
    """What is answered: *status* such as `200 OK`."""

    status: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class Probes:
    """Answers requests to *sock*, which listens, by *answer*, in a thread named *name*."""

    def __init__(
        self, sock: socket.socket, answer: Callable[[Request], Awaitable[Answer]], *, name: str
    ) -> None:
        self.sock = sock
        self.answer = answer
        self.clients: dict[_Client, None] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        self._name = name
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to answer."""
        self._loop = asyncio.SelectorEventLoop()
        run = partial(self._run, self._loop)
        self._thread = threading.Thread(target=run, name=f"exproto-app {self._name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        if self._loop is None or self._thread is None:
            self.sock.close()
            return
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.set_exception_handler(lambda _, context: log.debug("%s ! %s", self._name, context["message"]))
        try:
            loop.run_until_complete(self._serve(loop))
        finally:
            loop.close()

    async def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        server = await loop.create_server(lambda: _Client(self, loop), sock=self.sock, backlog=CONNECTIONS)
        await self._ended.wait()
        server.close()
        for client in tuple(self.clients):
            client.abort()
        for task in self.tasks:
            task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def take(self, client: _Client) -> bool:
        """Take a connection, for the oldest one that hasn't asked if there are too many; return whether."""
        if len(self.clients) >= CONNECTIONS:
            oldest = next((other for other in self.clients if not other.asked), None)
            if oldest is None:
                return False
            oldest.abort()
        self.clients[client] = None
        return True


class _Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: Probes, loop: asyncio.AbstractEventLoop) -> None:
        self.asked = False
        self._server = server
        self._loop = loop
        self._data = bytearray()
        self._transport: asyncio.Transport
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if not self._server.take(self):
            self._transport.abort()
            return
        self._late = self._loop.call_later(DEADLINE, self.abort)

    def data_received(self, data: bytes) -> None:
        if self.asked:
            return
        start = max(0, len(self._data) - 3)
        self._data += data
        end = self._data.find(b"\r\n\r\n", start, HEAD)
        if end < 0:
            if len(self._data) > HEAD:
                self._finish(Answer("431 Request Header Fields Too Large", b"the request is too long\n"))
            return
        request = _parse(bytes(self._data[:end]))
        if request is None:
            self._finish(Answer("400 Bad Request", b"this isn't HTTP\n"))
            return
        self._wait_no_longer()
        task = self._loop.create_task(self._answer(request))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._server.clients.pop(self, None)
        if self._late is not None:
            self._late.cancel()

    def abort(self) -> None:
        """End it at once."""
        self._server.clients.pop(self, None)
        self._transport.abort()

    def _wait_no_longer(self) -> None:
        self.asked = True
        if self._late is not None:
            self._late.cancel()
        self._late = self._loop.call_later(WRITING, self.abort)

    async def _answer(self, request: Request) -> None:
        try:
            answer = await self._server.answer(request)
        except Exception:
            log.exception("metrics ! %s failed", request.path)
            answer = Answer("500 Internal Server Error", b"this failed; the log says why\n")
        self._finish(answer, head=request.method == "HEAD")

    def _finish(self, answer: Answer, *, head: bool = False) -> None:
        if not self.asked:
            self._wait_no_longer()
        headers = (("Content-Length", str(len(answer.body))), ("Connection", "close"), *answer.headers)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        self._transport.write(f"HTTP/1.1 {answer.status}\r\n{lines}\r\n".encode("latin-1"))
        if not head:
            self._transport.write(answer.body)
        self._transport.close()


def _parse(head: bytes) -> Request | None:
    """Read a request's head; None for what isn't HTTP."""
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return None
    path, _, query = words[1].partition("?")
    pairs = (line.partition(":") for line in lines)
    return Request(words[0], path, query, {name.strip().lower(): value.strip() for name, _, value in pairs})
