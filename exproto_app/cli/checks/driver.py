"""Checks of what `gen-driver` wrote for EMQX 4.2, and of the Python that the broker will start."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from ...errors import SetupError
from ...hosts.emqx42 import conf, generate
from ...target import absolute
from .finding import Finding, failed, ok, skipped
from .setup import Setup

__all__ = ["check_python", "configured", "driver", "fits"]

_OWN: Final = "protoname is EMQX's example, which nobody needs"

_PROBE: Final = "import sys, json; print(json.dumps([*sys.version_info[:2], sys.executable]))"


def driver(setup: Setup) -> Iterator[Finding]:
    """See whether the callback modules in the folder of `--driver` still fit the app."""
    if setup.driver is None:
        yield skipped("driver", "no EMQX 4.2: no --driver")
        return
    out = setup.driver.resolve()
    written = generate.written(out)
    if not written:
        remedy = f"run exproto-app gen-driver {setup.target} --out {out}"
        yield failed("driver.files", f"{out} has no callback module of gen-driver", remedy)
        return
    for each in written:
        try:
            if setup.app is not None:
                setup.app.find_protocols(each.protocol)
        except SetupError as error:  # noqa: PERF203 - a few times
            yield failed("driver.files", f"{each.module}.py: {error}", "remove it, or correct the app")
    full, folder = absolute(setup.target)
    texts = generate.again(full, written, generate.search_paths(folder))
    modules = {each.module: each.stock for each in written}
    yield from fits(out, texts, modules, setup.python)
    yield from configured(out, modules, setup.conf)


def fits(
    out: Path, texts: Sequence[tuple[str, str]], modules: Mapping[str, bool], python: str | None
) -> Iterator[Finding]:
    """See whether *out* has *texts*, by name, and whether the broker's *python* can import *modules*.

    Of each module it is said whether it is for the broker's own loop (`--stock`). Without *python* it is the
    one on the PATH.
    """
    for name, text in texts:
        path = out / name
        if not path.is_file():
            yield failed("driver.files", f"{path}: missing", "run gen-driver again")
        elif path.read_text(errors="replace") != text:
            yield failed(
                "driver.files", f"{path}: differs from what would be written now", "run gen-driver again"
            )
        else:
            yield ok("driver.files", str(path))
    broker_python = python or shutil.which("python3")
    if broker_python is None:
        yield failed("driver.python", "python3 is not on the PATH; the broker needs it")
        return
    try:
        major, minor = check_python(broker_python)
    except SetupError as error:
        yield failed("driver.python", f"{broker_python}: {error}")
        return
    yield ok("driver.python", f"{broker_python} is Python {major}.{minor}")
    for module, stock in modules.items():
        if stock:  # it needs functions of erlport that only the broker's own copy has
            yield skipped("driver.import", f"import {module}: only the broker can, which has its erlport")
            continue
        problem = _import_problem(broker_python, out, module)
        if problem:
            yield failed("driver.import", f"import {module}: {problem}")
        else:
            yield ok("driver.import", f"import {module}")


def configured(out: Path, modules: Iterable[str], path: Path | None) -> Iterator[Finding]:
    """See whether EMQX serves *modules* from *out*, by its configuration (*path*, or a package's)."""
    path = path or next((known for known in conf.KNOWN if known.is_file()), None)
    if path is None:
        yield skipped("driver.conf", "emqx_exproto.conf: not found here", "give it as --conf FILE")
        return
    try:
        listeners = conf.listeners(path)
    except SetupError as error:
        yield failed("driver.conf", str(error), "give EMQX's etc/plugins/emqx_exproto.conf as --conf FILE")
        return
    for first, second in conf.clashes(listeners):
        text = f"{path}: {first.name} and {second.name} both have port {first.url.rpartition(':')[2]}"
        yield failed("driver.conf", f"{text}, so the plugin doesn't start", f"remove one; {_OWN}")
    for module in modules:
        ours = [each for each in listeners if each.options.get("driver_callback_module", "main") == module]
        if not ours:
            remedy = "add what gen-driver prints"
            yield failed("driver.conf", f"{path}: no listener has {module}", remedy)
        for listener in ours:
            yield from _listener(path, listener, out)


def _listener(path: Path, listener: conf.Listener, out: Path) -> Iterator[Finding]:
    """See whether *listener* is complete, and serves enough devices."""
    name = f"{path}: {listener.name}"
    wrong = []
    if listener.port is None:
        wrong.append((f"has no address that EMQX knows: {listener.url}", "tcp, ssl, udp or dtls://IP:PORT"))
    if listener.options.get("driver") != "python3":
        wrong.append((f"has the driver {listener.options.get('driver')}", "driver = python3"))
    folder = listener.options.get("driver_search_path", "")
    if Path(folder).resolve() != out:
        what = f"looks in {folder or 'no folder'}, not in {out} alone"
        wrong.append((what, f"driver_search_path = {out}"))
    if listener.secure and not {"ciphers", "psk_ciphers"} & {*listener.options}:
        wrong.append(("has no ciphers, without which EMQX refuses the file", "ciphers = …"))
    for text, remedy in wrong:
        yield failed("driver.conf", f"{name} {text}", remedy)
    if not wrong:
        yield ok("driver.conf", f"{name} = {listener.url}")
    for option, value, what in listener.low():
        yield ok("driver.limits", f"{name} is low in {what}: {value}", f"{option} = {conf.GOOD[option]}")


def check_python(python: str) -> tuple[int, int]:
    """Return the version of *python*. Raises `SetupError` if our packages don't fit it."""
    try:
        done = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, timeout=30, check=True)  # noqa: S603 - the user names it
        major, minor, _ = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        raise SetupError(f"{python} can't be run as Python; give the path of the broker's python3") from None
    here = sys.version_info[:2]
    if (major, minor) != here:
        text = f"{python} is Python {major}.{minor}, but exproto-app is installed for {here[0]}.{here[1]}"
        raise SetupError(f"{text}; install it with that python3 and run gen-driver from there")
    return major, minor


def _import_problem(python: str, out: Path, module: str) -> str:
    code = f"import sys; sys.path.insert(0, {str(out)!r}); import {module}"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 - as above
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    lines = done.stderr.strip().splitlines()
    return lines[-1] if done.returncode and lines else ""
