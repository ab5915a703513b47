"""Which version of MQTT a broker is spoken to with: 5, unless it doesn't speak that. No I/O, no clock."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import attrs

from .dialects import MQTT_5, MQTT_311, TRIAL, Dialect
from .reasons import NO_MQTT5, NO_MQTT311, UNSUPPORTED_VERSION

__all__ = ["LOST", "Versions", "Wanted"]

Wanted: TypeAlias = Literal["auto", "5", "3.1.1"]

MUTE: Final = 3
"""Times that a broker closes at our CONNECT without a word, until another version is tried: one that is just
starting, or a load balancer without a broker behind it, does so too."""

HINTS: Final[dict[Wanted, str]] = {
    "auto": "it speaks neither MQTT 5 nor 3.1.1, or wants TLS (mqtts://)",
    "5": NO_MQTT5,
    "3.1.1": NO_MQTT311,
}

LOST: Final = (
    "messages go without expiry, response topic, user properties and the like; a session has no expiry and, "
    "unless session_expiry asks for one, ends with its network connection; wills have no delay; and most "
    "publishes that the broker refuses look accepted"
)
"""What MQTT 3.1.1 can't do, as the log says it."""


@attrs.define(eq=False)
class Versions:
    """How a broker is spoken to: the *dialect* of the next connection, and what decides about it.

    A refusal of MQTT 5 in so many words settles it. Silence doesn't: then 3.1.1 is tried, and, where that
    works, 5 once more; only a broker that lets the one in and closes at the other is spoken to with 3.1.1.
    When no client is left the choice is *doubtful*: 5 is tried again, for the broker may have been upgraded.
    """

    wanted: Wanted = "auto"
    dialect: Dialect = attrs.field(init=False)
    told: bool = attrs.field(default=False, init=False)
    doubtful: bool = attrs.field(default=False, init=False)
    _silences: int = attrs.field(default=0, init=False)
    _left: int = attrs.field(default=MUTE, init=False)  # silences until another version is tried
    _old_works: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.dialect = MQTT_311 if self.wanted == "3.1.1" else MQTT_5

    @property
    def hint(self) -> str:
        """Why the broker may close at our CONNECT again and again without a word; empty where it doesn't."""
        if self._silences < MUTE:
            return ""
        return f"perhaps {HINTS[self.wanted]}"

    def accepted(self) -> None:
        """Take note that a client got in."""
        self._silences, self._left = 0, MUTE
        self.doubtful = self.wanted == "auto" and self.dialect is MQTT_311

    def refused(self, dialect: Dialect, code: int) -> bool:
        """Take the refusal of a client that spoke *dialect*; return whether to connect anew at once."""
        self._silences = 0
        if dialect is not self.dialect:
            return True  # others have found out in the meantime
        if dialect is TRIAL and code != UNSUPPORTED_VERSION:
            self._old_works = True
            self.dialect, self._left = MQTT_5, 1
            return True
        self._left = MUTE
        if self.wanted != "auto" or code != UNSUPPORTED_VERSION:
            return False
        self.dialect = MQTT_311 if dialect is MQTT_5 else MQTT_5
        return dialect is MQTT_5

    def closed(self, dialect: Dialect) -> bool:
        """Take note that the broker closed without a word at the CONNECT of a client that spoke *dialect*.

        Return whether to connect anew at once, because too little is known yet.
        """
        self._silences += 1
        if self.wanted != "auto":
            return False
        if dialect is self.dialect:
            self._look_further()
        return self._silences <= MUTE

    def _look_further(self) -> None:
        self._left -= 1
        if self.dialect is not MQTT_5:
            self.dialect, self._left, self._old_works = MQTT_5, MUTE, False
        elif not self._left:
            self.dialect = MQTT_311 if self._old_works else TRIAL

    def doubt(self) -> None:
        """Try MQTT 5 again: no client is connected any more."""
        self.doubtful = False
        self.dialect = MQTT_5
        self._left = 1 if self._old_works else MUTE
