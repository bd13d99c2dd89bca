"""Pairs: a cheap, repeatable function of generations and recipe; no engine, no model.

For each prompt and strategy one row: kept, rejected with the check's reason, or failed with what went wrong.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray

from factory.change import rewritten
from factory.check import Checks, Side
from factory.cookbook import Order
from factory.errors import RunError
from factory.generate import Progress
from factory.length import COLUMNS, Lengths, balance, joined, lengths_of
from factory.place import Place
from factory.refusal import declining
from factory.run import Run, plain
from factory.score import Keep, agrees, judged, score, turned
from factory.session import gathered
from factory.shard import PAIR, ShardWriter, Written, parquet, shards
from factory.twin import reject_twins
from strategies import reading
from strategies.contrast import Generation, Message, Reply, Strategy
from strategies.score import Scores

# Rows of generations that a task holds as Python objects; their pairs are one row group.
ROWS_AT_ONCE = 512
# A reason is one of the checks' own, or one of these.
MISSING = "generation_missing"
ERROR = "generation_error"
REPLY_MISSING = "reply_missing"
# Of a pair that a judge is to label; and of one that a measurement was asked to confirm.
TIE = "tie"
NO_VERDICT = "no_verdict"
DISAGREES = "disagrees"
# Of an edit that went beyond its strategy's `max_change`.
REWRITTEN = "rewritten"

Books = dict[str, dict[str, int]]  # strategy -> {"kept": n, "rejected:leak": n, "failed:generation_error": n, ...}


def pair_id(prompt_id: str, strategy: str, sample: int = 0) -> str:
    """Identity of a pair: the prompt, the way of contrasting it and the draw, 128 bits as 32 hexadecimal digits."""
    draw = f":{sample}" if sample else ""
    return hashlib.sha256(f"{prompt_id}:{strategy}{draw}".encode()).hexdigest()[:32]


def pairs_of(
    row: dict[str, Any],
    strategies: Sequence[Strategy],
    checks: Checks,
    scores: Scores | None = None,
    keep: Keep = "all",
) -> list[dict[str, Any]]:
    """The pairs of one row of generations, one per strategy and sample."""
    prompt = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
    asked = "\n".join(str(message.content) for message in prompt)
    completions = {completion["generation_id"]: completion for completion in row["completions"]}
    contrasts = [strategy.contrast(prompt) for strategy in strategies]
    # Thoughts and a judge's verdicts are no answers to the prompt.
    sides = {side.id for contrast in contrasts for side in (contrast.chosen, contrast.rejected)}
    answers = {completion["answer"] for identity, completion in completions.items() if identity in sides}
    declined = declining([answer for answer in answers if answer])
    out = []
    samples: Counter[str] = Counter()
    for strategy, contrast in zip(strategies, contrasts, strict=True):
        scored = score(contrast, prompt, scores, completions)
        verdict = None
        if contrast.verdicts:
            verdict, why = judged(contrast.verdicts, completions)
            if verdict == "rejected":  # the label is the verdict, so the two change places
                contrast = replace(contrast, chosen=contrast.rejected, rejected=contrast.chosen)
                scored = turned(scored)
            scored |= {"judge": "chosen" if verdict == "rejected" else verdict, "judge_reason": why}
        chosen = completions.get(contrast.chosen.id)
        rejected = completions.get(contrast.rejected.id)
        reason = _failure(contrast.chosen, chosen) or _failure(contrast.rejected, rejected)
        status = "failed" if reason else "kept"
        if chosen is not None and rejected is not None and reason is None:
            reason = checks.reason(
                _side(contrast.chosen, completions), _side(contrast.rejected, completions), asked, declined
            )
            if reason is None and rewritten(chosen["answer"], rejected["answer"], strategy.max_change):
                reason = REWRITTEN
            if reason is None and contrast.verdicts and verdict in (None, "tie"):
                reason = TIE if verdict else NO_VERDICT
            if reason is None and agrees(scored, keep) is False:
                reason = DISAGREES
            status = "rejected" if reason else "kept"
        out.append(
            {
                "pair_id": pair_id(row["prompt_id"], strategy.name, samples[strategy.name]),
                "prompt_id": row["prompt_id"],
                "prompt": row["prompt"],
                "chosen": _turn(chosen),
                "rejected": _turn(rejected),
                "strategy": strategy.name,
                "sample": samples[strategy.name],
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
                **scored,
            }
        )
        samples[strategy.name] += 1
    return out


def _failure(generation: Generation, completion: dict[str, Any] | None) -> str | None:
    if completion is None:
        return MISSING
    if completion["error"] is not None:
        return REPLY_MISSING if generation.replies and completion["seed"] is None else ERROR
    return None


def _side(generation: Generation, completions: dict[str, dict[str, Any]]) -> Side:
    completion = completions[generation.id]
    thought = None
    if isinstance(generation.prefill, Reply):  # the forced form: the thought is a completion of its own
        thought = completions[generation.prefill.generation.id]["answer"]
    elif generation.read == "response":
        thought = reading.answer(completion["text"], "thought")
    return Side(completion["answer"], completion["finish"], thought)


def _turn(completion: dict[str, Any] | None) -> list[dict[str, str]]:
    """The answer as TRL's conversational form; what cannot be read is shown as it was written."""
    if completion is None or completion["error"] is not None:
        return []
    text = completion["answer"] if completion["answer"] is not None else completion["text"]
    return [{"role": "assistant", "content": text}]


@ray.remote(num_cpus=1)
def _pair_shard(
    source: Place, target: Place, order: Order, metadata: dict[str, str]
) -> tuple[Books, Written, dict[str, Lengths]]:
    """Read one shard of generations and write one of pairs, in the same order, so that it is repeatable to the byte."""
    checks = Checks.of(order.preset, order.recipe.checks)
    keep = order.recipe.scores.keep if order.recipe.scores else "all"
    writer = ShardWriter(PAIR, metadata)
    books: Books = {}
    lengths: dict[str, Lengths] = {}
    with parquet(source) as file:
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
            rows = [
                pair
                for row in batch.to_pylist()
                for pair in pairs_of(row, order.strategies, checks, order.scores, keep)
            ]
            table = pa.Table.from_pylist(rows, PAIR)
            writer.add(table)
            _add(books, count(rows))
            _join(lengths, lengths_of(table))
    return books, writer.write(target), lengths


@ray.remote(num_cpus=1)
def _recount(folder: Place, shard: Written) -> tuple[Books, Written, dict[str, Lengths]]:
    """The books and lengths of a shard that is there already."""
    books: Books = {}
    lengths: dict[str, Lengths] = {}
    with parquet(folder / shard.name) as file:
        for batch in file.iter_batches(columns=["reason", *COLUMNS]):
            table = pa.Table.from_batches([batch])
            _add(books, count(table.to_pylist()))
            _join(lengths, lengths_of(table))
    return books, shard, lengths


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
        RunError: kept + rejected + failed is not prompts x samples for some strategy.
    """
    started = time.monotonic()
    generations = run.current("generations", f"generate {run.path}/recipe.yaml")
    target = run.begin("pairs")
    order = ray.put(run.order)
    sources = shards(generations)
    checks = plain(run.order.recipe.checks)
    metadata = {**run.metadata, "popalign.checks": json.dumps(checks, sort_keys=True)}

    def start(source: Place) -> ray.ObjectRef:
        return _pair_shard.remote(source, target / source.name, order, metadata)

    with progress("pairs", len(sources), "shards") as meter:
        parts = gathered(start, sources, meter.update)
    if checks["near_duplicate"] is not None and any(book.get("kept") for part, *_ in parts for book in part.values()):
        renewed = reject_twins(target, [shard for _, shard, _ in parts], checks["near_duplicate"], metadata)
        counted = gathered(lambda shard: _recount.remote(target, shard), list(renewed.values()), lambda done: None)
        anew = dict(zip(renewed, counted, strict=True))
        parts = [anew.get(part[1].name, part) for part in parts]
    books: Books = {}
    lengths: dict[str, Lengths] = {}
    for part, _, measured in parts:
        _add(books, part)
        _join(lengths, measured)
    written = [shard for _, shard, _ in parts]
    _check_books(run, books)
    outcomes = {strategy: outcomes_of(books[strategy]) for strategy in run.order.recipe.strategies}
    seconds = round(time.monotonic() - started, 2)
    facts = _length_facts(run, target, lengths)
    run.switch("pairs", target, written, seconds=seconds, strategies=outcomes, checks=checks, **facts)
    return dict(run.manifest["pairs"])


def outcomes_of(book: dict[str, int]) -> dict[str, Any]:
    """``{"kept": n, "rejected": {reason: n}, "failed": {reason: n}}``, most frequent reason first."""
    out: dict[str, Any] = {"kept": book.get("kept", 0), "rejected": {}, "failed": {}}
    for outcome, number in sorted(book.items(), key=lambda item: (-item[1], item[0])):
        status, _, reason = outcome.partition(":")
        if reason:
            out[status][reason] = number
    return out


def _add(books: Books, more: Books) -> None:
    for strategy, outcomes in more.items():
        books[strategy] = dict(Counter(books.get(strategy, {})) + Counter(outcomes))


def _join(lengths: dict[str, Lengths], more: dict[str, Lengths]) -> None:
    for strategy, measured in more.items():
        lengths[strategy] = joined(lengths[strategy], measured) if strategy in lengths else measured


def _length_facts(run: Run, pairs: Place, lengths: dict[str, Lengths]) -> dict[str, Any]:
    """The lengths of the kept pairs for the manifest, and with ``balance_length`` what training takes of them."""
    target = run.order.recipe.balance_length
    names = [name for name in run.order.recipe.strategies if name in lengths]
    facts: dict[str, Any] = {"lengths": {name: lengths[name].as_json() for name in names}}
    if target is not None:
        found = balance(pairs, target, split="train")
        facts["balance"] = {
            "target": target,
            "strategies": {
                name: {"before": found.before[name].as_json(), "after": found.after[name].as_json()}
                for name in names
                if name in found.before
            },
        }
    return facts


def _check_books(run: Run, books: Books) -> None:
    ready = run.manifest["prompts"]["ready"]
    for strategy in run.order.recipe.strategies:
        total = sum(books.get(strategy, {}).values())
        samples = run.order.recipe.strategies[strategy].samples
        if total != ready * samples:
            raise RunError(
                f"the books do not balance: strategy '{strategy}' has {total} pairs (kept, rejected and failed) for "
                f"{ready} prompts and {samples} samples; generate again to fill what is missing"
            )
