"""The wording of the contrasts: data that a user can replace, one set of words for one run (never mixed)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Format = Literal["free", "forced"]


@dataclass(frozen=True, slots=True)
class Sides:
    """A wording for the chosen side and its counterpart for the rejected side."""

    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A question answered well and answered badly."""

    question: str
    good: str
    bad: str


@dataclass(frozen=True, slots=True)
class Template:
    """An instruction that names its criterion and the two placeholders of the ``Thought: Response:`` form."""

    instruction: str
    thought: str
    response: str

    def render(self) -> str:
        return f"{self.instruction}\n\nThought: <{self.thought}>\nResponse: <{self.response}>"


@dataclass(frozen=True, slots=True)
class Preset:
    """All wording of one preset (PopAlign, appendix A, in our own words)."""

    name: str
    affix: Sides
    nparam_affix: bool
    demonstrations: tuple[Demonstration, ...]
    elicitive_chosen: Template
    elicitive_rejected: Template
    refine: Template
    criterion: str = "better"
    """What a judge is asked about: which answer is ... for the person who asked."""

    @property
    def phrases(self) -> tuple[str, ...]:
        """Every fixed text that steers a generation and must never be found in a stored answer."""
        templates = (self.elicitive_chosen, self.elicitive_rejected, self.refine)
        return (
            self.affix.chosen,
            self.affix.rejected,
            *(text for d in self.demonstrations for text in (d.question, d.good, d.bad)),
            *(template.instruction for template in templates),
        )

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The texts between angle brackets, which a weak model copies instead of filling them in."""
        templates = (self.elicitive_chosen, self.elicitive_rejected, self.refine)
        return tuple(text for template in templates for text in (template.thought, template.response))
