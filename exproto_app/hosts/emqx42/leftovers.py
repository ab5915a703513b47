"""Connections from before this process: when it dies the broker starts it again, and they stay.

One that says nothing would be known by its first event only, and what the broker had for the device would be
lost with that. So they are listed at the start: which driver is ours, its listener, that listener's
connections, each of which is asked before it is met: what answers and has called `init` by then is ours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ...errors import CommandError
from . import facts
from .terms import Atom, Opaque

if TYPE_CHECKING:
    from .broker import BrokerHub

__all__ = ["Leftovers"]

log = logging.getLogger("exproto_app")

AT_ONCE: Final = 64
"""Connections that are asked at the same time."""

MANAGER: Final = "emqx_exproto_driver_mngr"


class Leftovers:
    """Looks for them; *found* gets the callback module, a pid, and what that process tells of itself."""

    def __init__(self, hub: BrokerHub, found: Callable[[str, bytes, object], None]) -> None:
        self._hub = hub
        self._found = found
        self._own: Opaque | None = None
        self._module = ""
        self._pids: Iterator[bytes] = iter(())
        self._listeners: list[Any] = []

    def look(self) -> None:
        """Begin with the process that owns our port: the drivers of the broker are known by it."""
        self._hub.call("erlang", "self", [], self._is, context="L")

    def _is(self, own: object, error: CommandError | None) -> None:
        if isinstance(own, Opaque) and own.is_pid:
            self._own = own
            arguments: list[Any] = [Atom("emqx_exproto"), Atom("listeners")]
            self._hub.call("application", "get_env", arguments, self._configured)
        else:
            self._give_up("its own process", error or own)

    def _configured(self, answer: object, error: CommandError | None) -> None:
        match answer:
            case ("ok", list() as listeners):
                self._listeners = [each for each in listeners if isinstance(each, tuple) and len(each) == 4]
                self._next_listener()
            case _:
                self._give_up("the listeners", error or answer)

    def _next_listener(self) -> None:
        if not self._listeners:
            return
        name, kind, listen_on, _ = self._listeners.pop()
        driver = Atom(f"{facts.text(name)}:{kind}")
        done = partial(self._driver, driver, str(kind), listen_on)
        self._hub.call(MANAGER, "lookup", [driver], done)

    def _driver(
        self, name: Atom, kind: str, listen_on: Any, answer: object, error: CommandError | None
    ) -> None:
        match answer:
            case ("ok", dict() as driver) if error is None and driver.get(Atom("pid")) == self._own:
                self._module = str(driver.get(Atom("cbm")))
                done = partial(self._listener, kind)
                self._hub.call("esockd", "listener", [(name, listen_on)], done)
            case _:
                self._next_listener()

    def _listener(self, kind: str, answer: object, error: CommandError | None) -> None:
        if not facts.is_pid(answer):
            self._give_up("the listener", error or answer)  # at the broker's start it opens after our process
        elif kind == "udp":
            self._supervisor(answer, None)
        else:
            self._hub.call("esockd_listener_sup", "connection_sup", [answer], self._supervisor)

    def _supervisor(self, answer: object, error: CommandError | None) -> None:
        if facts.is_pid(answer):
            self._hub.call("supervisor", "which_children", [answer], self._children)
        else:
            self._give_up("the connections", error or answer)

    def _children(self, answer: object, error: CommandError | None) -> None:
        if not isinstance(answer, list):
            self._give_up("the connections", error or answer)
            return
        pids = [child[1].raw for child in answer if isinstance(child, tuple) and facts.is_pid(child[1])]
        self._pids = iter(pids)
        for _ in range(AT_ONCE):
            self._next()

    def _next(self) -> None:
        pid = next(self._pids, None)
        if pid is not None:
            self._hub.call("emqx_exproto_conn", "info", [Opaque(pid)], partial(self._answered, pid))

    def _answered(self, pid: bytes, about: object, error: CommandError | None) -> None:
        if error is None and isinstance(about, dict):
            self._found(self._module, pid, about)
        self._next()

    def _give_up(self, what: str, why: object) -> None:
        log.debug("port = connections from before our start aren't listed: %s: %s", what, why)
