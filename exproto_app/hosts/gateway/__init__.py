"""The gateway: our own TCP, TLS and UDP listeners, and the devices that we dial."""

from .dialling import DialOptions
from .dials import Share
from .gateway import Gateway, Options
from .listeners import Listen
from .renewing import Lists
from .targets import Target

__all__ = ["DialOptions", "Gateway", "Listen", "Lists", "Options", "Share", "Target"]
