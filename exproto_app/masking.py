"""Masking: what must not be read in the log, by watchers or in recordings.

Bytes are masked by expressions and functions of the user's, and by the passwords that a connection registered
with (`password_forms`). Text that tells of bytes (an exception, a traceback) has them in other forms: as
hex, as a `repr`, decoded. `hide_secrets` masks secrets there in each of these; `hide_said` replaces by its
size whatever a text repeats of what a device said, for as long as nobody knows what of that is secret.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final, TypeAlias

from .errors import SetupError

__all__ = [
    "Mask",
    "Secret",
    "format_masked",
    "hide_hex",
    "hide_masked",
    "hide_said",
    "hide_secrets",
    "log_error",
    "mask_for",
    "masked",
    "masking",
    "password_forms",
    "secrets_in",
]

Mask: TypeAlias = Callable[[bytes], bytes]
"""Returns bytes of the same length, with what is secret in them replaced."""

Secret: TypeAlias = "str | re.Pattern[bytes] | Mask"  # noqa: S105 - a type
"""Where secrets stand: a regular expression over bytes (its groups, or the whole match), or a mask."""

HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2}){4,}")
"""A password that may be the hex form of bytes; shorter ones would mask what only looks alike."""

RUN: Final = 4
"""Characters, or bytes in hex, in a row that a text has to share with what was said, to be hidden."""

LONG_TEXT: Final = 2_048
"""Characters of such a text that are shown."""

KEPT: Final = 4_096
"""Bytes, or characters, that may be kept for a line that may never be written."""

LONGEST: Final = 1_024
"""Bytes of what was said that are looked for, at its beginning and its end each."""

MOST: Final = 64
"""Secrets that are looked for in a text one by one; where there are more, nothing of it is shown."""

DEEPEST: Final = 20
"""Exceptions that led to each other and are shown."""

_LOWER: Final = {upper: upper + 32 for upper in range(65, 91)}
_BYTE: Final = re.compile("[0-9a-f]{2}")
_HEX_RUN: Final = re.compile(
    r"(?<!limit is )\b(?:[0-9a-f]{2}){4,}\b…?(?! bytes)|\b[0-9a-f]{2}(?:[ :][0-9a-f]{2}){3,}…?"
)


def masking(pattern: str, *, same_length: bool = True) -> Mask:
    r"""Return the mask for a regular expression over bytes: its groups, or without any the whole match.

    `.` matches every byte, and `\x01` is one. Without *same_length* one asterisk stands for it all.
    Raises `SetupError` for an invalid expression.
    """
    try:
        regex = re.compile(pattern.encode(), re.DOTALL)
    except (re.error, UnicodeEncodeError) as error:
        raise SetupError(f"{pattern!r} isn't a valid regular expression: {error}") from None
    return _mask_of(regex, same_length=same_length)


def mask_for(secret: Secret) -> Mask:
    """Return the mask for what a router is given as `secret=`. Raises `SetupError` if it isn't one."""
    if isinstance(secret, str):
        return masking(secret)
    if isinstance(secret, re.Pattern):
        if not isinstance(secret.pattern, bytes):
            raise SetupError(
                f"{secret!r} is an expression over text; secrets stand in bytes: give the text itself"
            )
        return _mask_of(secret, same_length=True)
    if not callable(secret):
        raise SetupError(f"{secret!r} is neither a regular expression nor a function")
    return secret


def _mask_of(regex: re.Pattern[bytes], *, same_length: bool) -> Mask:
    groups = range(1, regex.groups + 1) if regex.groups else (0,)

    def mask(data: bytes) -> bytes:
        spans = [match.span(group) for match in regex.finditer(data) for group in groups]
        if not spans:
            return data
        hidden = bytearray(data)
        for start, end in sorted(spans, reverse=True):
            if start >= 0:  # the group took part in the match
                hidden[start:end] = b"*" * (end - start) if same_length else b"*"
        return bytes(hidden)

    return mask


def password_forms(password: str) -> set[bytes]:
    """Return the bytes that *password* may stand for in what a device sends."""
    forms = {password.encode(errors="replace"), password.encode("latin-1", "replace")}
    if HEX.fullmatch(password):
        forms.add(bytes.fromhex(password))
    return forms


def masked(data: bytes, mask: Mask) -> bytes:
    """Return *data* as *mask* has it; nothing of it, if the mask fails."""
    try:
        hidden = mask(data)
    except Exception:  # noqa: BLE001 - a user's function; what it can't judge isn't shown
        return b"*" * len(data)
    return hidden if len(hidden) == len(data) else b"*" * len(data)


def secrets_in(data: bytes, mask: Mask) -> list[bytes]:
    """Return the parts of *data* that *mask* hides; all of it, if the mask fails."""
    parts, start = [], None
    for at, (byte, other) in enumerate(zip(data, masked(data, mask), strict=True)):
        if byte == other and start is not None:
            parts.append(data[start:at])
            start = None
        elif byte != other and start is None:
            start = at
    return parts if start is None else [*parts, data[start:]]


def hide_secrets(text: str, secrets: Iterable[bytes]) -> str:
    """Return *text* with each of *secrets* masked, in whatever form it stands there."""
    secrets = dict.fromkeys(secrets)
    if len(secrets) > MOST:
        return f"[{len(text)} characters]"
    for secret in secrets:
        for form in _forms(secret):
            if form in text:
                text = text.replace(form, "*" * len(form))
    return text


def _forms(secret: bytes) -> Iterator[str]:
    if not secret:
        return
    yield from {secret.decode("utf-8", "replace"), secret.decode("latin-1"), repr(secret)[2:-1]}
    if len(secret) >= RUN:  # shorter ones would mask what only looks alike
        for hexadecimal in (secret.hex(), secret.hex(" "), secret.hex(":")):
            yield from (hexadecimal, hexadecimal.upper())


def hide_masked(text: str, masks: Iterable[Mask]) -> str:
    """Return *text* with what *masks* match in it masked; all of it, if one of them fails."""
    for mask in masks:
        try:
            text = mask(text.encode(errors="backslashreplace")).decode(errors="replace")
        except Exception:  # noqa: BLE001, PERF203 - a user's function; what it can't judge isn't shown
            return f"[{len(text)} characters]"
    return text


def hide_said(text: str, said: bytes) -> str:
    """Return *text* with whatever it repeats of *said*, `RUN` characters or more, replaced by its size."""
    if len(text) > LONG_TEXT:
        text = f"{text[:LONG_TEXT]}…"
    if len(said) > 2 * LONGEST:
        said = said[:LONGEST] + said[-LONGEST:]
    low = text.translate(_LOWER)
    marks = bytearray(len(low))
    for form, size in _said_forms(said):
        known = {form[at : at + size] for at in range(len(form) - size + 1)}
        for at in range(len(low) - size + 1) if known else ():
            if low[at : at + size] in known:
                marks[at : at + size] = b"\1" * size
    if not any(marks):
        return text
    return "".join(_counted(text, marks))


def _said_forms(said: bytes) -> Iterator[tuple[str, int]]:
    """Yield the forms that *said* may have in a text, in lower case, and how many characters tell it."""
    texts = {said.decode("utf-8", "replace"), said.decode("latin-1"), repr(said)[2:-1]}
    for form in texts:
        yield form.translate(_LOWER), RUN
    yield said.hex(), 2 * RUN
    for separator in " :":
        yield said.hex(separator), 3 * RUN - 1


def _counted(text: str, marks: bytearray) -> Iterator[str]:
    at = 0
    while at < len(text):
        end = marks.find(not marks[at], at)
        end = len(text) if end < 0 else end
        yield f"[{end - at} characters]" if marks[at] else text[at:end]
        at = end


def format_masked(error: BaseException, hide: Callable[[str], str]) -> str:
    """Return the traceback of *error* and of what led to it; what exceptions say has gone through *hide*."""
    parts: list[str] = []
    known: set[int] = set()
    link = ""
    while True:
        known.add(id(error))
        text = _said_by(error)
        trace = "".join(traceback.format_tb(error.__traceback__))
        head = "Traceback (most recent call last):\n" if trace else ""
        parts.append(f"{head}{trace}{hide(text)}{link}")
        before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if before is None or id(before) in known or len(parts) >= DEEPEST:
            return "".join(reversed(parts)).rstrip()
        words = "The above exception was the direct cause of the following exception"
        if error.__cause__ is None:
            words = "During handling of the above exception, another exception occurred"
        link = f"\n{words}:\n\n"
        error = before


class Later:
    """A text that is made when it is read: lines of a flood are held back before that."""

    __slots__ = ("_make", "_text")

    def __init__(self, make: Callable[[], str], size: int = 0) -> None:
        """Have *make* make the text; at once if that needs too much data, *size* bytes, to be kept."""
        self._make: Callable[[], str] | None = make
        self._text = ""
        if size > KEPT:
            str(self)

    def __str__(self) -> str:
        if self._make is not None:
            self._text, self._make = self._make(), None
        return self._text


def log_error(
    log: logging.Logger,
    text: str,
    *args: object,
    error: BaseException,
    hide: Callable[[str], str],
    words: str | None = None,
    size: int = 0,
) -> None:
    """Log *error* with its traceback; *hide* masks what is secret in it.

    *text* shows *words* behind *args*, or the error itself. *size*: bytes that *hide* has to know for that.

    It is masked here, not where a line is written: whatever handlers logging has, none gets to see it.
    """
    if not log.isEnabledFor(logging.ERROR) or log.disabled:
        return
    exc_info = (type(error), error, error.__traceback__)
    args = (*args, Later(partial(hide, words or _repr(error)[:KEPT]), size))
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, text, args, exc_info)
    passed = log.filter(record)  # which holds back what is said again and again, before it is formatted
    if passed:
        record = passed if isinstance(passed, logging.LogRecord) else record
        record.exc_text = format_masked(error, hide)
        log.callHandlers(record)


def _repr(error: BaseException) -> str:
    try:
        return repr(error)
    except Exception:  # noqa: BLE001 - its own text may fail
        return type(error).__name__


def _said_by(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception_only(type(error), error))
    except Exception:  # noqa: BLE001 - its own text may fail
        return f"{type(error).__name__}\n"


def hide_hex(text: str) -> str:
    """Return *text*, of one of our framings, with the bytes that it shows in hex replaced by their number."""

    def size(match: re.Match[str]) -> str:
        more = " and more" if match[0].endswith("…") else ""
        return f"[{len(_BYTE.findall(match[0]))}{more} bytes]"

    return _HEX_RUN.sub(size, text)
