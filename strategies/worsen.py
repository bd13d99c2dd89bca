"""Worsen contrast (pipeline level)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.contrast import Contrast, Generation, Level, Message, Strategy
from strategies.edit import check_edit, edited
from strategies.preset import Format, Preset


@dataclass(frozen=True, slots=True)
class Worsen(Strategy):
    """A good answer against the same answer with one small error put in (the reverse of CLAIR, arXiv 2408.06266,
    whose code reads such answers too).

    Assumes that spoiling is easier than mending, and that the answer of ``variant`` is good to begin with. ``editor``
    puts the error in, by default the same model. ``max_change`` as in ``revise``. Known failures: the editor names the
    error, or mends instead; where the first answer was wrong already, the pair is a near tie.
    """

    name: ClassVar[str] = "worsen"
    level: ClassVar[Level] = "pipeline"
    wording: ClassVar[tuple[str, ...]] = ("worsen",)

    preset: Preset
    variant: str
    editor: str | None = None
    format: Format = "free"
    thought_tokens: int | None = None
    max_change: float | None = None
    sample: int = 0

    def __post_init__(self) -> None:
        check_edit(self.thought_tokens, self.max_change)

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.variant, self.editor or self.variant)))

    def contrast(self, prompt: tuple[Message, ...]) -> Contrast:
        template = self.preset.worsen
        assert template is not None, "the recipe was checked"
        good = Generation(self.variant, prompt, sample=self.sample)
        spoilt = edited(
            self.editor or self.variant,
            prompt,
            good,
            template,
            form=self.format,
            thought_tokens=self.thought_tokens,
            sample=self.sample,
        )
        return Contrast(self.name, chosen=good, rejected=spoilt)
