"""Pairs read off hand-made completions, the arithmetic of the books, and the request that a generation becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from factory import cookbook, pair, request
from factory.check import Checks
from factory.cookbook import Order
from factory.errors import RunError
from factory.pair import count, outcomes_of, pair_id, pairs_of
from factory.plan import unique
from factory.recipe import Sampling as RecipeSampling
from factory.recipe import Variant
from factory.run import Run
from factory.shard import PAIR
from strategies.contrast import Generation, Message, Reply, Sampling, Strategy
from strategies.refine import Refine

ASK = (Message("user", "Name a river."),)
TURNS = [{"role": "user", "content": "Name a river."}]
SIX = ["prefix", "demon", "elicitive", "nparam", "leaderboard", "refine"]


def made(preset: str = "leaderboard", **changes: Any) -> Order:
    data: dict[str, Any] = {
        "run": "runs/x",
        "preset": preset,
        "prompts": {"source": "prompts.jsonl"},
        "variants": {"strong": {"model": "a"}, "second": {"model": "b"}, "small": {"model": "c"}},
        "strategies": {
            "prefix": {"variant": "strong"},
            "demon": {"variant": "strong"},
            "elicitive": {"variant": "strong"},
            "nparam": {"chosen": "strong", "rejected": "small"},
            "leaderboard": {"ladder": ["strong", "second"]},
            "refine": {"variant": "strong"},
        },
        **changes,
    }
    return cookbook.check(data, "r")


def completion(generation: Generation, answer: str | None, **changes: Any) -> dict[str, Any]:
    """A completion as a pool stores it."""
    return {
        "generation_id": generation.id,
        "variant": generation.variant,
        "text": answer if answer is not None else "No form at all.",
        "answer": answer,
        "finish": "stop",
        "prompt_tokens": 5,
        "tokens": 7,
        "cached_tokens": 0,
        "seed": 1,
        "error": None,
        **changes,
    }


def row(strategies: tuple[Strategy, ...], changed: dict[str, dict[str, Any] | None] | None = None) -> dict[str, Any]:
    """A row of generations with a different clean answer for each; ``changed`` by generation id, None leaves it out."""
    changed = changed or {}
    completions = []
    for number, (identity, generation) in enumerate(unique(s.contrast(ASK) for s in strategies).items()):
        change = changed.get(identity, {})
        if change is not None:
            completions.append({**completion(generation, f"Answer number {number}."), **change})
    return {"prompt_id": "p1", "prompt": TURNS, "split": "train", "source": "f:1", "completions": completions}


def pairs(order: Order, changed: dict[str, dict[str, Any] | None] | None = None) -> dict[str, dict[str, Any]]:
    rows = pairs_of(row(order.strategies, changed), order.strategies, Checks.of(order.preset))
    assert [r["strategy"] for r in rows] == [s.name for s in order.strategies], "one row per strategy, in their order"
    return {r["strategy"]: r for r in rows}


def contrast(order: Order, name: str) -> Any:
    (strategy,) = [s for s in order.strategies if s.name == name]
    return strategy.contrast(ASK)


def outcomes(found: dict[str, dict[str, Any]]) -> dict[str, tuple[str, str | None]]:
    return {name: (r["status"], r["reason"]) for name, r in found.items()}


@pytest.mark.parametrize("preset", ["alignment", "leaderboard"])
def test_pairs_clean_completions_give_one_kept_pair_per_strategy(preset: str) -> None:
    assert outcomes(pairs(made(preset))) == dict.fromkeys(SIX, ("kept", None))


def test_pairs_row_holds_all_columns_of_the_schema() -> None:
    order = made()
    rows = list(pairs(order).values())
    assert all(list(r) == PAIR.names for r in rows)
    assert pa.Table.from_pylist(rows, PAIR).to_pylist() == rows


def test_pairs_kept_row_in_full() -> None:
    order = made()
    sides = contrast(order, "elicitive")
    found = pairs(
        order,
        {
            sides.chosen.id: {"text": "Thought: t\nResponse: The Rhine.", "answer": "The Rhine.", "tokens": 11},
            sides.rejected.id: {"text": "Response: No.", "answer": "No.", "tokens": 4},
        },
    )["elicitive"]
    assert found == {
        "pair_id": pair_id("p1", "elicitive"),
        "prompt_id": "p1",
        "prompt": [{"role": "user", "content": "Name a river."}],
        "chosen": [{"role": "assistant", "content": "The Rhine."}],
        "rejected": [{"role": "assistant", "content": "No."}],
        "strategy": "elicitive",
        "sample": 0,
        "level": "prompt",
        "split": "train",
        "chosen_variant": "strong",
        "rejected_variant": "strong",
        "chosen_generation": sides.chosen.id,
        "rejected_generation": sides.rejected.id,
        "chosen_tokens": 11,
        "rejected_tokens": 4,
        "status": "kept",
        "reason": None,
        "margin": None,
        "judge": None,
        "judge_reason": None,
        "reward_chosen": None,
        "reward_rejected": None,
    }


@pytest.mark.parametrize("preset", ["alignment", "leaderboard"])
def test_pairs_training_prompt_is_the_bare_prompt(preset: str) -> None:
    for strategy in pairs(made(preset)).values():
        assert strategy["prompt"] == TURNS


def test_pairs_dialogue_is_kept_with_all_its_turns() -> None:
    order = made()
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": "Rhine."},
        {"role": "user", "content": "And a lake?"},
    ]
    prompt = tuple(Message(t["role"], t["content"]) for t in turns)  # type: ignore[arg-type]  # roles as in a shard
    generations = unique(s.contrast(prompt) for s in order.strategies).values()
    completions = [completion(g, f"Answer number {i}.") for i, g in enumerate(generations)]
    given = {"prompt_id": "p2", "prompt": turns, "split": "heldout", "source": "f:2", "completions": completions}
    rows = pairs_of(given, order.strategies, Checks.of(order.preset))
    assert [(r["status"], r["split"], r["prompt"] == turns) for r in rows] == [("kept", "heldout", True)] * 6


def test_pairs_model_contrasts_name_both_variants() -> None:
    found = pairs(made())
    assert {name: (r["chosen_variant"], r["rejected_variant"], r["level"]) for name, r in found.items()} == {
        "prefix": ("strong", "strong", "prompt"),
        "demon": ("strong", "strong", "prompt"),
        "elicitive": ("strong", "strong", "prompt"),
        "nparam": ("strong", "small", "model"),
        "leaderboard": ("strong", "second", "model"),
        "refine": ("strong", "strong", "pipeline"),
    }


def test_pairs_large_models_bare_answer_serves_three_strategies() -> None:
    found = pairs(made(), {Generation("strong", ASK).id: {"answer": "The Rhine."}})
    said = [{"role": "assistant", "content": "The Rhine."}]
    assert found["nparam"]["chosen"] == found["leaderboard"]["chosen"] == found["refine"]["rejected"] == said


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": None, "text": "No form."}, "unparseable"),
        ({"finish": "length"}, "truncated"),
        ({"answer": " ", "text": " "}, "empty"),
        ({"answer": "<the good response>"}, "echo"),
        ({"answer": "(bad response) No."}, "leak"),
    ],
)
def test_pairs_check_that_fails_rejects_that_pair_only(side: str, change: dict[str, Any], reason: str) -> None:
    order = made()
    found = pairs(order, {getattr(contrast(order, "elicitive"), side).id: change})
    assert outcomes(found) == dict.fromkeys(SIX, ("kept", None)) | {"elicitive": ("rejected", reason)}
    # What was written stays in the row, to be looked at.
    shown = change["text"] if change.get("answer", "") is None else change.get("answer")
    assert shown is None or found["elicitive"][side] == [{"role": "assistant", "content": shown}]
    assert found["elicitive"][f"{side}_tokens"] == 7


def test_pairs_equal_sides_are_identical() -> None:
    order = made()
    sides = contrast(order, "prefix")
    found = pairs(order, {sides.chosen.id: {"answer": "The Rhine."}, sides.rejected.id: {"answer": "the Rhine"}})
    assert outcomes(found)["prefix"] == ("rejected", "identical")


def test_pairs_prompt_that_quotes_an_affix_is_not_a_leak() -> None:
    order = made(strategies={"nparam": {"chosen": "strong", "rejected": "small"}})
    prompt = (Message("user", "What does '(bad response)' mean?"),)
    sides = order.strategies[0].contrast(prompt)
    given = {
        "prompt_id": "p3",
        "prompt": [{"role": "user", "content": prompt[0].content}],
        "split": "train",
        "completions": [
            completion(sides.chosen, "It marks a text: (bad response)."),
            completion(sides.rejected, "Nothing."),
        ],
    }
    (found,) = pairs_of(given, order.strategies, Checks.of(order.preset))
    assert (found["status"], found["reason"]) == ("kept", None)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_pairs_completion_that_is_not_there_fails(side: str) -> None:
    order = made()
    found = pairs(order, {getattr(contrast(order, "demon"), side).id: None})
    assert outcomes(found) == dict.fromkeys(SIX, ("kept", None)) | {"demon": ("failed", "generation_missing")}
    assert found["demon"][side] == [] and found["demon"][f"{side}_tokens"] is None


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_pairs_completion_with_an_error_fails(side: str) -> None:
    order = made()
    error = {"answer": None, "text": None, "finish": None, "tokens": None, "error": "over_input_limit: 2000 tokens"}
    found = pairs(order, {getattr(contrast(order, "demon"), side).id: error})
    assert outcomes(found)["demon"] == ("failed", "generation_error")
    assert found["demon"][side] == [] and found["demon"][f"{side}_tokens"] is None


def test_pairs_shared_completion_that_failed_fails_all_that_need_it() -> None:
    found = pairs(made(), {Generation("strong", ASK).id: None})
    assert {name for name, r in found.items() if r["status"] == "failed"} == {"nparam", "leaderboard", "refine"}


def test_pairs_reply_to_nothing_is_told_apart_from_an_error_of_its_own() -> None:
    order = made(strategies={"refine": {"variant": "strong"}})
    second = contrast(order, "refine").chosen
    nothing = {"answer": None, "text": None, "finish": None, "tokens": None}
    # Without a seed no request was made: the answer that it replies to was missing.
    never = pairs(order, {second.id: {**nothing, "seed": None, "error": "the answer that it replies to is missing"}})
    assert outcomes(never)["refine"] == ("failed", "reply_missing")
    asked = pairs(order, {second.id: {**nothing, "seed": 1, "error": "over_input_limit"}})
    assert outcomes(asked)["refine"] == ("failed", "generation_error")


def test_pairs_failure_comes_before_any_check() -> None:
    order = made()
    sides = contrast(order, "prefix")
    found = pairs(order, {sides.chosen.id: {"answer": "(good response)"}, sides.rejected.id: None})
    assert outcomes(found)["prefix"] == ("failed", "generation_missing")


def test_pairs_completions_of_other_strategies_are_no_harm() -> None:
    order = made()
    only = tuple(s for s in order.strategies if s.name == "prefix")
    rows = pairs_of(row(order.strategies), only, Checks.of(order.preset))
    assert [(r["strategy"], r["status"]) for r in rows] == [("prefix", "kept")]


def test_pair_id_is_of_prompt_and_strategy() -> None:
    ids = {pair_id(prompt, strategy) for prompt in ("p1", "p2") for strategy in SIX}
    assert len(ids) == 12
    # Written down once: the choice by weight hangs on it.
    assert pair_id("p1", "prefix") == "4a928b2dc9322c2772e5094ece25306b"


# The books.


def outcome(strategy: str, status: str, reason: str | None = None) -> dict[str, Any]:
    return {"strategy": strategy, "status": status, "reason": reason}


def test_count_pairs_by_strategy_and_outcome() -> None:
    rows = [
        outcome("prefix", "kept"),
        outcome("prefix", "kept"),
        outcome("prefix", "rejected", "leak"),
        outcome("demon", "failed", "generation_error"),
        outcome("demon", "rejected", "leak"),
        outcome("demon", "rejected", "leak"),
    ]
    assert count(rows) == {
        "prefix": {"kept": 2, "rejected:leak": 1},
        "demon": {"failed:generation_error": 1, "rejected:leak": 2},
    }
    assert count([]) == {}


def test_outcomes_of_book_lists_the_most_frequent_reason_first() -> None:
    book = {"rejected:leak": 1, "kept": 5, "rejected:truncated": 3, "failed:generation_error": 2, "rejected:empty": 1}
    found = outcomes_of(book)
    assert found == {
        "kept": 5,
        "rejected": {"truncated": 3, "empty": 1, "leak": 1},
        "failed": {"generation_error": 2},
    }
    assert list(found["rejected"]) == ["truncated", "empty", "leak"]  # equal numbers by name
    assert found["kept"] + sum(found["rejected"].values()) + sum(found["failed"].values()) == 5 + 5 + 2


def test_outcomes_of_book_without_kept_pairs() -> None:
    assert outcomes_of({"rejected:leak": 2}) == {"kept": 0, "rejected": {"leak": 2}, "failed": {}}
    assert outcomes_of({}) == {"kept": 0, "rejected": {}, "failed": {}}


def run_with(folder: Path, ready: int) -> Run:
    strategies = {"prefix": {"variant": "strong"}, "demon": {"variant": "strong"}}
    run = Run.create(made(run=str(folder / "run"), strategies=strategies))
    run.update(prompts={"set": ".", "ready": ready})
    return run


def test_check_books_that_balance_say_nothing(tmp_path: Path) -> None:
    # 3 prompts: 2 + 1 and 1 + 1 + 1.
    books = {
        "prefix": {"kept": 2, "rejected:leak": 1},
        "demon": {"kept": 1, "rejected:empty": 1, "failed:generation_error": 1},
    }
    pair._check_books(run_with(tmp_path, 3), books)


@pytest.mark.parametrize(
    ("book", "total"),
    [({"kept": 1, "rejected:empty": 1}, 2), ({"kept": 3, "failed:generation_missing": 1}, 4), ({}, 0)],
)
def test_check_books_that_do_not_balance_name_strategy_and_numbers(
    book: dict[str, int], total: int, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=rf"strategy 'demon' has {total} pairs .* for 3 prompts"):
        pair._check_books(run_with(tmp_path, 3), {"prefix": {"kept": 3}, "demon": book})


def test_check_books_strategy_that_is_not_in_them_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="strategy 'demon' has 0 pairs"):
        pair._check_books(run_with(tmp_path, 3), {"prefix": {"kept": 3}})


def test_books_of_parts_add_up() -> None:
    books: pair.Books = {}
    pair._add(books, {"prefix": {"kept": 2, "rejected:leak": 1}})
    pair._add(books, {"prefix": {"kept": 1}, "demon": {"failed:generation_error": 3}})
    assert books == {"prefix": {"kept": 3, "rejected:leak": 1}, "demon": {"failed:generation_error": 3}}


# From a generation to a request.

RECIPE = RecipeSampling(temperature=0.7, top_p=0.9, max_tokens=100, min_tokens=16)
PLAIN = Variant(model="a")


def test_build_fills_in_the_reply_of_a_second_turn() -> None:
    sides = Refine(made().preset, "strong").contrast(ASK)
    built = request.build(sides.chosen, {sides.rejected.id: "The {Rhine}."}, run_seed=0, sampling=RECIPE, variant=PLAIN)
    assert built.generation_id == sides.chosen.id
    assert built.messages == (
        ("user", "Name a river."),
        ("assistant", "The {Rhine}."),
        ("user", made().preset.refine.render()),
    )
    assert built.prefill == ""
    assert built.seed == request.seed(0, sides.chosen.id)


def test_build_fills_in_the_reply_of_a_prefill_between_its_texts() -> None:
    thought = Generation("strong", ASK, read="thought")
    forced = Generation("strong", ASK, prefill=Reply(thought, before="Thought: ", after="\nResponse:"))
    built = request.build(forced, {thought.id: "be short"}, run_seed=0, sampling=RECIPE, variant=PLAIN)
    assert built.prefill == "Thought: be short\nResponse:"
    assert built.messages == (("user", "Name a river."),)


def test_build_affix_is_the_prefill() -> None:
    built = request.build(Generation("a", ASK, prefill="(+)"), {}, run_seed=0, sampling=RECIPE, variant=PLAIN)
    assert (built.messages, built.prefill) == ((("user", "Name a river."),), "(+)")


def test_build_without_the_answer_it_replies_to_is_a_mistake_of_ours() -> None:
    sides = Refine(made().preset, "strong").contrast(ASK)
    with pytest.raises(KeyError):
        request.build(sides.chosen, {}, run_seed=0, sampling=RECIPE, variant=PLAIN)


@pytest.mark.parametrize(
    ("own", "recipe", "variant", "expected"),
    [
        # The generation's own wish, then the variant's, then the recipe's, then none (the checkpoint's default).
        ({"temperature": 0.1}, {"temperature": 0.3}, {"temperature": 0.2}, {"temperature": 0.1}),
        ({}, {"temperature": 0.3}, {"temperature": 0.2}, {"temperature": 0.2}),
        ({}, {"temperature": 0.3}, {}, {"temperature": 0.3}),
        ({}, {}, {}, {"temperature": None}),
        # 0 is a wish: greedy.
        ({"temperature": 0.0}, {"temperature": 0.3}, {"temperature": 0.2}, {"temperature": 0.0}),
        ({}, {"temperature": 0.3}, {"temperature": 0.0}, {"temperature": 0.0}),
        ({"top_p": 0.1}, {"top_p": 0.3}, {"top_p": 0.2}, {"top_p": 0.1}),
        ({}, {"top_p": 0.3}, {"top_p": 0.2}, {"top_p": 0.2}),
        ({}, {}, {}, {"top_p": None}),
        ({}, {}, {}, {"max_tokens": 1024, "min_tokens": 0}),
        ({"max_tokens": 32}, {"max_tokens": 96}, {}, {"max_tokens": 32}),
        ({}, {"max_tokens": 96}, {}, {"max_tokens": 96}),
        ({"min_tokens": 0}, {"min_tokens": 16}, {}, {"min_tokens": 0}),
        ({}, {"min_tokens": 16}, {}, {"min_tokens": 16}),
        # A thought of 8 tokens under a recipe that wants 16 at least.
        ({"max_tokens": 8}, {"min_tokens": 16}, {}, {"max_tokens": 8, "min_tokens": 8}),
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.1}, {}, {"repetition_penalty": 1.2}),
        ({}, {"repetition_penalty": 1.1}, {}, {"repetition_penalty": 1.1}),
        ({}, {}, {}, {"repetition_penalty": None, "stop": (), "bad_words": ()}),
        ({"stop": ("a",)}, {"stop": ["b"]}, {}, {"stop": ("a", "b")}),
        ({}, {"stop": ["b"]}, {}, {"stop": ("b",)}),
        ({"bad_words": ("<",)}, {}, {}, {"bad_words": ("<",)}),
    ],
)
def test_merged_sampling(
    own: dict[str, Any], recipe: dict[str, Any], variant: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = request.merged(Sampling(**own), RecipeSampling(**recipe), Variant(**variant))
    assert {name: getattr(found, name) for name in expected} == expected


def test_seed_is_of_run_and_generation() -> None:
    # Written down once: a stored row can be made again by it.
    assert request.seed(0, "abc") == 6_325_760_536_001_020_463
    seeds = {request.seed(run, generation) for run in range(20) for generation in ("abc", "abd", "0", "1")}
    assert len(seeds) == 80
    assert all(0 <= seed < 2**63 for seed in seeds)  # a signed 64-bit column holds it


def test_seed_of_a_request_depends_on_the_draw() -> None:
    one, two = (Generation("a", ASK, sample=n) for n in (0, 1))
    built = [request.build(g, {}, run_seed=0, sampling=RECIPE, variant=PLAIN) for g in (one, two)]
    assert built[0].seed != built[1].seed
    assert built[0].messages == built[1].messages
