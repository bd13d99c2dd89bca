"""RLCD contrast (prompt level): the prefix contrast over a pool of paired affixes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.contrast import Contrast, Generation, Level, Message, Strategy, drawn
from strategies.prefix import Affix, affixed
from strategies.preset import Preset, Sides


@dataclass(frozen=True, slots=True)
class Rlcd(Strategy):
    """One model, two affixes of one pair, the pair drawn per prompt from a pool (RLCD, arXiv 2307.12950).

    The two affixes of a pair are alike in surface form, so that the answers differ in the attribute and not in their
    manner. In a dialogue the earlier assistant turns carry the affix of the other side, which sets off the turn that
    is generated; with ``affix: system`` they stay as they are. Same assumption and failure as ``prefix``: many near
    ties (a human-trained reward model agreed with 54 % of a 7B model's harmlessness pairs, 68 % on helpfulness).
    """

    name: ClassVar[str] = "rlcd"
    level: ClassVar[Level] = "prompt"
    wording: ClassVar[tuple[str, ...]] = ("rlcd",)

    preset: Preset
    variant: str
    affix: Affix = "prefill"
    sample: int = 0

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.variant,)

    def contrast(self, prompt: tuple[Message, ...]) -> Contrast:
        pair = self.preset.rlcd[drawn(prompt, len(self.preset.rlcd), f"{self.name}:{self.sample}")]
        return Contrast(
            self.name,
            self._steered(prompt, pair),
            self._steered(prompt, Sides(chosen=pair.rejected, rejected=pair.chosen)),
        )

    def _steered(self, prompt: tuple[Message, ...], pair: Sides) -> Generation:
        """One side; ``pair`` holds its own affix first and that of the earlier turns second."""
        if self.affix == "prefill":
            prompt = tuple(
                Message("assistant", f"{pair.rejected} {turn.content}") if turn.role == "assistant" else turn
                for turn in prompt
            )
        return affixed(self.variant, prompt, pair.chosen, self.affix, self.sample)
