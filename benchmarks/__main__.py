"""Command line of the benchmarks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from benchmarks.environment import ROOT, restart_if_unprepared
from benchmarks.results import BenchmarkError, open_result

_EXAMPLES = """\
examples:
  python -m benchmarks cost --quick
  python -m benchmarks cost yamls/cifar10/resnet18/sgd.yaml variables.data_path=/data --workloads recipe
  python -m benchmarks phases
  python -m benchmarks pareto yamls/digits/sgd.yaml max_duration=20ep --seeds 5
  python -m benchmarks report benchmarks/results/*.json

Each measurement writes NAME.json with its environment, NAME.md, and plots as PNG and SVG. It keeps what it
has measured when interrupted: --resume goes on.
"""


_NETWORKS = ("mlp", "resnet18", "resnet20", "vit_s16")
_SECONDS = {"cost": 240.0, "phases": 60.0}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BenchmarkError(message)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read a command line.

    Args:
        arguments: What stands after ``python -m benchmarks``.

    Returns:
        argparse.Namespace: With all defaults filled in.

    Raises:
        BenchmarkError: If it is wrong.
    """
    parser, commands = _parsers()
    if not arguments or arguments[0] not in commands:
        return parser.parse_args(arguments)  # help, or an error
    # A subparser of its own, as only that lets options stand between the recipe and its overrides.
    args = commands[arguments[0]].parse_intermixed_args(arguments[1:])
    args.command = arguments[0]
    return args if args.command == "report" else _complete(args)


def _parsers() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    parser = _Parser(
        prog="python -m benchmarks", description="What sharpness-aware training costs, and what it buys.",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="cost|phases|pareto|sweep|report")
    cost = commands.add_parser("cost", help="step time against the share of sharp steps, beside other packages")
    _add_recipe(cost)
    _add_timing(cost, workloads=("recipe", *_NETWORKS), modes=("trainer", "bare", "ddp"))
    cost.add_argument("--all", action="store_true", help="all methods at all fractions, on resnet18 too")
    _add_common(cost)
    phases = commands.add_parser("phases", help="where a sharp step's time goes, against the copying of memory")
    _add_timing(phases, workloads=_NETWORKS, modes=("trainer", "bare"))
    models = ["resnet50", "vit_s16", "tiny"]
    phases.add_argument("--tensors", nargs="*", choices=models, default=models, help="whose tensors are moved")
    _add_common(phases)
    pareto = commands.add_parser("pareto", help="accuracy against wall-clock, over several seeds")
    _add_recipe(pareto)
    pareto.add_argument("--seeds", type=_positive, help="how many (default: 5; quick: 3)")
    pareto.add_argument("--methods", nargs="+", help="which (default: all)")
    _add_common(pareto)
    sweep = commands.add_parser("sweep", help="accuracy against one option of a recipe")
    _add_recipe(sweep)
    sweep.add_argument("--key", required=True, help="which option, e.g. algorithms.looksam.alpha")
    sweep.add_argument("--values", nargs="+", required=True, help="its values")
    sweep.add_argument("--seeds", type=_positive, help="how many (default: 5; quick: 3)")
    _add_common(sweep)
    report = commands.add_parser("report", help="one self-contained HTML page from result files")
    report.add_argument("results", nargs="+", type=Path, help="JSON files of cost, phases and pareto")
    report.add_argument("--output", type=Path, default=Path("report.html"), help="default: report.html")
    return parser, commands.choices


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    default = Path("yamls/digits/sgd.yaml")
    parser.add_argument("recipe", nargs="?", default=str(default), help=f"a YAML file (default: {default})")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="what to change in it")


def _add_timing(parser: argparse.ArgumentParser, workloads: tuple[str, ...], modes: tuple[str, ...]) -> None:
    usual = " ".join(name for name in workloads if name in ("recipe", "mlp", "resnet18"))
    parser.add_argument("--workloads", nargs="*", choices=workloads, help=f"default: {usual}; quick: no resnet18")
    parser.add_argument(
        "--seconds", type=float, help="to measure for each table (default: cost 240, phases 60; quick: 14)"
    )
    parser.add_argument("--rounds", type=_positive, help="at least that many rounds (default: 10; quick: 3)")
    parser.add_argument(
        "--modes", nargs="+", choices=modes, default=["trainer", "bare"], help="which loops (default: trainer bare)"
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="about two minutes on two cores")
    there = parser.add_mutually_exclusive_group()
    there.add_argument("--resume", action="store_true", help="go on with an interrupted measurement")
    there.add_argument("--overwrite", action="store_true", help="replace a result that is there")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder (default: %(default)s)")
    parser.add_argument("--name", help="of the files (default: the command and the recipe's folder)")
    parser.add_argument("--threads", type=_positive, default=1, help="per operation (default: 1)")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1")
    return int(text)


def _complete(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in the defaults that depend on one another."""
    if hasattr(args, "recipe"):
        if "=" in args.recipe:  # overrides alone, of the default recipe
            args.recipe, args.overrides = "yamls/digits/sgd.yaml", [args.recipe, *args.overrides]
        args.recipe_path = Path(args.recipe)
        if not args.recipe_path.exists() and (ROOT / args.recipe).exists():
            args.recipe_path = ROOT / args.recipe
    if hasattr(args, "seconds"):
        args.seconds = args.seconds if args.seconds is not None else 14.0 if args.quick else _SECONDS[args.command]
        args.rounds = args.rounds or (3 if args.quick else 10)
        if args.workloads is None:
            slow = [] if args.quick else ["resnet18"]
            args.workloads = [*(["recipe"] if args.command == "cost" else []), "mlp", *slow]
    if hasattr(args, "seeds"):
        args.seeds = args.seeds or (3 if args.quick else 5)
    if not all(character.isalnum() or character in "-_." for character in args.name or "-"):
        raise BenchmarkError(f"--name {args.name!r}: letters, digits, '-', '_' and '.' only")
    args.name = args.name or _name(args)
    return args


def _name(args: argparse.Namespace) -> str:
    recipe = Path(getattr(args, "recipe", ""))
    parts = [args.command, recipe.parent.name or recipe.stem, "quick" if args.quick else ""]
    return "-".join(part for part in parts if part)


def run(args: argparse.Namespace) -> list[Path]:
    """Do what the command line says, in a process that is ready for it.

    Args:
        args: What `_parser` read.

    Returns:
        list[Path]: The files that were written.

    Raises:
        BenchmarkError: If the user has to change something.
    """
    if args.command == "report":
        from benchmarks.report import write_report

        return [write_report(args.results, args.output)]
    import torch

    from benchmarks.report import write_beside

    torch.set_num_threads(args.threads)
    module = import_module(f"benchmarks.{args.command}")
    path = args.out / f"{args.name}.json"
    result = open_result(path, args.command, module.settings(args), resume=args.resume, overwrite=args.overwrite)
    module.measure(args, result)
    result.complete = True
    result.save()
    return [path, *write_beside(result)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; default: those of the process.

    Returns:
        int: 0, 2 if an argument or a file is wrong, 130 if interrupted.
    """
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
        print("interrupted; --resume goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
