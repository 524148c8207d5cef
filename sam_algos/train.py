"""Train from a recipe: ``composer -n 2 -m sam_algos.train digits/aesam``, the launcher's way to ``sam-algos train``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import sam_algos.command as command  # not `from sam_algos`, which would look among the public names first


def main(argv: Sequence[str] | None = None) -> int:
    """Train from the command line.

    Args:
        argv (Sequence[str], optional): Arguments of ``sam-algos train``, or ``--list``. Default: those of the process.

    Returns:
        int: As `sam_algos.command.main` does.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return command.main(["list"] if "--list" in arguments else ["train", *arguments])


if __name__ == "__main__":
    sys.exit(main())
