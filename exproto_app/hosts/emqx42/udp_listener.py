"""The socket of a UDP listener, which all its peers share: whether it is open, and opening it again.

The broker closes it with any peer whose end it sees to itself. While our process runs that never happens. But
where that dies at work, the calls that it leaves unanswered end their peers; the listener notices nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ...errors import CommandError
from . import facts
from .terms import Atom, Opaque

if TYPE_CHECKING:
    from .calls import Calls

__all__ = ["UdpListener"]

log = logging.getLogger("exproto_app")

LOOK: Final = 10.0
"""Seconds between two looks."""

PORTS: Final = b"fYx"
"""How a port begins, in each of its forms."""


class UdpListener:
    """Watches the listener *name* on *listen_on*, an address as the broker has it."""

    def __init__(self, hub: Calls, name: Atom, listen_on: Any) -> None:
        self._hub = hub
        self._name = name
        self._listen_on = listen_on

    def watch(self) -> None:
        """Look now, and again and again."""
        self.look(lambda: self._hub.call_later(LOOK, self.watch))

    def look(self, done: Callable[[], object]) -> None:
        """Open the socket again if it is closed, then call *done*."""

        def found(server: object, _: CommandError | None) -> None:
            if facts.is_pid(server):
                self._hub.call("sys", "get_state", [server], asked)
            else:  # it isn't up yet, or was stopped
                done()

        def asked(state: object, _: CommandError | None) -> None:
            match state:
                case (_, _, Opaque(raw) as socket, *_) if raw[:1] in PORTS:
                    self._hub.call("erlang", "port_info", [socket], looked)
                case _:
                    done()

        def looked(answer: object, error: CommandError | None) -> None:
            if error is None and answer == "undefined":
                log.warning(
                    "port ! the socket of the UDP listener %s is closed; it is opened again", self._name
                )
                self._hub.call("esockd", "reopen", [self._name, self._listen_on], opened)
            else:
                done()

        def opened(answer: object, error: CommandError | None) -> None:
            why = error or facts.problem(answer)
            if why:
                log.error("port ! the UDP listener %s can't be opened again: %s", self._name, why)
            done()

        if not self._hub.lost:
            self._hub.call("esockd", "listener", [(self._name, self._listen_on)], found)
