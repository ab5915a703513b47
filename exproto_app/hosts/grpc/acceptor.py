"""Acceptor: accepts the connections of callers."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ...asyncio_host.accepting import Accepting
from ...models import Address
from .caller import Caller

if TYPE_CHECKING:
    import ssl

__all__ = ["Acceptor"]

log = logging.getLogger("exproto_app")

HANDSHAKES: Final = 256
"""TLS handshakes that are under way at once; then the oldest is given up."""

HANDSHAKE_WAIT: Final = 10.0
"""Seconds that a TLS handshake may take."""


class Acceptor:
    """Accepts what comes to *sock*; *make* makes a caller of it, *count* counts by name."""

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext | None,
        make: Callable[[], Caller],
        count: Callable[[str], object],
    ) -> None:
        self.sock = sock
        self.context = context  # for those to come
        self._make = make
        self._count = count
        self._loop = asyncio.get_running_loop()
        self._accepting = Accepting(sock, self._take, count, "grpc ! the service")
        self._beginning: dict[asyncio.Task[None], None] = {}

    def start(self) -> None:
        """Listen. Raises `OSError`."""
        self._accepting.start()

    async def close(self) -> None:
        """Accept no more; what is half accepted is given up."""
        self._accepting.close()
        if not self._beginning:
            return
        # On plain TCP this is a matter of a few rounds of the loop; a handshake may take longer.
        _, late = await asyncio.wait(self._beginning, timeout=0.0 if self.context is not None else 1.0)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _take(self, sock: socket.socket, address: tuple[str, int]) -> None:
        if self.context is not None and len(self._beginning) >= HANDSHAKES:
            self._count("callers_over_limit")
            text = "grpc ! %d TLS handshakes are under way, limit is %d; the oldest is given up"
            log.warning(text, len(self._beginning), HANDSHAKES)
            oldest = next(iter(self._beginning))
            del self._beginning[oldest]
            oldest.cancel()
        task = self._loop.create_task(self._begin(sock, Address(*address[:2])))
        self._beginning[task] = None
        task.add_done_callback(lambda task: self._beginning.pop(task, None))

    async def _begin(self, sock: socket.socket, peer: Address) -> None:
        caller = self._make()
        options = {} if self.context is None else {"ssl_handshake_timeout": HANDSHAKE_WAIT}
        try:
            await self._loop.connect_accepted_socket(
                lambda: caller.protocol, sock, ssl=self.context, **options
            )
        except OSError as error:  # it has gone already, or speaks no TLS, which is told elsewhere
            log.debug("grpc = a connection of %s ended before it began: %s", peer, error)
            sock.close()
            caller.protocol.abort()
