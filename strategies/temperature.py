"""Temperature contrast (pipeline level)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.contrast import Contrast, Generation, Level, Message, Sampling, Strategy
from strategies.preset import Preset


@dataclass(frozen=True, slots=True)
class Temperature(Strategy):
    """One model on the bare prompt, decoded at a low temperature against a high one.

    The "limited pattern" that PopAlign argues against (section 1), as a baseline. Assumes that likely text is better
    text. Known failures: the pairs teach fluency and little else; with the checkpoint's own top-p the high side is
    cut back and near to the low one, without it the high side falls apart from about 1.5 on.
    """

    name: ClassVar[str] = "temperature"
    level: ClassVar[Level] = "pipeline"

    preset: Preset
    variant: str
    low: float = 0.3
    high: float = 1.2
    sample: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ValueError(
                f"low is {self.low} and high is {self.high}; 0 (greedy) or more for the chosen side, and more than "
                "that for the rejected one"
            )

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.variant,)

    def contrast(self, prompt: tuple[Message, ...]) -> Contrast:
        return Contrast(self.name, self._decoded(prompt, self.low), self._decoded(prompt, self.high))

    def _decoded(self, prompt: tuple[Message, ...], temperature: float) -> Generation:
        return Generation(self.variant, prompt, sampling=Sampling(temperature=temperature), sample=self.sample)
