"""`exproto-app routes`: which handler takes what."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import click

from ..handlers import Handler
from ..router import Router
from ..target import load

__all__ = ["command"]


@click.command()
@click.argument("target")
def command(target: str) -> None:
    """Show the protocols of TARGET, their framings and handlers."""
    app = load(target)
    app.find_protocol(next(iter(app.protocols), None))
    for name, router in app.protocols.items():
        click.echo(f"{name}  {_framing(router)}")
        rows = [(handler.where, _function(handler)) for handler in router.routes]
        rows += [(f"child.{handler.where}", _function(handler)) for handler in router.child.routes]
        width = max(len(where) for where, _ in rows) if rows else 0
        for where, function in rows:
            click.echo(f"  {where:<{width}}  {function}")
    for handler in (*app.startup, *app.shutdown):
        click.echo(f"{handler.where}  {_function(handler)}")


def _framing(router: Router[Any]) -> str:
    text = repr(router.framing)
    if router.reply_framing is not router.framing:
        text += f", replies {router.reply_framing!r}"
    sniff = router.sniff
    if sniff is not None:
        rules = [getattr(sniff, "__qualname__", repr(sniff))] if callable(sniff) else map(repr, sniff)
        text += f", sniff {' '.join(rules)}"
    return text


def _function(handler: Handler) -> str:
    marks = [mark for mark, said in (("blocking", handler.blocking), ("batch", handler.batch)) if said]
    if inspect.iscoroutinefunction(handler.function):
        marks.insert(0, "async")
    code = getattr(inspect.unwrap(handler.function), "__code__", None)
    place = f"  {Path(code.co_filename).name}:{code.co_firstlineno}" if code is not None else ""
    return " ".join((*marks, handler.name)) + place
