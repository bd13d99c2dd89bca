"""What a report says about the pairs of a run, read from the shards: one pass over the columns without the texts, then
the texts of a sample. Works the same for a hundred pairs and for a hundred million."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from factory.length import BATCH_ROWS, COLUMNS, Cells, Ints, add_kept
from factory.place import Place
from factory.shard import parquet, shards
from factory.statistic import fill

SCORES = ("margin", "judge", "reward_chosen", "reward_rejected")
VERDICTS = ("chosen", "tie", "rejected")
# Candidates of each stratum; a report shows no more pairs than this in all.
MAX_SAMPLE = 1500
SEPARATOR = "\x1f"  # between the parts of a stratum's key; in no strategy's name or reason

Stratum = tuple[str, str, str]  # strategy, status, reason ("" where kept)


@dataclass(slots=True)
class Survey:
    """Counts and sums over all pairs, and where the candidates of the sample lie."""

    outcomes: Counter[Stratum] = field(default_factory=Counter)
    cells: dict[str, Cells] = field(default_factory=dict)  # kept pairs of known length, by strategy
    differences: dict[str, Counter[int]] = field(default_factory=dict)  # chosen - rejected tokens -> kept pairs
    scored: dict[str, Counter[str]] = field(default_factory=dict)  # sums of ``scores`` over kept pairs, by strategy
    candidates: dict[Stratum, Candidates] = field(default_factory=dict)
    columns: set[str] = field(default_factory=set)  # the score columns that some pair has a value in

    @property
    def num_pairs(self) -> int:
        return self.outcomes.total()


class Candidates:
    """The pairs of one stratum with the smallest keys, at most ``MAX_SAMPLE``, and where they lie."""

    def __init__(self) -> None:
        self._found: NDArray[np.uint64] = np.empty((0, 3), np.uint64)  # key, shard, row of the shard

    def offer(self, keys: NDArray[np.uint64], shard: int, rows: Ints) -> None:
        full = len(self._found) >= MAX_SAMPLE
        near = keys < self._found[-1, 0] if full else np.ones(len(keys), bool)
        more = np.stack([keys[near], np.full(near.sum(), shard, np.uint64), rows[near].astype(np.uint64)], axis=1)
        joined = np.concatenate([self._found, more])
        self._found = joined[np.argsort(joined[:, 0], kind="stable")][:MAX_SAMPLE]

    def spots(self) -> list[tuple[int, int, int]]:
        """(key, shard, row), smallest key first."""
        return [(int(key), int(shard), int(row)) for key, shard, row in self._found]


def survey(pairs: Place, progress: Callable[[int], None] = lambda done: None) -> Survey:
    """Read a set of pairs without its texts; ``progress`` hears how many shards are done.

    Time: 0.4 s of one core for 100,000 pairs. Memory: the sums of each strategy (2 MB) and the candidates.
    """
    found = Survey()
    for number, place in enumerate(shards(pairs)):
        with parquet(place) as file:
            there = set(file.schema_arrow.names)
            wanted = [name for name in (*COLUMNS, "reason", *SCORES) if name in there]
            start = 0
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=wanted):
                _add(found, pa.Table.from_batches([batch]), number, start)
                start += batch.num_rows
        progress(number + 1)
    return found


def _add(found: Survey, rows: pa.Table, shard: int, start: int) -> None:
    found.columns.update(name for name in SCORES if name in rows.column_names and rows[name].null_count < rows.num_rows)
    add_kept(found.cells, rows, scores=scores)
    kept = rows.filter(pc.equal(rows["status"], "kept"))
    for name in pc.unique(kept["strategy"]).to_pylist():
        sums = scores(kept.filter(pc.equal(kept["strategy"], name)))
        found.scored.setdefault(name, Counter()).update({key: int(values.sum()) for key, values in sums.items()})
    kept = kept.filter(pc.and_(pc.is_valid(kept["chosen_tokens"]), pc.is_valid(kept["rejected_tokens"])))
    apart = pc.subtract(kept["chosen_tokens"].cast("int64"), kept["rejected_tokens"].cast("int64"))
    counted = pa.table({"strategy": kept["strategy"], "apart": apart}).group_by(["strategy", "apart"])
    for row in counted.aggregate([([], "count_all")]).to_pylist():
        found.differences.setdefault(row["strategy"], Counter())[row["apart"]] += row["count_all"]
    parts = [rows["strategy"], rows["status"], pc.fill_null(rows["reason"], "")]
    strata = pc.binary_join_element_wise(*parts, SEPARATOR).combine_chunks().dictionary_encode()
    codes = strata.indices.to_numpy()
    keys = _keys(rows["pair_id"])
    for code, name in enumerate(strata.dictionary.to_pylist()):
        strategy, status, reason = name.split(SEPARATOR)
        (mine,) = np.nonzero(codes == code)
        found.outcomes[strategy, status, reason] += len(mine)
        found.candidates.setdefault((strategy, status, reason), Candidates()).offer(keys[mine], shard, mine + start)


def _keys(pair_ids: pa.ChunkedArray) -> NDArray[np.uint64]:
    """A number from each id that orders pairs at random. Eight digits in the middle: others decide about training."""
    digits = pc.utf8_slice_codeunits(pair_ids, 8, 16).to_numpy().astype("S8")
    return digits.view(">u8").astype(np.uint64)


def scores(rows: pa.Table) -> dict[str, Ints]:
    """What each pair adds to the figures of accuracy: one column of 0 and 1 for each thing that is counted."""
    out: dict[str, Ints] = {}

    def count(name: str, mask: pa.ChunkedArray) -> None:
        out[name] = pc.fill_null(mask, False).to_numpy().astype(np.int64)

    if "margin" in rows.column_names:
        count("margin_n", pc.is_finite(rows["margin"]))
        count("margin_good", pc.greater(rows["margin"], 0.0))
    if "judge" in rows.column_names:
        for verdict in VERDICTS:
            count(f"judge_{verdict}", pc.equal(rows["judge"], verdict))
    if {"reward_chosen", "reward_rejected"} <= set(rows.column_names):
        apart = pc.subtract(rows["reward_chosen"], rows["reward_rejected"])
        count("reward_n", pc.is_finite(apart))
        count("reward_good", pc.greater(apart, 0.0))
    return out


def sample(pairs: Place, found: Survey, room: int) -> dict[Stratum, list[dict[str, Any]]]:
    """The rows of a sample of at most ``room`` pairs, each stratum in the order of its keys.

    The same pairs in every run: by id. Each combination of strategy, status and reason gets the same number of places,
    or all that it has, so that what is rare is there. Only the row groups that hold one are read.
    """
    sizes = {SEPARATOR.join(stratum): min(number, MAX_SAMPLE) for stratum, number in found.outcomes.items()}
    places = fill(sizes, room)
    wanted: dict[int, dict[int, tuple[int, Stratum]]] = defaultdict(dict)
    for stratum, candidates in found.candidates.items():
        for key, shard, row in candidates.spots()[: places[SEPARATOR.join(stratum)]]:
            wanted[shard][row] = (key, stratum)
    out: dict[Stratum, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    files = shards(pairs)
    for shard in sorted(wanted):
        with parquet(files[shard]) as file:
            for row, values in _read(file, sorted(wanted[shard])):
                key, stratum = wanted[shard][row]
                out[stratum].append((key, values))
    ordered = {stratum: sorted(rows, key=lambda item: item[0]) for stratum, rows in out.items()}
    return {stratum: [row for _, row in ordered[stratum]] for stratum in sorted(ordered)}


def _read(file: Any, rows: Sequence[int]) -> list[tuple[int, dict[str, Any]]]:
    """Rows of a shard by their number, in rising order."""
    out: list[tuple[int, dict[str, Any]]] = []
    start = 0
    for group in range(file.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        mine = [row for row in rows if start <= row < end]
        if mine:
            taken = file.read_row_group(group).take([row - start for row in mine])
            out += zip(mine, taken.to_pylist(), strict=True)
        start = end
    return out
