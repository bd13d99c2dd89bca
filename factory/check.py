"""The checks that every pair passes before it is kept: cheap, pure, each with one reason."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from strategies.preset import Preset
from strategies.reading import MARKER

SPACE = re.compile(r"\s+")
# A short affix such as "(bad response)" is matched as it stands; of long texts a run of this many words is enough.
LEAK_WORDS = 8
# A placeholder of this many words does not come up by chance.
ECHO_WORDS = 5


def normal(text: str) -> str:
    """Text for comparison: compatibility form, lower case, single spaces, no punctuation at the ends."""
    folded = SPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    return folded.strip(" .!?\"'*`")


@dataclass(frozen=True, slots=True)
class Side:
    """One answer of a pair as it was made."""

    answer: str | None
    finish: str | None


@dataclass(frozen=True, slots=True)
class Checks:
    """The checks of method.md for one preset; ``reason`` is the first that fails, in the order in which they stand."""

    phrases: tuple[str, ...]
    placeholders: tuple[str, ...]

    @classmethod
    def of(cls, preset: Preset) -> Checks:
        return cls(
            phrases=tuple(part for phrase in preset.phrases for part in _parts(phrase)) + _sentences(preset),
            placeholders=tuple(normal(text) for text in preset.placeholders),
        )

    def reason(self, chosen: Side, rejected: Side, prompt: str) -> str | None:
        """Why the pair is rejected, or None where it is kept; ``prompt`` is the prompt's own text."""
        asked = normal(prompt)
        tests: tuple[tuple[str, Callable[[Side], bool]], ...] = (
            ("unparseable", lambda side: side.answer is None),
            ("truncated", lambda side: side.finish == "length"),
            ("empty", lambda side: not normal(side.answer or "")),
            ("echo", lambda side: self._echoes(side.answer or "", asked)),
            ("leak", lambda side: self._leaks(side.answer or "", asked)),
        )
        for name, fails in tests:
            if fails(chosen) or fails(rejected):
                return name
        return "identical" if normal(chosen.answer or "") == normal(rejected.answer or "") else None

    def _echoes(self, answer: str, asked: str) -> bool:
        """A placeholder was copied instead of being filled in: ``<the good response>``, ``[what makes ...]``."""
        text = normal(answer)
        return any(
            # "the good response" may be said in earnest; in brackets, alone, or as a phrase of some length it is not.
            text == placeholder
            or (len(placeholder.split()) >= ECHO_WORDS and placeholder in text and placeholder not in asked)
            or any(f"{bracket}{placeholder}" in text for bracket in "<[(*")
            for placeholder in self.placeholders
        )

    def _leaks(self, answer: str, asked: str) -> bool:
        """A steering text or a marker of the form is still in the answer, and was not in the prompt itself."""
        if "Thought:" in answer or "Response:" in answer or MARKER.search(answer):
            return True
        text = normal(answer)
        return any(phrase in text and phrase not in asked and _stands_in(phrase, text) for phrase in self.phrases)


def _stands_in(phrase: str, text: str) -> bool:
    """Whether whole words of the text are the phrase: "use exactly this form" is not in "use exactly this formula"."""
    end = r"(?!\w)" if phrase[-1].isalnum() else ""
    return re.search(rf"(?<!\w){re.escape(phrase)}{end}", text) is not None


def _parts(phrase: str) -> list[str]:
    """A short phrase whole; a long one as its runs of ``LEAK_WORDS`` words."""
    words = normal(phrase).split()
    if len(words) <= LEAK_WORDS:
        # Single demonstration sentences can be everyday questions; the affix with its brackets never is.
        return [" ".join(words)]
    return [" ".join(words[i : i + LEAK_WORDS]) for i in range(len(words) - LEAK_WORDS + 1)]


def _sentences(preset: Preset) -> tuple[str, ...]:
    """The sentences of the instructions, of four words at least: a weak model repeats "Use exactly this form" alone."""
    sentences = [normal(text).rstrip(":") for template in preset.templates for text in template.instruction.split(". ")]
    return tuple(dict.fromkeys(text for text in sentences if len(text.split()) >= 4))
