"""Connections from before this process: when it dies the broker starts it again, and they stay.

One that says nothing would be known by its first event only, and what the broker had for the device would be
lost with that. So they are listed at the start: which driver is ours, its listener, that listener's
connections, each of which is asked before it is met: what answers and has called `init` by then is ours. Each
is closed, or resumed where the router says so (rule 8).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ...core import Intake
from ...errors import CommandError
from . import facts
from .link import ErlangLink
from .terms import Atom, Opaque, TermError
from .udp_listener import UdpListener

if TYPE_CHECKING:
    from .process import Process

__all__ = ["Leftovers"]

log = logging.getLogger("exproto_app")

AT_ONCE: Final = 64
"""Connections that are asked at the same time."""

EARLY: Final = 1_000
"""Events that may wait while the broker is asked about a connection."""

MANAGER: Final = "emqx_exproto_driver_mngr"


class Leftovers:
    """Looks for them, and sees to each that speaks first."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._hub = process.hub
        self._early: dict[
            bytes, list[Callable[[Intake], object]]
        ] = {}  # events of those that are asked about
        self._own: Opaque | None = None
        self._module = ""
        self._pids: Iterator[bytes] = iter(())
        self._listeners: list[Any] = []

    def event(self, pid: bytes, feed: Callable[[Intake], object]) -> None:
        """Take an event of a connection that this process never saw."""
        if pid in self._process.ended_links:
            return
        early = self._early.get(pid)
        if early is not None:
            if len(early) < EARLY:
                early.append(feed)
            else:
                log.warning("port ! an event of a connection from before our start is dropped")
            return
        link = self._process.meet(pid)
        if link is None:
            return
        self._early[pid] = [feed]
        link.ask(partial(self._informed, link))

    def forget(self, pid: bytes) -> None:
        """Let go of what waits of a connection that has ended."""
        self._early.pop(pid, None)

    def _informed(self, link: ErlangLink, about: object, error: object) -> None:
        """Resume a connection, now that the broker has told of it."""
        events = self._early.pop(link.pid, None)
        if events is None or link.pid in self._process.links:
            return
        try:
            known: Any = about
            info = facts.connection_info(known[Atom("conninfo")])
        except (TermError, KeyError, TypeError) as wrong:
            log.warning("port ! a connection from before our start can't be resumed: %s", error or wrong)
            link.close()
            return
        self._process.connected(link, info, resumed=True)
        for event in events:
            if link.channel is not None:
                event(link.channel)

    def _found(self, pid: bytes, about: object) -> None:
        """Take a connection that has said nothing yet."""
        process = self._process
        if pid in process.links or pid in process.ended_links or pid in self._early:
            return
        link = process.meet(pid)
        if link is not None:
            self._early[pid] = []
            self._informed(link, about, None)

    # --- the list of them

    def look(self) -> None:
        """Begin with the process that owns our port: the drivers of the broker are known by it."""
        self._hub.call("erlang", "self", [], self._is, context="L")

    def _is(self, own: object, error: CommandError | None) -> None:
        if isinstance(own, Opaque) and own.is_pid:
            self._own = self._hub.own = own
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
                if kind == "udp":
                    UdpListener(self._hub, name, listen_on).watch()
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
            self._process.when_started(self._module, partial(self._found, pid, about))
        self._next()

    def _give_up(self, what: str, why: object) -> None:
        log.debug("port = connections from before our start aren't listed: %s: %s", what, why)
