"""Read-only views of what changes while it is looked at."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import TypeVar

__all__ = ["ByClientid"]

C = TypeVar("C")


class ByClientid(Mapping[str, C]):
    """Connections by clientid, as they are; a loop sees those that were there when it began.

    A handler that loops over them may await: the connections that come and go meanwhile don't disturb it.
    """

    __slots__ = ("_live",)

    def __init__(self, live: dict[str, C]) -> None:
        self._live = live

    def __getitem__(self, clientid: str) -> C:
        return self._live[clientid]

    def __contains__(self, clientid: object) -> bool:
        return clientid in self._live

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._live))

    def __len__(self) -> int:
        return len(self._live)

    def __repr__(self) -> str:
        return repr(self._live)

    def keys(self) -> KeysView[str]:
        """Return the clientids of now."""
        return self._live.copy().keys()

    def values(self) -> ValuesView[C]:
        """Return the connections of now."""
        return self._live.copy().values()

    def items(self) -> ItemsView[str, C]:
        """Return the pairs of now."""
        return self._live.copy().items()
