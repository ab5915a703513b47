"""exproto-app: decorated handlers for device protocols, from TCP and UDP to MQTT.

`App`, `Router` and `Connection` are what a script uses; framings are in `exproto_app.framing`, the test
client is `exproto_app.testing.TestClient`.
"""

from typing import TYPE_CHECKING

from .app import App
from .commands import Outcome
from .connection import Connection
from .errors import (
    ClosedError,
    CommandError,
    DeniedError,
    ExprotoError,
    FramingError,
    InvalidNameError,
    RequestTimeout,
    SetupError,
    UnavailableError,
    UnsupportedError,
)
from .models import Address, Certificate, ClientInfo, ConnectionInfo, Limits, Login, Message
from .router import Router

__all__ = [
    "Address",
    "App",
    "Certificate",
    "ClientInfo",
    "ClosedError",
    "CommandError",
    "Connection",
    "ConnectionInfo",
    "DeniedError",
    "ExprotoError",
    "FramingError",
    "InvalidNameError",
    "Limits",
    "Login",
    "Message",
    "Outcome",
    "RequestTimeout",
    "Router",
    "SetupError",
    "UnavailableError",
    "UnsupportedError",
]

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """Return the version of the installed package; reading its metadata takes longer than the import."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version  # noqa: PLC0415 - only who asks waits for it

        return version("exproto-app")
