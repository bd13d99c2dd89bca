"""From the many small files in which rows were stored as they came to the few shards of a finished set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from factory.place import Place
from factory.shard import GENERATION, TARGET_BYTES, ShardWriter, Written, parquet
from factory.source import ID_BYTES, ids, is_in


@dataclass(slots=True)
class Count:
    """What the completions of one variant add up to, counted from the stored rows."""

    completions: int = 0
    failed: dict[str, int] = field(default_factory=dict)  # kind of error -> completions
    prompt_tokens: int = 0
    tokens: int = 0
    cached_tokens: int = 0

    def add(self, other: Count) -> None:
        self.completions += other.completions
        self.failed = dict(Counter(self.failed) + Counter(other.failed))
        self.prompt_tokens += other.prompt_tokens
        self.tokens += other.tokens
        self.cached_tokens += other.cached_tokens


def groups(files: dict[str, int], target_bytes: int = TARGET_BYTES) -> list[list[str]]:
    """Names of files in order, in groups of about ``target_bytes``; ``files`` gives their sizes."""
    out: list[list[str]] = []
    size = target_bytes
    for name, num_bytes in files.items():
        if size + num_bytes > target_bytes:
            out.append([])
            size = 0
        out[-1].append(name)
        size += num_bytes
    return out


def owners(places: Sequence[Place], doubles: np.ndarray) -> dict[bytes, str]:
    """For ids that are stored more than once, the file whose row counts. That takes a command that was killed while
    its last write went on, and another that began before it ended."""
    owner: dict[bytes, str] = {}
    for place in places:
        with parquet(place) as file:
            found = ids(file.read(columns=["prompt_id"]).column("prompt_id"))
        for identity in found[is_in(found, doubles)].tolist():
            owner.setdefault(identity, place.name)
    return owner


@ray.remote(num_cpus=1)
def merge(
    sources: Sequence[Place], target: Place, metadata: dict[str, str], rows_per_group: int, owner: dict[bytes, str]
) -> tuple[Written, dict[str, Count]]:
    """Write the rows of some files as one shard, and count them."""
    writer = ShardWriter(GENERATION, metadata)
    counts: dict[str, Count] = {}
    doubles = np.array(sorted(owner), dtype=f"S{ID_BYTES}")
    for source in sources:
        with parquet(source) as file:
            table = file.read()
        if owner:
            found = ids(table.column("prompt_id"))
            ours = [
                owner[i] == source.name if double else True
                for i, double in zip(found.tolist(), is_in(found, doubles), strict=True)
            ]
            table = table.filter(pa.array(ours))
        writer.add(table, rows_per_group)
        total(counts, count(table))
    return writer.write(target), counts


def count(table: pa.Table) -> dict[str, Count]:
    """What the completions of some rows add up to, by variant."""
    completions = table.column("completions").combine_chunks().flatten()
    flat = pa.Table.from_struct_array(completions)
    kinds = pc.list_element(pc.split_pattern(flat.column("error"), ":", max_splits=1), 0)
    flat = flat.append_column("kind", kinds)
    sums = ["prompt_tokens", "tokens", "cached_tokens"]
    grouped = flat.group_by(["variant", "kind"]).aggregate([*((name, "sum") for name in sums), ("variant", "count")])
    counts: dict[str, Count] = {}
    for row in grouped.to_pylist():
        mine = counts.setdefault(row["variant"], Count())
        mine.completions += row["variant_count"]
        if row["kind"] is not None:
            mine.failed[row["kind"]] = mine.failed.get(row["kind"], 0) + row["variant_count"]
        for name in sums:
            setattr(mine, name, getattr(mine, name) + (row[f"{name}_sum"] or 0))
    return counts


def total(into: dict[str, Count], more: dict[str, Count]) -> None:
    """Add counts by variant."""
    for variant, part in more.items():
        into.setdefault(variant, Count()).add(part)


def merged_counts(parts: Iterable[dict[str, Count]]) -> dict[str, Count]:
    """The sum of counts by variant, in order of the variants' names."""
    out: dict[str, Count] = {}
    for part in parts:
        total(out, part)
    return dict(sorted(out.items()))
