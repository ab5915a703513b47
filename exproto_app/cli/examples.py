"""`exproto-app examples`: the example apps that come with the package."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

import click

from ..errors import SetupError

__all__ = ["command", "files_of"]

PACKAGE: Final = Path(__file__).parents[1]
FOLDERS: Final = (PACKAGE / "examples", PACKAGE.parent / "examples")
"""Where the examples are in a wheel, and in a clone."""


@click.command()
@click.argument("names", metavar="[NAME]…", nargs=-1)
@click.option(
    "--to",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    metavar="DIR",
    help="The folder to copy to; default: this one.",
)
def command(names: tuple[str, ...], to: Path) -> None:
    """Copy the examples NAME, and the examples that they import. Without NAME, list them."""
    folder = _folder()
    if not names:
        width = max(len(path.stem) for path in folder.glob("*.py"))
        click.echo("Examples; copy one with: exproto-app examples NAME\n")
        for path in sorted(folder.glob("*.py")):
            click.echo(f"  {path.stem:<{width}}  {_summary(path)}")
        return
    wanted = {path for name in names for path in files_of(name)}
    taken = [str(to / path.name) for path in sorted(wanted) if (to / path.name).exists()]
    if taken:
        verb = "exists" if len(taken) == 1 else "exist"
        raise SetupError(f"{', '.join(taken)} already {verb}; give another folder by --to")
    try:
        to.mkdir(parents=True, exist_ok=True)
        for path in sorted(wanted):
            (to / path.name).write_bytes(path.read_bytes())
            click.echo(f"wrote {to / path.name}")
    except OSError as error:
        raise SetupError(
            f"{error.filename} can't be written: {(error.strerror or str(error)).lower()}"
        ) from None


def files_of(name: str) -> list[Path]:
    """Return the file of the example called *name*, then those that it imports. Raises `SetupError`."""
    folder = _folder()
    stem = Path(name).name.removesuffix(".py").replace("-", "_").lower()
    path = folder / f"{stem}.py"
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in folder.glob("*.py")))
        raise SetupError(f"there is no example {name!r}; there are {known}")
    imported = [
        alias.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import)
        for alias in node.names
    ]
    return [path, *(folder / f"{one}.py" for one in imported if (folder / f"{one}.py").is_file())]


def _folder() -> Path:
    for folder in FOLDERS:
        if (folder / "echo.py").is_file():
            return folder
    raise SetupError("the examples aren't installed; install exproto-app from its wheel again")


def _summary(path: Path) -> str:
    """Return the first line of the example's docstring."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.partition("\n")[0].rstrip(".:")
