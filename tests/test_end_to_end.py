"""The whole way on real parts (vLLM, the embedded model, Ray, two gloo workers), and the data plane under faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from running import ROOT, generations, identities, popalign, scripted

from factory.cookbook import order
from factory.request import build
from factory.run import Run
from factory.shard import shards
from strategies.contrast import Generation, Message, Sampling


@pytest.mark.parametrize("cpus", [1, pytest.param(4, marks=pytest.mark.soak)])
def test_generate_and_pairs_on_few_logical_cpus_balance(tmp_path: Path, cpus: int) -> None:
    recipe = scripted(tmp_path, 40, extra=["[[empty]] nothing", "[[truncated]] long", "[[error]] broken"])
    run = tmp_path / "run"
    done = popalign("generate", str(recipe), "--cpus", str(cpus))
    assert done.returncode == 0, done.stderr
    done = popalign("pairs", str(run), "--cpus", str(cpus))
    assert done.returncode == 0, done.stderr
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["prompts"]["ready"] == 43
    for outcomes in manifest["pairs"]["strategies"].values():
        total = outcomes["kept"] + sum(outcomes["rejected"].values()) + sum(outcomes["failed"].values())
        assert total == 43
        assert sum(outcomes["failed"].values()) >= 1  # the prompt that asks for an error
    again = popalign("pairs", str(run), "--cpus", str(cpus))
    assert again.returncode == 0, again.stderr
    made = json.loads((run / "manifest.json").read_text())["pairs"]
    assert made["checksum"] == manifest["pairs"]["checksum"], "pairs made again differ"
    rows = generations(run)
    assert len({row["prompt_id"] for row in rows}) == len(rows) == 43
    assert {len(row["completions"]) for row in rows} == {10}


def test_generate_with_another_number_of_replicas_asks_the_same(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    recipe = scripted(tmp_path, 60)
    done = popalign("generate", str(recipe), "--cpus", "4", "--set", f"run={first}")
    assert done.returncode == 0, done.stderr
    more = ["--set", "variants.strong.replicas=2", "--set", "schedule=streaming", "--set", "rows_per_task=7"]
    done = popalign("generate", str(recipe), "--cpus", "4", "--set", f"run={second}", *more)
    assert done.returncode == 0, done.stderr
    assert identities(first) == identities(second)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["variants.strong.engine=vllm", "variants.strong.model=/no/such/folder"], "variants.strong.model"),
        (["variants.strong.gpus=64"], "64 GPU"),
        (["variants.strong.cpus=512"], "512 CPU"),
        (["prompts.source=no-such-file.jsonl"], "no-such-file.jsonl"),
        (["prompts.column=question"], "it has: prompt"),
        (["strategies.prefix.variant=strang"], "did you mean 'strong'"),
        (["run=/proc/popalign"], "cannot write /proc/popalign"),
    ],
)
def test_generate_with_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, overrides: list[str], said: str) -> None:
    recipe = scripted(tmp_path, 3)
    done = popalign("generate", str(recipe), *(part for text in overrides for part in ("--set", text)))
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_generate_with_a_bad_line_leaves_nothing_behind(tmp_path: Path) -> None:
    recipe = scripted(tmp_path, 3)
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write("{not json\n")
    done = popalign("generate", str(recipe))
    assert done.returncode == 2
    assert "prompts.jsonl:4: not JSON" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.engine
def test_vllm_greedy_agrees_with_transformers_and_seeded_prompts_do_not_kill_it(embedded_model: Path) -> None:
    """In a process of its own: an engine changes the environment and the threads of the process that hosts it."""
    done = subprocess.run(
        [sys.executable, __file__, str(embedded_model)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for row in json.loads(done.stdout.splitlines()[-1]):
        assert row["ours"] == row["reference"], row
    assert json.loads(done.stdout.splitlines()[-1])


@pytest.mark.engine
def test_run_makes_an_aligned_model_from_prompts(tmp_path: Path, embedded_model: Path) -> None:
    run = tmp_path / "run"
    small = {
        "run": run,
        "prompts.limit": 10,
        "prompts.heldout": 0.3,
        "sampling.max_tokens": 64,
        "strategies.leaderboard": "{ladder: [strong, small]}",  # an engine less to start
        "train.max_pairs": 5,
        "train.batch_size": 4,
        "evaluate.samples": 1,
        "evaluate.sample_tokens": 8,
    }
    done = popalign("run", "demo", *(part for k, v in small.items() for part in ("--set", f"{k}={v}")), timeout=580)
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["model"]["pairs"] == 5
    rows = [row for path in shards(Run.open(run).current("pairs", "pairs")) for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 10 * 6
    words = order("demo").preset
    for row in rows:
        assert (row["reason"] is None) == (row["status"] == "kept")
        if row["status"] == "kept":
            for side in (row["chosen"], row["rejected"]):
                text = side[0]["content"]
                assert "Thought:" not in text and "Response:" not in text
                assert words.affix.chosen not in text and words.affix.rejected not in text
    assert manifest["evaluation"]["strategies"]["all"]["n"] >= 1
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(run / "model")
    assert model.num_parameters() > 100_000_000
    assert AutoTokenizer.from_pretrained(run / "model").chat_template
    loads = [json.loads(line) for line in (run / "logs" / "train.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in loads) == 2  # 5 pairs and fillers in batches of 4


def greedy(folder: str) -> list[dict[str, str]]:
    """Greedy completions through the engine of the pool and through transformers, and a flood of seeded prompts."""
    import asyncio

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from factory.engine.vllm import VllmEngine
    from factory.model import render
    from factory.recipe import Sampling as RecipeSampling
    from factory.recipe import Variant

    variant = Variant(model=folder, dtype="float32", max_model_len=1024, max_num_batched_tokens=1024, kv_cache_gib=1)
    sampling = RecipeSampling(max_tokens=24, temperature=0)
    engine = VllmEngine("strong", variant, sampling, sorted(os.sched_getaffinity(0)))
    questions = ["What is the capital of France?", "Name three fruits.", "Write one sentence about the sea."]
    wanted = [
        Generation("strong", (Message("user", text),), prefill=prefill)
        for text in questions
        for prefill in ("", "(good response)", "Thought: short.\nResponse:")
    ]
    requests = [build(g, {}, run_seed=0, sampling=sampling, variant=variant) for g in wanted]
    # 40 seeded prompts of some 300 tokens are 12 times what one step of 1,024 tokens holds.
    flood = [
        Generation(
            "strong", (Message("user", f"{i} " + "word " * 300),), sampling=Sampling(temperature=1.0, max_tokens=4)
        )
        for i in range(40)
    ]
    seeded = [build(g, {}, run_seed=0, sampling=sampling, variant=variant) for g in flood]

    async def serve() -> list[Any]:
        return await asyncio.gather(*(engine.complete(request) for request in [*requests, *seeded]))

    completions = asyncio.run(serve())
    assert all(1 <= completion.tokens <= 4 for completion in completions[len(requests) :])  # 4, or the end before
    engine.close()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    for request, completion in zip(requests, completions, strict=False):
        ids = torch.tensor([render(tokenizer, request.messages, request.prefill)])
        output = model.generate(ids, max_new_tokens=24, do_sample=False, temperature=None, top_p=None)
        reference = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        rows.append({"ours": completion.text, "reference": reference})
    return rows


if __name__ == "__main__":
    print(json.dumps(greedy(sys.argv[1])))
