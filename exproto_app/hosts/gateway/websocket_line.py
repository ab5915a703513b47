"""What a WebSocket listener takes, as its URL says. No I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import attrs

from ...errors import SetupError
from .serial_line import seconds_of

if TYPE_CHECKING:
    from .listeners import Url

__all__ = ["OPTIONS", "WebSocketLine"]

OPTIONS: Final = frozenset({"max-message", "ping", "subprotocol", "text"})

NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A token (RFC 9110, 5.6.2)."""


@attrs.frozen(kw_only=True)
class WebSocketLine:
    """What a request has to ask for, and how messages go.

    *path* empty is any; one of *subprotocols* has to be offered, if there are any. *max_message*: bytes of a
    message; *ping*: seconds between two looks whether the device is there, 0 for none; *text*: send text.
    """

    path: str = ""
    subprotocols: tuple[str, ...] = ()
    max_message: int = 1_048_576
    ping: float = 30.0
    text: bool = False

    @classmethod
    def read(cls, url: Url) -> WebSocketLine:
        """Read the path and the options of *url*. Raises `SetupError`."""
        names = tuple(filter(None, url.options.get("subprotocol", "").split(",")))
        for name in names:
            if not NAME.fullmatch(name):
                words = f"subprotocol {name!r} has characters that aren't allowed"
                raise SetupError(f"{url.what} {url.text!r}: {words}")
        path = url.parts.path
        return cls(
            path="" if path == "/" else path,
            subprotocols=names,
            max_message=url.count("max-message") or 1_048_576,
            ping=_ping(url),
            text=url.flag("text", default=False),
        )


def _ping(url: Url) -> float:
    if url.options.get("ping") == "0":
        return 0.0
    seconds = seconds_of(url, "ping")
    return 30.0 if seconds is None else seconds
