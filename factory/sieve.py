"""Near-duplicate prompts: taken out of the staged shards, each with a line that says what it is near to."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import IO

import numpy as np
import pyarrow as pa
import xxhash

from factory.banding import Banding, Texts, first_of_each, near_duplicates
from factory.overlap import words
from factory.place import Place
from factory.shard import PROMPT, ShardWriter, Written, parquet, rows_per_group
from factory.sketch import shingles

REASON = "near_duplicate"


def sieve(
    folder: Place, written: Sequence[Written], threshold: float, metadata: dict[str, str], aside: IO[bytes]
) -> tuple[int, list[Written]]:
    """Take near-duplicates out of the staged shards of a folder, and append a line for each to ``aside``.

    ``threshold``: of the Jaccard similarity of the prompts' word shingles. Of prompts that are near each other the
    first in the order of the sources stays. Returns how many left, and the shards that are there then. Needs a Ray
    session with a free CPU.
    """
    names = tuple(shard.name for shard in written)
    job = Banding(folder, names, threshold, ("prompt", "source"), _texts, metadata)
    renewed: dict[str, tuple[int, Written]] = {}
    for row in near_duplicates(job, written, _rest):
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


def _texts(prompts: pa.RecordBatch) -> Texts:
    texts, contexts = [], np.empty(prompts.num_rows, dtype=np.uint64)
    for i, prompt in enumerate(prompts.column("prompt").to_pylist()):
        texts.append(shingles(words(prompt[-1]["content"]) or [prompt[-1]["content"].strip()]))
        contexts[i] = _context(prompt[:-1])
    return Texts(np.arange(prompts.num_rows), texts, contexts, prompts.column("source"))


def _context(turns: Sequence[dict[str, str]]) -> int:
    """What stands before the last user turn has to be the same: prompts that share a long system text and differ in
    the question are not near."""
    return xxhash.xxh3_64_intdigest(json.dumps([[turn["role"], words(turn["content"])] for turn in turns]).encode())


def _rest(found: pa.Table, job: Banding) -> pa.Table:
    """Write one shard without its near-duplicates, and their lines."""
    name = job.names[found.column("shard")[0].as_py()]
    rows, found = first_of_each(found)
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
    return pa.Table.from_pylist([{"of": name, "dropped": len(rows), **asdict(shard)}])
