"""Runs whose pairs are made up by a test, with score columns, without an engine and without Ray."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from running import SIX

from factory import cookbook
from factory.length import lengths_of
from factory.pair import count, outcomes_of, pair_id
from factory.run import Run, plain
from factory.shard import PAIR, write_shard

SCORED = [
    ("sample", pa.int32()),
    ("margin", pa.float64()),
    ("judge", pa.string()),
    ("judge_reason", pa.string()),
    ("reward_chosen", pa.float64()),
    ("reward_rejected", pa.float64()),
]
SCHEMA = pa.schema([*PAIR, *(pa.field(name, kind) for name, kind in SCORED if name not in PAIR.names)])
OUTCOMES = [("kept", None)] * 7 + [("rejected", "truncated"), ("rejected", "leak"), ("failed", "generation_error")]
WORDS = ["river", "runs", "past", "the", "old", "mill", "and", "miller", "counts", "sacks", "of", "corn", "by", "lamp"]


def turn(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def made_up(num_prompts: int, strategies: Sequence[str] = tuple(SIX), *, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of all outcomes, longer where chosen, with scores that mostly agree with the label."""
    draw = random.Random(seed)

    def answer(tokens: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(tokens)) + "."

    rows = []
    for i in range(num_prompts):
        for strategy in strategies:
            status, reason = draw.choice(OUTCOMES)
            chosen, rejected = draw.randint(10, 60), draw.randint(5, 40)
            failed = status == "failed"
            rows.append(
                {
                    **dict.fromkeys(SCHEMA.names),
                    "pair_id": pair_id(f"prompt {i}", strategy),
                    "prompt_id": f"p{i}",
                    "prompt": turn("user", f"Tell me about subject {i}."),
                    "chosen": [] if failed else turn("assistant", answer(chosen)),
                    "rejected": turn("assistant", answer(rejected)),
                    "strategy": strategy,
                    "level": "prompt",
                    "split": "train" if i % 10 else "heldout",
                    "chosen_variant": "strong",
                    "rejected_variant": "small",
                    "chosen_tokens": None if failed else chosen,
                    "rejected_tokens": rejected,
                    "status": status,
                    "reason": reason,
                }
                | ({} if failed else scores(draw))
            )
    return rows


def scores(draw: random.Random) -> dict[str, Any]:
    return {
        "sample": 0,
        "margin": draw.gauss(0.5, 1),
        "judge": draw.choice(["chosen", "chosen", "rejected", "tie"]),
        "judge_reason": "It answers the question.",
        "reward_chosen": draw.gauss(1, 1),
        "reward_rejected": draw.gauss(0, 1),
    }


def run_of(folder: Path | str, rows: list[dict[str, Any]], *, per_shard: int = 400, schema: pa.Schema = SCHEMA) -> Run:
    """A run with these pairs on a disk or in an object store, in shards of that many with several row groups each."""
    strategies = list(dict.fromkeys(row["strategy"] for row in rows))
    recipe = {
        "run": str(folder),
        "prompts": {"source": "prompts.jsonl"},
        "variants": {name: {"engine": "scripted"} for name in ("strong", "small", "second")},
        "strategies": {name: SIX[name] for name in strategies},
    }
    run = Run.create(cookbook.check(recipe, "r"))
    ready = len(rows) // len(strategies)
    aside = {"empty": 2, "over_input_limit": 1}
    run.switch("prompts", run.begin("prompts"), [], read=ready + 7, ready=ready, duplicates=4, set_aside=aside)
    made = {"completions": 3 * ready, "prompt_tokens": 50 * ready, "tokens": 70 * ready, "cached_tokens": 10 * ready}
    run.switch("generations", run.begin("generations"), [], by_variant={"strong": {**made, "failed": {"error": 3}}})
    effort = {"seconds": 60.5, "by_variant": {"strong": {"seconds": 35.0}}, "faults": []}
    target = run.begin("pairs")
    written = []
    for number, start in enumerate(range(0, len(rows), per_shard)):
        table = pa.Table.from_pylist(rows[start : start + per_shard], schema)
        written.append(write_shard(table, target / f"{number:05}.parquet", {}, rows_per_group=150))
    lengths = {name: found.as_json() for name, found in lengths_of(pa.Table.from_pylist(rows, schema)).items()}
    outcomes = {name: outcomes_of(book) for name, book in count(rows).items()}
    checks = plain(run.order.recipe.checks)
    run.switch("pairs", target, written, seconds=1.5, strategies=outcomes, lengths=lengths, checks=checks)
    run.update(effort=[effort])
    return run
