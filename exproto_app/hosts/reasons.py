"""The broker's words about the end of a connection, in ours."""

from __future__ import annotations

from ..models import Reason

__all__ = ["reason"]


def reason(words: str) -> Reason:
    """Return our reason for the broker's *words*, an Erlang term as text."""
    if "kicked" in words:
        return "kicked"
    if "discarded" in words or "takeovered" in words or "takenover" in words:
        return "taken over"
    if "keepalive_timeout" in words or "idle_timeout" in words:
        return "timeout"
    if "etimedout" in words or "ehostunreach" in words or "{error,{on_" in words:
        return "lost"
    return "device closed"
