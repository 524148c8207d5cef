"""The keys of a recipe: the only place that lists them, their types, their defaults and their meaning."""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from typing import Any

REQUIRED = "???"  # OmegaConf's mark of a value that has to be given


def _key(help: str, default: Any = None, *, trainer: bool = False) -> Any:
    """A key with its meaning; `trainer` keys are handed to ``composer.Trainer`` under their own name."""
    metadata = {"help": help, "trainer": trainer}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Recipe:
    """A training run, complete and resolved.

    Every field is a top-level key of a recipe file; `describe` prints their meanings, and they have the
    names that Composer and llm-foundry give them. A section with a ``name`` (`model`, `train_dataset`,
    ...) holds that name and the arguments of what it names; `algorithms`, `callbacks` and `loggers` map
    each name to its arguments.
    """

    model: dict[str, Any] = _key("the network: name and arguments", REQUIRED)
    train_dataset: dict[str, Any] = _key(
        "the data: name, arguments, and label_noise / noise_seed", REQUIRED
    )
    eval_dataset: dict[str, Any] | None = _key("the test data (default: train_dataset's test split, clean)")
    optimizer: dict[str, Any] = _key("torch's or Composer's: name and arguments", REQUIRED)
    scheduler: dict[str, Any] | None = _key("Composer's or torch's: name and arguments (default: constant)")
    algorithms: dict[str, Any] = _key("sharpness-aware methods and Composer's algorithms, in any mixture", {})
    callbacks: dict[str, Any] = _key("Composer's callbacks", {})
    loggers: dict[str, Any] = _key("Composer's loggers, beside the metrics file that every run writes", {})
    variables: dict[str, Any] = _key("values for interpolation: ${variables.name}", {})

    max_duration: int | str = _key("how long to train, e.g. 20ep or 4000ba", REQUIRED, trainer=True)
    global_train_batch_size: int = _key("samples per step, over all processes", REQUIRED)
    global_eval_batch_size: int | None = _key("the same for evaluation (default: as for training)")
    device_train_microbatch_size: int | float | str | None = _key(
        "samples per forward pass on one device, or auto", trainer=True
    )
    dataloader: dict[str, Any] = _key("arguments of torch's DataLoader, e.g. num_workers", {})
    eval_interval: int | str = _key("how often to evaluate; always at the end too", "1ep", trainer=True)
    seed: int = _key("of everything random but the label noise", 0, trainer=True)
    precision: str | None = _key("fp32, amp_bf16, amp_fp16, ... (default: Composer's)", trainer=True)
    device: str | None = _key("cpu, gpu, mps, ... (default: a GPU where there is one)", trainer=True)
    deterministic_mode: bool = _key("bitwise reproducible on a GPU, slower", False, trainer=True)
    parallelism_config: dict[str, Any] | None = _key("Composer's, e.g. {fsdp: {...}}", trainer=True)
    compile_config: dict[str, Any] | None = _key("Composer's arguments for torch.compile", trainer=True)
    dist_timeout: float = _key("seconds that a process waits for another", 300.0, trainer=True)

    run_name: str | None = _key("default: the recipe's name and the time", trainer=True)
    run_folder: str = _key("where the run's files lie; must not exist yet", "runs/{run_name}")
    save_folder: str | None = _key("where checkpoints lie", "${run_folder}/checkpoints", trainer=True)
    save_interval: int | str = _key("how often to save; always at the end too", "1ep", trainer=True)
    save_num_checkpoints_to_keep: int = _key("-1 keeps all", 1, trainer=True)
    load_path: str | None = _key("a checkpoint to start from", trainer=True)
    load_weights_only: bool = _key("take the weights and nothing else from load_path", False, trainer=True)
    autoresume: bool = _key("go on from the latest checkpoint of run_name", False, trainer=True)
    progress_bar: bool = _key("Composer's progress bar", True, trainer=True)
    log_to_console: bool = _key("Composer's metrics as lines of text", False, trainer=True)
    python_log_level: str | None = _key("of Composer's own log messages, e.g. info", trainer=True)


SECTIONS = ("model", "train_dataset", "eval_dataset", "optimizer", "scheduler")
"""The keys that hold one named thing."""

COLLECTIONS = ("algorithms", "callbacks", "loggers")
"""The keys that map names to arguments."""


def trainer_keys() -> tuple[Field[Any], ...]:
    """The keys that ``composer.Trainer`` takes as they are.

    Returns:
        tuple[Field, ...]: Fields of `Recipe`.
    """
    return tuple(key for key in fields(Recipe) if key.metadata["trainer"])


def describe() -> str:
    """The keys with their defaults and meanings, one a line.

    Returns:
        str: The text that ``--help`` prints.

    Example:
        >>> print(describe().splitlines()[9])
          max_duration                    how long to train, e.g. 20ep or 4000ba (required)
    """
    return "\n".join(_line(key) for key in fields(Recipe))


def _line(key: Field[Any]) -> str:
    default = " (required)" if key.default == REQUIRED else ""
    if isinstance(key.default, (str, int, float)) and key.default != REQUIRED:
        default = f" (default: {str(key.default).lower() if isinstance(key.default, bool) else key.default})"
    return f"  {key.name:<30}  {key.metadata['help']}{default}"
