"""`exproto-app new`: a project to start with."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Final

import click

from ..errors import SetupError

__all__ = ["command"]

NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")

SCRIPT: Final = '''\
"""$title: devices that send lines of text, `IMEI VALUE`, and get `ok`.

Topics:

    devices/IMEI/up       what the device sends
    devices/IMEI/command  what is to be sent to it
"""

from __future__ import annotations

import attrs
from exproto_app import App, Connection, Message
from exproto_app.framing import Line


@attrs.define
class State:
    """What is known of a device."""

    imei: str = ""


app = App(framing=Line(limit=1024), state=State)
Conn = Connection[State]


@app.on_received
def on_line(conn: Conn, frame: bytes) -> None:
    name, _, value = frame.partition(b" ")
    if not conn.state.imei:
        conn.state.imei = name.decode()
        conn.register(conn.state.imei)
        conn.subscribe(f"devices/{conn.state.imei}/command", qos=1)
    # The device gets its answer when the broker has the message.
    conn.send(b"ok", after=conn.publish(f"devices/{conn.state.imei}/up", value, qos=1))


@app.on_deliver
def on_command(conn: Conn, message: Message) -> bytes:
    return message.payload
'''

TEST: Final = '''\
"""The app, tested as devices use it: in memory, in virtual time."""

from exproto_app.testing import TestClient

from $module import app


def test_a_value_is_published_and_answered() -> None:
    with TestClient(app) as device:
        device.send(b"860000000000001 21.5\\n")
        (message,) = device.published
        assert message.topic == "devices/860000000000001/up"
        assert message.payload == b"21.5"
        assert device.recv() == b"ok\\n"


def test_while_the_broker_is_away_nothing_is_acknowledged() -> None:
    with TestClient(app, broker="away") as device:
        device.send(b"860000000000001 21.5\\n")
        assert device.recv() == b""


def test_a_command_is_sent_to_the_device() -> None:
    with TestClient(app) as device:
        device.send(b"860000000000001 21.5\\n")
        device.recv()
        device.deliver("devices/860000000000001/command", b"reboot")
        assert device.recv() == b"reboot\\n"
'''

README: Final = """\
# $title

Devices on MQTT, by [exproto-app](https://pypi.org/project/exproto-app/).

```sh
python3 -m venv .venv && .venv/bin/pip install -r requirements.txt
.venv/bin/pytest                       # the tests
.venv/bin/exproto-app run $module.py   # serves devices on 127.0.0.1:7993
```

In another terminal, be a device: `nc 127.0.0.1 7993`, then type `860000000000001 21.5`.
`exproto-app guide` has the documentation.
"""

REQUIREMENTS: Final = """\
exproto-app>=$version
pytest>=8
"""

WORKFLOW: Final = """\
name: test
on: [push, pull_request]
jobs:
  test:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.13"
      - run: pip install -r requirements.txt
      - run: pytest
"""

IGNORE: Final = """\
.venv/
__pycache__/
.pytest_cache/
"""


@click.command()
@click.argument("name", metavar="NAME")
def command(name: str) -> None:
    """Write a project into the new folder NAME: a script, its test, a README, and a CI file."""
    folder = Path(name)
    title = folder.name
    module = title.replace("-", "_").lower()
    if not NAME.fullmatch(title):
        raise SetupError(f"invalid name {title!r}: use letters, digits, - and _, and begin with a letter")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or module == "exproto_app":
        raise SetupError(f"{module}.py would hide {module!r}, which Python needs; choose another name")
    if folder.exists():
        raise SetupError(f"{folder} already exists; choose another name, or remove it")
    facts = {"title": title, "module": module, "version": version("exproto-app")}
    files = {
        f"{module}.py": SCRIPT,
        f"test_{module}.py": TEST,
        "README.md": README,
        "requirements.txt": REQUIREMENTS,
        ".gitignore": IGNORE,
        ".github/workflows/test.yml": WORKFLOW,
    }
    try:
        for file, text in files.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(Template(text).substitute(facts), encoding="utf-8")
            click.echo(f"wrote {path}")
    except OSError as error:
        raise SetupError(
            f"{error.filename} can't be written: {(error.strerror or str(error)).lower()}"
        ) from None
    click.echo(f"next: cd {folder}; README.md has the commands")
