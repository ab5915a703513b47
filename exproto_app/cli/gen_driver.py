"""`exproto-app gen-driver`: the callback modules for EMQX 4.2."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import click

from ..app import App
from ..drivers.erlport import generate
from ..errors import ExprotoError, SetupError
from ..tap import masking
from ..target import load, split
from .watching import MEGABYTE, chosen, mask_option, record_options

__all__ = ["command"]


@click.command()
@click.argument("target")
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    metavar="NAME[,NAME…]",
    help="Only these; default: all. Several with commas share a listener, told apart by their first bytes.",
)
@click.option("--module", metavar="NAME", help="The callback module's name; for one protocol.")
@click.option("--python", metavar="PATH", help="The python3 that the broker will find; it is checked.")
@click.option("--stock", is_flag=True, help="Use the broker's own erlport loop; sync handlers only.")
@click.option("--acl", is_flag=True, help="Ask the broker's ACL before each publish and subscribe.")
@record_options
@mask_option
@click.option("--force", is_flag=True, help="Overwrite files that something else wrote.")
@click.option("--check", is_flag=True, help="Write nothing; tell whether DIR still fits.")
def command(
    target: str,
    *,
    out: Path,
    protocols: tuple[str, ...],
    module: str | None,
    python: str | None,
    stock: bool,
    acl: bool,
    force: bool,
    check: bool,
) -> None:
    """Write the callback modules of TARGET for EMQX 4.2 into DIR, and print the broker's configuration."""
    app = load(target)
    out = out.resolve()
    modules = _modules(app, protocols, module)
    if stock:
        _fits_stock(app, acl=acl)
    full, folder = _absolute(target)
    texts = list(
        generate.files(full, modules, generate.search_paths(folder), stock=stock, acl=acl, record=_record())
    )
    if check:
        _check(out, texts, modules, python)
        return
    if python is not None:
        _check_python(python)
    for written in generate.write(out, texts, force=force):
        click.echo(f"{written.what}: {written.path}", err=True)
    click.echo(generate.broker_config(out, modules))


def _record() -> generate.Record | None:
    """Return what the options say about a recording."""
    values = chosen()
    masks = tuple(values["masks"])
    for pattern in masks:
        masking(pattern)  # a mistake is told here rather than in the broker's log
    if values["record"] is None:
        return None
    size = int(values["record_size"] * MEGABYTE)
    return generate.Record(values["record"].resolve(), size, values["record_keep"], masks)


def _modules(app: App[Any], protocols: tuple[str, ...], module: str | None) -> list[tuple[str, str]]:
    choices = [app.find_protocols(name) for name in protocols or tuple(app.protocols) or (None,)]
    names = [",".join(router.name for router in routers) for routers in choices]
    if module is None:
        modules = [(generate.module_name(name), name) for name in names]
    elif len(names) > 1:
        raise SetupError(f"--module names one module, but {len(names)} would be written; add --protocol")
    elif not module.isidentifier() or not re.fullmatch(r"[a-z]\w*", module, re.ASCII):
        raise SetupError(
            f"--module {module!r} can't be an Erlang atom and a Python module; use [a-z][a-z0-9_]*"
        )
    else:
        modules = [(module, names[0])]
    doubled = {name for name, _ in modules if [known for known, _ in modules].count(name) > 1}
    if doubled:
        raise SetupError(
            f"two protocols would both be in {min(doubled)}.py; write them one by one, with --module"
        )
    return modules


def _absolute(target: str) -> tuple[str, Path]:
    """Return *target* so that it is found from anywhere, and the folder to be found by imports."""
    where, name = split(target)
    path = Path(where)
    if path.is_file():
        path = path.resolve()
        return (str(path) if name == "app" else f"{path}:{name}"), path.parent
    return target, Path.cwd()


def _fits_stock(app: App[Any], *, acl: bool) -> None:
    """Refuse what the broker's own loop, which has neither tasks nor timers, can't do."""
    if acl:
        raise SetupError("--stock can't ask the broker's ACL, its loop can't wait; leave one of them out")
    handlers = [handler for router in app.protocols.values() for handler in router.routes]
    for handler in (*handlers, *app.startup, *app.shutdown):
        if inspect.iscoroutinefunction(handler.function):
            raise SetupError(
                f"--stock runs no async handler such as {handler.name}; make it a def, or leave --stock out"
            )
        if handler.blocking:
            raise SetupError(f"--stock has no threads for {handler.name} (blocking=True); leave --stock out")
        if handler.where.startswith(("every(", "on_timeout")):
            raise SetupError(f"--stock has no timers for {handler.name} ({handler.where}); leave --stock out")


_PROBE: Final = "import sys, json; print(json.dumps([*sys.version_info[:2], sys.executable]))"


def _check_python(python: str) -> tuple[int, int]:
    """Return the version of *python*. Raises `SetupError` if our packages don't fit it."""
    try:
        done = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, timeout=30, check=True)  # noqa: S603 - the user names it
        major, minor, _ = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        raise SetupError(
            f"{python} can't be started as a Python; give the path of the broker's python3"
        ) from None
    here = sys.version_info[:2]
    if (major, minor) != here:
        text = f"{python} is Python {major}.{minor}, but exproto-app is installed for {here[0]}.{here[1]}"
        raise SetupError(f"{text}; install it with that python3 and run gen-driver from there")
    return major, minor


def _check(
    out: Path, texts: list[tuple[str, str]], modules: list[tuple[str, str]], python: str | None
) -> None:
    """Tell, a line each, whether what is in *out* still fits. Raises `ExprotoError` if not."""
    failed = 0

    def tell(text: str, problem: str = "") -> None:
        nonlocal failed
        failed += bool(problem)
        click.echo(f"{'✗' if problem else '✓'} {text}{': ' if problem else ''}{problem}")

    for name, text in texts:
        path = out / name
        if not path.is_file():
            tell(str(path), "missing; run gen-driver again")
        else:
            same = path.read_text(errors="replace") == text
            tell(str(path), "" if same else "differs from what would be written now; run gen-driver again")
    broker_python = python or shutil.which("python3")
    if broker_python is None:
        tell("python3", "there is none on the PATH; the broker needs one")
    else:
        try:
            major, minor = _check_python(broker_python)
            tell(f"{broker_python} is Python {major}.{minor}")
            for module, _ in modules:
                tell(f"import {module}", _import_problem(broker_python, out, module))
        except SetupError as error:
            tell(broker_python, str(error))
    if failed:
        raise ExprotoError(f"{failed} of the checks failed")


def _import_problem(python: str, out: Path, module: str) -> str:
    code = f"import sys; sys.path.insert(0, {str(out)!r}); import {module}"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 - as above
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    lines = done.stderr.strip().splitlines()
    return lines[-1] if done.returncode and lines else ""
