"""Reading an answer out of an assistant turn: the markers, what stands around them, and what is no marker."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.reading import answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Thought: clear and short.\nResponse: Paris.", "Paris."),
        ("Response: Paris.", "Paris."),
        ("Sure!\n\nThought: short.\n\nResponse:\n\nParis.\n\nIt is large.\n", "Paris.\n\nIt is large."),
        ("Thought: short. Response: Paris.", "Paris."),  # on one line
        ("Thought:short.\nResponse:Paris.", "Paris."),
        # The last `Response:` after the last `Thought:` counts.
        ("Thought: a\nResponse: b\nResponse: c", "c"),
        ("Thought: a\nResponse: b\nThought: c\nResponse: d", "d"),
        # Text after a further `Thought:` is cut.
        ("Thought: a\nResponse: b\nThought: c", "b"),
        ("Response: b\nThought: c\nThought: d", "b"),
        ("Thought: a\nThought: b\nResponse: c", "c"),
        # Empty is found, and is not the same as not found.
        ("Thought: a\nResponse:", ""),
        ("Thought: a\nResponse:  \n\n", ""),
        ("Thought: a\nResponse: b\nResponse:", ""),
        ("Thought: a\nResponse:\nThought: b", ""),
    ],
)
def test_response_is_the_text_after_the_last_marker(text: str, expected: str) -> None:
    assert answer(text, "response") == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Paris.",
        "Thought: short and clear. Paris.",
        "thought: a\nresponse: b",
        "THOUGHT: a\nRESPONSE: b",
        "My response is Paris. Response time: none.",
        "The Response of the city",
        "Responses: three of them",
        "AutoResponse: off",
        "Response\n: Paris.",  # a marker does not go over the end of a line
    ],
)
def test_response_without_a_marker_is_none(text: str) -> None:
    assert answer(text, "response") is None


@pytest.mark.parametrize(
    "text",
    [
        "**Thought:** short.\n**Response:** Paris.",
        "**Thought**: short.\n**Response**: Paris.",
        "*Thought:* short.\n*Response:* Paris.",
        "Thought : short.\nResponse : Paris.",
        "**Response:**\nParis.",
        "**Thought:** short.\n\n**Response:** Paris.\n\n**Thought:** and more.",
        "**Response:** Paris.**Thought**: and more.",
    ],
)
def test_response_bold_marker_is_the_same_marker(text: str) -> None:
    assert answer(text, "response") == "Paris."


def test_response_bold_at_its_beginning_is_kept() -> None:
    assert answer("Response: **Paris** is the capital.", "response") == "**Paris** is the capital."


def test_response_words_in_lower_case_stay_in_the_text() -> None:
    text = "Thought: a\nResponse: My first thought: ask. Their response: silence."
    assert answer(text, "response") == "My first thought: ask. Their response: silence."


def test_response_marker_in_the_prefill_opens_the_answer() -> None:
    assert answer(" Paris.\n", "response", prefill="Thought: short.\nResponse:") == "Paris."
    assert answer("", "response", prefill="Thought: short.\nResponse:") == ""


def test_response_marker_split_between_prefill_and_text_is_found() -> None:
    assert answer("onse: Paris.", "response", prefill="Thought: short.\nResp") == "Paris."


def test_response_later_marker_in_the_text_beats_the_prefills() -> None:
    assert answer(" first\nResponse: second", "response", prefill="Thought: t\nResponse:") == "second"
    assert answer(" first\nThought: more", "response", prefill="Thought: t\nResponse:") == "first"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Paris.\n", "Paris."),
        ("", ""),
        ("Thought: a\nResponse: b", "Thought: a\nResponse: b"),  # left for the leak check
    ],
)
def test_whole_is_the_stripped_text(text: str, expected: str) -> None:
    assert answer(text, "whole") == expected


def test_whole_cuts_the_prefilled_affix() -> None:
    assert answer(" Paris.", "whole", prefill="(good response)") == "Paris."


@pytest.mark.parametrize(
    ("text", "prefill", "expected"),
    [
        (" short and clear.", "Thought:", "short and clear."),
        (" short.\nResponse: Paris.", "Thought:", "short."),
        (" short.\nThought: again.", "Thought:", "short."),
        ("", "Thought:", ""),
        ("**Thought:** short.\n**Response:** Paris.", "", "short."),
    ],
)
def test_thought_is_the_text_up_to_the_next_marker(text: str, prefill: str, expected: str) -> None:
    assert answer(text, "thought", prefill) == expected


@pytest.mark.parametrize("text", ["", "no marker", "Response: first\nThought: then", "thought: lower"])
def test_thought_that_does_not_come_first_is_none(text: str) -> None:
    assert answer(text, "thought") is None


PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            ["Thought:", "Response:", "**Response:**", "**Thought**:", "Thought", "Response", ":", "*", " ", "\n", "_"]
        ),
        st.sampled_from(["thought:", "response:", "a", "Paris.", "é", "x1"]),
    ),
    max_size=14,
).map("".join)
# Written down again here, plainer than the parser's own: the word on its own, then a colon.
PLAIN_MARKER = re.compile(r"(?<!\w)(Thought|Response)\**:")


@settings(database=None, max_examples=300, deadline=None)
@given(text=PIECES, prefill=PIECES)
def test_parsed_answer_never_holds_a_marker(text: str, prefill: str) -> None:
    for found in (answer(text, "response", prefill), answer(text, "thought", prefill)):
        assert found is None or not PLAIN_MARKER.search(found)


@settings(database=None, max_examples=300, deadline=None)
@given(text=PIECES, prefill=PIECES)
def test_parsed_answer_is_a_stripped_part_of_the_turn(text: str, prefill: str) -> None:
    found = answer(text, "response", prefill)
    assert found is None or (found == found.strip() and found in prefill + text)
    assert (found is None) == (not re.search(r"(?<!\w)Response\**[ \t]*:", prefill + text))


@settings(database=None, max_examples=100, deadline=None)
@given(thought=st.text("ab .\n"), response=st.text("ab .\n"))
def test_form_that_was_kept_gives_back_its_parts(thought: str, response: str) -> None:
    turn = f"Thought: {thought}\nResponse: {response}"
    assert answer(turn, "thought") == thought.strip()
    assert answer(turn, "response") == response.strip()
