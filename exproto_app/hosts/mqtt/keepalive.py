"""Telling a network connection that is dead from one that is silent."""

from __future__ import annotations

from .connecting import Bounds

__all__ = ["Keepalive"]


class Keepalive:
    """When something was last heard from the broker, and sent to it; times are in seconds.

    Who hears or sends sets *heard* or *sent*, which costs nothing; `tick` turns them into times.
    """

    __slots__ = ("_heard_at", "_pinged_at", "_sent_at", "heard", "sent")

    def __init__(self) -> None:
        self.heard = self.sent = False
        self._heard_at = self._sent_at = self._pinged_at = 0.0

    def begin(self, now: float) -> None:
        """Begin on a new network connection."""
        self._heard_at = self._sent_at = now
        self._pinged_at = 0.0

    @property
    def asked(self) -> bool:
        """Whether a ping waits for its answer."""
        return bool(self._pinged_at)

    def tick(self, now: float, keepalive: int, bounds: Bounds, *, owed: bool) -> bool:
        """Return whether to ping, with *owed* sooner: the broker has something to acknowledge."""
        if self.heard:
            self.heard, self._heard_at, self._pinged_at = False, now, 0.0
        if self.sent:
            self.sent, self._sent_at = False, now
        if self._pinged_at:
            return False
        # The broker waits for one and a half keepalives (3.1.2.10); we wait less for what it owes us.
        limit = min(0.75 * keepalive or bounds.ping, bounds.ping)
        if owed:
            limit = min(limit, bounds.timeout)
        if now - min(self._heard_at, self._sent_at) < limit:
            return False
        self._pinged_at = now
        return True

    def overdue(self, now: float, timeout: float) -> bool:
        """Return whether a ping has had no answer for *timeout*."""
        return bool(self._pinged_at) and now - self._pinged_at >= timeout
