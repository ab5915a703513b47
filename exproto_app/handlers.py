"""Handlers: the functions that an app registers, and the shorter and longer forms that they may have."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import attrs

from .errors import SetupError

__all__ = [
    "Handler",
    "When",
    "handler_of",
    "only_form",
    "short_form",
    "with_info",
    "with_reason",
    "with_state",
]

When: TypeAlias = Literal["now", "uplink"]
"""When a message for the device is handled: at once, or when the device has spoken next."""


@attrs.define(eq=False)
class Handler:
    """A registered function: *call* takes the short form's arguments, *where* names it in errors.

    *call* is looked up each time, so that it can be wrapped while handlers are timed.
    """

    call: Callable[..., Any]
    function: Callable[..., Any]
    where: str
    blocking: bool = False
    batch: bool = False
    reply: bool = False
    when: When = "now"

    @property
    def plain(self) -> bool:
        """Whether it takes one message at a time, at once, and answers nobody."""
        return not (self.batch or self.reply) and self.when == "now"

    @property
    def name(self) -> str:
        """The function's own name."""
        return getattr(self.function, "__qualname__", repr(self.function))


def _required(function: Callable[..., Any], where: str) -> tuple[int, float]:
    """Return how many positional arguments *function* needs and how many it can take."""
    if not callable(function):
        raise SetupError(f"{where} takes a function, not {function!r}")
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a builtin without a signature
        return 0, float("inf")
    needed, most = 0, 0.0
    for parameter in parameters:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            most += 1
            needed += parameter.default is parameter.empty
        elif parameter.kind is parameter.VAR_POSITIONAL:
            most = float("inf")
        elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            name = getattr(function, "__qualname__", repr(function))
            raise SetupError(f"{name} can't serve {where}: its argument {parameter.name!r} is never passed")
    return needed, most


def short_form(function: Callable[..., Any], where: str, names: tuple[str, ...]) -> Callable[..., Any] | None:
    """Return *function* if it takes *names*, None if it takes one argument more."""
    needed, most = _required(function, where)
    if needed <= len(names) <= most:
        return function
    if needed == len(names) + 1:
        return None
    name = getattr(function, "__qualname__", repr(function))
    takes = "no arguments" if not most else f"at most {most:g} argument{'s' if most > 1 else ''}"
    if needed > len(names):
        takes = f"{needed} arguments"
    raise SetupError(f"{name} takes {takes}, but {where} calls it with ({', '.join(names)})")


def with_info(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the short form of `on_connect(conn, info)`."""
    return functools.wraps(function)(lambda conn: function(conn, conn.info))


def with_reason(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return *function* with a pair as its last argument instead of two arguments."""
    return functools.wraps(function)(lambda conn, what: function(conn, *what))


def with_state(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the short form of a handler that gets `conn.state` too."""
    return functools.wraps(function)(lambda conn, what: function(conn, what, conn.state))


def only_form(function: Callable[..., Any], where: str, names: tuple[str, ...]) -> Callable[..., Any]:
    """Return *function*, which has no longer form."""
    call = short_form(function, where, names)
    if call is None:
        name = getattr(function, "__qualname__", repr(function))
        raise SetupError(f"{name} takes too many arguments: {where} calls it with ({', '.join(names)})")
    return call


def handler_of(
    call: Callable[..., Any],
    function: Callable[..., Any],
    where: str,
    *,
    blocking: bool = False,
    batch: bool = False,
) -> Handler:
    """Return the handler of *function*, which is *call* in its short form. Raises `SetupError`."""
    handler = Handler(call, function, where, blocking=blocking, batch=batch)
    if blocking and inspect.iscoroutinefunction(function):
        raise SetupError(f"{handler.name} is async, so it can't be blocking=True; leave one of them out")
    return handler
