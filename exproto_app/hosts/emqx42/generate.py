"""What `exproto-app gen-driver` writes: a callback module for each protocol, and what starts our own loop."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import indent
from typing import Final

import attrs

from ...errors import SetupError
from ...names import escaped

__all__ = [
    "MARK",
    "Module",
    "Written",
    "again",
    "files",
    "module_name",
    "search_paths",
    "write",
    "written",
]

MARK: Final = "Written by exproto-app gen-driver"
"""By this a file is known as ours, to be overwritten."""

_MODULE: Final = '''\
"""The protocol {name} of {what} for EMQX 4.2.

{mark}; it holds no logic, so it stays as it is when the app changes.
"""

import sys

sys.path[:0] = [path for path in {paths!r} if path not in sys.path]

from exproto_app.hosts.emqx42.{loader} import Driver  # noqa: E402 - found by the paths above

driver = Driver({target!r}, protocol={protocol!r}{options})

init = driver.init
received = driver.received
deliver = driver.deliver
terminated = driver.terminated
'''

_SITE: Final = '''\
"""Puts exproto-app's message loop in the place of the broker's own.

{mark}. Python imports it at its start, from the listener's driver_search_path; it acts only in a process
that the broker starts, `python3 -m erlport.cli`, and leaves any other sitecustomize to do its work.
"""

import importlib.machinery
import importlib.util
import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))
_argv = getattr(sys, "orig_argv", [])
'''

_FIRST: Final = """
try:
{others}
finally:
    if "erlport.cli" in _argv and _argv[_argv.index("erlport.cli") - 1] == "-m":
        sys.path.insert(0, os.path.join(_here, {loop!r}))  # in front of what another driver's put there
"""

_STOCK_SITE: Final = '''\
"""Gives the broker's own message loop what Python 3.11 took away, and it needs to start.

{mark}. Python imports it at its start, from the listener's driver_search_path; it acts only in a process
that the broker starts, `python3 -m erlport.cli`, and leaves any other sitecustomize to do its work.
"""

import importlib.machinery
import importlib.util
import inspect
import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))
_argv = getattr(sys, "orig_argv", [])

if {{"erlport.cli", "emqx.erlport.cli"}} & {{*_argv}} and not hasattr(inspect, "getargspec"):
    inspect.getargspec = lambda function: inspect.getfullargspec(function)[:4]
'''

_OTHERS: Final = """\
_paths = [os.path.abspath(path or os.curdir) for path in sys.path]
# Only what stands behind us: another driver's file hands on likewise, and would come back here.
_others = sys.path[len(_paths) - _paths[::-1].index(_here) :] if _here in _paths else []
_other = importlib.machinery.PathFinder.find_spec("sitecustomize", _others)
if _other is not None and _other.loader is not None:
    _module = importlib.util.module_from_spec(_other)
    sys.modules["sitecustomize"] = _module
    _other.loader.exec_module(_module)
"""

_PACKAGE: Final = '''\
"""{mark}: stands in for the broker's erlport, see sitecustomize.py."""
'''

_CLI: Final = '''\
"""{mark}: the broker starts `python3 -m erlport.cli`, and gets exproto-app's loop."""

import sys

sys.path[:0] = [path for path in {paths!r} if path not in sys.path]

from exproto_app.hosts.emqx42.loop import main  # noqa: E402 - found by the paths above

main()
'''

LOOP: Final = "exproto_app_loop"
"""The folder that goes in front of `sys.path`."""


@attrs.frozen
class Record:
    """Where the driver records to, see `ops.recorder`; each of several modules has its own file."""

    path: Path
    size: int
    keep: int
    masks: tuple[str, ...] = ()

    def options(self, protocol: str | None) -> str:
        """Return the driver's arguments; with *protocol*, the file's name tells it."""
        path = self.path
        if protocol is not None:
            path = path.with_name(f"{path.stem}-{protocol.replace(',', '_')}{path.suffix}")
        text = f", record={str(path)!r}, record_size={self.size}, record_keep={self.keep}"
        return f"{text}, masks={self.masks!r}" if self.masks else text


@attrs.frozen
class Written:
    """What `write` did with a file: `written`, `unchanged`."""

    path: Path
    what: str


@attrs.frozen
class Module:
    """A callback module that was written before: its *protocol*, and what it gives the driver beside it."""

    module: str
    protocol: str
    stock: bool
    options: str


def written(out: Path) -> list[Module]:
    """Return the callback modules in *out* that `write` wrote, whatever their names."""
    found = []
    for path in sorted(out.glob("*.py")):
        text = path.read_text(errors="replace")
        call = re.search(r"^driver = Driver\((?:'.*?'|\".*?\"), protocol='(.*?)'(.*)\)$", text, re.MULTILINE)
        if MARK in text and call is not None:
            found.append(Module(path.stem, call[1], ".stock import Driver" in text, call[2]))
    return found


def again(target: str, modules: Sequence[Module], paths: Sequence[str]) -> list[tuple[str, str]]:
    """Return what `files` would yield now for *modules*, each with the options that it was written with."""
    texts: dict[str, str] = {}
    for each in modules:
        acl = each.options.startswith(", acl=True")
        plain = dict(files(target, [(each.module, each.protocol)], paths, stock=each.stock, acl=acl))
        name, old = f"{each.module}.py", ", acl=True" if acl else ""
        head = f"protocol={each.protocol!r}"
        plain[name] = plain[name].replace(f"{head}{old})", f"{head}{each.options})")
        texts |= plain
    return list(texts.items())


def module_name(protocol: str) -> str:
    """Return the callback module's name for *protocol*; Erlang takes it for an atom, Python for a module."""
    return "exproto_" + re.sub(r"\W", "_", protocol.lower())


def search_paths(target_folder: Path) -> list[str]:
    """Return what the broker's Python has to find: the app's folder, and what this Python has installed."""
    here = str(Path(__file__).resolve().parents[3])
    installed = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    return list(dict.fromkeys([str(target_folder), *installed, here]))


def files(
    target: str,
    modules: Sequence[tuple[str, str]],
    paths: Sequence[str],
    *,
    stock: bool,
    acl: bool,
    record: Record | None = None,
) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each file for *target* and its *modules*, pairs of name and protocol."""
    loader = "stock" if stock else "loop"
    for module, protocol in modules:
        options = ", acl=True" if acl else ""
        if record is not None:
            options += record.options(protocol if len(modules) > 1 else None)
        yield (
            f"{module}.py",
            _MODULE.format(
                protocol=protocol,
                name=_in_docstring(repr(protocol)),
                what=_in_docstring(target),
                target=target,
                mark=MARK,
                paths=list(paths),
                loader=loader,
                options=options,
            ),
        )
    if stock:
        yield "sitecustomize.py", f"{_STOCK_SITE.format(mark=MARK)}\n{_OTHERS}"
        return
    others = indent(_OTHERS.rstrip(), "    ")
    yield "sitecustomize.py", _SITE.format(mark=MARK) + _FIRST.format(others=others, loop=LOOP)
    yield f"{LOOP}/erlport/__init__.py", _PACKAGE.format(mark=MARK)
    yield f"{LOOP}/erlport/cli.py", _CLI.format(mark=MARK, paths=list(paths))


def _in_docstring(text: str) -> str:
    """Return *text* so that it neither ends a docstring nor escapes anything in it."""
    return escaped(text).replace("\\", "\\\\").replace('"', '\\"')


def write(out: Path, texts: Sequence[tuple[str, str]], *, force: bool) -> list[Written]:
    """Write *texts* into *out*. Raises `SetupError` for what can't be, or something else has written."""
    try:
        return _write(out, texts, force=force)
    except OSError as error:
        words = (error.strerror or str(error)).lower()
        raise SetupError(f"{error.filename or out} can't be written: {words}; choose another --out") from None


def _write(out: Path, texts: Sequence[tuple[str, str]], *, force: bool) -> list[Written]:
    for name, _ in texts:
        path = out / name
        if path.exists() and MARK not in path.read_text(errors="replace") and not force:
            raise SetupError(f"{path} was not written by gen-driver; choose another --out, or say --force")
    done = []
    for name, text in texts:
        path = out / name
        if path.exists() and path.read_text(errors="replace") == text:
            done.append(Written(path, "unchanged"))
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        done.append(Written(path, "written"))
    return done
