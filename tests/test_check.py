"""The checks of a pair: one hand-built pair for each reason, the order of the reasons, and what must be kept."""

from __future__ import annotations

import pytest

from factory.check import Checks, Side
from factory.recipe import CheckSettings
from factory.text import normal
from factory.wording import load_preset
from strategies.preset import Preset

PRESETS = ("alignment", "leaderboard")
ASKED = "What is the capital of France?"
GOOD = Side("Paris, on the Seine.", "stop")
BAD = Side("No idea, ask somebody else.", "stop")


@pytest.fixture(params=PRESETS)
def preset(request: pytest.FixtureRequest) -> Preset:
    return load_preset(request.param)


def both(checks: Checks, side: Side, *, asked: str = ASKED) -> str | None:
    """The reason for a pair with that side, which must be the same on either side."""
    reasons = {checks.reason(side, BAD, asked), checks.reason(GOOD, side, asked)}
    (reason,) = reasons
    return reason


def said(text: str) -> Side:
    return Side(text, "stop")


def test_check_clean_pair_is_kept(preset: Preset) -> None:
    assert Checks.of(preset).reason(GOOD, BAD, ASKED) is None


@pytest.mark.parametrize(
    "text",
    [
        "A good question needs a bad one beside it.",  # the words of the preset, not its texts
        "Being helpful and harmless is the aim of many chat models.",
        "The sky turned red and the starter was fed twice.",
        "Feed the sourdough daily, and keep it in the fridge.",
        "My first thought: ask a friend. Their response: silence.",
        "1 < 2 and 3 > 2, so <b>2</b> lies between them.",
        "Use `print('{}')` and %s; 100 % sure.",
        "Use exactly this formula: distance divided by time.",  # not "use exactly this form"
        "x",
        "42",
    ],
)
def test_check_everyday_text_is_kept(preset: Preset, text: str) -> None:
    assert both(Checks.of(preset), said(text)) is None


def test_check_unparseable_no_answer_was_read(preset: Preset) -> None:
    assert both(Checks.of(preset), Side(None, "stop")) == "unparseable"


def test_check_truncated_token_limit_cut_it(preset: Preset) -> None:
    assert both(Checks.of(preset), Side("Paris, on the", "length")) == "truncated"


@pytest.mark.parametrize("text", ["", " \n\t ", "...", '"', "**", "`.`"])
def test_check_empty_nothing_but_space_and_marks(preset: Preset, text: str) -> None:
    assert both(Checks.of(preset), said(text)) == "empty"


@pytest.mark.parametrize("form", ["<{}>", "<{}", "Sure: <{}> as asked", "{}", "{}.", "**{}**", "[{}]", "({})"])
def test_check_echo_every_placeholder_of_every_template(preset: Preset, form: str) -> None:
    templates = (preset.elicitive_chosen, preset.elicitive_rejected, preset.refine)
    for placeholder in [text for template in templates for text in (template.thought, template.response)]:
        assert both(Checks.of(preset), said(form.format(placeholder))) == "echo"
        assert both(Checks.of(preset), said(form.format(placeholder.upper()))) == "echo"


def test_check_echo_short_placeholder_said_in_earnest_is_kept() -> None:
    checks = Checks.of(load_preset("leaderboard"))
    asked = "How did he respond to her letter?"
    assert both(checks, said("He gave the good response that she had hoped for."), asked=asked) is None


@pytest.mark.parametrize("form", ["{}", "{} Paris.", "Paris. {}", "Paris {} Paris", "**{}** Paris."])
def test_check_leak_affix(preset: Preset, form: str) -> None:
    for affix in (preset.affix.chosen, preset.affix.rejected):
        assert both(Checks.of(preset), said(form.format(affix))) == "leak"
        assert both(Checks.of(preset), said(form.format(affix.upper()))) == "leak"
        assert both(Checks.of(preset), said(form.format(affix.replace(" ", "\n  ")))) == "leak"


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("part", ["question", "good", "bad"])
def test_check_leak_each_text_of_each_demonstration(preset: Preset, number: int, part: str) -> None:
    text = getattr(preset.demonstrations[number], part)
    assert both(Checks.of(preset), said(f"Paris. {text} Lyon is smaller.")) == "leak"
    assert both(Checks.of(preset), said(text.lower())) == "leak"


@pytest.mark.parametrize("start", [0, 5, 20])
def test_check_leak_five_words_of_a_long_demonstration_are_enough(preset: Preset, start: int) -> None:
    words = preset.demonstrations[0].good.split()
    assert both(Checks.of(preset), said(f"Paris. {' '.join(words[start : start + 5])} Paris.")) == "leak"
    assert both(Checks.of(preset), said(f"Paris. {' '.join(words[start : start + 4])} Paris.")) is None


def test_check_leak_each_instruction(preset: Preset) -> None:
    for template in (preset.elicitive_chosen, preset.elicitive_rejected, preset.refine):
        assert both(Checks.of(preset), said(template.instruction)) == "leak"
        assert both(Checks.of(preset), said(f"You said: {template.instruction} Well, Paris.")) == "leak"


@pytest.mark.parametrize(
    "text",
    [
        "Thought: short. Paris.",
        "Paris.\nResponse: Lyon.",
        "**Thought:** short. Paris.",
        "**Response:** Paris.",
        # The parser takes these for markers as well (strategies.reading.MARKER).
        "**Response**: Paris.",
        "**Thought**: short. Paris.",
        "Response : Paris.",
    ],
)
def test_check_leak_marker_of_the_form(preset: Preset, text: str) -> None:
    assert both(Checks.of(preset), said(text)) == "leak"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Paris", "Paris"),
        ("Paris.", "paris"),
        ("Paris  is\nlarge", "Paris is large"),
        ('"Paris"', "Paris!"),
        ("**Paris**", "Paris"),
        ("ﬁne", "fine"),  # a ligature, equal in compatibility form
        ("STRASSE", "straße"),
    ],
)
def test_check_identical_after_normalisation(preset: Preset, one: str, other: str) -> None:
    assert normal(one) == normal(other)
    assert Checks.of(preset).reason(said(one), said(other), ASKED) == "identical"


@pytest.mark.parametrize(("one", "other"), [("Paris", "Pari"), ("Paris, Lyon", "Paris Lyon"), ("1.5", "15")])
def test_check_small_difference_is_not_identical(preset: Preset, one: str, other: str) -> None:
    assert Checks.of(preset).reason(said(one), said(other), ASKED) is None


def test_check_prompt_with_the_affix_allows_it_in_the_answer(preset: Preset) -> None:
    checks = Checks.of(preset)
    for affix in (preset.affix.chosen, preset.affix.rejected):
        assert both(checks, said(f"It marks {affix} texts."), asked=f"What does '{affix}' mean?") is None
    # Only what the prompt itself holds: the other affix is still a leak.
    asked = f"What does '{preset.affix.chosen}' mean?"
    assert both(checks, said(f"It is not {preset.affix.rejected}."), asked=asked) == "leak"


def test_check_prompt_that_is_a_demonstrations_question_allows_it_in_the_answer(preset: Preset) -> None:
    checks = Checks.of(preset)
    for demonstration in preset.demonstrations:
        answer = f"You ask: {demonstration.question} It depends."
        assert both(checks, said(answer), asked=f"Translate into German: {demonstration.question}") is None
        assert both(checks, said(f"{answer} {demonstration.bad}"), asked=demonstration.question) == "leak"


def test_check_prompt_that_quotes_an_instruction_allows_it_in_the_answer(preset: Preset) -> None:
    instruction = preset.elicitive_chosen.instruction
    asked = f"What does this template do? {instruction}"
    assert both(Checks.of(preset), said(f"'{instruction}' asks for a thought."), asked=asked) is None


def test_check_prompt_that_holds_a_long_placeholder_allows_it_in_the_answer(preset: Preset) -> None:
    placeholder = preset.refine.thought
    asked = f"Tell me {placeholder} of our hotline."
    assert both(Checks.of(preset), said(f"To see {placeholder}, call it yourself."), asked=asked) is None


def test_check_reasons_come_in_their_order() -> None:
    preset = load_preset("leaderboard")
    checks = Checks.of(preset)
    # One side for each reason that comes after the one before it, on alternating sides: the first in the list wins.
    sides = [
        ("unparseable", Side(None, "length")),
        ("truncated", Side("", "length")),
        ("empty", Side("", "stop")),
        ("echo", Side("<the good response> (bad response)", "stop")),
        ("leak", Side("(bad response)", "stop")),
    ]
    for i, (reason, side) in enumerate(sides):
        for _, later in sides[i:]:
            assert checks.reason(side, later, ASKED) == reason
            assert checks.reason(later, side, ASKED) == reason


def test_check_identical_comes_last(preset: Preset) -> None:
    for side in (Side(None, "stop"), Side("", "stop"), Side("Thought: Paris", "stop")):
        assert Checks.of(preset).reason(side, side, ASKED) in {"unparseable", "empty", "leak"}


def test_check_preset_decides_what_leaks() -> None:
    steering = CheckSettings(leak=["steering"])
    alignment, leaderboard = (Checks.of(load_preset(name), steering) for name in PRESETS)
    assert both(alignment, said("(good response) Paris.")) is None
    assert both(leaderboard, said("(good response) Paris.")) == "leak"
    assert both(leaderboard, said("(helpful, harmless) Paris.")) is None
    assert both(alignment, said("(helpful, harmless) Paris.")) == "leak"
