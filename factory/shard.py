"""Parquet shards: the schemas of what a run stores, and writing them so that a reader never sees half a file."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import Datasink
from ray.data.block import Block, BlockAccessor

from factory.place import Place

# Of a finished shard: large enough for few files, small enough to hold in memory while it is written.
TARGET_BYTES = 128 * 2**20

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

PROMPT = pa.schema([("prompt_id", pa.string()), ("prompt", MESSAGES), ("split", pa.string()), ("source", pa.string())])

COMPLETION = pa.struct(
    [
        ("generation_id", pa.string()),
        ("variant", pa.string()),
        ("text", pa.string()),  # what the model wrote after header and prefill
        ("answer", pa.string()),  # what is read from it; null where it cannot be parsed
        ("finish", pa.string()),  # stop, length, or null after an error
        ("prompt_tokens", pa.int32()),
        ("tokens", pa.int32()),
        ("cached_tokens", pa.int32()),  # prompt tokens that prefix caching saved
        ("seed", pa.int64()),
        ("value", pa.float64()),  # of a measurement: a log-probability in nats, or a reward
        ("error", pa.string()),
    ]
)

GENERATION = PROMPT.append(pa.field("completions", pa.list_(COMPLETION)))

PAIR = pa.schema(
    [
        ("pair_id", pa.string()),
        ("prompt_id", pa.string()),
        ("prompt", MESSAGES),
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("strategy", pa.string()),
        ("sample", pa.int32()),  # of a strategy that draws several pairs a prompt, which one
        ("level", pa.string()),
        ("split", pa.string()),
        ("chosen_variant", pa.string()),
        ("rejected_variant", pa.string()),
        ("chosen_generation", pa.string()),
        ("rejected_generation", pa.string()),
        ("chosen_tokens", pa.int32()),
        ("rejected_tokens", pa.int32()),
        ("status", pa.string()),  # kept, rejected (a check failed) or failed (a completion is missing)
        ("reason", pa.string()),  # null where kept
        ("margin", pa.float64()),  # nats; above 0 the generating models agree with the label; null: not measured
        ("judge", pa.string()),  # chosen, rejected or tie
        ("judge_reason", pa.string()),
        ("reward_chosen", pa.float64()),
        ("reward_rejected", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Written:
    """A shard as it was written."""

    name: str
    num_rows: int
    num_bytes: int
    sha256: str


class ShardWriter:
    """Collects row groups in memory and writes them as one shard at the end, so that it is there whole or not at all.

    Memory: the compressed shard, 128 MiB at most by ``TARGET_BYTES``, and one row group.
    """

    def __init__(self, schema: pa.Schema, metadata: dict[str, str]) -> None:
        self._sink = pa.BufferOutputStream()
        schema = schema.with_metadata({**(schema.metadata or {}), **metadata})
        self._schema = schema
        self._writer = pq.ParquetWriter(self._sink, schema, compression="zstd")
        self.num_rows = 0

    def add(self, table: pa.Table, rows_per_group: int | None = None) -> None:
        """Append a table's rows as row groups of ``rows_per_group``, by default as one."""
        if table.num_rows:
            table = table.select(self._schema.names).cast(self._schema)
            self._writer.write_table(table, row_group_size=rows_per_group)
            self.num_rows += table.num_rows

    @property
    def num_bytes(self) -> int:
        """So far, compressed."""
        return int(self._sink.tell())

    def write(self, place: Place) -> Written:
        self._writer.close()
        content = self._sink.getvalue()
        place.write(content)
        return Written(place.name, self.num_rows, content.size, hashlib.sha256(content).hexdigest())


def write_shard(
    table: pa.Table, place: Place, metadata: dict[str, str], *, rows_per_group: int | None = None
) -> Written:
    """Write a table as one shard.

    ``rows_per_group``: row groups of that many rows, for sets that are read in slices (see ``factory.source``).
    """
    writer = ShardWriter(table.schema, metadata)
    writer.add(table, rows_per_group)
    return writer.write(place)


def rows_per_group(num_rows: int) -> int:
    """Rows of a group, the smallest unit of a task: a small set can be cut into 64, a large one has few groups."""
    return max(1, min(256, num_rows // 64))


def shards(folder: Place) -> list[Place]:
    """The finished shards of a set, in a stable order."""
    return [place for place in folder.entries() if place.name.endswith(".parquet") and not place.name.startswith(".")]


def parquet(place: Place) -> pq.ParquetFile:
    """A shard, to be read row group by row group; close it."""
    return pq.ParquetFile(place.opened(), pre_buffer=place.disk is None)


class ShardSink(Datasink[None]):
    """Ray Data writes each bundle of blocks as one shard.

    A shard is named after its rows' ids, so that a write task that Ray repeats replaces its own file and nothing is
    stored twice. Ray's own ``write_parquet`` leaves half a file behind a killed writer.
    """

    def __init__(
        self,
        folder: Place,
        *,
        schema: pa.Schema,
        key: str,
        metadata: dict[str, str],
        rows_per_shard: int,
        rows_per_group: int,
    ) -> None:
        self._folder = folder
        self._schema = schema
        self._key = key
        self._metadata = metadata
        self._rows_per_shard = rows_per_shard
        self._rows_per_group = rows_per_group

    @property
    def min_rows_per_write(self) -> int:
        return self._rows_per_shard

    def write(self, blocks: Iterable[Block], ctx: Any) -> None:
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        tables = [table.select(self._schema.names).cast(self._schema) for table in tables if table.num_rows]
        if tables:
            table = pa.concat_tables(tables)
            name = uuid.uuid5(uuid.NAMESPACE_OID, "".join(sorted(table.column(self._key).to_pylist()))).hex
            write_shard(table, self._folder / f"{name}.parquet", self._metadata, rows_per_group=self._rows_per_group)

    def get_name(self) -> str:
        return "shards"
