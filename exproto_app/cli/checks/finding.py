"""What a check finds out: one line, for people and for programs."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import attrs

from ...names import escaped

__all__ = ["Finding", "Outcome", "failed", "ok", "skipped"]

Outcome: TypeAlias = Literal["ok", "failed", "skipped"]

MARKS: Final = {"ok": "✓", "failed": "✗", "skipped": "–"}  # noqa: RUF001 - a dash, as is meant


@attrs.frozen
class Finding:
    """One thing that was looked at.

    *check* names it for programs, the same in each version. *remedy* is what to do about a failure, or advice
    where there is none. *seconds* is what it took, where that tells something.
    """

    check: str
    outcome: Outcome
    text: str
    remedy: str = ""
    seconds: float | None = None

    def __str__(self) -> str:
        words = escaped(" ".join(self.text.split()))  # a line, whatever others have said
        took = "" if self.seconds is None else f" ({1000 * self.seconds:.1f} ms)"
        return f"{MARKS[self.outcome]} {words}{took}{'; ' if self.remedy else ''}{escaped(self.remedy)}"

    def facts(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return attrs.asdict(self)


def ok(check: str, text: str, remedy: str = "", seconds: float | None = None) -> Finding:
    """Return that all is well."""
    return Finding(check, "ok", text, remedy, seconds)


def failed(check: str, text: str, remedy: str = "") -> Finding:
    """Return what is wrong, and what to do."""
    return Finding(check, "failed", text, remedy)


def skipped(check: str, text: str, remedy: str = "") -> Finding:
    """Return that there was nothing to look at, and why."""
    return Finding(check, "skipped", text, remedy)
