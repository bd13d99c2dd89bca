"""Refine contrast (pipeline level)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.contrast import Contrast, Generation, Level, Message, Reply, Strategy
from strategies.preset import Format, Preset
from strategies.thought import check_thought_tokens, thoughtful


@dataclass(frozen=True, slots=True)
class Refine(Strategy):
    """A model's improved second answer against its first (PopAlign, section 3.3).

    The first answer is made from the bare prompt; a second turn asks for a better one, after a thought. The weakest
    contrast by judgement (55.5 % by GPT-4, 50.5 % by PairRM: chance): it pads a correct short answer or breaks the
    task's format.
    """

    name: ClassVar[str] = "refine"
    level: ClassVar[Level] = "pipeline"

    preset: Preset
    variant: str
    format: Format = "free"
    thought_tokens: int | None = None
    sample: int = 0

    def __post_init__(self) -> None:
        check_thought_tokens(self.thought_tokens)

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.variant,)

    def contrast(self, prompt: tuple[Message, ...]) -> Contrast:
        first = Generation(self.variant, prompt, sample=self.sample)
        second_turn = (
            *prompt,
            Message("assistant", Reply(first)),
            Message("user", self.preset.refine.render()),
        )
        second = thoughtful(
            self.variant, second_turn, form=self.format, thought_tokens=self.thought_tokens, sample=self.sample
        )
        return Contrast(self.name, chosen=second, rejected=first)
