"""Near-duplicate pairs: chosen and rejected answer are both near to those of an earlier pair, whatever the prompts.

A model that answers many prompts with the same text makes many pairs that teach one thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from factory.banding import Banding, Texts, first_of_each, near_duplicates
from factory.overlap import words
from factory.place import Place
from factory.shard import PAIR, ShardWriter, Written, parquet
from factory.sketch import shingles

REASON = "near_duplicate"
COLUMNS = ("pair_id", "status", "chosen", "rejected")


def reject_twins(
    folder: Place, written: Sequence[Written], threshold: float, metadata: dict[str, str]
) -> dict[str, Written]:
    """Give kept pairs that are near to an earlier one the status ``rejected``; the shards that hold some are written
    anew under another name, which is returned by their old one.

    ``threshold``: of the Jaccard similarity of the word shingles of both answers. Needs a Ray session with a free CPU.
    """
    job = Banding(folder, tuple(shard.name for shard in written), threshold, COLUMNS, _texts, metadata)
    renewed: dict[str, Written] = {}
    for row in near_duplicates(job, written, _marked):
        name = row.pop("of")
        renewed[name] = Written(**row)
    for name in renewed:
        # The tasks write beside the old shards, so that one that Ray repeats finds what it read the first time.
        (folder / name).remove()
    return renewed


def _texts(pairs: pa.RecordBatch) -> Texts:
    rows = np.flatnonzero(pc.equal(pairs.column("status"), "kept").to_numpy(zero_copy_only=False))
    kept = pairs.take(pa.array(rows))
    sides = (("+", kept.column("chosen").to_pylist()), ("-", kept.column("rejected").to_pylist()))
    texts = [
        [f"{sign} {run}" for sign, turns in sides for run in shingles(words(turns[i][-1]["content"]))]
        for i in range(len(rows))
    ]
    return Texts(rows, texts, np.zeros(len(rows), dtype=np.uint64), kept.column("pair_id"))


def _marked(found: pa.Table, job: Banding) -> pa.Table:
    """Write one shard with its near-duplicates marked, in the row groups that it has."""
    name = job.names[found.column("shard")[0].as_py()]
    rows, _ = first_of_each(found)
    writer, start = ShardWriter(PAIR, job.metadata), 0
    with parquet(job.folder / name) as file:
        for i in range(file.metadata.num_row_groups):
            table = file.read_row_group(i)
            twin = np.zeros(table.num_rows, dtype=bool)
            twin[rows[(rows >= start) & (rows < start + table.num_rows)] - start] = True
            for column, value in (("status", "rejected"), ("reason", REASON)):
                place = table.schema.get_field_index(column)
                marked = pc.if_else(pa.array(twin), value, table.column(column))
                table = table.set_column(place, table.schema.field(place), marked)
            writer.add(table)
            start += table.num_rows
    shard = writer.write(job.folder / name.replace(".parquet", "-marked.parquet"))
    return pa.Table.from_pylist([{"of": name, **asdict(shard)}])
