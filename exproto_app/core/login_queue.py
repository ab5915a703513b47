"""Logins that wait to be judged, and whose turn it is. No I/O, no clock.

To judge one takes time, of a thread or of a database, and anybody may ask for that. So there are never more
than `MOST` that wait, and `EACH` of one name from one address; who has gone is forgotten, who is leaving
comes last; and those come first whose address and name have had the fewest wrong passwords within the last
minute.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final, Generic, Protocol, TypeVar

import attrs

from ..addresses import Applicant

__all__ = ["EACH", "MOST", "TASKS", "THREADS", "Judging", "Login", "LoginQueue"]

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

TASKS: Final = 1_000
THREADS: Final = 16
"""Logins that are judged at a time where `on_login` awaits, and where it blocks: half of all threads."""

SPARE: Final = 4
"""One in so many of them is for names that nobody guesses at."""

CROWDED: Final = "too many logins wait already; try again"
STOPS: Final = "the host stops"
"""Why a login isn't judged."""

PART: Final = 16
"""Those that wait are put in order anew when one in so many of them has changed."""

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
class LoginQueue(Generic[T]):
    """The logins that wait.

    Their order changes with each wrong password. To look at all of them for each login would cost more than
    the logins themselves where many wait, so they are put in order anew when a part of them has changed.
    """

    _logins: dict[Login[T], None] = attrs.field(factory=dict)
    _alike: dict[tuple[str, str], dict[Login[T], None]] = attrs.field(factory=dict)
    _wrong: OrderedDict[tuple[str, str], tuple[float, int]] = attrs.field(factory=OrderedDict)
    # Those in order when they were last looked at, the last one first; some don't wait any more.
    _innocents: list[Login[T]] = attrs.field(factory=list)
    _suspects: list[Login[T]] = attrs.field(factory=list)
    _worst: list[Login[T]] = attrs.field(factory=list)
    _new: dict[Login[T], None] = attrs.field(factory=dict)  # those that have come since
    _changes: int = 0
    _gone: list[Login[T]] = attrs.field(factory=list)

    def __len__(self) -> int:
        return len(self._logins)

    def add(self, login: Login[T]) -> list[Login[T]]:
        """Have *login* wait; return those that don't any more: who has gone, and who is one too many."""
        alike = self._alike.setdefault(login.key, {})
        self._logins[login] = alike[login] = self._new[login] = None
        self._changed()
        if len(alike) > EACH:
            for other in tuple(alike):
                self._is_gone(other)
        if len(alike) > EACH:
            return [*self.drop_gone(), self._take(max(alike, key=self._record))]
        if len(self._logins) > MOST:
            return [*self.drop_gone(), self._take(self._find_worst())]
        return self.drop_gone()

    def drop_gone(self) -> list[Login[T]]:
        """Return those that were found to have gone; they don't wait any more."""
        gone, self._gone = self._gone, []
        return gone

    def next(self, *, innocent: bool = False) -> Login[T] | None:
        """Take the login whose turn it is; if *innocent*, none that it `suspects`."""
        self._changed()
        first = [self._first(self._innocents), None if innocent else self._first(self._suspects)]
        found = [login for login in first if login is not None]
        found += [
            login
            for login in tuple(self._new)
            if not (self._is_gone(login) or (innocent and self.suspects(login)))
        ]
        return self._take(min(found, key=self._record)) if found else None

    def suspects(self, login: Login[T]) -> bool:
        """Return whether somebody guesses at the name's password, or may just have hung up."""
        return self._wrong_of("name", login.name) >= SUSPECT or login.applicant.leaving()

    def failed(self, login: Login[T], now: float) -> None:
        """Count a wrong password."""
        self._changed()
        for key in (("host", login.applicant.host), ("name", login.name)):
            began, count = self._wrong.pop(key, (now, 0))
            self._wrong[key] = (began, count + 1) if now - began < WINDOW else (now, 1)
            if len(self._wrong) > REMEMBERED:
                self._wrong.popitem(last=False)

    def clear(self) -> list[Login[T]]:
        """Return all; none waits any more."""
        return [self._take(login) for login in tuple(self._logins)]

    def discard(self, login: Login[T]) -> None:
        """Have *login* wait no more."""
        if login in self._logins:
            self._take(login)

    def _record(self, login: Login[T]) -> tuple[bool, int]:
        """Return whether it is leaving, and how many wrong passwords its address and its name have had."""
        wrong = self._wrong_of("host", login.applicant.host) + self._wrong_of("name", login.name)
        return login.applicant.leaving(), wrong

    def _wrong_of(self, kind: str, what: str) -> int:
        return self._wrong.get((kind, what), (0.0, 0))[1]

    def _take(self, login: Login[T]) -> Login[T]:
        del self._logins[login]
        self._new.pop(login, None)
        alike = self._alike[login.key]
        del alike[login]
        if not alike:
            del self._alike[login.key]
        return login

    def _is_gone(self, login: Login[T]) -> bool:
        """Return whether *login* has gone; it doesn't wait any more then."""
        gone = login.applicant.gone()
        if gone:
            self._gone.append(self._take(login))
        return gone

    def _first(self, order: list[Login[T]]) -> Login[T] | None:
        """Return the first in *order* that still waits."""
        while order:
            if order[-1] in self._logins and not self._is_gone(order[-1]):
                return order[-1]
            order.pop()
        return None

    def _find_worst(self) -> Login[T]:
        """Return the one with the most wrong passwords."""
        known = self._first(self._worst)
        return max([*(() if known is None else (known,)), *self._new], key=self._record)

    def _changed(self) -> None:
        """Take note of a change; after so many of them the order is made anew."""
        self._changes += 1
        if self._changes * PART > len(self._logins):
            self._put_in_order()

    def _put_in_order(self) -> None:
        for login in tuple(self._logins):
            self._is_gone(login)
        records = {login: self._record(login) for login in reversed(self._logins)}
        self._worst = sorted(records, key=records.__getitem__)
        first = sorted(records, key=lambda login: (not records[login][0], -records[login][1]))
        self._innocents = [login for login in first if not self.suspects(login)]
        self._suspects = [login for login in first if self.suspects(login)]
        self._new.clear()
        self._changes = 0


class Judged(Protocol):
    """A login that takes its time: a call of `on_login`."""

    waiter: Login[Any]

    @property
    def now(self) -> float:
        """The time on the runtime's clock."""
        ...

    def begin(self) -> None:
        """Have it judged: it is its turn."""
        ...

    def turned_away(self, why: str, /) -> None:
        """Refuse it, because of *why*."""
        ...


class Judging:
    """The logins that are judged, *most* at a time, and those that wait."""

    __slots__ = ("_most", "_running", "_stopped", "_waiting")

    def __init__(self, most: int) -> None:
        self._most = most
        self._running = 0
        self._stopped = False
        self._waiting: LoginQueue[Judged] = LoginQueue()

    def stop(self) -> None:
        """Refuse those that wait, and whoever comes."""
        self._stopped = True
        for login in self._waiting.clear():
            login.work.turned_away(STOPS)

    def enter(self, call: Judged) -> None:
        """Begin *call*, now or when its turn comes; refuse those that are too many."""
        if self._stopped:
            call.turned_away(STOPS)
            return
        if self._running < self._most - self._most // SPARE:
            self._running += 1
            call.begin()
            return
        for out in self._waiting.add(call.waiter):
            out.work.turned_away(CROWDED)
        self._begin_next()

    def left(self, call: Judged, *, refused: bool) -> None:
        """Take note that *call* has been judged."""
        self._running -= 1
        if refused:
            self._waiting.failed(call.waiter, call.now)
        self._begin_next()

    def forget(self, call: Judged) -> None:
        """Have *call*, which has not begun, wait no more."""
        self._waiting.discard(call.waiter)

    def _begin_next(self) -> None:
        while self._running < self._most and len(self._waiting):
            spare = self._running >= self._most - self._most // SPARE
            waiter = self._waiting.next(innocent=spare)
            if waiter is None:
                break
            self._running += 1
            waiter.work.begin()
        for out in self._waiting.drop_gone():
            out.work.turned_away(CROWDED)
