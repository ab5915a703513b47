"""Routes: which handler takes which frame, message or event."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any

from .handlers import Handler

__all__ = ["Routes"]


class Routes:
    """The handlers of one router, as the engine asks for them."""

    def __init__(self, key: Callable[[Any], Hashable] | None) -> None:
        self.connect: Handler | None = None
        self.keyed: dict[Any, Handler] = {}
        self.rest: Handler | None = None
        self.topics: list[tuple[str, Callable[[str], bool], Handler]] = []
        self.deliver_rest: Handler | None = None
        self.ticks: list[tuple[float, Handler]] = []
        self.timeout: Handler | None = None
        self.bad_frame: Handler | None = None
        self.error: Handler | None = None
        self.terminated: Handler | None = None
        self.login: Handler | None = None
        self._key = key
        self._lengths: list[int] = []

    def add_key(self, key: Any, handler: Handler) -> None:
        """Have *handler* take the frames of *key*, or with this prefix."""
        self.keyed[key] = handler
        if self._key is None:
            self._lengths = sorted({len(prefix) for prefix in self.keyed}, reverse=True)

    def received(self, frame: bytes, message: Any) -> Handler | None:
        """Return the handler that takes *message*, which is the *frame* itself without a codec."""
        if self._key is not None:
            return self.keyed.get(self._key(message), self.rest)
        for length in self._lengths:
            handler = self.keyed.get(frame[:length])
            if handler is not None:
                return handler
        return self.rest

    @property
    def catch_all(self) -> Handler | None:
        """The handler of every frame, where there is just the bare one and it doesn't block."""
        return None if self.keyed or self.rest is None or self.rest.blocking else self.rest

    def deliver(self, topic: str) -> Handler | None:
        """Return the handler that takes messages of *topic*."""
        for _, match, handler in self.topics:
            if match(topic):
                return handler
        return self.deliver_rest

    def __iter__(self) -> Iterator[Handler]:
        first = (self.connect, *self.keyed.values(), self.rest, *(handler for _, _, handler in self.topics))
        ticks = (handler for _, handler in self.ticks)
        last = (self.deliver_rest, *ticks, self.timeout, self.bad_frame, self.error, self.terminated)
        last = (*last, self.login)
        return filter(None, (*first, *last))
