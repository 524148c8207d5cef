"""How a command ends: an exit status, and one line for whatever went wrong."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sam_algos.recipes.run import Run

_OF_RECIPES = (
    "torch", "omegaconf", "yaml", "composer", "torchvision", "sklearn", "scipy", "mnist1d", "matplotlib", "tqdm",
)  # fmt: skip
"""The modules that the extra ``recipes`` installs."""

_SIGNALLED = (130, 143)  # 128 + SIGINT or SIGTERM: Composer's signal handlers exit with them

_running: list[Run] = []
"""The run that is going on."""

_resumable: set[str] = set()
"""Names of runs that left a checkpoint; all trainings of a comparison share one."""


def exit_status(command: Callable[[], int], argv: Sequence[str], *, traceback: bool) -> int:
    """Run a command, and turn what it raises into an exit status and one line, unless the `traceback` is asked for.

    The status is 1 when training failed, 2 when a recipe is wrong or a library is missing, and 130 or 143 after a
    signal; then the command that goes on is printed, too: `argv` and what it takes to resume.
    """
    from sam_algos.recipes.errors import RecipeError

    status = 0
    try:
        status = command()
        sys.stdout.flush()
        return status
    except (KeyboardInterrupt, SystemExit) as stop:
        code = getattr(stop, "code", 130)
        if code not in _SIGNALLED:
            raise
        _say("interrupted" + _files() + _going_on(argv))
        return int(code)
    except BrokenPipeError:  # only the results go to standard output, and whoever reads them has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return status
    except Exception as error:
        files = _files()
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _OF_RECIPES:
            _say(f"error: {error.name} is not installed: pip install 'sam_algos[recipes]'")
            return 2
        if traceback:
            raise
        if isinstance(error, RecipeError):
            _say(f"error: {error}")
            return 2
        what = _disk_full(error) or f"{_summary(error)} (--traceback shows where)"
        print(f"error: {what}{files}", file=sys.stderr, flush=True)
        return 1
    finally:
        _running.clear()
        _resumable.clear()


def running(run: Run) -> None:
    """Say which run is going on now, so that an interrupt can say where its files are, and how to go on."""
    _note_checkpoint()
    _running[:] = [run]


@contextmanager
def stopping() -> Iterator[None]:
    """Leave the files of the run in order, whatever ends it, and let another process report it."""
    try:
        yield
    except BaseException:
        _files()
        raise
    finally:
        _running.clear()


def resumable(run_name: str) -> None:
    """Say that runs of other processes left files under this name, so that the comparison can go on."""
    _resumable.add(run_name)


def rank() -> int:
    """This process's rank, without asking PyTorch for it."""
    return int(os.environ.get("RANK", 0))


def _note_checkpoint() -> None:
    for run in _running:
        if run.checkpoint and run.settings.run_name:
            _resumable.add(run.settings.run_name)


def _say(line: str) -> None:
    if rank() == 0:
        print(line, file=sys.stderr, flush=True)
    else:
        time.sleep(3)  # the launcher ends all processes when one ends: let the one that speaks be first


def _files() -> str:
    """Stop the run, and say where its files are, if there is anything in them."""
    if not _running:
        return ""
    run = _running[0]
    if not run.stop():
        return "; no training step ran, and nothing was saved"
    return f"; checkpoint: {run.checkpoint or '-'}, log: {run.log}"


def _going_on(argv: Sequence[str]) -> str:
    """The command that goes on from the last checkpoint, if there is one."""
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
    """Name a full disk, however deep in the libraries it was met."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"no space is left on the disk{f' for {error.filename}' if error.filename else ''}"
        if "PytorchStreamWriter failed writing" in str(error):  # PyTorch says no more of a checkpoint's failed write
            return "a checkpoint could not be written; is the disk full?"
        error = error.__cause__ or error.__context__
    return None
