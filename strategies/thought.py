"""Asking for a thought before the response, in the free form of the paper or in a forced one.

Free: one generation, and what comes is parsed. Forced: the thought is generated first, opened by a prefill and
stopped at ``Response:``, and a second generation continues from thought and marker, so that the text cannot miss
the form. Of 40 real prompts SmolLM2-135M kept the free form in 3 to 5; in the forced one all parse.
"""

from __future__ import annotations

from strategies.contrast import Generation, Message, Reply, Sampling
from strategies.preset import Format

MARKERS = ("Thought:", "Response:")
# A small model copies the placeholder that it is to fill in: SmolLM2-135M began 20 of 64 forced responses with
# "<the bad response>". Without an opening bracket it cannot.
BRACKETS = ("<", "[")


def thoughtful(
    variant: str,
    messages: tuple[Message, ...],
    *,
    form: Format,
    thought_tokens: int | None,
    sample: int,
) -> Generation:
    """The generation whose answer is the response that follows a thought.

    ``thought_tokens`` bounds the thought in the forced form (None: the recipe's limit); the free form has one limit
    for thought and response together.
    """
    if form == "free":
        return Generation(variant, messages, read="response", sample=sample)
    thought = Generation(
        variant,
        messages,
        prefill="Thought:",
        read="thought",
        sampling=Sampling(stop=MARKERS, bad_words=BRACKETS, max_tokens=thought_tokens),
        sample=sample,
    )
    return Generation(
        variant,
        messages,
        prefill=Reply(thought, before="Thought: ", after="\nResponse:"),
        read="response",
        sampling=Sampling(stop=MARKERS, bad_words=BRACKETS),
        sample=sample,
    )


def check_thought_tokens(number: int | None) -> None:
    """Raises ``ValueError`` where a thought would have no tokens."""
    if number is not None and number < 1:
        raise ValueError(f"thought_tokens is {number}; it must be at least 1, or left out for the recipe's limit")
