"""The vLLM engine: one ``AsyncLLM`` in the pool's actor, on CPU cores or GPUs."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

# The environment must be set before vLLM is imported: it reads it once.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from transformers import AutoConfig, AutoTokenizer
from vllm import AsyncEngineArgs, SamplingParams
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from factory.engine.base import Completion, EngineDead, Request, RequestError
from factory.model import render
from factory.recipe import Sampling, Variant
from strategies.contrast import Sampling as Wanted

# vLLM's synchronous engine uses 8192 on most GPUs and AsyncLLM 2048: always explicit, or comparisons are unfair.
BATCHED_TOKENS = 8192
# On CPU a block of the key-value cache is 128 tokens by default and shorter common prefixes are never reused; with 32
# the templates of the contrasts are.
CPU_BLOCK_SIZE = 32


class VllmEngine:
    """Requests of all rows are in flight at once; vLLM batches them."""

    watched = True

    def __init__(self, name: str, variant: Variant, sampling: Sampling, cores: list[int]) -> None:
        self._name = name
        self._tokenizer = AutoTokenizer.from_pretrained(
            variant.model, revision=variant.revision, trust_remote_code=variant.trust_remote_code
        )
        self._engine = start(variant, cores)
        self._max_model_len = self._engine.model_config.max_model_len
        # From the checkpoint's generation_config.json, neutral (temperature 1) where it has none.
        self._defaults = self._engine.model_config.get_diff_sampling_param()
        self._defaults.pop("max_tokens", None)

    async def complete(self, request: Request) -> Completion:
        ids = render(self._tokenizer, request.messages, request.prefill)
        if request.measure is not None:
            return await self._logprob(request, ids)
        wanted = request.sampling
        assert wanted.max_tokens is not None
        output = await self._ask(request, ids, sampling_params(wanted, self._defaults, request.seed))
        best = output.outputs[0]
        return Completion(
            text=best.text,
            finish=best.finish_reason or "stop",
            prompt_tokens=len(ids),
            tokens=len(best.token_ids),
            cached_tokens=output.num_cached_tokens or 0,
        )

    async def _logprob(self, request: Request, asked: list[int]) -> Completion:
        """The log-probability of the given text, in nats, summed over its tokens; the end of the turn is not counted,
        because a stop text may have ended it."""
        # Answers are stored without the space that follows an opened turn.
        text = f" {request.given}" if request.prefill else request.given
        given = self._tokenizer.encode(text, add_special_tokens=False)
        params = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        output = await self._ask(request, asked + given, params)
        steps = output.prompt_logprobs[len(asked) :]
        value = sum(step[token].logprob for step, token in zip(steps, given, strict=True))
        return Completion("", "stop", prompt_tokens=len(asked) + len(given), tokens=0, value=value)

    async def _ask(self, request: Request, ids: list[int], params: SamplingParams) -> Any:
        if len(ids) + params.max_tokens > self._max_model_len:
            raise RequestError(
                f"over_input_limit: {len(ids)} prompt tokens and {params.max_tokens} new ones are more than the "
                f"model's {self._max_model_len}"
            )
        try:
            outputs = self._engine.generate({"prompt_token_ids": ids}, params, request.generation_id)
            *_, output = [output async for output in outputs]  # one: FINAL_ONLY
        except EngineDeadError:
            raise EngineDead("its vLLM engine died") from None
        return output

    def close(self) -> None:
        self._engine.shutdown()


def start(variant: Variant, cores: list[int], **more: Any) -> AsyncLLM:
    """An engine of a variant, on GPUs or on these CPU cores."""
    on_cpu = current_platform.is_cpu()
    if on_cpu:
        # Left to itself vLLM keeps a core free (half the speed on two cores) and binds engines to the same ones.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = f"{variant.kv_cache_gib:g}"
    return AsyncLLM.from_engine_args(replace(engine_args(variant, on_cpu=on_cpu), **more))


def engine_args(variant: Variant, *, on_cpu: bool) -> AsyncEngineArgs:
    """The engine's arguments; every size is explicit."""
    sizes: dict[str, Any] = {}
    if on_cpu:
        length = variant.max_model_len or _model_length(variant)
        sizes = {
            # A seeded prompt that is prefilled in chunks kills the engine on CPU ("CPU Generator does not use
            # offset"): no chunks, and steps that hold the longest prompt.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(variant.max_num_batched_tokens or BATCHED_TOKENS, length),
            "block_size": CPU_BLOCK_SIZE,
            "enforce_eager": True,  # compiling takes minutes on CPU
        }
    else:
        sizes = {
            "max_num_batched_tokens": variant.max_num_batched_tokens or BATCHED_TOKENS,
            # Of a GPU that is shared, an engine takes its share.
            "gpu_memory_utilization": variant.gpu_memory * min(1.0, variant.gpus or 1.0),
            "tensor_parallel_size": max(1, int(variant.gpus)),
        }
    return AsyncEngineArgs(
        model=variant.model,
        revision=variant.revision,
        dtype=variant.dtype,
        max_model_len=variant.max_model_len,
        max_num_seqs=variant.max_num_seqs,
        trust_remote_code=variant.trust_remote_code,
        enable_prefix_caching=True,
        enable_log_requests=False,
        disable_log_stats=True,
        **sizes,
    )


def sampling_params(wanted: Wanted, defaults: dict[str, Any], seed: int) -> SamplingParams:
    """vLLM's parameters of one request: what is wanted over what the checkpoint defaults to."""
    explicit = {
        "temperature": wanted.temperature,
        "top_p": wanted.top_p,
        "repetition_penalty": wanted.repetition_penalty,
    }
    chosen = {**defaults, **{name: value for name, value in explicit.items() if value is not None}}
    return SamplingParams(
        **chosen,
        max_tokens=wanted.max_tokens,
        min_tokens=wanted.min_tokens or 0,
        stop=list(wanted.stop or ()),
        bad_words=list(wanted.bad_words or ()),
        seed=seed,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _model_length(variant: Variant) -> int:
    config = AutoConfig.from_pretrained(
        variant.model, revision=variant.revision, trust_remote_code=variant.trust_remote_code
    )
    return int(config.max_position_embeddings)
