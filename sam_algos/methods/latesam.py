"""Late SAM: Zhou, Wang, Mao, Li and Yan, *Sharpness-Aware Minimization Efficiently Selects Flatter Minima Late in
Training*, ICLR 2025, https://arxiv.org/abs/2410.10373.
"""  # noqa: D205

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sam_algos.method import Method
from sam_algos.methods.sam import PNorm, SharpGradient
from sam_algos.parts import Decision, Parts, Policy, Probability, Radius, Step

__all__ = ["Late", "LateSAM"]


@dataclass(frozen=True, repr=False)
class Late(Policy):
    """Sharp late in training: on steps with ``t/T >= start``, and never with ``start=1``.

    Args:
        start (float): The fraction of training before the first sharp step, in [0, 1]. Default: ``0.9``.
    """

    reads_progress: ClassVar[bool] = True

    start: Probability = 0.9

    @property
    def never(self) -> bool:
        """True with ``start=1``."""
        return self.start == 1

    def decide(self, step: Step) -> Decision:
        """``start <= t/T``."""
        return Decision(not self.never and (step.progress or 0.0) >= self.start)


@dataclass(frozen=True, repr=False)
class LateSAM(Method):
    """SAM at the end of training only (`Zhou et al., 2025 <https://arxiv.org/abs/2410.10373>`_).

    **Idea.** After plain training, a few epochs of SAM leave its minimum for a flatter one in the same valley. That one
    generalises nearly as well as the minimum that SAM finds from the beginning.

    **Equation.** A plain step while ``t/T < start``, a SAM step afterwards: see `Late`.

    **Cost.** ``2 - start`` gradients per step on average: 1 before ``start`` and 2 after it. No memory between steps;
    during a sharp step one copy of the parameters.

    **BatchNorm** needs no recalibration: the first pass updates its statistics, on whole batches at the clean weights.
    With ``ascent_fraction`` that pass sees part of each batch, and recalibration helps: `sam_algos.recalibrate`.

    **Use it** where SAM helps but takes too long, and the length of training is known.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05`` (as SAM).
        start (float): The fraction of training before the first sharp step, in [0, 1]: 0 gives SAM, 1 the base
            optimizer alone. Default: ``0.9`` (second-hand).

    Raises:
        ValueError: If an argument is outside its range; when wrapping, if ``total_steps`` is missing.

    Example:
        >>> import torch
        >>> from sam_algos import LateSAM
        >>> model = torch.nn.Linear(2, 1)
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = LateSAM(start=0.5).wrap(base, model=model, total_steps=4)
        >>> def closure():
        ...     return model(torch.ones(4, 2)).square().mean(1)
        >>> [(optimizer.step(closure), optimizer.metrics["sam/applied"])[1] for _ in range(4)]
        [0.0, 0.0, 1.0, 1.0]
    """

    title: ClassVar[str] = "Late SAM"

    rho: Radius = 0.05
    start: Probability = 0.9

    def parts(self) -> Parts:
        """Late in training, the Euclidean ball, the sharp gradient."""
        return Parts(Late(self.start), PNorm(self.rho), SharpGradient())
