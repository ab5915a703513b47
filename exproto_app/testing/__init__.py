"""For tests: a device in memory, and recordings of real ones as cases."""

from .client import TestClient
from .replay import Case, Difference, cases, replay

__all__ = ["Case", "Difference", "TestClient", "cases", "replay"]
