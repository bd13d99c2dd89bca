"""Delta contrast (model level)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.contrast import Contrast, Generation, Level, Message, Strategy
from strategies.preset import Preset


@dataclass(frozen=True, slots=True)
class Delta(Strategy):
    """A model against a smaller one, both of them smaller than the model that learns (Delta Learning, arXiv
    2507.06187).

    Assumes that the difference teaches and not the level: pairs of a 3B over a 1.5B model lifted an 8B model from 57.2
    to 63.4 on average. Bare prompts in both presets. That the two are smaller is not known here and is yours to see
    to; a recipe that trains one of them is refused. Known failure: the chosen answers are below the student's own, so
    training that copies them (a likelihood term, many epochs) makes it worse; safety can regress.
    """

    name: ClassVar[str] = "delta"
    level: ClassVar[Level] = "model"
    below_student: ClassVar[bool] = True

    preset: Preset
    chosen: str
    rejected: str
    sample: int = 0

    def __post_init__(self) -> None:
        if self.chosen == self.rejected:
            raise ValueError(f"chosen and rejected are both '{self.chosen}'; a model contrast needs two variants")

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.chosen, self.rejected)

    def contrast(self, prompt: tuple[Message, ...]) -> Contrast:
        return Contrast(
            self.name,
            Generation(self.chosen, prompt, sample=self.sample),
            Generation(self.rejected, prompt, sample=self.sample),
        )
