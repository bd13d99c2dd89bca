"""A deterministic engine without a model: for dry runs, planned faults and measuring the data plane."""

from __future__ import annotations

import asyncio
import random

from factory.engine.base import Completion, EngineDead, Request, RequestError
from factory.recipe import Sampling, Variant

# Some 70 words: enough that two draws of a sentence rarely agree.
WORDS = [
    "a",
    "about",
    "after",
    "again",
    "air",
    "all",
    "also",
    "and",
    "answer",
    "any",
    "as",
    "at",
    "back",
    "be",
    "because",
    "before",
    "between",
    "book",
    "but",
    "by",
    "can",
    "city",
    "clear",
    "cold",
    "day",
    "do",
    "each",
    "early",
    "find",
    "first",
    "for",
    "from",
    "good",
    "great",
    "hand",
    "have",
    "help",
    "here",
    "how",
    "idea",
    "in",
    "is",
    "it",
    "keep",
    "know",
    "large",
    "learn",
    "light",
    "like",
    "line",
    "little",
    "make",
    "many",
    "mean",
    "more",
    "most",
    "new",
    "note",
    "of",
    "on",
    "one",
    "open",
    "or",
    "other",
    "part",
    "people",
    "place",
    "plan",
    "point",
    "read",
    "right",
    "same",
    "see",
    "short",
    "simple",
    "small",
    "so",
    "some",
    "start",
    "such",
    "take",
    "that",
    "the",
    "then",
    "there",
    "they",
    "thing",
    "time",
    "to",
    "turn",
    "use",
    "water",
    "way",
    "well",
    "what",
    "when",
    "where",
    "which",
    "with",
    "word",
    "work",
    "year",
    "you",
]


class ScriptedEngine:
    """Text drawn from a word list by the request's seed: equal requests, equal text, on any machine.

    A prompt can ask for faults: ``[[empty]]``, ``[[truncated]]``, ``[[error]]``, ``[[die]]`` and ``[[hang]]`` in the
    last turn do what they say.
    """

    watched = True

    def __init__(self, name: str, variant: Variant, sampling: Sampling) -> None:
        self._name = name
        self._speed = variant.speed
        self._max_tokens = sampling.max_tokens

    async def complete(self, request: Request) -> Completion:
        last = request.messages[-1][1]
        if "[[error]]" in last:
            raise RequestError("scripted: an error")
        if "[[die]]" in last:
            raise EngineDead("scripted death")
        if "[[hang]]" in last:
            await asyncio.Event().wait()
        draw = random.Random(request.seed)
        if request.measure is not None:
            return Completion("", "stop", 1, 0, value=round(-draw.random() * 100, 6))
        num = 0 if "[[empty]]" in last else draw.randint(8, 24)
        finish = "length" if "[[truncated]]" in last else "stop"
        text = f"{self._name} {' '.join(draw.choices(WORDS, k=num))}." if num else ""
        if "Verdict: tie" in last:
            text = f"{text}\nVerdict: {draw.choice(['A', 'B', 'tie'])}"
        if "Response: <" in last and not request.prefill:
            text = f"Thought: {' '.join(draw.choices(WORDS, k=8))}.\nResponse: {text}"
        tokens = len(text.split())
        if self._speed:
            await asyncio.sleep(tokens / self._speed)
        prompt_tokens = sum(len(content.split()) for _, content in request.messages) + len(request.prefill.split())
        return Completion(text, finish, prompt_tokens, tokens)

    def close(self) -> None:
        """Nothing was started."""
