"""The gateway: our own TCP, TLS and UDP listeners."""

from .gateway import Gateway, Options
from .listeners import Listen

__all__ = ["Gateway", "Listen", "Options"]
