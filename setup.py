"""Makes README fit for a package index, which knows nothing of the files beside it; all else is in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def for_index(text: str, repository: str | None) -> str:
    """Links and pictures with whole addresses; where the repository has none, the words without the link."""

    def link(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        if re.match(r"\w+:|#", target):
            return match[0]
        if repository is None:
            return "" if picture else words
        return f"{picture}[{words}]({repository}/{'raw' if picture else 'blob'}/main/{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", link, text)


if __name__ == "__main__":
    found = re.search(r'^Repository = "(.+?)/?"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    readme = for_index((ROOT / "README.md").read_text("utf-8"), found and found[1])
    setup(long_description=readme, long_description_content_type="text/markdown")
