"""The errors of exproto-app: one tree, told apart by who is at fault."""

from __future__ import annotations

__all__ = [
    "ClosedError",
    "CommandError",
    "DeniedError",
    "ExprotoError",
    "FramingError",
    "InvalidNameError",
    "RequestTimeout",
    "SetupError",
    "UnavailableError",
    "UnsupportedError",
    "not_opened",
]


class ExprotoError(Exception):
    """The root of every error that this package raises on purpose."""


class SetupError(ExprotoError):
    """The app is put together wrongly; raised while it is imported or started."""


class FramingError(ExprotoError):
    """Bytes that aren't a frame: from the device, or from a handler that wants to send them."""


class CommandError(ExprotoError):
    """A verb (`send`, `register`, `publish`…) did not succeed."""

    told = False
    """Whether the host has logged it already, in its own words."""


class DeniedError(CommandError):
    """The broker refused: a wrong password, a topic that is not allowed."""


class InvalidNameError(DeniedError, ValueError):
    """A device can't be called what it says that it is called; `register` raises it at once.

    The device is at fault, so it counts as a refused login, not as an error of the handler.
    """


class UnavailableError(CommandError):
    """The broker is away, did not answer in time, or a queue on the way to it is full."""


class ClosedError(CommandError):
    """The connection is gone."""


class UnsupportedError(CommandError):
    """The host that the app runs on has no such verb."""


class RequestTimeout(CommandError):  # noqa: N818 - named like the TimeoutError that it is
    """The device did not answer a `request` in time."""


def not_opened(what: object, error: OSError, remedy: str) -> SetupError:
    """Return the error that says why *what*, an address to listen on, can't be opened.

    *remedy* is for a port that is taken.
    """
    words = (error.strerror or str(error)).lower()
    if "address already in use" in words:
        words = f"another program has the port; {remedy}"
    return SetupError(f"{what} can't be opened: {words}")
