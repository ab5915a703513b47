"""README and the guide hold: code runs, commands print what the page shows, links lead somewhere."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import attrs
import click
import pytest

import exproto_app
from exproto_app import (
    App,
    ClientInfo,
    Connection,
    ConnectionInfo,
    Limits,
    Message,
    Router,
    checksums,
    framing,
)
from exproto_app.cli import COMMANDS, guide
from exproto_app.models import Reason
from exproto_app.testing import TestClient

from .devices import EXAMPLES
from .docs import build
from .pages import GUIDE, PAGES, README, Block, Story, blocks, check_spelling, run_python

LANGUAGES = {"python", "console", "sh", "text"}
NOT_RUN = 3
"""Blocks that nobody tries, at most."""

SDK = (
    *("on_connect", "on_received", "on_deliver", "on_terminated"),
    *("send", "terminate", "register", "publish", "subscribe"),
    *("socket_type", "peername", "sockname", "cert_cn", "cert_dn", "pid"),
    *("client_id", "proto_version", "username", "mountpoint", "keepalive", "proto_name"),
    *("idd", "from_", "qos", "topic", "payload", "timestamp"),
)
"""What handlers of emqx-exproto-sdk 0.1.5 use."""

INTERNAL = {"EXPROTO_WORKER"}
"""Not for users: a worker gets it from its supervisor."""

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@every_page
def test_python_blocks_run(page: Path) -> None:
    for block in blocks(page):
        if block.language != "python" or "not run" in block.says:
            continue
        name = block.says.get("file", "")
        if name.startswith("test_") or "append" in block.says:
            compile(block.text, block.where, "exec")  # pytest runs it, or the commands of its file
        else:
            run_python(block)


@pytest.mark.live
@every_page
def test_commands_print_what_the_page_says(page: Path, tmp_path: Path) -> None:
    with Story(tmp_path) as story:
        for block in blocks(page):
            if "not run" not in block.says and not needs_newer_python(block):
                story.tell(block)


def needs_newer_python(block: Block) -> bool:
    """Tell whether a command needs a broker as the hub, which isn't for the oldest Python."""
    return sys.version_info < (3, 11) and " --mqtt " in block.text


@every_page
def test_commands_that_are_not_run_have_options_that_exist(page: Path) -> None:
    for block in blocks(page):
        if block.language == "sh":
            check_spelling(block)


def test_few_blocks_are_not_tried_and_each_says_why() -> None:
    every = [block for page in PAGES for block in blocks(page)]
    assert {block.language for block in every} <= LANGUAGES
    reasons = [block.says["not run"] for block in every if "not run" in block.says]
    assert all(reasons)
    assert len(reasons) <= NOT_RUN


@pytest.mark.live
def test_the_site_has_every_page_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    build(tmp_path)
    pages = {page.relative_to(tmp_path).as_posix(): page.read_text() for page in tmp_path.rglob("*.html")}
    assert {f"guide/{topic.name}.html" for topic in guide.topics()} < set(pages)
    assert {"index.html", "guide.html", "exproto_app.html", "exproto_app/framing.html"} < set(pages)
    for name, text in pages.items():
        for target in re.findall(r'href="([^"#:$]+\.html)', text):
            where = (tmp_path / name).parent / target
            assert where.resolve().is_file(), f"{name}: {target}"
    for name in ("guide.html", *(f"guide/{topic.name}.html" for topic in guide.topics())):
        for target, anchor in re.findall(r'href="([\w./-]+\.html)#([\w-]+)"', pages[name]):
            other = ((tmp_path / name).parent / target).resolve().relative_to(tmp_path.resolve()).as_posix()
            assert f'id="{anchor}"' in pages[other], f"{name}: {target}#{anchor}"


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for _, target in guide.LINK.findall(text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        assert other.exists(), target
        if anchor:
            assert anchor in headings(other), target


def headings(page: Path) -> set[str]:
    """Return the anchors that GitHub and the site give to headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_hello_world_is_the_echo_example() -> None:
    example = (EXAMPLES / "echo.py").read_text()
    code = example[example.index("from exproto_app") :].split()
    for page in (README, GUIDE / "first-device.md"):
        first = next(block for block in blocks(page) if block.language == "python")
        assert first.text.split() == code, page.name


def test_readme_is_a_front_door() -> None:
    assert len(README.read_text().splitlines()) <= 250


def test_the_index_lists_every_page_once_by_its_title() -> None:
    listed = guide.topics()
    assert "\n  " not in guide.page("index")  # an entry is one line
    assert sorted([*(topic.name for topic in listed), "index"]) == sorted(
        page.stem for page in GUIDE.glob("*.md")
    )
    for topic in listed:
        assert (GUIDE / f"{topic.name}.md").read_text().startswith(f"# {topic.title}\n")


def words(page: str) -> set[str]:
    """Return the words and the names of a page."""
    return set(re.findall(r"[\w-]*\w", (GUIDE / f"{page}.md").read_text()))


def test_the_page_for_users_of_exproto_leaves_out_no_call_and_no_field() -> None:
    (proto,) = GUIDE.parent.rglob("exproto.proto")
    text = re.sub(r"//.*", "", proto.read_text())
    calls = re.findall(r"rpc (\w+)", text)
    fields = re.findall(r"(\w+) = \d+;", text)
    assert len(calls) == 18
    assert {*calls, *fields, *SDK} - words("coming-from-exproto") == set()


def test_the_reference_leaves_out_no_public_name() -> None:
    app = App()
    app.on_received(lambda conn, frame: None)
    with TestClient(app):
        counters = set(app.stats)
    verbs = {name for name in vars(Connection) if not name.startswith("_")}
    options = {*inspect.signature(App.__init__).parameters, *inspect.signature(Router.__init__).parameters}
    limits = {field.name for field in attrs.fields(Limits)}
    models = {field.name for model in (Message, ClientInfo, ConnectionInfo) for field in attrs.fields(model)}
    public = {*exproto_app.__all__} - {"ExprotoError", "Outcome"}
    names = {*public, *verbs, *options, *limits, *models, *counters, *COMMANDS} - {"self", "name", "detail"}
    assert names - words("reference") == set()
    text = (GUIDE / "reference.md").read_text()
    assert [reason for reason in get_args(Reason) if f"`{reason}`" not in text] == []


def test_the_reference_has_every_variable_and_every_extra() -> None:
    found: set[str] = set()
    for module in GUIDE.parent.rglob("*.py"):
        found |= set(re.findall(r"EXPROTO_[A-Z_]+", module.read_text()))
    text = (GUIDE / "reference.md").read_text()
    assert {name for name in found if name not in text} == INTERNAL
    section = (
        (GUIDE.parents[1] / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    )
    extras = set(re.findall(r"^(\w+) = \[", section.partition("\n[")[0], re.MULTILINE)) - {"dev", "docs"}
    assert [extra for extra in extras if f"| `{extra}` |" not in text] == []


def test_the_framing_page_has_every_framing_and_checksum() -> None:
    framings = {
        name for name, value in vars(framing).items() if isinstance(value, type) and hasattr(value, "encode")
    }
    sums = {name for name in checksums.__all__ if name.isupper()}
    protocols = {"Framing", "SplitFraming", "StreamFraming", "Raw"}
    assert (framings | sums) - protocols - words("framing") == set()


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "exproto_app", "guide", *arguments]
    where = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=where)


@pytest.mark.live
def test_without_a_topic_the_guide_lists_them_with_what_they_are_about() -> None:
    done = run()
    assert done.returncode == 0
    for topic in guide.topics():
        assert re.search(rf"^  {topic.name} +{re.escape(topic.summary)}$", done.stdout, re.MULTILINE)


@pytest.mark.live
def test_into_a_pipe_a_page_goes_as_its_markdown_without_what_is_for_the_tests() -> None:
    done = run("hex")
    assert done.returncode == 0
    assert done.stdout.startswith("# From a hex dump to a device\n")
    assert "<!--" not in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.live
def test_on_a_terminal_a_page_is_laid_out_and_goes_through_the_pager(tmp_path: Path) -> None:
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\necho PAGED; cat\n")
    pager.chmod(0o755)
    here, there = os.openpty()
    environment = {**os.environ, "PAGER": str(pager), "TERM": "xterm", "COLUMNS": "72"}
    command = [sys.executable, "-m", "exproto_app", "guide", "mqtt"]
    with subprocess.Popen(command, stdin=there, stdout=there, env=environment) as process:
        os.close(there)
        shown = b"".join(iter(lambda: read(here), b"")).decode().replace("\r\n", "\n")
    os.close(here)
    assert process.returncode == 0
    assert shown.startswith("PAGED\n")
    plain = click.unstyle(shown)
    assert "\nWith any MQTT broker\n" in plain
    assert "\n    pip install 'exproto-app[mqtt,uvloop]'\n" in plain
    assert "```" not in plain


def read(terminal: int) -> bytes:
    """Return what comes next from a terminal, nothing at its end."""
    try:
        return os.read(terminal, 65_536)
    except OSError:  # Linux has no end of file here
        return b""


@pytest.mark.live
def test_an_output_of_few_characters_gets_question_marks_for_the_others() -> None:
    done = run("architecture", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("# Architecture\n")


@pytest.mark.live
@pytest.mark.parametrize("topic", ["nonsense", "", "../reference", "index"])
def test_an_unknown_topic_is_one_sentence_with_those_that_there_are(topic: str) -> None:
    done = run(topic)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert repr(topic) in done.stderr
    assert all(topic.name in done.stderr for topic in guide.topics())


@pytest.mark.live
def test_an_ambiguous_beginning_names_what_it_may_be() -> None:
    done = run("f")
    assert done.returncode == 2
    assert done.stderr == "exproto-app: 'f' is ambiguous: first-device or framing?\n"


@pytest.mark.parametrize("width", [40, 80, 100])
@pytest.mark.parametrize("name", [topic.name for topic in guide.topics()])
def test_a_page_fits_its_terminal_and_loses_no_word(name: str, width: int) -> None:
    text = guide.page(name)
    lines = click.unstyle(guide.render(text, width)).splitlines()
    prose = [line for line in lines if not line.startswith("    ")]
    assert [line for line in prose if len(line) > width and " " in line.strip()] == []
    shown = set(re.findall(r"\w+", "\n".join(lines)))
    outside_links = guide.LINK.sub(lambda match: match[1], text)
    bare = re.sub(r"^\|[ -]+\|[ -|]*$|^```\w*$", "", outside_links, flags=re.MULTILINE)
    assert set(re.findall(r"\w+", bare)) - shown <= table_headers(text)


def table_headers(text: str) -> set[str]:
    """Return the words above tables, which are left out where a table becomes a list."""
    return set(re.findall(r"\w+", " ".join(re.findall(r"^(\|.*)\n\| ?-", text, re.MULTILINE))))
