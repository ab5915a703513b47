"""Checks of what is installed, and of the user's own file."""

from __future__ import annotations

import contextlib
import importlib.util
import platform
import re
import signal
import sys
from collections.abc import Iterator
from typing import Any, Final

from ...errors import ExprotoError, SetupError
from ...framing import RAW
from ...router import Router
from ...target import load
from .finding import Finding, failed, ok, skipped
from .setup import Setup

__all__ = ["EXTRAS", "extras", "python", "target"]

EXTRAS: Final = {
    "crc": ("fastcrc",),
    "door": (),  # empty since the MQTT server is our own
    "grpc": ("google.protobuf", "hpack"),
    "metrics": ("prometheus_client",),
    "mqtt": ("mqtt5",),
    "pcap": ("dpkt",),
    "dtls": ("OpenSSL",),
    "reload": ("watchfiles",),
    "serial": ("serial",),
    "top": ("rich", "prometheus_client"),
    "uvloop": ("uvloop",),
    "web": ("aiohttp",),
    "ws": ("wsproto",),
}
"""The modules that each extra of the package brings."""

IMPORT: Final = 30.0
"""Seconds that the import of the user's file may take."""

OLDEST: Final = (3, 11)
"""Of Pythons, the first that mqtt5 is for."""


def python(setup: Setup) -> Iterator[Finding]:
    """Tell which Python this is."""
    text = f"Python {platform.python_version()} at {sys.executable}"
    if setup.uplink is not None and sys.version_info < OLDEST:
        yield failed("python", text, "--mqtt needs Python 3.11 or newer")
    else:
        yield ok("python", text)


def extras(setup: Setup) -> Iterator[Finding]:
    """Look for the libraries that this set-up needs, and tell which others aren't installed."""
    needed = {"mqtt"} if setup.uplink is not None else set()
    needed |= {listen.kind.extra for listen in (*setup.listens, *setup.targets) if listen.kind.extra}
    needed |= {"grpc"} if setup.gateway is not None else set()
    missing = {name for name, modules in EXTRAS.items() if not all(map(_is_there, modules))}
    for name in sorted(needed):
        if name in missing:
            yield failed("extras", f"the extra {name} is missing", f"pip install 'exproto-app[{name}]'")
        else:
            yield ok("extras", f"the extra {name} is installed")
    others = sorted(missing - needed)
    if others:
        yield skipped("extras", f"not installed and not needed here: the extras {', '.join(others)}")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # of google.protobuf, google is missing too
        return False


class _TooLong(BaseException):
    """The import takes too long; no `except Exception` of the user's stops it."""


@contextlib.contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """Raise `_TooLong` in the block after *seconds*, where the system has such an alarm."""
    if sys.platform == "win32":
        yield
        return

    def late(_: int, __: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, late)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def target(setup: Setup, limit: float = IMPORT) -> Iterator[Finding]:
    """Import the user's app, and tell what it handles."""
    try:
        with _bounded(limit), contextlib.redirect_stdout(sys.stderr):
            setup.app = load(setup.target)
    except _TooLong:
        words = f"importing {setup.target} takes longer than {limit:g} s"
        yield failed("import", words, "move slow or blocking work to on_startup")
        return
    except SetupError as error:
        words, _, remedy = str(error).partition("; ")
        yield failed("import", words, remedy)
        return
    except ExprotoError as error:
        yield failed("import", *_mistake(setup.target, str(error)))
        return
    protocols = setup.app.protocols
    if not protocols:
        remedy = "decorate a function with @app.on_received"
        yield failed("handlers", f"{setup.target} has an app without any handler", remedy)
        return
    yield ok("import", f"{setup.target} has an app; its protocols: {', '.join(protocols)}")
    for name, router in protocols.items():
        yield _handlers(name, router)


def _mistake(where: str, text: str) -> tuple[str, str]:
    """Return in a line what a traceback of the user's says, and the place to mend."""
    last = text.rstrip().splitlines()[-1]
    places = re.findall(r'File "(.+)", line (\d+)', text)
    module = re.search(r"No module named '([^'.]+)", last)
    remedy = f"see line {places[-1][1]} of {places[-1][0]}" if places else ""
    if module:
        remedy = f"install {module[1]} for {sys.executable}, or correct its name; {remedy}".rstrip("; ")
    return f"{where} can't be imported: {last}", remedy


def _handlers(name: str, router: Router[Any]) -> Finding:
    handlers = list(router.routes)
    count = f"{len(handlers)} handler{'' if len(handlers) == 1 else 's'}"
    text = f"protocol {name}: {count}, framing {router.framing!r}"
    if not any(handler.where.startswith("on_received") for handler in handlers):
        return ok("handlers", text, "no handler takes what devices send; add @app.on_received")
    if router.framing is RAW:
        advice = (
            "frames are whatever bytes came in one read, which TCP cuts anywhere; framing= makes them whole"
        )
        return ok("handlers", text, advice)
    return ok("handlers", text)
