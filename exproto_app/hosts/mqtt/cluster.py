"""The nodes of a broker: which of them is used, and which version of MQTT each speaks. No I/O, no clock."""

from __future__ import annotations

import attrs

from .url import Url
from .versions import Versions, Wanted

__all__ = ["Cluster"]


@attrs.define(eq=False)
class Cluster:
    """The nodes of the broker at *url*; clients connect to the one *at* which they did last, until it fails.

    So all are at one node. There is no way back to an earlier one that recovers, which would cut everybody.
    """

    url: Url
    wanted: Wanted = "auto"
    at: int = 0
    _nodes: tuple[tuple[Url, Versions], ...] = attrs.field(init=False)
    _failed: int = attrs.field(default=0, init=False)  # nodes in a row

    def __attrs_post_init__(self) -> None:
        self._nodes = tuple((node, Versions(self.wanted)) for node in self.url.each())

    @property
    def here(self) -> Url:
        """The node that is used."""
        return self._nodes[self.at][0]

    @property
    def versions(self) -> Versions:
        """What that node speaks."""
        return self._nodes[self.at][1]

    def versions_of(self, at: int) -> Versions:
        """Return what the node *at* speaks."""
        return self._nodes[at][1]

    def works(self) -> None:
        """Take note that a node answers."""
        self._failed = 0

    def failed(self, at: int) -> bool:
        """Take note that the node *at* is of no use; return whether to try another one at once.

        Once all have failed in a row it is time to wait, and to begin again.
        """
        if at != self.at:
            return True  # others have found out in the meantime
        number = len(self._nodes)
        self.at = (at + 1) % number
        self._failed += 1
        if self._failed < number:
            return True
        self._failed = 0
        return False
