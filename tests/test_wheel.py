"""The wheel that users install."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.live

ROOT = Path(__file__).parent.parent


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_works_from_an_empty_environment(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "exproto_app/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "examples"))]
    assert not [name for name in names if "__pycache__" in name]

    venv.create(tmp_path / "env")
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--disable-pip-version-check", wheel)
    assert "default" in run(python, "-m", "exproto_app", "routes", ROOT / "examples" / "echo.py")
    assert "exproto-app" in run(python.parent / "exproto-app", "--version")
    exproto_app = python.parent / "exproto-app"
    run(exproto_app, "examples", "trackers", "--to", tmp_path / "copied")
    assert "gt06" in run(exproto_app, "routes", tmp_path / "copied" / "trackers.py")
    run(exproto_app, "new", tmp_path / "water-meters")
    assert "Line" in run(exproto_app, "routes", tmp_path / "water-meters" / "water_meters.py")
    for page in (ROOT / "exproto_app" / "guide").glob("*.md"):
        assert f"exproto_app/guide/{page.name}" in names
    assert run(exproto_app, "guide", "first").startswith("# First device\n")
