"""The card: figures that are those of the shards, licences that nobody assumed, and code that runs."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from paired import made_up, run_of
from running import popalign

from factory.card import LICENCE_NAME, NOT_STATED, card, licence_of
from factory.export import export
from factory.place import Place
from factory.recipe import Variant
from factory.run import Run
from factory.shard import shards


def stored(run: Run) -> list[dict[str, Any]]:
    return [r for place in shards(run.current("pairs", "")) for r in pq.read_table(place.opened()).to_pylist()]


def front(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


def executed(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the card's own code defines, run where it says."""
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_card_command_writes_counts_that_are_those_of_the_shards(mixed: Run) -> None:
    done = popalign("card", str(mixed.path))
    assert done.returncode == 0, done.stderr
    text = (mixed.path / "card.md").read().decode()
    counts = Counter((r["strategy"], r["status"], r["split"] if r["status"] == "kept" else "") for r in stored(mixed))
    for strategy in mixed.order.recipe.strategies:
        train, heldout = counts[strategy, "kept", "train"], counts[strategy, "kept", "heldout"]
        rejected, failed = counts[strategy, "rejected", ""], counts[strategy, "failed", ""]
        assert train and heldout and rejected and failed
        cells = rf"\| {strategy} \| \w+ \| {train + heldout} \| {train} \| {heldout} \| {rejected} \| {failed} \|"
        assert re.search(cells, text)
    assert f"Not kept: {rejected} truncated, {failed} generation_error." in text
    assert "Contrast accuracy 88.0 % by GPT-4" in text, "the strategies in words"
    assert mixed.order.fingerprint in text and mixed.manifest["pairs"]["checksum"] in text


def test_card_says_what_was_measured_of_the_kept_pairs(tmp_path: Path) -> None:
    rows = made_up(40, ["refine", "prefix"])
    for row in rows[1::2]:  # prefix
        row.update(margin=None, judge=None, reward_chosen=None)
    kept = [row for row in rows if row["strategy"] == "refine" and row["status"] == "kept"]
    agree = sum(row["margin"] > 0 for row in kept)
    verdicts = Counter(row["judge"] for row in kept)
    decided = verdicts["chosen"] + verdicts["rejected"]
    text = card(run_of(tmp_path / "run", rows))
    (cells,) = re.findall(r"^\| refine \| ([+-].*) \|$", text, re.MULTILINE)
    _, _, margin, judge, reward = cells.split(" | ")
    assert margin.startswith(f"{agree / len(kept):.0%} (") and margin.endswith(f" of {len(kept)}")
    assert judge.startswith(f"{verdicts['chosen'] / decided:.0%} (")
    assert judge.endswith(f" of {decided}, {verdicts['tie']} ties")
    assert reward.endswith(f" of {len(kept)}")
    assert re.search(r"^\| prefix \| .* \| not measured \| not measured \| not measured \|$", text, re.MULTILINE)


def test_card_front_matter_assumes_no_licence(mixed: Run) -> None:
    text = card(mixed)
    assert front(text)["license"] == "other" and front(text)["license_name"] == LICENCE_NAME
    assert "There is no one licence for this data, and none is assumed." in text
    assert "| small | scripted | model | v1 | other: made-up |" in text
    assert f"| strong | scripted | scripted | none (made-up text) | {NOT_STATED} |" in text
    assert str(mixed.path.disk) not in text and str(Path(str(mixed.path)).parent) not in text


def test_card_code_loads_the_kept_pairs(mixed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    names = executed(card(mixed), Path(str(mixed.path)), monkeypatch)
    kept = Counter(row["split"] for row in stored(mixed) if row["status"] == "kept")
    assert {split: names[split].num_rows for split in ("train", "heldout")} == kept


def test_card_of_an_export_describes_its_files_and_loads_them(
    mixed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = export(mixed, "kto", out=Place.of(tmp_path / "out"), describe=lambda made: card(mixed, made))
    text = (found.folder / "README.md").read().decode()
    files = front(text)["configs"][0]["data_files"]
    assert files == [{"split": file.split, "path": file.name} for file in found.files]
    names = executed(text, tmp_path / "out", monkeypatch)
    assert [names[file.split].num_rows for file in found.files] == [file.rows for file in found.files]


@pytest.mark.parametrize(
    ("readme", "stated"),
    [
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit or apache-2.0"),
        ("---\nlicense: other\nlicense_name: a|b\nlicense_link: LICENSE\n---\n", "other: a\\|b: LICENSE"),
        ("---\ntags: [x]\n---\nlicense: mit\n", NOT_STATED),
        ("---\nlicense: [\n---\n", NOT_STATED),
        ("# A model\nlicense: mit\n", NOT_STATED),
        (None, NOT_STATED),
    ],
)
def test_licence_is_what_the_front_matter_states(tmp_path: Path, readme: str | None, stated: str) -> None:
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert licence_of(Variant(model=os.fspath(tmp_path))) == stated
