"""Context distillation as a contrast (prompt level)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.contrast import Contrast, Generation, Level, Message, Strategy, with_system
from strategies.preset import Preset


@dataclass(frozen=True, slots=True)
class ContextDistill(Strategy):
    """A model with a context that describes a good assistant, against the same model without (Askell et al., arXiv
    2112.00861, as a pair; a baseline of PopAlign, section 4.1, which trains on the positive answers alone).

    Only the chosen side is steered: the rejected one is the model's natural answer, and no text is bad on purpose.
    Assumes that the context helps. Known failures: a chat model that was trained to behave so anyway gives a near
    tie, and the context shifts the manner (longer, more caveats) more than the substance.
    """

    name: ClassVar[str] = "context-distill"
    level: ClassVar[Level] = "prompt"
    wording: ClassVar[tuple[str, ...]] = ("context",)

    preset: Preset
    variant: str
    sample: int = 0

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.variant,)

    def contrast(self, prompt: tuple[Message, ...]) -> Contrast:
        return Contrast(
            self.name,
            Generation(self.variant, with_system(prompt, self.preset.context), sample=self.sample),
            Generation(self.variant, prompt, sample=self.sample),
        )
