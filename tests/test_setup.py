"""Set-up mistakes: one sentence, at import, that names the culprit."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest

import exproto_app
from exproto_app import App, Limits, Router
from exproto_app.errors import SetupError
from exproto_app.framing import Delimiter, FixedSize, LengthPrefix, Line, StartEnd


def nothing(conn: Any) -> None: ...
def needy(conn: Any) -> None: ...
def greedy(conn: Any, reason: Any, state: Any, more: Any) -> None: ...
def picky(conn: Any, frame: Any, *, must: Any) -> None: ...
async def both(conn: Any, frame: Any) -> None: ...


def two_for_one_thing(app: Any) -> None:
    app.on_connect(nothing)
    app.on_connect(lambda conn: None)


def two_for_one_key(app: Any) -> None:
    app.on_received(b"a")(lambda conn, frame: None)
    app.on_received(b"a")(lambda conn, frame: None)


def two_for_one_topic(app: Any) -> None:
    app.on_deliver("a/+")(lambda conn, message: None)
    app.on_deliver("a/+")(lambda conn, message: None)


def sharing(app: Any, names: str, sniff: bytes) -> None:
    app.limits = Limits(sniff_bytes=4)
    app.include(Router("a", sniff=sniff))
    app.include(Router("b"))
    app.include(Router("c"))
    app.find_protocols(names)


def same_name(app: Any) -> None:
    app.protocol("a")
    app.include(Router("a"))


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (two_for_one_thing, "already handles on_connect, by nothing"),
        (two_for_one_key, r"already handles on_received\(b'a'\)"),
        (two_for_one_topic, r"already handles on_deliver\('a/\+'\)"),
        (lambda app: app.on_received(needy), r"needy takes .* but on_received calls it with \(conn, frame\)"),
        (lambda app: app.on_terminated(greedy), "greedy takes "),
        (
            lambda app: app.on_received(picky),
            "picky can't serve on_received: its argument 'must' is never passed",
        ),
        (lambda app: app.on_received(blocking=True)(both), "both is async, so it can't be blocking=True"),
        (same_name, "already includes a router named 'a'"),
        (lambda app: app.on_received(b"")(lambda conn, frame: None), r"on_received\(b''\)"),
        (lambda app: app.on_received("a")(lambda conn, frame: None), r"on_received\('a'\)"),
        (lambda app: app.on_deliver("a/#/b"), r"on_deliver\('a/#/b'\)"),
        (lambda app: app.on_connect(3), "on_connect takes a function, not 3"),
        (lambda app: app.every(0), r"can't run every\(0\)"),
        (lambda app: app.include(App()), "takes a Router"),
        (lambda app: app.include(Router("default")), "'default'"),
        (lambda app: app.protocol("with space"), "can't name a protocol"),
        (lambda app: app.protocol("a", framing=Line), r"Line is a class; give an instance, Line\(…\)"),
        (lambda app: app.protocol("a", framing=3), "3 is not a framing"),
        (lambda app: app.protocol("a", framing="Line"), "'Line' is not a framing; give an instance"),
        (lambda app: app.every("10"), r"can't run every\('10'\); use a number of seconds above 0"),
        (lambda app: app.protocol("a", state=3), "state=3 is not a function"),
        (lambda app: app.find_protocol(None), "has no handlers"),
        (lambda app: app.protocol("a", sniff=b""), "matches everything; to match everything, leave it out"),
        (lambda app: app.protocol("a", sniff=()), "matches everything; to match everything, leave it out"),
        (
            lambda app: app.protocol("a", sniff=(b"a", b"")),
            "matches everything; to match everything, leave it out",
        ),
        (lambda app: app.protocol("a", sniff="$GP"), "'\\$GP' is neither bytes, nor a tuple of bytes, nor"),
        (lambda app: app.protocol("a", sniff=both), "is async, but nothing awaits it; make it a def"),
        (lambda app: app.protocol("a", sniff=lambda: True), r"takes .*: sniff= calls it with \(data\)"),
        (lambda app: sharing(app, "a,b", sniff=b"12345"), "has 5 bytes, Limits.sniff_bytes is 4"),
        (lambda app: sharing(app, "a,x", sniff=b"1"), "serves no protocol 'x'; it serves a, b, c"),
        (lambda app: sharing(app, "a,", sniff=b"1"), "serves no protocol ''; it serves a, b, c"),
        (lambda app: sharing(app, "a,b,a", sniff=b"1"), "'a,b,a' names a protocol twice"),
        (lambda app: sharing(app, "a,b,c", sniff=b"1"), "'b' and 'c' can't be told apart; give one a sniff="),
        (lambda app: Limits(sniff_time=0), "limit sniff_time is 0"),
        (lambda app: app.publish("a", b""), "isn't running"),
        (lambda app: Limits(inbox=0), "limit inbox is 0"),
        (lambda app: Line(limit=0), "limit is 0"),
        (lambda app: Delimiter(b""), "at least one"),
        (lambda app: LengthPrefix(5), "a length field has 1, 2, 3, 4 or 8 bytes"),
        (lambda app: FixedSize(0), "size is 0"),
        (lambda app: StartEnd(b"\x7e", b"\x7e", {b"\x7e": b"\x7d\x02"}), "escapes lack"),
    ],
)
def test_a_mistake_is_told(mistake: Callable[[Any], object], words: str) -> None:
    with pytest.raises(SetupError, match=words):
        mistake(App())


def test_handlers_may_be_methods_partials_and_callables_with_defaults() -> None:
    app = App()

    class Device:
        def connect(self, conn: Any) -> bytes:
            return b"a"

        async def __call__(self, conn: Any, frame: Any, extra: int = 0) -> bytes:
            await asyncio.sleep(0)
            return b"b"

    app.on_connect(Device().connect)
    app.on_received(Device())
    app.on_terminated(functools.partial(lambda log, conn, reason: None, []))


def test_annotations_may_be_evaluated() -> None:
    """`Connection[Device]` is an expression where a script doesn't import annotations from the future."""
    code = (
        "from exproto_app import App, Connection, Router\n"
        "class Device: pass\n"
        "app: App[Device] = App(state=Device)\n"
        "router: Router[Device, str] = Router('x', state=Device, codec=(bytes.decode, str.encode))\n"
        "@app.on_received\n"
        "def received(conn: Connection[Device], frame: bytes) -> None: ...\n"
        "@router.on_received\n"
        "def message(conn: Connection[Device, str], text: str) -> None: ...\n"
    )
    exec(compile(code, "script.py", "exec", dont_inherit=True), {"__name__": "script"})


def test_the_version_is_the_installed_packages() -> None:
    assert exproto_app.__version__ == version("exproto-app")
    with pytest.raises(AttributeError, match="'exproto_app' has no attribute 'no_such_name'"):
        exproto_app.no_such_name  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.live
def test_who_asks_for_no_version_does_not_wait_for_it() -> None:
    code = (
        "import sys; before = set(sys.modules); import exproto_app;"
        "print('importlib.metadata' in set(sys.modules) - before, exproto_app.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", version("exproto-app")]
