"""`python -m exproto_app` is the command `exproto-app`."""

from .cli import main

main(prog_name="exproto-app")
