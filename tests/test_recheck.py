"""Checking a finished run again: the same bytes from the same checks, other pairs from others, and no engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from running import popalign, scripted

from factory.errors import InputError
from factory.run import SUMS, Run, plain
from factory.shard import shards


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated run with its pairs."""
    folder = tmp_path_factory.mktemp("recheck")
    recipe = scripted(folder, 24, sampling={"max_tokens": 24})
    for command in (("generate", str(recipe)), ("pairs", str(folder / "run"))):
        done = popalign(*command)
        assert done.returncode == 0, done.stderr
    return folder / "run"


def sums(run: Path) -> str:
    """The checksums of the pairs' shards, as they are written beside them."""
    return (Run.open(run).current("pairs", "pairs") / SUMS).read().decode()


def rejected(run: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for outcomes in Run.open(run).manifest["pairs"]["strategies"].values():
        for reason, number in outcomes["rejected"].items():
            found[reason] = found.get(reason, 0) + number
    return found


def checks_of(run: Path) -> dict[str, Any]:
    """The checks that a shard of pairs says it was made with."""
    (place, *_) = shards(Run.open(run).current("pairs", "pairs"))
    return dict(json.loads(pq.read_metadata(place.opened()).metadata[b"popalign.checks"]))


def test_pairs_twice_are_the_same_to_the_byte(finished: Path) -> None:
    before, first = sums(finished), Run.open(finished).manifest["pairs"]["set"]
    done = popalign("pairs", str(finished))
    assert done.returncode == 0, done.stderr
    assert Run.open(finished).manifest["pairs"]["set"] != first, "they were made anew"
    assert sums(finished) == before


def test_pairs_other_checks_change_pairs_and_recipe_and_back_again(finished: Path) -> None:
    before, fingerprint = sums(finished), Run.open(finished).order.fingerprint
    generations = Run.open(finished).manifest["generations"]
    assert "near_identical" not in rejected(finished)
    # Random words from a list of seventy have this much in common; every pair that was kept is too much alike.
    changes = ("--set", "checks.near_identical=0.1", "--set", "checks.truncated=false")
    done = popalign("pairs", str(finished), *changes)
    assert done.returncode == 0, done.stderr
    assert rejected(finished)["near_identical"] > 0
    assert "truncated" not in rejected(finished)
    assert yaml.safe_load((finished / "recipe.yaml").read_text())["checks"]["near_identical"] == 0.1
    opened = Run.open(finished)
    assert opened.manifest["pairs"]["checks"] == checks_of(finished) == plain(opened.order.recipe.checks)
    # What was generated is the same run's.
    assert opened.order.fingerprint == fingerprint and opened.manifest["generations"] == generations
    done = popalign("pairs", str(finished), "--set", "checks.near_identical=0.95", "--set", "checks.truncated=true")
    assert done.returncode == 0, done.stderr
    assert sums(finished) == before


def test_pairs_checked_by_an_older_recipe_are_refused_to_readers(finished: Path) -> None:
    recipe = finished / "recipe.yaml"
    before = recipe.read_text()
    recipe.write_text(yaml.safe_dump({**yaml.safe_load(before), "checks": {"echo": False}}))
    try:
        with pytest.raises(InputError, match=r"were checked otherwise; renew them with: popalign pairs"):
            Run.open(finished).current("pairs", f"pairs {finished}")
    finally:
        recipe.write_text(before)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=3", "only the keys below 'checks.' can change here"),
        ("checks.repetitoin=0.3", "unknown key 'repetitoin'; did you mean 'repetition'?"),
        ("checks.repetition=3", "checks.repetition"),
        ("checks.leak=[roles]", "checks.leak"),
    ],
)
def test_pairs_override_that_is_no_check_is_refused_and_nothing_changes(
    finished: Path, override: str, message: str
) -> None:
    before = (finished / "recipe.yaml").read_bytes(), Run.open(finished).manifest
    done = popalign("pairs", str(finished), "--set", override)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert ((finished / "recipe.yaml").read_bytes(), Run.open(finished).manifest) == before
