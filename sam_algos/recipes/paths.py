"""The types of arguments that name something of the user's on the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from sam_algos.core.options import Range


def _names(there: Callable[[Path], bool]) -> Callable[[Any], bool]:
    def accepts(value: Any) -> bool:
        try:
            return isinstance(value, str) and there(Path(value).expanduser())
        except (OSError, ValueError, RuntimeError):  # too long a name, a zero byte, a home that nobody has
            return False

    return accepts


FOLDER = Range("a folder", _names(Path.is_dir))
FILE = Range("a file", _names(Path.is_file))

Folder: TypeAlias = Annotated[str, FOLDER]
"""A folder that exists; ``~`` is the home folder."""

File: TypeAlias = Annotated[str, FILE]
"""A file that exists; ``~`` is the home folder."""
