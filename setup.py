"""Makes README fit for a package index, which knows nothing of the files beside it; all else is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent

found = re.search(r'^Repository = "([^"]+?)/?"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
REPOSITORY = found and found[1]


def for_index(text: str) -> str:
    """Links and pictures with whole addresses; where the repository has none, the words without the link."""

    def link(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        if re.match(r"\w+:|#", target):
            return match[0]
        if REPOSITORY is None:
            return "" if picture else words
        return f"{picture}[{words}]({REPOSITORY}/{'raw' if picture else 'blob'}/main/{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", link, text)


setup(
    long_description=for_index((ROOT / "README.md").read_text("utf-8")), long_description_content_type="text/markdown"
)
