"""The errors a user can meet, all picklable, so that Ray carries them between processes.

PopalignError
├── InputError    the user's input is wrong: a recipe, a prompt file, a model, a plan that does not fit (exit code 2)
└── RunError      a run failed, or its books do not balance (exit code 1)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PopalignError(Exception):
    """One line that says what is wrong, the value, and what to do."""

    exit_code = 1


class InputError(PopalignError, ValueError):
    """The user's input is wrong; nothing was written."""

    exit_code = 2


class RunError(PopalignError):
    """A run could not be finished; what is done is kept."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown word: ``; did you mean 'x'?`` or ``; known: a, b``."""
    known = sorted(known)
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean '{match[0]}'?" if match else f"; known: {', '.join(known) or 'none'}"
