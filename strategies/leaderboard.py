"""Leaderboard-rank contrast (model level)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.contrast import Contrast, Generation, Level, Message, Strategy, drawn
from strategies.preset import Preset


@dataclass(frozen=True, slots=True)
class Leaderboard(Strategy):
    """The first of a ranked ladder of models against a lower one, both on the bare prompt (PopAlign, section 3.2).

    ``ladder`` lists variants of like size, best first. With more than two, the lower rung is drawn per prompt by a
    hash of the prompt, as UltraFeedback's binarised set does. Assumes that the public rank holds for this prompt.
    Contrast accuracy 84.0 % by GPT-4, 65.5 % by PairRM; known failure: near ties on greetings and small talk.
    """

    name: ClassVar[str] = "leaderboard"
    level: ClassVar[Level] = "model"

    preset: Preset
    ladder: tuple[str, ...]
    sample: int = 0

    def __post_init__(self) -> None:
        if len(self.ladder) < 2:
            raise ValueError("ladder needs at least two variants, best first")
        twice = sorted({rung for rung in self.ladder if self.ladder.count(rung) > 1})
        if twice:
            raise ValueError(f"ladder names '{twice[0]}' twice; a model contrast needs different variants")

    @property
    def variants(self) -> tuple[str, ...]:
        return self.ladder

    def contrast(self, prompt: tuple[Message, ...]) -> Contrast:
        top, *lower = self.ladder
        return Contrast(
            self.name,
            Generation(top, prompt, sample=self.sample),
            Generation(lower[drawn(prompt, len(lower))], prompt, sample=self.sample),
        )
