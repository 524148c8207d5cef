"""Command line of the benchmarks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from benchmarks.environment import restart_if_unprepared
from benchmarks.results import BenchmarkError, open_result

_EXAMPLES = """\
examples:
  python -m benchmarks cost --quick
  python -m benchmarks cost cifar10/resnet18/sgd variables.data_path=/data
  python -m benchmarks phases digits/sgd
  python -m benchmarks study benchmarks/studies/digits.yaml --jobs 2
  python -m benchmarks targets
  python -m benchmarks gpu

Each measurement writes NAME.json with its environment, NAME.md, and plots as SVG. An interrupted measurement
keeps its results so far; --resume continues it.
"""

_RECIPE = "digits/sgd"
_STUDY = "benchmarks/studies/digits.yaml"
_NETWORKS = ("mlp", "mnist1d", "resnet18", "resnet20", "resnet50", "vit_s16")
_FOLDER = Path("benchmarks/results")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BenchmarkError(message)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of ``python -m benchmarks``, and fill in all defaults.

    Raises:
        BenchmarkError: If an argument is wrong.
    """
    parser, commands = _parsers()
    if not arguments or arguments[0] not in commands:
        return parser.parse_args(arguments)  # help, or an error
    # Call the subparser directly: only it allows options between the recipe and its overrides.
    args = commands[arguments[0]].parse_intermixed_args(arguments[1:])
    args.command = arguments[0]
    return args if args.command == "report" else _complete(args)


def _parsers() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    parser = _Parser(
        prog="python -m benchmarks", description="What sharpness-aware training costs, and what it buys.",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="cost|phases|study|targets|gpu|report")
    cost = commands.add_parser("cost", help="step time against gradients per step, compared with other packages")
    _add_steps(cost, seconds=240, modes=("trainer", "bare", "ddp"))
    cost.add_argument("--all", action="store_true", help="all methods at all fractions, on large networks too")
    _add_steps(commands.add_parser("phases", help="where a step's time goes"), seconds=60, modes=("trainer", "bare"))
    study = commands.add_parser("study", help="accuracy of methods, tuned alike on validation images")
    study.add_argument("study", type=Path, help=f"a YAML file, e.g. {_STUDY}")
    study.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="changes to its recipe")
    study.add_argument("--jobs", type=_positive, default=1, help="parallel trainings (default: 1)")
    _add_common(study)
    targets = commands.add_parser("targets", help="requested costs against measured costs")
    _add_recipe(targets)
    targets.add_argument("--seeds", type=_positive, help="number of seeds (default: 5; quick: 2)")
    _add_common(targets)
    gpu = commands.add_parser("gpu", help="tests, cost and phases on a CUDA device; Composer is not needed")
    gpu.add_argument("--minutes", type=float, default=18.0, help="time limit in minutes (default: 18)")
    gpu.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    _add_common(gpu)
    report = commands.add_parser("report", help="rewrite the reports and plots of all results in a folder")
    report.add_argument("--out", type=Path, default=_FOLDER, help="folder (default: %(default)s)")
    return parser, commands.choices


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help=f"a YAML file or its name (default: {_RECIPE})")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="changes to the recipe")


def _add_steps(parser: argparse.ArgumentParser, *, seconds: int, modes: Sequence[str]) -> None:
    _add_recipe(parser)
    usual = "the recipe; without one the digits' recipe, mlp and, unless quick, mnist1d and resnet18"
    parser.add_argument("--workloads", nargs="*", choices=("recipe", *_NETWORKS), help=f"default: {usual}")
    parser.add_argument("--seconds", type=float, help=f"seconds to measure per table (default: {seconds}; quick: 14)")
    parser.add_argument("--rounds", type=_positive, help="minimum number of rounds (default: 10; quick: 3)")
    parser.add_argument("--modes", nargs="+", choices=modes, help="training loops to measure (default: trainer bare)")
    parser.set_defaults(usual_seconds=float(seconds))
    _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="a short measurement: about two minutes on two cores")
    there = parser.add_mutually_exclusive_group()
    there.add_argument("--resume", action="store_true", help="continue an interrupted measurement")
    there.add_argument("--overwrite", action="store_true", help="replace an existing result")
    parser.add_argument("--out", type=Path, default=_FOLDER, help="folder (default: %(default)s)")
    parser.add_argument("--name", help="name of the files (default: the command and the recipe's folder)")
    parser.add_argument("--threads", type=_positive, default=1, help="threads per operation (default: 1)")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1")
    return int(text)


def _complete(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in the defaults that depend on other arguments."""
    given = getattr(args, "recipe", None)
    if hasattr(args, "recipe"):
        if given and "=" in given:  # only overrides, for the default recipe
            args.recipe, args.overrides = None, [given, *args.overrides]
        args.recipe = args.recipe or _RECIPE
    if hasattr(args, "seconds"):
        composer = find_spec("composer") is not None
        args.seconds = args.seconds if args.seconds is not None else 14.0 if args.quick else args.usual_seconds
        args.rounds = args.rounds or (3 if args.quick else 10)
        usual = [*(["recipe"] if composer else []), "mlp", *([] if args.quick else ["mnist1d", "resnet18"])]
        args.workloads = args.workloads if args.workloads is not None else ["recipe"] if given else usual
        args.modes = args.modes or (["trainer", "bare"] if composer else ["bare"])
    if not all(character.isalnum() or character in "-_" for character in args.name or "-"):
        raise BenchmarkError(f"--name {args.name!r}: letters, digits, '-' and '_' only")
    if args.command == "targets":
        args.seeds = args.seeds or (2 if args.quick else 5)
    if args.command == "study":
        from benchmarks.study import asked

        asked(args)  # report errors before anything starts
    recipe = Path(args.study.stem if args.command == "study" else getattr(args, "recipe", ""))
    parts = [args.command, recipe.parent.name or recipe.stem, "quick" if args.quick else ""]
    args.name = args.name or "-".join(part for part in parts if part)
    return args


def run(args: argparse.Namespace) -> list[Path]:
    """Run the command in a prepared process; return the files written.

    Raises:
        BenchmarkError: If the user has to change something.
    """
    from benchmarks.report import rebuild, write

    if args.command == "report":
        return rebuild(args.out)
    import torch

    torch.set_num_threads(args.threads)
    try:
        module = import_module(f"benchmarks.{args.command}")
        path = args.out / f"{args.name}.json"
        result = open_result(path, args.command, module.settings(args), resume=args.resume, overwrite=args.overwrite)
        try:
            module.measure(args, result)
            result.complete = True
        finally:
            result.save()
    except ModuleNotFoundError as error:
        raise BenchmarkError(f"{error}; without Composer: --modes bare --workloads {' '.join(_NETWORKS)}") from error
    return [path, *write(result)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 2 if an argument or a file is wrong, 130 if interrupted."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        args = parse(arguments)
        if args.command != "report":
            restart_if_unprepared(arguments, args.threads)
        print(*run(args), sep="\n")
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; --resume continues from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
