"""Reading the rows that are left into blocks of a chosen size, as a Ray Data source.

``ray.data.read_parquet`` merges small files into one block, and a block is the unit that goes to one replica; its
``repartition`` asks for a logical CPU of its own, which a machine whose engine holds all CPUs does not have.
"""

from __future__ import annotations

import itertools
import math
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
NO_IDS = np.empty(0, dtype=f"S{ID_BYTES}")
# Of a sorted array of ids: 256 MiB.
IDS_PER_RANGE = 2**24
FILES_PER_PART = 256


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

    ``done`` is a reference to sorted ids in Ray's object store, stored once and seen by every task. Rows come out with
    the columns of ``GENERATION``, prompts with an empty list of completions.
    """

    def __init__(self, parts: Sequence[Slice], done: ray.ObjectRef) -> None:
        super().__init__()
        self._parts = parts
        self._done = done

    def estimate_inmemory_data_size(self) -> int | None:
        return sum(part.num_bytes for part in self._parts)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        return [
            ReadTask(
                _reader(part, self._done),
                BlockMetadata(num_rows=None, size_bytes=part.num_bytes, input_files=None, exec_stats=None),
            )
            for part in self._parts
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


class Finished:
    """The ids of the rows in some shards. They stay in Ray's object store, sorted, cut by their value into ranges of
    256 MiB at most, so that no process ever holds those of a billion rows."""

    def __init__(self, places: Sequence[Place], num_rows: int) -> None:
        """``num_rows``: about as many as there are, which decides about the number of ranges."""
        num_ranges = math.ceil(max(1, num_rows) / IDS_PER_RANGE)
        read = _finished_ids.options(num_returns=num_ranges)
        groups = [places[i : i + FILES_PER_PART] for i in range(0, len(places), FILES_PER_PART)] or [[]]
        # With one range a part is the reference itself, not a list of one.
        parts = [ref if num_ranges > 1 else [ref] for ref in (read.remote(group, num_ranges) for group in groups)]
        self.ranges = [_merged.remote(*(part[i] for part in parts)) for i in range(num_ranges)]

    def counted(self) -> tuple[int, int]:
        """Rows, and different rows."""
        counts = ray.get([_counted.remote(part) for part in self.ranges])
        return sum(rows for rows, _ in counts), sum(unique for _, unique in counts)

    def repeated(self) -> np.ndarray:
        """The sorted ids of rows that are stored more than once."""
        return np.concatenate(ray.get([_repeated.remote(part) for part in self.ranges]))

    def among(self, parts: Sequence[Slice]) -> ray.ObjectRef:
        """The sorted ids of the rows of some slices that are finished."""
        wanted = _slice_ids.remote(parts)
        return _merged.remote(*(_common.remote(wanted, part) for part in self.ranges))


@ray.remote(num_cpus=0)
def _finished_ids(places: Sequence[Place], num_ranges: int) -> Any:
    columns = []
    for place in places:
        with parquet(place) as file:
            columns.append(ids(file.read(columns=["prompt_id"]).column("prompt_id")))
    found = np.sort(np.concatenate(columns)) if columns else NO_IDS
    if num_ranges == 1:
        return found
    # Ids are hashes: ranges of equal width have equally many.
    bounds = [int(i * 2**32 / num_ranges).to_bytes(4, "big") for i in range(1, num_ranges)]
    return tuple(np.split(found, np.searchsorted(found, np.array(bounds, dtype=f"S{ID_BYTES}"))))


@ray.remote(num_cpus=0)
def _slice_ids(parts: Sequence[Slice]) -> np.ndarray:
    columns = []
    for place, group in itertools.groupby(parts, key=lambda part: part.place):
        with parquet(place) as file:
            groups = [i for part in group for i in part.row_groups]
            columns.append(ids(file.read_row_groups(groups, columns=["prompt_id"]).column("prompt_id")))
    return np.sort(np.concatenate(columns))


@ray.remote(num_cpus=0)
def _common(wanted: np.ndarray, finished: np.ndarray) -> np.ndarray:
    return wanted[is_in(wanted, finished)]


@ray.remote(num_cpus=0)
def _merged(*parts: np.ndarray) -> np.ndarray:
    return np.sort(np.concatenate(parts))


@ray.remote(num_cpus=0)
def _counted(finished: np.ndarray) -> tuple[int, int]:
    return len(finished), int(np.count_nonzero(finished[1:] != finished[:-1]) + bool(len(finished)))


@ray.remote(num_cpus=0)
def _repeated(finished: np.ndarray) -> np.ndarray:
    return np.unique(finished[1:][finished[1:] == finished[:-1]])
