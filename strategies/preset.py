"""The wording of the contrasts: data that a user can replace, one set of words for one run (never mixed)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

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
    """All wording of one preset (PopAlign, appendix A, in our own words).

    The sections below ``criterion`` are for the neighbours of the six strategies; a user's own file may lack them.
    """

    SECTIONS: ClassVar[tuple[str, ...]] = ("rlcd", "system", "context", "revise", "worsen")

    name: str
    affix: Sides
    nparam_affix: bool
    demonstrations: tuple[Demonstration, ...]
    elicitive_chosen: Template
    elicitive_rejected: Template
    refine: Template
    criterion: str = "better"
    """What a judge is asked about: which answer is ... for the person who asked."""
    rlcd: tuple[Sides, ...] = ()
    """Pairs of affixes, alike in form."""
    system: tuple[Sides, ...] = ()
    """Pairs of system messages, alike in form."""
    context: str = ""
    """A system message that describes a good assistant."""
    revise: Template | None = None
    worsen: Template | None = None

    def only(self, sections: Collection[str]) -> Preset:
        """The preset without the optional sections that are not among these: what steers nothing cannot leak."""
        blank = {f.name: f.default for f in fields(self) if f.name in self.SECTIONS and f.name not in sections}
        return replace(self, **blank)  # type: ignore[arg-type]  # the defaults of these very fields

    @property
    def templates(self) -> tuple[Template, ...]:
        """Every instruction that asks for a thought and a response."""
        templates = (self.elicitive_chosen, self.elicitive_rejected, self.refine, self.revise, self.worsen)
        return tuple(template for template in templates if template is not None)

    @property
    def phrases(self) -> tuple[str, ...]:
        """Every fixed text that steers a generation and must never be found in a stored answer."""
        return (
            *(text for pair in (self.affix, *self.rlcd, *self.system) for text in (pair.chosen, pair.rejected)),
            *([self.context] if self.context else []),
            *(text for d in self.demonstrations for text in (d.question, d.good, d.bad)),
            *(template.instruction for template in self.templates),
        )

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The texts between angle brackets, which a weak model copies instead of filling them in."""
        return tuple(text for template in self.templates for text in (template.thought, template.response))
