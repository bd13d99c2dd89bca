"""Asking a model to change an answer, as refine, revise and worsen do; and how much of it may change."""

from __future__ import annotations

from strategies.contrast import Generation, Message, Reply
from strategies.preset import Format, Template
from strategies.thought import check_thought_tokens, thoughtful


def edited(
    variant: str,
    prompt: tuple[Message, ...],
    answer: Generation,
    template: Template,
    *,
    form: Format,
    thought_tokens: int | None,
    sample: int,
) -> Generation:
    """A further turn: the prompt, the answer as the assistant's, and the request for another one, after a thought."""
    messages = (*prompt, Message("assistant", Reply(answer)), Message("user", template.render()))
    return thoughtful(variant, messages, form=form, thought_tokens=thought_tokens, sample=sample)


def check_edit(thought_tokens: int | None, max_change: float | None) -> None:
    """Raises ``ValueError`` where a thought would have no tokens, or no change would be allowed."""
    check_thought_tokens(thought_tokens)
    if max_change is not None and not 0 < max_change < 1:
        raise ValueError(
            f"max_change is {max_change}; the largest share of words that may differ, above 0 and below 1, or left "
            "out for no limit"
        )
