"""Degenerate repetition: an answer that has fallen into a loop."""

from __future__ import annotations

import re
from collections.abc import Sequence
from operator import eq

NGRAM = 4
# Short answers repeat words in earnest: "no, no, no".
MIN_WORDS = 16
# In these, the same word so often in a row is a loop.
MIN_SAME = 6
# A unit of at most this many words, this many times in a row, is a loop.
MAX_PERIOD = 12
MIN_TURNS = 4
LOOP_SHARE = 0.25
# Of the lines, numbers aside: a list of ten items that are three.
MIN_LINES = 5
LINE_SHARE = 0.5
# Below this share no loop is looked for; it spares clean text the search, and a loop repeats more.
QUIET = 0.08
NUMBERS = re.compile(r"[\W\d_]+")


def repeats(raw: str, words: Sequence[str], threshold: float) -> bool:
    """Whether at least ``threshold`` of the word 4-grams have come before, half of the lines have, or a loop of four
    turns or more is a quarter of the answer."""
    if len(words) * 25 < len(raw):  # emoji, or one endless word
        words = [character for character in raw if not character.isspace()]
    if len(words) < MIN_WORDS:  # "10,192,192,192,192,192,192"
        return any(words[i : i + MIN_SAME] == [word] * MIN_SAME for i, word in enumerate(words))
    share = repeated(words)
    if share >= threshold:
        return True
    return (share >= QUIET and _loops(words)) or _lines(raw)


def repeated(words: Sequence[str]) -> float:
    """The share of word 4-grams that have come before."""
    ngrams = list(zip(*(words[i:] for i in range(NGRAM)), strict=False))
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _loops(words: Sequence[str]) -> bool:
    for period in range(1, min(MAX_PERIOD, len(words) // MIN_TURNS) + 1):
        same = bytes(map(eq, words[period:], words))  # 1 where a word is the one that stood a period before
        run = max(map(len, same.split(b"\0"))) + period
        if run >= MIN_TURNS * period and run >= LOOP_SHARE * len(words):
            return True
    return False


def _lines(raw: str) -> bool:
    lines = [NUMBERS.sub(" ", line).strip() for line in raw.casefold().split("\n")]
    lines = [line for line in lines if " " in line]
    return len(lines) >= MIN_LINES and 1 - len(set(lines)) / len(lines) >= LINE_SHARE
