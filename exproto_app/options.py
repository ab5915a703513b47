"""Options of `Router`, `App` and `App.protocol` that don't decide what their type is, and their checks."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, TypeAlias, TypedDict

from .errors import SetupError
from .framing import Framing
from .handlers import only_form
from .masking import Mask, Secret, mask_for
from .names import NameRule, name_rule

__all__ = ["RouterOptions", "Sniff", "check_framing", "checked_rule", "checked_secret", "checked_sniff"]

Sniff: TypeAlias = bytes | tuple[bytes, ...] | Callable[[bytes], bool | None]
"""How a protocol is recognized by a device's first bytes: what they begin with, or a function of them."""


class RouterOptions(TypedDict, total=False):
    """What type checkers know of these options; `Router` explains each, and has the defaults."""

    framing: Framing
    reply_framing: Framing | None
    resume: bool
    roaming: bool
    sniff: Sniff | None
    clientid: NameRule | None
    slash: bool
    secret: Secret | None
    child_state: Callable[[], Any] | None
    strict_order: bool


def check_framing(router: object, framing: object, needs: tuple[str, ...]) -> None:
    """Raise `SetupError` unless *framing* is an instance that has all of *needs*."""
    if isinstance(framing, (str, bytes)):  # which have a split of their own
        raise SetupError(f"{router!r}: {framing!r} is not a framing; give an instance, such as Line()")
    for need in needs:
        if not any(callable(getattr(framing, name, None)) for name in need.split(" or ")):
            hint = "; give an instance, such as Line()" if isinstance(framing, type) else ""
            raise SetupError(f"{router!r}: {framing!r} is not a framing: it has no {need}{hint}")
    if isinstance(framing, type):
        raise SetupError(
            f"{router!r}: {framing.__name__} is a class; give an instance, {framing.__name__}(…)"
        )


def checked_rule(router: object, rule: NameRule) -> Callable[[str], object]:
    """Return *rule* as a function. Raises `SetupError`."""
    try:
        return name_rule(rule)
    except (TypeError, re.error) as error:
        raise SetupError(f"{router!r}: clientid={rule!r} can't be a rule: {error}") from None


def checked_secret(router: object, secret: Secret) -> Mask:
    """Return what masks *secret*. Raises `SetupError`."""
    try:
        return mask_for(secret)
    except SetupError as error:
        raise SetupError(f"{router!r}: secret=: {error}") from None


def checked_sniff(router: object, sniff: Sniff) -> tuple[bytes, ...] | Callable[[bytes], bool | None]:
    """Return the prefixes, or the function. Raises `SetupError`."""
    if callable(sniff):
        if inspect.iscoroutinefunction(sniff):
            raise SetupError(f"{router!r}: sniff={sniff!r} is async, but nothing awaits it; make it a def")
        only_form(sniff, f"{router!r}: sniff=", ("data",))
        return sniff
    prefixes = (sniff,) if isinstance(sniff, bytes) else sniff
    if not isinstance(prefixes, tuple) or not all(isinstance(prefix, bytes) for prefix in prefixes):
        raise SetupError(
            f"{router!r}: sniff={sniff!r} is neither bytes, nor a tuple of bytes, nor a function"
        )
    if not all((prefixes, *prefixes)):
        raise SetupError(f"{router!r}: sniff={sniff!r} matches everything; to match everything, leave it out")
    return prefixes
