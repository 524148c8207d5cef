"""Results for reading: Markdown and plots beside each, and one HTML page for any number of them."""

from __future__ import annotations

import base64
import html
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import BenchmarkError, Result, load_result
from benchmarks.tables import CAPTIONS, tables

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; color: #222 }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0 }
td, th { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top }
td:first-child, th:first-child { text-align: left }
table.text td { text-align: left }
section { border-top: 2px solid #222; margin-top: 3rem }
img { max-width: 100%; height: auto }
"""


def write_beside(result: Result) -> list[Path]:
    """Write a result's Markdown, and its plots as PNG and SVG, beside its file.

    Args:
        result: The result.

    Returns:
        list[Path]: What was written; no plots where matplotlib is not installed, which is said.
    """
    plots: dict[str, Path] = {}
    try:
        from benchmarks.plots import figures, render
    except ImportError:
        print("no plots: pip install 'sam_algos[bench]'", file=sys.stderr)
    else:
        for name, figure in figures(result).items():
            for kind in ("svg", "png"):
                plots[name] = result.path.with_name(f"{result.path.stem}-{name}.{kind}")
                plots[name].write_bytes(render(figure, kind))
    path = result.path.with_suffix(".md")
    path.write_text(markdown(result, list(plots.values())), encoding="utf-8")
    return [path, *plots.values()]


def markdown(result: Result, plots: Sequence[Path] = ()) -> str:
    """A result as Markdown.

    Args:
        result: The result.
        plots: Images that lie beside it.

    Returns:
        str: The text of the file.
    """
    images = [f"![{plot.stem}]({plot.name})\n" for plot in plots]
    shown = [table.markdown() for table in tables(result)]
    return "\n".join([f"## {CAPTIONS[result.kind]}: {result.path.stem}\n", *images, *shown])


def write_report(paths: Sequence[Path], output: Path) -> Path:
    """Write one HTML page that needs no other file.

    Args:
        paths: Result files.
        output: The page.

    Returns:
        Path: ``output``.

    Raises:
        BenchmarkError: If a file is not a result, the page cannot be written or matplotlib is not installed.
    """
    results = [load_result(path) for path in paths]
    try:
        sections = [_section(result) for result in results]
    except ImportError as error:
        raise BenchmarkError(f"{error}; pip install 'sam_algos[bench]'") from error
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BenchmarkError(f"a result lacks what a report shows: {error!r}") from error
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>sam_algos benchmarks</title>'
        f"<style>{_STYLE}</style></head>\n"
        f"<body><h1>sam_algos benchmarks</h1>\n{''.join(sections)}</body></html>\n"
    )
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise BenchmarkError(f"{output}: {error.strerror}") from error
    return output


def _section(result: Result) -> str:
    from benchmarks.plots import figures, render

    images = [_inline(render(figure, "svg").decode()) for figure in figures(result).values()]
    shown = [table.html() for table in tables(result)]
    title = html.escape(f"{CAPTIONS[result.kind]}: {result.path.stem}")
    return f"<section><h2>{title}</h2>\n{''.join(images)}{''.join(shown)}</section>\n"


def _inline(svg: str) -> str:
    """An image in the page itself; as a document of its own, so that plots do not share identifiers."""
    encoded = base64.b64encode(svg.encode()).decode()
    return f'<img alt="plot" src="data:image/svg+xml;base64,{encoded}">\n'
