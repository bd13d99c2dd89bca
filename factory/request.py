"""From a generation to the request that an engine serves: replies filled in, sampling merged, seed drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from factory.engine.base import Request
from factory.recipe import Sampling as RecipeSampling
from factory.recipe import Variant
from strategies.contrast import Generation, Reply, Sampling


def seed(run_seed: int, generation_id: str) -> int:
    """The request's seed, 63 bits: any row of a run can be made again, alone and on any replica."""
    digest = hashlib.sha256(f"{run_seed}:{generation_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def build(
    generation: Generation,
    answers: Mapping[str, str],
    *,
    run_seed: int,
    sampling: RecipeSampling,
    variant: Variant,
) -> Request:
    """The request of a generation; ``answers`` holds the answer of every generation that it replies to."""

    def text(content: str | Reply | tuple[str | Reply, ...]) -> str:
        if isinstance(content, str):
            return content
        if isinstance(content, tuple):
            return "".join(map(text, content))
        return content.before + answers[content.generation.id] + content.after

    return Request(
        generation_id=generation.id,
        messages=tuple((message.role, text(message.content)) for message in generation.messages),
        prefill=text(generation.prefill),
        sampling=merged(generation.sampling, sampling, variant),
        seed=seed(run_seed, generation.id),
        measure=generation.measure,
        given=text(generation.given or ""),
    )


def merged(own: Sampling, recipe: RecipeSampling, variant: Variant) -> Sampling:
    """The generation's own wishes over the variant's over the recipe's; None is left to the checkpoint's defaults."""

    def first(*values: float | None) -> float | None:
        return next((value for value in values if value is not None), None)

    max_tokens = own.max_tokens or recipe.max_tokens
    min_tokens = own.min_tokens if own.min_tokens is not None else recipe.min_tokens
    return Sampling(
        temperature=first(own.temperature, variant.temperature, recipe.temperature),
        top_p=first(own.top_p, variant.top_p, recipe.top_p),
        max_tokens=max_tokens,
        min_tokens=min(min_tokens, max_tokens),
        repetition_penalty=first(own.repetition_penalty, recipe.repetition_penalty),
        stop=(*(own.stop or ()), *recipe.stop),
        bad_words=own.bad_words or (),
    )
