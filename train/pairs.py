"""Which pairs are trained on: the kept ones of the training split, in the share that the strategies' weights and their
own scores say, and with `balance_length` only as many as leave both sides equally long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from factory.errors import InputError
from factory.length import balance
from factory.recipe import TargetMargin
from factory.run import Run
from factory.score import confidence, signed
from factory.shard import MESSAGES, parquet, shards

TRAINING = pa.schema(
    [
        ("pair_id", pa.string()),
        ("prompt", MESSAGES),
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("target_margin", pa.float64()),  # nats of the log-ratio difference
    ]
)


@dataclass(frozen=True, slots=True)
class Selection:
    """The pairs of one training, as an Arrow file that every worker maps into memory."""

    path: Path
    num_pairs: int
    num_fillers: int
    by_strategy: dict[str, int]


def shares(run: Run) -> dict[str, float]:
    """The share of each strategy's pairs that is used: its weight over the largest weight."""
    weights = {name: settings.weight for name, settings in run.order.recipe.strategies.items()}
    largest = max(weights.values())
    return {name: weight / largest for name, weight in weights.items()}


def rank(pair_id: str, share: float) -> float:
    """A pair's place in the draw, by its id alone and so the same in every run: below 1 with the probability ``share``.

    The lowest ranks of several strategies hold them in the proportion of their shares: a draw of fewer pairs does too.
    """
    return int(pair_id[-8:], 16) / 2**32 / share if share else float("inf")


def margin_of(row: dict[str, Any], wanted: TargetMargin | None) -> float:
    """What is taken off the pair's log-ratio difference, in nats."""
    value = None if wanted is None else signed(row, wanted.by)
    if wanted is None or value is None:
        return 0.0
    return wanted.scale * max(-wanted.clamp, min(wanted.clamp, value))


def kept(run: Run, split: str) -> Iterator[dict[str, Any]]:
    """The kept pairs of a split, in the fixed order of the shards."""
    for path in shards(run.current("pairs", f"pairs {run.path}")):
        with parquet(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    if row["status"] == "kept" and row["split"] == split:
                        yield row


def select(run: Run, target: Path, multiple: int) -> Selection:
    """Write the pairs of a training to ``target``, filled up to a multiple of ``multiple`` rows.

    Workers take turns in reading batches, and with a number that does not come out even ``accelerate`` repeats pairs
    from the start so that all workers make the same number of steps. Fillers take that place: a pair whose two answers
    are equal has a DPO loss of log 2 and a gradient of exactly zero, so every real pair is seen once per epoch.

    Raises:
        InputError: there is nothing to train on.
    """
    settings = run.order.recipe.train
    assert settings is not None
    share = shares(run)
    target_d = run.order.recipe.balance_length
    pairs = run.current("pairs", f"pairs {run.path}")
    # Decided by other digits of the id than the shares, so that neither choice disturbs the other.
    balanced = None if target_d is None else balance(pairs, target_d, split="train")
    drawn = []
    for row in kept(run, "train"):
        sure = confidence(row, settings.weight_by) if settings.weight_by else None
        place = rank(row["pair_id"], share.get(row["strategy"], 0.0) * (1.0 if sure is None else sure))
        if place < 1 and (balanced is None or balanced.holds(row)):
            drawn.append((place, row["pair_id"]))
    chosen = {pair_id for _, pair_id in sorted(drawn)[: settings.max_pairs]}
    by_strategy: Counter[str] = Counter()
    last: dict[str, Any] | None = None
    target.parent.mkdir(parents=True, exist_ok=True)
    # The stream format is the one that `datasets.Dataset.from_file` maps.
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, TRAINING) as writer:
        for row in kept(run, "train"):
            if row["pair_id"] in chosen:
                by_strategy[row["strategy"]] += 1
                last = {**row, "target_margin": margin_of(row, settings.target_margin)}
                last = {name: last[name] for name in TRAINING.names}
                writer.write_batch(pa.RecordBatch.from_pylist([last], TRAINING))
        num_pairs = by_strategy.total()
        num_fillers = -num_pairs % multiple
        if last is not None and num_fillers:
            filler = {**last, "pair_id": "filler", "rejected": last["chosen"], "target_margin": 0.0}
            writer.write_batch(pa.RecordBatch.from_pylist([filler] * num_fillers, TRAINING))
    if not num_pairs:
        outcomes = run.manifest["pairs"]["strategies"]
        all_kept = sum(outcome["kept"] for outcome in outcomes.values())
        unbalanced = "" if target_d is None else f", or balance_length = {target_d:g} leaves none"
        raise InputError(
            f"{run.path}: no pairs to train on: {all_kept} were kept in all splits, and none of them is in the "
            f"training split of a strategy with a weight above 0{unbalanced}; see: popalign status"
        )
    return Selection(target, num_pairs, num_fillers, dict(by_strategy))
