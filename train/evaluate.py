"""What training changed, on the prompts that it never saw: reward accuracy and margin, before against after."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Sequence
from typing import Any

import ray

from factory.errors import InputError
from factory.generate import Progress
from factory.model import resolve
from factory.run import Run
from factory.statistic import wilson
from train.pairs import kept

BATCH_SIZE = 8


def evaluate(run: Run, progress: Progress) -> dict[str, Any]:
    """Compare base and trained model on the held-out kept pairs, and let both answer some held-out prompts.

    For each strategy and for all, with the number of pairs ``n``:

    - ``accuracy``: share of pairs where the model gives the chosen answer the higher summed log-probability, and
      ``margin``: the mean difference in nats. Before and after: this is the model's own ranking.
    - ``reward_accuracy`` and ``reward_margin``: DPO's implicit reward, beta x (log p after - log p before), chosen
      against rejected (Rafailov et al. 2023, section 4). Before training the reward is zero for every answer, so it
      exists only after.

    Accuracies carry a Wilson 95 % interval.

    Raises:
        InputError: there is no trained model, or no held-out pair.
    """
    recipe = run.order.recipe
    settings = recipe.train
    assert settings is not None, "the command checks that there is a train section"
    model = run.path / "model"
    if not run.manifest.get("model") or not (model / "config.json").is_file():
        raise InputError(f"{run.path} has no trained model yet; make it with: popalign train {run.path}")
    pairs = _heldout(run)
    if not pairs:
        raise InputError(f"{run.path} has no kept held-out pair; raise prompts.heldout or prompts.limit")
    folder = model.disk or run.scratch / "model"
    if model.disk is None:
        shutil.rmtree(folder, ignore_errors=True)
        model.download(folder)
    base = recipe.variants[settings.variant]
    prompts = list({row["prompt_id"]: row["prompt"] for row in pairs}.values())[: recipe.evaluate.samples]
    task = ray.remote(num_cpus=1, num_gpus=settings.gpus_per_worker)(_measure)
    out: dict[str, Any] = {}
    with progress("evaluate", 2, "models") as meter:
        for number, (name, path) in enumerate((("before", resolve(base)), ("after", str(folder)))):
            ref = task.remote(
                path,
                [(row["prompt"], row["chosen"], row["rejected"]) for row in pairs],
                prompts,
                settings.max_length,
                recipe.evaluate.sample_tokens,
                base.trust_remote_code,
            )
            out[name] = ray.get(ref)
            meter.update(number + 1)
    result = {
        "model": run.manifest["model"]["fingerprint"],
        "strategies": summarise(pairs, out["before"]["logps"], out["after"]["logps"], settings.beta),
        "samples": [
            {"prompt": prompt, "before": before, "after": after}
            for prompt, before, after in zip(prompts, out["before"]["answers"], out["after"]["answers"], strict=True)
        ],
    }
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    (run.path / "evaluation" / "evaluation.json").write(text.encode())
    run.update(evaluation={"model": result["model"], "strategies": result["strategies"]})
    return result


def summarise(
    pairs: Sequence[dict[str, Any]],
    before: Sequence[tuple[float, float]],
    after: Sequence[tuple[float, float]],
    beta: float,
) -> dict[str, Any]:
    """The figures by strategy and for ``all``; ``before`` and ``after`` are (chosen, rejected) log-probabilities."""
    out: dict[str, Any] = {}
    strategies = list(dict.fromkeys(row["strategy"] for row in pairs))
    for name in [*strategies, "all"]:
        mine = [i for i, row in enumerate(pairs) if name in (row["strategy"], "all")]
        old = [before[i][0] - before[i][1] for i in mine]
        new = [after[i][0] - after[i][1] for i in mine]
        rewards = [beta * (n - o) for n, o in zip(new, old, strict=True)]
        out[name] = {
            "n": len(mine),
            "before": {"accuracy": accuracy(old), "margin": statistics.fmean(old)},
            "after": {
                "accuracy": accuracy(new),
                "margin": statistics.fmean(new),
                "reward_accuracy": accuracy(rewards),
                "reward_margin": statistics.fmean(rewards),
            },
        }
    return out


def accuracy(margins: Sequence[float]) -> dict[str, float]:
    """The share of positive margins with its Wilson 95 % interval."""
    good = sum(margin > 0 for margin in margins)
    low, high = wilson(good, len(margins))
    return {"value": good / len(margins), "low": low, "high": high}


def _heldout(run: Run) -> list[dict[str, Any]]:
    limit = run.order.recipe.evaluate.max_pairs
    taken: dict[str, int] = {}
    out = []
    for row in sorted(kept(run, "heldout"), key=lambda row: row["pair_id"]):
        taken[row["strategy"]] = taken.get(row["strategy"], 0) + 1
        if limit is None or taken[row["strategy"]] <= limit:
            out.append(row)
    return out


def _measure(
    path: str,
    pairs: list[tuple[Any, Any, Any]],
    prompts: list[Any],
    max_length: int,
    new_tokens: int,
    trust_remote_code: bool,
) -> dict[str, Any]:
    """In a process of its own, so that neither the model nor what libraries print comes near the driver."""
    import os

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from train.logprob import encode, sum_logprobs

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    options = {"trust_remote_code": trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(path, **options)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **options).to(device).eval()
    rows = [encode(tokenizer, prompt, side, max_length) for prompt, *sides in pairs for side in sides]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    sums, _ = sum_logprobs(model, rows, pad=pad, batch_size=BATCH_SIZE)
    answers = []
    for prompt in prompts:
        inputs = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(device)
        output = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, temperature=None, top_p=None)
        answers.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return {"logps": list(zip(sums[0::2], sums[1::2], strict=True)), "answers": answers}
