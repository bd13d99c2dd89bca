"""Pairs of a labelled data set, beside those that are made: Label-DPO, the paper's upper baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.contrast import Contrast, Generation, Level, Message, Strategy
from strategies.preset import Preset

# Not a variant of any recipe: what stands under this name was given with the prompts.
GIVEN = "label"


@dataclass(frozen=True, slots=True)
class Label(Strategy):
    """The answers that came with the prompt in the columns `chosen` and `rejected`, as its people or judges labelled
    them (PopAlign, section 4.1, "Label-DPO"). Nothing is generated; a prompt without the columns fails with
    `generation_missing`.
    """

    name: ClassVar[str] = "label"
    level: ClassVar[Level] = "data"

    preset: Preset
    sample: int = 0

    @property
    def variants(self) -> tuple[str, ...]:
        return ()

    def contrast(self, prompt: tuple[Message, ...]) -> Contrast:
        return Contrast(self.name, given(prompt, 0), given(prompt, 1))


def given(prompt: tuple[Message, ...], side: int) -> Generation:
    """The identity of a labelled answer: 0 is the chosen one."""
    return Generation(GIVEN, prompt, sample=side)
