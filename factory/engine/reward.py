"""A reward model: a sequence classifier with one label, hosted by vLLM; what it says of a conversation is its value."""

from __future__ import annotations

from transformers import AutoTokenizer
from vllm import PoolingParams
from vllm.v1.engine.exceptions import EngineDeadError

from factory.engine.base import Completion, EngineDead, Request, RequestError
from factory.engine.vllm import start
from factory.recipe import Variant


class RewardEngine:
    """Rewards of conversations that end with an answer; it writes no text."""

    watched = True

    def __init__(self, variant: Variant, cores: list[int]) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(
            variant.model, revision=variant.revision, trust_remote_code=variant.trust_remote_code
        )
        self._engine = start(variant, cores, runner="pooling", convert="classify")
        self._max_model_len = self._engine.model_config.max_model_len

    async def complete(self, request: Request) -> Completion:
        turns = [{"role": role, "content": content} for role, content in request.messages]
        ids = list(self._tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False))
        if len(ids) > self._max_model_len:
            raise RequestError(f"over_input_limit: {len(ids)} tokens are more than the model's {self._max_model_len}")
        # The raw output: a probability (of one label, always 1) says nothing.
        params = PoolingParams(task="classify", use_activation=False)
        try:
            outputs = self._engine.encode({"prompt_token_ids": ids}, params, request.generation_id)
            *_, output = [output async for output in outputs]
        except EngineDeadError:
            raise EngineDead("its vLLM engine died") from None
        values = output.outputs.data.flatten().tolist()
        if len(values) != 1:
            raise RequestError(f"reward_labels: the model has {len(values)} labels; a reward model has one")
        return Completion("", "stop", prompt_tokens=len(ids), tokens=0, value=values[0])

    def close(self) -> None:
        self._engine.shutdown()
