"""Near-duplicates among the rows of shards: MinHash and bands, as Ray Data group-bys.

Slices of the shards become rows of bands; a group-by on the bands brings together what may be near, and one on the
shards brings each shard what was found in it. Of rows that are near each other the first in the order of the shards
stays, whatever the number of slices, groups and nodes. Nothing but the shards' names passes through the driver.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data.dataset import Dataset, MaterializedDataset

from factory.place import Place
from factory.session import quiet_data
from factory.shard import Written, parquet
from factory.sketch import PERMUTATIONS, bands, near, num_bands, signatures
from factory.source import slices

ROWS_PER_TASK = 2**14
ROWS_AT_ONCE = 2**12
# Rows of bands are some 200 B. A partition, which a task holds, has four buckets on average: 200 MB, of which it makes
# copies.
ROWS_PER_BUCKET = 2**18
BUCKETS_PER_PARTITION = 4
# The driver keeps an object of Ray for each pair of a task and a partition. A round has 1,024 partitions at most and,
# beside one for each shard, as many tasks; above 67 million rows the bands take several rounds.
ROWS_PER_ROUND = 2**30
TASKS_PER_ROUND = 2**10
# Of what was found, which is little: some bytes for each near-duplicate.
MOST_PARTITIONS = 2**6
# A row's position is its shard's number and its row in there.
ROW_BITS = 40

BAND = pa.schema(
    [
        ("bucket", pa.int64()),
        ("band", pa.uint64()),
        ("position", pa.int64()),
        ("sketch", pa.binary(PERMUTATIONS)),
        ("name", pa.string()),
    ]
)
NEAR = pa.schema(
    [
        ("shard", pa.int64()),
        ("position", pa.int64()),
        ("near_position", pa.int64()),
        ("near", pa.string()),  # the name of the row that it is near to
        ("similarity", pa.float32()),
    ]
)


@dataclass(frozen=True, slots=True)
class Texts:
    """What is compared of a batch of rows; all four are of one length."""

    rows: NDArray[np.int64]  # of the batch
    shingles: Sequence[Sequence[str]]
    contexts: NDArray[np.uint64]  # equal for rows that may be near each other
    names: pa.Array


@dataclass(frozen=True, slots=True)
class Banding:
    """What the tasks of one set of shards need to know."""

    folder: Place
    names: tuple[str, ...]  # of the shards, in their order
    threshold: float  # of the Jaccard similarity of word shingles
    columns: tuple[str, ...]
    texts: Callable[[pa.RecordBatch], Texts]  # a function of a module, since it travels to the tasks
    metadata: dict[str, str]


def near_duplicates(
    job: Banding, written: Sequence[Written], write: Callable[[pa.Table, Banding], pa.Table]
) -> Iterator[dict[str, Any]]:
    """Find them, and call ``write`` in a task for each shard that holds some, with their rows of ``NEAR``; its own rows
    come back. Needs a Ray session with a free CPU."""
    quiet_data()
    found = (
        functools.reduce(Dataset.union, list(_rounds(job, sum(shard.num_rows for shard in written))))
        .groupby("shard", num_partitions=min(MOST_PARTITIONS, len(written)))
        .map_groups(write, batch_format="pyarrow", fn_args=[job])
    )
    yield from found.iter_rows()


def first_of_each(found: pa.Table) -> tuple[NDArray[np.int64], pa.Table]:
    """The rows of one shard that are near to an earlier one, once each in their order: their numbers in the shard, and
    their rows of ``NEAR``. The buckets each name the first that they know; the first of these stays."""
    found = found.sort_by([("position", "ascending"), ("near_position", "ascending")])
    positions, first = np.unique(found.column("position").to_numpy(), return_index=True)
    return positions & ((1 << ROW_BITS) - 1), found.take(pa.array(first))


def _rounds(job: Banding, num_rows: int) -> Iterator[MaterializedDataset]:
    """The near-duplicates by some of the bands after another, computed."""
    count = num_bands(job.threshold)
    at_once = min(count, max(1, ROWS_PER_ROUND // num_rows))
    parts = list(_parts(job, max(ROWS_PER_TASK, num_rows // TASKS_PER_ROUND)))
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


def _parts(job: Banding, num_rows: int) -> Iterator[dict[str, Any]]:
    """Slices of the shards: the shard's number, the row groups, and the position of the first row."""
    for number, name in enumerate(job.names):
        position = number << ROW_BITS
        for part in slices([job.folder / name], num_rows):
            yield {"shard": number, "first": part.row_groups[0], "last": part.row_groups[-1], "position": position}
            position += part.num_rows


def _bands(batch: pa.Table, job: Banding, which: slice, buckets: int) -> Iterator[pa.Table]:
    """The rows of some bands of one slice."""
    (part,) = batch.to_pylist()
    groups = [*range(part["first"], part["last"] + 1)]
    position = part["position"]
    with parquet(job.folder / job.names[part["shard"]]) as file:
        for rows in file.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=list(job.columns)):
            yield _band_rows(job.texts(rows), position, num_bands(job.threshold), which, buckets)
            position += rows.num_rows


def _band_rows(texts: Texts, position: int, count: int, which: slice, buckets: int) -> pa.Table:
    signed = signatures(texts.shingles)
    hashes = bands(signed, texts.contexts, count)[:, which]
    rows = np.repeat(np.arange(len(texts.rows)), hashes.shape[1])
    hashes = hashes.reshape(-1)
    sketches = signed.astype(np.uint8)[rows]
    return pa.table(
        {
            "bucket": (hashes % np.uint64(buckets)).astype(np.int64),
            "band": hashes,
            "position": position + texts.rows[rows],
            "sketch": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(PERMUTATIONS), len(sketches), [None, pa.py_buffer(sketches)]
            ),
            "name": texts.names.take(pa.array(rows)),
        },
        schema=BAND,
    )


def _near(rows: pa.Table, job: Banding) -> pa.Table:
    """The near-duplicates among the rows of bands of one bucket."""
    positions = rows.column("position").to_numpy()
    sketches = np.concatenate([_bytes(chunk) for chunk in rows.column("sketch").chunks])
    later, earlier, similarity = near(rows.column("band").to_numpy(), positions, sketches, job.threshold)
    return pa.table(
        {
            "shard": positions[later] >> ROW_BITS,
            "position": positions[later],
            "near_position": positions[earlier],
            "near": rows.column("name").combine_chunks().take(pa.array(earlier)),
            "similarity": similarity,
        },
        schema=NEAR,
    )


def _bytes(column: pa.FixedSizeBinaryArray) -> np.ndarray:
    """Sketches as (rows, PERMUTATIONS) of uint8, without a Python object for each."""
    values = np.frombuffer(column.buffers()[1], dtype=np.uint8)
    return values[column.offset * PERMUTATIONS :][: len(column) * PERMUTATIONS].reshape(-1, PERMUTATIONS)
