"""Logins that wait for their password to be checked, and whose turn it is. No I/O, no clock.

A check is expensive on purpose, and anybody may ask for one. So there are never more than `MOST` that wait,
and `EACH` of one name from one address; who has gone is forgotten, who is leaving comes last; and those come
first whose address and name have had the fewest wrong passwords within the last minute.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Generic, TypeVar

import attrs

from ...addresses import Applicant

__all__ = ["EACH", "MOST", "Login", "Waiting"]

MOST: Final = 1_000
"""Logins that wait, at most."""

EACH: Final = 32
"""Logins of one name from one address that wait, at most: less than a second's work."""

WINDOW: Final = 60.0
"""Seconds in which wrong passwords are counted together."""

SUSPECT: Final = 10
"""Wrong passwords of one name in a window from which on its logins leave room for others'."""

REMEMBERED: Final = 10_000
"""Addresses, and names, whose wrong passwords are counted."""

T = TypeVar("T")


@attrs.define(eq=False)
class Login(Generic[T]):
    """One login that waits: as *name*; *work* is what the caller makes of it."""

    name: str
    applicant: Applicant
    work: T

    @property
    def key(self) -> tuple[str, str]:
        """What it counts as."""
        return self.applicant.host, self.name


@attrs.define(eq=False)
class Waiting(Generic[T]):
    """The logins that wait."""

    _logins: list[Login[T]] = attrs.field(factory=list)
    _wrong: OrderedDict[tuple[str, str], tuple[float, int]] = attrs.field(factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._logins)

    def add(self, login: Login[T]) -> list[Login[T]]:
        """Have *login* wait; return those that don't any more: who has gone, and who is one too many."""
        alike = sum(other.key == login.key for other in self._logins)
        if alike < EACH and len(self._logins) < MOST:
            self._logins.append(login)
            return []
        out = self.drop_gone()
        self._logins.append(login)
        same = [other for other in self._logins if other.key == login.key]
        if len(same) > EACH:
            out.append(self._take(max(same, key=self._record)))
        elif len(self._logins) > MOST:
            out.append(self._take(max(self._logins, key=self._record)))
        return out

    def drop_gone(self) -> list[Login[T]]:
        """Return those that have gone; they don't wait any more."""
        out = [login for login in self._logins if login.applicant.gone()]
        if out:
            self._logins = [login for login in self._logins if not login.applicant.gone()]
        return out

    def next(self, *, innocent: bool = False) -> Login[T] | None:
        """Take the login whose turn it is; if *innocent*, none that it `suspects`."""
        logins = [one for one in self._logins if not (innocent and self.suspects(one))]
        if not logins:
            return None
        return self._take(min(logins, key=self._record))

    def suspects(self, login: Login[T]) -> bool:
        """Tell whether somebody guesses at the name's password, or may just have hung up."""
        return self._wrong_of("name", login.name) >= SUSPECT or login.applicant.leaving()

    def failed(self, login: Login[T], now: float) -> None:
        """Count a wrong password."""
        for key in (("host", login.applicant.host), ("name", login.name)):
            began, count = self._wrong.pop(key, (now, 0))
            self._wrong[key] = (began, count + 1) if now - began < WINDOW else (now, 1)
            if len(self._wrong) > REMEMBERED:
                self._wrong.popitem(last=False)

    def _record(self, login: Login[T]) -> tuple[bool, int]:
        """Return whether it is leaving, and how many wrong passwords its address and its name have had."""
        wrong = self._wrong_of("host", login.applicant.host) + self._wrong_of("name", login.name)
        return login.applicant.leaving(), wrong

    def _wrong_of(self, kind: str, what: str) -> int:
        return self._wrong.get((kind, what), (0.0, 0))[1]

    def discard(self, login: Login[T]) -> None:
        """Have *login* wait no more."""
        if login in self._logins:
            self._logins.remove(login)

    def _take(self, login: Login[T]) -> Login[T]:
        self._logins.remove(login)
        return login
