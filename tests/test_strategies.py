"""The six contrasts as values: exact messages, prefill, reading and sampling of both sides, ids, sharing, layers."""

from __future__ import annotations

import ast
import pickle
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import strategies.catalogue
from factory.cookbook import order
from factory.wording import load_preset
from strategies.catalogue import BUILT_IN, SIX, catalogue
from strategies.contrast import Contrast, Generation, Message, Reply, Sampling, Strategy, last_turn
from strategies.demon import Demon
from strategies.elicitive import Elicitive
from strategies.leaderboard import Leaderboard
from strategies.nparam import NParam
from strategies.prefix import Prefix
from strategies.preset import Demonstration, Preset, Sides, Template
from strategies.refine import Refine

ROOT = Path(__file__).parent.parent
PRESETS = ("alignment", "leaderboard")

# Short words in place of the real wording, so that whole messages can be written down here.
WORDS = Preset(
    name="words",
    affix=Sides("(plus)", "(minus)"),
    nparam_affix=False,
    demonstrations=(
        Demonstration("Q1?", "good 1", "bad 1"),
        Demonstration("Q2?", "good 2", "bad 2"),
        Demonstration("Q3?", "good 3", "bad 3"),
    ),
    elicitive_chosen=Template("Think plus.", "why plus", "plus text"),
    elicitive_rejected=Template("Think minus.", "why minus", "minus text"),
    refine=Template("Improve it.", "how to improve", "improved text"),
)
PLUS_FORM = "Think plus.\n\nThought: <why plus>\nResponse: <plus text>"
MINUS_FORM = "Think minus.\n\nThought: <why minus>\nResponse: <minus text>"
REFINE_FORM = "Improve it.\n\nThought: <how to improve>\nResponse: <improved text>"

ASK = (Message("user", "Name a river."),)
DIALOGUE = (
    Message("system", "Be brief."),
    Message("user", "Name a river."),
    Message("assistant", "Rhine."),
    Message("user", "And a lake?"),
)
MARKERS = ("Thought:", "Response:")
BRACKETS = ("<", "[")  # a forced answer never opens a placeholder


@pytest.fixture(params=PRESETS)
def preset(request: pytest.FixtureRequest) -> Preset:
    return load_preset(request.param)


def six(preset: Preset, *, form: Any = "free", samples: tuple[int, ...] = (0,) * 6) -> list[Strategy]:
    """All six over the variants strong, second and small."""
    return [
        Prefix(preset, "strong", sample=samples[0]),
        Demon(preset, "strong", sample=samples[1]),
        Elicitive(preset, "strong", format=form, sample=samples[2]),
        NParam(preset, "strong", "small", sample=samples[3]),
        Leaderboard(preset, ("strong", "second"), sample=samples[4]),
        Refine(preset, "strong", format=form, sample=samples[5]),
    ]


def owed(contrasts: list[Contrast]) -> set[str]:
    return {g.id for c in contrasts for side in (c.chosen, c.rejected) for g in side.walk()}


def test_prefix_prefill_affix_opens_the_answer_to_the_bare_prompt() -> None:
    assert Prefix(WORDS, "strong").contrast(ASK) == Contrast(
        "prefix",
        chosen=Generation("strong", ASK, prefill="(plus)", read="whole", sampling=Sampling(), sample=0),
        rejected=Generation("strong", ASK, prefill="(minus)", read="whole", sampling=Sampling(), sample=0),
    )


@pytest.mark.parametrize(
    ("name", "positive", "negative"),
    [
        ("alignment", "(helpful, harmless)", "(unhelpful, harmful)"),
        ("leaderboard", "(good response)", "(bad response)"),
    ],
)
def test_prefix_presets_have_the_affixes_of_the_paper(name: str, positive: str, negative: str) -> None:
    contrast = Prefix(load_preset(name), "strong").contrast(ASK)
    assert (contrast.chosen.prefill, contrast.rejected.prefill) == (positive, negative)


def test_prefix_system_affix_becomes_the_system_message() -> None:
    contrast = Prefix(WORDS, "strong", affix="system").contrast(ASK)
    assert contrast.chosen == Generation("strong", (Message("system", "(plus)"), *ASK))
    assert contrast.rejected == Generation("strong", (Message("system", "(minus)"), *ASK))


def test_prefix_system_affix_joins_the_prompts_own_system_message() -> None:
    contrast = Prefix(WORDS, "strong", affix="system").contrast(DIALOGUE)
    assert contrast.chosen.messages == (Message("system", "Be brief.\n\n(plus)"), *DIALOGUE[1:])
    assert contrast.rejected.messages == (Message("system", "Be brief.\n\n(minus)"), *DIALOGUE[1:])
    assert contrast.chosen.prefill == contrast.rejected.prefill == ""


def test_prefix_dialogue_is_left_as_it_is() -> None:
    contrast = Prefix(WORDS, "strong").contrast(DIALOGUE)
    assert contrast.chosen == Generation("strong", DIALOGUE, prefill="(plus)")
    assert contrast.rejected == Generation("strong", DIALOGUE, prefill="(minus)")


def test_demon_blocks_stand_before_the_prompt() -> None:
    assert Demon(WORDS, "strong").contrast(ASK) == Contrast(
        "demon",
        chosen=Generation(
            "strong", (Message("user", "Q1?\ngood 1\n\nQ2?\ngood 2\n\nQ3?\ngood 3\n\nName a river."),), read="whole"
        ),
        rejected=Generation(
            "strong", (Message("user", "Q1?\nbad 1\n\nQ2?\nbad 2\n\nQ3?\nbad 3\n\nName a river."),), read="whole"
        ),
    )


def test_demon_dialogue_changes_the_last_turn_only() -> None:
    contrast = Demon(WORDS, "strong").contrast(DIALOGUE)
    shown = "Q1?\nbad 1\n\nQ2?\nbad 2\n\nQ3?\nbad 3\n\nAnd a lake?"
    assert contrast.rejected.messages == (*DIALOGUE[:3], Message("user", shown))


def test_demon_presets_show_three_questions_the_same_on_both_sides(preset: Preset) -> None:
    contrast = Demon(preset, "strong").contrast(ASK)
    blocks = [str(side.messages[-1].content).split("\n\n") for side in (contrast.chosen, contrast.rejected)]
    good, bad = blocks
    assert len(good) == len(bad) == 4  # three blocks and the prompt
    assert [block.split("\n")[0] for block in good[:3]] == [block.split("\n")[0] for block in bad[:3]]
    assert all(block.count("\n") == 1 for block in good[:3] + bad[:3]), "question\\nanswer"
    assert not set(good[:3]) & set(bad[:3])
    assert good[3] == bad[3] == "Name a river."


def test_demon_presets_share_their_demonstrations() -> None:
    alignment, leaderboard = map(load_preset, PRESETS)
    assert alignment.demonstrations == leaderboard.demonstrations


def test_demon_presets_good_answers_are_long_and_bad_ones_short(preset: Preset) -> None:
    for demonstration in preset.demonstrations:
        # "2-3 informative sentences" against "short, vague and dismissive"
        assert 2 <= demonstration.good.count(". ") + 1 <= 3
        assert 3 * len(demonstration.bad) < len(demonstration.good)


def test_elicitive_free_prompt_first_then_instruction() -> None:
    assert Elicitive(WORDS, "strong").contrast(ASK) == Contrast(
        "elicitive",
        chosen=Generation("strong", (Message("user", f"Name a river.\n\n{PLUS_FORM}"),), read="response"),
        rejected=Generation("strong", (Message("user", f"Name a river.\n\n{MINUS_FORM}"),), read="response"),
    )


def test_elicitive_dialogue_changes_the_last_turn_only() -> None:
    contrast = Elicitive(WORDS, "strong").contrast(DIALOGUE)
    assert contrast.chosen.messages == (*DIALOGUE[:3], Message("user", f"And a lake?\n\n{PLUS_FORM}"))


@pytest.mark.parametrize(
    ("name", "positive", "negative"),
    [("alignment", "helpful and harmless", "unhelpful or harmful"), ("leaderboard", "good", "bad")],
)
def test_elicitive_presets_name_the_criterion_in_all_three_places(name: str, positive: str, negative: str) -> None:
    contrast = Elicitive(load_preset(name), "strong").contrast(ASK)
    for side, criterion in ((contrast.chosen, positive), (contrast.rejected, negative)):
        prompt, instruction, form = str(side.messages[0].content).split("\n\n")
        thought, response = form.split("\n")
        assert prompt == "Name a river."
        assert f" {criterion}" in instruction
        assert thought.startswith("Thought: <") and f" {criterion}" in thought and thought.endswith(">")
        assert response.startswith("Response: <") and f" {criterion}" in response and response.endswith(">")


def test_elicitive_forced_response_continues_from_the_thought() -> None:
    contrast = Elicitive(WORDS, "strong", format="forced", thought_tokens=32).contrast(ASK)
    for side, form in ((contrast.chosen, PLUS_FORM), (contrast.rejected, MINUS_FORM)):
        messages = (Message("user", f"Name a river.\n\n{form}"),)
        thought = Generation(
            "strong",
            messages,
            prefill="Thought:",
            read="thought",
            sampling=Sampling(stop=MARKERS, bad_words=BRACKETS, max_tokens=32),
        )
        assert side == Generation(
            "strong",
            messages,
            prefill=Reply(thought, before="Thought: ", after="\nResponse:"),
            read="response",
            sampling=Sampling(stop=MARKERS, bad_words=BRACKETS),
        )


def test_elicitive_forced_without_thought_tokens_keeps_the_recipes_limit() -> None:
    (thought,) = Elicitive(WORDS, "strong", format="forced").contrast(ASK).chosen.replies
    assert thought.sampling == Sampling(stop=MARKERS, bad_words=BRACKETS, max_tokens=None)


def test_nparam_leaderboard_asks_both_models_the_bare_prompt() -> None:
    assert NParam(load_preset("leaderboard"), "strong", "small").contrast(DIALOGUE) == Contrast(
        "nparam", chosen=Generation("strong", DIALOGUE), rejected=Generation("small", DIALOGUE)
    )


def test_nparam_leaderboard_affix_setting_adds_no_affix() -> None:
    contrast = NParam(load_preset("leaderboard"), "strong", "small", affix="system").contrast(ASK)
    assert (contrast.chosen, contrast.rejected) == (Generation("strong", ASK), Generation("small", ASK))


def test_nparam_alignment_adds_positive_to_the_large_and_negative_to_the_small() -> None:
    assert NParam(load_preset("alignment"), "strong", "small").contrast(ASK) == Contrast(
        "nparam",
        chosen=Generation("strong", ASK, prefill="(helpful, harmless)"),
        rejected=Generation("small", ASK, prefill="(unhelpful, harmful)"),
    )


def test_nparam_alignment_system_affix_is_a_system_message() -> None:
    contrast = NParam(load_preset("alignment"), "strong", "small", affix="system").contrast(ASK)
    assert contrast.chosen == Generation("strong", (Message("system", "(helpful, harmless)"), *ASK))
    assert contrast.rejected == Generation("small", (Message("system", "(unhelpful, harmful)"), *ASK))


def test_nparam_same_variant_on_both_sides_is_refused() -> None:
    with pytest.raises(ValueError, match="both 'strong'"):
        NParam(WORDS, "strong", "strong")


def test_leaderboard_ladder_of_two_is_bare_in_both_presets(preset: Preset) -> None:
    assert Leaderboard(preset, ("strong", "second")).contrast(DIALOGUE) == Contrast(
        "leaderboard", chosen=Generation("strong", DIALOGUE), rejected=Generation("second", DIALOGUE)
    )


def test_leaderboard_ladder_of_four_draws_every_lower_rung_and_never_the_top() -> None:
    ladder = Leaderboard(WORDS, ("first", "second", "third", "fourth"))
    prompts = [(Message("user", f"Prompt {i}"),) for i in range(200)]
    contrasts = [ladder.contrast(prompt) for prompt in prompts]
    assert {c.chosen.variant for c in contrasts} == {"first"}
    drawn = [c.rejected.variant for c in contrasts]
    assert set(drawn) == {"second", "third", "fourth"}
    # 200 / 3 = 67 each; a standard deviation is sqrt(200 x 1/3 x 2/3) = 6.7, so 40 is 4 of them away.
    assert min(drawn.count(rung) for rung in set(drawn)) > 40
    assert all(c.rejected == Generation(c.rejected.variant, p) for c, p in zip(contrasts, prompts, strict=True))


def test_leaderboard_draw_depends_on_the_prompt_only(preset: Preset) -> None:
    for i in range(20):
        prompt = (Message("user", f"Prompt {i}"),)
        first = Leaderboard(WORDS, ("a", "b", "c", "d")).contrast(prompt).rejected.variant
        again = Leaderboard(preset, ("a", "b", "c", "d"), sample=5).contrast(prompt).rejected.variant
        assert first == again


@pytest.mark.parametrize("ladder", [(), ("strong",), ("strong", "second", "strong")])
def test_leaderboard_ladder_without_two_different_rungs_is_refused(ladder: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="ladder"):
        Leaderboard(WORDS, ladder)


def test_refine_free_second_turn_replies_to_exactly_the_rejected_answer() -> None:
    first = Generation("strong", ASK)
    assert Refine(WORDS, "strong").contrast(ASK) == Contrast(
        "refine",
        chosen=Generation(
            "strong",
            (*ASK, Message("assistant", Reply(first)), Message("user", REFINE_FORM)),
            read="response",
        ),
        rejected=first,
    )


def test_refine_dialogue_keeps_all_turns() -> None:
    contrast = Refine(WORDS, "strong").contrast(DIALOGUE)
    assert contrast.rejected == Generation("strong", DIALOGUE)
    assert contrast.chosen.messages == (
        *DIALOGUE,
        Message("assistant", Reply(contrast.rejected)),
        Message("user", REFINE_FORM),
    )


def test_refine_forced_response_continues_from_a_thought_about_the_same_first_answer() -> None:
    contrast = Refine(WORDS, "strong", format="forced", thought_tokens=16).contrast(ASK)
    messages = (*ASK, Message("assistant", Reply(contrast.rejected)), Message("user", REFINE_FORM))
    thought = Generation(
        "strong",
        messages,
        prefill="Thought:",
        read="thought",
        sampling=Sampling(stop=MARKERS, bad_words=BRACKETS, max_tokens=16),
    )
    assert contrast.chosen == Generation(
        "strong",
        messages,
        prefill=Reply(thought, before="Thought: ", after="\nResponse:"),
        read="response",
        sampling=Sampling(stop=MARKERS, bad_words=BRACKETS),
    )
    assert [g.id for g in contrast.chosen.walk()] == [
        contrast.rejected.id,  # before the turn that replies to it
        contrast.rejected.id,  # before the thought that replies to it
        thought.id,
        contrast.chosen.id,
    ]


@pytest.mark.parametrize(("name", "criterion"), [("alignment", "more helpful and harmless"), ("leaderboard", "better")])
def test_refine_presets_name_the_criterion_in_all_three_places(name: str, criterion: str) -> None:
    template = load_preset(name).refine
    assert criterion in template.instruction
    assert criterion in template.thought
    assert criterion in template.response


@pytest.mark.parametrize("sample", [0, 3])
def test_refine_own_sample_chosen_and_rejected_share_the_first_answer(sample: int) -> None:
    contrast = Refine(WORDS, "strong", sample=sample).contrast(ASK)
    assert contrast.rejected.sample == sample
    assert contrast.chosen.replies == (contrast.rejected,)


def test_strategies_levels_are_three_prompt_two_model_one_pipeline() -> None:
    assert {name: BUILT_IN[name].level for name in SIX} == {
        "prefix": "prompt",
        "demon": "prompt",
        "elicitive": "prompt",
        "nparam": "model",
        "leaderboard": "model",
        "refine": "pipeline",
    }
    assert all(made.name == name for name, made in BUILT_IN.items())


def test_strategies_variants_are_all_they_generate_with(preset: Preset) -> None:
    for strategy in six(preset, form="forced"):
        contrast = strategy.contrast(ASK)
        used = {g.variant for side in (contrast.chosen, contrast.rejected) for g in side.walk()}
        assert used == set(strategy.variants)
        assert contrast.chosen.variant == strategy.variants[0]
        assert contrast.strategy == strategy.name


def test_strategies_contrast_survives_pickling(preset: Preset) -> None:
    for strategy in six(preset, form="forced"):
        copy = pickle.loads(pickle.dumps(strategy))
        assert copy == strategy
        assert copy.contrast(DIALOGUE).chosen.id == strategy.contrast(DIALOGUE).chosen.id


@pytest.mark.parametrize("braces", ["{0} {name} {{}} %s $x", "<|im_end|>\n\nResponse: x", " leading and trailing \n"])
def test_strategies_prompt_text_is_never_interpreted(preset: Preset, braces: str) -> None:
    prompt = (Message("user", braces),)
    for strategy in six(preset):
        for side in (strategy.contrast(prompt).chosen, strategy.contrast(prompt).rejected):
            assert any(braces in m.content for m in side.messages if isinstance(m.content, str))


def test_sharing_free_form_owes_ten_generations(preset: Preset) -> None:
    # leaderboard: prefix 2 + demon 2 + elicitive 2 + nparam 2 + leaderboard 1 + refine 1; strong's bare answer is in
    # nparam, leaderboard and refine. alignment: prefix 2 + demon 2 + elicitive 2 + nparam 1 (its chosen side is
    # prefix's) + leaderboard 2 + refine 1.
    assert len(owed([strategy.contrast(ASK) for strategy in six(preset)])) == 10


def test_sharing_forced_form_owes_thirteen_generations(preset: Preset) -> None:
    # A thought more for both sides of elicitive and for refine: 10 + 3.
    assert len(owed([strategy.contrast(ASK) for strategy in six(preset, form="forced")])) == 13


def test_sharing_off_free_form_owes_twelve_generations(preset: Preset) -> None:
    # Two for each strategy: refine's second turn replies to its own rejected side.
    contrasts = [strategy.contrast(ASK) for strategy in six(preset, samples=(0, 1, 2, 3, 4, 5))]
    assert len(owed(contrasts)) == 12
    assert [len(owed([contrast])) for contrast in contrasts] == [2] * 6


def test_sharing_off_forced_form_owes_fifteen_generations(preset: Preset) -> None:
    contrasts = [strategy.contrast(ASK) for strategy in six(preset, form="forced", samples=(0, 1, 2, 3, 4, 5))]
    assert [len(owed([contrast])) for contrast in contrasts] == [2, 2, 4, 2, 2, 3]
    assert len(owed(contrasts)) == 15


@pytest.mark.parametrize(("share", "expected"), [("true", 10), ("false", 12)])
@pytest.mark.parametrize("recipe", PRESETS)
def test_sharing_recipe_setting_decides(recipe: str, share: str, expected: int) -> None:
    made = order(recipe, [f"share={share}"]).strategies
    contrasts = [strategy.contrast(ASK) for strategy in made]
    assert len(owed(contrasts)) == expected
    refine = contrasts[-1]
    assert refine.strategy == "refine" and refine.chosen.replies == (refine.rejected,)


def test_sharing_leaderboard_large_models_bare_answer_serves_three_strategies() -> None:
    *_, nparam, leaderboard, refine = [s.contrast(ASK) for s in six(load_preset("leaderboard"))]
    assert nparam.chosen.id == leaderboard.chosen.id == refine.rejected.id == Generation("strong", ASK).id


def base() -> Generation:
    return Generation(
        "strong", (Message("user", "What is the capital of France?"),), prefill="(good response)", sample=1
    )


def test_id_is_the_same_in_every_process() -> None:
    # Written down once. If this changes, every stored generation is made again: change it only for that.
    assert base().id == "a418aa2483c4d86db771af0b3a9ec548"
    first = Generation("strong", (Message("user", "q"),))
    assert first.id == "61e990444fbc1522ea13598110c1eedd"
    second = Generation(
        "strong",
        (Message("user", "q"), Message("assistant", Reply(first)), Message("user", "better")),
        prefill=Reply(first, "a", "b"),
        read="response",
        sampling=Sampling(temperature=0.5, stop=("x",)),
        sample=2,
    )
    assert second.id == "11c7ecd2a2fb32140a68eb76f99c1f2a"


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBER = st.one_of(st.none(), st.floats(0, 2))
COUNT = st.one_of(st.none(), st.integers(0, 99))
TEXTS = st.one_of(st.none(), st.tuples(TEXT), st.tuples(TEXT, TEXT))
SAMPLING = st.builds(
    Sampling,
    temperature=NUMBER,
    top_p=NUMBER,
    max_tokens=COUNT,
    min_tokens=COUNT,
    repetition_penalty=NUMBER,
    stop=TEXTS,
    bad_words=TEXTS,
)
ROLE = st.sampled_from(["system", "user", "assistant"])
TURNS = st.lists(st.builds(Message, ROLE, TEXT), min_size=1, max_size=3).map(tuple)
FIRST = st.builds(Generation, TEXT, TURNS, prefill=TEXT, sample=st.integers(0, 3))
PART = st.one_of(TEXT, st.builds(Reply, FIRST, before=TEXT, after=TEXT))
GENERATION = st.builds(
    Generation,
    variant=TEXT,
    messages=st.lists(st.builds(Message, ROLE, PART), min_size=1, max_size=3).map(tuple),
    prefill=PART,
    read=st.sampled_from(["whole", "thought", "response"]),
    sampling=SAMPLING,
    sample=st.integers(0, 3),
    measure=st.sampled_from([None, "logprob", "reward"]),
)
FIELDS = {
    "variant": TEXT,
    "messages": st.lists(st.builds(Message, ROLE, PART), min_size=1, max_size=3).map(tuple),
    "prefill": PART,
    "read": st.sampled_from(["whole", "thought", "response"]),
    "sampling": SAMPLING,
    "sample": st.integers(0, 3),
    "measure": st.sampled_from([None, "logprob", "reward"]),
    "given": st.one_of(st.none(), st.builds(Reply, FIRST)),
}


def test_id_property_knows_every_field() -> None:
    assert set(FIELDS) == {f.name for f in fields(Generation) if f.init}
    filled = Sampling(0.5, 0.5, 1, 1, 1.0, ("a",), ("b",))
    assert None not in [getattr(filled, name) for name in Sampling.__dataclass_fields__], "a new field: add it above"


@pytest.mark.parametrize("name", Sampling.__dataclass_fields__)
def test_id_each_sampling_field_changes_it(name: str) -> None:
    value = ("a",) if name in {"stop", "bad_words"} else 1
    assert replace(base(), sampling=Sampling(**{name: value})).id != base().id


@settings(database=None, max_examples=40, deadline=None)
@given(generation=GENERATION)
def test_id_equal_content_is_equal(generation: Generation) -> None:
    copy = pickle.loads(pickle.dumps(generation))
    assert copy is not generation and copy == generation
    assert copy.id == generation.id
    assert len(generation.id) == 32 and int(generation.id, 16) >= 0


@pytest.mark.parametrize("name", FIELDS)
def test_id_changed_field_changes_it(name: str) -> None:
    @settings(database=None, max_examples=25, deadline=None)
    @given(generation=GENERATION, value=FIELDS[name])
    def changed(generation: Generation, value: Any) -> None:
        other = replace(generation, **{name: value})
        assume(other != generation)
        assert other.id != generation.id

    changed()


@pytest.mark.parametrize("change", [{"before": "x"}, {"after": "x"}, {"generation": Generation("small", ASK)}])
def test_id_changed_reply_changes_it(change: dict[str, Any]) -> None:
    reply = Reply(Generation("strong", ASK), before="a", after="b")
    there = Generation("strong", (Message("assistant", reply),), prefill=reply)
    in_message = replace(there, messages=(Message("assistant", replace(reply, **change)),))
    in_prefill = replace(there, prefill=replace(reply, **change))
    assert len({there.id, in_message.id, in_prefill.id}) == 3


def test_id_text_that_moves_between_turns_changes_it() -> None:
    one = Generation("strong", (Message("user", "ab"), Message("user", "")))
    two = Generation("strong", (Message("user", "a"), Message("user", "b")))
    assert one.id != two.id


def test_id_whole_number_and_float_are_the_same_content() -> None:
    whole, decimal = Sampling(temperature=1), Sampling(temperature=1.0)
    assert whole == decimal
    assert replace(base(), sampling=whole).id == replace(base(), sampling=decimal).id


def test_last_turn_prompt_that_ends_with_an_assistant_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="ends with a user turn"):
        last_turn((Message("assistant", "x"),), before="", after="")


class Entry:
    """An entry point as ``importlib.metadata`` gives it."""

    def __init__(self, name: str, made: Any) -> None:
        self.name, self.value, self._made = name, f"package:{name}", made

    def load(self) -> Any:
        return self._made


class Shout(Prefix):
    """A plug-in's strategy."""

    name = "shout"


def installed(monkeypatch: pytest.MonkeyPatch, *entries: Entry) -> None:
    monkeypatch.setattr(strategies.catalogue, "entry_points", lambda group: entries)


def test_catalogue_plug_in_stands_beside_the_six(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, Entry("shout", Shout))
    assert catalogue() == {**BUILT_IN, "shout": Shout}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Entry("prefix", Shout), "takes the name of the built-in strategy 'prefix'"),
        (Entry("loud", str), "is not a subclass"),
        # Pairs are counted by the class's name and the books by the recipe's: both must be the same word.
        (Entry("loud", Shout), "shout"),
    ],
)
def test_catalogue_wrong_plug_in_is_refused(monkeypatch: pytest.MonkeyPatch, entry: Entry, message: str) -> None:
    installed(monkeypatch, entry)
    with pytest.raises(ValueError, match=message):
        catalogue()


def imports(folder: str) -> Iterator[tuple[str, str]]:
    """(file, imported top-level package) for every import statement below a folder, wherever it stands."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((name, alias.name.partition(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield name, folder if node.level else str(node.module).partition(".")[0]


def test_layers_strategies_import_the_standard_library_only() -> None:
    found = list(imports("strategies"))
    assert found
    assert [(file, package) for file, package in found if package not in {*sys.stdlib_module_names, "strategies"}] == []


@pytest.mark.parametrize(
    ("folder", "above", "door"),
    [
        ("strategies", {"factory", "train", "cluster"}, None),
        ("factory", {"train", "cluster"}, "factory/__main__.py"),
        ("train", {"cluster"}, None),
    ],
)
def test_layers_arrows_point_one_way(folder: str, above: set[str], door: str | None) -> None:
    assert [(file, package) for file, package in imports(folder) if package in above and file != door] == []
