"""How alike two texts are, word by word: answers that say the same, and answers that only repeat the prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rapidfuzz.distance import Indel

# Of two short answers one word is the whole difference.
MIN_WORDS = 20
# "is" and "is not" are opposites, and 41 and 42 are a right and a wrong answer.
NEGATIONS = {"not", "no", "never", "none", "nor", "cannot", "without", "nothing", "nobody", "neither", "t"}
# A copied prompt has its own beginning and its own end; a task's text that is given back ("correct the grammar of ...")
# lacks the instruction, which stands at one of the two.
EDGE = 4


def near_identical(one: Sequence[str], other: Sequence[str], threshold: float) -> bool:
    """Whether the share of words that the two have in common, in order, reaches the threshold, and what differs is
    neither a number nor a negation."""
    if min(len(one), len(other)) < MIN_WORDS or not _alike(one, other, threshold):
        return False
    left, right = Counter(one), Counter(other)
    changed = (left - right) + (right - left)
    return not any(word in NEGATIONS or word[0].isdigit() for word in changed)


def copies(answer: Sequence[str], prompt: Sequence[str], threshold: float) -> bool:
    """Whether the answer is the prompt again, instruction and all."""
    edge = min(EDGE, len(prompt))
    if len(prompt) < 3 or not _holds(answer, prompt[:edge]) or not _holds(answer, prompt[-edge:]):
        return False
    return _alike(answer, prompt, threshold)


def _alike(one: Sequence[str], other: Sequence[str], threshold: float) -> bool:
    shorter, longer = sorted((len(one), len(other)))
    if 2 * shorter < threshold * (shorter + longer):
        return False
    return bool(Indel.normalized_similarity(one, other, score_cutoff=threshold) >= threshold)


def _holds(words: Sequence[str], run: Sequence[str]) -> bool:
    first, size = run[0], len(run)
    return any(word == first and words[i : i + size] == run for i, word in enumerate(words))
