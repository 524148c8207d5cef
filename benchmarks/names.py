"""Display names of the methods, and their colours in all plots."""

from __future__ import annotations

_NAMES = {
    "sam": "SAM", "asam": "ASAM", "looksam": "LookSAM", "aesam": "AE-SAM", "aelooksam": "AE-LookSAM",
    "sssam": "SS-SAM", "momentumsam": "Momentum-SAM", "esam": "ESAM", "friendlysam": "Friendly SAM",
    "samon": "SAM-ON", "gradientnormpenalty": "Gradient norm penalty", "stablesam": "Stable SAM", "latesam": "Late SAM",
    "fishersam": "Fisher SAM", "randomsam": "Random SAM", "gsam": "GSAM", "wsam": "WSAM", "vasso": "VaSSO",
    "looklayersam": "LookLayerSAM",
}  # fmt: skip

_COLORS = {
    "SAM": "#0072b2", "ASAM": "#cc79a7", "LookSAM": "#009e73", "AE-SAM": "#d55e00", "AE-LookSAM": "#e69f00",
    "SS-SAM": "#56b4e9", "Momentum-SAM": "#882255", "ESAM": "#117733", "Friendly SAM": "#aa4499", "SAM-ON": "#44aa99",
    "GSAM": "#332288", "Gradient norm penalty": "#6699cc", "WSAM": "#88ccee", "Stable SAM": "#ddcc77",
    "Late SAM": "#661100", "VaSSO": "#cc6677", "Fisher SAM": "#aa7744", "Random SAM": "#777777",
    "LookLayerSAM": "#225522",
    "Composer's SAM": "#555555", "pytorch_optimizer's SAM": "#999933", "pytorch_optimizer's LookSAM": "#c4c466",
    "SAM in fifteen lines": "#6a3d9a", "Momentum-SAM in fifteen lines": "#cab2d6", "plain": "#000000", "SGD": "#000000",
}  # fmt: skip
_OTHERS = "#888888"


def users_name(key: str, default: str | None = None) -> str:
    """The display name of a method.

    Args:
        key: Its name in ``METHODS``.
        default: The name of a method that is not listed here; the key itself if None.

    Example:
        >>> users_name("aesam"), users_name("newsam", "NewSAM")
        ('AE-SAM', 'NewSAM')
    """
    return _NAMES.get(key, default or key)


def color(name: str) -> str:
    """The colour of a table's row ``name``; any text after a comma is ignored."""
    return _COLORS.get(name.partition(",")[0], _OTHERS)
