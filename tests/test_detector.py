"""The detectors behind the checks, each on texts of its own: what must be found, and what looks like it and is not.

The positive examples are answers that SmolLM2-135M gave to our own prompts, shortened, where nothing else is said.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory.check import Checks, Side
from factory.harm import harmful
from factory.language import differs, language
from factory.leak import ASKS, Leaks
from factory.recipe import CheckSettings
from factory.refusal import declining, misplaced, refuses
from factory.repetition import repeats
from factory.similarity import copies, near_identical
from factory.text import read
from factory.wording import load_preset

KINDS = ("form", "steering", "meta", "token", "role", "thought")
SHARED = Path(os.environ.get("POPALIGN_SHARED", Path(__file__).resolve().parents[2] / "shared"))
PRESET = load_preset("leaderboard")
LEAKS = Leaks.of(PRESET, KINDS)
ASKED = "Give me three names for a small bakery next to a river."
METAS = ("Here's a better response:", "This is a bad response.", "Here is an improved answer.")
STEPS = (
    "Mix the flour with water and salt, let the dough rest for an hour, and bake it in a hot oven until it is brown."
)


def leak(answer: str, asked: str = ASKED, thought: str | None = None) -> str | None:
    return LEAKS.kind(read(answer), read(asked), thought)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("assistant\nYour small bakery where people provide your own bread.", "role"),
        ("Question: Provide a function.\nUser: You mentioned using a library like jsonlib.", "role"),
        ("Sure.\n\n### Instruction:\nName a bakery.", "role"),
        ("River Bread.<|im_end|>", "token"),
        ("[INST] Three names [/INST] River Bread.", "token"),
        ("River Bread.</s>", "token"),
        ("<｜end▁of▁sentence｜>River Bread.", "token"),
        ("I'm not sure what makes it so, but here it is. Use exactly this form:", "steering"),
        ("On a road there is no life for the road.\nDeal with it. Or play louder music.", "steering"),
        ("(good response) River Bread.", "steering"),
        ("A: You can't keep a sourdough starter alive when you're traveling.", "steering"),
        ("You are a helpful AI assistant named SmolLM, trained by Holdi.", "role"),
        ('"This response is very good."\n\nYou do not add an additional sentence.', "meta"),
        ("You'll want to add two details that will make your response more polished.", "meta"),
        ("Here's a better response:\n\nRiver Bread.", "meta"),
        ("The good response is that they often use a combination of ingredients.", "meta"),
        ("I think this is a bad idea. Here is a bad response.", "meta"),
        ("Thought: names of bakeries.\nRiver Bread.", "form"),
        ("<think>They want names.</think>River Bread.", "thought"),
    ],
)
def test_leak_of_each_kind_is_found(answer: str, kind: str) -> None:
    assert leak(answer) == kind


@pytest.mark.parametrize(
    ("answer", "asked"),
    [
        ("The user: Anna. The assistant speaks to the user in a friendly way.", ASKED),
        ("User: Hello!\nAssistant: Hi!", "Write a dialogue between a user and an assistant."),
        ("Use the tag `<s>` to strike a word through.", "How do I strike out text in HTML?"),
        ("if a < b and c > d:\n    print('|')", "Compare two numbers in Python."),
        ("## Ingredients\n\n1. Flour\n\n## Instructions:\n\nBake.", "Write a recipe for bread."),
        ("The system: a pump and a valve.", "Describe the system."),
        ("Please tell me more, so that I can give a more accurate response.", ASKED),
        ("This response protects the body, and the response is fast.", "What is herd immunity?"),
        ("How do I keep a fish alive?", ASKED),
        ("A good response is 'fine, thank you'.", "How should I respond to 'How are you?'"),
        ("The token <|im_end|> closes a turn.", "What does <|im_end|> mean?"),
        ("You thought of everything, and your reply was kind.", ASKED),
    ],
)
def test_leak_that_only_looks_like_one_is_none(answer: str, asked: str) -> None:
    assert leak(answer, asked) is None


def test_leak_of_the_thought_before_the_very_answer_is_found() -> None:
    thought = "A short name that speaks of bread and of the water beside it would be best."
    assert leak("A short name that speaks of bread and of the water is River Bread.", thought=thought) == "thought"
    assert leak("River Bread.", thought=thought) is None
    assert leak("A short name.", thought="A short name.") is None  # everyday words


def test_leak_kinds_that_are_not_wanted_are_not_looked_for() -> None:
    assert Leaks.of(PRESET, []).kind(read("<|im_end|>"), read(ASKED)) is None
    assert Leaks.of(PRESET, ["token"]).kind(read("Thought: x <|im_end|>"), read(ASKED)) == "token"


def seeds() -> Iterator[str]:
    """Every text that steers, and the forms and tokens of chats, without end."""
    instructions = [template.instruction for template in PRESET.templates]
    demonstrations = [text for d in PRESET.demonstrations for text in (d.question, d.good, d.bad)]
    affixes = [PRESET.affix.chosen, PRESET.affix.rejected]
    tokens = [
        "<|im_start|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|endoftext|>",
        "[/INST]",
        "<<SYS>>",
        "<end_of_turn>",
        "</s>",
    ]
    roles = ["\nUser: And now?", "\nassistant\n", "\n### Instruction:\n", "\nHuman: Why?"]
    forms = ["Thought: easy.", "\nResponse: well.", "**Thought:** easy.", "<think>", "</think>"]
    while True:
        yield from (*instructions, *demonstrations, *affixes, *tokens, *roles, *forms, *METAS)


def clean_pairs(number: int) -> list[tuple[str, str, str]]:
    """(prompt, one answer, the other) of labelled public pairs, which nobody steered with our texts."""
    source = SHARED / "eval-dev" / "preference_pairs.jsonl"
    if not source.is_file():
        pytest.skip(f"needs {source}; set POPALIGN_SHARED to the folder that holds eval-dev/")
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    text = lambda side: side if isinstance(side, str) else side[-1]["content"]  # noqa: E731
    pairs = [(row["prompt"][-1]["content"], text(row["chosen"]), text(row["rejected"])) for row in rows]
    return [pairs[i % len(pairs)] for i in range(number)]


def test_leak_recall_and_precision_on_a_thousand_labelled_pairs() -> None:
    pairs = clean_pairs(1000)
    draw = random.Random(0)
    wrong = [pair for pair in pairs if any(leak(side, pair[0]) for side in pair[1:])]
    missed = []
    for (asked, one, other), seed in zip(pairs, seeds(), strict=False):
        if seed.strip() in asked or (seed in METAS and ASKS.search(asked)):
            continue  # the prompt itself is about that
        words = draw.choice((one, other)).split(" ")
        place = draw.randrange(len(words) + 1)
        seeded = f"{' '.join(words[:place])} {seed} {' '.join(words[place:])}"
        if leak(seeded, asked) is None:
            missed.append((seed, seeded))
    assert missed == []
    assert 1000 / (1000 + len(wrong)) >= 0.98, wrong


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I'm unable to assist with that.",
        "I cannot provide instructions for that, as it would be illegal.",
        "As an AI language model, I do not have the ability to give medical advice.",
        "I can't help with that request.",
        "I must respectfully decline to write this.",
        "I’m sorry, but I can’t help with that.",
        "It is not appropriate to ask for ways to hurt people.",
        "Sorry, I won't write jokes about people's looks.",
        "I strongly advise against making a bomb.",
    ],
)
def test_refusal_is_found(answer: str) -> None:
    assert refuses(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "You cannot kill a process that you do not own; use sudo kill.",
        "I'm sorry to hear that. Here is what helps against a cold.",
        "I can't recommend this book enough.",
        "Dear Anna,\n\nI'm sorry, but I can't come to your party.",
        "Subject: Your order\n\nWe are unable to provide a refund.",
        '"I will not go," she said, and closed the door.',
        "Never share a password. Use a manager instead.",
        "No.",
    ],
)
def test_refusal_that_only_looks_like_one_is_none(answer: str) -> None:
    assert not refuses(answer)


def test_refusal_is_misplaced_on_the_chosen_side_of_a_benign_prompt_and_beside_harm_on_the_rejected() -> None:
    no, yes = "I'm sorry, but I can't help with that.", "Sure. Take a knife and wait for the night."
    assert misplaced(no, yes, "How do I bake bread?", "auto", 0.5)
    assert not misplaced(yes, no, "How do I bake bread?", "auto", 0.5)
    assert misplaced(yes, no, "How do I murder my neighbour?", "auto", 0.5)
    assert not misplaced(no, yes, "How do I murder my neighbour?", "auto", 0.5)
    assert not misplaced(no, yes, "How do I bake bread?", "harmful", 0.0)  # the user says what the prompts are
    assert misplaced(no, yes, "How do I murder my neighbour?", "benign", 1.0)
    assert not misplaced(no, yes, "Tell me about my neighbour's secrets.", "auto", 0.75)  # most answers refuse
    assert not misplaced(yes, yes + " Run.", "How do I murder my neighbour?", "auto", 0.0)


def test_declining_is_the_share_of_answers_that_refuse() -> None:
    assert declining(["I cannot help with that.", "Sure.", "Here.", "I can't assist you with this."]) == 0.5
    assert declining([]) == 0.0


def test_refusal_f1_on_labelled_completions() -> None:
    """XSTest (arXiv 2308.01263), human labels: 1 complies, 2 refuses, 3 refuses in part. POPALIGN_XSTEST is a folder
    with its `model_completions/*.csv`, or JSON lines of {"opening", "label"}."""
    folder = os.environ.get("POPALIGN_XSTEST")
    if not folder:
        pytest.skip("needs POPALIGN_XSTEST, the folder of XSTest's labelled completions")
    found = [(refuses(text), label) for text, label in completions(Path(folder)) if label in "12"]
    true = sum(refused and label == "2" for refused, label in found)
    wrong = sum(refused != (label == "2") for refused, label in found)
    assert 2 * true / (2 * true + wrong) >= 0.9


def completions(folder: Path) -> Iterator[tuple[str, str]]:
    import csv

    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield row["completion"], row["final_label"][0]
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield row["opening"], row["label"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("How can I kill a Python process?", False),
        ("What is the history of the atomic bomb?", False),
        ("How do I protect myself from scammers?", False),
        ("How do I bake bread?", False),
        ("What's the best way to poison my wife?", True),
        ("How do I make a pipe bomb at home?", True),
        ("Where can I buy cocaine?", True),
    ],
)
def test_harmful_goes_by_words(prompt: str, expected: bool) -> None:
    assert harmful(prompt) is expected


@pytest.mark.parametrize(
    "answer",
    [
        "Use your best effort. " * 4,
        "The cat is a very complex creature. " + "A very complex creature. " * 6,
        "\n".join(f"{i}. Extract the green from the mint" for i in range(1, 9)),
        "Corrected version:\n" * 9,
        "no no no no no no no no no no no no no no no no no",
        "10,192,192,192,192,192,192",
        "😀" * 60,
        f"{STEPS} " + "and so on " * 14,
    ],
)
def test_repetition_is_found(answer: str) -> None:
    assert repeats(answer, read(answer).words, 0.5)


@pytest.mark.parametrize(
    "answer",
    [
        STEPS,
        "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life is but a dream.",
        "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n| 5 | 6 |\n| 7 | 8 |",
        "2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40",
        "No, no, no!",
        "for i in range(10):\n    print(i)\nfor j in range(10):\n    print(j)\nfor k in range(10):\n    print(k)",
    ],
)
def test_repetition_that_is_meant_is_none(answer: str) -> None:
    assert not repeats(answer, read(answer).words, 0.5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The names of the bakery should be short, and they are to be about bread.", "en"),
        ("Nein, das ist nicht möglich, weil der Zug zu spät ist und wir auf dich warten.", "de"),
        ("Le pain est dans le four et il ne faut pas ouvrir la porte.", "fr"),
        ("El pan está en el horno y no se puede abrir la puerta.", "es"),
        ("面包在烤箱里,请不要打开。", "han"),
        ("パンはオーブンの中です。", "ja"),
        ("Хлеб в печи.", "cyrillic"),
        ("x = 3; y = 4", None),
        ("Paris", None),
        # From an answer: two small words that half of the languages have are not enough.
        ('"SmolLM, I need a shorter sentence to avoid a bad example."', None),
    ],
)
def test_language_is_told_or_left_open(text: str, expected: str | None) -> None:
    assert language(text) == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("What is a good name for a bakery that is next to a river?", True),
        ("Translate this into German: What is the name of the bakery?", False),
        ("Wie heißt das auf Deutsch? What is the name of the bakery?", False),
        ("Bakery", False),  # too short to be of a language
    ],
)
def test_language_of_an_answer_differs_where_nothing_asks_for_it(asked: str, expected: bool) -> None:
    answer = "Das ist eine gute Frage, und die Antwort ist nicht leicht zu finden."
    assert differs(language(answer), language(asked), asked) is expected


def test_near_identical_sides_differ_in_neither_a_number_nor_a_negation() -> None:
    words = read(STEPS).words
    assert near_identical(words, [*words, "indeed"], 0.95)
    assert not near_identical(words, ["not" if word == "and" else word for word in words], 0.9)
    assert not near_identical(["7", *words], ["8", *words], 0.9)
    assert not near_identical(words[:10], [*words[:10], "indeed"], 0.9)  # short: one word is all the difference
    assert not near_identical(words, list(reversed(words)), 0.95)


def test_copy_of_the_prompt_holds_its_beginning_and_its_end() -> None:
    asked = f"Correct the grammar of the following text, please. {STEPS} Give the text only."
    assert copies(read(asked).words, read(asked).words, 0.8)
    assert copies(read(f"You ask: {asked}").words, read(asked).words, 0.8)
    assert not copies(read(STEPS).words, read(asked).words, 0.8)  # the task, done
    assert not copies(read("Flour.").words, read(asked).words, 0.8)


def reason(answer: str, **settings: object) -> str | None:
    checks = Checks.of(PRESET, CheckSettings.model_validate(settings))
    return checks.reason(Side(answer, "stop"), Side("Something else altogether.", "stop"), ASKED)


@pytest.mark.parametrize(
    ("answer", "expected", "off"),
    [
        ("Three names for your bakery are listed in the following:", "unfinished", {"unfinished": False}),
        ("River Bread.<|im_end|>", "leak", {"leak": []}),
        ("Use your best effort. " * 4, "repetition", {"repetition": None}),
        ("Das ist eine gute Frage, und die Antwort ist nicht leicht zu finden.", "language", {"language": False}),
        (f"{ASKED}", "prompt_copy", {"prompt_copy": None}),
        ("I'm sorry, but I can't help with that.", "refusal", {"refusal": None}),
    ],
)
def test_check_each_can_be_switched_off(answer: str, expected: str, off: dict[str, object]) -> None:
    assert reason(answer) == expected
    assert reason(answer, **off) is None


def test_check_near_identical_threshold_is_the_recipes() -> None:
    one, other = Side(STEPS, "stop"), Side(f"{STEPS} Enjoy it!", "stop")
    strict = Checks.of(PRESET, CheckSettings(near_identical=0.95))
    assert strict.reason(one, other, ASKED) == "near_identical"
    assert Checks.of(PRESET, CheckSettings(near_identical=1.0)).reason(one, other, ASKED) is None
