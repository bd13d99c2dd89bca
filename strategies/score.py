"""What can be measured about a pair beside its provenance: generations of their own, made and stored as all others.

Three independent ways: a margin without a judge, a judge, a reward model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from strategies.contrast import Contrast, Generation, Message, Reply
from strategies.judge import verdicts


@dataclass(frozen=True, slots=True)
class Evidence:
    """The measurements of one contrast; an empty tuple where one is not asked for."""

    margin: tuple[Generation, ...] = ()  # log p of (chosen | chosen's prompt), (chosen | rejected's), then of rejected
    judge: tuple[Generation, ...] = ()  # chosen first, rejected first
    reward: tuple[Generation, ...] = ()  # chosen, rejected

    def walk(self) -> Iterator[Generation]:
        """All of them, each after those that it depends on."""
        for generation in (*self.margin, *self.judge, *self.reward):
            yield from generation.walk()


@dataclass(frozen=True, slots=True)
class Scores:
    """Which measurements are made, on which share of the prompts.

    ``margin`` names the variants that can tell log-probabilities. The margin of a pair is R(chosen) - R(rejected) with
    R(a) = log p(a | the prompt of the chosen side) - log p(a | the prompt of the rejected side), in nats, each by the
    model that made that side (DLMA, arXiv 2402.11907, section 3.2, there for one model). Above 0 it agrees with the
    label. It asks the generating models themselves, so it cannot see what they do not know.
    """

    share: float
    margin: frozenset[str] = frozenset()
    judge: str | None = None
    criterion: str = "better"
    reward: str | None = None

    def is_drawn(self, prompt: tuple[Message, ...]) -> bool:
        """Whether the pairs of a prompt are measured: by its hash, the same in every run."""
        text = "\n".join(str(message.content) for message in prompt)
        return int.from_bytes(hashlib.sha256(f"scores:{text}".encode()).digest()[:4], "big") / 2**32 < self.share

    def evidence(self, prompt: tuple[Message, ...], contrast: Contrast) -> Evidence:
        """What is measured about a contrast."""
        if not self.is_drawn(prompt):
            return Evidence()
        sides = (contrast.chosen, contrast.rejected)
        margin: tuple[Generation, ...] = ()
        # Of two draws from one request (rlaif, temperature) every margin is 0.
        if {side.variant for side in sides} <= self.margin and _asked(sides[0]) != _asked(sides[1]):
            margin = tuple(_logprob(asked, answer) for answer in sides for asked in sides)
        return Evidence(
            margin=margin,
            judge=verdicts(self.judge, self.criterion, prompt, *sides) if self.judge else (),
            reward=tuple(_reward(self.reward, prompt, side) for side in sides) if self.reward else (),
        )


def _asked(side: Generation) -> Generation:
    """A side's request alone, without how its answer was drawn."""
    return Generation(side.variant, side.messages, side.prefill)


def _logprob(asked: Generation, answer: Generation) -> Generation:
    """How likely the model of ``asked`` would have given ``answer``'s answer to ``asked``'s request."""
    return replace(_asked(asked), measure="logprob", given=Reply(answer))


def _reward(model: str, prompt: tuple[Message, ...], answer: Generation) -> Generation:
    return Generation(model, (*prompt, Message("assistant", Reply(answer))), measure="reward")
