"""For tests: a device in memory, and recordings of real ones as cases."""

from .broker import Broker
from .client import TestClient
from .replay import Case, Difference, cases, failures, replay

__all__ = ["Broker", "Case", "Difference", "TestClient", "cases", "failures", "replay"]
