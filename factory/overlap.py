"""What prompts share with evaluation sets: word n-grams, as the field looks for contamination.

A prompt is contaminated where n-grams that it shares with one evaluation prompt cover at least half of that prompt's
words: n = 8 and 50 % as in Tülu 3 (arXiv 2411.15124, section 3.2). GPT-3 took any one shared n-gram of 8 to 13 words
(arXiv 2005.14165, appendix C), which among prompts also finds templates. Evaluation prompts shorter than n words, which
are a third of MT-Bench and XSTest, have to stand in the prompt whole; shorter than ``WHOLE`` words, be all of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# "Hello there" stands in many prompts and contaminates none. Of 4,650 real prompts none holds one of XSTest's or
# MT-Bench's 137 prompts of five to seven words.
WHOLE = 5
# Scripts without spaces count by the character. Operators are words, or "2 + 2" and "2 * 2" would be the same text.
_UNSPACED = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[+*/=<>^%|&~−×÷-]")


def words(text: str) -> list[str]:
    """The words of a text for comparison: compatibility form, case folded, without punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@dataclass(frozen=True, slots=True)
class Overlap:
    """What a prompt shares with an evaluation prompt."""

    evaluation: str  # where that stands: file and line
    ngram: str  # the first n-gram that both hold
    share: float  # of the evaluation prompt's words that are covered, 0 to 1


class Evaluations:
    """An index of the n-grams of evaluation prompts. Memory: some 150 bytes a word of theirs."""

    def __init__(self, prompts: Iterable[tuple[str, str]], ngram: int, share: float) -> None:
        """``prompts`` are (where it stands, text); ``ngram`` is in words; ``share`` is the least that counts."""
        self._ngram = ngram
        self._share = share
        self._places: list[tuple[str, int]] = []  # of each evaluation prompt: where it stands, and its words
        self._grams: dict[str, list[tuple[int, int]]] = {}  # n-gram -> (evaluation prompt, first word)
        self._whole: dict[str, int] = {}
        for place, text in prompts:
            self._add(place, _spoken(text))
        self._lengths = sorted({gram.count(" ") + 1 for gram in self._grams})

    def __len__(self) -> int:
        return len(self._places)

    def overlap(self, text: str) -> Overlap | None:
        """The evaluation prompt that is covered most by a text, where that is enough; the first of equal ones."""
        spoken = _spoken(text)
        covered: dict[int, set[int]] = {}
        first: dict[int, str] = {}
        if (row := self._whole.get(" ".join(spoken))) is not None:
            covered[row], first[row] = set(range(self._places[row][1])), " ".join(spoken)
        for length in self._lengths:
            for gram in _grams(spoken, length):
                for row, at in self._grams.get(gram, ()):
                    covered.setdefault(row, set()).update(range(at, at + length))
                    first.setdefault(row, gram)
        share, row = max(((len(found) / self._places[row][1], -row) for row, found in covered.items()), default=(0, 0))
        if share < self._share:
            return None
        return Overlap(self._places[-row][0], first[-row], round(share, 3))

    def _add(self, place: str, spoken: Sequence[str]) -> None:
        if not spoken:
            return
        row = len(self._places)
        self._places.append((place, len(spoken)))
        if len(spoken) < WHOLE:
            self._whole.setdefault(" ".join(spoken), row)
            return
        for at, gram in enumerate(_grams(spoken, min(self._ngram, len(spoken)))):
            self._grams.setdefault(gram, []).append((row, at))


def _spoken(text: str) -> list[str]:
    """Words without operators: "well-known" and "well known" are the same to a reader of benchmarks."""
    return [word for word in words(text) if word[0].isalnum() or word[0] == "_"]


def _grams(spoken: Sequence[str], length: int) -> list[str]:
    return [" ".join(spoken[i : i + length]) for i in range(len(spoken) - length + 1)]
