"""Parquet shards: the schemas of what a run stores, and writing them so that a reader never sees half a file."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import Datasink
from ray.data.block import Block, BlockAccessor

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
    ]
)


def write_shard(table: pa.Table, path: Path, metadata: dict[str, str], *, rows_per_group: int | None = None) -> None:
    """Write a table so that it is there whole or not at all: a temporary sibling, synced, then renamed.

    ``rows_per_group``: row groups of that many rows, for sets that are read in slices (see ``factory.source``).
    """
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd", row_group_size=rows_per_group)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def shards(directory: Path) -> list[Path]:
    """The finished shards of a set, in a stable order."""
    return sorted(directory.glob("*.parquet"))


def column(paths: Iterable[Path], name: str) -> Iterator[pa.Array]:
    """One column of a set, shard by shard."""
    for path in paths:
        yield pq.read_table(path, columns=[name]).column(name).combine_chunks()


@dataclass(frozen=True, slots=True)
class Written:
    """What one write task stored."""

    path: str
    num_rows: int


class ShardSink(Datasink[Written | None]):
    """Ray Data writes each bundle of blocks as one shard.

    A shard is named after its rows' ids, so that a write task that Ray repeats replaces its own file and nothing is
    stored twice. Ray's own ``write_parquet`` leaves half a file behind a killed writer.
    """

    def __init__(
        self,
        directory: Path,
        *,
        schema: pa.Schema,
        key: str,
        metadata: dict[str, str],
        rows_per_shard: int,
        rows_per_group: int,
    ) -> None:
        self._directory = directory
        self._schema = schema
        self._key = key
        self._metadata = metadata
        self._rows_per_shard = rows_per_shard
        self._rows_per_group = rows_per_group
        self.written: list[Written] = []

    @property
    def min_rows_per_write(self) -> int:
        return self._rows_per_shard

    def write(self, blocks: Iterable[Block], ctx: Any) -> Written | None:
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        tables = [table.select(self._schema.names).cast(self._schema) for table in tables if table.num_rows]
        if not tables:
            return None
        table = pa.concat_tables(tables)
        name = uuid.uuid5(uuid.NAMESPACE_OID, "".join(sorted(table.column(self._key).to_pylist()))).hex
        path = self._directory / f"{name}.parquet"
        write_shard(table, path, self._metadata, rows_per_group=self._rows_per_group)
        return Written(str(path), table.num_rows)

    def on_write_complete(self, write_result: Any) -> None:
        self.written = [written for written in write_result.write_returns if written is not None]

    def get_name(self) -> str:
        return "shards"
