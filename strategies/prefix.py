"""Prefix contrast (prompt level)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from strategies.contrast import Contrast, Generation, Level, Message, Strategy, with_system
from strategies.preset import Preset

Affix = Literal["prefill", "system"]


@dataclass(frozen=True, slots=True)
class Prefix(Strategy):
    """One model, a positive and a negative affix (PopAlign, section 3.1; RLCD, arXiv 2307.12950).

    The affix is a prefill of the assistant turn: it stands right after the assistant header, before the first
    generated token, and is not part of the answer. Assumes that a model continues in the manner it seems to have
    begun with. Known failure: often a near tie (contrast accuracy 75.5 % by GPT-4, 56.5 % by PairRM).
    """

    name: ClassVar[str] = "prefix"
    level: ClassVar[Level] = "prompt"

    preset: Preset
    variant: str
    affix: Affix = "prefill"
    sample: int = 0

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.variant,)

    def contrast(self, prompt: tuple[Message, ...]) -> Contrast:
        affix = self.preset.affix
        return Contrast(
            self.name,
            affixed(self.variant, prompt, affix.chosen, self.affix, self.sample),
            affixed(self.variant, prompt, affix.rejected, self.affix, self.sample),
        )


def affixed(variant: str, prompt: tuple[Message, ...], text: str, affix: Affix, sample: int) -> Generation:
    """The bare prompt with an affix as the opening of the answer, or as a system message where that is asked for."""
    if affix == "system":
        return Generation(variant, with_system(prompt, text), sample=sample)
    return Generation(variant, prompt, prefill=text, sample=sample)
