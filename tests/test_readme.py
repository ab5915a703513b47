"""The README's code is run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_hello_world_is_the_echo_example() -> None:
    example = (Path(__file__).parent.parent / "examples" / "echo.py").read_text()
    code = example[example.index("from exproto_app") :]
    assert BLOCKS[0].split() == code.split()


def test_every_block_runs_on_what_stands_above_it() -> None:
    names: dict[str, object] = {"__name__": "readme"}
    hello, protocols, framings, own_framing, codec, testing = BLOCKS
    exec(compile(hello, "README.md", "exec"), names)
    exec(compile(testing, "README.md", "exec"), names)
    test = names["test_echo"]
    assert callable(test)
    test()
    for block in (protocols, framings, own_framing, codec):
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
