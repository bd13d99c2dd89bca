"""Families of models by their names, and who is told of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import SIX, scripted

from factory.cookbook import order
from factory.family import families, kin, kinship


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", {"llama"}),
        ("lmsys/vicuna-33b-v1.3", {"llama"}),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", {"mistral"}),
        ("Qwen/Qwen2.5-7B-Instruct", {"qwen"}),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", {"deepseek", "qwen"}),
        ("gpt-4o-mini", {"gpt"}),
        ("o3-mini", {"gpt"}),
        ("01-ai/Yi-34B-Chat", {"yi"}),
        ("/models/our-own-model/", {"our"}),
        ("embedded:smollm2-135m", {"smollm"}),
        ("7", set()),
    ],
)
def test_families_go_by_the_name(model: str, expected: set[str]) -> None:
    assert families(model) == expected


def test_kin_are_the_writers_of_the_judges_family(tmp_path: Path) -> None:
    models = {"strong": "Qwen/Qwen2.5-72B-Instruct", "small": "Qwen/Qwen2.5-7B-Instruct", "second": "01-ai/Yi-34B-Chat"}
    variants = {name: {"model": model} for name, model in models.items()}
    judges = {"wise": {"model": "Qwen/QwQ-32B"}, "other": {"model": "google/gemma-3-27b-it"}}
    recipe = scripted(tmp_path, 1, variants=variants | judges, strategies=SIX)
    found = order(str(recipe))
    assert kin(found, "wise") == ["small", "strong"]  # in the order of the file
    assert "of the same family as small, strong" in kinship(found, "wise")
    assert kin(found, "other") == []
    assert "another family" in kinship(found, "other")
    assert kin(found, "second") == ["second"]  # it judges its own answers
