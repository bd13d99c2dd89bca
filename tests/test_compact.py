"""Merging: what many small files hold comes out once, counted, in few shards; and the ids of what is finished."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

import factory.source
from factory import compact
from factory.place import Place
from factory.shard import GENERATION, shards, write_shard
from factory.source import Finished, slices


@pytest.fixture(scope="module", autouse=True)
def own_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def identity(i: int) -> str:
    return f"{i * 2654435761 % 2**32:08x}{i:024x}"  # spread over all first bytes, as hashes are


def row(i: int, *, error: str | None = None) -> dict[str, Any]:
    made = {"variant": "strong", "prompt_tokens": 10, "tokens": None if error else 5, "cached_tokens": 4}
    completion = {**dict.fromkeys(field.name for field in GENERATION.field("completions").type.value_type), **made}
    completion["error"] = error
    turns = [{"role": "user", "content": str(i)}]
    return {"prompt_id": identity(i), "prompt": turns, "split": "train", "source": "s", "completions": [completion]}


def store(folder: Path, name: str, rows: list[dict[str, Any]], rows_per_group: int | None = None) -> Place:
    place = Place.of(folder) / name
    write_shard(pa.Table.from_pylist(rows, GENERATION), place, {}, rows_per_group=rows_per_group)
    return place


def texts(array: np.ndarray) -> list[str]:
    content = array.tobytes()
    return [content[at : at + 16].hex() for at in range(0, len(content), 16)]


def test_merge_drops_rows_that_were_stored_twice_and_counts_the_others(tmp_path: Path) -> None:
    first = store(tmp_path, "a.parquet", [row(i) for i in range(6)])
    second = store(tmp_path, "b.parquet", [row(i) for i in range(4, 10)] + [row(10, error="endpoint_failed: x")])
    finished = Finished([first, second], 13)
    assert finished.counted() == (13, 11)
    owner = compact.owners([first, second], finished.repeated())
    assert len(owner) == 2 and set(owner.values()) == {"a.parquet"}
    target = Place.of(tmp_path) / "out" / "00000.parquet"
    written, counts = ray.get(compact.merge.remote([first, second], target, {}, 4, owner))
    rows = pq.read_table(target.opened()).to_pylist()
    assert sorted(r["prompt_id"] for r in rows) == sorted(identity(i) for i in range(11))
    assert written.num_rows == 11
    assert counts["strong"].completions == 11 and counts["strong"].failed == {"endpoint_failed": 1}
    assert counts["strong"].tokens == 50 and counts["strong"].prompt_tokens == 110


def test_groups_fill_shards_to_their_size() -> None:
    files = {"a": 50, "b": 60, "c": 30, "d": 200, "e": 1}
    assert compact.groups(files, 120) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert compact.groups({}, 120) == []


@pytest.mark.parametrize("per_range", [2**24, 7])
def test_finished_finds_the_same_ids_in_one_range_or_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_range: int
) -> None:
    monkeypatch.setattr(factory.source, "IDS_PER_RANGE", per_range)
    monkeypatch.setattr(factory.source, "FILES_PER_PART", 2)
    for number in range(5):
        store(tmp_path / "done", f"{number}.parquet", [row(i) for i in range(number * 10, number * 10 + 10)])
    store(tmp_path / "done", "again.parquet", [row(3), row(44)])
    store(tmp_path / "all", "prompts.parquet", [row(i) for i in range(80)], rows_per_group=16)
    finished = Finished(shards(Place.of(tmp_path / "done")), 80)
    assert len(finished.ranges) == (1 if per_range > 80 else 12)
    assert finished.counted() == (52, 50)
    assert texts(finished.repeated()) == sorted([identity(3), identity(44)])
    parts = list(slices(shards(Place.of(tmp_path / "all")), 16))
    assert len(parts) == 5
    among = ray.get(finished.among(parts[1:]))  # rows 16 to 79, of which those below 50 are finished, 44 twice
    assert texts(np.unique(among)) == sorted(identity(i) for i in range(16, 50))


def test_finished_of_nothing_is_nothing(tmp_path: Path) -> None:
    finished = Finished([], 0)
    assert finished.counted() == (0, 0)
    assert len(finished.repeated()) == 0
