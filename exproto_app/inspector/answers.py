"""What requests to the inspector hold, and the answers to them."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from importlib.resources import files
from pathlib import PurePath
from typing import Any, Final

from aiohttp import web

from ..commands import Outcome
from ..errors import CommandError, ExprotoError
from ..traffic.hexdump import undump
from .access import Refusal

__all__ = [
    "BODY",
    "HEADERS",
    "SMALL",
    "bytes_of",
    "error_answer",
    "failure",
    "posted",
    "refused",
    "result_of",
    "static_files",
]

log = logging.getLogger("exproto_app")

SLOW: Final = 1.0
"""Seconds until a wrong token is answered after too many of them."""

BODY: Final = 4 * 1024 * 1024
"""Bytes of a request: a payload of a megabyte, in hex with blanks."""

SMALL: Final = 4_096
"""Bytes of a request that are read at once, and that stand between its texts."""

TEXTS: Final = 64
"""Quotation marks of a request."""

ESCAPES: Final = 131_072
"""Backslashes of a request: the hexdump of a megabyte has half as many."""

DUMP: Final = 262_144
"""Characters of hex that may have more than digits and blanks: that takes its time."""

PATIENCE: Final = 10.0
"""Seconds until a verb has to have an outcome."""

HEADERS: Final = {
    # Everything comes from here; nothing that a device sends can become script, or call elsewhere.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

KINDS: Final = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""The files that the page consists of, by their suffix."""


def static_files() -> dict[str, tuple[bytes, str]]:
    """Return the files of the page and their content types, by their paths."""
    found = {
        f"/{file.name}": (file.read_bytes(), KINDS[PurePath(file.name).suffix])
        for file in files(__package__).joinpath("static").iterdir()
        if PurePath(file.name).suffix in KINDS
    }
    found["/"] = found.pop("/index.html")
    return found


async def refused(refusal: Refusal) -> web.Response:
    """Return the answer to a request that isn't let in; too many wrong tokens get it late."""
    if refusal.status == 429:
        await asyncio.sleep(SLOW)
    return error_answer(refusal.status, refusal.text)


def error_answer(status: int, text: str) -> web.Response:
    """Return the answer that shows *text*."""
    return web.json_response({"error": text}, status=status, headers=HEADERS)


def failure(request: web.Request, error: Exception) -> web.Response:
    """Return the answer to a request that came to *error*."""
    match error:
        case web.HTTPException():
            return error_answer(error.status, error.reason)
        case CommandError():
            return error_answer(409, f"{type(error).__name__}: {error}")
        case KeyError():
            return error_answer(400, f"{error} is missing")
        case ExprotoError() | ValueError() | TypeError():
            return error_answer(400, str(error))
        case TimeoutError() | asyncio.TimeoutError():  # one and the same from Python 3.11 on
            return error_answer(504, f"there was no outcome within {PATIENCE:g} s; it may still come")
    log.error("inspector ! %s %s failed", request.method, request.path, exc_info=error)
    return error_answer(500, "the inspector failed; its log says why")


def json_body(request: web.Request, body: bytes) -> dict[str, Any]:
    """Return the *body* that was posted. A form of another site can't be JSON. Raises `ValueError`."""
    if request.content_type != "application/json":
        raise ValueError("Content-Type has to be application/json")
    _check_structure(body)
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("this is not JSON") from None
    if not isinstance(given, dict):
        raise ValueError("this is not a JSON object")  # noqa: TRY004 - what was sent is wrong, no argument
    return given


def _check_structure(body: bytes) -> None:
    """Refuse what is more than a few texts, however long they are: millions of items take their time."""
    escapes = body.count(b"\\")
    if escapes > ESCAPES:
        raise ValueError(f"this has {escapes} backslashes, limit is {ESCAPES}; give the bytes as hex")
    parts = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"', TEXTS)
    if len(parts) > TEXTS or sum(map(len, parts[::2])) > SMALL:
        raise ValueError("this is no JSON object of a few fields")


_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{2}|[nrt0\\]|.|$)", re.DOTALL)
_PLAIN: Final = {"n": b"\n", "r": b"\r", "t": b"\t", "0": b"\0", "\\": b"\\"}


def bytes_of(given: dict[str, Any]) -> bytes:
    """Return the bytes that were given as `hex` or as `text`. Raises `SetupError` or `ValueError`."""
    text = given.get("hex")
    if isinstance(text, str):
        return _bytes_of_hex(text)
    text = given.get("text")
    if not isinstance(text, str):
        raise TypeError("give hex or text")
    data, at = bytearray(), 0
    for match in _ESCAPE.finditer(text):
        word = match[1]
        if word not in _PLAIN and len(word) != 3:
            raise ValueError(f"\\{word} means nothing; there are \\n \\r \\t \\0 \\xNN and \\\\")
        data += text[at : match.start()].encode()
        data += _PLAIN.get(word) or bytes.fromhex(word[1:])
        at = match.end()
    data += text[at:].encode()
    return bytes(data)


def _bytes_of_hex(text: str) -> bytes:
    """Return what *text* writes; raises as `undump` does."""
    if len(text) <= DUMP:
        return undump(text)
    try:
        return bytes.fromhex(text)
    except ValueError:
        words = "hex digits and blanks alone may have more"
        raise ValueError(f"this hex has {len(text)} characters, limit is {DUMP}; {words}") from None


async def posted(
    request: web.Request, turns: asyncio.Lock, *, payload: bool = False, most: int = BODY
) -> tuple[dict[str, Any], bytes]:
    """Return what was posted, and the bytes in it if there is to be a *payload*; raises as those two do.

    Megabytes of hex are read in a thread, one request after another by *turns*: they would hold up devices,
    and so would many threads at once.
    """
    body = await body_of(request, most)

    def read() -> tuple[dict[str, Any], bytes]:
        given = json_body(request, body)
        return given, bytes_of(given) if payload else b""

    if len(body) <= SMALL:
        return read()
    async with turns:
        return await asyncio.to_thread(read)


async def body_of(request: web.Request, most: int) -> bytes:
    """Return the body of *request*. Raises `HTTPRequestEntityTooLarge` if it has more than *most* bytes."""
    body = bytearray()
    async for piece in request.content.iter_any():
        body += piece
        if len(body) > most:
            raise web.HTTPRequestEntityTooLarge(most, len(body))
    return bytes(body)


async def result_of(outcome: Outcome[Any]) -> None:
    """Wait for *outcome*. Raises what it came to, or `TimeoutError`."""

    async def wait() -> None:
        await outcome

    await asyncio.wait_for(wait(), PATIENCE)
