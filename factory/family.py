"""Families of models, by their names: judges and reward models prefer the answers of their own kin (Panickssery et al.,
arXiv 2404.13076), so a figure from one of the same family says less."""

from __future__ import annotations

import re

from factory.cookbook import Order

# Names of descendants, and other spellings. A name may hold several: "DeepSeek-R1-Distill-Qwen-7B" is kin to both.
FAMILIES = {
    **dict.fromkeys(("llama", "vicuna", "alpaca", "tulu", "hermes", "codellama", "nemotron"), "llama"),
    **dict.fromkeys(("mistral", "mixtral", "ministral", "codestral", "magistral", "devstral", "zephyr"), "mistral"),
    **dict.fromkeys(("qwen", "qwq", "qwenlm"), "qwen"),
    **dict.fromkeys(("gpt", "chatgpt", "o1", "o3", "o4"), "gpt"),
    **dict.fromkeys(("gemma", "gemini", "shieldgemma"), "gemma"),
    **dict.fromkeys(("glm", "chatglm"), "glm"),
    **{word: word for word in ("smollm", "yi", "deepseek", "claude", "phi", "olmo", "falcon", "command", "internlm")},
}
WORDS = re.compile(r"\bo\d\b|[a-z]+")


def families(model: str) -> frozenset[str]:
    """The families that a model's name speaks of: the known ones in it, or its first word."""
    name = model.rstrip("/").rpartition("/")[2].casefold()
    words = WORDS.findall(name)
    known = frozenset(FAMILIES[word] for word in words if word in FAMILIES)
    return known or frozenset(words[:1])


def kin(order: Order, measuring: str) -> list[str]:
    """The variants that write answers and are of the family of the one that measures them, in the recipe's order."""
    variants = order.recipe.variants
    writers = {name for strategy in order.strategies for name in strategy.variants}
    mine = families(variants[measuring].model)
    return [name for name, variant in variants.items() if name in writers and families(variant.model) & mine]


def kinship(order: Order, measuring: str) -> str:
    """A sentence about it."""
    model = order.recipe.variants[measuring].model
    related = kin(order, measuring)
    if not related:
        return f"{measuring} ({model}) is of another family than the models that wrote the answers."
    return (
        f"{measuring} ({model}) is, by its name, of the same family as {', '.join(related)}: judges and reward models "
        "prefer the answers of their own kin."
    )
