"""The errors a user can meet, all picklable, so that Ray carries them between processes.

PopalignError
├── InputError    the user's input is wrong: a recipe, a prompt file, a model, a plan that does not fit (exit code 2)
├── RunError      a run failed, or its books do not balance (exit code 1)
└── Stopped       a run was asked to stop, by a signal (exit code 128 + its number) or a budget (exit code 1)
"""

from __future__ import annotations

import contextlib
import difflib
import traceback
from collections.abc import Iterable


class PopalignError(Exception):
    """One line that says what is wrong, the value, and what to do."""

    exit_code = 1

    def __str__(self) -> str:
        # Ray Data appends lines of advice to whatever passes through it.
        return str(self.args[0]).partition("\n")[0] if self.args else ""


class InputError(PopalignError, ValueError):
    """The user's input is wrong; nothing was written."""

    exit_code = 2


class RunError(PopalignError):
    """A run could not be finished; what is done is kept."""


class Stopped(PopalignError):
    """A run was asked to stop, and has stored what was in flight."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message, exit_code)
        self.exit_code = exit_code

    def with_way(self, done: str, run: object) -> Stopped:
        """The same, with what is done and how to go on."""
        return Stopped(f"{self}: {done}; go on with: popalign generate {run}/recipe.yaml", self.exit_code)


def root_cause(error: BaseException) -> BaseException:
    """The error that a worker raised, under what Ray wraps around it."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        error = getattr(error, "cause", None) or error.__cause__ or error
    return error


def log(error: BaseException) -> None:
    """Print an error's traceback to the process's own standard error, which is the run's log by then."""
    with contextlib.suppress(OSError):  # the log is on the same full disk that the error may be about
        traceback.print_exception(error)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown word: ``; did you mean 'x'?`` or ``; known: a, b``."""
    known = sorted(known)
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean '{match[0]}'?" if match else f"; known: {', '.join(known) or 'none'}"
