"""System contrast (prompt level): the contrast words as system messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.contrast import Contrast, Generation, Level, Message, Strategy, drawn, with_system
from strategies.preset import Preset


@dataclass(frozen=True, slots=True)
class System(Strategy):
    """One model under two system messages of one pair, the pair drawn per prompt from a pool (after RLCD, arXiv
    2307.12950).

    For models and servers that cannot continue an opened assistant turn. The sentences of a pair are alike in form.
    Assumes that a model follows its system message, and that its template has one. Known failures: a well aligned
    model ignores the bad one (near tie) or refuses it, and then it is a refusal that is rejected.
    """

    name: ClassVar[str] = "system"
    level: ClassVar[Level] = "prompt"
    wording: ClassVar[tuple[str, ...]] = ("system",)

    preset: Preset
    variant: str
    sample: int = 0

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.variant,)

    def contrast(self, prompt: tuple[Message, ...]) -> Contrast:
        pair = self.preset.system[drawn(prompt, len(self.preset.system), f"{self.name}:{self.sample}")]
        return Contrast(
            self.name,
            Generation(self.variant, with_system(prompt, pair.chosen), sample=self.sample),
            Generation(self.variant, with_system(prompt, pair.rejected), sample=self.sample),
        )
