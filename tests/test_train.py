"""Training's own arithmetic: which pairs, fillers, log-probabilities, intervals. The training itself is run end to end
in test_end_to_end.py."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig

from factory.errors import InputError
from factory.pair import pair_id
from factory.place import Place
from factory.recipe import StrategySettings, TargetMargin, Train
from factory.score import confidence
from factory.shard import PAIR, write_shard
from factory.statistic import wilson
from train.evaluate import accuracy, summarise
from train.logprob import sum_logprobs
from train.pairs import margin_of, rank, select, shares
from train.worker import MarginTrainer, last_checkpoint


def run_with(
    folder: Path,
    rows: list[dict[str, Any]],
    weights: dict[str, float],
    *,
    balance_length: float | None = None,
    **train: Any,
) -> Any:
    """As much of a run as choosing pairs needs."""
    empty = dict.fromkeys(PAIR.names)
    write_shard(pa.Table.from_pylist([{**empty, **row} for row in rows], PAIR), Place.of(folder) / "00000.parquet", {})
    recipe = SimpleNamespace(
        strategies={name: StrategySettings(weight=weight) for name, weight in weights.items()},
        train=Train(variant="small", **train),
        balance_length=balance_length,
    )
    return SimpleNamespace(
        path=Place.of(folder),
        order=SimpleNamespace(recipe=recipe),
        manifest={"pairs": {"strategies": {name: {"kept": len(rows)} for name in weights}}},
        current=lambda name, made_by: Place.of(folder),
    )


def pair(i: int, strategy: str = "prefix", status: str = "kept", split: str = "train") -> dict[str, Any]:
    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    return {
        "pair_id": pair_id(str(i), strategy),
        "prompt": turn("user", f"prompt {i}"),
        "chosen": turn("assistant", f"good {i}"),
        "rejected": turn("assistant", f"bad {i}"),
        "strategy": strategy,
        "status": status,
        "split": split,
    }


def test_select_takes_kept_training_pairs_once_and_fills_up(tmp_path: Path) -> None:
    rows = [pair(i) for i in range(5)] + [pair(5, status="rejected"), pair(6, split="heldout")]
    selection = select(run_with(tmp_path, rows, {"prefix": 1.0}), tmp_path / "w" / "pairs.arrow", 4)
    assert (selection.num_pairs, selection.num_fillers) == (5, 3)  # 5 pairs and 3 fillers are two times 4
    data = Dataset.from_file(str(selection.path))
    assert sorted(data["pair_id"])[:5] == sorted(row["pair_id"] for row in rows[:5])
    fillers = [row for row in data if row["pair_id"] == "filler"]
    assert len(fillers) == 3
    assert all(row["chosen"] == row["rejected"] for row in fillers)


def test_select_weights_keep_their_share(tmp_path: Path) -> None:
    rows = [pair(i, strategy) for i in range(1000) for strategy in ("prefix", "demon", "refine")]
    run = run_with(tmp_path, rows, {"prefix": 2.0, "demon": 1.0, "refine": 0.0})
    assert shares(run) == {"prefix": 1.0, "demon": 0.5, "refine": 0.0}
    taken = select(run, tmp_path / "pairs.arrow", 1).by_strategy
    assert taken["prefix"] == 1000
    assert 440 < taken["demon"] < 560  # half of 1,000, within four standard deviations of 16
    assert "refine" not in taken


def test_select_max_pairs_is_a_bound(tmp_path: Path) -> None:
    run = run_with(tmp_path, [pair(i) for i in range(50)], {"prefix": 1.0}, max_pairs=7)
    assert select(run, tmp_path / "pairs.arrow", 1).num_pairs == 7


def test_select_without_pairs_says_why(tmp_path: Path) -> None:
    run = run_with(tmp_path, [pair(0, status="rejected")], {"prefix": 1.0})
    with pytest.raises(InputError, match="no pairs to train on"):
        select(run, tmp_path / "pairs.arrow", 1)


def test_select_max_pairs_keeps_the_proportion_of_the_weights(tmp_path: Path) -> None:
    rows = [pair(i, strategy) for i in range(1000) for strategy in ("prefix", "demon")]
    run = run_with(tmp_path, rows, {"prefix": 3.0, "demon": 1.0}, max_pairs=400)
    taken = select(run, tmp_path / "pairs.arrow", 1).by_strategy
    assert 265 < taken["prefix"] < 335  # 300 of 400, within four standard deviations of 8.7


def test_rank_depends_on_the_id_alone() -> None:
    assert rank("0" * 24 + "7fffffff", 0.5) < 1
    assert rank("0" * 24 + "80000000", 0.5) == 1
    assert rank("0" * 32, 0.0) == math.inf


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ({"margin": 0.0}, 0.5),
        ({"margin": math.log(3)}, 0.75),
        ({"margin": -800.0}, 0.0),
        ({"margin": None}, None),
        ({"judge": "chosen"}, 1.0),
        ({"judge": "tie"}, 0.5),
        ({"judge": "rejected"}, 0.0),
        ({"judge": None}, None),
        ({"reward_chosen": 1.0, "reward_rejected": 1.0 + math.log(3)}, 0.25),
        ({"reward_chosen": 1.0, "reward_rejected": None}, None),
    ],
)
def test_confidence_is_the_probability_of_the_label(score: dict[str, Any], expected: float | None) -> None:
    by = next(iter(score)).partition("_")[0]
    assert confidence(score, by) == (None if expected is None else pytest.approx(expected))


def test_select_weighs_pairs_by_their_own_scores(tmp_path: Path) -> None:
    verdicts = ("chosen", "tie", "rejected", None)
    rows = [{**pair(i, "refine"), "judge": verdicts[i % 4]} for i in range(4000)]
    selection = select(run_with(tmp_path, rows, {"refine": 1.0}, weight_by="judge"), tmp_path / "pairs.arrow", 1)
    judged = {row["pair_id"]: row["judge"] for row in rows}
    taken = [judged[pair_id] for pair_id in Dataset.from_file(str(selection.path))["pair_id"]]
    assert taken.count("chosen") == taken.count(None) == 1000  # what was not measured stays
    assert taken.count("rejected") == 0
    assert 435 < taken.count("tie") < 565  # half of 1,000, within four standard deviations of 16


def test_margin_of_is_scaled_and_cut() -> None:
    wanted = TargetMargin(by="margin")
    assert margin_of({"margin": 10.0}, wanted) == pytest.approx(2.0)
    assert margin_of({"margin": -500.0}, wanted) == pytest.approx(-8.0)
    assert margin_of({"margin": None}, wanted) == 0.0
    rewards = {"reward_chosen": 3.0, "reward_rejected": 1.0}
    assert margin_of(rewards, TargetMargin(by="reward", scale=0.5, clamp=1.0)) == 0.5


def test_margin_trainer_loss_is_that_of_the_formula(tmp_path: Path, tiny_model: Path) -> None:
    model, reference = (AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32) for _ in range(2))
    with torch.no_grad():  # another model than the reference, so that the log-ratios are not zero
        model.get_input_embeddings().weight[::2] *= 3
    turns = ("prompt", "chosen", "rejected")
    margins, options = [0.0, 3.0, -2.0, 5.0], {"remove_unused_columns": False, "report_to": "none"}
    rows = [{name: pair(i)[name] for name in turns} | {"target_margin": m} for i, m in enumerate(margins)]
    trainer = MarginTrainer(
        model=model,
        ref_model=reference,
        args=DPOConfig(str(tmp_path), beta=0.1, per_device_train_batch_size=4, use_cpu=True, bf16=False, **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, dict(batch)).item()

    def logps(which: Any) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            logits = which(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        tokens = logits.log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
        return (tokens * batch["completion_mask"][:, 1:]).sum(1).chunk(2)

    (chosen, rejected), (old_chosen, old_rejected) = logps(model), logps(reference)
    difference = (chosen - old_chosen) - (rejected - old_rejected)
    assert difference.abs().min() > 1e-3
    expected = -torch.nn.functional.logsigmoid(0.1 * (difference - batch["target_margin"])).mean()
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_wilson_against_known_values() -> None:
    low, high = wilson(8, 10)  # Wilson 1927; 0.490 to 0.943 in every table
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == pytest.approx(1.0)


def test_accuracy_counts_positive_margins() -> None:
    assert accuracy([1.0, -1.0, 0.0, 2.0])["value"] == 0.5  # a tie is no win


def test_summarise_reward_is_beta_times_the_change() -> None:
    pairs = [{"strategy": "prefix"}, {"strategy": "demon"}]
    figures = summarise(pairs, before=[(-5.0, -4.0), (-3.0, -6.0)], after=[(-3.0, -4.0), (-3.0, -5.0)], beta=0.1)
    # prefix: the difference went from -1 to +1, reward 0.1 * 2; demon: from 3 to 2, reward 0.1 * -1
    assert figures["prefix"]["after"]["reward_margin"] == pytest.approx(0.2)
    assert figures["demon"]["after"]["reward_margin"] == pytest.approx(-0.1)
    assert figures["all"]["before"]["accuracy"]["value"] == 0.5
    assert figures["all"]["after"]["accuracy"]["value"] == 1.0
    assert figures["all"]["n"] == 2


class Uniform(torch.nn.Module):
    """A language model that knows nothing: every token has probability 1/8."""

    device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 8))


def test_sum_logprobs_counts_answer_tokens_only() -> None:
    rows = [([1, 2, 3, 4, 5], 3), ([1, 2], 1), ([1, 2, 3], 3)]
    sums, counts = sum_logprobs(Uniform(), rows, pad=0, batch_size=2)
    assert counts == [2, 1, 0]
    assert sums == pytest.approx([2 * math.log(1 / 8), math.log(1 / 8), 0.0])


def test_last_checkpoint_is_the_newest_complete_one(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step, complete in ((2, True), (10, True), (12, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if complete:
            (folder / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_select_with_balance_takes_as_many_longer_as_shorter(tmp_path: Path) -> None:
    # 30 pairs whose chosen side is 50 tokens longer, 10 the other way round: matched, 10 of each are left.
    lengths = [(60, 10)] * 30 + [(10, 60)] * 10
    rows = [{**pair(i), "chosen_tokens": c, "rejected_tokens": r} for i, (c, r) in enumerate(lengths)]
    run = run_with(tmp_path / "run", rows, {"prefix": 1.0}, balance_length=0.05)
    assert select(run, tmp_path / "pairs.arrow", 1).num_pairs == pytest.approx(20, abs=2)
    every = run_with(tmp_path / "run", rows, {"prefix": 1.0})
    assert select(every, tmp_path / "pairs.arrow", 1).num_pairs == 40


def test_select_of_pairs_that_cannot_be_balanced_names_the_key(tmp_path: Path) -> None:
    rows = [{**pair(i), "chosen_tokens": 60 + i, "rejected_tokens": 10} for i in range(5)]
    with pytest.raises(InputError, match=r"balance_length = 0\.2 leaves none"):
        select(run_with(tmp_path, rows, {"prefix": 1.0}, balance_length=0.2), tmp_path / "w" / "pairs.arrow", 1)
