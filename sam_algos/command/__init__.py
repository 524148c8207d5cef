"""The command ``sam-algos``: a module for each command, which imports PyTorch and Composer only where it has to."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from sam_algos.command.arguments import refuse_options
from sam_algos.command.ending import Ending, ending, installed

COMMANDS = {
    "train": "train a network from a recipe",
    "compare": "train with several methods, and draw what they did",
    "validate": "check a recipe without training",
    "show": "show a resolved recipe, and how large its training is",
    "list": "list the recipes, and all that they can name",
    "explain": "explain a method or one of its parts",
    "schema": "print the JSON Schema of recipes, for editors",
}
"""The commands, and what each does."""

_MODULES = {"list": "names"}  # the others have the name of their command

_EXAMPLES = """\
examples:
  sam-algos train digits                                       AE-SAM on handwritten digits with wrong labels
  sam-algos train digits method=sam algorithms.sam.rho=0.1
  sam-algos compare mnist1d                                    SGD, Momentum-SAM, SAM and AE-SAM side by side
  sam-algos train mine.yaml max_duration=20ep
  sam-algos list methods
  composer -n 2 -m sam_algos.train cifar10/wrn28_10/sam variables.data_path=/data      two processes

`sam-algos COMMAND --help` says more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv (Sequence[str], optional): Arguments. Default: those of the process.

    Returns:
        int: 0 when done, 1 when training failed, 2 when a recipe or an argument is wrong, 130 when interrupted and 143
        when terminated.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] not in COMMANDS:
        return _front(argv)
    name, *rest = argv
    end = Ending()
    with installed(end), ending(end, argv, traceback="--traceback" in rest):
        command = import_module(f"sam_algos.command.{_MODULES.get(name, name)}")
        # No formatter that folds lines: descriptions and examples are laid out by hand.
        parser = argparse.ArgumentParser(
            prog=f"sam-algos {name}", description=COMMANDS[name].capitalize() + ".", epilog=command.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        command.add_arguments(parser)
        parser.add_argument("--traceback", action="store_true", help="show where in the code something fails")
        args, strange = parser.parse_known_intermixed_args(rest)
        if strange:
            refuse_options(parser, args, strange, rest)
        end.code = command.run(args)
    return end.code


def _front(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="sam-algos",
        description="Sharpness-aware training from recipes.",
        usage="sam-algos COMMAND ...",
        epilog="commands:\n" + "".join(f"  {name:<10} {what}\n" for name, what in COMMANDS.items()) + "\n" + _EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the versions, and exit")
    args, rest = parser.parse_known_args(argv)
    if args.version:
        print(_versions())
        return 0
    if not rest:
        parser.print_help()
        return 0
    near = difflib.get_close_matches(rest[0], COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"commands: {', '.join(COMMANDS)}"
    print(f"error: {rest[0]}: no such command; {hint}", file=sys.stderr)
    return 2


def _versions() -> str:
    from importlib import metadata

    from sam_algos import __version__

    found = {"sam-algos": __version__}
    for library in ("torch", "mosaicml"):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = "not installed"
    return ", ".join(f"{name} {version}" for name, version in found.items())
