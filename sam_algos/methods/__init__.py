"""The named methods, one file per paper; a new one is registered by one line below."""

from __future__ import annotations

from sam_algos.algorithm import Method
from sam_algos.methods.aesam import AESAM, AELookSAM
from sam_algos.methods.asam import ASAM
from sam_algos.methods.looksam import LookSAM
from sam_algos.methods.sam import SAM
from sam_algos.methods.sssam import SSSAM

__all__ = ["METHODS"]

METHODS: dict[str, type[Method]] = {
    "sam": SAM,
    "asam": ASAM,
    "looksam": LookSAM,
    "aesam": AESAM,
    "aelooksam": AELookSAM,
    "sssam": SSSAM,
}
"""Every named method, by the name that recipes and the benchmark use."""
