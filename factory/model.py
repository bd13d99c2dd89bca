"""The models behind variants: found, checked before anything starts, and their prompts rendered and counted."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from factory.cookbook import Order
from factory.embedded import SCHEME, materialise
from factory.errors import InputError
from factory.plan import SAMPLE, owing, unique
from factory.recipe import Variant
from factory.request import build
from factory.server import Server
from strategies.contrast import Message, Strategy

HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
BYTES_PER_TOKEN = 4
ENGINES_HERE = ("vllm", "reward")  # that load a checkpoint themselves
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


def resolve(variant: Variant) -> str:
    """What an engine can load: a folder, or a hub name. The embedded model is converted at its first use."""
    if variant.engine not in ENGINES_HERE:
        return variant.model
    if variant.model.startswith(SCHEME):
        return str(materialise(variant.model))
    return variant.model


def check_models(order: Order) -> None:
    """Check each variant's folder, weights, tokenizer and chat template, and that the template allows the prefills.

    Raises:
        InputError: naming the variant's key and the way out.
    """
    prefilled = _prefilled(order)
    for name, variant in order.recipe.variants.items():
        if variant.engine == "endpoint":
            _check_endpoint(name, order, prefilled.get(name))
        if variant.engine not in ENGINES_HERE:
            continue
        _check_folder(name, variant)
        tokenizer = load_tokenizer(name, variant)
        if not tokenizer.chat_template:
            raise InputError(
                f"variants.{name}.model: the tokenizer of {variant.model} has no chat template; use the chat version "
                "of the model, or put a chat_template.jinja into its folder"
            )
        if name in prefilled:
            _check_prefill(name, variant, tokenizer, prefilled[name])


def _prefilled(order: Order) -> dict[str, Strategy]:
    """Which variants must continue an opened assistant turn, and the strategy that asks for it."""
    found: dict[str, Strategy] = {}
    for strategy in order.strategies:
        for generation in unique([strategy.contrast(SAMPLE)]).values():
            if generation.prefill:
                found.setdefault(generation.variant, strategy)
    return found


def _check_endpoint(name: str, order: Order, prefilling: Strategy | None) -> None:
    variant, recipe = order.recipe.variants[name], order.recipe
    scores = replace(order.scores, share=1.0) if order.scores else None
    owed = {g.id: g for g in owing(SAMPLE, order.strategies, scores)}.values()
    asked = [
        build(g, {r.id: "An answer." for r in g.replies}, run_seed=0, sampling=recipe.sampling, variant=variant)
        for g in owed
        if g.variant == name
    ]
    with Server(name, variant) as server:
        server.require_model()
        server.require_service(asked)
        if prefilling is not None and not server.prefills():
            raise _no_prefill(f"the server of variant '{name}' ({variant.url})", prefilling)


def _no_prefill(what: str, strategy: Strategy) -> InputError:
    way = "affix=system" if "affix" in {f.name for f in fields(strategy)} else "format=free"
    return InputError(
        f"strategies.{strategy.name}: {what} cannot prefill the assistant turn; set strategies.{strategy.name}.{way}"
    )


def _check_folder(name: str, variant: Variant) -> None:
    model = variant.model
    if model.startswith(SCHEME) or (HUB_NAME.match(model) and not Path(model).exists()):
        return
    folder = Path(model).expanduser()
    key = f"variants.{name}.model"
    if not folder.is_dir():
        raise InputError(f"{key}: {model} is neither a folder nor a hub name (ORGANISATION/NAME)")
    if not (folder / "config.json").is_file():
        raise InputError(f"{key}: {model} holds no config.json; it is not a Hugging Face model folder")
    if not any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        raise InputError(f"{key}: {model} holds no weights ({', '.join(WEIGHTS)})")


def load_tokenizer(name: str, variant: Variant) -> Any:
    """The tokenizer of a variant; one error type for all the ways in which that fails."""
    try:
        return _tokenizer(resolve(variant), variant.revision, variant.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"variants.{name}.model: cannot load the tokenizer of {variant.model}: {first}") from None


@cache
def _tokenizer(path: str, revision: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer  # takes seconds to import; plan and --help do without

    return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)


def _check_prefill(name: str, variant: Variant, tokenizer: Any, strategy: Strategy) -> None:
    probe = "(a prefill)"
    try:
        text = tokenizer.decode(render(tokenizer, (("user", "Hello."),), probe))
    except Exception as error:  # noqa: BLE001 - templates are programs and raise what they like
        text = str(error)
    if not text.rstrip().endswith(probe):
        raise _no_prefill(f"the chat template of variant '{name}' ({variant.model})", strategy)


def render(tokenizer: Any, messages: Sequence[tuple[str, str]], prefill: str) -> list[int]:
    """Token ids of a conversation up to where the model goes on writing.

    The ids are passed to the engine as they are: tokenising a rendered string again adds a second BOS.
    """
    turns = [{"role": role, "content": content} for role, content in messages]
    if prefill:
        turns.append({"role": "assistant", "content": prefill})
    return list(
        tokenizer.apply_chat_template(
            turns,
            tokenize=True,
            return_dict=False,
            add_generation_prompt=not prefill,
            continue_final_message=bool(prefill),
        )
    )


def token_counter(order: Order) -> Callable[[tuple[Message, ...]], int]:
    """The length of a bare prompt in tokens: the longest over the run's tokenizers.

    Where there is none: words for scripted variants, and for endpoints four bytes a token, which is about right for
    English and too many rather than too few tokens for most other text. A server refuses what is too long for it.
    """
    variants = {v.model: (name, v) for name, v in order.recipe.variants.items() if v.engine == "vllm"}
    served = any(variant.engine == "endpoint" for variant in order.recipe.variants.values())
    tokenizers = [load_tokenizer(name, variant) for name, variant in variants.values()]

    def count(prompt: tuple[Message, ...]) -> int:
        text = "\n".join(str(message.content) for message in prompt)
        if not tokenizers:
            return math.ceil(len(text.encode()) / BYTES_PER_TOKEN) if served else len(text.split())
        return max(len(tokenizer.encode(text, add_special_tokens=False)) for tokenizer in tokenizers)

    return count
