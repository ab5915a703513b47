"""Health: the service grpc.health.v1, for probes. A request names a service in its one field."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from .caller import Caller, InboundCall, Take

__all__ = ["Health"]

SERVING: Final = b"\0\0\0\0\2\x08\1"
NOT_SERVING: Final = b"\0\0\0\0\2\x08\2"
SERVICE_UNKNOWN: Final = b"\0\0\0\0\2\x08\3"


class Health:
    """Tells whether *services* are served, as long as *stopping* says no."""

    def __init__(self, services: Collection[bytes], stopping: Callable[[], bool]) -> None:
        self._services = {b"", *services}
        self._stopping = stopping

    def methods(self) -> dict[bytes, tuple[Take, bool]]:
        """Return the methods by their paths."""
        return {
            b"/grpc.health.v1.Health/Check": (self._check, False),
            b"/grpc.health.v1.Health/Watch": (self._watch, False),
        }

    def _check(self, caller: Caller, call: InboundCall, message: bytes) -> bool:
        if message[2:] in self._services:
            caller.answer(call.stream, NOT_SERVING if self._stopping() else SERVING)
        else:
            caller.refuse(call.stream, b"5", b"there is no such service")
        return False

    def _watch(self, caller: Caller, call: InboundCall, message: bytes) -> bool:
        if call.standing:
            return False
        if message[2:] not in self._services:
            now = SERVICE_UNKNOWN
        else:
            now = NOT_SERVING if self._stopping() else SERVING
        caller.watch(call, now, NOT_SERVING)
        return False
