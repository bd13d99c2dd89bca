"""Near-duplicate prompts: found among staged shards with MinHash and bands, as Ray Data group-bys, and taken out.

Slices of the shards become rows of bands; a group-by on the bands brings together what may be near, and one on the
shards brings each shard what leaves it. Of prompts that are near each other the first in the order of the sources
stays, whatever the number of slices, groups and nodes. Nothing but the shards' names passes through the driver.
"""

from __future__ import annotations

import functools
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
import ray
import xxhash
from ray.data.dataset import Dataset, MaterializedDataset

from factory.overlap import words
from factory.place import Place
from factory.session import quiet_data
from factory.shard import PROMPT, ShardWriter, Written, parquet, rows_per_group
from factory.sketch import PERMUTATIONS, bands, near, num_bands, shingles, signatures
from factory.source import slices

REASON = "near_duplicate"
PROMPTS_PER_TASK = 2**14
PROMPTS_AT_ONCE = 2**12
# Rows of bands are some 200 B. A partition, which a task holds, has four buckets on average: 200 MB, of which it makes
# copies.
ROWS_PER_BUCKET = 2**18
BUCKETS_PER_PARTITION = 4
# The driver keeps an object of Ray for each pair of a task and a partition. A round has 1,024 partitions at most and,
# beside one for each shard, as many tasks; above 67 million prompts the bands take several rounds.
ROWS_PER_ROUND = 2**30
TASKS_PER_ROUND = 2**10
# Of what was found, which is little: some bytes for each near-duplicate.
MOST_PARTITIONS = 2**6
# A prompt's position is its shard's number and its row in there.
ROW_BITS = 40

BAND = pa.schema(
    [
        ("bucket", pa.int64()),
        ("band", pa.uint64()),
        ("position", pa.int64()),
        ("sketch", pa.binary(PERMUTATIONS)),
        ("source", pa.string()),
    ]
)
NEAR = pa.schema(
    [
        ("shard", pa.int64()),
        ("position", pa.int64()),
        ("near_position", pa.int64()),
        ("near", pa.string()),
        ("similarity", pa.float32()),
    ]
)


@dataclass(frozen=True, slots=True)
class Sieve:
    """What the tasks of one set need to know."""

    folder: Place
    names: tuple[str, ...]  # of the shards, in the order of the sources
    threshold: float
    metadata: dict[str, str]


def sieve(
    folder: Place, written: Sequence[Written], threshold: float, metadata: dict[str, str], aside: IO[bytes]
) -> tuple[int, list[Written]]:
    """Take near-duplicates out of the staged shards of a folder, and append a line for each to ``aside``.

    ``threshold``: of the Jaccard similarity of the prompts' word shingles. Returns how many left, and the shards that
    are there then. Needs a Ray session with a free CPU.
    """
    job = Sieve(folder, tuple(shard.name for shard in written), threshold, metadata)
    quiet_data()
    rounds = list(_rounds(job, sum(shard.num_rows for shard in written)))
    found = (
        functools.reduce(Dataset.union, rounds)
        .groupby("shard", num_partitions=min(MOST_PARTITIONS, len(written)))
        .map_groups(_rest, batch_format="pyarrow", fn_args=[job])
    )
    renewed: dict[str, tuple[int, Written]] = {}
    for row in found.iter_rows():
        name = row.pop("of")
        renewed[name] = (row.pop("dropped"), Written(**row))
    for name in sorted(renewed):
        # The tasks write beside the old shards, so that one that Ray repeats finds what it read the first time.
        lines = folder / f"{name}.jsonl"
        aside.write(lines.read())
        lines.remove()
        (folder / name).remove()
    left = [renewed[shard.name][1] if shard.name in renewed else shard for shard in written]
    return sum(dropped for dropped, _ in renewed.values()), [shard for shard in left if shard.num_rows]


def _rounds(job: Sieve, num_rows: int) -> Iterator[MaterializedDataset]:
    """The near-duplicates by some of the bands after another, computed."""
    count = num_bands(job.threshold)
    at_once = min(count, max(1, ROWS_PER_ROUND // num_rows))
    parts = list(_parts(job, max(PROMPTS_PER_TASK, num_rows // TASKS_PER_ROUND)))
    for first in range(0, count, at_once):
        buckets = math.ceil(num_rows * at_once / ROWS_PER_BUCKET)
        which = [job, slice(first, first + at_once), buckets]
        yield (
            ray.data.from_items(parts, override_num_blocks=len(parts))
            .map_batches(_bands, batch_size=1, batch_format="pyarrow", fn_args=which)
            .groupby("bucket", num_partitions=math.ceil(buckets / BUCKETS_PER_PARTITION))
            .map_groups(_near, batch_format="pyarrow", fn_args=[job])
            .materialize()
        )


def _parts(job: Sieve, num_rows: int) -> Iterator[dict[str, Any]]:
    """Slices of the shards: the shard's number, the row groups, and the position of the first row."""
    for number, name in enumerate(job.names):
        position = number << ROW_BITS
        for part in slices([job.folder / name], num_rows):
            yield {"shard": number, "first": part.row_groups[0], "last": part.row_groups[-1], "position": position}
            position += part.num_rows


def _bands(batch: pa.Table, job: Sieve, which: slice, buckets: int) -> Iterator[pa.Table]:
    """The rows of some bands of one slice."""
    (part,) = batch.to_pylist()
    groups = [*range(part["first"], part["last"] + 1)]
    position = part["position"]
    with parquet(job.folder / job.names[part["shard"]]) as file:
        for rows in file.iter_batches(PROMPTS_AT_ONCE, row_groups=groups, columns=["prompt", "source"]):
            yield _band_rows(rows, position, num_bands(job.threshold), which, buckets)
            position += rows.num_rows


def _band_rows(prompts: pa.RecordBatch, position: int, count: int, which: slice, buckets: int) -> pa.Table:
    texts, contexts = [], np.empty(prompts.num_rows, dtype=np.uint64)
    for i, prompt in enumerate(prompts.column("prompt").to_pylist()):
        texts.append(shingles(words(prompt[-1]["content"]) or [prompt[-1]["content"].strip()]))
        contexts[i] = _context(prompt[:-1])
    signed = signatures(texts)
    hashes = bands(signed, contexts, count)[:, which]
    rows = np.repeat(np.arange(prompts.num_rows), hashes.shape[1])
    hashes = hashes.reshape(-1)
    sketches = signed.astype(np.uint8)[rows]
    return pa.table(
        {
            "bucket": (hashes % np.uint64(buckets)).astype(np.int64),
            "band": hashes,
            "position": position + rows,
            "sketch": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(PERMUTATIONS), len(sketches), [None, pa.py_buffer(sketches)]
            ),
            "source": prompts.column("source").take(pa.array(rows)),
        },
        schema=BAND,
    )


def _context(turns: Sequence[dict[str, str]]) -> int:
    """What stands before the last user turn has to be the same: prompts that share a long system text and differ in
    the question are not near."""
    return xxhash.xxh3_64_intdigest(json.dumps([[turn["role"], words(turn["content"])] for turn in turns]).encode())


def _near(rows: pa.Table, job: Sieve) -> pa.Table:
    """The near-duplicates among the rows of bands of one bucket."""
    positions = rows.column("position").to_numpy()
    sketches = np.concatenate([_bytes(chunk) for chunk in rows.column("sketch").chunks])
    later, earlier, similarity = near(rows.column("band").to_numpy(), positions, sketches, job.threshold)
    return pa.table(
        {
            "shard": positions[later] >> ROW_BITS,
            "position": positions[later],
            "near_position": positions[earlier],
            "near": rows.column("source").combine_chunks().take(pa.array(earlier)),
            "similarity": similarity,
        },
        schema=NEAR,
    )


def _bytes(column: pa.FixedSizeBinaryArray) -> np.ndarray:
    """Sketches as (rows, PERMUTATIONS) of uint8, without a Python object for each."""
    values = np.frombuffer(column.buffers()[1], dtype=np.uint8)
    return values[column.offset * PERMUTATIONS :][: len(column) * PERMUTATIONS].reshape(-1, PERMUTATIONS)


def _rest(found: pa.Table, job: Sieve) -> pa.Table:
    """Write one shard without its near-duplicates, and their lines."""
    number = found.column("shard")[0].as_py()
    name = job.names[number]
    # The buckets each name the first that they know.
    found = found.sort_by([("position", "ascending"), ("near_position", "ascending")])
    positions, first = np.unique(found.column("position").to_numpy(), return_index=True)
    rows = positions - (number << ROW_BITS)
    found = found.take(pa.array(first))
    writer, start, sources = ShardWriter(PROMPT, job.metadata), 0, []
    with parquet(job.folder / name) as file:
        for i in range(file.metadata.num_row_groups):
            table = file.read_row_group(i)
            gone = np.zeros(table.num_rows, dtype=bool)
            gone[rows[(rows >= start) & (rows < start + table.num_rows)] - start] = True
            sources += table.column("source").filter(pa.array(gone)).to_pylist()
            writer.add(table.filter(pa.array(~gone)), rows_per_group(file.metadata.num_rows))
            start += table.num_rows
    new = name.replace(".parquet", "-sieved.parquet")
    shard = writer.write(job.folder / new) if writer.num_rows else Written(new, 0, 0, "")
    lines = io.BytesIO()
    for source, row in zip(sources, found.select(["near", "similarity"]).to_pylist(), strict=True):
        row["similarity"] = round(row["similarity"], 3)
        lines.write(json.dumps({"source": source, "reason": REASON, **row}).encode() + b"\n")
    (job.folder / f"{name}.jsonl").write(lines.getvalue())
    facts = {"name": shard.name, "num_rows": shard.num_rows, "num_bytes": shard.num_bytes, "sha256": shard.sha256}
    return pa.Table.from_pylist([{"of": name, "dropped": len(rows), **facts}])
