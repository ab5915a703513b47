"""Finds the app that a command is given: a file or a module, and a name in it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from .app import App
from .errors import ExprotoError, SetupError

__all__ = ["ImportFailed", "absolute", "load", "split"]


class ImportFailed(ExprotoError):  # noqa: N818 - it is told, not handled
    """The user's file raised an exception while it was imported; the text is its own traceback."""


def split(target: str) -> tuple[str, str]:
    """Return the file or module of *target* and the app's name in it, `app` if it says none."""
    path, separator, name = target.rpartition(":")
    if not separator or "/" in name or "\\" in name:  # C:\devices.py is a file
        return target, "app"
    return path, name or "app"


def absolute(target: str) -> tuple[str, Path]:
    """Return *target* so that it is found from anywhere, and the folder to be found by imports."""
    where, name = split(target)
    if os.path.isfile(where):  # noqa: PTH113 - Path raises for a name that is too long
        path = Path(where).resolve()
        return (str(path) if name == "app" else f"{path}:{name}"), path.parent
    return target, Path.cwd()


def load(target: str) -> App[Any]:
    """Import *target*, `path/to/file.py` or `package.module`, with `:name` where the app isn't called `app`.

    Raises `SetupError` for what isn't there, and `ImportFailed` for what the file itself raises.
    """
    where, name = split(target)
    if not where:
        raise SetupError("TARGET has no file name; give the path of the script that has the app")
    try:
        module = _import_file(Path(where)) if _is_file(where) else _import_module(where)
    except SystemExit as error:
        remedy = 'put what isn\'t the app under: if __name__ == "__main__"'
        raise SetupError(f"{where}: importing it ends the program ({error.code}); {remedy}") from None
    found = getattr(module, name, None)
    if isinstance(found, App):
        return found
    apps = [key for key, value in vars(module).items() if isinstance(value, App)]
    if found is not None:
        what = f"{name!r} in {where} is {type(found).__name__}, not an App"
    else:
        what = f"{where} has no {name!r}"
    if apps:
        raise SetupError(f"{what}; did you mean {where}:{apps[0]}?")
    raise SetupError(f"{what}; it needs a line such as: {name if name.isidentifier() else 'app'} = App()")


def _is_file(where: str) -> bool:
    return where.endswith(".py") or "/" in where or "\\" in where or os.path.isfile(where)  # noqa: PTH113 - as above


def _import_file(path: Path) -> ModuleType:
    if not os.path.isfile(path):  # noqa: PTH113 - as above
        raise SetupError(f"there is no file {path}; give the path of the script that has the app")
    path = path.resolve()
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # Under its own name, so that files beside it can import it, unless that is somebody else's.
    name = path.stem if path.stem not in sys.modules else f"exproto_app_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SetupError(f"{path} is not a Python file; its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # noqa: BLE001 - whatever the user's file raises is shown
        del sys.modules[name]
        raise _failed(str(path), error) from None
    return module


def _import_module(name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            hint = f"; did you mean {name}.py?" if Path(f"{name}.py").is_file() else ""
            raise SetupError(
                f"there is no module {name!r} here or among the installed packages{hint}"
            ) from None
        raise _failed(name, error) from None
    except Exception as error:  # noqa: BLE001 - whatever the user's module raises is shown
        raise _failed(name, error) from None


def _failed(where: str, error: Exception) -> ExprotoError:
    """Return the error that tells about *error* in the user's words: their lines, and none of ours."""
    if isinstance(error, OSError) and error.filename == where:
        return SetupError(f"{where} can't be read: {(error.strerror or str(error)).lower()}")
    frames = traceback.extract_tb(error.__traceback__)
    own = str(Path(__file__).parent)
    theirs = [
        frame
        for frame in frames
        if "importlib" not in frame.filename and not frame.filename.startswith((own, "<attrs generated"))
    ]
    if isinstance(error, SetupError):
        line = f"{theirs[-1].filename}:{theirs[-1].lineno}: " if theirs else ""
        return SetupError(f"{line}{error}")
    shown = ["Traceback (most recent call last):\n", *traceback.format_list(theirs)] if theirs else []
    shown += traceback.format_exception_only(type(error), error)
    return ImportFailed(f"{where} can't be imported:\n" + "".join(shown).rstrip())
