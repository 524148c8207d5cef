"""Every algorithm of Composer with every kind of method: a tiny run each, and the table of the results.

``python -m tests.trainer.matrix`` writes COMPATIBILITY.md.
"""

from __future__ import annotations

import json
import random
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import composer.algorithms as ca
import numpy as np
import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import Tensor
from torch.utils.data import DataLoader

from sam_algos import AESAM, ESAM, SAM, AELookSAM, Method, MomentumSAM
from sam_algos.core.objective.evaluation import Evaluation
from tests.trainer.matrix_cases import BATCH_SIZE, ENTRIES, STEPS, Entry, Images, Texts, network, transformer
from tests.trainer.training import AlgorithmOn, memory, passes, same, trainer

METHODS: dict[str, Method] = {
    "SAM": SAM(),
    "AESAM": AESAM(lambda_1=0.5, lambda_2=0.5),
    "AELookSAM": AELookSAM(lambda_1=0.5, lambda_2=0.5),
    "SAM(ascent_fraction=0.5)": SAM(ascent_fraction=0.5),
    "ESAM": ESAM(),
    "MomentumSAM": MomentumSAM(rho=0.1),
}
"""One for each way of deciding, and for each kind of passes; six steps see both decisions."""

TABLE = Path(__file__).parents[2] / "COMPATIBILITY.md"

WITHIN_A_PASS = {
    Event.BEFORE_FORWARD,
    Event.AFTER_FORWARD,
    Event.BEFORE_LOSS,
    Event.AFTER_LOSS,
    Event.BEFORE_BACKWARD,
    Event.AFTER_BACKWARD,
}


def composer_algorithms() -> set[str]:
    """Every name in the metadata that Composer ships with its algorithms."""
    files = Path(ca.__file__).parent.glob("*/metadata.json")
    return {name for file in files for name in json.loads(file.read_text())}


@dataclass
class Observed:
    """What an `Entry` did in a run of a method, or of none.

    Attributes:
        applied: How often the algorithm acted, by event.
        passes: What each pass of each step computed the loss from: inputs, labels, masks, streams.
        streams: The random streams at the end.
        sharp: How many steps were sharpness-aware.
        looks: How many passes ran only to see whether others see the displaced weights.
        frozen: Parameters taken from the optimizer after the first epoch: their values then and at the end.
    """

    applied: Counter[Event] = field(default_factory=Counter)
    passes: list[list[Any]] = field(default_factory=list)
    streams: Any = None
    sharp: int = 0
    looks: int = 0
    frozen: list[tuple[Tensor, Tensor]] = field(default_factory=list)


def _streams() -> Any:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()


def _what_the_loss_is_computed_from(state: State) -> Any:
    masks = [m.dropout_mask.clone() for m in state.model.modules() if hasattr(m, "dropout_mask")]
    values = state.batch.values() if isinstance(state.batch, dict) else state.batch
    return [value.clone() for value in values], masks, _streams()


def _counted(algorithm: Algorithm, counts: Counter[Event]) -> Algorithm:
    apply = algorithm.apply

    def counting(event: Event, state: State, logger: Logger) -> Any:
        counts[event] += 1
        return apply(event, state, logger)

    algorithm.apply = counting
    return algorithm


def _deciding_both_ways(method: Method, entry: Entry) -> Method:
    """The gradients of a transformer grow in its first steps: only a high threshold tells them apart."""
    adaptive = entry.text and isinstance(method, (AESAM, AELookSAM))
    return replace(method, lambda_1=2.0, lambda_2=2.0) if adaptive else method


@cache
def observe(name: str, method: str | None) -> Observed:
    """Train six steps with an algorithm of Composer and a method."""
    entry, seen = ENTRIES[name], Observed()

    def note_frozen(state: State) -> None:
        seen.frozen = [[p, p.detach().clone()] for p in state.model.parameters() if not p.requires_grad]

    watch = [
        AlgorithmOn(Event.BATCH_START, lambda _: seen.passes.append([])),
        AlgorithmOn(Event.BEFORE_LOSS, lambda state: seen.passes[-1].append(_what_the_loss_is_computed_from(state))),
        AlgorithmOn(Event.EPOCH_START, note_frozen),
    ]

    def counting(evaluation: Evaluation, *args: Any) -> Any:
        seen.looks += 1
        return aside(evaluation, *args)

    aside = Evaluation._aside
    with warnings.catch_warnings(), patch.object(Evaluation, "_aside", counting):
        if entry.quiet:
            warnings.filterwarnings("ignore", message=entry.quiet)
        algorithm = _counted(entry.make(), seen.applied)
        methods = [_deciding_both_ways(METHODS[method], entry)] if method else []
        model, data = (transformer(), Texts()) if entry.text else (network(), Images())
        run = trainer(algorithm, *watch, *methods, model=model, data=DataLoader(data, batch_size=BATCH_SIZE))
        run.fit()
        run.close()
    seen.frozen = [(before, p.detach().clone()) for p, before in seen.frozen]
    seen.streams, seen.sharp = _streams(), memory(run)["sharp"] if method else 0
    return seen


def _shown_the_same(seen: list[Any], method: Method) -> bool:
    """Whether all passes saw the same; where one runs on a share of the samples, inputs and labels, not the draws."""
    whole = not method.composition().samples.selects
    first, *others = seen if whole else [values for values, *_ in seen]
    return all(same(first, other) for other in others)


def problems(name: str, method: str) -> list[str]:
    """What a run with the method does to an algorithm that a run without does not."""
    seen, plain, used = observe(name, method), observe(name, None), METHODS[method]
    more = seen.sharp * (passes(used) - 1) + seen.looks
    expected = {
        event: count * (STEPS + more) // STEPS if event in WITHIN_A_PASS else count
        for event, count in plain.applied.items()
    }
    first_is_plain = int(isinstance(used, MomentumSAM))
    sharp = range(1, STEPS) if isinstance(used, (AESAM, AELookSAM)) else [STEPS - first_is_plain]
    checks = {
        "looks at one displaced pass only": seen.looks <= 2,
        "trains": len(seen.passes) == STEPS,
        "takes the kinds of steps that it should": seen.sharp in sharp,
        "runs its passes on sharp steps": sum(len(step) - 1 for step in seen.passes) == more,
        "shows all passes the same": all(_shown_the_same(step, used) for step in seen.passes),
        "applies the algorithm once per pass, or once per step": dict(seen.applied) == expected,
        "ends the random streams where they end without": same(seen.streams, plain.streams),
        "leaves frozen weights alone": all(torch.equal(before, after) for before, after in seen.frozen),
    }
    return [what for what, holds in checks.items() if not holds]


def cell(name: str, method: str) -> str:
    """The table's word for an algorithm and a method."""
    try:
        broken = problems(name, method)
    except ValueError as error:
        if "one sharpness-aware method" in str(error):
            return "refused"
        if "the loss of each sample" in str(error):
            return "no loss of each sample"
        raise
    return "; ".join(f"not: {what}" for what in broken) or "works"


def written(name: str, method: str) -> str:
    """What COMPATIBILITY.md says of them."""
    row = next(line for line in TABLE.read_text().splitlines() if line.startswith(f"| {name} |"))
    return row.split(" | ")[1 + list(METHODS).index(method)]


def table(cell: Callable[[str, str], str] = cell) -> str:
    """COMPATIBILITY.md."""
    lines = [
        "# With the algorithms of Composer",
        "",
        "Written by `python -m tests.trainer.matrix`. Tests repeat three of the methods with every algorithm,",
        "and all of them with some.",
        "",
        '"Works" is a run of six steps on a tiny network in which all passes of every sharp step computed',
        "their loss from the same inputs, labels, masks and random draws, what acts once per step did so,",
        "and the random streams ended as without it. With `ascent_fraction` and ESAM a pass runs on some of the",
        "samples, with the inputs and labels that they have in the others; dropout draws for them anew. Momentum-SAM",
        "has one pass. Every other method acts at the same places.",
        "",
        f"| algorithm | {' | '.join(METHODS)} | |",
        f"|---|{'---|' * len(METHODS)}---|",
    ]
    for name, entry in sorted(ENTRIES.items()):
        cells = " | ".join(cell(name, method) for method in METHODS)
        lines.append(f"| {name} | {cells} | {entry.note} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    TABLE.write_text(table())
