"""Writes ``docs/reference`` from docstrings: pages of each method, of the parts of each axis, of the contracts."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from docutils import nodes

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_CONTRACTS = (
    "Method", "Policy", "Perturbation", "Descent", "Samples", "Schedule", "Part", "Parts", "Step", "Vector",
    "Decision", "Ascent", "Update",
)  # fmt: skip
_AXES = {
    "policy": ("Policies", "WHEN a step is sharpness-aware."),
    "perturbation": ("Perturbations", "HOW the weights climb."),
    "descent": ("Descents", "WHAT gradient goes to the base optimizer."),
    "samples": ("Samples", "ON WHICH samples each pass is run."),
    "schedule": ("Schedules", "What the radius is as training goes on. A schedule stands wherever a ``rho`` does."),
}


def write_pages(app: Sphinx) -> None:
    """Write every page whose text has changed, and remove those that nothing stands for any more."""
    root = Path(app.srcdir).parent
    pages = {**_methods(root), **_parts(), **_contracts(), **_results(root)}
    folder = Path(app.srcdir, "reference")
    for path in folder.rglob("*.*"):
        if str(path.relative_to(folder)) not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _title(text: str, line: str = "=") -> str:
    return f"{text}\n{line * len(text)}\n\n"


def _methods(root: Path) -> dict[str, str]:
    from sam_algos import METHODS, SharpnessAware

    trained = yaml.safe_load((root / "yamls" / "digits.yaml").read_text(encoding="utf-8"))["methods"]
    return {
        f"methods/{name}.rst": _method(name, cls, trained=name in trained)
        for name, cls in {**METHODS, "sharpness_aware": SharpnessAware}.items()
    }


def _method(name: str, cls: type[Any], *, trained: bool) -> str:
    axes = zip(("policy", "perturbation", "descent", "samples"), cls().parts(), strict=True)
    parts = "\n".join(f"* {axis}: `{type(part).__name__}`, ``{part!r}``" for axis, part in axes)
    rho = f"\n       rho: {cls().rho}" if isinstance(getattr(cls(), "rho", None), float) else " {}"
    return (
        _title(cls.__name__)
        + f".. autoclass:: sam_algos.{cls.__name__}\n\n"
        + _title("Parts", "-")
        + f"With default arguments it is composed of\n\n{parts}\n\n"
        + "Other parts can take their place: see `Method`, whose options every method has.\n\n"
        + _title("In a recipe", "-")
        + f".. code-block:: yaml\n\n   algorithms:\n     {name}:{rho}\n\n"
        + (f"To see it train:\n\n.. code-block:: console\n\n   sam-algos train digits/{name}\n" if trained else "")
    )


def _parts() -> dict[str, str]:
    from sam_algos import PARTS

    pages = {}
    for axis, parts in PARTS.items():
        title, what = _AXES[axis]
        text = _title(title) + what + "\n\nIn a recipe each goes by the name in its heading.\n\n"
        for name, part in parts.items():
            text += _title(name, "-") + f".. autoclass:: sam_algos.{part.__name__}\n   :members:\n\n"
        pages[f"parts/{axis}.rst"] = text
    return pages


def _contracts() -> dict[str, str]:
    import sam_algos
    from sam_algos import METHODS, PARTS

    elsewhere = {cls.__name__ for group in (METHODS, *PARTS.values()) for cls in group.values()}
    elsewhere |= {*_CONTRACTS, "METHODS", "PARTS", "Climb", "SharpnessAware"}
    use = (
        _title("Method and optimizer")
        + "What all methods share, the optimizer that they make, BatchNorm afterwards.\n\n"
    )
    for name in ("Method", *(name for name in dir(sam_algos) if name not in elsewhere)):
        directive = "autofunction" if inspect.isfunction(getattr(sam_algos, name)) else "autoclass"
        members = "   :members:\n" if directive == "autoclass" else ""
        use += _title(name, "-") + f".. {directive}:: sam_algos.{name}\n{members}\n"
    use += _title("RecalibrateBatchNorm", "-") + ".. autoclass:: sam_algos.trainer.RecalibrateBatchNorm\n"
    contracts = _title("Contracts") + ".. automodule:: sam_algos.core.parts\n   :no-members:\n\n"
    for name in _CONTRACTS[1:]:
        contracts += _title(name, "-") + f".. autoclass:: sam_algos.{name}\n   :members:\n\n"
    return {"api.rst": use, "contracts.rst": contracts}


def _results(root: Path) -> dict[str, str]:
    names = sorted(path.stem for path in (root / "benchmarks" / "results").glob("*.md"))
    page = "---\nhide-toc: true\n---\n\n```{{include}} ../../../benchmarks/results/{}.md\n```\n"
    pages = {f"results/{name}.md": page.format(name) for name in names}
    entries = "\n".join(f"{name} <{name}>" for name in names if name != "README")
    pages["results/README.md"] += f"\n```{{toctree}}\n:hidden:\n\n{entries}\n```\n"
    return pages


def resolve(app: Sphinx, env: Any, node: Any, content: nodes.Element) -> nodes.Element | None:
    """Find the home of a name that docstrings call by its own or by the module where it is defined."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"].lstrip(".").split(".")
    while len(target) > 1 and target[0].islower() and not target[0][0].isupper():
        target = target[1:]
    name = ".".join(target)
    domain = env.get_domain("py")
    homes = [home for home, entry in domain.objects.items() if f".{home}".endswith(f".{name}") and not entry.aliased]
    if len(homes) > 1 and (inside := node.get("py:class")):
        homes = [home for home in homes if home.endswith(f"{inside}.{name}")] or homes
    if len(homes) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", homes[0], node, content)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to Sphinx."""
    app.connect("builder-inited", write_pages)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True}
