"""What several test files share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import TURNS, popalign, scripted

from factory.embedded import SCHEME, materialise
from factory.run import Run


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The default model, in the user's own cache: its conversion is paid once per machine, not once per test run."""
    return materialise(f"{SCHEME}smollm2-135m")


@pytest.fixture(scope="session")
def tiny_model(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one narrow layer with the default model's tokenizer, to train in seconds."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(embedded_model, **sizes)).save_pretrained(folder)
    for file in embedded_model.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template", "vocab", "merges")):
            shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with kept, rejected and failed pairs in both splits, of a model whose README states a licence."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "model").mkdir()
    (folder / "model" / "README.md").write_text("---\nlicense: other\nlicense_name: made-up\n---\n# A model\n")
    variants = {name: {"engine": "scripted"} for name in ("strong", "small", "second")}
    variants["small"] = {"engine": "scripted", "model": str(folder / "model"), "revision": "v1"}
    faults = ["This one is [[truncated]].", "And this one [[error]]."]
    recipe = scripted(folder, 21, extra=[TURNS, *faults], variants=variants)
    content = yaml.safe_load(recipe.read_text())
    content["prompts"]["heldout"] = 0.3
    recipe.write_text(yaml.safe_dump(content))
    for command in (["generate", str(recipe)], ["pairs", str(folder / "run")]):
        done = popalign(*command)
        assert done.returncode == 0, done.stderr
    return Run.open(folder / "run")
