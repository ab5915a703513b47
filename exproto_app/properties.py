"""Properties of messages, as a verb is given them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from .models import PLAIN, Properties
from .names import HARMFUL, INVISIBLE, shortened
from .topics import check_topic

__all__ = ["Pairs", "check_properties", "checked_properties"]

LONGEST: Final = 65_535
"""Bytes of a text or of the correlation data (MQTT 5, 1.5.4)."""

LONGEST_EXPIRY: Final = 0xFFFFFFFF
MOST_PAIRS: Final = 256

Pairs = Mapping[str, str] | Iterable[tuple[str, str]]


def checked_properties(
    expiry: int | None = None,
    content_type: str = "",
    response_topic: str = "",
    correlation_data: bytes = b"",
    user_properties: Pairs = (),
) -> Properties:
    """Return these as `Properties`. Raises `TypeError` or `ValueError`."""
    if expiry is not None:
        _check_expiry(expiry)
    _check_text("content_type", content_type)
    if response_topic:
        check_topic(response_topic)
    if not isinstance(correlation_data, bytes):
        raise TypeError(f"correlation_data is {type(correlation_data).__name__}, not bytes")
    if len(correlation_data) > LONGEST:
        raise ValueError(f"correlation_data has {len(correlation_data)} bytes, limit is {LONGEST}")
    pairs = tuple(user_properties.items() if isinstance(user_properties, Mapping) else user_properties)
    if len(pairs) > MOST_PAIRS:
        raise ValueError(f"there are {len(pairs)} user_properties, limit is {MOST_PAIRS}")
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(f"user_properties has {pair!r}, it takes a dict or pairs of text")
        for text in pair:
            _check_text("a text of user_properties", text)
    properties = Properties(expiry, content_type, response_topic, correlation_data, pairs)
    return PLAIN if properties == PLAIN else properties


def check_properties(properties: Properties) -> None:
    """Refuse what `checked_properties` wouldn't have made. Raises `TypeError` or `ValueError`."""
    if properties is not PLAIN:
        checked_properties(
            properties.expiry,
            properties.content_type,
            properties.response_topic,
            properties.correlation_data,
            properties.user_properties,
        )


def _check_expiry(expiry: object) -> None:
    if isinstance(expiry, bool) or not isinstance(expiry, int):
        raise TypeError(f"expiry is {type(expiry).__name__}, not int")
    if not 1 <= expiry <= LONGEST_EXPIRY:
        raise ValueError(f"expiry is {expiry}; it must be from 1 to {LONGEST_EXPIRY} seconds")


def _check_text(what: str, text: object) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{what} is {type(text).__name__}, not str")
    if HARMFUL.search(text):
        raise ValueError(f"{what} {shortened(text)} {INVISIBLE}")
    if len(text.encode()) > LONGEST:
        raise ValueError(f"{what} has {len(text.encode())} bytes, limit is {LONGEST}")
