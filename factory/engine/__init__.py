"""Engines: what turns one request into one completion. ``open_engine`` is the only way in."""

from __future__ import annotations

from factory.engine.base import Engine
from factory.recipe import Sampling, Variant
from factory.secret import Secret


def open_engine(name: str, variant: Variant, sampling: Sampling, cores: list[int], key: Secret | None) -> Engine:
    """Start the engine of a variant on these CPU cores (meaningless where it runs on GPUs).

    ``key`` opens an endpoint that asks for one.
    """
    # One module imports vLLM, at its top: the import takes seconds, and the other engines do without.
    if variant.engine == "vllm":
        from factory.engine.vllm import VllmEngine

        return VllmEngine(name, variant, sampling, cores)
    if variant.engine == "reward":
        from factory.engine.reward import RewardEngine

        return RewardEngine(variant, cores)
    if variant.engine == "endpoint":
        from factory.engine.endpoint import EndpointEngine

        return EndpointEngine(name, variant, key)
    from factory.engine.scripted import ScriptedEngine

    return ScriptedEngine(name, variant, sampling)
