"""Lengths of kept pairs, and the selection among which length does not tell the sides apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from factory.length import BINS, Balance, Cells, add_kept, balance, bins, joined, lengths_of
from factory.pair import pair_id
from factory.place import Place
from factory.shard import PAIR, write_shard
from factory.statistic import cohens_d


def rows_of(chosen: Any, rejected: Any, strategy: str = "refine", **more: Any) -> list[dict[str, Any]]:
    """Kept pairs of these lengths."""
    fixed = {"strategy": strategy, "status": "kept", "split": "train", **more}
    return [
        {**dict.fromkeys(PAIR.names), **fixed, "pair_id": pair_id(f"{strategy}{i}", strategy)}
        | {"chosen_tokens": int(c), "rejected_tokens": int(r)}
        for i, (c, r) in enumerate(zip(chosen, rejected, strict=True))
    ]


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, PAIR)


def drawn(seed: int, n: int, shift: float) -> list[dict[str, Any]]:
    """Log-normal lengths around 100 tokens, the chosen ones longer by ``shift`` in the logarithm."""
    random = np.random.default_rng(seed)
    chosen = np.exp(random.normal(4.6 + shift, 0.5, n)).astype(int) + 1
    rejected = np.exp(random.normal(4.6, 0.5, n)).astype(int) + 1
    return rows_of(chosen, rejected)


def after(rows: list[dict[str, Any]], target: float) -> tuple[Balance, list[dict[str, Any]]]:
    cells: dict[str, Cells] = {}
    add_kept(cells, table_of(rows))
    found = Balance.of(cells, target)
    return found, [row for row in rows if found.holds(row)]


def d_of(rows: list[dict[str, Any]]) -> float:
    d = cohens_d([row["chosen_tokens"] for row in rows], [row["rejected_tokens"] for row in rows])
    assert d is not None
    return d


def test_lengths_by_hand() -> None:
    found = lengths_of(table_of(rows_of([10, 20, 30, 5], [5, 20, 10, 9])))["refine"]
    assert (found.pairs, found.longer, found.equal) == (4, 2, 1)
    assert found.d == pytest.approx(cohens_d([10, 20, 30, 5], [5, 20, 10, 9]))
    assert found.as_json() == {
        "pairs": 4,
        "mean_chosen": 16.25,  # 65 / 4
        "mean_rejected": 11.0,  # 44 / 4
        "d": round(found.d or 0, 4),
        "longer_is_chosen": 0.5,
        "equal": 0.25,
    }


def test_lengths_leave_out_what_is_not_kept_or_not_measured() -> None:
    rows = rows_of([10, 20], [5, 5]) + rows_of([99], [1], status="rejected", reason="leak")
    unknown = {**rows_of([1], [1])[0], "chosen_tokens": None}
    assert lengths_of(table_of([*rows, unknown]))["refine"].pairs == 2
    assert lengths_of(table_of([unknown])) == {}


def test_lengths_joined_are_those_of_both() -> None:
    rows = drawn(0, 101, 0.3)
    whole = lengths_of(table_of(rows))["refine"]
    parts = [lengths_of(table_of(part))["refine"] for part in (rows[:40], rows[40:])]
    assert joined(*parts) == whole


def test_bins_mirror_and_grow() -> None:
    sizes = np.array([0, 1, 2, 3, 4, 5, 6, 8, 100, 10**6, 2**30])
    assert (bins(sizes) + bins(-sizes) == BINS - 1).all()
    assert (np.diff(bins(sizes)) >= 0).all() and bins(sizes).max() < BINS and bins(-sizes).min() == 0
    assert bins(np.array([4]))[0] == bins(np.array([5]))[0] != bins(np.array([6]))[0]


@pytest.mark.parametrize("n", [400, 20_000])
@pytest.mark.parametrize("shift", [-0.8, 0.25, 0.8])
def test_balance_brings_skewed_pairs_below_the_target(n: int, shift: float) -> None:
    rows = drawn(1, n, shift)
    found, left = after(rows, 0.2)
    assert abs(d_of(rows)) > 0.3
    assert abs(d_of(left)) <= 0.2
    assert found.after["refine"].d == pytest.approx(d_of(left)), "what is announced is what is selected"
    assert found.after["refine"].pairs == len(left) > 0.15 * n


def test_balance_loses_nothing_where_lengths_are_balanced_already() -> None:
    rows = drawn(2, 3000, 0.02)
    assert abs(d_of(rows)) < 0.2
    assert len(after(rows, 0.2)[1]) == 3000


def test_balance_loses_no_more_than_the_target_asks_for() -> None:
    rows = drawn(3, 5000, 0.4)
    loose, tight = (after(rows, target)[1] for target in (0.5, 0.1))
    assert len(tight) < len(loose) < 5000
    assert abs(d_of(loose)) <= 0.5 and abs(d_of(tight)) <= 0.1


def test_balance_of_full_strength_leaves_no_hint_at_any_size() -> None:
    rows = drawn(4, 20_000, 0.5)
    cells: dict[str, Cells] = {}
    add_kept(cells, table_of(rows))
    limits = cells["refine"].matched()
    left = [row for row in rows if Balance({"refine": tuple(map(int, limits))}, {}, {}).holds(row)]
    difference = np.array([row["chosen_tokens"] - row["rejected_tokens"] for row in left])
    for size in range(1, BINS // 2):
        over, under = ((bins(sign * difference) == BINS // 2 + size).sum() for sign in (1, -1))
        assert abs(over - under) <= 0.02 * (over + under) + 2, size


def test_balance_of_pairs_that_are_all_longer_keeps_none() -> None:
    rows = rows_of(range(50, 90), range(40))
    found, left = after(rows, 0.2)
    assert left == [] and found.after["refine"].d is None


def test_balance_treats_each_strategy_by_itself() -> None:
    skewed, level = drawn(5, 1000, 0.8), rows_of(range(100, 300), range(100, 300), "demon")
    found, left = after([*skewed, *level], 0.2)
    assert [row for row in left if row["strategy"] == "demon"] == level
    assert abs(found.after["refine"].d or 9) <= 0.2


def test_balance_reads_a_set_of_shards_and_one_split_only(tmp_path: Path) -> None:
    train, heldout = drawn(6, 300, 0.8), [{**row, "split": "heldout"} for row in drawn(7, 300, -0.8)]
    for number, part in enumerate((train[:100], [*train[100:], *heldout])):
        write_shard(table_of(part), Place.of(tmp_path) / f"{number}.parquet", {})
    assert balance(Place.of(tmp_path), 0.2, split="train") == after(train, 0.2)[0]
    assert balance(Place.of(tmp_path), 0.2).before["refine"].pairs == 600


def test_balance_holds_a_pair_of_unknown_length() -> None:
    found, _ = after(drawn(8, 200, 0.8), 0.2)
    assert found.holds({"pair_id": "ff", "strategy": "refine", "chosen_tokens": None, "rejected_tokens": 3})
    assert found.holds({"pair_id": "ff", "strategy": "other", "chosen_tokens": 90, "rejected_tokens": 3})
