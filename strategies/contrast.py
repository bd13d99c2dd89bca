"""The values a contrast is made of.

A contrast is an expression: it says which two completions to compare and how each is made, and it makes
neither. Everything here is frozen, engine-free and picklable; the factory reads these values and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from typing import ClassVar, Literal

Level = Literal["prompt", "model", "pipeline", "data"]
Read = Literal["whole", "thought", "response"]
Measure = Literal["logprob", "reward"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """What one generation asks of the decoder beyond the recipe's own sampling; ``None`` keeps the recipe's.

    ``stop`` and ``bad_words`` (texts that are never generated) are added to the recipe's.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] | None = None
    bad_words: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """ "The answer of that generation", between two fixed texts; a placeholder until the factory has made it."""

    generation: Generation
    before: str = ""
    after: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str | Reply | tuple[str | Reply, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """One completion to be made: equal content, equal ``id``, and equal ids are generated once.

    ``prefill`` opens the assistant turn: the model continues it and it is not part of the completion.
    ``read`` says which part of the turn is the answer (see ``strategies.reading``).
    ``sample`` tells apart independent draws of otherwise equal content.

    With ``measure`` nothing is drawn: ``logprob`` is the log-probability of the text ``given`` as the model's answer
    after ``messages`` and ``prefill``, ``reward`` what a sequence classifier says of ``messages``, an answer included.
    """

    variant: str
    messages: tuple[Message, ...]
    prefill: str | Reply = ""
    read: Read = "whole"
    sampling: Sampling = Sampling()
    sample: int = 0
    measure: Measure | None = None
    given: Reply | None = None
    _id: str = field(default="", init=False, repr=False, compare=False)

    @property
    def id(self) -> str:
        """128 bits of SHA-256 over the content as 32 hexadecimal digits."""
        if not self._id:  # kept: a pool asks four times, and half of its own time went into this
            content = _encode(_plain(self))
            object.__setattr__(self, "_id", hashlib.sha256(content.encode()).hexdigest()[:32])
        return self._id

    @property
    def replies(self) -> tuple[Generation, ...]:
        """The generations whose answers this one needs before it can start."""
        parts = [*(message.content for message in self.messages), self.prefill, self.given]
        flat = [piece for part in parts for piece in (part if isinstance(part, tuple) else (part,))]
        return tuple(piece.generation for piece in flat if isinstance(piece, Reply))

    def walk(self) -> Iterator[Generation]:
        """This generation after all it depends on, in an order in which they can be made."""
        for generation in self.replies:
            yield from generation.walk()
        yield self


# Made once: `json.dumps` with options makes an encoder for each call, a quarter of the time of an id.
_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode


@cache
def _wishes(sampling: Sampling) -> dict[str, object]:
    """What is not left to the recipe; a strategy has one or two values for all prompts."""
    wishes = {f.name: _number(getattr(sampling, f.name)) for f in fields(Sampling)}
    return {name: value for name, value in wishes.items() if value is not None}


def _plain(generation: Generation) -> dict[str, object]:
    def part(content: str | Reply | tuple[str | Reply, ...]) -> object:
        if isinstance(content, str):
            return content
        if isinstance(content, tuple):
            return [part(piece) for piece in content]
        return {"reply": content.generation.id, "before": content.before, "after": content.after}

    measured: dict[str, object] = {}
    if generation.measure is not None or generation.given is not None:
        measured = {"measure": generation.measure, "given": part(generation.given or "")}
    return measured | {
        "variant": generation.variant,
        "messages": [[message.role, part(message.content)] for message in generation.messages],
        "prefill": part(generation.prefill),
        "read": generation.read,
        "sampling": _wishes(generation.sampling),
        "sample": generation.sample,
    }


def _number(value: object) -> object:
    """1 and 1.0 are equal values, and so must their ids be."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two generations for one prompt, of which the provenance says that ``chosen`` is the better one.

    Where it cannot say so, ``verdicts`` do: a judge's answers about the two in both orders (``strategies.judge``).
    """

    strategy: str
    chosen: Generation
    rejected: Generation
    verdicts: tuple[Generation, ...] = ()

    def walk(self) -> Iterator[Generation]:
        """All its generations, each after those that it depends on."""
        for generation in (self.chosen, self.rejected, *self.verdicts):
            yield from generation.walk()


@dataclass(frozen=True, slots=True)
class Strategy(ABC):
    """A way of making one chosen and one rejected answer to a prompt.

    A subclass is a frozen dataclass: its fields are what a recipe may say about it. ``affixes``, ``variants`` and
    ``examples`` let the factory check a recipe, plan it and find leaks without knowing which strategy it holds.
    """

    name: ClassVar[str]
    level: ClassVar[Level]
    # Sections of the preset that it needs and that a user's own file may lack.
    wording: ClassVar[tuple[str, ...]] = ()
    # Whether all its models must be others than the one that is trained.
    below_student: ClassVar[bool] = False

    @abstractmethod
    def contrast(self, prompt: tuple[Message, ...]) -> Contrast:
        """The contrast for a prompt: a conversation that ends with a user turn."""

    @property
    @abstractmethod
    def variants(self) -> tuple[str, ...]:
        """The variants it generates with, the chosen side's first."""

    @property
    def max_change(self) -> float | None:
        """The largest share of words that may differ between the two sides, where one is an edit of the other."""
        return None


def last_turn(prompt: tuple[Message, ...], before: str, after: str) -> tuple[Message, ...]:
    """The prompt with text put around its last user turn."""
    *earlier, last = prompt
    assert last.role == "user" and isinstance(last.content, str), "a prompt ends with a user turn"
    return (*earlier, Message("user", before + last.content + after))


def with_system(prompt: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    """The prompt under a system message; most chat templates take one only, so the text joins the prompt's own."""
    first, *rest = prompt
    if first.role != "system":
        return (Message("system", text), *prompt)
    return (Message("system", f"{first.content}\n\n{text}"), *rest)


def drawn(prompt: tuple[Message, ...], number: int, purpose: str = "") -> int:
    """One of ``number``, the same for a prompt in every run; for each ``purpose`` another draw."""
    key = "\n".join([*([purpose] if purpose else []), *(str(message.content) for message in prompt)])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % number
