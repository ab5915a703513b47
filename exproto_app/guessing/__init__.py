"""Guesses: from bytes that devices have sent to the framing that they probably have, and why.

`guess` takes `Stream`s and returns a `Guess`. It is pure: it opens nothing and looks at no clock, and what it
looks at is bounded, so that it takes about a second at most. Candidates of every kind (`lengths`, `marks`,
`texts`) are tried on all bytes by the framings themselves; each gets points for what it explains, and fewer
for what it has to assume. The best few are searched for checksums (`sums`), which weigh most.
"""

from __future__ import annotations

from .keys import Key
from .known import Known
from .streams import Stream
from .verdict import Guess, guess

__all__ = ["Guess", "Key", "Known", "Stream", "guess"]
