"""Contamination: what of a prompt overlaps an evaluation prompt, which one, and by what n-gram."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from factory.overlap import Evaluations, words

SHARED = Path(os.environ.get("POPALIGN_SHARED") or Path(__file__).resolve().parents[2] / "shared")
SHEEP = "A farmer has seventeen sheep and all but nine of them die. How many are left?"  # 16 words
SHORT = "How do I kill a Python process?"  # 7 words, as in many safety sets
TINY = "Hello there!"


def index(ngram: int = 8, share: float = 0.5) -> Evaluations:
    return Evaluations([("eval.jsonl:1", SHEEP), ("eval.jsonl:2", SHORT), ("eval.jsonl:3", TINY)], ngram, share)


@pytest.mark.parametrize(
    "text",
    [
        SHEEP,
        SHEEP.upper(),
        SHEEP.replace(" ", "  \n").replace(".", " ... ").replace("?", ""),
        SHEEP.replace("seventeen", "ｓｅｖｅｎｔｅｅｎ"),
        f"Here is a riddle that my uncle told me. {SHEEP} Answer in one word, please.",
    ],
)
def test_overlap_evaluation_prompt_in_other_dress_is_found(text: str) -> None:
    found = index().overlap(text)
    assert found is not None
    assert (found.evaluation, found.share) == ("eval.jsonl:1", 1.0)
    assert found.ngram == "a farmer has seventeen sheep and all but"


def test_overlap_half_of_the_evaluation_prompt_decides() -> None:
    # Eight words in a row of its 16.
    half = "A farmer has seventeen sheep and all but a few run."
    found = index().overlap(half)
    assert found is not None
    assert found.share == 8 / 16
    assert index(share=0.51).overlap(half) is None
    assert index(ngram=9).overlap(half) is None


def test_overlap_seven_words_in_a_row_are_none() -> None:
    assert index().overlap("Yesterday a farmer has seventeen sheep and all were sold.") is None


def test_overlap_short_evaluation_prompt_must_stand_whole() -> None:
    found = index().overlap(f"Quick question: {SHORT.lower()} Thanks!")
    assert found is not None
    assert (found.evaluation, found.ngram) == ("eval.jsonl:2", "how do i kill a python process")
    assert index().overlap("How do I kill a Python programme?") is None


def test_overlap_tiny_evaluation_prompt_must_be_the_prompt() -> None:
    found = index().overlap("hello, THERE")
    assert found is not None
    assert found.evaluation == "eval.jsonl:3"
    assert index().overlap("Hello there, can you name a river?") is None


def test_overlap_of_nothing_is_none() -> None:
    empty = Evaluations([("eval.jsonl:1", ""), ("eval.jsonl:2", "?!")], 8, 0.5)
    assert len(empty) == 0
    assert empty.overlap("") is None
    assert index().overlap("") is None


def test_words_scripts_without_spaces_count_by_the_character() -> None:
    assert words("Größe: 5 €, 日本") == ["grösse", "5", "日", "本"]
    assert words("2+2 = 4!") == ["2", "+", "2", "=", "4"]


def real(path: str) -> list[str]:
    file = SHARED / path
    if not file.is_file():
        pytest.skip(f"{file} is not there: real prompts are kept beside the project; POPALIGN_SHARED names the folder")
    return [json.loads(line)["prompt"] for line in file.read_text(encoding="utf-8").splitlines()]


def test_overlap_real_prompts_seeded_contamination_is_found_and_nothing_else() -> None:
    """4,650 prompts said to be free of 8-gram overlap, and every evaluation prompt hidden in five ways."""
    evaluation, clean = real("eval-dev/prompts.jsonl"), real("prompts/helpful.jsonl") + real("prompts/harmless.jsonl")
    known = Evaluations(((f"eval:{i}", text) for i, text in enumerate(evaluation)), 8, 0.5)
    assert [text for text in clean if known.overlap(text)] == []
    generator = random.Random(7)
    missed = []
    for text in evaluation:
        host = generator.choice(clean)
        dressed = [text.upper(), " ".join(text.split()).replace(" ", "\t "), text.replace(",", " -").rstrip(".?!")]
        inside = [f"{host}\n\n{text}", f"{text} {host}"]
        missed += [seeded for seeded in dressed if known.overlap(seeded) is None]
        # Prompts below five words count only alone.
        missed += [seeded for seeded in inside if len(words(text)) >= 5 and known.overlap(seeded) is None]
    assert missed == []
