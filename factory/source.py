"""Reading the rows that are left into blocks of a chosen size, as a Ray Data source.

``ray.data.read_parquet`` merges small files into one block, and a block is the unit that goes to one replica; its
``repartition`` asks for a logical CPU of its own, which a machine whose engine holds all CPUs does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from factory.place import Place
from factory.shard import COMPLETION, GENERATION, parquet

ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Slice:
    """Some neighbouring row groups of one file."""

    place: Place
    row_groups: tuple[int, ...]
    num_rows: int
    num_bytes: int


def slices(places: Sequence[Place], rows_per_task: int) -> Iterator[Slice]:
    """The files cut into slices of at least ``rows_per_task`` rows, the last of each file excepted."""
    for place in places:
        with parquet(place) as file:
            footer = file.metadata
        groups: list[int] = []
        rows = size = 0
        for i in range(footer.num_row_groups):
            group = footer.row_group(i)
            groups.append(i)
            rows += group.num_rows
            size += group.total_byte_size
            if rows >= rows_per_task or i == footer.num_row_groups - 1:
                yield Slice(place, tuple(groups), rows, size)
                groups, rows, size = [], 0, 0


class SliceSource(Datasource):
    """One read task, and so one block, per slice; rows whose id is in ``done`` are left out.

    ``parts`` are (slice, done) with ``done`` a reference to sorted ids in Ray's object store, stored once and seen by
    every task. Rows come out with the columns of ``GENERATION``, prompts with an empty list of completions.
    """

    def __init__(self, parts: Sequence[tuple[Slice, ray.ObjectRef]]) -> None:
        super().__init__()
        self._parts = parts

    def estimate_inmemory_data_size(self) -> int | None:
        return sum(part.num_bytes for part, _ in self._parts)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        return [
            ReadTask(
                _reader(part, done),
                BlockMetadata(num_rows=None, size_bytes=part.num_bytes, input_files=None, exec_stats=None),
            )
            for part, done in self._parts
        ]

    def get_name(self) -> str:
        return "prompts"


def _reader(part: Slice, done: ray.ObjectRef) -> Callable[[], Iterator[pa.Table]]:
    def read() -> Iterator[pa.Table]:
        with parquet(part.place) as file:
            table = file.read_row_groups(list(part.row_groups))
        finished = ray.get(done)
        if len(finished):
            table = table.filter(pa.array(~is_in(ids(table.column("prompt_id")), finished)))
        if "completions" not in table.column_names:
            empty = pa.array([[]] * table.num_rows, type=pa.list_(COMPLETION))
            table = table.append_column("completions", empty)
        yield table.select(GENERATION.names)

    return read


def ids(column: pa.ChunkedArray) -> np.ndarray:
    """A column of ids, 32 hexadecimal digits each, as (rows,) of 16 bytes: a tenth of a Python list of strings."""
    return np.frombuffer(bytes.fromhex("".join(column.to_pylist())), dtype=f"S{ID_BYTES}")


def is_in(wanted: np.ndarray, finished: np.ndarray) -> np.ndarray:
    """Which ids are in a sorted array of ids, (rows,) of bool."""
    if not len(finished):
        return np.zeros(len(wanted), dtype=bool)
    at = np.minimum(np.searchsorted(finished, wanted), len(finished) - 1)
    return np.asarray(finished[at] == wanted)


@ray.remote(num_cpus=0)
def finished_ids(places: list[Place]) -> np.ndarray:
    """The sorted ids of the rows in some shards, repeated ones too."""
    columns = []
    for place in places:
        with parquet(place) as file:
            columns.append(ids(file.read(columns=["prompt_id"]).column("prompt_id")))
    return np.sort(np.concatenate(columns)) if columns else np.empty(0, dtype=f"S{ID_BYTES}")


@ray.remote(num_cpus=0)
def merged(*sets: np.ndarray) -> np.ndarray:
    """The union of some sorted sets of ids."""
    return np.unique(np.concatenate(sets))


@ray.remote(num_cpus=0)
def counted(finished: np.ndarray) -> tuple[int, int]:
    """Rows and different rows of a sorted array of ids; the array itself stays away from the driver."""
    return len(finished), int(np.count_nonzero(finished[1:] != finished[:-1]) + bool(len(finished)))
