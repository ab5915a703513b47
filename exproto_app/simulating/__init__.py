"""A recording becomes a fleet: its devices, many times over, against any server.

`identities` gives each device a name of its own, `script` makes a script of each recorded connection, and
`fleet` plays them.
"""

from .fleet import Fleet, Plan, Summary, play
from .identities import Identities
from .script import Script, scripts

__all__ = ["Fleet", "Identities", "Plan", "Script", "Summary", "play", "scripts"]
