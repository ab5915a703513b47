"""Secrets of the command line, from files and variables: other users of a machine see its command lines."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

import click

from ..errors import SetupError
from ..ops.certificates import KEY_PASSWORD, KEY_PASSWORD_FILE, read_secret

__all__ = ["MQTT_PASSWORD", "key_password_option", "read_secret", "take_into", "with_password"]

MQTT_PASSWORD: Final = "EXPROTO_MQTT_PASSWORD"  # noqa: S105 - the name of a variable
"""The variable with the gateway's own password at the broker."""


def take_into(variable: str) -> Callable[[click.Context, click.Parameter, str | None], None]:
    """Return a callback of an option with a secret's file: the secret goes into the environment.

    Whoever needs it finds it there, processes that are begun from here too.
    """

    def take(_: click.Context, parameter: click.Parameter, file: str | None) -> None:
        if file is not None:
            os.environ[variable] = read_secret(file, parameter.opts[0])

    return take


def _take_key_password(_: click.Context, parameter: click.Parameter, file: str | None) -> None:
    """Have the file's name be in the environment: it may have another password when the key is renewed."""
    if file is not None:
        read_secret(file, parameter.opts[0])
        os.environ[KEY_PASSWORD_FILE] = file


def with_password(url: str | None, file: str | None) -> str | None:
    """Return the broker's *url* with the password in *file*, or in `EXPROTO_MQTT_PASSWORD`, if there is one.

    Raises `SetupError`.
    """
    option = "--mqtt-password-file" if file else MQTT_PASSWORD
    password = read_secret(file, option) if file else os.environ.get(MQTT_PASSWORD)
    if url is None or not password:
        return url
    scheme, separator, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    if ":" in user:
        if file:
            raise SetupError(
                "the broker's URL already has a password; leave out that or --mqtt-password-file"
            )
        return url
    if not at or not separator:
        raise SetupError(f"{option} needs a user; write the broker's URL like mqtt://USER@HOST")
    return f"{scheme}://{user}:{quote(password, safe='')}@{host}"


key_password_option: Callable[[Any], Any] = click.option(
    "--key-password-file",
    metavar="FILE",
    callback=_take_key_password,
    expose_value=False,
    help=f"The password of encrypted keys, in the file's first line; or set {KEY_PASSWORD}.",
)
