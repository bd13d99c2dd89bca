"""Near-duplicate pairs, with real Ray: which leave, what the books say, and that it is repeatable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from running import popalign

from factory.pair import pair_id
from factory.run import Run
from factory.shard import shards

STORY = "An old lighthouse keeper finds a letter in a bottle and answers it every night until the sea takes the paper."
PLAIN = "There is a man in a tower who reads what the water brings to him and then he writes back with a blue pen."
OTHER = "Flour, water and salt are mixed, and the dough rests for an hour before it goes into a very hot oven to bake."


def labelled(folder: Path, pairs: list[tuple[str, str]], **checks: Any) -> Path:
    """A finished run whose pairs are those of a labelled file: nothing is generated."""
    rows = [{"prompt": f"Write text {i}.", "chosen": one, "rejected": other} for i, (one, other) in enumerate(pairs)]
    source = folder / "labelled.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "run": str(folder / "run"),
        "prompts": {"source": str(source)},
        "variants": {"any": {"engine": "scripted"}},
        "strategies": {"label": {}},
        "checks": checks,
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content))
    for command in (["generate", str(recipe)], ["pairs", str(folder / "run")]):
        done = popalign(*command)
        assert done.returncode == 0, done.stderr
    return folder / "run"


def reasons(run: Path) -> dict[str, str | None]:
    """The reason of each prompt's pair."""
    places = shards(Run.open(run).current("pairs", "pairs"))
    rows = [row for place in places for row in pq.read_table(place.opened()).to_pylist()]
    assert all(row["pair_id"] == pair_id(row["prompt_id"], "label") for row in rows)
    assert all((row["status"] == "kept") == (row["reason"] is None) for row in rows)
    return {row["prompt"][-1]["content"]: row["reason"] for row in rows}


def test_pairs_near_to_an_earlier_one_are_rejected_and_the_books_balance(tmp_path: Path) -> None:
    pairs = [
        (STORY, PLAIN),
        (OTHER, PLAIN),  # one side alone is no twin
        (STORY.replace("old", "very old"), PLAIN),
        (PLAIN, STORY),  # the sides exchanged teach the opposite
        (STORY, PLAIN),
        ("Yes:", "No."),  # rejected already
    ]
    run = labelled(tmp_path, pairs)
    assert [*reasons(run).values()].count("near_duplicate") == 0
    done = popalign("pairs", str(run), "--set", "checks.near_duplicate=0.7")
    assert done.returncode == 0, done.stderr
    found = reasons(run)
    assert {text for text, reason in found.items() if reason == "near_duplicate"} < {
        "Write text 0.",
        "Write text 2.",
        "Write text 4.",
    }
    assert [*found.values()].count("near_duplicate") == 2  # the first by its place in the set stays
    assert found["Write text 1."] is found["Write text 3."] is None
    assert found["Write text 5."] == "unfinished"
    pairs_of = Run.open(run).manifest["pairs"]
    assert pairs_of["strategies"]["label"] == {
        "kept": 3,
        "rejected": {"near_duplicate": 2, "unfinished": 1},
        "failed": {},
    }
    assert pairs_of["lengths"]["label"]["pairs"] == 3
    again = popalign("pairs", str(run))
    assert again.returncode == 0, again.stderr
    assert Run.open(run).manifest["pairs"]["checksum"] == pairs_of["checksum"]
    assert popalign("status", str(run), "--verify").returncode == 0
