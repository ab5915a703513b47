"""`exproto-app gen-driver`: the callback modules for EMQX 4.2."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any, Final

import click

from ..app import App
from ..errors import ExprotoError, SetupError
from ..hosts.emqx42 import conf, generate
from ..tap import masking
from ..target import absolute, load
from .checks.driver import check_python, configured, fits
from .emqx_ports import Listener, split_listener
from .watching import MEGABYTE, chosen, mask_option, record_options

__all__ = ["command"]

TAKEN: Final = {*sys.stdlib_module_names, "attrs", "erlport", "exproto_app"}
"""Modules that a callback module of the same name would hide from the broker's Python."""


@click.command()
@click.argument("target")
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    metavar="NAME[,NAME…][=[udp://]:PORT]",
    help="Only these; default: all. Several with commas share a listener, told apart by their first bytes. "
    "The port, and tls://, udp:// or dtls:// before it, are for the configuration that is printed; one "
    "protocol may have several listeners.",
)
@click.option("--module", metavar="NAME", help="The callback module's name; for one protocol.")
@click.option("--python", metavar="PATH", help="The python3 that the broker will find; it is checked.")
@click.option("--stock", is_flag=True, help="Use the broker's own erlport loop; sync handlers only.")
@click.option("--acl", is_flag=True, help="Ask the broker's ACL before each publish and subscribe.")
@record_options
@mask_option
@click.option("--force", is_flag=True, help="Overwrite files that something else wrote.")
@click.option("--check", is_flag=True, help="Write nothing; check whether DIR is up to date.")
@click.option(
    "--conf",
    "conf_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="With --check: EMQX's emqx_exproto.conf. Default: where EMQX's packages put it.",
)
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
    conf_file: Path | None,
) -> None:
    """Write the callback modules of TARGET for EMQX 4.2 into DIR, and print the broker's configuration."""
    if conf_file is not None and not check:
        raise click.UsageError("--conf FILE is only read, by --check; redirect the output into it instead.")
    app = load(target)
    out = out.resolve()
    listeners = _listeners(app, protocols)
    modules = _modules(listeners, module)
    if stock:
        _fits_stock(app, acl=acl)
    full, folder = absolute(target)
    texts = list(
        generate.files(full, modules, generate.search_paths(folder), stock=stock, acl=acl, record=_record())
    )
    if check:
        names = dict.fromkeys((module for module, _ in modules), stock)
        findings = [*fits(out, texts, names, python), *configured(out, names, conf_file)]
        for finding in findings:
            click.echo(finding)
        count = sum(finding.outcome == "failed" for finding in findings)
        if count:
            raise ExprotoError(f"{count} of the checks failed")
        return
    if python is not None:
        check_python(python)
    for written in generate.write(out, texts, force=force):
        click.echo(f"{written.what}: {written.path}", err=True)
    click.echo("below: the whole emqx_exproto.conf; EMQX's own has a listener on port 7993 too", err=True)
    click.echo(conf.broker_config(out, _planned(listeners, modules)))


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


def _listeners(app: App[Any], texts: tuple[str, ...]) -> list[Listener]:
    """Read `--protocol`; what names no port has 0 for it."""
    listeners = []
    for text in texts or tuple(app.protocols) or (None,):
        if text is not None and "=" in text:
            listeners.append(split_listener(app, text))
        else:
            names = ",".join(router.name for router in app.find_protocols(text))
            listeners.append(Listener(0, "tcp", names))
    return listeners


def _planned(listeners: list[Listener], modules: list[tuple[str, str]]) -> list[conf.Planned]:
    """Return what EMQX is to be told; a listener without a port has the next one that is free."""
    named = {protocols: module for module, protocols in modules}
    taken = {(one.datagrams, one.port) for one in listeners}
    planned = []
    for one in listeners:
        port = one.port or next(
            port for port in range(conf.PORT, 65_536) if (one.datagrams, port) not in taken
        )
        taken.add((one.datagrams, port))
        planned.append(conf.Planned(named[one.protocols], one.protocols, port, one.kind))
    return planned


def _modules(listeners: list[Listener], module: str | None) -> list[tuple[str, str]]:
    for number, one in enumerate(listeners):
        for other in listeners[:number]:
            if one.port and (one.port, one.datagrams) == (other.port, other.datagrams):
                raise SetupError(
                    f"two --protocol name port {one.port}; EMQX can have only one listener there"
                )
            if one.protocols == other.protocols and not (one.port and other.port):
                raise SetupError(
                    f"--protocol {one.protocols} is given twice; add =:PORT to both, or leave one"
                )
    names = list(dict.fromkeys(one.protocols for one in listeners))
    if module is None:
        modules = [(generate.module_name(name), name) for name in names]
    elif len(names) > 1:
        raise SetupError(f"--module names one module, but {len(names)} would be written; add --protocol")
    elif not module.isidentifier() or not re.fullmatch(r"[a-z]\w*", module, re.ASCII):
        raise SetupError(
            f"--module {module!r} can't be an Erlang atom and a Python module; use [a-z][a-z0-9_]*"
        )
    elif module in TAKEN:
        raise SetupError(f"--module {module!r} is a Python module already; choose another name")
    else:
        modules = [(module, names[0])]
    doubled = {name for name, _ in modules if [known for known, _ in modules].count(name) > 1}
    if doubled:
        raise SetupError(
            f"two protocols would both be in {min(doubled)}.py; write them one by one, with --module"
        )
    return modules


def _fits_stock(app: App[Any], *, acl: bool) -> None:
    """Refuse what the broker's own loop, which has neither tasks nor timers, can't do."""
    if acl:
        raise SetupError(
            "--stock can't ask the broker's ACL, because its loop can't wait; leave out --stock or --acl"
        )
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
