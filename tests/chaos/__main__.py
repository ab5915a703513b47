"""`python -m tests.chaos [SECONDS [SEED]]`: three minutes of bad weather, another one each time."""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

from tests.mqtt.broker import MISSING

from .run import run


def main() -> int:
    if MISSING:
        sys.stdout.write(f"chaos needs {MISSING}\n")
        return 2
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 180.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)
    sys.stdout.write(f"{seconds:g} s of chaos, seed {seed}\n")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory(prefix="exproto-app-chaos-") as folder:
        report = run(Path(folder), seconds, seed=seed)
    sys.stdout.write("\n".join((report.figures, *report.wrong, "")))
    return bool(report.wrong)


sys.exit(main())
