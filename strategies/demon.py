"""Demonstrations contrast (prompt level)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.contrast import Contrast, Generation, Level, Message, Strategy, last_turn
from strategies.preset import Preset


@dataclass(frozen=True, slots=True)
class Demon(Strategy):
    """One model, three good demonstrations against the same questions answered badly (PopAlign, section 3.1).

    The demonstrations stand inside the user turn, before the prompt, as ``question\\nanswer`` blocks separated by a
    blank line. Assumes that a model answers in the quality it was shown. Contrast accuracy 76.5 % by GPT-4, 65.5 %
    by PairRM; known failure: the answer takes up a demonstration's subject, which the leak check finds.
    """

    name: ClassVar[str] = "demon"
    level: ClassVar[Level] = "prompt"

    preset: Preset
    variant: str
    sample: int = 0

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.variant,)

    def contrast(self, prompt: tuple[Message, ...]) -> Contrast:
        good = [f"{d.question}\n{d.good}" for d in self.preset.demonstrations]
        bad = [f"{d.question}\n{d.bad}" for d in self.preset.demonstrations]
        return Contrast(self.name, self._shown(prompt, good), self._shown(prompt, bad))

    def _shown(self, prompt: tuple[Message, ...], blocks: list[str]) -> Generation:
        messages = last_turn(prompt, before="".join(f"{block}\n\n" for block in blocks), after="")
        return Generation(self.variant, messages, sample=self.sample)
