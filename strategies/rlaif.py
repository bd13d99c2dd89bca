"""Two samples of one model, ordered by a judge: the baseline that the paper compares with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.contrast import Contrast, Generation, Level, Message, Strategy
from strategies.judge import verdicts
from strategies.preset import Preset

# Tells the second draw from the first of any other strategy: samples per strategy count from 0.
SECOND = 1_000_000


@dataclass(frozen=True, slots=True)
class Rlaif(Strategy):
    """A judge's verdict over two draws of the same model from the bare prompt (RLAIF; PopAlign, section 4.1).

    Not free of labels: the label is a verdict. Both orders are asked, and a pair whose verdicts disagree is rejected
    with the reason `tie`. In the paper: 53.2 % reward accuracy against 70.3 % of PopAlign; a judge that is no better
    than the generator orders little but length and place.
    """

    name: ClassVar[str] = "rlaif"
    level: ClassVar[Level] = "pipeline"

    preset: Preset
    variant: str
    judge: str
    sample: int = 0

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.variant, self.judge)))

    def contrast(self, prompt: tuple[Message, ...]) -> Contrast:
        first = Generation(self.variant, prompt, sample=self.sample)
        second = Generation(self.variant, prompt, sample=self.sample + SECOND)
        asked = verdicts(self.judge, self.preset.criterion, prompt, first, second)
        return Contrast(self.name, chosen=first, rejected=second, verdicts=asked)
