"""Docstrings as people read them on a terminal."""

from __future__ import annotations

import re


def plain(doc: str) -> str:
    """A docstring without its markup.

    Args:
        doc (str): Written for Sphinx.

    Returns:
        str: The same for a terminal.

    Example:
        >>> plain("**Idea.** Climb, then descend (`Foret et al., 2021 <https://arxiv.org/abs/2010.01412>`_) at ``w``.")
        'Idea. Climb, then descend (Foret et al., 2021, https://arxiv.org/abs/2010.01412) at w.'
    """
    doc = re.sub(r"`([^`<]+?)\s+<([^>]+)>`_+", r"\1, \2", doc)
    doc = re.sub(r":attr:`\.?([^`]+)`", r"\1", doc)
    return re.sub(r"``|`|\*\*", "", doc)
