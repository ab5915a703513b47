"""All benchmarks, or those that are named: `python -m tests.bench [NAME…]`. Exit code 1 below a bar."""

from __future__ import annotations

import importlib
import importlib.util
import sys

from .figures import BELOW

NAMES = (
    "framing",
    "parsers",
    "gateway",
    "devices",
    "idle",
    "hub",
    "observe",
    "door",
    "tap",
    "inspector",
    "workers",
    "erlport",
    "grpc",
    "mqtt",
    "store",
    "blackbox",
    "children",
    "simulate",
    "hostile",
)


def main(names: list[str]) -> int:
    known = [name for name in NAMES if importlib.util.find_spec(f"{__package__}.{name}")]
    for name in names:
        if name not in known:
            print(f"there is no benchmark {name!r}; there are {', '.join(known)}", file=sys.stderr)
            return 2
    for name in names or known:
        importlib.import_module(f"{__package__}.{name}").main()
    if BELOW:
        print(f"below the bar: {', '.join(BELOW)}", file=sys.stderr)
    return 1 if BELOW else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
