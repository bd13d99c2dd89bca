"""How much of an answer an edit has changed."""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein

from factory.text import WORD


def change(before: str, after: str) -> float:
    """The share of words that differ: the fewest that must be put in, taken out or replaced to turn one text into the
    other, over the words of the longer one. 0 is no change, 1 a text of its own; case and punctuation do not count.
    """
    return Levenshtein.normalized_distance(WORD.findall(before.casefold()), WORD.findall(after.casefold()))


def rewritten(before: str, after: str, max_change: float | None) -> bool:
    """Whether more was changed than a strategy allows."""
    return max_change is not None and change(before, after) > max_change
