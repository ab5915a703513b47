"""`exproto-app guide`: the documentation, offline.

The pages are Markdown files in `exproto_app/guide/`, listed in its `index.md`. On a terminal a page is laid
out for the width and shown in a pager; piped or redirected, it is plain Markdown.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import attrs
import click

from ..errors import SetupError

__all__ = ["Topic", "command", "find", "page", "render", "topics"]

FOLDER: Final = Path(__file__).parents[1] / "guide"

NARROWEST: Final = 20
WIDEST: Final = 100
"""Columns of text; longer lines are hard to read."""

ENTRY: Final = re.compile(r"^- \[(?P<title>.+?)\]\((?P<name>[\w-]+)\.md\): (?P<summary>.+?)$", re.MULTILINE)
COMMENT: Final = re.compile(r"^<!--.*?-->\n", re.MULTILINE | re.DOTALL)
SPAN: Final = re.compile(r"`([^`]+)`")
BOLD: Final = re.compile(r"\*\*(.+?)\*\*")
EMPHASIS: Final = re.compile(r"(?<![\w*])\*(\w[^*]*?)\*(?!\w)")
LINK: Final = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")
ITEM: Final = re.compile(r"^(\s*)([-*]|\d+\.) (.*)$")
CELL: Final = re.compile(r"(?<!\\)\|")
LONG: Final = 30
"""Characters of code that may be broken over two lines."""

HARD: Final = "\N{NO-BREAK SPACE}"
"""Stands for a blank at which no line may be broken."""


@attrs.frozen
class Topic:
    """A page of the guide, as the index lists it."""

    name: str
    title: str
    summary: str


@click.command()
@click.argument("topic", required=False)
def command(topic: str | None) -> None:
    """Read the guide. Without TOPIC, list the topics; the beginning of a topic's name is enough."""
    if topic is None:
        click.echo(_listing(topics()))
        return
    text = _writable(page(find(topic).name))
    if sys.stdout.isatty():
        width = max(NARROWEST, min(shutil.get_terminal_size().columns, WIDEST))
        click.echo_via_pager(render(text, width))
    else:
        click.echo(text, nl=False)


def topics() -> tuple[Topic, ...]:
    """Return the pages in the order of the index."""
    return tuple(Topic(*match.group("name", "title", "summary")) for match in ENTRY.finditer(_read("index")))


def find(name: str) -> Topic:
    """Return the topic called *name*, or the only one that starts with it. Raises `SetupError`."""
    known = topics()
    wanted = name.lower().removesuffix(".md")
    for topic in known:
        if topic.name == wanted:
            return topic
    matches = [topic for topic in known if wanted and topic.name.startswith(wanted)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = " or ".join(topic.name for topic in matches)
        raise SetupError(f"{name!r} is ambiguous: {names}?")
    names = ", ".join(topic.name for topic in known)
    raise SetupError(f"the guide has no topic {name!r}; it has {names}")


def page(name: str) -> str:
    """Return the Markdown of a page, without the comments that are for its tests."""
    return COMMENT.sub("", _read(name))


def render(text: str, width: int) -> str:
    """Lay Markdown out for a terminal of *width* columns."""
    lines: list[str] = []
    for kind, block in _blocks(text.splitlines()):
        lines += [*LAYOUTS[kind](block, width), ""]
    return "\n".join(lines)


def _writable(text: str) -> str:
    """Return *text* with question marks for what the output's encoding lacks, as cp1252 lacks arrows."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def _read(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def _listing(known: tuple[Topic, ...]) -> str:
    width = max(len(topic.name) for topic in known)
    rows = [f"  {topic.name:<{width}}  {topic.summary}" for topic in known]
    return "\n".join(["Topics of the guide; read one with: exproto-app guide TOPIC", "", *rows])


# --- Markdown, as far as the pages use it


def _blocks(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the kind and the lines of each block."""
    block: list[str] = []
    fenced = False
    for line in lines:
        if line.startswith("```"):
            if fenced:
                yield "code", block
            elif block:
                yield _kind(block), block
            block, fenced = [], not fenced
        elif fenced or line.strip():
            block.append(line)
        elif block:
            yield _kind(block), block
            block = []
    if block:
        yield _kind(block), block


def _kind(block: list[str]) -> str:
    first = block[0]
    if first.startswith("#"):
        return "heading"
    if first.startswith("|"):
        return "table"
    return "list" if ITEM.match(first) else "paragraph"


def _code(block: list[str], width: int) -> list[str]:  # noqa: ARG001 - code is never wrapped
    return [click.style(f"    {line}", fg="cyan") if line else "" for line in block]


def _heading(block: list[str], width: int) -> list[str]:
    marks, _, title = block[0].partition(" ")
    return [
        click.style(line, bold=True, underline=len(marks) == 1)
        for line in textwrap.wrap(_plain(title), width)
    ]


def _paragraph(block: list[str], width: int) -> list[str]:
    return _wrap(" ".join(line.strip() for line in block), width)


def _list(block: list[str], width: int) -> list[str]:
    """Lay out the items; a line that begins no item continues the one before."""
    items: list[tuple[str, str]] = []
    for line in block:
        match = ITEM.match(line)
        if match is not None:
            indent, mark, text = match.groups()
            items.append((f"{indent}{mark if mark[0].isdigit() else '•'} ", text))
        else:
            mark, text = items[-1]
            items[-1] = mark, f"{text} {line.strip()}"
    return [line for mark, text in items for line in _wrap(text, width, first=mark, others=" " * len(mark))]


def _table(block: list[str], width: int) -> list[str]:
    """Lay out columns where they fit, else each row's first cell above the others."""
    header, _, *body = [[cell.strip().replace(r"\|", "|") for cell in CELL.split(row)[1:-1]] for row in block]
    rows = [header, *body] if any(header) else body
    sizes = [max(len(_plain(row[column])) for row in rows) for column in range(len(header))]
    if sum(sizes) + 2 * len(sizes) > width:
        return [line for row in body for line in _entry(header, row, width)]
    laid = []
    for row in rows:
        cells = [
            _styled(cell) + " " * (size - len(_plain(cell))) for cell, size in zip(row, sizes, strict=True)
        ]
        line = "  ".join(cells).rstrip()
        laid.append(click.style(line, bold=True) if row is header else line)
    return laid


def _entry(header: list[str], row: list[str], width: int) -> list[str]:
    """Lay out a row as a list; where it has several cells after the first, each says its column."""
    lines = _wrap(row[0], width)
    for title, cell in zip(header[1:], row[1:], strict=True):
        if cell:
            label = f"{title}: " if title and len(row) > 2 else ""
            lines += _wrap(label + cell, width, first="    ", others="      " if label else "    ")
    return lines


def _wrap(text: str, width: int, *, first: str = "", others: str = "") -> list[str]:
    text = LINK.sub(_linked, text)
    text = SPAN.sub(_unbroken, text)
    text = BOLD.sub(lambda match: _each_word(match[1], "**"), text)
    wrapped = textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [_styled(line).replace(HARD, " ") for line in wrapped]


def _unbroken(match: re.Match[str]) -> str:
    """Keep code on one line if it is short, else let it be broken between words."""
    code = match[1]
    return _each_word(code, "`") if len(code) > LONG else f"`{code.replace(' ', HARD)}`"


def _each_word(text: str, mark: str) -> str:
    return " ".join(f"{mark}{word}{mark}" for word in text.split())


def _linked(match: re.Match[str]) -> str:
    """Tell where a link leads, in words that work in a terminal."""
    text, target = match.groups()
    if target.startswith(("http:", "https:")):
        return text if text in target else f"{text} <{target}>"
    name = target.partition("#")[0].removesuffix(".md")
    return f"{text} (`guide{HARD}{name}`)" if name and "/" not in name else text


def _styled(text: str) -> str:
    text = LINK.sub(_linked, text)
    parts = SPAN.split(text)  # every second one is code
    return "".join(
        click.style(part, fg="cyan") if index % 2 else _emphasised(part) for index, part in enumerate(parts)
    )


def _emphasised(text: str) -> str:
    text = BOLD.sub(lambda match: click.style(match[1], bold=True), text)
    return EMPHASIS.sub(lambda match: click.style(match[1], italic=True), text)


def _plain(text: str) -> str:
    return click.unstyle(_styled(text))


LAYOUTS: Final[dict[str, Callable[[list[str], int], list[str]]]] = {
    "code": _code,
    "heading": _heading,
    "list": _list,
    "paragraph": _paragraph,
    "table": _table,
}
