"""What a wrong recipe raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class RecipeError(ValueError):
    """A recipe, an override or a file named by them is wrong; the message is one line for the user.

    Args:
        where (str): The key at fault as it is written in an override, e.g. ``algorithms.aesam.rho``,
            or the file.
        problem (str | Exception): What is wrong with it, and what to do.

    Example:
        >>> print(RecipeError("algorithms.sam.rho", "must be > 0"))
        algorithms.sam.rho: must be > 0
    """

    def __init__(self, where: str, problem: str | Exception) -> None:
        """Put the message on one line."""
        text = str(problem) or type(problem).__name__
        self.where, self.problem = (" ".join(words.split()) for words in (where, text))
        super().__init__(f"{self.where}: {self.problem}")

    def __reduce__(self) -> tuple[type[RecipeError], tuple[str, str]]:
        """Pickle the two arguments, as a training in another process raises it too."""
        return RecipeError, (self.where, self.problem)


class BadArgument(ValueError):
    """One argument of a function that a recipe names is wrong: its name, and the problem with the allowed range."""

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(problem)
        self.argument = argument


def unknown(where: str, kind: str, name: object, valid: Iterable[str], instead: Sequence[str] = ()) -> RecipeError:
    """An error for a name that is not valid, with the nearest valid one, or what is more likely meant `instead`.

    Example:
        >>> print(unknown("algorithms", "algorithm", "aesma", ["sam", "aesam"]))
        algorithms: unknown algorithm 'aesma'; did you mean 'aesam'?
    """
    choices = sorted(valid)
    lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.5)
    if instead:
        hint = f"did you mean {' or '.join(instead)}?"
    elif near:
        hint = f"did you mean {lower[near[0]]!r}?"
    elif choices:
        hint = f"valid: {', '.join(choices)}"
    else:
        hint = "there are none"
    if ":" in str(name):  # which YAML takes for one word
        hint += "; write a space after the colon"
    return RecipeError(where, f"unknown {kind} {name!r}; {hint}")
