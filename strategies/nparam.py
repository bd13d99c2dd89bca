"""Number-of-parameters contrast (model level)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.contrast import Contrast, Generation, Level, Message, Strategy
from strategies.prefix import Affix, affixed
from strategies.preset import Preset


@dataclass(frozen=True, slots=True)
class NParam(Strategy):
    """A model against its smaller sibling of the same family (PopAlign, section 3.2).

    Bare prompts in the ``leaderboard`` preset; in ``alignment`` the prefix affixes are added, positive on the large
    model, negative on the small one. Assumes that parameters buy quality within a family. Contrast accuracy 88.0 %
    by GPT-4, 73.0 % by PairRM; known failure: both agree on trivial items, a near tie.
    """

    name: ClassVar[str] = "nparam"
    level: ClassVar[Level] = "model"

    preset: Preset
    chosen: str
    rejected: str
    affix: Affix = "prefill"
    sample: int = 0

    def __post_init__(self) -> None:
        if self.chosen == self.rejected:
            raise ValueError(f"chosen and rejected are both '{self.chosen}'; a model contrast needs two variants")

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.chosen, self.rejected)

    def contrast(self, prompt: tuple[Message, ...]) -> Contrast:
        if not self.preset.nparam_affix:
            return Contrast(
                self.name,
                Generation(self.chosen, prompt, sample=self.sample),
                Generation(self.rejected, prompt, sample=self.sample),
            )
        affix = self.preset.affix
        return Contrast(
            self.name,
            affixed(self.chosen, prompt, affix.chosen, self.affix, self.sample),
            affixed(self.rejected, prompt, affix.rejected, self.affix, self.sample),
        )
