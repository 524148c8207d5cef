"""How a command ends: one line for whatever went wrong, and an exit status."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sam_algos.recipes.run import Run

_OF_RECIPES = (
    "torch",
    "omegaconf",
    "yaml",
    "composer",
    "torchvision",
    "sklearn",
    "scipy",
    "mnist1d",
    "matplotlib",
    "tqdm",
)
"""What the extra ``recipes`` brings, by the names of the modules."""

_SIGNALLED = (130, 143)  # 128 + SIGINT or SIGTERM: Composer's signal handlers exit with them


@dataclass
class Ending:
    """How the command ended.

    Args:
        code (int): The exit status. Default: 0.
    """

    code: int = 0


_running: list[Run] = []

_resumable: set[str] = set()
"""The names under which a run that is done left a checkpoint: that of a comparison is one name for all."""


def running(run: Run) -> None:
    """Say which run is going on, so that what interrupts it can say where its files are, and how to go on.

    Args:
        run (Run): Takes the place of the one before.
    """
    _note_checkpoint()
    _running[:] = [run]


@contextmanager
def stopping() -> Iterator[None]:
    """Leave the files of the run in order, whatever ends it, and let another process say what it was."""
    try:
        yield
    except BaseException:
        _files()
        raise
    finally:
        _running.clear()


def resumable(run_name: str) -> None:
    """Say that a comparison can go on under its name.

    Args:
        run_name (str): Where runs of other processes left something.
    """
    _resumable.add(run_name)


def _note_checkpoint() -> None:
    for run in _running:
        if run.checkpoint and run.settings.run_name:
            _resumable.add(run.settings.run_name)


def rank() -> int:
    """This process's rank, without asking PyTorch for it."""
    return int(os.environ.get("RANK", 0))


@contextmanager
def installed(end: Ending) -> Iterator[None]:
    """Turn a library that is not there into one line that says how to get it.

    Args:
        end (Ending): Whose code will then be 2.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if not _is_missing(error):
            raise
        end.code = 2
        _say(f"error: {error.name} is not installed: pip install 'sam_algos[recipes]'")


@contextmanager
def ending(end: Ending, argv: Sequence[str], *, traceback: bool) -> Iterator[None]:
    """Turn what is raised into one line on standard error and an exit status.

    Args:
        end (Ending): Whose code will be 1 when training failed, 2 when a recipe is wrong, 130 and 143 after a signal.
        argv (Sequence[str]): The command, which is printed as it goes on after a signal.
        traceback (bool): Raise it instead.
    """
    from sam_algos.recipes.errors import RecipeError

    try:
        yield
        sys.stdout.flush()
    except (KeyboardInterrupt, SystemExit) as stop:
        code = getattr(stop, "code", 130)
        if code not in _SIGNALLED:
            raise
        end.code = int(code)
        _say("interrupted" + _files() + _going_on(argv))
    except BrokenPipeError:  # only the results go to standard output, and whoever reads them has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except RecipeError as error:
        _files()
        if traceback:
            raise
        end.code = 2
        _say(f"error: {error}")
    except Exception as error:  # whatever stopped the training: one line, and where to look
        if _is_missing(error):
            raise
        files = _files()
        if traceback:
            raise
        end.code = 1
        what = _disk_full(error) or f"{_summary(error)} (--traceback shows where)"
        print(f"error: {what}{files}", file=sys.stderr, flush=True)
    finally:
        _running.clear()
        _resumable.clear()


def _is_missing(error: Exception) -> bool:
    """Whether it says that a library is missing that the extra would bring."""
    return isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _OF_RECIPES


def _say(line: str) -> None:
    if rank() == 0:
        print(line, file=sys.stderr, flush=True)
    else:
        time.sleep(3)  # the launcher ends all processes when one ends: let the one that speaks be first


def _files() -> str:
    """Where the files of the run are, if there is anything in them; its bar is taken away, and an empty folder, too."""
    if not _running:
        return ""
    run = _running[0]
    if not run.stop():
        return "; no training step ran, and nothing was saved"
    return f"; checkpoint: {run.checkpoint or '-'}, log: {run.log}"


def _going_on(argv: Sequence[str]) -> str:
    """The command that goes on from the last checkpoint; nothing where there is none."""
    _note_checkpoint()
    name = _running[0].settings.run_name if _running else next(iter(_resumable), None)
    if name not in _resumable:
        return ""
    resumed = [f"run_name={name}", "autoresume=true"]
    words = [word for word in argv if word.partition("=")[0] not in ("run_name", "autoresume")] + resumed
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        return f"\ngo on with: {shlex.join(['sam-algos', *words])}"
    if world == os.environ.get("LOCAL_WORLD_SIZE"):
        return f"\ngo on with: {shlex.join(['composer', '-n', world, '-m', 'sam_algos.command', *words])}"
    return f"\ngo on with the same command and {shlex.join(resumed)}"


def _summary(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _disk_full(error: BaseException | None) -> str | None:
    """A full disk by its name, however deep in the libraries it was met."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"no space is left on the disk{f' for {error.filename}' if error.filename else ''}"
        if "PytorchStreamWriter failed writing" in str(error):  # all that PyTorch says of a checkpoint's failed write
            return "a checkpoint could not be written; is the disk full?"
        error = error.__cause__ or error.__context__
    return None
