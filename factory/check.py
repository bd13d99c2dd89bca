"""The checks that every pair passes before it is kept: cheap, pure, each with one reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from factory.language import differs
from factory.leak import Leaks
from factory.recipe import CheckSettings
from factory.refusal import misplaced
from factory.repetition import repeats
from factory.similarity import copies, near_identical
from factory.text import normal, read
from strategies.preset import Preset

# A placeholder of this many words does not come up by chance.
ECHO_WORDS = 5


@dataclass(frozen=True, slots=True)
class Side:
    """One answer of a pair as it was made, and the thought that came before it, where one was asked for."""

    answer: str | None
    finish: str | None
    thought: str | None = None


@dataclass(frozen=True, slots=True)
class Checks:
    """The checks of method.md for one preset; ``reason`` is the first that fails, in the order in which they stand."""

    settings: CheckSettings
    leaks: Leaks
    placeholders: tuple[str, ...]

    @classmethod
    def of(cls, preset: Preset, settings: CheckSettings | None = None) -> Checks:
        settings = settings or CheckSettings()
        return cls(
            settings=settings,
            leaks=Leaks.of(preset, settings.leak),
            placeholders=tuple(normal(text) for text in preset.placeholders),
        )

    def reason(self, chosen: Side, rejected: Side, prompt: str, declined: float = 0.0) -> str | None:
        """Why the pair is rejected, or None where it is kept.

        ``prompt`` is the prompt's own text, ``declined`` the share of all answers to it that refuse.
        """
        wanted = self.settings
        tests: tuple[tuple[str, Callable[[Side], bool]], ...] = (
            ("unparseable", lambda side: side.answer is None),
            ("truncated", lambda side: wanted.truncated and side.finish == "length"),
            ("empty", lambda side: not read(side.answer or "").normal),
            ("echo", lambda side: wanted.echo and self._echoes(side.answer or "", prompt)),
            ("leak", lambda side: self._leaks(side, prompt)),
            ("unfinished", lambda side: wanted.unfinished and _announces(side.answer or "")),
            ("repetition", lambda side: self._repeats(side.answer or "")),
            ("language", lambda side: wanted.language and _strays(side.answer or "", prompt)),
            ("prompt_copy", lambda side: self._copies(side.answer or "", prompt)),
        )
        for name, fails in tests:
            if fails(chosen) or fails(rejected):
                return name
        return self._of_both(chosen.answer or "", rejected.answer or "", prompt, declined)

    def _of_both(self, chosen: str, rejected: str, prompt: str, declined: float) -> str | None:
        wanted = self.settings
        one, other = read(chosen), read(rejected)
        if wanted.refusal is not None and misplaced(chosen, rejected, prompt, wanted.refusal, declined):
            return "refusal"
        if one.normal == other.normal:
            return "identical"
        limit = wanted.near_identical
        return "near_identical" if limit is not None and near_identical(one.words, other.words, limit) else None

    def _echoes(self, answer: str, prompt: str) -> bool:
        """A placeholder was copied instead of being filled in: ``<the good response>``, ``[what makes ...]``."""
        text, asked = read(answer).normal, read(prompt).normal
        return any(
            # "the good response" may be said in earnest; in brackets, alone, or as a phrase of some length it is not.
            text == placeholder
            or (len(placeholder.split()) >= ECHO_WORDS and placeholder in text and placeholder not in asked)
            or any(f"{bracket}{placeholder}" in text for bracket in "<[(*")
            for placeholder in self.placeholders
        )

    def _leaks(self, side: Side, prompt: str) -> bool:
        return self.leaks.kind(read(side.answer or ""), read(prompt), side.thought) is not None

    def _repeats(self, answer: str) -> bool:
        limit = self.settings.repetition
        return limit is not None and repeats(answer, read(answer).words, limit)

    def _copies(self, answer: str, prompt: str) -> bool:
        limit = self.settings.prompt_copy
        return limit is not None and copies(read(answer).words, read(prompt).words, limit)


def _announces(answer: str) -> bool:
    """The last character is a colon: something was to follow."""
    return answer.rstrip(" \n*_").endswith((":", "\N{FULLWIDTH COLON}"))


def _strays(answer: str, prompt: str) -> bool:
    return differs(read(answer).language, read(prompt).language, prompt)
