"""Revise contrast (pipeline level)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strategies.contrast import Contrast, Generation, Level, Message, Strategy
from strategies.edit import check_edit, edited
from strategies.preset import Format, Preset


@dataclass(frozen=True, slots=True)
class Revise(Strategy):
    """A stronger model's minimal revision of the student's own answer, against that answer (CLAIR, arXiv 2408.06266).

    Assumes that the teacher sees what is wrong and changes nothing else: then the pair differs where it should. Meant
    against refine's padding and chance-level label. ``max_change`` is the largest share of words that may differ; a
    pair beyond it is rejected as ``rewritten``. Known failures: the teacher writes its own answer, or speaks of the
    revision. Not to be expected of a model of 135 million parameters, which seldom keeps even the form.
    """

    name: ClassVar[str] = "revise"
    level: ClassVar[Level] = "pipeline"
    wording: ClassVar[tuple[str, ...]] = ("revise",)

    preset: Preset
    student: str
    teacher: str
    format: Format = "free"
    thought_tokens: int | None = None
    max_change: float | None = None
    sample: int = 0

    def __post_init__(self) -> None:
        check_edit(self.thought_tokens, self.max_change)
        if self.student == self.teacher:
            raise ValueError(f"student and teacher are both '{self.student}'; a model's own second answer is `refine`")

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.teacher, self.student)

    def contrast(self, prompt: tuple[Message, ...]) -> Contrast:
        template = self.preset.revise
        assert template is not None, "the recipe was checked"
        own = Generation(self.student, prompt, sample=self.sample)
        revision = edited(
            self.teacher,
            prompt,
            own,
            template,
            form=self.format,
            thought_tokens=self.thought_tokens,
            sample=self.sample,
        )
        return Contrast(self.name, chosen=revision, rejected=own)
