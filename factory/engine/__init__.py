"""Engines: what turns one request into one completion. ``open_engine`` is the only way in."""

from __future__ import annotations

from factory.engine.base import Engine
from factory.recipe import Sampling, Variant


def open_engine(name: str, variant: Variant, sampling: Sampling, cores: list[int]) -> Engine:
    """Start the engine of a variant on these CPU cores (meaningless where it runs on GPUs)."""
    # One module imports vLLM, at its top: the import takes seconds, and the other engines do without.
    if variant.engine == "vllm":
        from factory.engine.vllm import VllmEngine

        return VllmEngine(name, variant, sampling, cores)
    from factory.engine.scripted import ScriptedEngine

    return ScriptedEngine(name, variant, sampling)
