"""MQTT clients that connect with the name of a device of ours: the device is taken over.

EMQX tells the device's process to "discard" itself, which that ignores (`emqx_exproto_channel`, "Unexpected
call"), and both would get each message. But whoever connects is announced below `$SYS`. The process that owns
our port subscribes there, and passes on what is delivered to it, as it does with all that it is sent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from ...core import Channel
from ...errors import CommandError
from . import facts
from .link import ErlangLink

if TYPE_CHECKING:
    from .calls import Calls

__all__ = ["Presence"]

log = logging.getLogger("exproto_app")

FILTER: Final = b"$SYS/brokers/+/clients/#"
"""Names may have slashes, so what leaves comes too."""

MIDDLE: Final = b"/clients/"
END: Final = b"/connected"


class Presence:
    """Looks at clients that connect.

    *find* returns the device of a name, None if it isn't connected here; *links* are the broker's processes.
    """

    def __init__(
        self, hub: Calls, find: Callable[[str], Channel | None], links: Mapping[bytes, ErlangLink]
    ) -> None:
        self._hub = hub
        self._find = find
        self._links = links

    def watch(self) -> None:
        """Have the port's process subscribe."""
        self._hub.call("emqx_broker", "subscribe", [FILTER], self._watching, context="L")

    def announced(self, message: object) -> None:
        """Take what the broker has to tell of a client."""
        topic = facts.topic(message)
        if not topic.endswith(END):
            return
        name = topic.partition(MIDDLE)[2][: -len(END)]
        clientid = name.decode(errors="replace")
        if self._find(clientid) is not None:
            self._hub.each("emqx_cm", "lookup_channels", name, partial(self._found, clientid))

    def _watching(self, answer: object, error: CommandError | None) -> None:
        why = error or facts.problem(answer)
        if why:
            words = "port ! an MQTT client that takes the name of a connected device won't end the device: %s"
            log.warning(words, why)

    def _found(self, clientid: str, answer: object, error: CommandError | None) -> None:
        """End the device, unless it is the one that came later: its register has ended the client then."""
        channel = self._find(clientid)
        if channel is None or error is not None or not isinstance(answer, list):
            return
        pids = [term.raw for term in answer if facts.is_pid(term)]
        older = [self._links[pid].channel for pid in pids[:-1] if pid in self._links]
        if channel in older:
            channel.end("taken over", f"an MQTT client connects as {clientid!r}")
