"""What is checked of a model before anything starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from factory import cookbook
from factory.cookbook import Order
from factory.errors import InputError
from factory.model import check_models, load_tokenizer, render


def ordered(model: str, **strategies: object) -> Order:
    content = {
        "run": "unused",
        "prompts": {"source": "builtin:demo"},
        "variants": {"strong": {"model": model}},
        "strategies": strategies or {"prefix": {"variant": "strong"}},
    }
    return cookbook.check(content, "r")


def copy_of(model: Path, target: Path, *, without: tuple[str, ...] = ()) -> Path:
    shutil.copytree(model, target, ignore=shutil.ignore_patterns(*without))
    return target


def with_template(folder: Path, template: str | None) -> Path:
    """The folder with another chat template, or none, wherever its tokenizer keeps it."""
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("chat_template", None)
    path.write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def test_model_that_is_good_passes(embedded_model: Path) -> None:
    check_models(ordered(str(embedded_model)))


def test_model_folder_that_is_missing_is_named() -> None:
    with pytest.raises(InputError, match=r"variants\.strong\.model: /no/such/folder is neither a folder nor"):
        check_models(ordered("/no/such/folder"))


def test_model_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json"):
        check_models(ordered(str(tmp_path)))


def test_model_folder_without_weights_is_named(tmp_path: Path, embedded_model: Path) -> None:
    folder = copy_of(embedded_model, tmp_path / "m", without=("*.safetensors",))
    with pytest.raises(InputError, match="holds no weights"):
        check_models(ordered(str(folder)))


def test_model_without_chat_template_is_named(tmp_path: Path, embedded_model: Path) -> None:
    folder = with_template(copy_of(embedded_model, tmp_path / "m"), None)
    with pytest.raises(InputError, match="has no chat template"):
        check_models(ordered(str(folder)))


def test_model_whose_template_cannot_prefill_names_the_strategy_and_the_way_out(
    tmp_path: Path, embedded_model: Path
) -> None:
    """A template that writes only what users say loses the opened assistant turn."""
    user_only = "{% for m in messages %}{% if m.role == 'user' %}U: {{ m.content }}\n{% endif %}{% endfor %}A:"
    folder = with_template(copy_of(embedded_model, tmp_path / "m"), user_only)
    with pytest.raises(InputError, match=r"strategies\.prefix: .* cannot prefill .*strategies\.prefix\.affix=system$"):
        check_models(ordered(str(folder)))
    check_models(ordered(str(folder), prefix={"variant": "strong", "affix": "system"}))


def test_render_puts_the_prefill_right_after_the_assistant_header(embedded_model: Path) -> None:
    tokenizer = load_tokenizer("strong", ordered(str(embedded_model)).recipe.variants["strong"])
    bare = tokenizer.decode(render(tokenizer, (("user", "Hi"),), ""))
    opened = tokenizer.decode(render(tokenizer, (("user", "Hi"),), "(good response)"))
    assert bare.endswith("<|im_start|>assistant\n")
    assert opened == bare + "(good response)"
