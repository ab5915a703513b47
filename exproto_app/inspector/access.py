"""Who may look: the token and guesses at it, and requests that another site makes a browser send."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final
from urllib.parse import urlsplit

import attrs

from ..models import is_loopback

__all__ = ["Access", "Refusal", "new_token"]

GUESSES: Final = 5
"""Wrong tokens of one address in a window that are answered at once; further ones are answered slowly."""

ALL_GUESSES: Final = 100
"""Likewise, of all addresses together."""

WINDOW: Final = 60.0
"""Seconds."""


def new_token() -> str:
    """Return a token that nobody guesses."""
    return secrets.token_urlsafe(16)


@attrs.frozen
class Refusal:
    """Why a request isn't answered: the status of HTTP, and words."""

    status: int
    text: str


@attrs.define
class _Guesses:
    began: float
    count: int = 0


class Access:
    """Judges requests to the server on *host*; with a *token*, only who shows it may look.

    Without one, names other than this machine's are refused: a page of another site that had its own name
    point here (DNS rebinding) would be served by its own name.
    """

    def __init__(self, token: str | None, host: str) -> None:
        self._token = token
        self._host = host
        self._guesses: dict[str, _Guesses] = {}
        self._all = _Guesses(0.0)

    @property
    def cookie(self) -> str:
        """What a browser that has shown the token keeps, from which nobody learns it."""
        return hmac.new((self._token or "").encode(), b"exproto-app inspector", hashlib.sha256).hexdigest()

    def check_site(self, host: str, origin: str | None, fetch_site: str | None) -> Refusal | None:
        """Judge the headers Host, Origin and Sec-Fetch-Site; the last two are None where they are missing."""
        name = _name_of(host)
        if self._token is None and name != self._host and not is_loopback(name):
            return Refusal(403, f"this inspector isn't called {name!r}; use its address")
        foreign = fetch_site not in (None, "same-origin", "none")
        if foreign or (origin is not None and origin.partition("://")[2].lower() != host.lower()):
            return Refusal(403, "another site sent this; open the inspector's own page")
        return None

    def check_token(self, token: str | None, cookie: str | None, peer: str, now: float) -> Refusal | None:
        """Judge what *peer*, an address, shows at the time *now*, in seconds."""
        if self._token is None:
            return None
        if token is None and cookie is None:
            return Refusal(401, "the inspector's token is needed")
        # Whoever has it passes, whatever others behind the same proxy have tried.
        if _same(token, self._token) or _same(cookie, self.cookie):
            return None
        guesses = self._guesses_of(peer, now)
        if guesses.count >= GUESSES or self._all.count >= ALL_GUESSES:
            return Refusal(429, "too many wrong tokens; answers take a second now")
        guesses.count += 1
        self._all.count += 1
        self._guesses[peer] = guesses
        return Refusal(401, "this is not the inspector's token")

    def _guesses_of(self, peer: str, now: float) -> _Guesses:
        """Return the guesses of *peer*. There are never more of them than all may make in a window."""
        if now - self._all.began >= WINDOW:
            self._all = _Guesses(now)
            self._guesses = {
                peer: guesses for peer, guesses in self._guesses.items() if now - guesses.began < WINDOW
            }
        guesses = self._guesses.get(peer)
        return guesses if guesses is not None and now - guesses.began < WINDOW else _Guesses(now)


def _name_of(host: str) -> str:
    """Return the name or address in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _same(given: str | None, known: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(errors="surrogatepass"), known.encode())
