"""Our driver for EMQX 4.2 on a real Erlang VM, beside a driver in C that only echoes, and the old SDK's way.

Run it as `python -m tests.bench erlport`. Erlang processes, each in a closed loop, call `received` with 64
bytes and wait for the echo. All drivers run in one VM and take turns; a ratio is the median of its rounds'.

The C driver is too quick for its own good: it finds few calls a read, and the VM spends its time on small
writes. So ours may be above 1. `limit` is the best that the C driver does when it rests before each read.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from exproto_app.hosts.emqx42 import generate
from exproto_app.hosts.emqx42.terms import Atom
from tests.erlang.broker import MISSING, Broker, Vm, running

from .figures import show

__all__ = ["main"]

SIZE = 64  # bytes of a frame
ROUNDS = 5
SECONDS = 0.4
RESTS = (20, 50, 200)  # microseconds
BARS = {10: 0.5, 100: 0.5, 1_000: 0.9}
SDK_BAR = 4.0
SDK_MOST = 100  # above 123 devices at once it dies

ECHO = """
from exproto_app import App, Connection
from exproto_app.framing import Line

app = App(framing=Line())

@app.on_received
def echo(conn: Connection, frame: bytes) -> bytes:
    return frame
"""

SDK = '''
"""What a driver on the broker's own loop does, verb by verb: it calls, and waits for the answer."""

from emqx.erlport import erlang
from emqx.erlport.erlterms import Atom

UNDEFINED = Atom(b"undefined")


def init(conn, info):
    return 0, UNDEFINED


def received(conn, data, state):
    erlang.call(Atom(b"emqx_exproto"), Atom(b"send"), [conn, data])
    return 0, state


def terminated(conn, reason, state):
    return UNDEFINED
'''


def main() -> None:
    """Print a line for each figure."""
    gcc = shutil.which("gcc") or shutil.which("cc")
    if MISSING or gcc is None:
        print(f"erlport skipped: no {MISSING or 'C compiler'}")
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        vm = stack.enter_context(running(folder))
        drivers = dict(_drivers(vm, stack, folder, gcc))
        for count, bar in BARS.items():
            _loops(vm, drivers, count, bar)
        _burst(vm, drivers["ours"])


def _drivers(vm: Vm, stack: ExitStack, folder: Path, gcc: str) -> Iterator[tuple[str, Broker]]:
    """Start every driver that this machine can."""
    program = folder / "null_driver"
    source = Path(__file__).with_name("null_driver.c")
    subprocess.run([gcc, "-O2", "-o", str(program), str(source)], check=True)
    yield "null", stack.enter_context(_started(vm, "null", [], executable=[str(program)]))
    for rest in RESTS:
        command = [str(program), str(rest)]
        yield f"rest{rest}", stack.enter_context(_started(vm, "null", [], executable=command))
    app = folder / "app" / "device.py"
    app.parent.mkdir()
    app.write_text(ECHO)
    out = folder / "ours"
    module = generate.module_name("default")
    paths = generate.search_paths(app.parent)
    texts = list(generate.files(str(app), [(module, "default")], paths, stock=False, acl=False))
    generate.write(out, texts, force=False)
    yield "ours", stack.enter_context(_started(vm, module, [out]))
    python = _python_310()
    if python is None:
        print("erlport the old SDK's way is left out: it needs Python 3.10 or older, found none", flush=True)
        return
    import emqx  # type: ignore[import-untyped] # noqa: PLC0415 - only to find it

    sdk = folder / "sdk"
    shutil.copytree(Path(emqx.__file__).parent, sdk / "emqx", ignore=shutil.ignore_patterns("__pycache__"))
    (sdk / "sdk_way.py").write_text(SDK)
    yield "sdk", stack.enter_context(_started(vm, "sdk_way", [sdk], python=python, loop="emqx.erlport.cli"))


@contextmanager
def _started(
    vm: Vm,
    module: str,
    path: list[Path],
    *,
    python: str = sys.executable,
    loop: str = "erlport.cli",
    executable: list[str] | None = None,
) -> Iterator[Broker]:
    broker = Broker(vm, module, path, python=python, loop=loop, executable=executable)
    try:
        yield broker
    finally:
        broker.stop()
    if broker.downs or broker.faults:
        raise RuntimeError(f"{module}: {broker.downs} {broker.faults}\n{broker.log}")


def _python_310() -> str | None:
    candidates = [*Path.home().glob(".pyenv/versions/3.10*/bin/python3"), shutil.which("python3.10")]
    return next((str(found) for found in candidates if found is not None), None)


def _loops(vm: Vm, drivers: dict[str, Broker], count: int, bar: float) -> None:
    """Let the drivers take turns with *count* devices each."""
    names = [name for name in drivers if name != "sdk" or count <= SDK_MOST]
    rates: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(ROUNDS + 1):
        for name in names:
            command = (Atom("loops"), drivers[name].id, count, SIZE, int(SECONDS * 1000))
            done, least, took = vm.request(*command, patience=60)
            if not least:
                raise RuntimeError(f"{name}: a device of {count} got nothing through\n{drivers[name].log}")
            if turn:  # the first round warms up
                rates[name].append(done / took * 1e6)
    rested = [name for name in names if name.startswith(("null", "rest"))]
    limit = max(rested, key=lambda name: statistics.median(rates[name]))
    rate = f"{statistics.median(rates[limit]):.0f}"
    show(f"erlport_limit_{count}", rate, "msg/s", note=f"of={limit} devices={count}")
    for name in names:
        if name.startswith("rest"):
            continue
        rate = f"{statistics.median(rates[name]):.0f}"
        about = f"devices={count}"
        if name in ("null", "sdk"):
            show(f"erlport_{name}_{count}", rate, "msg/s", note=about)
            continue
        ratio = _ratio(rates[name], rates["null"])
        show(f"erlport_{name}_{count}", rate, "msg/s", ratio=ratio, bar=bar, note=f"of=null {about}")
        ratio = _ratio(rates[name], rates[limit])
        show(f"erlport_{name}_{count}_limit", rate, "msg/s", ratio=ratio, note=f"of=limit {about}")
        if "sdk" in names:
            ratio = _ratio(rates[name], rates["sdk"])
            figure = f"erlport_{name}_{count}_sdk"
            show(figure, rate, "msg/s", ratio=ratio, bar=SDK_BAR, note=f"of=sdk {about}")


def _ratio(ours: list[float], other: list[float]) -> float:
    return statistics.median(mine / theirs for mine, theirs in zip(ours, other, strict=True))


def _burst(vm: Vm, broker: Broker) -> None:
    """Call for 10,000 connections at once: nothing is lost, memory stays."""
    sizes, whole = [], True
    for _ in range(4):
        outcomes = vm.request(Atom("burst"), broker.id, 10_000, 3, patience=60)
        whole = whole and outcomes == [("true", "true")] * 3
        sizes.append(_resident(broker.ups[-1]))
    good = whole and len(broker.ups) == 1
    note = "callbacks at once, each answered" if good else "LOST"
    show("erlport_burst", "10000", "callbacks", bar=1, good=good, note=note)
    grown = sizes[-1] - sizes[1]
    text = f"{grown / 1024:.1f}"
    about = f"growth from burst 2 to burst 4, of {sizes[-1] / 1024:.0f} MiB"
    show("erlport_burst_memory", text, "MiB", bar=8, good=grown < 8 * 1024, note=about)


def _resident(pid: int) -> int:
    """Return the resident memory of a process, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


if __name__ == "__main__":
    main()
