"""Elicitive contrast (prompt level)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.contrast import Contrast, Generation, Level, Message, Strategy, last_turn
from strategies.preset import Format, Preset, Template
from strategies.thought import check_thought_tokens, thoughtful


@dataclass(frozen=True, slots=True)
class Elicitive(Strategy):
    """One model, asked to think first about what makes a good answer, or a bad one, and to answer so.

    PopAlign, section 3.1: the strongest contrast of the six (91.5 % by GPT-4, 85.5 % by PairRM). The prompt comes
    first, then the instruction; of ``Thought: ... Response: ...`` only the response is kept. Known failure: it
    flips where the task itself asks for a bad answer ("write an incorrect summary").
    """

    name: ClassVar[str] = "elicitive"
    level: ClassVar[Level] = "prompt"

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
        return Contrast(
            self.name,
            self._elicited(prompt, self.preset.elicitive_chosen),
            self._elicited(prompt, self.preset.elicitive_rejected),
        )

    def _elicited(self, prompt: tuple[Message, ...], template: Template) -> Generation:
        messages = last_turn(prompt, before="", after=f"\n\n{template.render()}")
        return thoughtful(
            self.variant, messages, form=self.format, thought_tokens=self.thought_tokens, sample=self.sample
        )
