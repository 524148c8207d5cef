"""Methods tuned alike on validation images, then compared on held-out test images.

For each length of training, every contender draws configurations from the same grid of shared options and from a grid
of its own options. First many configurations train with one seed, then the best of them with more seeds. The best
configuration then trains with fresh seeds. Each seed determines the split, the label noise and the initial weights.
Each run is tested once, after its last step. Runs are separate processes and share no data in memory.
"""

from __future__ import annotations

import itertools
import multiprocessing
import random
import warnings
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import yaml
from tqdm import tqdm

from benchmarks.results import BenchmarkError, Result

FRESH = 1000
"""The first seed of the confirmation. The seeds for choices start from 0."""


class Job(NamedTuple):
    """One training."""

    contender: str
    length: str
    trial: int
    seed: int


@dataclass(frozen=True)
class Study:
    """The contenders and the protocol of a comparison: the keys of a study file.

    Args:
        recipe: Path or name of a recipe.
        lengths: Values of ``max_duration``; each contender is tuned for each length.
        contenders: The changes to the recipe, by contender; a list holds values to choose from.
        space: Options to choose from that all contenders share.
        trials: Number of configurations per contender and length.
        finalists: Number of configurations that train with more than one seed.
        choice_seeds: Number of seeds per finalist for the choice.
        seeds: Number of fresh seeds for the confirmation, at least 2.
        overrides: Changes to the recipe for all contenders.
        baselines: The contenders to compare the others with, seed by seed.
    """

    recipe: str
    lengths: list[str]
    contenders: dict[str, dict[str, Any]]
    baselines: list[str]
    space: dict[str, list[Any]]
    trials: int
    finalists: int
    choice_seeds: int
    seeds: int
    overrides: dict[str, Any]

    def __post_init__(self) -> None:
        """Raise a `BenchmarkError` if a key is invalid."""
        for name, least in (("trials", 1), ("finalists", 1), ("choice_seeds", 1), ("seeds", 2)):
            if type(value := getattr(self, name)) is not int or not least <= value < FRESH:
                raise BenchmarkError(f"{name}: must be an integer in [{least}, {FRESH - 1}], got {value!r}")
        for name in ("lengths", "baselines"):
            if not isinstance(value := getattr(self, name), list) or not value:
                raise BenchmarkError(f"{name}: must be a list that is not empty, got {value!r}")
        for name, value in self.space.items():
            if not isinstance(value, list) or not value:
                raise BenchmarkError(f"space.{name}: must be a list that is not empty, got {value!r}")
        for name, value in self.contenders.items():
            if not isinstance(value, dict):
                raise BenchmarkError(f"contenders.{name}: must be a mapping, {{}} for the plain recipe, got {value!r}")
        for name in self.baselines:
            if name not in self.contenders:
                raise BenchmarkError(f"baselines: {name!r} must be one of {', '.join(self.contenders)}")
        chosen = {
            "max_duration",
            "seed",
            "train_dataset.evaluate",
            *self.space,
            *itertools.chain(*self.contenders.values()),
        }
        for name in self.overrides:
            if name in chosen:
                raise BenchmarkError(f"overrides: {name} is the study's own to choose")

    def configuration(self, contender: str, trial: int) -> dict[str, Any]:
        """The options of a contender's trial. All contenders get the same shared options in the same trial."""
        own = {key: value if isinstance(value, list) else [value] for key, value in self.contenders[contender].items()}
        return _drawn(self.space, "", trial) | _drawn(own, contender, trial)

    def overrides_of(self, job: Job) -> list[str]:
        """The overrides of a run, as on the command line."""
        changed = {**self.overrides, **self.configuration(job.contender, job.trial)}
        part = "test" if job.seed >= FRESH else "validation"
        changed |= {"max_duration": job.length, "seed": job.seed, "train_dataset.evaluate": part}
        return [f"{key}={'null' if value is None else value}" for key, value in changed.items()]

    def plan(self, scores: Mapping[Job, float]) -> list[Job]:
        """The runs that can be trained now, given the accuracies so far; empty when all is done.

        Example:
            >>> study = Study("", ["9ep"], {"SGD": {}}, ["SGD"], {"lr": [1, 2]}, 2, 1, 2, 2, {})
            >>> [job.trial for job in study.plan({})]
            [0, 1]
            >>> study.plan({Job("SGD", "9ep", 0, 0): 0.5, Job("SGD", "9ep", 1, 0): 0.6})
            [Job(contender='SGD', length='9ep', trial=1, seed=1)]
        """
        wanted: list[Job] = []
        for contender, length in itertools.product(self.contenders, reversed(self.lengths)):
            wanted += self._next(contender, length, scores)
        return [job for job in wanted if job not in scores]

    def _next(self, contender: str, length: str, scores: Mapping[Job, float]) -> list[Job]:
        first, more = self._choice(contender, length, scores)
        if any(job not in scores for job in first):
            return first
        if any(job not in scores for job in more):
            return more
        best = self.settled(contender, length, scores)
        return [] if best is None else [Job(contender, length, best, FRESH + i) for i in range(self.seeds)]

    def _choice(self, contender: str, length: str, scores: Mapping[Job, float]) -> tuple[list[Job], list[Job]]:
        """The runs for a choice: all configurations with the first seed, and the finalists with the other seeds."""
        first = [Job(contender, length, trial, 0) for trial in range(self.trials)]
        finalists = sorted(first, key=lambda job: -scores.get(job, 0.0))[: self.finalists]
        return first, [job._replace(seed=seed) for job in finalists for seed in range(1, self.choice_seeds)]

    def settled(self, contender: str, length: str, scores: Mapping[Job, float]) -> int | None:
        """The finalist with the best mean accuracy on validation images; None while runs are missing."""
        first, more = self._choice(contender, length, scores)
        if any(job not in scores for job in (*first, *more)):
            return None
        finalists = {job.trial for job in more} or {max(first, key=lambda job: scores[job]).trial}
        return max(sorted(finalists), key=lambda trial: self.validation(contender, length, trial, scores))

    def validation(self, contender: str, length: str, trial: int, scores: Mapping[Job, float]) -> float:
        """The mean accuracy of a finalist on validation images."""
        return fmean(scores[Job(contender, length, trial, seed)] for seed in range(self.choice_seeds))


def _drawn(space: Mapping[str, Sequence[Any]], stream: str, trial: int) -> dict[str, Any]:
    """Point ``trial`` of a shuffled grid; starts over when the grid is exhausted."""
    points = list(itertools.product(*space.values()))
    random.Random(f"study/{stream}").shuffle(points)
    return dict(zip(space, points[trial % len(points)], strict=True))


def load_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        BenchmarkError: If the file does not exist, or is not a study.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Study(**{"overrides": {}, **content})
    except OSError as error:
        raise BenchmarkError(f"{path}: {error.strerror}") from error
    except (TypeError, AttributeError, yaml.YAMLError) as error:
        raise BenchmarkError(f"{path}: not a study: {error}") from error


def settings(args: Namespace) -> dict[str, Any]:
    """The settings of the measurement. Contenders, baselines and seeds are not among them, as they may grow."""
    fixed = {key: value for key, value in vars(asked(args)).items() if key not in _MAY_GROW}
    return {"study": str(args.study), **fixed}


_MAY_GROW = ("contenders", "baselines", "seeds")


def asked(args: Namespace) -> Study:
    """The study that the command line asks for.

    Raises:
        BenchmarkError: If the study or an override is invalid.
    """
    study = load_study(args.study)
    if args.quick:
        study = replace(study, lengths=study.lengths[:1], trials=2, finalists=1, choice_seeds=1, seeds=2)
    return replace(study, overrides={**study.overrides, **dict(_pairs(args.overrides))})


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise BenchmarkError(f"{override}: write key=value")
        yield key, value


def scores(runs: Sequence[Mapping[str, Any]]) -> dict[Job, float]:
    """The accuracies of runs."""
    return {Job(*run["job"]): run["accuracy"] for run in runs}


def measure(args: Namespace, result: Result) -> None:
    """Train the missing runs. Each stage of a contender starts as soon as its choices are made."""
    study = asked(args)
    _refuse_wrong_ones(study, result.data.get("runs", []))
    result.data["study"] = {key: getattr(study, key) for key in _MAY_GROW}
    runs = result.data.setdefault("runs", [])
    todo = study.plan(scores(runs))
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(args.jobs, mp_context=context, initializer=_start, initargs=(args.threads,)) as pool,
        tqdm(desc="study", unit="run", total=len(todo), disable=None) as bar,
    ):
        going: dict[Future[Any], Job] = {}
        while todo or going:
            while todo and len(going) < args.jobs:
                job = todo.pop(0)
                going[pool.submit(_train, study, job)] = job
            for future in wait(going, return_when=FIRST_COMPLETED).done:
                job = going.pop(future)
                chosen = study.configuration(job.contender, job.trial)
                runs.append({"job": list(job), "chosen": chosen, **future.result()})
                bar.update()
                result.save()
            todo = [job for job in study.plan(scores(runs)) if job not in going.values()]
            bar.total = bar.n + len(going) + len(todo)


def _refuse_wrong_ones(study: Study, runs: Sequence[Mapping[str, Any]]) -> None:
    """Check every configuration before hours are spent on training."""
    from benchmarks.trainer import check, read_recipe

    for contender, trial in itertools.product(study.contenders, range(study.trials)):
        recipe = read_recipe(study.recipe, study.overrides_of(Job(contender, study.lengths[0], trial, 0)))
        if recipe.eval_dataset:
            raise BenchmarkError(f"{study.recipe}: has an eval_dataset, which would decide what choices are made on")
        check(recipe)
    for job, chosen in ((Job(*run["job"]), run["chosen"]) for run in runs):
        if job.contender in study.contenders and study.configuration(job.contender, job.trial) != chosen:
            raise BenchmarkError(f"contenders: the choices of {job.contender!r} have changed; give it another name")


def _start(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")  # from Composer and torch, once in each process


def _train(study: Study, job: Job) -> dict[str, Any]:
    from benchmarks.trainer import read_recipe, train

    return train(read_recipe(study.recipe, study.overrides_of(job)))
