"""Finding out which packet of ours a broker means when it ends the connection."""

from __future__ import annotations

from typing import Any

from ...commands import Publish
from ...errors import DeniedError
from .flights import Blame, Flight, Sent
from .reasons import NOT_AUTHORIZED, WRONG_PACKET

__all__ = ["Suspicion"]


class Suspicion:
    """What one client has in flight, and what of it the broker may have taken amiss.

    A broker may end the connection because of one packet, and doesn't say which. Where only one is in flight
    that it can mean, it is that one. Else they become *suspects*: on the next connections each goes out
    alone, until the culprit has failed and the others have their acknowledgements.
    """

    __slots__ = ("_accused", "_flights", "_owner", "_proof", "_suspects", "_unproved")

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._flights: dict[int, Flight] | None = None  # by packet identifier
        self._suspects = 0
        self._accused: tuple[Publish, str] | None = None  # of QoS 0, if none of the suspects is the culprit
        self._unproved: Publish | None = None  # of QoS 0, sent last: perhaps the broker hasn't taken it yet
        self._proof = 0  # the identifier of what was sent behind it

    def blame(self, code: int, words: str) -> Blame:
        """Find out what the broker means by ending the connection, lest it be sent for ever."""
        denied = code == NOT_AUTHORIZED
        if not denied and code not in WRONG_PACKET:
            return Blame.NOBODY
        flights = self._flights or {}
        suspects = [number for number, flight in flights.items() if not flight.released]
        unproved, self._unproved = self._unproved, None
        if len(suspects) == 1 and (self._suspects or (denied and unproved is None)):
            flight = flights.pop(suspects[0])
            sought, self._accused = self._suspects > 0, None
            self._clear_suspect()
            text = "" if denied else f"the broker ended the connection because of this: {words}"
            flight.outcome.fail(self._refused(flight.command, words, text))
            return Blame.SOUGHT if sought else Blame.FOUND
        if suspects:
            self._suspects = len(suspects)
            self._accused = None if unproved is None else (unproved, words)
            return Blame.SOUGHT
        if unproved is None:
            return Blame.NOBODY
        self._refused(unproved, words)
        return Blame.FOUND

    def _clear_suspect(self) -> None:
        if not self._suspects:
            return
        self._suspects -= 1
        if not self._suspects and self._accused is not None:
            accused, self._accused = self._accused, None
            self._refused(*accused)

    def _refused(self, command: Sent, words: str, text: str = "") -> DeniedError:
        about = "the message to " if type(command) is Publish else ""
        return self._refusal(command, words, text or f"the broker refused {about}{command.topic!r}: {words}")

    def _refusal(self, command: Sent, words: str, text: str = "") -> DeniedError:
        error = DeniedError(text or words)
        error.told = self._owner.denied(command, words)
        return error
