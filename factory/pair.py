"""Pairs: a cheap, repeatable function of generations and recipe; no engine, no model.

For each prompt and strategy one row: kept, rejected with the check's reason, or failed with what went wrong.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from factory.check import Checks, Side
from factory.cookbook import Order
from factory.errors import RunError
from factory.generate import Progress
from factory.run import Run
from factory.shard import PAIR, shards, write_shard
from strategies.contrast import Generation, Message, Strategy

# Rows of generations that go into one shard of pairs: at six pairs a row some 80 MiB of Python objects in a task.
ROWS_PER_SHARD = 4_000
# A reason is one of the checks' own, or one of these.
MISSING = "generation_missing"
ERROR = "generation_error"
REPLY_MISSING = "reply_missing"

Books = dict[str, dict[str, int]]  # strategy -> {"kept": n, "rejected:leak": n, "failed:generation_error": n, ...}


def pair_id(prompt_id: str, strategy: str) -> str:
    """Identity of a pair: the prompt and the way of contrasting it, 128 bits as 32 hexadecimal digits."""
    return hashlib.sha256(f"{prompt_id}:{strategy}".encode()).hexdigest()[:32]


def pairs_of(row: dict[str, Any], strategies: Sequence[Strategy], checks: Checks) -> list[dict[str, Any]]:
    """The pairs of one row of generations, one per strategy."""
    prompt = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
    asked = "\n".join(str(message.content) for message in prompt)
    completions = {completion["generation_id"]: completion for completion in row["completions"]}
    out = []
    for strategy in strategies:
        contrast = strategy.contrast(prompt)
        chosen = completions.get(contrast.chosen.id)
        rejected = completions.get(contrast.rejected.id)
        reason = _failure(contrast.chosen, chosen) or _failure(contrast.rejected, rejected)
        status = "failed" if reason else "kept"
        if chosen is not None and rejected is not None and reason is None:
            reason = checks.reason(_side(chosen), _side(rejected), asked)
            status = "rejected" if reason else "kept"
        out.append(
            {
                "pair_id": pair_id(row["prompt_id"], strategy.name),
                "prompt_id": row["prompt_id"],
                "prompt": row["prompt"],
                "chosen": _turn(chosen),
                "rejected": _turn(rejected),
                "strategy": strategy.name,
                "level": strategy.level,
                "split": row["split"],
                "chosen_variant": contrast.chosen.variant,
                "rejected_variant": contrast.rejected.variant,
                "chosen_generation": contrast.chosen.id,
                "rejected_generation": contrast.rejected.id,
                "chosen_tokens": chosen["tokens"] if chosen else None,
                "rejected_tokens": rejected["tokens"] if rejected else None,
                "status": status,
                "reason": reason,
            }
        )
    return out


def _failure(generation: Generation, completion: dict[str, Any] | None) -> str | None:
    if completion is None:
        return MISSING
    if completion["error"] is not None:
        return REPLY_MISSING if generation.replies and completion["seed"] is None else ERROR
    return None


def _side(completion: dict[str, Any]) -> Side:
    return Side(completion["answer"], completion["finish"])


def _turn(completion: dict[str, Any] | None) -> list[dict[str, str]]:
    """The answer as TRL's conversational form; what cannot be read is shown as it was written."""
    if completion is None or completion["error"] is not None:
        return []
    text = completion["answer"] if completion["answer"] is not None else completion["text"]
    return [{"role": "assistant", "content": text}]


@ray.remote(num_cpus=1)
def _pair_shard(paths: list[str], target: str, order: Order, metadata: dict[str, str]) -> tuple[Books, str]:
    """Read some shards of generations, write one shard of pairs in a fixed order, count it, and give its SHA-256."""
    checks = Checks.of(order.preset)
    rows: list[dict[str, Any]] = []
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=512):
                for row in batch.to_pylist():
                    rows += pairs_of(row, order.strategies, checks)
    rows.sort(key=lambda row: (row["prompt_id"], row["pair_id"]))
    write_shard(pa.Table.from_pylist(rows, PAIR), Path(target), metadata)
    with Path(target).open("rb") as file:
        return count(rows), hashlib.file_digest(file, "sha256").hexdigest()


def count(rows: Sequence[dict[str, Any]]) -> Books:
    """Pairs by strategy and outcome."""
    books: Books = {}
    for row in rows:
        outcome = row["status"] if row["reason"] is None else f"{row['status']}:{row['reason']}"
        of_strategy = books.setdefault(row["strategy"], {})
        of_strategy[outcome] = of_strategy.get(outcome, 0) + 1
    return books


def make_pairs(run: Run, progress: Progress) -> dict[str, Any]:
    """Make all pairs of a run from its generations, check the books, and switch them in.

    Raises:
        RunError: kept + rejected + failed is not the number of prompts for some strategy.
    """
    started = time.monotonic()
    generations = run.current("generations", "generate RECIPE")
    target = run.begin("pairs")
    order = ray.put(run.order)
    groups = _groups(shards(generations))
    limit = max(1, int(ray.cluster_resources().get("CPU", 1)))
    running: list[ray.ObjectRef] = []
    refs: list[ray.ObjectRef] = []
    with progress("pairs", len(groups), "shards") as meter:
        for number, paths in enumerate(groups):
            if len(running) == limit:
                _, running = ray.wait(running)
                meter.update(number + 1 - limit)
            name = str(target / f"{number:05d}.parquet")
            refs.append(_pair_shard.remote([str(path) for path in paths], name, order, run.metadata))
            running.append(refs[-1])
        written: list[tuple[Books, str]] = ray.get(refs)
        meter.update(len(groups))
    books: Books = {}
    for part, _ in written:
        _add(books, part)
    _check_books(run, books)
    outcomes = {strategy: outcomes_of(books[strategy]) for strategy in run.order.recipe.strategies}
    checksum = hashlib.sha256("".join(digest for _, digest in written).encode()).hexdigest()
    seconds = round(time.monotonic() - started, 2)
    run.switch("pairs", target, seconds=seconds, checksum=checksum, strategies=outcomes)
    return dict(run.manifest["pairs"])


def outcomes_of(book: dict[str, int]) -> dict[str, Any]:
    """``{"kept": n, "rejected": {reason: n}, "failed": {reason: n}}``, most frequent reason first."""
    out: dict[str, Any] = {"kept": book.get("kept", 0), "rejected": {}, "failed": {}}
    for outcome, number in sorted(book.items(), key=lambda item: (-item[1], item[0])):
        status, _, reason = outcome.partition(":")
        if reason:
            out[status][reason] = number
    return out


def _groups(paths: list[Path]) -> list[list[Path]]:
    groups: list[list[Path]] = [[]]
    rows = 0
    for path in paths:
        size = pq.read_metadata(path).num_rows
        if rows and rows + size > ROWS_PER_SHARD:
            groups.append([])
            rows = 0
        groups[-1].append(path)
        rows += size
    return groups


def _add(books: Books, more: Books) -> None:
    for strategy, outcomes in more.items():
        books[strategy] = dict(Counter(books.get(strategy, {})) + Counter(outcomes))


def _check_books(run: Run, books: Books) -> None:
    ready = run.manifest["prompts"]["ready"]
    for strategy in run.order.recipe.strategies:
        total = sum(books.get(strategy, {}).values())
        if total != ready:
            raise RunError(
                f"the books do not balance: strategy '{strategy}' has {total} pairs (kept, rejected and failed) for "
                f"{ready} prompts; generate again to fill what is missing"
            )
