"""How much of the core the suite runs, by line and by branch: `make coverage`, after its report."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

CORE = ("exproto_app/core",)
BEFORE = ("exproto_app/channel", "exproto_app/engine.py")
"""What is printed, and held to nothing, where there is no core."""


def main() -> int:
    """Print the core's coverage; return 1 if it is below the bar."""
    parser = argparse.ArgumentParser(prog="python -m tests.covered", description=__doc__)
    parser.add_argument("--fail-under", type=float, default=95, metavar="PERCENT")
    bar = parser.parse_args().fail_under
    command = [sys.executable, "-m", "coverage", "json", "--quiet", "-o", "-"]
    files = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["files"]
    held = Path(CORE[0]).is_dir()
    counted = [file["summary"] for name, file in files.items() if name.startswith(CORE if held else BEFORE)]
    lines = share(counted, "covered_lines", "num_statements")
    branches = share(counted, "covered_branches", "num_branches")
    told = f"the bar is {bar:g} %" if held else "no bar before there is a core"
    print(
        f"{', '.join(CORE if held else BEFORE)}: {lines:.1f} % of lines, {branches:.1f} % of branches; {told}"
    )
    return int(held and min(lines, branches) < bar)


def share(counted: list[dict[str, int]], part: str, whole: str) -> float:
    """Return the percentage that *part* is of *whole*, over all files."""
    total = sum(summary[whole] for summary in counted)
    return 100 * sum(summary[part] for summary in counted) / total if total else 0.0


if __name__ == "__main__":
    sys.exit(main())
