"""Names and texts from outside: who may be called what, and how such text is shown.

A clientid becomes a level of topics, a word of a log line and a row of a page, and most devices choose their
own. So one check stands wherever a name comes in (`check_name`), and one escape (`escaped`) where a
person or a program reads what came from outside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from .errors import InvalidNameError

__all__ = ["LONGEST", "NameRule", "check_name", "escaped", "escaped_lines", "name_rule", "to_json"]

NameRule: TypeAlias = "str | re.Pattern[str] | Callable[[str], object]"
"""Which names a router takes: a regular expression for the whole name, or a function that says so."""

LONGEST: Final = 65_535
"""Bytes of a text in MQTT (MQTT 5, 1.5.4)."""

# Ends a line somewhere, moves a terminal's cursor, turns the direction of the text around or shows nothing.
_FORMATTING: Final = "\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
HARMFUL: Final = re.compile(f"[\0-\x1f\x7f-\x9f\xad{_FORMATTING}\ud800-\udfff\U000e0000-\U000e007f]")

INVISIBLE: Final = "has a control or invisible character; only visible ones may stand in it"

# What brokers close a connection for when it stands in a topic (MQTT 5, 1.5.4).
CONTROL: Final = re.compile("[\0-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]")


def check_name(text: str, what: str = "clientid", *, slash: bool = False) -> None:
    """Refuse a name that would be more than a level of a topic: raises `InvalidNameError`.

    That is a name with a wildcard, an invisible character or, unless *slash*, a `/`, and one that begins
    with `$`: its topics are the broker's own. *what* is what the name is.
    """
    reason = _objection(text, slash=slash)
    if reason:
        raise InvalidNameError(f"{what} {shortened(text)} {reason}")


def _objection(text: str, *, slash: bool) -> str:
    if HARMFUL.search(text) or CONTROL.search(text):
        return INVISIBLE
    if "+" in text or "#" in text:
        return "has a wildcard ('+' or '#'): topics made of it would reach other devices"
    if text.startswith("$"):
        return "begins with '$', as only the broker's own topics do"
    if "/" in text and not slash:
        return "has a '/', which starts a new topic level; Router(slash=True) allows it"
    return ""


def check_rule(text: str, rule: Callable[[str], object] | None) -> None:
    """Refuse a clientid that the router's own *rule* doesn't take: raises `InvalidNameError`."""
    if rule is None:
        return
    try:
        fine = rule(text)
    except ValueError:  # what int(text) and its like say
        fine = False
    if not fine:
        raise InvalidNameError(f"clientid {shortened(text)} is not what the router's clientid= rule takes")


def name_rule(rule: NameRule) -> Callable[[str], object]:
    """Return *rule* as a function. Raises `TypeError` or `re.error` if it isn't one."""
    if isinstance(rule, str):
        return re.compile(rule).fullmatch
    if isinstance(rule, re.Pattern):
        if not isinstance(rule.pattern, str):
            raise TypeError(f"{rule!r} is an expression over bytes; clientids are text")
        return rule.fullmatch
    if not callable(rule):
        raise TypeError(f"{rule!r} is neither a regular expression nor a function")
    return rule


def shortened(text: str) -> str:
    """Return *text* quoted and escaped, cut where it is long."""
    return repr(text) if len(text) <= 64 else f"{text[:64]!r}…"


def escaped(text: str) -> str:
    r"""Return *text* as one line that does nothing to a terminal: `\n`, `\x1b` and their like are spelled."""
    return text if text.isprintable() else HARMFUL.sub(_spelled, text)


def escaped_lines(text: str) -> str:
    """Return *text* escaped line by line; only line feeds part lines, and tabs stay."""
    if text.isprintable():
        return text
    return HARMFUL.sub(lambda match: match[0] if match[0] in "\n\t" else _spelled(match), text)


def _spelled(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def to_json(value: Any, **options: Any) -> str:
    """Return *value* as JSON that is UTF-8 on any stream and does nothing to a terminal."""
    text = json.dumps(value, ensure_ascii=False, **options)
    if text.isprintable():
        return text
    return HARMFUL.sub(lambda match: match[0] if match[0] == "\n" else json.dumps(match[0])[1:-1], text)
