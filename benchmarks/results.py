"""Result files: JSON with the measurements and their environment, from which a measurement can be resumed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import environment

SCHEMA = 2
KINDS = ("cost", "phases", "study", "targets", "gpu")


class BenchmarkError(ValueError):
    """An error that the user has to fix; the message is one line."""


@dataclass
class Result:
    """One measurement.

    Args:
        path: Its file.
        kind: One of `KINDS`.
        settings: The settings of the measurement; resuming requires equal settings.
        environment: The machine: see `benchmarks.environment.describe`.
        data: The measurements; `benchmarks.summary` evaluates them.
        complete: Whether nothing is left to measure.
    """

    path: Path
    kind: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    complete: bool = False

    def tables(self) -> dict[str, dict[str, Any]]:
        """The tables of step times in `data` for which at least one round is complete."""
        found = {key: table for key, table in self.data.items() if isinstance(table, dict)}
        return {key: table for key, table in found.items() if any(table.get("samples", {}).values())}

    def save(self) -> None:
        """Write the file if anything was measured. The write is atomic, so the file is never incomplete."""
        if not (self.tables() or self.data.get("runs") or self.data.get("facts")):
            return
        self.environment["sessions"][-1] |= {
            "ended": environment.now(),
            "load_after": environment.load_average(),
        }
        content = {"schema": SCHEMA, **{key: value for key, value in vars(self).items() if key != "path"}}
        draft = self.path.with_suffix(".json.part")
        draft.write_text(_json(content) + "\n", encoding="utf-8")
        draft.replace(self.path)


def rounded(value: float) -> float:
    """Round a measured number to the four significant digits that are kept."""
    short = float(f"{value:.4g}")
    return int(short) if short.is_integer() else short


def open_result(
    path: Path, kind: str, settings: dict[str, Any], *, resume: bool = False, overwrite: bool = False
) -> Result:
    """Begin or resume a measurement, and open a session in its environment.

    Raises:
        BenchmarkError: If the file exists and neither ``resume`` nor ``overwrite`` was given, or if it cannot be
            resumed.
    """
    if path.exists() and not (resume or overwrite):
        raise BenchmarkError(f"{path} exists; --resume continues it, --overwrite replaces it")
    result = Result(path, kind, json.loads(json.dumps(settings)), environment.describe())
    commit = result.environment["commit"]
    if path.exists() and resume:
        result = _resumable(load_result(path), result)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchmarkError(f"{path.parent}: {error.strerror}") from error
    session = {"started": environment.now(), "load_before": environment.load_average(), "commit": commit}
    result.environment["sessions"].append(session)
    return result


def _resumable(found: Result, wanted: Result) -> Result:
    changed = [key for key, value in wanted.settings.items() if value != found.settings.get(key)]
    other = environment.differences(found.environment, wanted.environment)
    if wanted.kind == "study":  # each session records its commit, and a study does not compare times closely
        other = [key for key in other if key not in ("code", "cpu")]
    if found.kind != wanted.kind or changed or other:
        why = f"with other settings ({', '.join(changed)})" if not other else f"elsewhere ({', '.join(other)} differ)"
        raise BenchmarkError(f"{found.path} was measured {why}; --overwrite replaces it")
    return found


def load_result(path: Path) -> Result:
    """Read a result file.

    Raises:
        BenchmarkError: If the file does not exist, or is not a result.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("schema") == SCHEMA and content["kind"] in KINDS:
            return Result(path, **content)
    except OSError as error:
        raise BenchmarkError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError):
        pass  # not a result
    raise BenchmarkError(f"{path}: not a result of python -m benchmarks (schema {SCHEMA})")


def _json(content: Any, indent: str = "") -> str:
    """JSON with one line per entry of a dictionary or of a list of dictionaries; all else stays on one line."""
    inner = indent + " "
    if isinstance(content, dict) and content:
        lines = [f"{json.dumps(key)}: {_json(value, inner)}" for key, value in content.items()]
        return "{\n" + ",\n".join(inner + line for line in lines) + f"\n{indent}}}"
    if isinstance(content, list) and any(isinstance(value, dict) for value in content):
        return (
            "[\n" + ",\n".join(inner + json.dumps(value, separators=(",", ":")) for value in content) + f"\n{indent}]"
        )
    return json.dumps(content, separators=(",", ":"), allow_nan=False)
