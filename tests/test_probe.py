"""What a probe makes of what it saw: known paces, intervals, and a whole probe with the scripted engine."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import generations, popalign, scripted

from factory.probe import Estimate, Look, Predicted, Prediction, draw, mean, serving
from factory.recipe import Prompts
from factory.summary import show_prediction
from factory.terminal import Terminal


def seen(rate: float, completions: int, at_once: int, tail: int) -> list[Look]:
    """A replica that completes ``rate`` a second with ``at_once`` in flight, and ``tail`` seconds for the last ones."""
    looks = []
    full = int((completions - at_once) / rate)
    for second in range(full + 1):
        looks.append(Look(float(second), int(second * rate), at_once))
    for second in range(1, tail + 1):
        left = at_once * (1 - second / tail)
        looks.append(Look(float(full + second), round(completions - left), round(left)))
    return looks


def test_serving_multiplies_the_full_load_and_not_the_tail() -> None:
    looks = seen(rate=10, completions=500, at_once=100, tail=20)
    found = serving(60.0, looks)
    assert found.in_flight == 100
    assert found.tail == pytest.approx(10, abs=1.5)  # from when half of them were left
    assert found.time_for(500) == pytest.approx(60)  # what was seen is given back
    assert found.time_for(5_500) == pytest.approx(60 + 500, rel=0.05)
    assert found.error < 0.05


def test_serving_of_a_probe_that_never_filled_the_engine_is_proportional() -> None:
    found = serving(8.0, [Look(0.0, 0, 0), Look(8.0, 4, 0)])
    assert found.time_for(40) == pytest.approx(80)
    assert found.error == float("inf")


def test_mean_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    samples = generator.exponential(100, size=(200, 40))
    inside = sum(estimate.low <= 100 <= estimate.high for estimate in map(mean, samples))
    assert 0.86 < inside / 200 <= 1  # 95 %, less the little that 40 skewed values cost a bootstrap


def test_estimates_scale_and_add() -> None:
    total = Estimate(10, 8, 13).times(2).plus(Estimate(1, 1, 1))
    assert total == Estimate(21, 17, 27)


def test_draw_takes_each_prompt_with_equal_chance(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"prompt": str(i)}) + "\n" for i in range(10)))
    prompts = Prompts(source=str(source))
    taken: Counter[str] = Counter()
    for seed in range(300):
        chosen, count = draw(prompts, 3, seed)
        assert count == 10 and len(set(chosen)) == 3
        taken.update(chosen)
    # Each 300 * 0.3 = 90 times, within four standard deviations of 8.
    assert all(58 < number < 122 for number in taken.values()) and len(taken) == 10
    assert draw(prompts, 20, 0) == ([str(i) for i in range(10)], 10)


def test_probe_predicts_tokens_within_its_interval_and_leaves_nothing(tmp_path: Path) -> None:
    recipe = scripted(tmp_path, 300)
    fast = ["--set", "variants.strong.max_num_seqs=16"]
    done = popalign("plan", str(recipe), *fast, "--probe", "40", "--price", "2", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["probed"], found["prompts"]) == (40, 300)
    assert found["seconds"]["low"] <= found["seconds"]["value"] <= found["seconds"]["high"]
    assert found["cost"]["value"] == 0  # no GPU
    assert not (tmp_path / "run").exists() and not (tmp_path / "run.probe").exists()
    assert popalign("generate", str(recipe), *fast).returncode == 0
    made: Counter[str] = Counter()
    for row in generations(tmp_path / "run"):
        for completion in row["completions"]:
            made[completion["variant"]] += completion["tokens"]
    for variant in found["variants"]:
        assert variant["completions"] == {"strong": 8, "second": 1, "small": 1}[variant["variant"]] * 300
        tokens = variant["new_tokens"]
        # The interval holds 95 in 100; twice its half width all but surely.
        assert abs(tokens["value"] - made[variant["variant"]]) <= 2 * (tokens["high"] - tokens["low"]) / 2


def test_prediction_is_shown_with_its_intervals(capfd: pytest.CaptureFixture[str]) -> None:
    tokens, time_ = Estimate(26_732, 23_564, 29_900), Estimate(7200, 3600, 10_800)
    part = Predicted("strong", 4, 704, tokens, tokens, time_, time_.times(4 / 3600), time_.times(4 / 1800), 100, 128)
    show_prediction(Terminal(), Prediction(16, 64, time_, part.gpu_hours, part.cost, (part,)))
    text = capfd.readouterr().out
    assert "by 16 prompts, 64 prompts would take" in text and "strong x 4" in text
    assert "26,732 ± 12%" in text and "2 h 0 min ± 50%" in text
    assert "in all: 2 h 0 min (1 h 0 min to 3 h 0 min), 8 (4 to 12) GPU-hours, cost 16 (8 to 24)" in text
    assert "strong 100 of 128" in text


def test_price_without_a_probe_is_refused(tmp_path: Path) -> None:
    done = popalign("plan", str(scripted(tmp_path, 3)), "--price", "2")
    assert done.returncode == 2
    assert "--probe" in done.stderr
