"""Refine contrast (pipeline level)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.contrast import Contrast, Generation, Level, Message, Strategy
from strategies.edit import check_edit, edited
from strategies.preset import Format, Preset

# An answer is asked for again by all that follow it, in the forced form twice: 4 rounds are 16 times.
MOST_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Refine(Strategy):
    """A model's improved second answer against its first (PopAlign, section 3.3).

    The first answer is made from the bare prompt; a second turn asks for a better one, after a thought. The weakest
    contrast by judgement (55.5 % by GPT-4, 50.5 % by PairRM: chance): it pads a correct short answer or breaks the
    task's format. With more ``rounds`` (after Self-Refine, arXiv 2303.17651) each sees the prompt and the answer
    before it, so the context does not grow, and the last is chosen. ``max_change`` is the largest share of words that
    may differ between the two sides; a pair beyond it is rejected as ``rewritten``.
    """

    name: ClassVar[str] = "refine"
    level: ClassVar[Level] = "pipeline"

    preset: Preset
    variant: str
    format: Format = "free"
    thought_tokens: int | None = None
    rounds: int = 1
    max_change: float | None = None
    sample: int = 0

    def __post_init__(self) -> None:
        check_edit(self.thought_tokens, self.max_change)
        if not 1 <= self.rounds <= MOST_ROUNDS:
            raise ValueError(f"rounds is {self.rounds}; it must be between 1 and {MOST_ROUNDS}")

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.variant,)

    def contrast(self, prompt: tuple[Message, ...]) -> Contrast:
        first = last = Generation(self.variant, prompt, sample=self.sample)
        for _ in range(self.rounds):
            last = edited(
                self.variant,
                prompt,
                last,
                self.preset.refine,
                form=self.format,
                thought_tokens=self.thought_tokens,
                sample=self.sample,
            )
        return Contrast(self.name, chosen=last, rejected=first)
