"""Near-duplicate prompts in staging, with real Ray: who leaves, who is named, and what has no say in it."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray

import factory.banding
import factory.prompt
from factory.overlap import words
from factory.place import Place
from factory.prompt import Staged, stage
from factory.recipe import Prompts
from factory.shard import Written, shards
from factory.sketch import shingles

SHARED = Path(os.environ.get("POPALIGN_SHARED") or Path(__file__).resolve().parents[2] / "shared")
STORY = "Write a short story about an old lighthouse keeper who finds a letter in a bottle and answers it every night"


@pytest.fixture(scope="module", autouse=True)
def own_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def staged(folder: Path, prompts: list[Any], threshold: float = 0.8) -> tuple[Staged, list[Written]]:
    folder.mkdir(exist_ok=True)
    source = folder / "source.jsonl"
    source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    settings = Prompts(source=str(source), near_duplicates=threshold)
    return stage(settings, Place.of(folder / "prompts"), count_tokens=lambda prompt: 1, metadata={"made.by": "a test"})


def kept(folder: Path) -> list[str]:
    """What stays, in order, as the lines of the source."""
    places = shards(Place.of(folder / "prompts"))
    return [line(row["source"]) for place in places for row in pq.read_table(place.opened()).to_pylist()]


def left_out(folder: Path) -> list[tuple[str, str]]:
    """What is listed as near-duplicate, and what it is near to, as lines of the source."""
    lines = (folder / "prompts" / "set_aside.jsonl").read_text().splitlines()
    found = [json.loads(text) for text in lines]
    assert {row["reason"] for row in found} <= {"near_duplicate"}
    return [(line(row["source"]), line(row["near"])) for row in found]


def line(source: str) -> str:
    return source.rpartition(":")[2]


def test_sieve_first_stays_and_the_others_are_listed_with_it(tmp_path: Path) -> None:
    prompts = [
        "Name a river.",
        STORY,
        STORY.upper() + "!",  # only in other dress: similarity 1
        "Name a lake.",
        STORY.replace("old", "ancient"),  # 18 shingles, of which 2 differ: 16 / 20
        STORY.replace("bottle", "tin") + " until the letters stop",
    ]
    found, written = staged(tmp_path, prompts, 0.7)
    assert found.summary() == {"read": 6, "ready": 4, "duplicates": 0, "set_aside": {"near_duplicate": 2}}
    assert kept(tmp_path) == ["1", "2", "4", "6"]
    assert left_out(tmp_path) == [("3", "2"), ("5", "2")]
    rows = [json.loads(text) for text in (tmp_path / "prompts" / "set_aside.jsonl").read_text().splitlines()]
    assert rows[0]["similarity"] == 1.0
    assert rows[1]["similarity"] == pytest.approx(16 / 20, abs=0.12)  # three standard deviations
    (shard,) = written
    assert shard.num_rows == 4
    content = (tmp_path / "prompts" / shard.name).read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.num_bytes, shard.sha256)
    assert sorted(path.name for path in (tmp_path / "prompts").iterdir()) == [shard.name, "set_aside.jsonl"]


def test_sieve_same_system_text_or_history_is_no_similarity(tmp_path: Path) -> None:
    def asked(question: str, system: str = STORY) -> list[dict[str, str]]:
        return [{"role": "system", "content": system}, {"role": "user", "content": question}]

    prompts = [asked("Name a river."), asked("Name a lake."), asked(STORY), asked(STORY, "Be brief."), STORY]
    prompts.append(asked(f"{STORY}.", STORY.lower()))  # the third in other dress
    found, _ = staged(tmp_path, prompts)
    assert found.ready == 5
    assert left_out(tmp_path) == [("6", "3")]


def test_sieve_finds_nothing_and_leaves_the_shards_as_they_are(tmp_path: Path) -> None:
    found, written = staged(tmp_path, ["Name a river.", "2 + 2 = ?", "2 * 2 = ?", "🎉", "🎊"])
    assert found.summary() == {"read": 5, "ready": 5, "duplicates": 0, "set_aside": {}}
    assert [shard.name for shard in written] == ["00000.parquet"]
    assert kept(tmp_path) == ["1", "2", "3", "4", "5"]
    assert left_out(tmp_path) == []


def test_sieve_shard_of_which_nothing_is_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory.prompt, "PROMPTS_AT_ONCE", 2)
    monkeypatch.setattr(factory.prompt, "TARGET_BYTES", 1)
    found, written = staged(tmp_path, [STORY, "Name a river.", f"{STORY}?", f"{STORY}!", "Name a lake."])
    assert (found.ready, found.set_aside) == (3, {"near_duplicate": 2})
    assert [(shard.name, shard.num_rows) for shard in written] == [("00000.parquet", 2), ("00002.parquet", 1)]
    assert kept(tmp_path) == ["1", "2", "5"]


def edited(text: str, generator: random.Random) -> str:
    """A text with some of its words replaced."""
    spoken = text.split()
    for _ in range(generator.randrange(1, max(2, len(spoken) // 12))):
        spoken[generator.randrange(len(spoken))] = f"word{generator.randrange(10**6)}"
    return " ".join(spoken)


def test_sieve_result_does_not_depend_on_shards_slices_buckets_and_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = random.Random(5)
    vocabulary = [f"w{i}" for i in range(300)]
    prompts = [" ".join(generator.choices(vocabulary, k=30)) for _ in range(150)]
    for _ in range(150):  # copies of copies too
        prompts.insert(generator.randrange(len(prompts)), edited(generator.choice(prompts), generator))
    one, _ = staged(tmp_path / "one", prompts)
    assert one.set_aside["near_duplicate"] > 50
    monkeypatch.setattr(factory.prompt, "PROMPTS_AT_ONCE", 64)
    monkeypatch.setattr(factory.prompt, "TARGET_BYTES", 1)
    monkeypatch.setattr(factory.banding, "ROWS_PER_TASK", 10)
    monkeypatch.setattr(factory.banding, "ROWS_PER_BUCKET", 100)
    monkeypatch.setattr(factory.banding, "ROWS_PER_ROUND", 300 * 8)  # 16 bands in two rounds
    many, written = staged(tmp_path / "many", prompts)
    assert len(written) == 5
    assert many == one
    assert kept(tmp_path / "many") == kept(tmp_path / "one")
    assert left_out(tmp_path / "many") == left_out(tmp_path / "one")


def test_sieve_real_prompts_agree_with_the_exact_similarity(tmp_path: Path) -> None:
    """2,518 real prompts and edited copies of 600: what is dropped, against the exact similarity of all pairs."""
    file = SHARED / "prompts" / "helpful.jsonl"
    if not file.is_file():
        pytest.skip(f"{file} is not there: real prompts are kept beside the project; POPALIGN_SHARED names the folder")
    real = [json.loads(text)["prompt"] for text in file.read_text(encoding="utf-8").splitlines()]
    generator = random.Random(9)
    prompts = real + [edited(text, generator) for text in generator.sample([t for t in real if len(t) > 100], 600)]
    found, _ = staged(tmp_path, prompts)
    dropped = {int(a): int(b) for a, b in left_out(tmp_path)}
    assert found.read == found.ready + found.duplicates + len(dropped)
    exact = highest(prompts)
    near = [i for i in exact if exact[i] >= 0.87]  # two standard deviations of the estimate above the threshold
    assert len(near) > 50
    missed = [i for i in near if i not in dropped]
    assert len(missed) <= 0.01 * len(near)
    sets = [set(shingles(words(prompt))) for prompt in prompts]
    wrong = [i for i, other in dropped.items() if overlap(sets[i - 1], sets[other - 1]) < 0.68]
    assert len(wrong) <= 0.01 * len(dropped)


def overlap(left: set[str], right: set[str]) -> float:
    return len(left & right) / len(left | right)


def highest(prompts: list[str]) -> dict[int, float]:
    """By line: the exact similarity to the nearest earlier prompt that shares a shingle."""
    sets = [set(shingles(words(prompt))) for prompt in prompts]
    holders: dict[str, list[int]] = {}
    best: dict[int, float] = {}
    for i, own in enumerate(sets):
        others = {other for shingle in own for other in holders.get(shingle, ())}
        best[i + 1] = max((overlap(own, sets[other]) for other in others), default=0.0)
        for shingle in own:
            holders.setdefault(shingle, []).append(i)
    return best
