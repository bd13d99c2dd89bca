"""Log-probabilities of answers under a causal language model: what reward accuracy and margins are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

Turns = list[dict[str, str]]


def encode(tokenizer: Any, prompt: Turns, answer: Turns, max_length: int) -> tuple[list[int], int]:
    """Token ids of prompt and answer as the trainer sees them, cut at ``max_length``, and the prompt's length."""
    head = tokenizer.apply_chat_template(prompt, tokenize=True, return_dict=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(prompt + answer, tokenize=True, return_dict=False)
    return list(whole[:max_length]), min(len(head), max_length)


@torch.inference_mode()
def sum_logprobs(
    model: Any, rows: Sequence[tuple[list[int], int]], *, pad: int, batch_size: int
) -> tuple[list[float], list[int]]:
    """Summed log p(answer | prompt) in nats, and the number of answer tokens, for each (ids, prompt length).

    Rows are batched by length, which saves most of the padding; results come in the order of ``rows``.
    """
    sums, counts = [0.0] * len(rows), [0] * len(rows)
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        width = max(len(rows[i][0]) for i in batch)
        ids = torch.full((len(batch), width), pad)  # (B, T)
        mask = torch.zeros((len(batch), width), dtype=torch.long)  # (B, T)
        answer = torch.zeros((len(batch), width), dtype=torch.bool)  # (B, T)
        for row, i in enumerate(batch):
            tokens, prompt_length = rows[i]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
            answer[row, prompt_length : len(tokens)] = True
        ids, mask, answer = ids.to(model.device), mask.to(model.device), answer.to(model.device)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()  # (B, T-1, V)
        # Not log_softmax: that would write a second (B, T-1, V).
        logprobs = logits.gather(-1, ids[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)  # (B, T-1)
        logprobs = logprobs * answer[:, 1:]
        for row, i in enumerate(batch):
            sums[i] = float(logprobs[row].sum())
            counts[i] = int(answer[row].sum())
    return sums, counts
