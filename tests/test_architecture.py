"""The layers: a module imports only what stands above it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import exproto_app

ROOT = Path(exproto_app.__file__).parent

# From the top down; a package stands for all that is in it.
LAYERS = (
    "errors",
    "names",
    "views",
    "models",
    "addresses",
    "topics",
    "properties",
    "commands",
    "checksums",
    "framing",
    "guessing",
    "codec",
    "runtime",
    "masking",
    "tap",
    "verb_arguments",
    "connection",
    "signatures",
    "handlers",
    "routes",
    "options",
    "router",
    "app",
    "exporting",
    "core",
    "traffic",
    "ops",
    "store",
    "asyncio_host",
    "hub",
    "inspector",
    "target",
    "testing",
    "simulating",
    "top",
    "hosts",
    "drivers",
    "cli",
)
SANS_IO = LAYERS[: LAYERS.index("traffic")]
SANS_IO_PARTS = (
    "traffic.hexdump",
    "traffic.recording",
    "hosts.gateway.modem_line",
    "hosts.gateway.room",
    "hosts.gateway.serial_line",
    "hosts.gateway.unread",
    "hosts.gateway.websocket_line",
    "hosts.http2.budget",
    "hosts.http2.connection",
    "hosts.http2.endpoint",
    "hosts.http2.flow_control",
    "hosts.http2.frames",
    "hosts.http2.header_blocks",
    "hosts.mqtt.cluster",
    "hosts.mqtt.connecting",
    "hosts.mqtt.dialects",
    "hosts.mqtt.flights",
    "hosts.mqtt.incoming",
    "hosts.mqtt.keepalive",
    "hosts.mqtt.outgoing",
    "hosts.mqtt.packets",
    "hosts.mqtt.reasons",
    "hosts.mqtt.session",
    "hosts.mqtt.suspicion",
    "hosts.mqtt.versions",
    "store.records",
    "hosts.mqtt_server.bounds",
    "hosts.mqtt_server.broker",
    "hosts.mqtt_server.checks",
    "hosts.mqtt_server.codec",
    "hosts.mqtt_server.connection",
    "hosts.mqtt_server.exchange",
    "hosts.mqtt_server.inbound",
    "hosts.mqtt_server.packets",
    "hosts.mqtt_server.properties",
    "hosts.mqtt_server.reasons",
    "hosts.mqtt_server.session",
    "ops.backoff",
    "simulating.identities",
    "simulating.script",
)
"""What does no I/O either, in packages that do."""

FORBIDDEN = {"asyncio", "socket", "threading", "selectors", "time", "grpc", "erlport", "concurrent", "uvloop"}


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(ROOT.rglob("*.py"))
    if path.parent != ROOT or not path.name.startswith("__")
}


def imports(path: Path) -> Iterator[str]:
    """Yield every module that *path* imports, for types too; ours as `exproto_app.x`."""
    package = ("exproto_app", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join((*base, *filter(None, [node.module])))
            if name == "exproto_app":
                yield from (f"exproto_app.{alias.name}" for alias in node.names)
            else:
                yield name


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_stands_above_it(name: str) -> None:
    layer = LAYERS.index(name.split(".", maxsplit=1)[0])
    for imported in imports(MODULES[name]):
        if not imported.startswith("exproto_app."):
            continue
        other = imported.split(".")[1]
        assert LAYERS.index(other) <= layer, f"{name} imports {imported}, which stands below it"


@pytest.mark.parametrize("name", MODULES)
def test_the_core_and_what_stands_above_do_no_io_and_read_no_clock(name: str) -> None:
    if name.split(".", maxsplit=1)[0] in SANS_IO:
        assert not {imported.split(".")[0] for imported in imports(MODULES[name])} & FORBIDDEN


def test_no_files_of_the_core_import_each_other_in_a_circle() -> None:
    """Not even for types."""
    names = [name for name in MODULES if name.startswith("core.") and name != "core.__init__"]
    uses = {
        name: {
            f"core.{one.split('.')[2]}"
            for one in imports(MODULES[name])
            if one.startswith("exproto_app.core.")
        }
        for name in names
    }
    while uses:
        free = [name for name, others in uses.items() if not others & uses.keys() - {name}]
        assert free, f"a circle among {sorted(uses)}"
        for name in free:
            del uses[name]


@pytest.mark.parametrize("name", SANS_IO_PARTS)
def test_a_protocol_of_a_host_is_sans_io_too(name: str) -> None:
    assert not {imported.split(".")[0] for imported in imports(MODULES[name])} & FORBIDDEN


@pytest.mark.live
def test_importing_the_package_imports_attrs_alone() -> None:
    code = (
        "import sys; before = set(sys.modules); import exproto_app;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "print(*sorted(name for name in new if name not in sys.stdlib_module_names), sep=',');"
        "print('asyncio' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["attr,attrs,exproto_app", "False"]


def test_the_package_exports_what_its_modules_offer_users() -> None:
    assert exproto_app.__all__ == sorted(exproto_app.__all__)
    for name in exproto_app.__all__:
        value = getattr(exproto_app, name)
        assert name in sys.modules[value.__module__].__all__
