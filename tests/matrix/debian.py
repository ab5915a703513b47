"""A Debian in a folder: made by debootstrap, entered with mounts that end with the command in it."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .steps import Steps

__all__ = ["SUITES", "build", "enter", "missing", "pip_settings"]

SUITES: Final = {"debian12": "bookworm", "debian13": "trixie", "debian14": "forky"}
"""Each row's release. Debian's next one is the last of them."""

MIRROR: Final = "http://deb.debian.org/debian"
"""Debian's own, for a machine whose sources name none."""

SCRIPTS: Final = Path("/usr/share/debootstrap/scripts")

# Mounts belong to this command alone, and its processes end with it: nothing is left to be cleaned up. The
# shell stays, being process 1 to them all: a test that waits for somebody else's child needs one that reaps.
_ENTER: Final = """
root=$1; shift
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
while [ "$1" != -- ]; do mkdir -p "$root$1"; mount --bind -o ro "$1" "$root$1"; shift; done
shift
chroot "$root" "$@" && exit || exit $?
"""


def missing() -> str:
    """Return what this machine lacks to run a Debian in a folder; nothing if it lacks nothing."""
    if os.geteuid() != 0:
        return "needs root"
    lacking = [name for name in ("debootstrap", "unshare", "chroot") if shutil.which(name) is None]
    if lacking:
        return f"needs {', '.join(lacking)}"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True, check=False
    )
    return f"can't have mounts of its own: {tried.stderr.strip()}" if tried.returncode else ""


def mirror(folder: Path = Path("/etc/apt")) -> str:
    """Return the mirror of Debian that this machine itself installs from, by the sources in *folder*."""
    sources = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]
    for path in sources:
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        for line in path.read_text(errors="replace").splitlines():
            found = re.match(r"(?:deb\s+(?:\[.*?\]\s+)?|URIs:\s*)(\w+://\S+/debian)/?(?:\s|$)", line)
            if found:
                return found[1]
    return MIRROR


def build(suite: str, root: Path, packages: Sequence[str], steps: Steps) -> None:
    """Make *suite* in the folder *root* with *packages*, unless it's there. Raises `UnavailableError`."""
    done = root / "etc" / "exproto-app-matrix"
    recipe = " ".join(packages)
    if done.is_file() and done.read_text() == recipe:
        return
    if not done.is_file():
        shutil.rmtree(root, ignore_errors=True)
        root.parent.mkdir(parents=True, exist_ok=True)
        script = SCRIPTS / suite
        # A debootstrap that is older than the suite makes it as it makes the newest one that it knows.
        arguments = [suite, str(root), mirror(), str(script if script.exists() else SCRIPTS / "sid")]
        steps.must(["debootstrap", "--variant=minbase", *arguments])
    settings = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    kept = re.findall(r"^Acquire::(?:https?::|Check-|Retries|ForceIPv).*;$", settings, re.MULTILINE)
    (root / "etc/apt/apt.conf.d/99matrix").write_text("\n".join(["", *kept, ""]))
    _share_network(root)
    apt = "export DEBIAN_FRONTEND=noninteractive; apt-get update -qq && apt-get install -y -qq"
    steps.must(enter(root, ["sh", "-c", f"{apt} --no-install-recommends {recipe} && apt-get clean"]))
    done.write_text(recipe)


def enter(root: Path, command: Sequence[str], *, folders: Sequence[Path] = ()) -> list[str]:
    """Return the command that runs *command* in *root*, where it also sees the machine's *folders*."""
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--", "sh", "-ec", _ENTER, "sh"]
    return [*unshare, str(root), *map(str, folders), "--", *command]


def pip_settings(root: Path) -> list[Path]:
    """Have pip in *root* find packages where this machine's pip does; return the folders that it needs."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    settings, folders = {}, []
    # Variables go before files.
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        key, _, value = line.partition("=")
        text = str(ast.literal_eval(value))
        settings[key.rpartition(".")[2]] = " ".join(text.split())
        for path in map(Path, re.findall(r"(?<![\w:/])/(?!/)[^\s]+|(?<=file://)/\S+", text)):
            if path.is_dir():
                # An index in a folder refers to files beside it.
                folders.append(path.parent if path.name == "simple" else path)
            elif path.is_file():
                _copy(path, root)
    lines = [f"{name} = {value}\n" for name, value in settings.items()]
    (root / "etc/pip.conf").write_text("".join(["[global]\n", *lines]))
    _share_network(root)
    return folders


def _share_network(root: Path) -> None:
    for name in ("/etc/resolv.conf", "/etc/hosts"):
        if Path(name).exists():
            _copy(Path(name), root)


def _copy(path: Path, root: Path) -> None:
    target = root / str(path).lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # it may be a link to somewhere
    shutil.copyfile(path, target)
