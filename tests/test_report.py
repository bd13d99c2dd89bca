"""The report's figures against the Parquet, counted here by other means, and the file itself. What a browser makes of
it is in test_report_browser.py."""

from __future__ import annotations

import base64
import collections
import hashlib
import html
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from paired import made_up, run_of, turn
from running import popalign, scripted

from factory import plot, report
from factory.report import fitting, percent, reach, script_json, write_report
from factory.run import Run
from factory.shard import PAIR, shards
from factory.statistic import wilson

HOSTILE = "</script><script>window.fired=1</script><!-- \u2028 &amp; <img src=x onerror=fired=1>"


def written(run: Run) -> str:
    place = write_report(run)
    assert place.name == "report.html"
    return place.read().decode()


def block(page: str, name: str) -> Any:
    """A block of JSON in the page, cut out as an HTML parser would."""
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script', page, re.S)
    assert found
    return json.loads(found[1])


def frame(run: Run) -> pd.DataFrame:
    """The pairs of a run as pandas reads them."""
    return pd.concat([pq.read_table(place.opened()).to_pandas() for place in shards(run.current("pairs", ""))])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_of(tmp_path_factory.mktemp("report") / "run", made_up(200))


@pytest.fixture(scope="module")
def page(run: Run) -> str:
    return written(run)


def test_report_outcomes_are_those_of_the_parquet(run: Run, page: str) -> None:
    figures, pairs = block(page, "figures"), frame(run)
    assert figures["run"]["pairs"] == len(pairs) == 1200
    assert figures["run"]["kept"] == (pairs.status == "kept").sum()
    for row in figures["flow"]["strategies"]:
        mine = pairs[pairs.strategy == row["strategy"]]
        assert {s: row[s] for s in ("kept", "rejected", "failed")} == mine.status.value_counts().to_dict()
        reasons = mine[mine.status != "kept"].groupby(["status", "reason"]).size().to_dict()
        assert {(item["status"], item["reason"]): item["pairs"] for item in row["reasons"]} == reasons
    assert all(item["holds"] for item in figures["flow"]["sums"])


def test_report_lengths_are_those_of_the_parquet(run: Run, page: str) -> None:
    pairs = frame(run)
    for row in block(page, "figures")["lengths"]:
        mine = pairs[(pairs.strategy == row["strategy"]) & (pairs.status == "kept")]
        chosen, rejected = mine.chosen_tokens.astype(int), mine.rejected_tokens.astype(int)
        pooled = ((chosen.var() + rejected.var()) / 2) ** 0.5
        assert row["all"]["d"] == pytest.approx((chosen.mean() - rejected.mean()) / pooled, abs=1e-4)
        assert row["all"]["longer_is_chosen"] == pytest.approx((chosen > rejected).mean(), abs=1e-4)
        assert row["all"]["mean_chosen"] == pytest.approx(chosen.mean(), abs=1e-3)
        assert row["quantiles"]["p50"] == statistics.median_low(chosen - rejected)
        assert abs(row["matched"]["d"]) < 0.1 < 0.5 < row["all"]["d"]
        assert row["matched"]["pairs"] < row["all"]["pairs"]


def test_report_accuracies_are_those_of_the_parquet(run: Run, page: str) -> None:
    pairs = frame(run)
    for row in block(page, "figures")["accuracy"]:
        mine = pairs[(pairs.strategy == row["strategy"]) & (pairs.status == "kept")]
        verdicts = mine.judge.value_counts()
        expected = {
            "margin": ((mine.margin > 0).sum(), len(mine)),
            "judge": (verdicts["chosen"], verdicts["chosen"] + verdicts["rejected"]),
            "reward": ((mine.reward_chosen > mine.reward_rejected).sum(), len(mine)),
        }
        for measure, (good, n) in expected.items():
            raw = row[measure]["raw"]
            assert (raw["good"], raw["n"]) == (good, n)
            assert (raw["low"], raw["high"]) == pytest.approx(wilson(good, n))
            assert raw["share"] == good / n
            assert 0 < row[measure]["matched"]["n"] < n
        assert row["judge"]["raw"]["ties"] == verdicts["tie"]


def test_report_matched_accuracy_is_of_the_matched_pairs(run: Run, page: str) -> None:
    """The matched pairs are found again here by sorting: in each class the ids with the smallest first byte."""
    pairs = frame(run)
    mine = pairs[(pairs.strategy == "refine") & (pairs.status == "kept")]
    (row,) = [row for row in block(page, "figures")["accuracy"] if row["strategy"] == "refine"]
    classes: dict[tuple[int, int], list[Any]] = collections.defaultdict(list)
    for pair in mine.itertuples():
        apart = int(pair.chosen_tokens) - int(pair.rejected_tokens)
        size = sum(abs(apart) >= edge for edge in (1, 2, 3, 4, 6, 8, 12, 16, 23, 32, 46, 64))
        classes[size, (apart > 0) - (apart < 0)].append(pair)
    n = sum(min(len(pairs), len(classes.get((size, -sign), []))) for (size, sign), pairs in [*classes.items()])
    # Bytes are whole: two pairs of one class with the same first byte stay or go together.
    assert row["margin"]["matched"]["n"] == pytest.approx(n, abs=len(classes))


def test_report_figures_stand_in_the_page_as_text(page: str) -> None:
    figures = block(page, "figures")
    text = html.unescape(re.sub(r"<[^>]+>", " ", page.partition("<script")[0]))
    text = re.sub(r"\s+", " ", text)
    for row in figures["flow"]["strategies"]:
        for item in row["reasons"]:
            assert f"{item['reason']} {item['pairs']}" in text
    for row in figures["accuracy"]:
        raw = row["margin"]["raw"]
        assert f"{percent(raw['low'])} to {percent(raw['high'])} · {raw['good']} of {raw['n']}" in text
    assert "1,200 pairs, " in text or "1,200 pairs" in text
    assert "207 read = 200 ready + 4 duplicates + 3 set aside" in text


def test_report_without_scores_says_that_nothing_was_measured(tmp_path: Path) -> None:
    rows = [{name: row[name] for name in PAIR.names if name in row} for row in made_up(20)]
    rows = [{**row, **{k: None for k in ("margin", "judge", "reward_chosen") if k in row}} for row in rows]
    found = written(run_of(tmp_path / "run", rows, schema=PAIR))
    assert found.count("Not measured in this run.") == 3
    assert block(found, "figures")["accuracy"][0] == {
        "strategy": "prefix",
        "margin": None,
        "judge": None,
        "reward": None,
    }


def test_report_of_a_strategy_without_a_kept_pair_says_so(tmp_path: Path) -> None:
    rows = made_up(20, ["refine", "prefix"])
    for row in rows[::2]:
        row.update(status="rejected", reason="leak")
    found = written(run_of(tmp_path / "run", rows))
    assert found.count("No kept pair of known length.") == 1
    (refine, _) = block(found, "figures")["lengths"]
    assert refine["strategy"] == "refine" and refine["all"] is None


def test_report_of_books_that_do_not_add_up_says_so(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", made_up(20))
    entry = run.manifest["pairs"]
    entry["strategies"]["refine"]["kept"] += 1
    run.update(pairs=entry, prompts={**run.manifest["prompts"], "read": 99})
    sums = block(written(run), "figures")["flow"]["sums"]
    assert [item["holds"] for item in sums] == [False, True, True, False]
    assert "not for refine" in sums[3]["text"]


def test_report_is_the_same_in_every_run_but_for_its_time(run: Run, page: str) -> None:
    assert block(written(run), "data") == block(page, "data")


def test_report_sample_holds_what_is_rare_and_says_that_it_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.survey.MAX_SAMPLE", 60)
    monkeypatch.setattr("factory.report.MAX_SAMPLE", 60)
    rows = made_up(150, ["refine", "prefix"])
    rows[7].update(status="rejected", reason="echo")
    found = written(run_of(tmp_path / "run", rows))
    shown = block(found, "data")
    assert len(shown) == 60 and "60 of 300 pairs" in re.sub(r"<[^>]+>|\s+", " ", found).replace("  ", " ")
    strata = collections.Counter((p["strategy"], p["status"], p.get("reason")) for p in shown)
    assert strata["refine" if rows[7]["strategy"] == "refine" else "prefix", "rejected", "echo"] == 1
    everything = collections.Counter((r["strategy"], r["status"], r["reason"]) for r in rows)
    least = min(60 // len(everything), *everything.values())
    assert all(strata[stratum] >= min(everything[stratum], least) for stratum in everything)
    assert {p["pair_id"] for p in shown} <= {r["pair_id"] for r in rows}


def test_report_sampled_pair_is_the_pair_of_the_parquet(run: Run, page: str) -> None:
    stored = {row["pair_id"]: row for row in frame(run).to_dict("records")}
    for pair in block(page, "data"):
        row = stored[pair["pair_id"]]
        assert (pair["strategy"], pair["status"]) == (row["strategy"], row["status"])
        assert pair["rejected"] == list(row["rejected"]) and pair["prompt"] == list(row["prompt"])


def test_report_of_100_000_pairs_stays_below_5_mb(tmp_path: Path) -> None:
    found = written(run_of(tmp_path / "run", made_up(16_667), per_shard=50_000))
    assert len(found.encode()) < 5_000_000
    assert len(block(found, "data")) == 1500 and block(found, "figures")["run"]["pairs"] == 100_002


def test_report_of_long_texts_stays_below_its_size(tmp_path: Path) -> None:
    rows = made_up(400, ["refine", "prefix"])
    for row in rows:
        row["chosen"] = turn("assistant", row["pair_id"] + "<&" * 15_000)
    found = written(run_of(tmp_path / "run", rows))
    shown = block(found, "data")
    assert len(found.encode()) < 5_000_000 and 10 < len(shown) < 800
    assert all(p["chosen"][0]["cut"] == 30_032 for p in shown if p["chosen"])


def test_fitting_drops_the_last_of_the_largest_strata_first(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"pair_id": "x" * 100, "prompt": [], "chosen": [], "rejected": [], "strategy": "s"}
    many, few = ("s", "kept", ""), ("s", "rejected", "leak")
    monkeypatch.setattr(report, "MAX_BYTES", 2000)
    text, shown = fitting({many: [{**row, "status": "kept"}] * 50, few: [{**row, "status": "rejected"}] * 2})
    assert len(text) <= 2002 and shown == len(json.loads(text)) > 5
    assert sum(pair["status"] == "rejected" for pair in json.loads(text)) == 2


@pytest.mark.parametrize("text", [HOSTILE, "]]>", "<!--<script>", "\x00\x1f\x7f", "\u2028\u2029", 'a"b\\c'])
def test_script_json_gives_the_text_back_and_ends_no_block(text: str) -> None:
    found = script_json({"text": text})
    assert json.loads(found) == {"text": text}
    assert not set(found) & set("<>&\u2028\u2029")


def test_report_page_holds_only_its_own_script_and_style_by_hash(page: str) -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    rules = dict(rule.strip().partition(" ")[::2] for rule in html.unescape(policy[1]).split(";"))
    assert rules["default-src"] == "'none'"
    for name, tag in (("script-src", "script"), ("style-src", "style")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert not re.search(r"\son\w+=|\sstyle=|innerHTML|https?://(?!www\.w3\.org)", page.partition('id="figures"')[0])


def test_report_escapes_what_a_recipe_names(tmp_path: Path) -> None:
    rows = made_up(10)
    rows[0].update(status="rejected", reason=HOSTILE)
    run = run_of(tmp_path / "run <b>", rows)
    run.update(versions={HOSTILE: HOSTILE}, created=HOSTILE)
    found = written(run)
    assert "<script>window" not in found and "<img" not in found and "<b>" not in found.partition("<main")[0]
    assert html.escape(HOSTILE, quote=False) in found


def test_reach_is_a_whole_number_of_tokens_a_bar() -> None:
    for size in (0, 5, 20, 21, 93, 500, 4000):
        found = reach({"refine": {size: 90, -size: 10}})
        assert found >= size and (2 * found + 1) % plot.HISTOGRAM_BARS == 0
    assert reach({}) == 20


def test_histogram_bars_hold_all_pairs() -> None:
    bars = re.findall(
        r'class="(\w+)" x="([\d.]+)" y="[\d.]+" width="[\d.]+" height="([\d.]+)"',
        plot.histogram({0: 4, 1: 2, -900: 1}, 20),
    )
    # reach 20: a bar is one token, the tallest 84 high; -900 is in the first bar.
    assert bars == [("rejected", "0.50", "21.00"), ("level", "160.50", "84.00"), ("chosen", "168.50", "42.00")]


def test_run_ends_with_the_report_of_its_pairs(tmp_path: Path) -> None:
    recipe = scripted(tmp_path, 12, extra=["[[empty]] nothing", "[[truncated]] long"], balance_length=0.2)
    done = popalign("run", str(recipe), "--cpus", "2")
    assert done.returncode == 0, done.stderr
    run = Run.open(tmp_path / "run")
    figures = block((run.path / "report.html").read().decode(), "figures")
    assert figures["run"]["pairs"] == len(frame(run)) == 14 * 6
    assert [row["all"] for row in figures["lengths"]] == [*run.manifest["pairs"]["lengths"].values()]
    assert "length d" in done.stdout and "balanced" in done.stdout and "report.html" in done.stdout
    for row in figures["lengths"]:
        assert row["training"] == run.manifest["pairs"]["balance"]["strategies"][row["strategy"]]


def test_report_command_writes_the_file_and_refuses_a_run_without_pairs(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", made_up(5))
    done = popalign("report", str(run.path))
    assert done.returncode == 0 and "report.html" in done.stdout, done.stderr
    assert (tmp_path / "run" / "report.html").is_file()
    run.update(pairs={})
    done = popalign("report", str(run.path))
    assert done.returncode == 2 and "popalign pairs" in done.stderr
