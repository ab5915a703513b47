"""Builds a site from the guide's pages and the docstrings: `python -m tests.docs FOLDER`."""

from __future__ import annotations

import re
import sys
import warnings
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Final

from pdoc import doc, render

from exproto_app.cli import guide

__all__ = ["build"]

PUBLIC: Final = ("exproto_app", "exproto_app.framing", "exproto_app.checksums", "exproto_app.testing")
"""Modules whose docstrings are the reference."""

INDEX: Final = (
    '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=guide.html">\n'
)


class Guide(doc.Module):
    """The guide, as pdoc knows a package: its index, and a module for each page."""

    def __init__(self, pages: list[doc.Module]) -> None:
        super().__init__(_module("guide", "index"))
        self._pages = pages

    @cached_property
    def submodules(self) -> list[doc.Module]:
        """The pages, in their order."""
        return self._pages


def build(folder: Path) -> None:
    """Write the site into *folder*."""
    # A type that is named before it is defined is shown as it is written.
    warnings.filterwarnings("ignore", "Error parsing type annotation", UserWarning)
    render.configure(docformat="markdown", show_source=False, footer_text="exproto-app")
    pages = [doc.Module(_module(f"guide.{topic.name}", topic.name)) for topic in guide.topics()]
    modules = [Guide(pages), *pages, *map(doc.Module.from_name, PUBLIC)]
    known = {module.modulename: module for module in modules}
    for name, module in known.items():
        path = folder / f"{name.replace('.', '/')}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        html = render.html_module(module, known)
        if name.startswith("guide"):  # a page has a heading of its own
            html = re.sub(r'<h1 class="modulename">.*?</h1>', "", html, count=1, flags=re.DOTALL)
            html = html.replace(
                f"<title>{name} API documentation", f"<title>{_title(module)} - exproto-app", 1
            )
        path.write_text(html, encoding="utf-8")
    (folder / "index.html").write_text(INDEX, encoding="utf-8")
    (folder / "search.js").write_text(render.search_index(known), encoding="utf-8")


def _title(page: doc.Module) -> str:
    return page.docstring.partition("\n")[0].removeprefix("# ")


def _module(name: str, page: str) -> ModuleType:
    prefix = "guide/" if page == "index" else ""
    text = re.sub(r"\]\(([\w-]+)\.md(#[\w-]+)?\)", rf"]({prefix}\1.html\2)", guide.page(page))
    return ModuleType(name, text)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
