"""A cache on disk for values that are expensive to make."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_KEPT = 16
"""Files of a name that stay when another is written: who edits the package makes a new one each time."""


def cached(
    name: str, key: Any, make: Callable[[], T], *, save: Callable[[T, Path], object], load: Callable[[Path], T]
) -> T:
    """Make a value once, and read it from the user's cache folder from then on.

    The folder is ``$XDG_CACHE_HOME/sam_algos``, by default ``~/.cache/sam_algos``. A file that cannot be read is made
    again. Where the folder cannot be written, the value is made every time. Several processes may ask at once.

    Args:
        name (str): The beginning of the file's name, with what makes it recognisable to people.
        key (Any): Everything that the value depends on, versions included, as JSON can write it.
        make (Callable): Makes the value.
        save (Callable): Writes a value to a path.
        load (Callable): Reads it back.

    Returns:
        T: What `make` returned, now or earlier.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    try:
        path = _folder() / f"{name}-{digest}"
        if path.is_file():
            return load(path)
    except Exception:  # unreadable, incomplete or of another format: whatever a file may do to its reader
        pass
    value = make()
    with contextlib.suppress(OSError, RuntimeError):  # torch raises RuntimeError on a full disk
        path = _folder() / f"{name}-{digest}"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            save(value, partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        for outdated in sorted(path.parent.glob(f"{name}-*"), key=os.path.getmtime)[:-_KEPT]:
            outdated.unlink(missing_ok=True)
    return value


def _folder() -> Path:
    """The cache folder; a relative ``XDG_CACHE_HOME`` is to be ignored, as its specification says."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (root if root.is_absolute() else Path.home() / ".cache") / "sam_algos"
