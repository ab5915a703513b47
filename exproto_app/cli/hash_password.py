"""`exproto-app hash-password`: a line for the file of `run --users`."""

from __future__ import annotations

import sys

import click

from ..errors import SetupError
from ..hosts.gateway.users import hash_password

__all__ = ["command"]


@click.command()
@click.argument("name")
def command(name: str) -> None:
    """Print a line with NAME and the hash of a password, prompted for or read from standard input."""
    if ":" in name or name != name.strip() or not name or name.startswith("#"):
        raise SetupError(
            f"{name!r} isn't a valid name: it must not contain ':', start with '#' or have spaces around it"
        )
    if sys.stdin is None:
        password = ""
    elif sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\n")
    if not password:
        raise SetupError("the password is empty; give one")
    try:
        click.echo(f"{name}:{hash_password(password)}")
    except UnicodeEncodeError:
        raise SetupError("the password is not UTF-8 text") from None
