"""Reading the prompts that are left into blocks of a chosen size, as a Ray Data source.

``ray.data.read_parquet`` merges small files into one block, and a block is the unit that goes to one replica; its
``repartition`` asks for a logical CPU of its own, which a machine whose engine holds all CPUs does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata


@dataclass(frozen=True, slots=True)
class Slice:
    """Some neighbouring row groups of one file."""

    path: str
    row_groups: tuple[int, ...]
    num_rows: int
    num_bytes: int


def slices(paths: list[Path], rows_per_task: int) -> Iterator[Slice]:
    """The files cut into slices of at least ``rows_per_task`` rows, the last of each file excepted."""
    for path in paths:
        footer = pq.read_metadata(path)
        groups: list[int] = []
        rows = size = 0
        for i in range(footer.num_row_groups):
            group = footer.row_group(i)
            groups.append(i)
            rows += group.num_rows
            size += group.total_byte_size
            if rows >= rows_per_task or i == footer.num_row_groups - 1:
                yield Slice(str(path), tuple(groups), rows, size)
                groups, rows, size = [], 0, 0


class SliceSource(Datasource):
    """One read task, and so one block, per slice; rows whose id is in ``done`` are left out.

    ``done`` is a sorted array of ids as fixed-width bytes in Ray's object store: stored once, seen by every task.
    """

    def __init__(self, paths: list[Path], *, rows_per_task: int, done: ray.ObjectRef) -> None:
        super().__init__()
        self._slices = list(slices(paths, rows_per_task))
        self._done = done

    @property
    def num_slices(self) -> int:
        return len(self._slices)

    def estimate_inmemory_data_size(self) -> int | None:
        return sum(part.num_bytes for part in self._slices)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        return [
            ReadTask(
                _reader(part, self._done),
                BlockMetadata(num_rows=None, size_bytes=part.num_bytes, input_files=None, exec_stats=None),
            )
            for part in self._slices
        ]

    def get_name(self) -> str:
        return "prompts"


def _reader(part: Slice, done: ray.ObjectRef) -> Callable[[], Iterator[pa.Table]]:
    def read() -> Iterator[pa.Table]:
        with pq.ParquetFile(part.path) as file:
            table = file.read_row_groups(list(part.row_groups))
        finished = ray.get(done)
        if len(finished):
            table = table.filter(pa.array(~is_in(table.column("prompt_id"), finished)))
        yield table

    return read


def ids(column: pa.ChunkedArray) -> np.ndarray:
    """A column of 32-digit ids as fixed-width bytes, 32 bytes each instead of a Python object of 81."""
    return np.asarray(column.to_numpy(), dtype="S32")


def is_in(column: pa.ChunkedArray, finished: np.ndarray) -> np.ndarray:
    """Which ids of a column are in a sorted array, (rows,) of bool."""
    wanted = ids(column)
    at = np.minimum(np.searchsorted(finished, wanted), len(finished) - 1)
    return np.asarray(finished[at] == wanted)


@ray.remote(num_cpus=0)
def finished_ids(paths: list[str]) -> np.ndarray:
    """The sorted ids of the rows in some shards; repeated ones stay, so that a count shows them."""
    columns = [ids(pq.read_table(path, columns=["prompt_id"]).column("prompt_id")) for path in paths]
    return np.sort(np.concatenate(columns)) if columns else np.empty(0, dtype="S32")
