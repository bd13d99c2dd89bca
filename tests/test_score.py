"""Scores: what is asked about a pair, how it is read, and what real engines say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from running import SIX, generations, popalign, scripted
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from factory import cookbook
from factory.check import Checks
from factory.model import render
from factory.pair import pair_id, pairs_of
from factory.request import build
from factory.run import Run
from factory.score import agrees, score, turned
from factory.shard import shards
from strategies.contrast import Contrast, Generation, Message, Reply
from strategies.judge import reading, reason, verdicts
from strategies.score import Scores

ASK = (Message("user", "Name a river."),)
SIDES = Contrast("prefix", Generation("strong", ASK, "(good)"), Generation("strong", ASK, "(bad)"))
ALL = Scores(1.0, frozenset({"strong"}), judge="wise", criterion="better", reward="rm")


def pairs(run: Path) -> list[dict[str, Any]]:
    opened = Run.open(run)
    return [
        row for place in shards(opened.current("pairs", "pairs")) for row in pq.read_table(place.opened()).to_pylist()
    ]


def test_evidence_margin_asks_each_answer_after_each_request() -> None:
    found = ALL.evidence(ASK, SIDES).margin
    assert [(g.prefill, g.given) for g in found] == [
        ("(good)", Reply(SIDES.chosen)),
        ("(bad)", Reply(SIDES.chosen)),
        ("(good)", Reply(SIDES.rejected)),
        ("(bad)", Reply(SIDES.rejected)),
    ]
    assert len({g.id for g in found}) == 4


def test_evidence_margin_of_one_request_is_not_asked() -> None:
    draws = Contrast("rlaif", Generation("strong", ASK), Generation("strong", ASK, sample=1))
    assert ALL.evidence(ASK, draws).margin == ()


def test_evidence_margin_needs_variants_that_tell_it() -> None:
    sides = Contrast("nparam", Generation("strong", ASK), Generation("elsewhere", ASK))
    assert ALL.evidence(ASK, sides).margin == ()


def test_evidence_judge_sees_both_orders_and_no_affix() -> None:
    first, second = ALL.evidence(ASK, SIDES).judge
    assert first.replies == (SIDES.chosen, SIDES.rejected)
    assert second.replies == (SIDES.rejected, SIDES.chosen)
    text = first.messages[0].content
    assert isinstance(text, tuple) and "Name a river." in text[1] and "(good)" not in f"{text[0]}{text[1]}"


def test_evidence_share_draws_by_prompt_alone() -> None:
    some = Scores(0.5, judge="wise")
    prompts = [(Message("user", f"Prompt {i}."),) for i in range(2000)]
    drawn = [some.is_drawn(prompt) for prompt in prompts]
    assert drawn == [some.is_drawn(prompt) for prompt in prompts]
    assert 0.45 < sum(drawn) / len(drawn) < 0.55
    assert not any(Scores(1e-12, judge="wise").is_drawn(prompt) for prompt in prompts)


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ("Because. Verdict: A", "Verdict: B", "chosen"),
        ("Verdict: B", "**Verdict:** [A]", "rejected"),
        ("Verdict: A", "Verdict: A", "tie"),  # what stands first wins: no verdict about the answers
        ("Verdict: tie", "Verdict: tie", "tie"),
        ("Verdict: tie", "Verdict: B", "tie"),
        ("My verdict: answer A", 'verdict: "B"', "chosen"),
        ("Verdict: B, no, Verdict: A", "Verdict: B", "chosen"),
        ("A is better.", "Verdict: B", None),
        (None, "Verdict: B", None),
        ("Verdict: Abstain", "Verdict: B", None),
    ],
)
def test_verdict_reading(first: str | None, second: str | None, verdict: str | None) -> None:
    assert reading(first, second) == verdict


def test_verdict_reason_is_what_stands_before_it() -> None:
    assert reason("A names a river; B does not.\n\nVerdict: A") == "A names a river; B does not."


def completions(values: list[float], said: list[str]) -> dict[str, dict[str, Any]]:
    evidence = ALL.evidence(ASK, SIDES)
    asked = [*evidence.margin, *evidence.reward]
    out = {g.id: {"value": value, "answer": None} for g, value in zip(asked, values, strict=True)}
    return out | {g.id: {"value": None, "answer": text} for g, text in zip(evidence.judge, said, strict=True)}


def test_score_arithmetic_and_turning() -> None:
    found = score(SIDES, ASK, ALL, completions([-10, -14, -20, -18.5, 2.0, 1.0], ["x Verdict: A", "y Verdict: B"]))
    # (-10 - -14) - (-20 - -18.5) = 4 + 1.5
    assert found["margin"] == 5.5
    assert (found["judge"], found["reward_chosen"], found["reward_rejected"]) == ("chosen", 2.0, 1.0)
    assert [agrees(found, by) for by in ("all", "margin", "judge", "reward")] == [None, True, True, True]
    back = turned(found)
    assert (back["margin"], back["reward_chosen"], back["reward_rejected"]) == (-5.5, 1.0, 2.0)


def test_score_that_was_not_made_is_null_and_not_wrong() -> None:
    found = score(SIDES, ASK, ALL, {})
    assert set(found.values()) == {None}
    assert [agrees(found, by) for by in ("margin", "judge", "reward")] == [None, None, None]


def test_pair_ids_of_samples_differ_and_the_first_is_as_before() -> None:
    assert pair_id("p", "prefix", 0) == pair_id("p", "prefix")
    assert len({pair_id("p", "prefix", i) for i in range(4)}) == 4


def test_run_scores_samples_and_rlaif_end_to_end(tmp_path: Path) -> None:
    strategies = {
        "prefix": {"variant": "strong", "samples": 3},
        "refine": {"variant": "strong"},
        "rlaif": {"variant": "strong", "judge": "second"},
    }
    recipe = scripted(tmp_path, 40, strategies=strategies)
    made = popalign("generate", str(recipe))
    assert made.returncode == 0, made.stderr
    assert popalign("pairs", str(tmp_path / "run")).returncode == 0
    before = pairs(tmp_path / "run")
    assert len(before) == 40 * 5 and len({row["pair_id"] for row in before}) == 40 * 5
    prefixes = [row for row in before if row["strategy"] == "prefix"]
    assert sorted({row["sample"] for row in prefixes}) == [0, 1, 2]
    assert len({row["chosen_generation"] for row in prefixes}) == 120
    judged = [row for row in before if row["strategy"] == "rlaif"]
    assert {row["judge"] for row in judged} <= {"chosen", "tie"}
    assert all((row["reason"] == "tie") == (row["judge"] == "tie") for row in judged)
    assert {row["margin"] for row in before} == {None}

    # Measuring a finished run adds measurements and generates nothing again.
    more = scripted(tmp_path, 40, strategies=strategies, scores={"judge": "second", "reward": "small"})
    again = popalign("generate", str(more))
    assert again.returncode == 0, again.stderr
    assert popalign("pairs", str(tmp_path / "run")).returncode == 0
    after = pairs(tmp_path / "run")
    same = ("pair_id", "chosen", "rejected", "chosen_generation", "status", "reason")
    assert [[row[name] for name in same] for row in after] == [[row[name] for name in same] for row in before]
    steered = [row for row in after if row["strategy"] != "rlaif"]
    assert all(row["margin"] is not None and row["judge"] and row["reward_chosen"] is not None for row in steered)
    effort = Run.open(tmp_path / "run").manifest["effort"]
    # Four log-probabilities, two verdicts and two rewards of each of 4 pairs; of rlaif's two draws two rewards. Refine
    # and rlaif share the bare answer, whose reward is measured once.
    requests = sum(by["requests"] for by in effort[-1]["by_variant"].values())
    assert requests == 40 * (4 * 8 + 2 - 1)


def test_pairs_keep_rejects_what_a_score_does_not_confirm() -> None:
    content = {
        "run": "x",
        "prompts": {"source": "p.jsonl"},
        "variants": {"strong": {"engine": "scripted"}},
        "strategies": {"prefix": {"variant": "strong"}},
        "scores": {"judge": "strong"},
    }
    order = cookbook.check(content, "r")
    assert order.scores is not None
    contrast = order.strategies[0].contrast(ASK)
    evidence = order.scores.evidence(ASK, contrast)
    blank = {"finish": "stop", "error": None, "tokens": 3, "seed": 1, "value": None}
    texts = {contrast.chosen.id: "First.", contrast.rejected.id: "Second."}
    made = [{"generation_id": i, "text": t, "answer": t, **blank} for i, t in texts.items()]
    # (-9 - -3) - (-2 - -1): the label is doubted by the margin, and the judge confirms it.
    values = dict(zip([g.id for g in evidence.margin], [-9.0, -3.0, -2.0, -1.0], strict=True))
    made += [{"generation_id": i, "text": "", "answer": None, **blank, "value": v} for i, v in values.items()]
    said = dict(zip([g.id for g in evidence.judge], ["Verdict: A", "Verdict: B"], strict=True))
    made += [{"generation_id": i, "text": t, "answer": t, **blank} for i, t in said.items()]
    turns = [{"role": "user", "content": "Name a river."}]
    row = {"prompt_id": "p", "prompt": turns, "split": "train", "completions": made}
    found = {}
    for keep in ("all", "margin", "judge", "reward"):
        (pair,) = pairs_of(row, order.strategies, Checks.of(order.preset), order.scores, keep)
        found[keep] = pair["reason"]
    assert found == {"all": None, "margin": "disagrees", "judge": None, "reward": None}


def test_pairs_rejected_verdict_exchanges_the_sides(tmp_path: Path) -> None:
    order = cookbook.check(
        {
            "run": "x",
            "prompts": {"source": "p.jsonl"},
            "variants": {"strong": {"engine": "scripted"}},
            "strategies": {"rlaif": {"variant": "strong", "judge": "strong"}},
        },
        "r",
    )
    contrast = order.strategies[0].contrast(ASK)
    texts = {contrast.chosen.id: "First.", contrast.rejected.id: "Second."}
    texts |= dict(zip([g.id for g in contrast.verdicts], ["Verdict: B", "Verdict: A"], strict=True))
    blank = {"finish": "stop", "error": None, "tokens": 3, "seed": 1, "value": None}
    row = {
        "prompt_id": "p",
        "prompt": [{"role": "user", "content": "Name a river."}],
        "split": "train",
        "completions": [{"generation_id": i, "text": t, "answer": t, **blank} for i, t in texts.items()],
    }
    (pair,) = pairs_of(row, order.strategies, Checks.of(order.preset))
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("Second.", "First.")
    assert (pair["judge"], pair["status"]) == ("chosen", "kept")
    assert pair["chosen_generation"] == contrast.rejected.id


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"judge": "wise"}, "scores.judge: unknown variant 'wise'"),
        ({"reward": "nobody"}, "scores.reward: unknown variant 'nobody'"),
        ({"reward": "model"}, "scores.reward: variant 'model' is not of engine 'reward'"),
        ({"judge": "rm"}, "writes no text"),
        ({"keep": "judge"}, "scores.keep: 'judge' is not measured"),
        ({"margin": False, "keep": "margin"}, "scores.keep: 'margin' is not measured"),
        ({"share": 0}, "scores.share"),
    ],
)
def test_scores_mistakes_are_named(tmp_path: Path, scores: dict[str, Any], message: str) -> None:
    variants = {name: {"engine": "scripted"} for name in ("strong", "small", "second")}
    variants |= {"model": {"model": "a/b"}, "rm": {"engine": "reward", "model": "a/c"}}
    result = popalign("plan", str(scripted(tmp_path, 1, strategies=SIX, scores=scores, variants=variants)))
    assert result.returncode == 2 and message in result.stderr


def test_judge_text_of_a_prompt_with_braces_is_kept_whole() -> None:
    prompt = (Message("user", "Explain {criterion} and {0}."),)
    first, _ = verdicts("wise", "better", prompt, SIDES.chosen, SIDES.rejected)
    content = first.messages[0].content
    assert isinstance(content, tuple) and "Explain {criterion} and {0}." in content[1]


@pytest.fixture(scope="module")
def rewarding(tmp_path_factory: pytest.TempPathFactory, embedded_model: Path) -> Path:
    """A reward model of one layer with random weights, and the tokenizer of the embedded model."""
    folder = tmp_path_factory.mktemp("reward") / "model"
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    sizes |= {"num_labels": 1, "max_position_embeddings": 2048, "pad_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.engine
def test_margin_and_reward_are_those_of_transformers(tmp_path: Path, embedded_model: Path, rewarding: Path) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text('{"prompt": "Name two rivers of Europe."}\n{"prompt": "Why is rain good for gardens?"}\n')
    small = {"dtype": "float32", "max_model_len": 1024, "max_num_seqs": 16}
    content = {
        "run": str(tmp_path / "run"),
        "prompts": {"source": str(source)},
        "sampling": {"max_tokens": 24, "min_tokens": 8, "temperature": 0.7},
        "variants": {
            "strong": {"model": str(embedded_model), **small},
            "score": {"model": str(rewarding), "engine": "reward", **small},
        },
        "strategies": {"prefix": {"variant": "strong"}, "refine": {"variant": "strong", "format": "forced"}},
        "scores": {"reward": "score"},
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content))
    done = popalign("generate", str(recipe))
    assert done.returncode == 0, done.stderr
    assert popalign("pairs", str(tmp_path / "run")).returncode == 0
    order = cookbook.order(str(recipe))
    rows = {row["prompt_id"]: row for row in generations(tmp_path / "run")}
    model = AutoModelForCausalLM.from_pretrained(embedded_model, dtype=torch.float32)
    judge = LlamaForSequenceClassification.from_pretrained(rewarding)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    for pair in pairs(tmp_path / "run"):
        row = rows[pair["prompt_id"]]
        answers = {c["generation_id"]: c["answer"] for c in row["completions"] if c["answer"] is not None}
        prompt = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
        (strategy,) = [s for s in order.strategies if s.name == pair["strategy"]]
        values = []
        for measured in Scores(1.0, frozenset({"strong"})).evidence(prompt, strategy.contrast(prompt)).margin:
            variant = order.recipe.variants["strong"]
            request = build(measured, answers, run_seed=0, sampling=order.recipe.sampling, variant=variant)
            asked = render(tokenizer, request.messages, request.prefill)
            given = tokenizer.encode((" " if request.prefill else "") + request.given, add_special_tokens=False)
            with torch.no_grad():
                logits = model(torch.tensor([asked + given])).logits[0, len(asked) - 1 : -1]
            values.append(logits.log_softmax(-1).gather(1, torch.tensor(given)[:, None]).sum().item())
        a, b, c, d = values
        # float32 on two implementations: some 50 tokens differ by a ten-thousandth of a nat each.
        assert pair["margin"] == pytest.approx((a - b) - (c - d), abs=0.05)
        for side in ("chosen", "rejected"):
            turns = [*pair["prompt"], *pair[side]]
            ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
            with torch.no_grad():
                reward = judge(torch.tensor([ids])).logits.item()
            assert pair[f"reward_{side}"] == pytest.approx(reward, abs=0.01)


def test_label_pairs_are_those_of_the_data_set(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Name a river.", "chosen": "The Rhine.", "rejected": "No."},
        {"prompt": "Name a lake.", "chosen": [{"role": "assistant", "content": "Como."}], "rejected": "Never."},
        {"prompt": "Name a hill."},
    ]
    strategies = {"label": {}, "prefix": {"variant": "strong"}}
    recipe = scripted(tmp_path, 0, strategies=strategies)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = popalign("generate", str(recipe))
    assert done.returncode == 0, done.stderr
    assert popalign("pairs", str(tmp_path / "run")).returncode == 0
    found = {row["prompt"][0]["content"]: row for row in pairs(tmp_path / "run") if row["strategy"] == "label"}
    sides = {
        prompt: [turn["content"] for side in ("chosen", "rejected") for turn in row[side]]
        for prompt, row in found.items()
    }
    assert sides == {
        "Name a river.": ["The Rhine.", "No."],
        "Name a lake.": ["Como.", "Never."],
        "Name a hill.": [],
    }
    assert found["Name a hill."]["reason"] == "generation_missing"
    assert found["Name a lake."]["status"] == "kept" and found["Name a lake."]["chosen_tokens"] == 1


def test_label_alone_needs_no_engine(tmp_path: Path) -> None:
    recipe = scripted(tmp_path, 0, strategies={"label": {}})
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Name a river.", "chosen": "The Rhine.", "rejected": "No."}\n')
    done = popalign("generate", str(recipe))
    assert done.returncode == 0, done.stderr
    assert popalign("pairs", str(tmp_path / "run")).returncode == 0
    (row,) = pairs(tmp_path / "run")
    assert (row["status"], row["chosen_variant"]) == ("kept", "label")
