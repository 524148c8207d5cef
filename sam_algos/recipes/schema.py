"""The keys of a recipe: the only place that lists them, their types, their defaults and their meaning."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from sam_algos.core.options import Positive, PositiveInt, Seed, ranged

REQUIRED: Any = "???"  # OmegaConf's mark of a value that has to be given

SECTIONS = {
    "model": "model",
    "train_dataset": "dataset",
    "eval_dataset": "dataset",
    "optimizer": "optimizer",
    "scheduler": "scheduler",
}
"""The keys that hold one named thing, its ``name`` and its arguments, with what they name."""

COLLECTIONS = {"algorithms": "algorithm", "callbacks": "callback", "loggers": "logger"}
"""The keys that map names to arguments, with what they name."""

_COUNT = r"(?=[0.]*[1-9])(\d{1,15}(\.0*)?|\d{1,9}e\+?0?[0-6]|\d{1,9}\.\d{1,3}e\+?0?[3-6])"
_DURATION = rf"{_COUNT}\s*(ep|ba|sp|tok|iter)"  # Composer's units; it refuses to train for seconds
_SHARE = r"(0?\.\d*[1-9]\d*|1|1\.0*)\s*dur"


def _lasting(example: str, pattern: str) -> tuple[Any, Any]:
    allowed = f"a duration > 0, e.g. {example}"
    return ranged(allowed, "integer", minimum=1), ranged(allowed, "string", pattern=rf"^\s*({pattern})\s*$")


_EPOCHS, _UNITS = _lasting("20ep or 4000ba", _DURATION)
_EVERY, _OFTEN = _lasting("1ep, 100ba or 0.1dur", f"{_DURATION}|{_SHARE}")
Duration = Annotated[int, _EPOCHS] | Annotated[str, _UNITS]
Interval = Annotated[int, _EVERY] | Annotated[str, _OFTEN]
_AllOrSome = Annotated[int, ranged("an integer >= -1", "integer", minimum=-1)]
_Seed = Annotated[int, ranged("an integer in [0, 2**32)", "integer", minimum=0, maximum=2**32 - 1)]


@dataclass
class FileKeys:
    """The keys of a file that a resolved recipe no longer has.

    Args:
        base (str): The recipe that this one changes: a file beside it, or one that comes with the package.
        method (str): The row of methods to train with, or any method with its defaults; null for none.
        methods (dict): Tuned rows: the keys that each changes, laid over the file and below the overrides.
        compare (dict): What sam-algos compare trains: methods, a list of rows, and seeds, how many.
    """

    base: str | None = None
    method: str | None = None
    methods: dict[str, Any] | None = field(default_factory=dict)
    compare: dict[str, Any] = field(default_factory=dict)


FILE_KEYS = tuple(key.name for key in fields(FileKeys))
"""The names of those keys."""


@dataclass
class Recipe:
    """A training run, complete and resolved.

    The keys have the names that Composer and llm-foundry give them; those that are arguments of
    ``composer.Trainer`` mean what they mean there. A file has these keys and the `FILE_KEYS`.

    Args:
        model (dict): The network: its name and arguments.
        train_dataset (dict): The training data: its name and arguments, such as label_noise and noise_seed.
        eval_dataset (dict): The test data. Default: the test split of train_dataset, with true labels.
        optimizer (dict): Torch's or Composer's: its name and arguments.
        scheduler (dict): Composer's or torch's: its name and arguments. Default: a constant rate.
        algorithms (dict): One sharpness-aware method and any of Composer's algorithms: names with arguments.
        callbacks (dict): Composer's callbacks: names with arguments.
        loggers (dict): Composer's loggers, besides the metrics file of every run: names with arguments.
        variables (dict): Values for interpolation, ${variables.name}.

        max_duration (int | str): How long to train, e.g. 20ep or 4000ba.
        bootstrap (int): Rounds of relabelling the training set with the trained network's predictions and training
            again from another initialisation; each costs one more training (SAM, section 3.3). Default: 0.
        global_train_batch_size (int): Samples per step, over all processes.
        global_eval_batch_size (int): Samples per evaluation batch, over all processes. Default: as for training.
        device_train_microbatch_size (int | str): Samples per forward pass on one device, or auto.
        dataloader (dict): Arguments of torch's DataLoader, e.g. num_workers.
        eval_interval (int | str): How often to evaluate; training always ends with an evaluation. Default: 1ep.
        seed (int): Seed of weights, data order and augmentation; label noise has its own. Default: 0.
        precision (str): fp32, amp_bf16, amp_fp16, ..., or amp_bf16_or_fp32: the first where the device has it.
            Default: Composer's for the device.
        device (str): cpu, gpu, mps, ... Default: a GPU where there is one.
        deterministic_mode (bool): Bitwise reproducible but slower training on a GPU. Default: false.
        parallelism_config (dict): Composer's, e.g. {fsdp: {...}}.
        compile_config (dict): Arguments of torch.compile.
        dist_timeout (float): Seconds that a process waits for the others. Default: 300.

        run_name (str): Default: the recipe's name and the time.
        run_folder (str): Folder of the run's files; it must not exist yet. Default: runs/{run_name}.
        save_folder (str): Folder of its checkpoints; null saves none. Default: ${run_folder}/checkpoints.
        save_interval (int | str): How often to save; training always ends with a checkpoint. Default: 1ep.
        save_num_checkpoints_to_keep (int): How many of the latest checkpoints to keep; -1 keeps all. Default: 1.
        load_path (str): A checkpoint to start from.
        load_weights_only (bool): Take only the weights from load_path. Default: false.
        autoresume (bool): Continue from the latest checkpoint of run_name, if there is one. Default: false.
        progress_bar (bool): A line for each epoch, and on a terminal a bar within it. Default: true.
        log_to_console (bool): The metrics as lines of text. Default: false.
        python_log_level (str): Level of Composer's own log messages, e.g. info.
    """

    model: dict[str, Any] = REQUIRED
    train_dataset: dict[str, Any] = REQUIRED
    eval_dataset: dict[str, Any] | None = None
    optimizer: dict[str, Any] = REQUIRED
    scheduler: dict[str, Any] | None = None
    algorithms: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    loggers: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, Any] = field(default_factory=dict)

    max_duration: Duration = REQUIRED
    bootstrap: Seed = 0
    global_train_batch_size: PositiveInt = REQUIRED
    global_eval_batch_size: PositiveInt | None = None
    device_train_microbatch_size: PositiveInt | Literal["auto"] | None = None
    dataloader: dict[str, Any] = field(default_factory=dict)
    eval_interval: Interval = "1ep"
    seed: _Seed = 0
    precision: Literal["fp32", "amp_bf16", "amp_fp16", "amp_fp8", "amp_bf16_or_fp32"] | None = None
    device: Literal["cpu", "gpu", "mps", "tpu", "hpu"] | None = None
    deterministic_mode: bool = False
    parallelism_config: dict[str, Any] | None = None
    compile_config: dict[str, Any] | None = None
    dist_timeout: Positive = 300.0

    run_name: str | None = None
    run_folder: str = "runs/{run_name}"
    save_folder: str | None = "${run_folder}/checkpoints"
    save_interval: Interval = "1ep"
    save_num_checkpoints_to_keep: _AllOrSome = 1
    load_path: str | None = None
    load_weights_only: bool = False
    autoresume: bool = False
    progress_bar: bool = True
    log_to_console: bool = False
    python_log_level: Literal["debug", "info", "warning", "error", "critical"] | None = None


def describe() -> str:
    """The keys with their types, meanings and defaults, for ``--help``.

    Returns:
        str: One key a line, indented.

    Example:
        >>> print(describe().splitlines()[0])
            base (str): The recipe that this one changes: a file beside it, or one that comes with the package.
    """
    return "\n\n".join(inspect.cleandoc(keys.__doc__ or "").partition("Args:\n")[2] for keys in (FileKeys, Recipe))
