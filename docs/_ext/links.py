"""Links in Markdown that hold on the site as they do on GitHub, in pages and in the files that pages include."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_INCLUDE = re.compile(r"^```\{include\} (\S+)", re.MULTILINE)
_LINK = re.compile(r"(\[(?:[^\[\]]|!\[[^\]]*\])*\]\()([^)\s#:]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)
_METHOD = re.compile(r"\[`(\w+)")


def included(source: Path) -> dict[Path, Path]:
    """Which page of the site shows which file of the repository."""
    pages = [*source.glob("*.md"), *source.glob("reference/**/*.md")]
    homes = {
        (page.parent / name).resolve(): page
        for page in pages
        for name in _INCLUDE.findall(page.read_text(encoding="utf-8"))
    }
    return {**homes, source.parent / "sam_algos" / "core" / "parts.py": source / "reference" / "contracts.rst"}


def rewrite(text: str, origin: Path, page: Path, homes: dict[Path, Path], methods: dict[str, Path]) -> str:
    """Links of ``text`` from the file ``origin`` as they are written on ``page``, code blocks left alone."""

    def link(match: re.Match[str]) -> str:
        label, path, fragment = match[1], match[2], match[3] or ""
        target = (origin.parent / path).resolve()
        method = _METHOD.match(label)
        if target.parent.name == "methods" and method and method[1] in methods:
            target = methods[method[1]]
        elif target.is_dir():
            target = next((target / n for n in ("README.md", "__init__.py") if (target / n).exists()), target)
        target = homes.get(target, target)
        if not target.exists():
            return match[0]  # of which MyST will warn
        return f"{label}{os.path.relpath(target, page.parent)}{fragment})"

    blocks = _FENCE.split(text)
    blocks[::2] = [_LINK.sub(link, block) for block in blocks[::2]]
    return "".join(blocks).replace(" ± ", "\u00a0±\u00a0")  # a figure and its interval stay on one line


def _method_pages(source: Path) -> dict[str, Path]:
    pages = source.glob("reference/methods/*.rst")
    return {page.read_text(encoding="utf-8").split("\n", 1)[0]: page for page in pages}


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to Sphinx."""
    source = Path(app.srcdir).resolve()

    def here(text: str, origin: Path, docname: str) -> str:
        page = source / f"{docname}.md"
        return rewrite(text, origin, page, included(source), _method_pages(source))

    def on_page(app: Sphinx, docname: str, content: list[str]) -> None:
        if (source / f"{docname}.md").exists():
            content[0] = here(content[0], source / f"{docname}.md", docname)

    def on_include(app: Sphinx, path: Path, parent: str, content: list[str]) -> None:
        text = here(content[0], (source / path).resolve(), app.env.docname)
        if text.startswith("## "):  # a part of a longer report is a page here
            text = re.sub(r"^#(#+ )", r"\1", text, flags=re.MULTILINE)
        content[0] = text

    app.connect("source-read", on_page)
    app.connect("include-read", on_include)
    return {"parallel_read_safe": True}
