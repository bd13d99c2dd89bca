"""Reading the scores of a pair off what was measured about it (``strategies.score``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from strategies.contrast import Contrast, Generation, Message
from strategies.judge import Verdict, reading, reason
from strategies.score import Scores

Keep = Literal["all", "margin", "judge", "reward"]
NONE: dict[str, Any] = dict.fromkeys(("margin", "judge", "judge_reason", "reward_chosen", "reward_rejected"))


def score(
    contrast: Contrast, prompt: tuple[Message, ...], scores: Scores | None, completions: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """The score columns of a pair; null what was not measured, or cannot be read."""
    if scores is None:
        return dict(NONE)
    evidence = scores.evidence(prompt, contrast)
    judge, why = judged(evidence.judge, completions) if evidence.judge else (None, None)
    rewards = [_value(g, completions) for g in evidence.reward] or [None, None]
    return {
        "margin": _margin([_value(g, completions) for g in evidence.margin]),
        "judge": judge,
        "judge_reason": why,
        "reward_chosen": rewards[0],
        "reward_rejected": rewards[1],
    }


def judged(
    verdicts: Sequence[Generation], completions: Mapping[str, dict[str, Any]]
) -> tuple[Verdict | None, str | None]:
    """A judge's verdict over both orders, and its reasons."""
    texts = [(completions.get(g.id) or {}).get("answer") for g in verdicts]
    why = "\n---\n".join(reason(text) for text in texts if text)
    return reading(*texts), why or None


def turned(scored: dict[str, Any]) -> dict[str, Any]:
    """The scores of the pair with its sides exchanged."""
    margin = scored["margin"]
    swapped = {"reward_chosen": scored["reward_rejected"], "reward_rejected": scored["reward_chosen"]}
    return scored | {"margin": None if margin is None else -margin, **swapped}


def agrees(scored: dict[str, Any], by: Keep) -> bool | None:
    """Whether a measurement says that the chosen answer is the better one; None where it was not made."""
    if by == "margin":
        return None if scored["margin"] is None else scored["margin"] > 0
    if by == "judge":
        return None if scored["judge"] is None else scored["judge"] == "chosen"
    if by == "reward" and scored["reward_chosen"] is not None and scored["reward_rejected"] is not None:
        return bool(scored["reward_chosen"] > scored["reward_rejected"])
    return None


def signed(row: Mapping[str, Any], by: Literal["margin", "reward"]) -> float | None:
    """By how much a score prefers the chosen answer, in nats; None where it was not measured."""
    if by == "margin":
        return None if row["margin"] is None else float(row["margin"])
    chosen, rejected = row["reward_chosen"], row["reward_rejected"]
    return None if chosen is None or rejected is None else float(chosen - rejected)


def confidence(row: Mapping[str, Any], by: Literal["margin", "judge", "reward"]) -> float | None:
    """The probability, 0 to 1, that a score gives a pair's label; None where it was not measured.

    A difference of rewards is a log-odds by the Bradley-Terry model that reward models are trained with. So is the
    margin, by Bayes: with both requests equally likely beforehand it is the log-odds that the chosen answer came from
    the chosen side's request and the rejected one from the rejected side's, against the exchange of the two.
    """
    if by == "judge":
        return {None: None, "chosen": 1.0, "tie": 0.5, "rejected": 0.0}[row["judge"]]
    value = signed(row, by)
    return None if value is None else 0.5 * (1 + math.tanh(value / 2))


def _value(generation: Generation, completions: Mapping[str, dict[str, Any]]) -> float | None:
    return (completions.get(generation.id) or {}).get("value")


def _margin(values: Sequence[float | None]) -> float | None:
    """log p of (chosen | chosen's request), (chosen | rejected's), (rejected | chosen's), (rejected | rejected's)."""
    if len(values) != 4 or any(value is None for value in values):
        return None
    a, b, c, d = values
    return (a - b) - (c - d)  # type: ignore[operator]  # none of them is None
