"""The neighbours of the six: exact messages of both sides, what is drawn, ids, wording, and the edit gate."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from running import generations, popalign, scripted

from factory import cookbook
from factory.change import change, rewritten
from factory.check import Checks, Side
from factory.pair import pairs_of
from factory.plan import unique
from factory.recipe import Sampling as RecipeSampling
from factory.recipe import Variant
from factory.request import build
from factory.wording import load_preset
from strategies.context_distill import ContextDistill
from strategies.contrast import Contrast, Generation, Message, Reply, Sampling, Strategy
from strategies.delta import Delta
from strategies.demon import Demon
from strategies.elicitive import Elicitive
from strategies.leaderboard import Leaderboard
from strategies.nparam import NParam
from strategies.prefix import Prefix
from strategies.preset import Preset, Sides, Template
from strategies.refine import Refine
from strategies.revise import Revise
from strategies.rlcd import Rlcd
from strategies.system import System
from strategies.temperature import Temperature
from strategies.worsen import Worsen

PRESETS = ("alignment", "leaderboard")
# Short words in place of the real wording.
WORDS = replace(
    load_preset("leaderboard"),
    refine=Template("Improve it.", "how to improve", "improved text"),
    rlcd=(Sides("(plus)", "(minus)"),),
    system=(Sides("Be plus.", "Be minus."),),
    context="Be good.",
    revise=Template("Mend it.", "what is wrong", "mended text"),
    worsen=Template("Spoil it.", "what to spoil", "spoilt text"),
)
REFINE = Message("user", "Improve it.\n\nThought: <how to improve>\nResponse: <improved text>")
REVISE = Message("user", "Mend it.\n\nThought: <what is wrong>\nResponse: <mended text>")
WORSEN = Message("user", "Spoil it.\n\nThought: <what to spoil>\nResponse: <spoilt text>")

ASK = (Message("user", "Name a river."),)
DIALOGUE = (
    Message("system", "Be brief."),
    Message("user", "Name a river."),
    Message("assistant", "Rhine."),
    Message("user", "And a lake?"),
)
MANY = [(Message("user", f"Prompt {i}"),) for i in range(200)]
OPTIONS: dict[str, Any] = {
    "rlcd": {"variant": "strong"},
    "system": {"variant": "strong"},
    "context-distill": {"variant": "strong"},
    "temperature": {"variant": "strong", "low": 0, "high": 1.5},
    "delta": {"chosen": "second", "rejected": "small"},
    "revise": {"student": "small", "teacher": "strong", "max_change": 0.5},
    "worsen": {"variant": "strong", "editor": "second"},
    "refine": {"variant": "strong", "rounds": 3},
}

# First digits of (chosen, rejected) for the dialogue.
GOLDEN = [
    ("5849988f", "dfcd75d6"),
    ("edfc0f1d", "88255a4e"),
    ("8f1dc9fc", "30a4ba0c"),
    ("0477a79d", "15115cfb"),
    ("0477a79d", "010d5f5a"),
    ("9f18a24e", "0477a79d"),
    ("a5e69eb7", "0477a79d"),
]


@pytest.fixture(params=PRESETS)
def preset(request: pytest.FixtureRequest) -> Preset:
    return load_preset(request.param)


def neighbours(preset: Preset) -> list[Strategy]:
    return [
        Rlcd(preset, "strong"),
        System(preset, "strong"),
        ContextDistill(preset, "strong"),
        Temperature(preset, "strong"),
        Delta(preset, "second", "small"),
        Revise(preset, "small", "strong", format="forced"),
        Worsen(preset, "strong", editor="second"),
        Refine(preset, "strong", rounds=3),
    ]


def follow_up(answer: Generation, request: Message, variant: str = "strong") -> Generation:
    """An edit in the free form of the answer to ASK."""
    return Generation(variant, (*ASK, Message("assistant", Reply(answer)), request), read="response")


def test_ids_of_the_six_are_those_of_stored_runs() -> None:
    # Written down before the neighbours came: if one changes, every stored generation is made again.
    words = load_preset("leaderboard")
    six = [
        Prefix(words, "strong"),
        Demon(words, "strong"),
        Elicitive(words, "strong", format="forced", thought_tokens=32),
        NParam(words, "strong", "small"),
        Leaderboard(words, ("strong", "second", "third")),
        Refine(words, "strong"),
        Refine(words, "strong", format="forced", thought_tokens=32),
    ]
    contrasts = [strategy.contrast(DIALOGUE) for strategy in six]
    assert [(c.chosen.id[:8], c.rejected.id[:8]) for c in contrasts] == GOLDEN


def test_rlcd_affixes_of_one_pair_open_the_answers() -> None:
    assert Rlcd(WORDS, "strong").contrast(ASK) == Contrast(
        "rlcd",
        chosen=Generation("strong", ASK, prefill="(plus)"),
        rejected=Generation("strong", ASK, prefill="(minus)"),
    )


def test_rlcd_earlier_assistant_turns_carry_the_opposite_affix() -> None:
    contrast = Rlcd(WORDS, "strong").contrast(DIALOGUE)
    system, question, _, last = DIALOGUE
    assert contrast.chosen == Generation(
        "strong", (system, question, Message("assistant", "(minus) Rhine."), last), prefill="(plus)"
    )
    assert contrast.rejected == Generation(
        "strong", (system, question, Message("assistant", "(plus) Rhine."), last), prefill="(minus)"
    )


def test_rlcd_system_affix_joins_the_system_message_and_leaves_the_turns() -> None:
    contrast = Rlcd(WORDS, "strong", affix="system").contrast(DIALOGUE)
    assert contrast.chosen == Generation("strong", (Message("system", "Be brief.\n\n(plus)"), *DIALOGUE[1:]))
    assert contrast.rejected == Generation("strong", (Message("system", "Be brief.\n\n(minus)"), *DIALOGUE[1:]))


def test_rlcd_draws_every_pair_of_the_pool_with_both_sides_of_one(preset: Preset) -> None:
    pool = {pair.chosen: pair.rejected for pair in preset.rlcd}
    contrasts = [Rlcd(preset, "strong").contrast(prompt) for prompt in MANY]
    drawn = [str(c.chosen.prefill) for c in contrasts]
    assert [pool[affix] for affix in drawn] == [c.rejected.prefill for c in contrasts]
    # 200 / 12 = 17 each, a standard deviation of 3.9; none is missing, and none has 40.
    assert set(drawn) == set(pool) and max(drawn.count(affix) for affix in pool) < 40


def test_rlcd_draw_is_another_for_another_sample_and_the_same_for_another_variant(preset: Preset) -> None:
    def drawn(**options: Any) -> list[Any]:
        return [Rlcd(preset, **options).contrast(prompt).chosen.prefill for prompt in MANY[:40]]

    assert drawn(variant="a") == drawn(variant="b")
    # By chance 40 / 12 = 3 agree.
    assert sum(x == y for x, y in zip(drawn(variant="a"), drawn(variant="a", sample=1), strict=True)) < 20


def test_system_messages_of_one_pair(preset: Preset) -> None:
    assert System(WORDS, "strong").contrast(ASK) == Contrast(
        "system",
        chosen=Generation("strong", (Message("system", "Be plus."), *ASK)),
        rejected=Generation("strong", (Message("system", "Be minus."), *ASK)),
    )
    drawn = {
        (str(c.chosen.messages[0].content), str(c.rejected.messages[0].content))
        for c in (System(preset, "strong").contrast(prompt) for prompt in MANY)
    }
    assert drawn == {(pair.chosen, pair.rejected) for pair in preset.system}


def test_system_message_joins_the_prompts_own() -> None:
    contrast = System(WORDS, "strong").contrast(DIALOGUE)
    assert contrast.chosen.messages == (Message("system", "Be brief.\n\nBe plus."), *DIALOGUE[1:])
    assert contrast.rejected.messages == (Message("system", "Be brief.\n\nBe minus."), *DIALOGUE[1:])


def test_context_distill_context_against_the_bare_prompt() -> None:
    assert ContextDistill(WORDS, "strong").contrast(ASK) == Contrast(
        "context-distill",
        chosen=Generation("strong", (Message("system", "Be good."), *ASK)),
        rejected=Generation("strong", ASK),
    )
    contrast = ContextDistill(WORDS, "strong").contrast(DIALOGUE)
    assert contrast.chosen.messages == (Message("system", "Be brief.\n\nBe good."), *DIALOGUE[1:])
    assert contrast.rejected == Generation("strong", DIALOGUE)


def test_temperature_of_each_side_is_its_own() -> None:
    contrast = Temperature(WORDS, "strong", low=0, high=1.5).contrast(DIALOGUE)
    assert contrast == Contrast(
        "temperature",
        chosen=Generation("strong", DIALOGUE, sampling=Sampling(temperature=0)),
        rejected=Generation("strong", DIALOGUE, sampling=Sampling(temperature=1.5)),
    )
    # It goes before the variant's and the recipe's, also where it is 0.
    requests = [
        build(g, {}, run_seed=0, sampling=RecipeSampling(temperature=0.7), variant=Variant(temperature=0.9, top_p=0.8))
        for g in (contrast.chosen, contrast.rejected)
    ]
    assert [(r.sampling.temperature, r.sampling.top_p) for r in requests] == [(0, 0.8), (1.5, 0.8)]


def test_delta_is_bare_in_both_presets(preset: Preset) -> None:
    assert Delta(preset, "second", "small").contrast(DIALOGUE) == Contrast(
        "delta", chosen=Generation("second", DIALOGUE), rejected=Generation("small", DIALOGUE)
    )


def test_revise_teacher_is_shown_the_students_answer() -> None:
    own = Generation("small", ASK)
    assert Revise(WORDS, "small", "strong").contrast(ASK) == Contrast(
        "revise", chosen=follow_up(own, REVISE), rejected=own
    )


def test_revise_forced_thought_is_the_teachers() -> None:
    contrast = Revise(WORDS, "small", "strong", format="forced", thought_tokens=9).contrast(DIALOGUE)
    own, thought = contrast.chosen.replies
    assert own == contrast.rejected == Generation("small", DIALOGUE)
    assert (thought.variant, thought.prefill, thought.sampling.max_tokens) == ("strong", "Thought:", 9)
    assert thought.messages == contrast.chosen.messages == (*DIALOGUE, Message("assistant", Reply(own)), REVISE)


def test_worsen_the_original_is_chosen() -> None:
    good = Generation("strong", ASK)
    assert Worsen(WORDS, "strong").contrast(ASK) == Contrast("worsen", chosen=good, rejected=follow_up(good, WORSEN))
    by_another = Worsen(WORDS, "strong", editor="small").contrast(ASK)
    assert by_another == Contrast("worsen", chosen=good, rejected=follow_up(good, WORSEN, "small"))


def test_refine_each_round_replies_to_the_one_before() -> None:
    first = Generation("strong", ASK)
    second, third = follow_up(first, REFINE), follow_up(follow_up(first, REFINE), REFINE)
    assert Refine(WORDS, "strong", rounds=1).contrast(ASK) == Contrast("refine", chosen=second, rejected=first)
    assert Refine(WORDS, "strong", rounds=2).contrast(ASK) == Contrast("refine", chosen=third, rejected=first)


def test_refine_max_change_makes_no_other_generations() -> None:
    assert Refine(WORDS, "strong", max_change=0.3).contrast(ASK) == Refine(WORDS, "strong").contrast(ASK)


def test_neighbours_variants_are_all_they_generate_with_the_chosen_sides_first(preset: Preset) -> None:
    for strategy in neighbours(preset):
        for prompt in (ASK, DIALOGUE):
            contrast = strategy.contrast(prompt)
            assert {g.variant for g in contrast.walk()} == set(strategy.variants), strategy.name
            assert contrast.chosen.variant == strategy.variants[0]
            assert contrast.strategy == strategy.name


def test_neighbours_contrast_survives_pickling_and_draws_its_own_sample(preset: Preset) -> None:
    for strategy in neighbours(preset):
        copy = pickle.loads(pickle.dumps(strategy))
        assert copy == strategy
        assert copy.contrast(DIALOGUE).chosen.id == strategy.contrast(DIALOGUE).chosen.id
        other = replace(strategy, sample=3).contrast(ASK)  # type: ignore[call-arg]  # all of them have it
        assert {g.sample for g in other.walk()} == {3}
        assert not {g.id for g in other.walk()} & {g.id for g in strategy.contrast(ASK).walk()}


@pytest.mark.parametrize("section", ["rlcd", "system"])
def test_wording_pairs_are_alike_in_form_and_differ(preset: Preset, section: str) -> None:
    pool = getattr(preset, section)
    assert len({text for pair in pool for text in (pair.chosen, pair.rejected)}) == 2 * len(pool) >= 12
    for pair in pool:
        words = [side.split() for side in (pair.chosen, pair.rejected)]
        assert abs(len(words[0]) - len(words[1])) <= 1, pair
        assert len(set(words[0]) & set(words[1])) >= (1 if section == "rlcd" else 6), pair


def test_wording_every_text_of_a_neighbour_is_a_leak(preset: Preset) -> None:
    checks = Checks.of(preset)
    pairs = (*preset.rlcd, *preset.system)
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)] + [preset.context]
    assert preset.revise is not None and preset.worsen is not None
    for text in [*texts, preset.revise.instruction, preset.worsen.instruction]:
        assert checks.reason(Side(f"Paris. {text} Well.", "stop"), Side("No idea.", "stop"), "Where?") == "leak", text
    for sentence in preset.context.split(". "):
        assert checks.reason(Side(sentence, "stop"), Side("No idea.", "stop"), "Where?") == "leak", sentence


def test_wording_every_placeholder_of_a_neighbour_is_an_echo(preset: Preset) -> None:
    checks = Checks.of(preset)
    for template in (preset.revise, preset.worsen):
        assert template is not None
        for text in (template.thought, template.response):
            assert checks.reason(Side("Paris.", "stop"), Side(f"<{text}>", "stop"), "Where?") == "echo"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("The Rhine is long.", "the rhine is LONG", 0),
        ("The Rhine is long.", "The Main is long.", 1 / 4),
        ("The Rhine is long.", "The Rhine is very, very long.", 2 / 6),  # over the words of the longer text
        ("The Rhine is very, very long.", "The Rhine is long.", 2 / 6),
        ("The Rhine is long.", "Ask somebody else instead.", 1),
        ("", "", 0),
        ("", "Rhine", 1),
        ("莱茵河很长", "莱茵河很短", 1 / 5),  # without spaces by the character
    ],
)
def test_change_is_the_share_of_words(before: str, after: str, expected: float) -> None:
    assert change(before, after) == pytest.approx(expected)


def test_change_at_the_limit_is_allowed_and_without_one_everything_is() -> None:
    sides = ("The Rhine is long.", "The Main is long.")
    assert [rewritten(*sides, limit) for limit in (0.24, 0.25, None)] == [True, False, False]


@pytest.mark.parametrize(
    ("edit", "limit", "expected"),
    [
        ("The Rhine is a very long river.", 0.5, ("kept", None)),
        ("Lakes are deep and cold in the mountains.", 0.5, ("rejected", "rewritten")),
        ("Lakes are deep and cold in the mountains.", None, ("kept", None)),
        ("the rhine is a long river", 0.5, ("rejected", "identical")),  # the checks come first
        (None, 0.5, ("rejected", "unparseable")),
    ],
)
@pytest.mark.parametrize("name", ["revise", "worsen", "refine"])
def test_pairs_edit_beyond_its_limit_is_rewritten(
    name: str, edit: str | None, limit: float | None, expected: tuple[str, str | None]
) -> None:
    strategies: dict[str, Strategy] = {
        "revise": Revise(WORDS, "small", "strong", max_change=limit),
        "worsen": Worsen(WORDS, "strong", max_change=limit),
        "refine": Refine(WORDS, "strong", max_change=limit),
    }
    made = strategies[name]
    contrast = made.contrast(ASK)
    original, edited = contrast.rejected, contrast.chosen
    if name == "worsen":
        original, edited = edited, original
    answers = {original.id: "The Rhine is a long river.", edited.id: edit}
    completions = [
        {"generation_id": i, "answer": answer, "text": "x", "finish": "stop", "tokens": 1, "seed": 1, "error": None}
        for i, answer in answers.items()
    ]
    turns = [{"role": "user", "content": "Name a river."}]
    row = {"prompt_id": "p", "prompt": turns, "split": "train", "source": "f:1", "completions": completions}
    (pair,) = pairs_of(row, [made], Checks.of(WORDS))
    assert (pair["status"], pair["reason"]) == expected


def test_generate_and_pairs_of_all_neighbours_balance(tmp_path: Path) -> None:
    recipe = scripted(tmp_path, 20, extra=["[[truncated]] long", "[[error]] broken"], strategies=OPTIONS)
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": [{"role": m.role, "content": m.content} for m in DIALOGUE]}) + "\n")
    run = tmp_path / "run"
    for command in (["generate", str(recipe)], ["pairs", str(run)]):
        done = popalign(*command, "--cpus", "4")
        assert done.returncode == 0, done.stderr
    outcomes = json.loads((run / "manifest.json").read_text())["pairs"]["strategies"]
    assert outcomes.keys() == OPTIONS.keys()
    for name, found in outcomes.items():
        assert found["kept"] + sum(found["rejected"].values()) + sum(found["failed"].values()) == 23, name
    # Scripted texts are drawn at random: an edit shares next to no word with what it was made from.
    assert outcomes["revise"]["rejected"]["rewritten"] >= 15
    assert min(found["kept"] for name, found in outcomes.items() if name != "revise") >= 15
    made = cookbook.check(cookbook.read(str(recipe)), "r").strategies
    for row in generations(run):
        prompt = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
        owed = unique(strategy.contrast(prompt) for strategy in made)
        assert {completion["generation_id"] for completion in row["completions"]} == set(owed)
