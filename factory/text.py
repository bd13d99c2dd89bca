"""A text as the checks read it: normalised, in words, in its language. Each form is worked out once and then shared."""

from __future__ import annotations

import re
import unicodedata
from functools import cached_property, lru_cache

from factory.language import language

SPACE = re.compile(r"\s+")
# Scripts that are written without spaces count by the character.
WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|\w+")


def normal(text: str) -> str:
    """Text for comparison: compatibility form, lower case, single spaces, no punctuation at the ends."""
    folded = SPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    return folded.strip(" .!?\"'*`")


class Text:
    """An answer or a prompt, and what has been worked out about it so far."""

    def __init__(self, raw: str) -> None:
        self.raw = raw

    @cached_property
    def normal(self) -> str:
        return normal(self.raw)

    @cached_property
    def words(self) -> list[str]:
        return WORD.findall(self.normal)

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        return frozenset(self.words)

    @cached_property
    def language(self) -> str | None:
        return language(self.raw)


@lru_cache(maxsize=64)
def read(raw: str) -> Text:
    """The text, remembered: the six strategies look at one prompt six times, and at shared sides three times."""
    return Text(raw)
