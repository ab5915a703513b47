"""The command line: one file a command, imported when it is called."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from importlib.metadata import version
from typing import Any, Final

import click

from ..errors import ExprotoError, SetupError
from ..names import escaped_lines

__all__ = ["main"]

COMMANDS: Final = {
    "run": "Serve an app on listeners of its own.",
    "serve": "Serve an app to the ExProto gateway of EMQX 4.3 to 6.2.",
    "routes": "Show an app's protocols, framings and handlers.",
    "decode": "Show what an app does with bytes given in hex.",
    "guess": "Guess a protocol's framing from what devices have sent.",
    "replay": "Feed a recording to an app and show what differs.",
    "simulate": "Play a recording's devices, many times over, against a server.",
    "export": "Write what other tools can use: a dissector for Wireshark, topics as AsyncAPI.",
    "gen-driver": "Write the callback modules for EMQX 4.2.",
    "doctor": "Check a set-up: what is wrong and how to fix it.",
    "new": "Write a project to start with: a script, its test, a README, a CI file.",
    "examples": "List the examples, or copy some.",
    "top": "Show what a running gateway does, in the terminal.",
    "store": "Show what waits in the folder of run --store.",
    "hash-password": "Make a line for the --users file.",
    "guide": "Read the guide, offline.",
}


FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What an output that takes nothing more fails with."""


class Commands(click.Group):
    """Imports a command when it is called, and reports the user's mistakes in a sentence."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command; an output that accepts nothing more is reported in a sentence too."""
        _open_standard_files()
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            if error.filename is not None or error.errno not in FULL:
                raise
            words = (error.strerror or str(error)).lower()
            click.echo(f"exproto-app: the output can't be written: {words}", err=True)
            # Else the interpreter would try to write the rest, and tell of that.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{cmd_name.replace('-', '_')}", __name__)
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ExprotoError as error:
            click.echo(f"exproto-app: {escaped_lines(str(error))}", err=True)
            sys.exit(2 if isinstance(error, SetupError) else 1)


def _open_standard_files() -> None:
    """Have the standard files be open, so that no connection becomes one, which libraries may print into."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # noqa: PERF203 - three times
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free: this one


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("exproto-app"), prog_name="exproto-app")
def main() -> None:
    """Bring devices with private TCP or UDP protocols to MQTT."""
