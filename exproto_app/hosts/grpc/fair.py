"""FairQueue: calls that wait for their turn, one of each device, round and round."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, Protocol, TypeVar

__all__ = ["FairQueue"]


class _Flowing(Protocol):
    """Anything that belongs to somebody."""

    @property
    def flow(self) -> bytes: ...


T = TypeVar("T", bound=_Flowing)


class FairQueue(Generic[T]):
    """Items in order within their *flow*; flows take turns, so that none starves behind another's burst."""

    def __init__(self) -> None:
        self._flows: OrderedDict[bytes, deque[T]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, item: T) -> None:
        """Put *item* behind those of its flow."""
        flow = self._flows.get(item.flow)
        if flow is None:
            flow = self._flows[item.flow] = deque()
        flow.append(item)
        self._size += 1

    def pop(self) -> T:
        """Return the first item of the flow whose turn it is. Raises `KeyError` where nothing waits."""
        name, flow = self._flows.popitem(last=False)
        item = flow.popleft()
        self._size -= 1
        if flow:
            self._flows[name] = flow
        return item

    def discard(self, item: T) -> None:
        """Take *item* out, if it waits."""
        flow = self._flows.get(item.flow)
        if flow is None or item not in flow:
            return
        flow.remove(item)
        self._size -= 1
        if not flow:
            del self._flows[item.flow]
