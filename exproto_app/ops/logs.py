r"""The log: one grammar, as text or as JSON, and no floods.

A line is `WHO SIGN WHAT`. WHO is a connection, as `ID/PROTOCOL` or, once it is registered,
`ID/PROTOCOL/CLIENTID`, or a part of the host (`app`, `gateway`, `hub`, `grpc`, `broker`…).
SIGN is `=` for what happened, `!` for what went wrong. What goes wrong again and again is logged a few times,
then counted: `… 1,203 more in 10 s`.

As JSON (`JsonFormatter`) each line is one object with these keys, those in brackets only where they apply:

    time       UTC, ISO 8601 with milliseconds
    level      debug, info, warning, error, critical
    logger     exproto_app, or the user's own
    message    the text, as it would stand in the text form
    [conn]     the connection's id; then always [protocol] and, once it is registered, [clientid]
    [peer]     the address of the device, or of whoever was refused: HOST:PORT, IPv6 in brackets
    [worker]   the number of the worker, with `run --workers`
    [repeats]  how many more of these there were, not logged one by one
    [error]    the exception's class
    [traceback]

As text, a warning or an error about a connection ends with `(peer HOST:PORT)`, so that programs which ban
addresses find them in either form.

A line of the user's own belongs to a connection when its first argument is one, or by `extra={"conn": conn}`.
Passwords are never logged: what a connection registered with is masked in its lines, tracebacks included.

A message is always one line: characters that would end it, or do something to a terminal, are escaped
(`\n`, `\x1b`, `\u202e`), in users' own lines too. At most a traceback follows, its lines indented, so that
none looks like a line of the log.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from datetime import datetime, timezone
from io import TextIOBase
from types import TracebackType
from typing import IO, Any, Final, TypeAlias

import attrs

from ..connection import Connection
from ..core import Channel, Sniffer
from ..models import Address, ClientInfo, ConnectionInfo
from ..names import escaped, escaped_lines, to_json

__all__ = [
    "FORMATS",
    "LEVELS",
    "WINDOW",
    "JsonFormatter",
    "Repeats",
    "TextFormatter",
    "configure",
    "configure_from",
]

Stream: TypeAlias = IO[str] | TextIOBase

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("text", "json")

TEXT: Final = "%(asctime)s %(levelname)s %(message)s"

WINDOW: Final = 10.0
"""Seconds in which repetitions are counted together."""

ONE: Final = 3
"""Lines of one kind about one connection or one peer's host in a window."""

ALL: Final = 50
"""Lines of one kind in a window, whoever they are about."""

TRACES: Final = 5
"""Lines with the traceback of an exception from one place in a window."""

KNOWN: Final = 4_096
"""Kinds and culprits counted by themselves in a window; beyond them, lines are limited by kind alone."""


@attrs.define(eq=False)
class _Window:
    """What was logged of one key since *began*, what was held back, and the last line of that."""

    began: float
    said: int = 0
    held: int = 0
    last: logging.LogRecord | None = None


class Repeats(logging.Filter):
    """Holds back what is logged again and again, and logs how much that was when its window ends.

    Only lines about something wrong (`!`) are limited, none of them of level debug. A kind is a message's
    format; where there is an exception it is also its class and the place that raised it. The first argument
    is the culprit, where it is a connection or an address. The filter reads no clock: whoever installs it
    calls `sweep` some time after it has called *wake*, and `finish` at the end.
    """

    def __init__(self, wake: Callable[[], object] | None = None) -> None:
        super().__init__()
        self._wake = wake
        self._lock = threading.Lock()
        self._windows: OrderedDict[Hashable, _Window] = OrderedDict()  # in the order in which they began

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether *record* may be logged now."""
        if record.levelno <= logging.DEBUG or hasattr(record, "repeats") or " ! " not in str(record.msg):
            return True
        now = record.created
        record.peer = _whose(record).get("peer")  # the connection may have ended when it is logged
        with self._lock:
            ended: list[_Window] = []
            held = self._hold(record, now, ended)
        self._tell(ended, now)
        if held is not None and held.held == 1 and self._wake is not None:
            self._wake()
        return held is None

    def again(self, text: str, culprit: Any) -> bool:
        """Count one more line *text* about *culprit*, if such lines are held back now; return whether.

        So who floods costs no record for each line.
        """
        with self._lock:
            for key in ((text, culprit.id), text):
                window = self._windows.get(key)
                if window is not None and window.last is not None:
                    window.held += 1
                    return True
        return False

    def sweep(self, now: float) -> bool:
        """Log what was held back in the windows that have ended; return whether there are more of them."""
        with self._lock:
            ended = self._take_ended(now)
            more = any(window.held for window in self._windows.values())
        self._tell(ended, now)
        return more

    def finish(self, now: float) -> None:
        """Log all that was held back."""
        with self._lock:
            ended = list(self._windows.values())
            self._windows.clear()
        self._tell(ended, now)

    def _hold(self, record: logging.LogRecord, now: float, ended: list[_Window]) -> _Window | None:
        """Hold *record* back and return its window, or count it as logged."""
        windows = []
        for key, burst in _keys(record):
            window = self._window(key, now, ended)
            if window is None:
                continue
            if window.said >= burst:
                window.held += 1
                record.exc_info = record.exc_text = (
                    None  # it would keep alive what the frames of its traceback hold
                )
                window.last = record
                return window
            windows.append(window)
        for window in windows:
            window.said += 1
        return None

    def _window(self, key: Hashable, now: float, ended: list[_Window]) -> _Window | None:
        window = self._windows.get(key)
        if window is not None:
            if 0 <= now - window.began < WINDOW:
                return window
            ended.append(self._windows.pop(key))
        elif len(self._windows) >= KNOWN:
            ended += self._take_ended(now)
            if len(self._windows) >= KNOWN:
                return None
        window = self._windows[key] = _Window(now)
        return window

    def _take_ended(self, now: float) -> list[_Window]:
        """Return the windows that have ended, which are the first ones."""
        ended = []
        while self._windows:
            key, window = next(iter(self._windows.items()))
            if 0 <= now - window.began < WINDOW:
                break
            ended.append(self._windows.pop(key))
        return ended

    @staticmethod
    def _tell(windows: list[_Window], now: float) -> None:
        for window in windows:
            last = window.last
            if last is None:
                continue
            seconds = max(1, round(now - window.began))
            record = logging.makeLogRecord(
                {
                    **last.__dict__,
                    "msg": f"{last.msg} … %s more in %d s",
                    "args": (*_arguments(last), f"{window.held:,}", seconds),
                    "repeats": window.held,
                }
            )
            logging.getLogger(last.name).handle(record)


def _arguments(record: logging.LogRecord) -> tuple[Any, ...]:
    return record.args if isinstance(record.args, tuple) else ()


def _keys(record: logging.LogRecord) -> list[tuple[Hashable, int]]:
    """Return what *record* counts as, and how often each of those may be logged in a window."""
    keys: list[tuple[Hashable, int]] = []
    arguments = _arguments(record)
    culprit = arguments[0] if arguments else None
    if isinstance(culprit, Channel | Sniffer):
        keys.append(((record.msg, culprit.id), ONE))
    elif isinstance(culprit, Address):
        keys.append(((record.msg, culprit.host), ONE))
    if record.exc_info and record.exc_info[1] is not None:
        keys.append(((record.msg, *_raised(record.exc_info[1])), TRACES))
    else:
        keys.append((record.msg, ALL))
    return keys


def _raised(error: BaseException) -> tuple[type, str, int]:
    """Return what *error* is and where it was raised."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(error), "", 0
    return type(error), trace.tb_frame.f_code.co_filename, trace.tb_lineno


class TextFormatter(logging.Formatter):
    """Makes a record a line of text, with the peer's address where something went wrong.

    The lines of a traceback follow it, indented.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line, without a traceback."""
        line = escaped(_masked(record, super().formatMessage(record)))
        if record.levelno < logging.WARNING:
            return line
        whose = _whose(record)
        return f"{line} (peer {escaped(whose['peer'])})" if "conn" in whose and "peer" in whose else line

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and those of the traceback."""
        record.message = record.getMessage()
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        line = self.formatMessage(record)
        below = "\n".join(filter(None, (_traceback(self, record), record.stack_info)))
        return line + "".join(f"\n    {text}" for text in escaped_lines(below).splitlines())


class JsonFormatter(logging.Formatter):
    """Makes a record one line of JSON; the module lists the keys. *worker* is the process's number."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        message = escaped(_masked(record, record.getMessage()))
        time = datetime.fromtimestamp(record.created, tz=timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
            **_whose(record),
            **self._worker,
        }
        repeats = getattr(record, "repeats", None)
        if repeats is not None:
            line["repeats"] = repeats
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
        traceback = _traceback(self, record) or record.stack_info
        if traceback:
            line["traceback"] = traceback
        return to_json(line)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """Return the traceback of *record* with what is secret in it masked; empty if it has none."""
    text = record.exc_text  # where it is given, it is masked already
    if not text and record.exc_info and record.exc_info[0] is not None:
        text = formatter.formatException(record.exc_info)
    return _masked(record, text) if text else ""


def _masked(record: logging.LogRecord, text: str) -> str:
    """Return *text* with the passwords masked of the connection that *record* is about."""
    arguments = _arguments(record)
    whose = getattr(record, "conn", None) or (arguments[0] if arguments else None)
    if isinstance(whose, Connection):
        return whose.hide(text)
    return whose.hide(text) if isinstance(whose, Channel) else text


def _whose(record: logging.LogRecord) -> dict[str, str]:
    """Return the fields of the connection that *record* is about."""
    arguments = _arguments(record)
    whose = getattr(record, "conn", None) or (arguments[0] if arguments else None)
    client: ClientInfo | None
    info: ConnectionInfo | None
    if isinstance(whose, Channel):
        fields, client = {"conn": whose.id, "protocol": whose.protocol.router.name}, whose.client
        conn = getattr(whose, "conn", None)  # it has none any more once it has ended
        info = None if conn is None else conn.info
    elif isinstance(whose, Sniffer):
        fields, client, info = {"conn": whose.id, "protocol": whose.rules.name}, None, whose.info
    elif isinstance(whose, Connection):
        fields, client, info = {"conn": whose.id, "protocol": whose.protocol}, whose.client, whose.info
    elif isinstance(whose, Address):
        return {"peer": str(whose)}
    else:
        return {}
    peer = getattr(record, "peer", None) or (info and str(info.peername))
    if peer:
        fields["peer"] = peer
    return {**fields, "clientid": client.clientid} if client is not None else fields


def configure(
    level: str, form: str, stream: Stream | None = None, *, text: str = TEXT, worker: int | None = None
) -> None:
    """Log from *level* on to *stream* (standard error), as `json` or as `text` (in the format *text*).

    *worker* is the number of this process among several.
    """
    handler: logging.Handler = logging.StreamHandler(stream)
    if worker is not None:
        text = text.replace("%(message)s", f"worker {worker}: %(message)s")
    handler.setFormatter(JsonFormatter(worker) if form == "json" else TextFormatter(text))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def configure_from(environment: Mapping[str, str], stream: Stream, *, text: str) -> None:
    """Configure by EXPROTO_LOG_LEVEL and EXPROTO_LOG_FORMAT, where there is no command line."""
    level = environment.get("EXPROTO_LOG_LEVEL", "info").lower()
    form = environment.get("EXPROTO_LOG_FORMAT", "text").lower()
    configure(level if level in LEVELS else "info", form, stream, text=text)
    for name, value, known in (("LEVEL", level, LEVELS), ("FORMAT", form, FORMATS)):
        if value not in known:
            words = "app ! EXPROTO_LOG_%s is %r; it must be one of %s"
            logging.getLogger("exproto_app").warning(words, name, value, ", ".join(known))
